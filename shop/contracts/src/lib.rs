//! What the services of the shop say to each other: events, money and the catalogue.
//!
//! It holds no behaviour and does no I/O. Services know each other through this crate only.
//!
//! ```text
//!              OrderPlaced
//!   orders ──┬─────────────► payment ───► PaymentAuthorized | PaymentDeclined ──┐
//!     ▲      └─────────────► inventory ─► StockReserved | StockRejected ────────┤
//!     └─────────────────── waits for both ◄─────────────────────────────────────┘
//!
//!   both good: OrderConfirmed ──► inventory, shipping, notification, loyalty
//!   otherwise: OrderCancelled ──► payment (refund), inventory (release), notification
//! ```

mod catalogue;
mod events;
mod money;

pub use catalogue::{CATALOGUE, Product, product};
pub use events::{
    EmailSent, OrderCancelled, OrderConfirmed, OrderItem, OrderPlaced, OrderStatus,
    PaymentAuthorized, PaymentDeclined, PaymentRefunded, PointsAwarded, ShipmentBooked,
    StockRejected, StockReleased, StockReserved,
};
pub use money::{Money, ParseMoneyError};

/// The card that the bank charges.
pub const CARD_OK: &str = "tok_ok";
/// The card that the bank declines.
pub const CARD_DECLINED: &str = "tok_declined";
/// The card for which the bank fails a few times before it charges.
pub const CARD_FLAKY: &str = "tok_flaky";
