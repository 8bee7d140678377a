//! The conformance suite of the port [`Store`]: what its doc comments promise, as cases that run
//! against every implementation.
//!
//! ```no_run
//! # use tidings_testing::store::{Subject, conformance};
//! # async fn example<S: Subject>(fresh: impl AsyncFn() -> S) {
//! conformance(fresh).await;
//! # }
//! ```

use std::{collections::HashMap, sync::Arc, time::Duration};

use tidings_core::{
    BoxFuture, Claim, Commit, Committed, Destination, Envelope, Lane, MessageId, OutboxRow,
    Outgoing, Store, StoreError, Transaction, Unrouted,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// The longest that one case may take.
const CASE_MAX: Duration = Duration::from_secs(60);

/// How long to wait for something that happens soon.
const SOON: Duration = Duration::from_secs(10);

/// An empty store, and what the suite cannot do through the port: write data of an application.
pub trait Subject: Send + Sync + 'static {
    /// The store.
    fn store(&self) -> Arc<dyn Store>;

    /// The same database as another process would have it. `None` if there cannot be one.
    fn in_another_process(&self) -> BoxFuture<'_, Option<Arc<dyn Store>>>;

    /// Writes `note` through a transaction of this store.
    fn write<'a>(
        &'a self,
        transaction: &'a mut dyn Transaction,
        note: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// The notes that are committed, sorted.
    fn notes(&self) -> BoxFuture<'_, Vec<String>>;
}

/// Runs every case, each on a store that `fresh` makes. Panics at the first that fails.
pub async fn conformance<S: Subject>(fresh: impl AsyncFn() -> S) {
    macro_rules! run {
        ($($case:ident)*) => {$(
            eprintln!("store case: {}", stringify!($case).replace('_', " "));
            let subject = Arc::new(fresh().await);
            if timeout(CASE_MAX, $case(subject)).await.is_err() {
                panic!("{} took longer than {CASE_MAX:?}", stringify!($case));
            }
        )*};
    }
    run! {
        a_commit_is_claim_writes_and_messages_together
        a_claim_is_taken_once_and_a_duplicate_writes_nothing
        of_many_who_claim_at_once_one_wins
        a_rollback_leaves_nothing
        a_dropped_transaction_leaves_nothing
        a_message_comes_out_as_it_went_in
        unsent_gives_the_oldest_of_its_lanes_and_no_more_than_asked
        a_late_commit_is_not_skipped
        concurrent_writers_and_a_relay_lose_nothing_and_keep_order_per_key
        what_commits_later_with_a_key_has_a_later_place
        lanes_belong_to_one_relay_until_released_or_expired
        deferred_rows_are_hidden_until_their_time
        sent_removes_those_rows_and_no_other
        committed_wakes_after_a_commit_with_messages
        stats_count_what_is_unsent
        old_claims_are_forgotten_and_young_ones_kept
        processes_share_claims_messages_and_lanes
    }
}

async fn a_commit_is_claim_writes_and_messages_together(subject: Arc<impl Subject>) {
    let store = subject.store();
    let claim = claim("c", "1");
    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "note").await;
    assert!(
        !is_claimed(&store, &claim).await,
        "nothing is committed yet"
    );
    assert!(subject.notes().await.is_empty(), "nothing is committed yet");
    assert!(unsent(&store).await.is_empty(), "nothing is committed yet");

    let commit = commit(Some(&claim), &["a", "b"]);
    assert_eq!(
        transaction.commit(commit).await.expect("it commits"),
        Committed::Done
    );
    assert!(is_claimed(&store, &claim).await);
    assert_eq!(subject.notes().await, ["note"]);
    assert_eq!(bodies(&unsent(&store).await), ["a", "b"]);
}

