//! What the cases are made of.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tidings_core::{
    Ask, Attempt, Claim, Commit, Committed, Destination, Due, Envelope, Fate, InboxEntry,
    InboxQuery, InboxRow, InboxState, Lane, Lease, MessageId, OrderKey, OutboxRow, Outgoing, Over,
    Refusal, Seen, Store, Transaction, Unrouted, Waiting,
};
use tokio::time::{Instant, sleep};

use super::Subject;

/// How long to wait for something that happens soon.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// A lease that does not end within a case.
pub(super) const LONG: Duration = Duration::from_secs(3600);

/// A lease that ends within a case.
pub(super) const SHORT: Duration = Duration::from_millis(400);

/// How far the clocks of the store and of the suite may be apart while both measure one wait.
pub(super) const CLOCK: Duration = Duration::from_millis(50);

pub(super) const CONSUMER: &str = "mail.noted.v1";

pub(super) fn claim(message: &str) -> Claim {
    claim_of(CONSUMER, message)
}

pub(super) fn claim_of(consumer: &str, message: &str) -> Claim {
    Claim {
        consumer: consumer.into(),
        message: MessageId::new(message),
    }
}

pub(super) fn key(key: &str) -> OrderKey {
    OrderKey {
        group: "mail".into(),
        key: key.into(),
    }
}

pub(super) fn attempt(reason: &str) -> Attempt {
    Attempt {
        at: Timestamp::from_millisecond(1_700_000_000_123).expect("a time"),
        reason: reason.into(),
        by: Some("instance 1".into()),
    }
}

pub(super) fn waiting(due_in: Duration) -> Waiting {
    Waiting {
        envelope: Arc::new(Envelope::new("noted.v1", "body")),
        due_in,
        failures: 1,
        history: vec![attempt("once")],
    }
}

pub(super) fn deferred() -> Fate {
    Fate::Deferred(waiting(Duration::ZERO))
}

pub(super) fn parked() -> Fate {
    Fate::Parked(waiting(Duration::ZERO))
}

pub(super) fn dead(blocks: bool) -> Fate {
    Fate::Dead {
        failures: 3,
        history: vec![attempt("first"), attempt("last")],
        blocks,
    }
}

/// A delivery of `message` to [`CONSUMER`] that ends so.
pub(super) fn entry(message: &str, fate: Fate) -> InboxEntry {
    InboxEntry {
        fate,
        ..InboxEntry::handled(claim(message))
    }
}

/// [`entry`], in the order of `of`.
pub(super) fn ordered(message: &str, of: &str, fate: Fate) -> InboxEntry {
    InboxEntry {
        order: Some(key(of)),
        ..entry(message, fate)
    }
}

/// The end of an attempt of a message that was taken.
pub(super) fn settled(due: &Due, fate: Fate) -> InboxEntry {
    InboxEntry {
        claim: due.claim.clone(),
        over: Over::Lease(due.lease.clone()),
        order: due.order.clone(),
        fate,
    }
}

/// The same for a redrive.
pub(super) fn redriven(redrive: u32, entry: InboxEntry) -> InboxEntry {
    InboxEntry {
        over: Over::Dead { redrive },
        ..entry
    }
}

pub(super) fn message(body: &str, key: &str) -> Outgoing {
    let mut envelope = Envelope::new("noted.v1", body.to_owned());
    envelope.key = Some(key.into());
    Outgoing {
        destination: Destination::topic("notes"),
        unrouted: Unrouted::Hold,
        envelope,
    }
}

/// A message that says all that one can say.
pub(super) fn full_message() -> Outgoing {
    let mut full = message("", "key \"with\" 'quotes'");
    full.destination = Destination::queue("inventory.reserve-stock.v1");
    full.unrouted = Unrouted::Drop;
    full.envelope.id = Some(MessageId::new("id \"with\" 'quotes' and \u{1F600}"));
    full.envelope.source = "orders".into();
    full.envelope.time =
        Some(Timestamp::from_nanosecond(1_700_000_000_123_456_789).expect("a time"));
    full.envelope.correlation_id = Some("correlation".into());
    full.envelope.causation_id = Some("causation".into());
    full.envelope.traceparent =
        Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    full.envelope.content_type = "application/octet-stream".into();
    full.envelope.headers = vec![("x".into(), "1".into()), ("x".into(), "\u{0}\n".into())];
    full.envelope.body = (0..=255).collect::<Vec<u8>>().repeat(4096).into();
    full
}

/// A commit of inbox entries alone.
pub(super) fn inbox(entries: impl Into<Vec<InboxEntry>>) -> Commit {
    Commit {
        inbox: entries.into(),
        ..Commit::default()
    }
}

/// A commit of messages alone, all with one key.
pub(super) fn outbox(bodies: &[&str]) -> Commit {
    Commit {
        outbox: bodies.iter().map(|body| message(body, "key")).collect(),
        ..Commit::default()
    }
}

