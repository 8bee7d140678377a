//! What is marked as sensitive stays out of what the toolkit says: reasons of dead letters, their history, and
//! logs.

mod support;

use std::{
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use support::{Database, broker::Broker, outgoing, until};
use tidings::{Envelope, Error, Outgoing, Permanent, Sensitive, handlers, prelude::*, serve};
use tokio::sync::oneshot;

const QUEUE: &str = "bank.card-presented.v1";

#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[serde(rename_all = "camelCase")]
#[event(id = "number")]
struct CardPresented {
    number: u64,
    holder: Holder,
    kind: Kind,
    #[tidings(sensitive)]
    pin_code: u16,
}

#[derive(Debug, Clone, Serialize, Deserialize, Sensitive)]
struct Holder {
    #[tidings(sensitive)]
    birthday: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Kind {
    Debit,
}

/// The same without a mark.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(id = "number")]
struct CardReturned {
    number: u64,
}

/// The log of this process, as text.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<Vec<u8>>>);

impl Write for Book {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Book {
    fn read(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }
}

#[tokio::test]
async fn errors_and_logs_say_nothing_of_the_values_in_a_body() {
    let book = Book::default();
    let writer = book.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .try_init()
        .expect("it is the first");
    let (broker, database) = (Broker::default(), Database::new().await);
    let take = |card: CardPresented| async move {
        let CardPresented { number, .. } = card;
        match number {
            1 => Err(Error::from(Permanent::new("the card is not ours"))),
            _ => Ok(()),
        }
    };
    let give = |_: CardReturned| async { Ok::<_, Error>(()) };
    let router = Router::new("bank").on(take).on(give);
    let router = router.transactional(database.store.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(broker.clone(), router).with_graceful_shutdown(stopped);
    let ready = serving.ready();
    let serving = tokio::spawn(serving.into_future());
    ready.await;
    let good = CardPresented {
        number: 1,
        holder: Holder {
            birthday: "s3cret-1".into(),
        },
        kind: Kind::Debit,
        pin_code: 31_415,
    };
    broker.publish_raw(outgoing(&good));
    let bodies = [
        // What it is, and what is said of it.
        (
            r#"{"number":2,"holder":{"birthday":"s3cret-1"},"kind":"Debit","pinCode":"s3cret-2"}"#,
            "a value is wrong, expected u16 at line 1 column",
        ),
        (
            r#"{"number":2,"holder":{"birthday":["s3cret-1"]},"kind":"Debit","pinCode":1}"#,
            "a value is wrong, expected a string at line 1 column",
        ),
        (
            r#"{"number":2,"holder":"s3cret-1, expected nothing","kind":"Debit","pinCode":1}"#,
            "a value is wrong, expected struct Holder at line 1 column",
        ),
        (
            r#"{"number":2,"holder":{"birthday":""},"kind":"s3cret-1","pinCode":1}"#,
            "a value is wrong, expected `Debit` at line 1 column",
        ),
        (
            r#"{"number":2,"holder":{"birthday":"s3cret-1"},"pinCode":1}"#,
            "missing field `kind` at line 1 column",
        ),
        (r#"{"number":2,"s3cret-1"#, "EOF while parsing a string"),
        ("s3cret-1", "expected value at line 1 column 1"),
    ];
    for (body, _) in bodies {
        broker.publish_raw(Outgoing {
            envelope: Envelope::new("", body),
            ..outgoing(&good)
        });
    }
    // One that marks nothing says what was found.
    broker.publish_raw(Outgoing {
        envelope: Envelope::new("", r#"{"number":"open"}"#),
        ..outgoing(&CardReturned { number: 1 })
    });
    until("all is settled", async || {
        broker.is_settled() && broker.dead_letters(QUEUE).len() == bodies.len() + 1
    })
    .await;
    stop.send(()).expect("it runs");
    serving.await.expect("no panic").expect("no error");

    let dead = broker.dead_letters(QUEUE);
    let reasons = dead.into_iter().flat_map(|it| it.history);
    let reasons: Vec<String> = reasons.map(|it| it.reason).collect();
    for (body, said) in bodies {
        let is_said = reasons.iter().any(|reason| reason.contains(said));
        assert!(is_said, "{body}: {reasons:#?}");
    }
    let open = broker.dead_letters("bank.card-returned.v1");
    let reason = &open[0].history[0].reason;
    assert!(
        reason.contains(r#"invalid type: string "open", expected u64"#),
        "{reason}"
    );
    let log = book.read();
    assert!(log.contains("dead letter"), "the log is read");
    for text in reasons.iter().chain([&log]) {
        for secret in ["s3cret", "31415"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(name = "card-presented.v0", topic = "old_cards", id = "number")]
struct CardPresentedV0 {
    number: u64,
    #[tidings(sensitive)]
    pin: u16,
}

impl From<CardPresentedV0> for CardPresented {
    fn from(old: CardPresentedV0) -> Self {
        Self {
            number: old.number,
            holder: Holder {
                birthday: String::new(),
            },
            kind: Kind::Debit,
            pin_code: old.pin,
        }
    }
}

/// For operators, whose programs do not have the types.
#[tokio::test]
async fn a_service_writes_down_what_is_marked_in_what_it_takes() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let take = |_: CardPresented| async { Ok::<_, Error>(()) };
    let give = |_: CardReturned| async { Ok::<_, Error>(()) };
    let router = Router::new("bank")
        .on(take)
        .on(give)
        .upcast::<CardPresentedV0, CardPresented>()
        .transactional(database.store.clone());
    // Not by `Running`, which has a log of its own.
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(broker, router).with_graceful_shutdown(stopped);
    let ready = serving.ready();
    let serving = tokio::spawn(serving.into_future());
    ready.await;
    stop.send(()).expect("it runs");
    serving.await.expect("no panic").expect("no error");
    let listed = handlers::list(&database.store).await.expect("a list");
    let marked: Vec<(&str, Vec<&str>)> = listed
        .iter()
        .map(|it| {
            let paths = it.sensitive.iter().map(|path| &**path);
            (&*it.message, paths.collect())
        })
        .collect();
    assert_eq!(
        marked,
        [
            (
                "card-presented.v1",
                vec!["holder.birthday", "pin", "pinCode"]
            ),
            ("card-returned.v1", vec![]),
        ]
    );
}