async fn a_claim_is_taken_once_and_a_duplicate_writes_nothing(subject: Arc<impl Subject>) {
    let store = subject.store();
    let taken = claim("c", "1");
    one_step(&store, commit(Some(&taken), &["first"])).await;

    let again = store.commit(commit(Some(&taken), &["second"])).await;
    assert_eq!(again.expect("an answer"), Committed::Duplicate);
    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "note").await;
    let again = transaction.commit(commit(Some(&taken), &["third"])).await;
    assert_eq!(again.expect("an answer"), Committed::Duplicate);
    assert!(
        subject.notes().await.is_empty(),
        "a duplicate writes nothing"
    );
    assert_eq!(bodies(&unsent(&store).await), ["first"]);

    for free in [claim("another", "1"), claim("c", "2"), claim("c1", "")] {
        assert!(
            !is_claimed(&store, &free).await,
            "{free:?} is another claim"
        );
        one_step(&store, commit(Some(&free), &[])).await;
    }
    for _ in 0..2 {
        one_step(&store, commit(None, &[])).await;
    }
}

async fn of_many_who_claim_at_once_one_wins(subject: Arc<impl Subject>) {
    let store = subject.store();
    let mut attempts = JoinSet::new();
    for number in 0..32 {
        let (subject, store) = (Arc::clone(&subject), Arc::clone(&store));
        attempts.spawn(async move {
            let commit = commit(Some(&claim("c", "contested")), &["message"]);
            if number % 4 == 0 {
                return store.commit(commit).await.expect("an answer") == Committed::Done;
            }
            let mut transaction = begin(&store).await;
            write(&subject, &mut transaction, &number.to_string()).await;
            transaction.commit(commit).await.expect("an answer") == Committed::Done
        });
    }
    let winners = attempts
        .join_all()
        .await
        .into_iter()
        .filter(|won| *won)
        .count();
    assert_eq!(winners, 1, "one claim, one winner");
    assert_eq!(unsent(&store).await.len(), 1, "the winner's message");
    assert!(subject.notes().await.len() <= 1, "no loser's write");
}

async fn a_rollback_leaves_nothing(subject: Arc<impl Subject>) {
    let store = subject.store();
    begin(&store).await.rollback().await;
    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "undone").await;
    transaction.rollback().await;

    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "done").await;
    transaction
        .commit(Commit::default())
        .await
        .expect("it commits");
    assert_eq!(subject.notes().await, ["done"]);
}

async fn a_dropped_transaction_leaves_nothing(subject: Arc<impl Subject>) {
    let store = subject.store();
    drop(begin(&store).await);
    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "dropped").await;
    drop(transaction);

    // A handler that is cancelled in the middle drops it too.
    let (subject_there, store_there) = (Arc::clone(&subject), Arc::clone(&store));
    let (written, is_written) = tokio::sync::oneshot::channel();
    let handler = tokio::spawn(async move {
        let mut transaction = begin(&store_there).await;
        write(&subject_there, &mut transaction, "cancelled").await;
        let _ = written.send(());
        std::future::pending::<()>().await;
    });
    is_written.await.expect("the handler runs");
    handler.abort();

    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "done").await;
    transaction
        .commit(Commit::default())
        .await
        .expect("it commits");
    assert_eq!(subject.notes().await, ["done"]);
}

async fn a_message_comes_out_as_it_went_in(subject: Arc<impl Subject>) {
    let store = subject.store();
    let bare = message("", "key");
    let mut full = message("", "key");
    full.destination = Destination::queue("inventory.reserve-stock.v1");
    full.unrouted = Unrouted::Drop;
    full.envelope.id = Some(MessageId::new("id \"with\" 'quotes' and \u{1F600}"));
    full.envelope.source = "orders".into();
    full.envelope.time =
        Some(jiff::Timestamp::from_nanosecond(1_700_000_000_123_456_789).expect("a time"));
    full.envelope.correlation_id = Some("correlation".into());
    full.envelope.causation_id = Some("causation".into());
    full.envelope.traceparent =
        Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    full.envelope.content_type = "application/octet-stream".into();
    full.envelope.headers = vec![("x".into(), "1".into()), ("x".into(), "\u{0}\n".into())];
    full.envelope.body = (0..=255).collect::<Vec<u8>>().repeat(4096).into();
    let sent = vec![bare, full];
    let commit = Commit {
        claim: None,
        outbox: sent.clone(),
    };
    one_step(&store, commit).await;
    let rows = unsent(&store).await;
    let got: Vec<Outgoing> = rows.into_iter().map(|row| row.message).collect();
    assert_eq!(got, sent);
}

