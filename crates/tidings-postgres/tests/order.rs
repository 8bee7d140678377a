//! The order of a key holds, and no wake-up is lost, with many transactions at once.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use server::{SOON, claim, commit, deferred, fresh_schema, of, open, ordered, waiting};
use tidings_core::{
    Ask, Claim, Commit, Committed, Due, Fate, InboxEntry, InboxQuery, InboxState, Over, Refusal,
    Store,
};
use tidings_postgres::{PostgresStore, PostgresTransaction};
use tokio::{task::JoinSet, time::timeout};

mod server;

async fn take(store: &PostgresStore, limit: usize) -> Vec<Due> {
    let consumers = ["c".into()];
    let taken = store.deferred().take_due(&consumers, "w", SOON * 3, limit);
    taken.await.expect("an answer")
}

fn over(due: &Due, fate: Fate) -> InboxEntry {
    InboxEntry {
        claim: due.claim.clone(),
        over: Over::Lease(due.lease.clone()),
        order: due.order.clone(),
        fate,
    }
}

const fn refused(why: Refusal) -> Committed {
    Committed::Refused { entry: 0, why }
}

async fn state_of(store: &PostgresStore, claim: Claim) -> Option<InboxState> {
    let asked = [Ask { claim, order: None }];
    store.look(&asked).await.expect("an answer")[0].state
}

/// Deliveries of a key, at most of which fail first, come from two instances in whatever order;
/// workers of both settle what is due. In the end every message was handled, each once, and at no
/// moment were two of the key deferred.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn many_tasks_on_few_keys_lose_no_wake_up_and_defer_one_at_a_time() {
    const KEYS: usize = 3;
    const MESSAGES: usize = 120;
    let schema = fresh_schema();
    let stores = [open(&schema).await, open(&schema).await];
    let told = Arc::new(AtomicBool::new(false));

    let mut tasks = JoinSet::new();
    for number in 0..MESSAGES {
        // Each comes twice, at both instances.
        for store in &stores {
            let store = store.clone();
            tasks.spawn(
                async move { deliver(&store, number, &format!("k{}", number % KEYS)).await },
            );
        }
    }
    let mut workers = JoinSet::new();
    for store in &stores {
        for _ in 0..2 {
            let (store, told) = (store.clone(), Arc::clone(&told));
            workers.spawn(async move { work(&store, &told).await });
        }
    }
    let watched = {
        let (store, told) = (stores[0].clone(), Arc::clone(&told));
        tokio::spawn(async move { most_heads(&store, &told).await })
    };
    timeout(SOON, tasks.join_all())
        .await
        .expect("deliveries end");
    let all_handled = async || {
        let handled = "select count(*) from tidings_inbox where state = 0";
        server::number(&stores[0], handled, &[]).await as usize == MESSAGES
    };
    server::until("every message is handled", all_handled).await;
    told.store(true, Ordering::Relaxed);
    workers.join_all().await;
    let most = watched.await.expect("it watched");
    assert_eq!(most, Some(1), "rows of one key that were deferred at once");
}

/// What a consumer does with a delivery: it fails, or is behind and parks, or is free again.
async fn deliver(store: &PostgresStore, number: usize, key: &str) {
    let id = format!("m{number}");
    let fails = !number.is_multiple_of(4);
    let mut parks = false;
    loop {
        let fate = match (parks, fails) {
            (true, _) => Fate::Parked(waiting(Duration::ZERO)),
            (false, true) => Fate::Deferred(waiting(Duration::ZERO)),
            (false, false) => Fate::Handled,
        };
        match store.commit(of(ordered(&*id, key, fate))).await {
            Ok(Committed::Done) => return,
            Ok(Committed::Refused { why, .. }) => match why {
                Refusal::Known => return,
                Refusal::Behind => parks = true,
                Refusal::Free => parks = false,
            },
            Err(error) => panic!("{error}"),
        }
    }
}

async fn work(store: &PostgresStore, told: &AtomicBool) {
    let mut tried: HashMap<Claim, u32> = HashMap::new();
    while !told.load(Ordering::Relaxed) {
        for due in take(store, 4).await {
            let tries = tried.entry(due.claim.clone()).or_default();
            *tries += 1;
            let fate = match *tries {
                1 => Fate::Deferred(waiting(Duration::ZERO)),
                _ => Fate::Handled,
            };
            assert_eq!(commit(store, over(&due, fate)).await, Committed::Done);
        }
    }
}

/// The most rows of one key that were deferred at one moment.
async fn most_heads(store: &PostgresStore, told: &AtomicBool) -> Option<i64> {
    let mut most = None;
    while !told.load(Ordering::Relaxed) {
        let client = store.client().await.expect("a connection");
        let heads = client
            .query_one(
                "select max(count) from (
                     select count(*) from tidings_inbox where state = 1
                     group by order_group, order_key
                 ) as counts",
                &[],
            )
            .await
            .expect("counts");
        most = most.max(heads.get(0));
    }
    most
}

