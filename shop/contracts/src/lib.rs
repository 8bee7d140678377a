//! What the services of the shop say to each other: events, commands, money and the catalogue.
//!
//! It holds no behaviour and does no I/O. Services know each other through this crate only.
//!
//! By choreography:
//!
//! ```text
//!              OrderPlaced
//!   orders ──┬─────────────► payment ───► PaymentAuthorized | PaymentDeclined ──┐
//!     ▲      └─────────────► inventory ─► StockReserved | StockRejected ────────┤
//!     └────────── waits for both, or the first refusal, or the deadline ◄────────┘
//!
//!   both good: OrderConfirmed ──► inventory, shipping, notification, loyalty
//!   otherwise: OrderCancelled ──► payment (refund), inventory (release), notification
//! ```
//!
//! By orchestration the checkout leads, by [`commands`]; the events are the same, and say what was done:
//!
//! ```text
//!   orders ── OrderPlaced ──► checkout ─┬─ ReserveStock ──► inventory ─► StockReserved | StockRejected
//!                                       ├─ ChargeCard ────► payment ───► PaymentAuthorized | PaymentDeclined
//!                                       ├─ ConfirmOrder ──► orders ────► OrderConfirmed
//!                                       ├─ ShipStock ─────► inventory
//!                                       └─ BookParcel ────► shipping ──► ShipmentBooked
//!
//!   a refusal: RefundCard, ReleaseStock for what was done, then CancelOrder ──► orders ─► OrderCancelled
//! ```

mod catalogue;
mod checkout;
pub mod commands;
mod events;
mod money;
mod order;

pub use catalogue::{CATALOGUE, Product, product};
pub use checkout::{CheckoutStyle, LED_BY, is_led_by_checkout, led_by_checkout};
pub use events::{
    EmailSent, OrderCancelled, OrderConfirmed, PaymentAuthorized, PaymentDeclined, PaymentRefunded,
    PointsAwarded, ShipmentBooked, StockRejected, StockReleased, StockReserved,
};
pub use money::{Money, ParseMoneyError};
pub use order::{
    CARD_BYTES_MAX, CUSTOMER_ID_BYTES_MAX, EMAIL_BYTES_MAX, ITEM_QUANTITY_MAX, ORDER_ID_BYTES_MAX,
    ORDER_ITEMS_MAX, OrderItem, OrderPlaced, OrderStatus, SKU_BYTES_MAX,
};

/// The card that the bank charges.
pub const CARD_OK: &str = "tok_ok";
/// The card that the bank declines.
pub const CARD_DECLINED: &str = "tok_declined";
/// The card for which the bank fails a few times before it charges.
pub const CARD_FLAKY: &str = "tok_flaky";
