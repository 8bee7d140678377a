//! Fields that services have marked as sensitive, wherever the program shows messages: by the path in messages
//! of their name, whoever asks about which service, and not at all with `--reveal`.

use serde_json::json;
use tidings::{
    Commit, Expected, InboxQuery, InboxState, Lane, RecordChange, RecordId, RecordValue,
};

use crate::world::{Stack, World};

#[tokio::test(flavor = "multi_thread")]
async fn marked_fields_are_hidden_wherever_messages_are_shown_on_sqlite() {
    marked_fields_are_hidden(Stack::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn marked_fields_are_hidden_wherever_messages_are_shown_on_postgresql() {
    marked_fields_are_hidden(Stack::Postgres).await;
}

async fn marked_fields_are_hidden(stack: Stack) {
    let world = World::new(stack).await;
    // Nobody has written down anything yet: `card` is a name, and `nick` is none.
    world.place("o-1", "later").await;
    let aside = set_aside(&world).await;
    let of_checkout = ["--service", "checkout"];
    let show = [&["outbox", "show", &aside][..], &of_checkout].concat();
    let shown = world.tidings(&show).await;
    shown
        .ends(0)
        .tells(r#""card":"***","customer":{"nick":"n1ck"}"#);

    let running = world.start().await;
    let restore = [&["outbox", "restore", &aside][..], &of_checkout].concat();
    world.tidings(&restore).await.ends(0);
    // The charge waits at payment, which has never seen the order.
    let waits = ["deferred", "--json"];
    world
        .until(&waits, |json| json["consumers"][0]["waiting"] == 1)
        .await;
    world.place("o-2", "broken").await;
    let stuck = ["sagas", "list", "--stuck", "--json"];
    world
        .until(&stuck, |json| json["sagas"][0]["key"] == "o-2")
        .await;
    running.stop().await;
    world.place("o-3", "tok_ok").await;
    let aside = set_aside(&world).await;

    let of_payment = ["--service", "payment"];
    let id = waiting(&world).await;
    let consumer = "payment.charge-card.v1";
    let deferred = [&["deferred", "show", consumer, &id][..], &of_payment].concat();
    let order = [&["outbox", "show", &aside][..], &of_checkout].concat();
    let saga = ["sagas", "show", "checkout", "o-2"];
    // What is asked about, what stands there, and what is revealed.
    let cases = [
        (&order[..], r#""customer":{"nick":"***"}"#, "n1ck"),
        (&deferred[..], r#""statement":"***""#, "l1ne"),
        (&saga[..], r#""customer":{"nick":"***"}"#, "n1ck"),
        (&saga[..], r#""statement":"***""#, "l1ne"),
    ];
    for (verb, hidden, revealed) in cases {
        let shown = world.tidings(verb).await;
        shown.ends(0).tells(hidden);
        for secret in ["n1ck", "l1ne"] {
            assert!(!shown.out.contains(secret), "{shown:#?}");
        }
        let json = world.tidings(&[verb, &["--json"]].concat()).await;
        json.ends(0);
        for secret in ["n1ck", "l1ne"] {
            assert!(!json.out.contains(secret), "{json:#?}");
        }
        let shown = world.tidings(&[verb, &["--reveal"]].concat()).await;
        shown.ends(0).tells(revealed);
    }

    // The command line replaces names, and not what services say.
    let other = [&order[..], &["--sensitive", "street"]].concat();
    let shown = world.tidings(&other).await;
    shown
        .ends(0)
        .tells(r#""card":"tok_ok"#)
        .tells(r#""nick":"***""#);

    // A letter lies in the broker; who marked its fields is in the databases.
    let queue = ["dead-letters", "list", consumer, "--json"];
    let letters = world.tidings_and_broker(&queue).await.ends(0).json();
    let id = letters["letters"][0]["id"].as_str().unwrap().to_owned();
    let show = ["dead-letters", "show", consumer, &id];
    let shown = world.tidings_and_broker(&show).await;
    shown.ends(0).tells(r#""statement":"***""#);

    // A record that cannot be read hides no other.
    let record = RecordChange {
        id: RecordId::new("tidings.handler", "a.b"),
        expected: Expected::Anything,
        value: Some(RecordValue {
            label: "a".into(),
            due: None,
            body: json!({"message": 7}).to_string().into(),
        }),
    };
    let commit = Commit {
        records: vec![record],
        ..Commit::default()
    };
    world.payment.commit(commit).await.unwrap();
    let shown = world.tidings(&order).await;
    shown.ends(0).tells(r#""nick":"***""#);
}

/// The one row of the outbox of checkout, from which no relay sends it.
async fn set_aside(world: &World) -> String {
    let store = world.checkout.outbox();
    let lanes: Vec<Lane> = (0..Lane::COUNT).map(Lane).collect();
    let lease = std::time::Duration::from_secs(60);
    store.lease("nobody", lease).await.unwrap();
    let rows = store.next(&lanes, &[], &[], 10).await.unwrap();
    let position = rows[0].position;
    store
        .set_aside("nobody", &[position], "a test")
        .await
        .unwrap();
    store.release("nobody", None).await.unwrap();
    position.to_string()
}

/// The id of the message that waits at payment.
async fn waiting(world: &World) -> String {
    let query = InboxQuery {
        state: Some(InboxState::Deferred),
        limit: 10,
        ..InboxQuery::default()
    };
    let rows = world.payment.deferred().list(&query).await.unwrap();
    rows[0].claim.message.to_string()
}