/// A commit that waits for its key decides by what the one before it committed, not by what was
/// there when it began to wait.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn who_waits_for_a_key_sees_what_the_one_before_it_committed() {
    let now = Duration::ZERO;
    let schema = fresh_schema();
    let store = open(&schema).await;
    let (first, second) = overlap(
        &schema,
        &store,
        ordered("1", "k", Fate::Deferred(waiting(now))),
        ordered("2", "k", Fate::Handled),
    )
    .await;
    assert_eq!(first, Committed::Done);
    assert_eq!(second, refused(Refusal::Behind));

    let due = take(&store, 1).await.remove(0);
    let (first, second) = overlap(
        &schema,
        &store,
        over(&due, Fate::Handled),
        ordered("2", "k", Fate::Parked(waiting(now))),
    )
    .await;
    assert_eq!(first, Committed::Done);
    assert_eq!(second, refused(Refusal::Free));

    // The other way round: the end of the first sees what was parked behind it meanwhile.
    commit(&store, ordered("3", "k", Fate::Deferred(waiting(now)))).await;
    let due = take(&store, 1).await.remove(0);
    let (first, second) = overlap(
        &schema,
        &store,
        ordered("4", "k", Fate::Parked(waiting(now))),
        over(&due, Fate::Handled),
    )
    .await;
    assert_eq!([first, second], [Committed::Done, Committed::Done]);
    let next = take(&store, 10).await;
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].claim, claim("4"), "it was woken");
}

/// Commits `first` and `second`, which have the same key, so that `second` begins while `first`
/// has the key and is held up.
async fn overlap(
    schema: &str,
    store: &PostgresStore,
    first: InboxEntry,
    second: InboxEntry,
) -> (Committed, Committed) {
    let obstacle = server::begin(store).await;
    obstacle
        .batch_execute("insert into tidings_inbox (consumer, message) values ('c', 'obstacle')")
        .await
        .expect("a claim that is not committed");
    // A row that is written when the keys are locked.
    let obstructed = ordered(
        "obstacle",
        "another key",
        Fate::Deferred(waiting(Duration::ZERO)),
    );
    let held_up = Commit {
        inbox: vec![first, obstructed],
        ..Commit::default()
    };
    let before = tokio::spawn({
        let store = store.clone();
        async move { store.commit(held_up).await.expect("an answer") }
    });
    waiting_for_locks(schema, store, 1).await;
    let after = tokio::spawn({
        let store = open(schema).await;
        async move { commit(&store, second).await }
    });
    waiting_for_locks(schema, store, 2).await;
    let undone = obstacle.batch_execute("rollback").await;
    undone.expect("the obstacle is gone");
    let ended = (before.await.expect("an end"), after.await.expect("an end"));
    obstacle
        .batch_execute("delete from tidings_inbox where message = 'obstacle'")
        .await
        .expect("it is gone");
    ended
}

async fn waiting_for_locks(schema: &str, store: &PostgresStore, count: i64) {
    server::until("they wait for each other", async || {
        let waits = "select count(*) from pg_locks join pg_stat_activity using (pid)
                     where not granted and application_name = $1";
        server::number(store, waits, &[&format!("tidings {schema}")]).await == count
    })
    .await;
}

/// Two commits whose keys, messages and claims are in opposite orders do not wait for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn commits_in_opposite_orders_do_not_deadlock() {
    let schema = fresh_schema();
    let stores = [open(&schema).await, open(&schema).await];
    let mut tasks = JoinSet::new();
    for round in 0..60 {
        for (side, store) in stores.iter().enumerate() {
            let store = store.clone();
            tasks.spawn(async move {
                let mut numbers: Vec<usize> = (0..8).collect();
                if side == 1 {
                    numbers.reverse();
                }
                let handled =
                    |number: &usize| InboxEntry::handled(claim(format!("{round}-{number}")));
                let waits = |number: &usize| deferred(format!("{round}-d{number}"), SOON);
                let message = |number: &usize| {
                    server::message("t", &format!("{number}"), Some(&format!("k{number}")))
                };
                let waits = numbers.iter().map(waits);
                // In every other round nothing but rows that wait, each a statement, is in the way
                // of each other: a key, or claims in one statement, would make one wait for the
                // other before it comes to them.
                let commit = match round % 2 {
                    0 => Commit {
                        inbox: numbers.iter().map(handled).chain(waits).collect(),
                        outbox: numbers.iter().map(message).collect(),
                        ..Commit::default()
                    },
                    _ => Commit {
                        inbox: waits.collect(),
                        ..Commit::default()
                    },
                };
                store.commit(commit).await
            });
            tasks.spawn({
                // The usual commit, which meets the others at one claim and one key.
                let store = stores[1 - side].clone();
                async move {
                    let commit = Commit {
                        inbox: vec![InboxEntry::handled(claim(format!("{round}-{}", side * 7)))],
                        outbox: vec![server::message("t", "x", Some(&format!("k{}", side * 7)))],
                        ..Commit::default()
                    };
                    store.commit(commit).await
                }
            });
        }
    }
    let ended = timeout(SOON * 3, tasks.join_all()).await.expect("all end");
    for outcome in ended {
        outcome.expect("nobody ran into another");
    }
}