pub(super) fn lanes() -> Vec<Lane> {
    (0..Lane::COUNT).map(Lane).collect()
}

pub(super) fn body(row: &OutboxRow) -> String {
    let message = row.message.as_ref().expect("a message that can be read");
    String::from_utf8_lossy(&message.envelope.body).into_owned()
}

pub(super) fn bodies(rows: &[OutboxRow]) -> Vec<String> {
    rows.iter().map(body).collect()
}

pub(super) fn positions(rows: &[OutboxRow]) -> Vec<i64> {
    rows.iter().map(|row| row.position).collect()
}

pub(super) async fn begin(store: &Arc<dyn Store>) -> Box<dyn Transaction> {
    store.begin().await.expect("a transaction begins")
}

pub(super) async fn write(
    subject: &Arc<impl Subject>,
    transaction: &mut Box<dyn Transaction>,
    note: &str,
) {
    let written = subject.write(transaction.as_mut(), note).await;
    written.expect("a transaction writes");
}

/// Commits in one step.
#[track_caller]
pub(super) fn done(
    store: &Arc<dyn Store>,
    commit: Commit,
) -> impl Future<Output = ()> + Send + use<> {
    answered(store, commit, Committed::Done)
}

/// Commits one entry in one step, which is refused.
#[track_caller]
pub(super) fn refused(
    store: &Arc<dyn Store>,
    entry: InboxEntry,
    why: Refusal,
) -> impl Future<Output = ()> + Send + use<> {
    answered(store, inbox([entry]), Committed::Refused { entry: 0, why })
}

#[track_caller]
fn answered(
    store: &Arc<dyn Store>,
    commit: Commit,
    expected: Committed,
) -> impl Future<Output = ()> + Send + use<> {
    let store = Arc::clone(store);
    let from = std::panic::Location::caller();
    async move {
        let committed = store.commit(commit).await;
        let committed = committed.unwrap_or_else(|error| panic!("{from}: it fails: {error}"));
        assert_eq!(committed, expected, "at {from}");
    }
}

pub(super) async fn seen(store: &Arc<dyn Store>, claim: &Claim, order: Option<OrderKey>) -> Seen {
    let asked = [Ask {
        claim: claim.clone(),
        order,
    }];
    let seen = store.look(&asked).await.expect("the inbox can be read");
    assert_eq!(seen.len(), 1, "one answer for each question");
    seen[0]
}

/// The state of a message of [`CONSUMER`].
pub(super) async fn state(store: &Arc<dyn Store>, message: &str) -> Option<InboxState> {
    seen(store, &claim(message), None).await.state
}

/// Takes at most `limit` due messages of [`CONSUMER`].
pub(super) async fn take(store: &Arc<dyn Store>, lease: Duration, limit: usize) -> Vec<Due> {
    let consumers = [CONSUMER.into()];
    let due = store.deferred();
    let due = due.take_due(&consumers, "worker", lease, limit).await;
    due.expect("due messages can be taken")
}

/// Takes the message that is due, which must be `expected`, and must be the only one.
pub(super) async fn take_one(store: &Arc<dyn Store>, expected: &str) -> Due {
    let mut due = take(store, LONG, 100).await;
    assert_eq!(ids(&due), [expected], "what is due");
    due.remove(0)
}

/// Takes the message that is due, once one is.
pub(super) async fn take_soon(store: &Arc<dyn Store>, lease: Duration) -> Due {
    until(async || take(store, lease, 1).await.pop()).await
}

pub(super) fn ids(due: &[Due]) -> Vec<&str> {
    due.iter().map(|due| due.claim.message.as_str()).collect()
}

pub(super) fn leases(due: &[Due]) -> Vec<Lease> {
    due.iter().map(|due| due.lease.clone()).collect()
}

/// All rows that are not handled.
pub(super) async fn unhandled(store: &Arc<dyn Store>) -> Vec<InboxRow> {
    let query = InboxQuery {
        limit: 1000,
        ..InboxQuery::default()
    };
    let rows = store.deferred().list(&query).await;
    rows.expect("the inbox can be listed")
}

/// All ready rows of the outbox.
pub(super) async fn ready(store: &Arc<dyn Store>) -> Vec<OutboxRow> {
    let rows = store.outbox().next(&lanes(), &[], &[], 10_000).await;
    rows.expect("the outbox can be read")
}

/// What `look` finds, once it finds something.
pub(super) async fn until<T>(look: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "it did not happen within {SOON:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

/// Something that may not happen before `wait` has passed since `since` has just happened.
#[track_caller]
pub(super) fn not_before(since: Instant, wait: Duration) {
    let passed = since.elapsed();
    assert!(passed + CLOCK >= wait, "after {passed:?}, before {wait:?}");
}
