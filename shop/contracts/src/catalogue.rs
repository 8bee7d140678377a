//! The demo catalogue: what there is, what it costs, and how much of it a new shop has.

use crate::Money;

/// Something the shop sells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// The code that orders name it by.
    pub sku: &'static str,
    /// Its name, for people.
    pub name: &'static str,
    /// What one costs.
    pub price: Money,
    /// How many a new shop has.
    pub initial_stock: i64,
}

/// Everything the shop sells. Two of them are scarce on purpose: try to buy them.
#[allow(clippy::inconsistent_digit_grouping, reason = "units_cents")]
pub const CATALOGUE: [Product; 15] = [
    item("TEA-EARL-GREY", "Earl Grey tea", 8_90, 100_000),
    item("TEA-SENCHA", "Sencha tea", 12_50, 100_000),
    item("MUG-ENAMEL", "Enamel mug", 12_90, 100_000),
    item("TEAPOT-IRON", "Cast-iron teapot", 64_00, 100_000),
    item("KETTLE-STOVE", "Stovetop kettle", 54_50, 100_000),
    item("NOTEBOOK-LINEN", "Linen notebook", 18_50, 100_000),
    item("PEN-FOUNTAIN", "Fountain pen", 49_90, 100_000),
    item("LAMP-BRASS", "Brass desk lamp", 99_99, 100_000),
    item("CLOCK-TRAVEL", "Travel clock", 39_00, 100_000),
    item("RADIO-KITCHEN", "Kitchen radio", 129_00, 100_000),
    item("UMBRELLA-STORM", "Storm umbrella", 34_95, 100_000),
    item("SCARF-MERINO", "Merino scarf", 45_00, 100_000),
    item("CANDLE-BEESWAX", "Beeswax candle", 9_75, 100_000),
    item("TELESCOPE-BRASS", "Pocket telescope", 219_00, 3),
    item("GLOBE-ANTIQUE", "Antique globe", 480_00, 0),
];

const fn item(
    sku: &'static str,
    name: &'static str,
    price_cents: i64,
    initial_stock: i64,
) -> Product {
    Product {
        sku,
        name,
        price: Money::from_cents(price_cents),
        initial_stock,
    }
}

/// The product with this code.
pub fn product(sku: &str) -> Option<&'static Product> {
    CATALOGUE.iter().find(|product| product.sku == sku)
}
