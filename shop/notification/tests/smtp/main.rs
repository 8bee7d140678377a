//! What notification makes of the answers of a mail server, in real dialogues on loopback.

mod server;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shop_contracts::{Money, OrderConfirmed};
use shop_kit::Database;
use shop_notification::Mailer;
use tidings::{InboxQuery, InboxState, Outgoing, Queue, Store, Transport};
use tidings_memory::{MemoryTransport, Stored};

use server::{
    Answer::{self, HangsUp, Says},
    At, Server,
};

const QUEUE: &str = "notification.order-confirmed.v1";
const SENT: &str = "test.sent";

/// How long anything may take that is waited for.
const SOON: Duration = Duration::from_secs(20);

struct World {
    server: Server,
    broker: MemoryTransport,
    store: Arc<dyn Store>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let server = Server::start().await;
        let url = server.url();
        Self::mailing_to(&url, server).await
    }

    async fn mailing_to(url: &str, server: Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        let mailer = Mailer::smtp(url).unwrap();
        let service = shop_notification::service(&database, mailer).await.unwrap();
        let store = service.db.unwrap().store();
        let broker = MemoryTransport::new();
        let sent = Queue::new(SENT).topic("email-sent.v1");
        let topology = shop_notification::topology().queue(sent);
        broker.declare(&topology).await.unwrap();
        let serve = tidings::serve(broker.clone(), service.messages.unwrap());
        tokio::spawn(async move { serve.await.unwrap() });
        Self {
            server,
            broker,
            store,
            _folder: folder,
        }
    }

    async fn confirm(&self, order_id: &str, email: &str) {
        let confirmed = OrderConfirmed {
            order_id: order_id.to_owned(),
            amount: Money::from_cents(990),
            customer_id: None,
            email: Some(email.to_owned()),
        };
        let message = Outgoing::new(&confirmed).unwrap();
        self.broker.publish(vec![message]).await.remove(0).unwrap();
    }

    fn dead_letters(&self) -> Vec<Stored> {
        self.broker.dead_letters(QUEUE)
    }

    /// How many mails notification has said to have sent.
    fn sent(&self) -> usize {
        self.broker.messages(SENT).len()
    }
}

async fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < SOON, "waited {SOON:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_is_refused_for_good_is_a_dead_letter_at_once() {
    let world = World::new().await;
    let refusals = [
        (At::Mail, "553 not from you"),
        (At::Rcpt, "550 no such user"),
        (At::Data, "554 no valid recipients"),
        (At::End, "552 too large"),
    ];
    for (number, (at, answer)) in refusals.into_iter().enumerate() {
        world.server.next(at, Says(answer));
        world
            .confirm(&format!("o-{number}"), "ada@example.org")
            .await;
        until(answer, || world.dead_letters().len() == number + 1).await;
        let dead = world.dead_letters().pop().unwrap();
        let reason = &dead.history.last().unwrap().reason;
        assert!(
            reason.contains(&answer[..3]) && reason.contains(&answer[4..]),
            "{reason}"
        );
        assert_eq!(
            world.server.dialogues(),
            number + 1,
            "{answer}: not tried again"
        );
    }
    world.confirm("o-right", "ada@example.org").await;
    until("the next mail", || world.sent() == 1).await;
    assert_eq!(world.server.taken(), ["RCPT TO:<ada@example.org>"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_is_tried_again_until_the_mail_is_taken_once() {
    let world = World::new().await;
    let troubles: [(At, Answer); 7] = [
        (At::Greeting, Says("421 too many connections")),
        (At::Greeting, HangsUp),
        (At::Mail, Says("452 no space left")),
        (At::Rcpt, Says("450 greylisted")),
        (At::Data, HangsUp),
        (At::End, Says("451 try again")),
        (At::End, HangsUp),
    ];
    for (number, (at, answer)) in troubles.into_iter().enumerate() {
        world.server.next(at, answer);
        world
            .confirm(&format!("o-{number}"), "ada@example.org")
            .await;
        until(&format!("{at:?} {answer:?}"), || world.sent() == number + 1).await;
        assert_eq!(world.server.taken().len(), number + 1);
        assert_eq!(world.server.dialogues(), 2 * (number + 1));
    }
    assert!(world.dead_letters().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_waited_for() {
    let server = Server::start().await;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let world = World::mailing_to(&format!("smtp://{nobody}"), server).await;
    world.confirm("o-1", "ada@example.org").await;
    let start = Instant::now();
    let query = InboxQuery {
        limit: 10,
        ..InboxQuery::default()
    };
    loop {
        let waiting = world.store.deferred().list(&query).await.unwrap();
        if waiting.iter().any(|row| row.failures > 0) {
            assert_eq!(waiting[0].state, InboxState::Deferred);
            break;
        }
        assert!(
            start.elapsed() < SOON,
            "waited {SOON:?} in vain for a failed attempt"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(world.dead_letters().is_empty());
}

/// The server says nothing of `SMTPUTF8`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_the_server_has_no_letters_for_is_a_dead_letter() {
    let world = World::new().await;
    world.confirm("o-1", "ü@example.org").await;
    until("a dead letter", || !world.dead_letters().is_empty()).await;
    assert_eq!(world.server.dialogues(), 1);
    assert!(world.server.taken().is_empty());
}
