//! Relays share lanes, never wait for handlers, and are told what concerns them.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use server::{SOON, claim, commit, deferred, fresh_schema, message, open, send};
use tidings_core::{Committed, InboxEntry, Lane, Leased, Store};
use tidings_postgres::{PostgresOptions, PostgresStore};
use tokio::{task::JoinSet, time::timeout};

mod server;

const LEASE: Duration = Duration::from_secs(60);

async fn lease(store: &PostgresStore, relay: &str) -> Leased {
    store.outbox().lease(relay, LEASE).await.expect("lanes")
}

/// What a relay does about its surplus once nothing of it is in flight.
async fn lease_and_give_up(store: &PostgresStore, relay: &str) -> usize {
    let leased = lease(store, relay).await;
    let keeps = leased.lanes.len() - usize::from(leased.surplus);
    let surplus = &leased.lanes[keeps..];
    let given_up = store.outbox().release(relay, Some(surplus)).await;
    given_up.expect("given up");
    keeps
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_relay_that_joins_gets_its_share_and_nobody_has_a_lane_twice() {
    let schema = fresh_schema();
    let (one, other) = (open(&schema).await, open(&schema).await);
    assert_eq!(lease_and_give_up(&one, "one").await, 16);
    assert_eq!(lease_and_give_up(&other, "other").await, 0);
    assert_eq!(lease_and_give_up(&one, "one").await, 8);
    assert_eq!(lease_and_give_up(&other, "other").await, 8);
    let (of_one, of_other) = (lease(&one, "one").await, lease(&other, "other").await);
    assert_eq!((of_one.surplus, of_other.surplus), (0, 0));
    let lanes: HashSet<Lane> = of_one.lanes.into_iter().chain(of_other.lanes).collect();
    assert_eq!(lanes.len(), 16);

    // A relay that goes leaves its share to the other.
    let gone = other.outbox().release("other", None).await;
    gone.expect("given up");
    assert_eq!(lease(&one, "one").await.lanes.len(), 16);
}

/// Two relays work off what writers write, each its share. Everything is sent once, in order of its
/// key.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn two_relays_with_shares_send_everything_once_and_in_order() {
    const WRITERS: usize = 4;
    const COMMITS: usize = 40;
    let schema = fresh_schema();
    let stores = [open(&schema).await, open(&schema).await];
    let sent = Arc::new(std::sync::Mutex::new(Vec::new()));
    let is_over = Arc::new(AtomicBool::new(false));
    let lanes_kept = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let mut relays = JoinSet::new();
    for (place, store) in stores.iter().enumerate() {
        let (store, sent, is_over) = (store.clone(), Arc::clone(&sent), Arc::clone(&is_over));
        let lanes_kept = Arc::clone(&lanes_kept);
        relays.spawn(async move {
            let name = ["one", "other"][place];
            while !is_over.load(Ordering::Relaxed) {
                let keeps = lease_and_give_up(&store, name).await;
                lanes_kept[place].store(keeps, Ordering::Relaxed);
                let lanes = lease(&store, name).await.lanes;
                let rows = store.outbox().next(&lanes, &[], &[], 7).await;
                let rows = rows.expect("rows");
                let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
                for row in rows {
                    let message = row.message.expect("it can be read").envelope;
                    sent.lock()
                        .expect("no panic")
                        .push((message.key, message.body));
                }
                let done = store.outbox().confirmed(&positions).await;
                done.expect("removed");
            }
        });
    }
    let is_shared = async || {
        lanes_kept
            .iter()
            .all(|kept| kept.load(Ordering::Relaxed) == 8)
    };
    server::until("each relay has its share", is_shared).await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = stores[writer % 2].clone();
        writers.spawn(async move {
            for number in 0..COMMITS {
                let key = format!("key {writer}");
                let numbered = message("t", &format!("{number:03}"), Some(&key));
                let mut by_id = message("t", &format!("{writer}-{number}"), None);
                by_id.envelope.body = "".into();
                send(&store, vec![numbered, by_id]).await;
            }
        });
    }
    timeout(SOON * 2, writers.join_all())
        .await
        .expect("all wrote");
    let all_sent = async || stores[0].outbox().stats().await.expect("counts").ready == 0;
    server::until("everything is sent", all_sent).await;
    is_over.store(true, Ordering::Relaxed);
    relays.join_all().await;
    let sent = std::mem::take(&mut *sent.lock().expect("no panic"));
    assert_eq!(sent.len(), WRITERS * COMMITS * 2, "each was sent once");
    let mut by_key: HashMap<_, Vec<_>> = HashMap::new();
    for (key, body) in sent {
        if let Some(key) = key {
            by_key.entry(key).or_default().push(body);
        }
    }
    assert_eq!(by_key.len(), WRITERS);
    for (key, bodies) in by_key {
        assert!(bodies.is_sorted(), "in order of `{key}`");
    }
}