async fn unsent_gives_the_oldest_of_its_lanes_and_no_more_than_asked(subject: Arc<impl Subject>) {
    let store = subject.store();
    for number in 0..40 {
        let outbox = vec![message(&number.to_string(), &format!("key-{number}"))];
        one_step(
            &store,
            Commit {
                claim: None,
                outbox,
            },
        )
        .await;
    }
    let all = unsent(&store).await;
    assert_eq!(all.len(), 40);
    assert!(
        all.is_sorted_by_key(|row| row.position),
        "in order of position"
    );
    let few = store.unsent(&lanes(), 7).await.expect("rows");
    assert_eq!(bodies(&few), bodies(&all[..7]), "the oldest");
    assert!(store.unsent(&lanes(), 0).await.expect("rows").is_empty());
    assert!(store.unsent(&[], 10).await.expect("rows").is_empty());

    let half = &lanes()[..8];
    let in_half: Vec<&OutboxRow> = all
        .iter()
        .filter(|row| half.contains(&Lane::of_message(&row.message)))
        .collect();
    let got = store.unsent(half, 10).await.expect("rows");
    let expected = in_half.iter().take(10).map(|row| row.position);
    assert!(
        got.iter().map(|row| row.position).eq(expected),
        "only these lanes' rows"
    );
}

async fn a_late_commit_is_not_skipped(subject: Arc<impl Subject>) {
    let store = subject.store();
    let mut early = begin(&store).await;
    write(&subject, &mut early, "began first").await;
    let overtakes = tokio::spawn({
        let store = Arc::clone(&store);
        async move { one_step(&store, commit(None, &["committed first"])).await }
    });
    // Where one writes at a time it cannot overtake; then the case is trivial.
    sleep(Duration::from_millis(200)).await;
    let mut sent = Vec::new();
    for row in unsent(&store).await {
        store.sent(&[row.position]).await.expect("it is removed");
        sent.push(body(&row));
    }
    early
        .commit(commit(None, &["committed last"]))
        .await
        .expect("it commits");
    overtakes.await.expect("it commits");
    sent.extend(bodies(&unsent(&store).await));
    sent.sort();
    assert_eq!(sent, ["committed first", "committed last"]);
}

async fn concurrent_writers_and_a_relay_lose_nothing_and_keep_order_per_key(
    subject: Arc<impl Subject>,
) {
    const WRITERS: usize = 8;
    const COMMITS: usize = 25;
    let store = subject.store();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (subject, store) = (Arc::clone(&subject), Arc::clone(&store));
        writers.spawn(async move {
            for number in 0..COMMITS {
                let key = format!("key-{writer}");
                let outbox = (0..2)
                    .map(|half| message(&(number * 2 + half).to_string(), &key))
                    .collect();
                let claim = Some(claim("c", &format!("{writer}-{number}")));
                let commit = Commit { claim, outbox };
                if number % 2 == 0 {
                    one_step(&store, commit).await;
                } else {
                    let mut transaction = begin(&store).await;
                    write(&subject, &mut transaction, &format!("{writer}-{number}")).await;
                    transaction.commit(commit).await.expect("it commits");
                }
            }
        });
    }
    let mut seen: HashMap<String, Vec<usize>> = HashMap::new();
    let mut count = 0;
    while count < WRITERS * COMMITS * 2 {
        let rows = store.unsent(&lanes(), 50).await.expect("rows");
        if rows.is_empty() {
            let _ = timeout(Duration::from_millis(50), store.committed()).await;
        }
        let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
        store.sent(&positions).await.expect("they are removed");
        for row in &rows {
            let key = row.message.envelope.key.as_deref().unwrap_or_default();
            let number = body(row).parse().expect("a number");
            seen.entry(key.to_owned()).or_default().push(number);
            count += 1;
        }
    }
    writers.join_all().await;
    assert!(unsent(&store).await.is_empty(), "each message came once");
    for (key, numbers) in seen {
        assert!(
            numbers.into_iter().eq(0..COMMITS * 2),
            "in order of `{key}`"
        );
    }
}

