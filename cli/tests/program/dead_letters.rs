//! Dead letters, as an operator works them off: a stranger's broken order, and a service that fails.

use std::{
    io::Write as _,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use tidings::{Destination, Envelope, Error, Outgoing, Transport, Unrouted, prelude::*};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Handle, Options};
use tidings_sqlite::SqliteStore;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use crate::run::{Ran, command, tidings};

const QUEUE: &str = "payment.order-placed.v1";

#[derive(Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderPlaced {
    order_id: String,
    amount: u32,
    email: String,
}

type Charged = Arc<Mutex<Vec<(String, u32)>>>;

async fn settle(
    order: OrderPlaced,
    State(charged): State<Charged>,
    State(is_away): State<Arc<AtomicBool>>,
) -> Result<()> {
    if is_away.load(Ordering::SeqCst) {
        let order = order.order_id;
        return Err(Error::msg(format!("the bank is away: order {order}")));
    }
    charged.lock().unwrap().push((order.order_id, order.amount));
    Ok(())
}

/// The service payment, its database, and a broker.
struct Payment {
    folder: TempDir,
    broker: Handle,
    amqp: Arc<Amqp>,
    charged: Charged,
    is_away: Arc<AtomicBool>,
    stop: oneshot::Sender<()>,
    service: JoinHandle<()>,
}

