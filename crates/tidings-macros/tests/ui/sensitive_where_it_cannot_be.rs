use serde::{Deserialize, Serialize};
use tidings::{Command, Event, Sensitive};

#[derive(Serialize, Deserialize, Event)]
#[event(key = "email")]
struct CustomerMoved {
    #[tidings(sensitive)]
    email: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(id = "customer.email")]
struct CustomerLeft {
    #[tidings(sensitive)]
    customer: Customer,
}

#[derive(Serialize, Deserialize)]
struct Customer {
    email: String,
}

#[derive(Serialize, Deserialize, Event)]
struct CardIssued {
    #[event(sensitive)]
    number: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "bank")]
struct IssueCard {
    #[tidings(secret)]
    number: String,
}

#[derive(Serialize, Deserialize, Sensitive)]
#[tidings(sensitive)]
struct Whole {
    number: String,
}

#[derive(Serialize, Deserialize, Sensitive)]
struct Listed(u32, #[tidings(sensitive)] String);

#[derive(Serialize, Deserialize, Sensitive)]
struct Skipped {
    #[serde(skip)]
    #[tidings(sensitive)]
    number: String,
}

#[derive(Serialize, Deserialize, Sensitive)]
struct Flat {
    #[serde(flatten)]
    #[tidings(sensitive)]
    customer: Customer,
}

#[derive(Serialize, Deserialize, Sensitive)]
enum Either {
    #[tidings(sensitive)]
    One { number: String },
}

#[derive(Serialize, Deserialize, Sensitive)]
struct Generic<T> {
    number: T,
}

#[derive(Clone, Serialize, Deserialize, Sensitive)]
#[serde(from = "String", into = "String")]
struct Converted {
    #[tidings(sensitive)]
    number: String,
}

impl From<String> for Converted {
    fn from(number: String) -> Self {
        Self { number }
    }
}

impl From<Converted> for String {
    fn from(converted: Converted) -> Self {
        converted.number
    }
}

fn main() {}