async fn what_commits_later_with_a_key_has_a_later_place(subject: Arc<impl Subject>) {
    const WRITERS: usize = 8;
    const COMMITS: usize = 15;
    const MESSAGES: usize = 20;
    let store = subject.store();
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (subject, store) = (Arc::clone(&subject), Arc::clone(&store));
        writers.spawn(async move {
            for _ in 0..COMMITS {
                let mut transaction = begin(&store).await;
                write(&subject, &mut transaction, "note").await;
                let commit = commit(None, &["message"; MESSAGES]);
                transaction.commit(commit).await.expect("it commits");
            }
        });
    }
    let mut last = i64::MIN;
    let mut count = 0;
    while count < WRITERS * COMMITS * MESSAGES {
        let rows = unsent(&store).await;
        let new = rows.iter().filter(|row| row.position > last).count();
        assert_eq!(
            count + new,
            rows.len(),
            "a row turned up before one that was there"
        );
        last = rows.last().map_or(last, |row| row.position);
        count = rows.len();
    }
    writers.join_all().await;
}

async fn lanes_belong_to_one_relay_until_released_or_expired(subject: Arc<impl Subject>) {
    let store = subject.store();
    let long = Duration::from_secs(60);
    let short = Duration::from_millis(500);
    let lease = async |relay, lease| {
        let mut leased = store.lease_lanes(relay, lease).await.expect("an answer");
        leased.sort();
        leased
    };
    assert_eq!(lease("a", long).await, lanes(), "all are free");
    assert_eq!(lease("a", long).await, lanes(), "a relay renews its own");
    assert!(lease("b", long).await.is_empty(), "they are another's");
    store.release_lanes("b").await.expect("b has none");
    assert!(
        lease("b", long).await.is_empty(),
        "b released nothing of a's"
    );
    store.release_lanes("a").await.expect("they are released");
    assert_eq!(lease("b", short).await, lanes(), "they are free again");
    assert!(lease("a", long).await.is_empty(), "b's lease runs");
    assert_eq!(lease("b", short).await, lanes(), "b renews");
    let expired = Instant::now() + short;
    loop {
        let leased = lease("a", long).await;
        if !leased.is_empty() {
            assert_eq!(leased, lanes(), "all expired at once");
            break;
        }
        assert!(Instant::now() < expired + SOON, "b's lease never ends");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(
        Instant::now() + Duration::from_millis(50) >= expired,
        "not before its end"
    );

    store.release_lanes("a").await.expect("they are released");
    let (left, right) = tokio::join!(lease("a", long), lease("b", long));
    assert_eq!(
        left.len() + right.len(),
        lanes().len(),
        "no lane belongs to two"
    );
}

async fn deferred_rows_are_hidden_until_their_time(subject: Arc<impl Subject>) {
    let store = subject.store();
    one_step(&store, commit(None, &["a", "b", "c"])).await;
    let rows = unsent(&store).await;
    let delay = Duration::from_millis(400);
    let hidden_until = Instant::now() + delay;
    let defer = store
        .defer(&[rows[0].position, rows[1].position], delay)
        .await;
    defer.expect("they are deferred");
    store
        .defer(&[rows[1].position], Duration::from_secs(3600))
        .await
        .expect("deferred again");
    assert_eq!(bodies(&unsent(&store).await), ["c"]);
    assert_eq!(
        store.outbox_stats().await.expect("stats").unsent,
        3,
        "hidden is not gone"
    );

    let back = until(async || {
        let rows = unsent(&store).await;
        (rows.len() == 2).then_some(rows)
    });
    assert_eq!(bodies(&back.await), ["a", "c"], "in its old place");
    assert!(
        Instant::now() + Duration::from_millis(50) >= hidden_until,
        "not before its time"
    );
    store
        .defer(&[rows[1].position], Duration::ZERO)
        .await
        .expect("deferred no more");
    assert_eq!(bodies(&unsent(&store).await), ["a", "b", "c"]);
}

async fn sent_removes_those_rows_and_no_other(subject: Arc<impl Subject>) {
    let store = subject.store();
    one_step(&store, commit(None, &["a", "b", "c", "d"])).await;
    let rows = unsent(&store).await;
    store.sent(&[]).await.expect("nothing to do");
    store
        .defer(&[rows[2].position], Duration::from_secs(3600))
        .await
        .expect("deferred");
    let sent = [rows[1].position, rows[2].position, i64::MAX];
    store.sent(&sent).await.expect("they are removed");
    store.sent(&sent).await.expect("they are gone already");
    assert_eq!(bodies(&unsent(&store).await), ["a", "d"]);
    assert_eq!(store.outbox_stats().await.expect("stats").unsent, 2);

    let last = rows[3].position;
    store
        .sent(&[rows[0].position, last])
        .await
        .expect("they are removed");
    one_step(&store, commit(None, &["e"])).await;
    let rows = unsent(&store).await;
    assert_eq!(bodies(&rows), ["e"]);
    assert!(
        rows[0].position > last,
        "a place is not given twice: `sent` may come late"
    );
}

async fn committed_wakes_after_a_commit_with_messages(subject: Arc<impl Subject>) {
    let store = subject.store();
    let woken = async |what: &str| {
        let woken = timeout(SOON, store.committed()).await;
        assert!(woken.is_ok(), "no wake {what}");
    };
    one_step(&store, commit(None, &["a"])).await;
    woken("for a commit before the call").await;

    let transaction = begin(&store).await;
    let (commit_outcome, ()) = tokio::join!(
        async {
            sleep(Duration::from_millis(50)).await;
            transaction.commit(commit(None, &["b"])).await
        },
        woken("for a commit during the call"),
    );
    commit_outcome.expect("it commits");

    // It may wake without cause, but not all the time: a relay would never rest.
    let mut wakes = 0;
    let quiet = async {
        loop {
            store.committed().await;
            wakes += 1;
        }
    };
    let _ = timeout(Duration::from_millis(500), quiet).await;
    assert!(wakes < 20, "{wakes} wakes without cause");
}

async fn stats_count_what_is_unsent(subject: Arc<impl Subject>) {
    let store = subject.store();
    let stats = store.outbox_stats().await.expect("stats");
    assert_eq!((stats.unsent, stats.oldest_age), (0, Duration::ZERO));
    one_step(&store, commit(None, &["a", "b"])).await;
    sleep(Duration::from_millis(100)).await;
    let stats = store.outbox_stats().await.expect("stats");
    assert_eq!(stats.unsent, 2);
    assert!(
        stats.oldest_age >= Duration::from_millis(50),
        "{:?}",
        stats.oldest_age
    );
    assert!(stats.oldest_age < CASE_MAX, "{:?}", stats.oldest_age);
}

async fn old_claims_are_forgotten_and_young_ones_kept(subject: Arc<impl Subject>) {
    let store = subject.store();
    for number in 0..10 {
        one_step(&store, commit(Some(&claim("c", &number.to_string())), &[])).await;
    }
    let forget = async |age, limit| store.forget_claims(age, limit).await.expect("an answer");
    assert_eq!(
        forget(Duration::from_secs(60), 100).await,
        0,
        "all are young"
    );
    sleep(Duration::from_millis(50)).await;
    let young = claim("c", "young");
    one_step(&store, commit(Some(&young), &[])).await;
    assert_eq!(
        forget(Duration::from_millis(30), 7).await,
        7,
        "no more than asked"
    );
    assert!(is_claimed(&store, &young).await, "the oldest go first");
    assert_eq!(forget(Duration::from_secs(60), 100).await, 0, "it is young");
    sleep(Duration::from_millis(50)).await;
    assert_eq!(forget(Duration::from_millis(30), 100).await, 4, "the rest");
    one_step(&store, commit(Some(&claim("c", "1")), &[])).await;
}

async fn processes_share_claims_messages_and_lanes(subject: Arc<impl Subject>) {
    let here = subject.store();
    let Some(there) = subject.in_another_process().await else {
        return;
    };
    let taken = claim("c", "1");
    one_step(&here, commit(Some(&taken), &["a"])).await;
    assert!(is_claimed(&there, &taken).await);
    let again = there.commit(commit(Some(&taken), &["b"])).await;
    assert_eq!(again.expect("an answer"), Committed::Duplicate);
    assert_eq!(bodies(&unsent(&there).await), ["a"]);
    let leased = here.lease_lanes("here", CASE_MAX).await.expect("an answer");
    assert_eq!(leased.len(), lanes().len());
    let leased = there
        .lease_lanes("there", CASE_MAX)
        .await
        .expect("an answer");
    assert!(leased.is_empty(), "they are the other process's");

    // The relay here has the lanes: it must hear of what is committed there.
    let _ = timeout(Duration::from_millis(500), here.committed()).await;
    let (woken, ()) = tokio::join!(timeout(SOON, here.committed()), async {
        sleep(Duration::from_millis(50)).await;
        one_step(&there, commit(None, &["c"])).await;
    });
    woken.expect("a commit of another process wakes");
    assert_eq!(bodies(&unsent(&here).await), ["a", "c"]);
}

fn claim(consumer: &str, message: &str) -> Claim {
    Claim {
        consumer: consumer.into(),
        message: MessageId::new(message),
    }
}

fn message(body: &str, key: &str) -> Outgoing {
    let mut envelope = Envelope::new("noted.v1", body.to_owned());
    envelope.key = Some(key.into());
    Outgoing {
        destination: Destination::topic("notes"),
        unrouted: Unrouted::Park,
        envelope,
    }
}

/// A commit of `claim` and a message with one key for each of `bodies`.
fn commit(claim: Option<&Claim>, bodies: &[&str]) -> Commit {
    Commit {
        claim: claim.cloned(),
        outbox: bodies.iter().map(|body| message(body, "key")).collect(),
    }
}

fn lanes() -> Vec<Lane> {
    (0..Lane::COUNT).map(Lane).collect()
}

fn body(row: &OutboxRow) -> String {
    String::from_utf8_lossy(&row.message.envelope.body).into_owned()
}

fn bodies(rows: &[OutboxRow]) -> Vec<String> {
    rows.iter().map(body).collect()
}

async fn begin(store: &Arc<dyn Store>) -> Box<dyn Transaction> {
    store.begin().await.expect("a transaction begins")
}

async fn write(subject: &Arc<impl Subject>, transaction: &mut Box<dyn Transaction>, note: &str) {
    let written = subject.write(transaction.as_mut(), note).await;
    written.expect("a transaction writes");
}

async fn one_step(store: &Arc<dyn Store>, commit: Commit) {
    let committed = store.commit(commit).await.expect("it commits");
    assert_eq!(committed, Committed::Done);
}

async fn is_claimed(store: &Arc<dyn Store>, claim: &Claim) -> bool {
    store.is_claimed(claim).await.expect("an answer")
}

async fn unsent(store: &Arc<dyn Store>) -> Vec<OutboxRow> {
    store
        .unsent(&lanes(), 10_000)
        .await
        .expect("the outbox can be read")
}

/// What `look` finds, once it finds something.
async fn until<T>(look: impl AsyncFn() -> Option<T>) -> T {
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
