//! Who leads an order, and how the others know.
//!
//! In choreography nobody leads: payment and inventory act on `OrderPlaced`, orders joins their answers.
//! In orchestration the service checkout leads: it sends the [commands](crate::commands), and orders does
//! what it says. What happens is announced by the same events in both styles. An event that says what was
//! done for the checkout carries the header [`LED_BY`]: whoever would act on it in choreography leaves that
//! to the checkout. So each order is led by one, also while a shop changes its style.

use std::{fmt, str::FromStr};

use tidings::{Metadata, SendWith, With, prelude::*};

/// The header of an event that says what was done for the checkout.
pub const LED_BY: &str = "shop-led-by";

/// Its value.
const CHECKOUT: &str = "checkout";

/// Who decides what happens to the orders that are placed from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CheckoutStyle {
    /// The services, by each other's events.
    #[default]
    Choreography,
    /// The service checkout, by a saga.
    Orchestration,
}

impl CheckoutStyle {
    /// The word for it, as in `--checkout`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Choreography => "choreography",
            Self::Orchestration => "orchestration",
        }
    }
}

impl fmt::Display for CheckoutStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CheckoutStyle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Choreography, Self::Orchestration];
        let named = all.into_iter().find(|style| style.as_str() == text);
        named.ok_or_else(|| {
            format!("`{text}` is not a style; there are `choreography` and `orchestration`")
        })
    }
}

/// What happened, done for the checkout.
pub fn led_by_checkout<E: Event>(fact: E) -> With<E> {
    fact.header(LED_BY, CHECKOUT)
}

/// Whether the checkout had it done.
pub fn is_led_by_checkout(metadata: &Metadata) -> bool {
    metadata.header(LED_BY) == Some(CHECKOUT)
}