/// All commits write the claims of deliveries, for which they may have to wait, before they lock keys:
/// the usual one, which is a single statement, too. Else two of them could wait for each other.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_commit_that_waits_for_a_claim_has_no_keys_yet() {
    let schema = fresh_schema();
    let store = open(&schema).await;
    let obstacle = server::begin(&store).await;
    obstacle
        .batch_execute("insert into tidings_inbox (consumer, message) values ('c', '1')")
        .await
        .expect("a claim that is not committed");
    let usual = Commit {
        inbox: vec![InboxEntry::handled(claim("1"))],
        outbox: vec![server::message("t", "1", Some("k"))],
        ..Commit::default()
    };
    let commits = tokio::spawn({
        let store = store.clone();
        async move { store.commit(usual).await.expect("an answer") }
    });
    waiting_for_locks(&schema, &store, 1).await;
    let keys = "select count(*) from pg_locks join pg_stat_activity using (pid)
                where granted and locktype = 'advisory' and application_name = $1";
    let keys = server::number(&store, keys, &[&format!("tidings {schema}")]).await;
    assert_eq!(keys, 0);
    let committed = obstacle.batch_execute("commit").await;
    committed.expect("it was handled");
    assert!(commits.await.expect("an end").is_known());
}

/// Instances that discard, reschedule and settle at once leave every key with somebody to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn discarding_beside_settling_leaves_nobody_behind() {
    let now = Duration::ZERO;
    let schema = fresh_schema();
    let stores = [open(&schema).await, open(&schema).await];
    for round in 0..15 {
        let key = format!("k{round}");
        for number in 0..6 {
            let fate = match number {
                0 => Fate::Deferred(waiting(now)),
                _ => Fate::Parked(waiting(now)),
            };
            let id = format!("{round}-{number}");
            assert_eq!(
                commit(&stores[0], ordered(&*id, &key, fate)).await,
                Committed::Done
            );
        }
        let due = take(&stores[0], 1).await.remove(0);
        let settles = commit(&stores[0], over(&due, Fate::Handled));
        let middle: Vec<Claim> = (1..5)
            .map(|number| claim(format!("{round}-{number}")))
            .collect();
        let discards = stores[1].deferred().discard(&middle);
        let (settled, discarded) = tokio::join!(settles, discards);
        assert_eq!(settled, Committed::Done);
        assert_eq!(discarded.expect("an answer"), 4);
        let last = take(&stores[1], 10).await;
        assert_eq!(last.len(), 1, "round {round}: the last of its key goes on");
        assert_eq!(last[0].claim, claim(format!("{round}-5")));
        let ended = commit(&stores[1], over(&last[0], Fate::Handled)).await;
        assert_eq!(ended, Committed::Done);
    }
    let all = InboxQuery {
        limit: 10,
        ..InboxQuery::default()
    };
    let left = stores[0].deferred().list(&all);
    assert_eq!(left.await.expect("a list"), []);
}

/// Order is decided by statements that each see what was committed before them. A handler that
/// asked for one snapshot for all of them is told so.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_transaction_with_one_snapshot_is_refused_the_order_of_keys() {
    let store = open(&fresh_schema()).await;
    let mut transaction = store.begin().await.expect("a transaction");
    let any: &mut dyn std::any::Any = transaction.as_mut();
    let ours = any.downcast_mut::<PostgresTransaction>().expect("ours");
    ours.execute("set transaction isolation level repeatable read", &[])
        .await
        .expect("it is the first statement");
    let error = transaction
        .commit(of(ordered("1", "k", Fate::Handled)))
        .await
        .expect_err("it cannot be kept");
    assert!(error.to_string().contains("`repeatable read`"), "{error}");
    assert_eq!(state_of(&store, claim("1")).await, None);
}

/// What nobody else carries is kept: a message that is given up without a dead letter.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_message_that_is_given_up_stays_in_its_row_unless_a_dead_letter_carries_it() {
    let store = open(&fresh_schema()).await;
    for (id, outbox) in [
        ("alone", Vec::new()),
        ("sent", vec![server::message("dead", "sent", None)]),
    ] {
        commit(&store, deferred(id, Duration::ZERO)).await;
        let due = take(&store, 1).await.remove(0);
        let dead = Fate::Dead {
            failures: 3,
            history: Vec::new(),
            blocks: false,
        };
        let given_up = Commit {
            inbox: vec![over(&due, dead)],
            outbox,
            ..Commit::default()
        };
        assert_eq!(
            store.commit(given_up).await.expect("an answer"),
            Committed::Done
        );
    }
    let client = store.client().await.expect("a connection");
    let kept = "select message, body from tidings_inbox order by message";
    let kept = client.query(kept, &[]).await.expect("rows");
    let kept: Vec<(&str, Option<&[u8]>)> =
        kept.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(kept, [("alone", Some(&b"{}"[..])), ("sent", None)]);
}
