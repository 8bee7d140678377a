//! Where marked fields are in the JSON of a type: each case is written by serde, and the paths must find the
//! values in it.

#![allow(dead_code, reason = "the types are about their shape")]

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use serde::{Deserialize, Serialize};
use tidings::{Command, Event, Message, Sensitive, SensitivePaths};

#[track_caller]
fn check<T: Sensitive>(expected: &[&str]) {
    assert_eq!(SensitivePaths::of::<T>(), expected);
}

#[derive(Serialize, Deserialize, Sensitive)]
struct Customer {
    name: String,
    #[tidings(sensitive)]
    email: Option<String>,
}

#[derive(Serialize, Deserialize, Sensitive)]
#[serde(rename_all = "camelCase")]
struct Payment {
    #[tidings(sensitive)]
    card_token: String,
    paid_by: Box<Customer>,
}

#[derive(Serialize, Deserialize)]
struct Plain {
    email: String,
}

#[derive(Serialize, Deserialize, Event)]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
struct OrderPlaced {
    order_id: String,
    #[tidings(sensitive)]
    delivery_address: Vec<String>,
    customer: Customer,
    plain: Plain,
    payments: Vec<Payment>,
    by_name: BTreeMap<String, Option<Customer>>,
    others: HashMap<u32, [Customer; 2]>,
    plain_list: Vec<Plain>,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment")]
struct ChargeCard {
    #[tidings(sensitive)]
    #[serde(rename = "tok.en", alias = "tok*en", alias = "*")]
    token: String,
    #[serde(rename(serialize = "written", deserialize = "read"))]
    #[tidings(sensitive)]
    secret: String,
    r#type: String,
}

#[derive(Serialize, Deserialize, Event)]
struct PageTurned {
    number: u32,
}

#[test]
fn fields_are_found_under_the_names_that_serde_gives_them() {
    check::<Customer>(&["email"]);
    check::<Payment>(&["cardToken", "paidBy.email"]);
    check::<OrderPlaced>(&[
        "byName.*.email",
        "customer.email",
        "deliveryAddress",
        "others.*.email",
        "payments.cardToken",
        "payments.paidBy.email",
    ]);
    check::<ChargeCard>(&["\\*", "read", "tok*en", "tok\\.en", "written"]);
    assert_eq!(
        OrderPlaced::sensitive_paths(),
        SensitivePaths::of::<OrderPlaced>()
    );
    assert_eq!(PageTurned::sensitive_paths(), Vec::<String>::new());
}

#[derive(Serialize, Deserialize, Sensitive)]
#[serde(rename_all = "snake_case", rename_all_fields = "SCREAMING-KEBAB-CASE")]
enum ByName {
    PaidByCard {
        #[tidings(sensitive)]
        card_token: String,
    },
    #[serde(rename = "transfer", alias = "wire", rename_all = "PascalCase")]
    Transfer {
        #[tidings(sensitive)]
        bank_account: String,
    },
    PaidBy(Customer),
    Secret(#[tidings(sensitive)] String),
    Cash,
    #[serde(untagged)]
    Other(Customer),
}

#[derive(Serialize, Deserialize, Sensitive)]
#[serde(tag = "kind")]
enum ByTag {
    Card {
        #[tidings(sensitive)]
        token: String,
    },
    Customer(Customer),
}

#[derive(Serialize, Deserialize, Sensitive)]
#[serde(tag = "kind", content = "of")]
enum Beside {
    Card {
        #[tidings(sensitive)]
        token: String,
    },
    Secret(#[tidings(sensitive)] String),
}

#[derive(Serialize, Deserialize, Sensitive)]
#[serde(untagged)]
enum Untagged {
    Card {
        #[tidings(sensitive)]
        token: String,
    },
    Customers(Vec<Customer>),
}

#[test]
fn the_representations_of_enums_are_heeded() {
    check::<ByName>(&[
        "email",
        "paid_by.email",
        "paid_by_card.CARD-TOKEN",
        "secret",
        "transfer.BankAccount",
        "wire.BankAccount",
    ]);
    check::<ByTag>(&["email", "token"]);
    check::<Beside>(&["of", "of.token"]);
    check::<Untagged>(&["email", "token"]);
}

#[derive(Serialize, Deserialize, Sensitive)]
struct Token(#[tidings(sensitive)] String);

#[derive(Serialize, Deserialize, Sensitive)]
#[serde(transparent)]
struct Wrapped {
    inner: Customer,
}

#[derive(Serialize, Deserialize, Sensitive)]
struct Pair(u32, Customer);

#[derive(Serialize, Deserialize, Sensitive)]
struct Around<'a> {
    token: Option<Token>,
    wrapped: Wrapped,
    pair: Pair,
    #[serde(flatten)]
    flat: Customer,
    #[serde(borrow)]
    #[tidings(sensitive)]
    note: Cow<'a, str>,
    #[serde(skip)]
    never: Option<PlacedAgain>,
}

#[derive(Clone, Serialize, Deserialize, Sensitive)]
#[serde(into = "Wire", try_from = "Wire")]
struct PlacedAgain {
    number: u32,
}

#[derive(Serialize, Deserialize, Sensitive)]
struct Wire {
    #[tidings(sensitive)]
    secret: u32,
}

impl From<PlacedAgain> for Wire {
    fn from(placed: PlacedAgain) -> Self {
        Self {
            secret: placed.number,
        }
    }
}

impl TryFrom<Wire> for PlacedAgain {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        Ok(Self {
            number: wire.secret,
        })
    }
}

#[test]
fn what_has_no_name_of_its_own_is_where_what_holds_it_is() {
    check::<Around<'_>>(&["email", "note", "pair.email", "token", "wrapped.email"]);
    check::<PlacedAgain>(&["secret"]);
}

#[derive(Serialize, Deserialize, Sensitive)]
struct Tree {
    children: Vec<Tree>,
    #[tidings(sensitive)]
    secret: u32,
    twin: Option<Box<Twin>>,
}

#[derive(Serialize, Deserialize, Sensitive)]
struct Twin {
    tree: Box<Tree>,
}

#[derive(Serialize, Deserialize, Sensitive)]
struct OpenTree {
    children: Vec<OpenTree>,
}

/// A path has an end: below it everything is hidden, if anything is.
#[test]
fn a_type_within_itself_is_hidden_there_as_a_whole() {
    check::<Tree>(&["children", "secret", "twin.tree"]);
    check::<OpenTree>(&[]);
}