/// Handlers may have every connection there is for them: relay and workers have their own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_relay_and_a_worker_do_not_wait_for_handlers_that_have_all_connections() {
    let options = PostgresOptions::new(server::url(), fresh_schema()).connections_max(6);
    let store = options.connect().await.expect("a store");
    send(&store, vec![message("t", "1", None)]).await;
    commit(&store, deferred("1", Duration::ZERO)).await;
    let handlers = [
        store.begin().await.expect("a transaction"),
        store.begin().await.expect("a transaction"),
    ];
    let more = timeout(Duration::from_millis(200), store.begin()).await;
    assert!(more.is_err(), "handlers have all there are for them");

    let works = async {
        let lanes = lease(&store, "relay").await.lanes;
        let rows = store.outbox().next(&lanes, &[], &[], 10).await;
        let positions: Vec<i64> = rows.expect("rows").iter().map(|row| row.position).collect();
        let outbox = store.outbox();
        outbox
            .hold("relay", &positions, "full")
            .await
            .expect("held");
        let held = outbox.held(&lanes).await.expect("destinations");
        let rows = outbox.next_held(&lanes, &held[0], 1).await;
        assert_eq!(rows.expect("rows").len(), 1);
        outbox.confirmed(&positions).await.expect("removed");
        outbox.stats().await.expect("counts");
        outbox.release("relay", None).await.expect("given up");
        let worker = store.deferred();
        let consumers = ["c".into()];
        worker.next_due(&consumers).await.expect("a time");
        let due = worker.take_due(&consumers, "w", LEASE, 10).await;
        let leases = [due.expect("rows").remove(0).lease];
        worker.renew(&leases, LEASE).await.expect("renewed");
        worker.release(&leases, LEASE).await.expect("released");
        let due = store.records().take_due("kind", "w", LEASE, 10).await;
        assert_eq!(due.expect("records"), []);
        store.records().next_due("kind").await.expect("a time");
    };
    timeout(Duration::from_secs(4), works)
        .await
        .expect("they do not wait");
    drop(handlers);
}

/// All in all a store takes no more connections than it was given.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_store_takes_no_more_connections_than_it_may() {
    const MAX: u32 = 6;
    let schema = fresh_schema();
    let options = PostgresOptions::new(server::url(), &*schema).connections_max(MAX);
    let store = options.connect().await.expect("a store");
    let mut busy = JoinSet::new();
    for number in 0..40 {
        let store = store.clone();
        busy.spawn(async move {
            for round in 0..5 {
                let handled = InboxEntry::handled(claim(format!("{number}-{round}")));
                assert_eq!(commit(&store, handled).await, Committed::Done);
                store.outbox().stats().await.expect("counts");
                store.outbox().confirmed(&[-1]).await.expect("a removal");
                send(&store, vec![message("t", "x", None)]).await;
            }
        });
    }
    let watcher = open(&fresh_schema()).await;
    let mut most = 0;
    let mut is_over = false;
    while !is_over {
        is_over = busy.is_empty();
        while let Some(done) = busy.try_join_next() {
            done.expect("no panic");
        }
        let count = "select count(*) from pg_stat_activity where application_name like $1";
        let count = server::number(&watcher, count, &[&format!("tidings {schema}%")]).await;
        most = most.max(count);
    }
    assert_eq!(most, i64::from(MAX), "it uses what it may, and no more");
}

/// A commit wakes the relays of its own process once, and those of others by a notification; the
/// own notification does not come back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_notification_wakes_other_processes_and_not_its_own() {
    let schema = fresh_schema();
    let (own, other) = (open(&schema).await, open(&schema).await);
    let listening = async || {
        let listeners = "select count(*) from pg_stat_activity
                         where application_name = $1 and query ilike 'listen%'";
        server::number(&own, listeners, &[&format!("tidings {schema} relay")]).await == 2
    };
    server::until("both listen", listening).await;

    send(&own, vec![message("t", "1", None)]).await;
    own.outbox().committed().await;
    timeout(SOON, other.outbox().committed())
        .await
        .expect("the other is told");
    // It was sent to both at the same moment.
    let again = timeout(Duration::from_millis(300), own.outbox().committed()).await;
    assert!(again.is_err(), "nothing else was committed");
    send(&other, vec![message("t", "2", None)]).await;
    timeout(SOON, own.outbox().committed())
        .await
        .expect("told by the other");
}

/// Relays whose leases have just ended take the lanes of each other, and pass over what another is
/// just taking: nobody waits for somebody who waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn relays_that_take_lanes_from_each_other_do_not_deadlock() {
    let schema = fresh_schema();
    let mut relays = JoinSet::new();
    for number in 0..4 {
        let store = open(&schema).await;
        relays.spawn(async move {
            let relay = format!("relay {number}");
            for round in 0..200 {
                let leased = store.outbox().lease(&relay, Duration::ZERO).await;
                leased.expect("nobody is in the way");
                if round % 10 == number {
                    let gone = store.outbox().release(&relay, None).await;
                    gone.expect("nobody is in the way");
                }
            }
        });
    }
    timeout(SOON * 3, relays.join_all()).await.expect("all end");
}
