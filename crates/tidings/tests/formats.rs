//! Messages in Avro through the whole of the toolkit, on a real database: a message changes its format while it is sent, an
//! operator mends one as text, and nobody reads in a reason what is not to be shown.

mod support;

use std::time::Duration;

use apache_avro::AvroSchema;
use serde::{Deserialize, Serialize};
use support::{Database, Running, letters::publish, outgoing, until};
use tidings::{
    Error,
    dead_letters::{Audit, DeadLetters, Selection},
    prelude::*,
};
use tidings_memory::MemoryTransport;
use tidings_sqlite::Tx;

/// The money arrived, as it was: in JSON.
mod before {
    use super::*;

    #[derive(Debug, Serialize, Deserialize, Event)]
    #[event(name = "money-deposited.v1", key = "account", id = "number")]
    pub(super) struct MoneyDeposited {
        pub(super) account: String,
        pub(super) number: i64,
    }
}

/// The money arrived.
#[derive(Debug, Clone, Serialize, Deserialize, AvroSchema, Event)]
#[event(
    name = "money-deposited.v1",
    key = "account",
    id = "number",
    format = "avro"
)]
struct MoneyDeposited {
    account: String,
    number: i64,
    note: Option<String>,
}

/// What the audit reads of it.
mod audit {
    use super::*;

    #[derive(Debug, Serialize, Deserialize, AvroSchema, Event)]
    #[event(name = "balance-changed.v1", format = "avro")]
    pub(super) struct BalanceChanged {
        pub(super) number: f64,
    }
}

/// What the bank makes of it.
#[derive(Debug, Serialize, Deserialize, AvroSchema, Event)]
#[event(name = "balance-changed.v1", format = "avro")]
struct BalanceChanged {
    account: String,
    number: i64,
}

async fn book(deposit: MoneyDeposited, mut tx: Tx) -> Result<BalanceChanged> {
    if deposit.account == "bad" {
        return Err(Error::msg("no account `bad`"));
    }
    let (number, account) = (deposit.number, deposit.account.clone());
    let insert = "insert into effect (number, account) values (?1, ?2)";
    tx.execute(insert, (number, account)).await?;
    Ok(BalanceChanged {
        account: deposit.account,
        number,
    })
}

async fn note(changed: audit::BalanceChanged, mut tx: Tx) -> Result<()> {
    let number = changed.number as i64 + 1000;
    let insert = "insert into effect (number, account) values (?1, 'audit')";
    tx.execute(insert, (number,)).await?;
    Ok(())
}

#[tokio::test]
async fn a_message_changes_its_format_and_a_letter_of_it_is_mended_as_text() {
    let (transport, database) = (MemoryTransport::new(), Database::new().await);
    let router = |name: &str| Router::new(name.to_owned()).retry(Retry::none());
    let bank = router("bank")
        .on(book)
        .transactional(database.store.clone());
    let auditor = router("audit")
        .on(note)
        .transactional(database.store.clone());
    let running = Running::start_all(&transport, [bank, auditor]).await;

    let old = before::MoneyDeposited {
        account: "a".to_owned(),
        number: 1,
    };
    let new = |account: &str, number| MoneyDeposited {
        account: account.to_owned(),
        number,
        note: Some("cash".to_owned()),
    };
    // Instances of before and of now send side by side; one of them twice.
    let batch = [
        outgoing(&old),
        outgoing(&new("a", 2)),
        outgoing(&new("a", 1)),
        outgoing(&new("bad", 3)),
    ];
    publish(&transport, batch.into()).await;
    let queue = "bank.money-deposited.v1";
    until("it is a dead letter", async || {
        transport.dead_letters(queue).len() == 1
    })
    .await;
    until("the others are booked, and audited", async || {
        database.effects().await.len() == 4
    })
    .await;

    let letters = DeadLetters::new(transport.connect(), queue).store(database.store.clone());
    let mut listing = letters.list(&Selection::all()).await.expect("a listing");
    let page = listing.next_page(10).await.expect("a page");
    listing.end().await.expect("it ends");
    assert_eq!(page[0].envelope.content_type, "application/avro");
    let mended = r#"{"account": "good", "number": 3, "note": null}"#;
    let why = Audit::now("ann", "the account was renamed");
    let edited = letters.edit(&page[0].id, mended, &why).await;
    edited.expect("it is edited");
    let redrive = letters.redrive(Selection::all()).unlimited();
    let report = redrive.settle(Duration::from_millis(300)).run(|_| {}).await;
    assert_eq!(report.expect("it runs").sent, 1);
    until("it is booked", async || database.effects().await.len() == 6).await;
    let effects = database.effects().await;
    let mut numbers: Vec<u64> = effects.into_iter().map(|(_, number)| number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 1001, 1002, 1003]);
    running.stop().await;
}

/// A card was charged.
#[derive(Debug, Serialize, Deserialize, AvroSchema, Event)]
#[event(name = "card-charged.v1", format = "avro")]
struct CardCharged {
    #[tidings(sensitive)]
    card: i64,
}

/// The same from somebody who writes the card as a text.
mod elsewhere {
    use super::*;

    #[derive(Debug, Serialize, Deserialize, AvroSchema, Event)]
    #[event(name = "card-charged.v1", format = "avro")]
    pub(super) struct CardCharged {
        pub(super) card: String,
    }
}

#[tokio::test]
async fn a_reason_does_not_say_what_a_sensitive_field_holds() {
    async fn charge(_: CardCharged) -> Result<()> {
        Ok(())
    }
    let transport = MemoryTransport::new();
    let running = Running::start(&transport, Router::new("bank").on(charge)).await;
    let theirs = elsewhere::CardCharged {
        card: "4111-1111".to_owned(),
    };
    let mut message = outgoing(&theirs);
    message.envelope.id = Some("c-1".into());
    publish(&transport, vec![message]).await;
    let queue = "bank.card-charged.v1";
    until("it is a dead letter", async || {
        transport.dead_letters(queue).len() == 1
    })
    .await;
    let letter = &transport.dead_letters(queue)[0];
    let reason = &letter.history[0].reason;
    assert!(
        reason.contains("not the Avro of a `card-charged.v1`") && !reason.contains("4111"),
        "{reason}"
    );
    running.stop().await;
}