impl Payment {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let broker = Broker::start(Options::ephemeral()).await.unwrap();
        let amqp = Arc::new(Amqp::connect(&broker.amqp_url()).await.unwrap());
        let store = SqliteStore::open(folder.path().join("payment.db"))
            .await
            .unwrap();
        let (charged, is_away) = (Charged::default(), Arc::new(AtomicBool::new(false)));
        let router = Router::new("payment")
            .on(settle)
            .transactional(store)
            .retry(Retry::none())
            .with_state(Arc::clone(&charged))
            .with_state(Arc::clone(&is_away));
        let (stop, stopped) = oneshot::channel::<()>();
        let service = serve(Arc::clone(&amqp), router).with_graceful_shutdown(stopped);
        let ready = service.ready();
        let service = tokio::spawn(async move { service.await.unwrap() });
        ready.await;
        Self {
            folder,
            broker,
            amqp,
            charged,
            is_away,
            stop,
            service,
        }
    }

    async fn publish(&self, body: serde_json::Value) {
        let message = Outgoing {
            destination: Destination::Queue(QUEUE.into()),
            unrouted: Unrouted::Hold,
            envelope: Envelope::new("order-placed.v1", body.to_string()),
        };
        self.amqp.publish(vec![message]).await.remove(0).unwrap();
    }

    /// Waits until so many letters are there.
    async fn letters(&self, count: u64) {
        let access = self.amqp.dead_letter_access().unwrap();
        let dead = tidings::dead_letter_queue(QUEUE);
        let deadline = Instant::now() + Duration::from_secs(20);
        while access.count(&dead).await.unwrap() != count {
            assert!(Instant::now() < deadline, "{count} letters");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs the program on the broker, as on a cluster of which one node is down.
    async fn run(&self, args: &[&str]) -> Ran {
        let down = tidings_testing::servers::free_port().unwrap();
        let hosts = format!("@127.0.0.1:{down},");
        let url = self.broker.amqp_url().replacen('@', &hosts, 1);
        let args = [&["dead-letters"], args, &["--broker", &url]].concat();
        let args: Vec<String> = args.into_iter().map(Into::into).collect();
        let run = tokio::task::spawn_blocking(|| tidings(args));
        run.await.unwrap()
    }

    fn database(&self) -> String {
        format!("sqlite://{}", self.folder.path().display())
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.service.await.unwrap();
        self.broker.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_order_is_found_mended_and_sent_on() {
    let payment = Payment::start().await;
    let order = |id: &str, amount: serde_json::Value| json!({"order_id": id, "amount": amount, "email": "a@b.c"});
    payment.publish(order("o-1", json!("ten"))).await;
    payment.publish(order("o-2", json!(20))).await;
    payment.letters(1).await;

    let groups = payment.run(&["groups", QUEUE, "--json"]).await;
    let groups = groups.ends(0).json();
    assert_eq!(groups["count"], 1);
    let group = &groups["groups"][0];
    assert_eq!(
        (&group["consumer"], &group["count"]),
        (&json!(QUEUE), &json!(1))
    );
    let id = group["example"]["id"].as_str().unwrap().to_owned();
    payment
        .run(&["groups", QUEUE])
        .await
        .ends(0)
        .tells("FINGERPRINT");
    payment.run(&["list", QUEUE]).await.ends(0).tells(&id);

    let shown = payment.run(&["show", QUEUE, &id]).await;
    shown.ends(0).tells(r#""email":"***""#).tells("error  ");
    let shown = payment
        .run(&["show", QUEUE, &id, "--reveal", "--json"])
        .await;
    let shown = shown.ends(0).json();
    assert_eq!(shown["message"]["body"]["email"], "a@b.c");
    assert!(!shown["errors"].as_array().unwrap().is_empty());

    let refused = ["edit", QUEUE, &id, "--body", "-", "--why", "a typing error"];
    let edited = payment.edit(&refused, b"{").await;
    edited.ends(1).says("(TDG-2008)");
    let mended = order("o-1", json!(10)).to_string();
    let edited = payment.edit(&refused, mended.as_bytes()).await;
    let was = ["redrive", QUEUE, "--id", &id];
    let letters = payment.run(&["list", QUEUE, "--json"]).await.json();
    let now = letters["letters"][0]["id"].as_str().unwrap().to_owned();
    assert_ne!(now, id, "the message has no id of its own");
    edited
        .ends(0)
        .tells(&format!("from now on the letter is {now}"));
    let none = payment.run(&was).await;
    none.ends(1).says("none of the letters is among those");
    let id = now;
    let shown = payment.run(&["show", QUEUE, &id, "--json"]).await.json();
    assert_eq!(
        (&shown["edits"][0]["by"], &shown["edits"][0]["why"]),
        (&json!("alice"), &json!("a typing error"))
    );

    shown_is_edited(&payment, &id).await;

    let dry = payment
        .run(&["redrive", QUEUE, "--all", "--dry-run", "--json"])
        .await;
    assert_eq!(dry.ends(0).json()["letters"][0]["outcome"], "would-send");
    payment.letters(1).await;
    let redriven = payment
        .run(&["redrive", QUEUE, "--id", &id, "--settle", "300ms", "--json"])
        .await;
    let redriven = redriven.ends(0).json();
    assert_eq!(
        (&redriven["sent"], &redriven["letters"][0]["outcome"]),
        (&json!(1), &json!("sent"))
    );
    payment.letters(0).await;
    let mut charged = payment.charged.lock().unwrap().clone();
    charged.sort();
    assert_eq!(charged, [("o-1".to_owned(), 10), ("o-2".to_owned(), 20)]);
    let record = payment.run(&["list", "--recorded"]).await;
    record.ends(0).tells(QUEUE);
    payment
        .run(&["list", QUEUE])
        .await
        .ends(0)
        .tells("no dead letters");
    payment.stop().await;
}

/// A letter that was edited is not shown as redriven.
async fn shown_is_edited(payment: &Payment, id: &str) {
    let shown = payment.run(&["show", QUEUE, id]).await;
    shown.ends(0).tells("redriven 0 times, edited 1 time\n");
    let list = payment.run(&["list", QUEUE, "--json"]).await.json();
    let letter = &list["letters"][0];
    assert_eq!(
        (&letter["redrives"], &letter["editCount"]),
        (&json!(0), &json!(1))
    );
    let groups = payment.run(&["groups", QUEUE, "--json"]).await.json();
    let group = &groups["groups"][0];
    assert_eq!(
        (&group["redriven"], &group["edited"]),
        (&json!(0), &json!(1))
    );
}

impl Payment {
    /// Runs the program with a body at its stdin.
    async fn edit(&self, args: &[&str], body: &[u8]) -> Ran {
        let url = self.broker.amqp_url();
        let args = [&["dead-letters"], args, &["--broker", &url]].concat();
        let mut command = command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let body = body.to_vec();
        let run = tokio::task::spawn_blocking(move || {
            let mut program = command.spawn().unwrap();
            program.stdin.take().unwrap().write_all(&body).unwrap();
            let output = program.wait_with_output().unwrap();
            Ran {
                code: output.status.code(),
                out: String::from_utf8(output.stdout).unwrap(),
                err: String::from_utf8(output.stderr).unwrap(),
            }
        });
        run.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_again_ends_with_a_problem_and_is_discarded_into_the_record() {
    let payment = Payment::start().await;
    payment.is_away.store(true, Ordering::SeqCst);
    for number in 0..15 {
        let body = json!({"order_id": format!("o-{number}"), "amount": number, "email": "a@b.c"});
        payment.publish(body).await;
    }
    payment.letters(15).await;
    // The database knows whose letters there are.
    let database = payment.database();
    let groups = payment
        .run(&["groups", "--database", &database, "--json"])
        .await;
    let groups = groups.ends(0).json();
    assert_eq!(
        (&groups["count"], &groups["groups"][0]["pattern"]),
        (&json!(15), &json!("the bank is away: order #"))
    );

    let redriven = payment
        .run(&["redrive", QUEUE, "--all", "--unlimited", "--settle", "60s"])
        .await;
    redriven
        .ends(1)
        .says("(TDG-2010)")
        .tells("15 came back")
        .tells("came-back");
    payment.letters(15).await;
    let discard = [
        "discard",
        QUEUE,
        "--id",
        "order-placed.v1/o-3",
        "--why",
        "a test",
        "--database",
        &database,
    ];
    payment
        .run(&discard)
        .await
        .ends(0)
        .tells("discarded 1 letter of");
    payment
        .run(&discard)
        .await
        .ends(1)
        .tells("discarded no letter of");
    payment.letters(14).await;
    let shown = payment
        .run(&["show", "tidings.discarded", "order-placed.v1/o-3"])
        .await;
    shown.ends(0).tells("by alice: a test").tells(QUEUE);

    payment
        .run(&["discard", QUEUE, "--why", "all of it"])
        .await
        .ends(2)
        .says("--all");
    payment.run(&["list"]).await.ends(2).says("--database");
    payment
        .run(&["list", "nobody"])
        .await
        .ends(1)
        .says("(TDG-2002)");
    payment
        .run(&["show", QUEUE, "nobody"])
        .await
        .ends(1)
        .says("(TDG-2007)");
    payment.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_nobody_would_take_is_not_sent() {
    let payment = Payment::start().await;
    let stranger = Outgoing {
        destination: Destination::Queue(tidings::dead_letter_queue(QUEUE).into()),
        unrouted: Unrouted::Hold,
        envelope: Envelope::new("order-shipped.v1", json!({"order_id": "o-1"}).to_string()),
    };
    payment
        .amqp
        .publish(vec![stranger])
        .await
        .remove(0)
        .unwrap();
    payment.letters(1).await;
    let database = payment.database();
    let all = [
        "redrive",
        QUEUE,
        "--all",
        "--settle",
        "60s",
        "--database",
        &database,
    ];
    let kept = payment.run(&all).await;
    kept.ends(1)
        .tells("0 of 1 letter of")
        .tells("1 cannot be sent")
        .tells("takes `order-shipped.v1`")
        .tells("(TDG-2011)");
    let sent = payment.run(&[&all[..], &["--unchecked"]].concat()).await;
    sent.ends(1).tells("1 came back").tells("(TDG-2011)");
    payment.letters(1).await;
    payment.stop().await;
}
