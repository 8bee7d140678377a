//! The shares of relays.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tidings_core::{Lane, Leased, Store};
use tokio::{task::JoinSet, time::Instant};

use super::{Subject, support::*};

async fn lease(store: &Arc<dyn Store>, relay: &str, lease: Duration) -> Leased {
    let leased = store.outbox().lease(relay, lease).await;
    let leased = leased.expect("lanes can be leased");
    assert!(leased.lanes.is_sorted(), "ascending: {leased:?}");
    leased
}

async fn release(store: &Arc<dyn Store>, relay: &str, lanes: Option<&[Lane]>) {
    let released = store.outbox().release(relay, lanes).await;
    released.expect("lanes can be released");
}

/// Each relay renews its lanes, gives up what is beyond its share, and renews again; twice, so that
/// all know of all.
async fn settle_shares(store: &Arc<dyn Store>, relays: &[&str], lasts: Duration) -> Vec<Leased> {
    let mut all = Vec::new();
    for _ in 0..2 {
        all.clear();
        for relay in relays {
            let leased = lease(store, relay, lasts).await;
            let surplus = usize::from(leased.surplus);
            assert!(surplus <= leased.lanes.len());
            let (given_up, _) = leased.lanes.split_at(surplus);
            release(store, relay, Some(given_up)).await;
        }
        for relay in relays {
            all.push(lease(store, relay, lasts).await);
        }
    }
    all
}

/// How many lanes each has; no lane is with two.
fn counts(leased: &[Leased]) -> Vec<usize> {
    let all: Vec<Lane> = leased.iter().flat_map(|one| one.lanes.clone()).collect();
    let distinct: BTreeSet<&Lane> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "a lane with two: {leased:?}");
    leased.iter().map(|one| one.lanes.len()).collect()
}

pub(super) async fn one_relay_has_all_lanes(subject: Arc<impl Subject>) {
    let store = subject.store();
    for _ in 0..2 {
        let leased = lease(&store, "a", LONG).await;
        let all = Leased {
            lanes: lanes(),
            surplus: 0,
        };
        assert_eq!(leased, all, "all are free, or its own");
    }
    release(&store, "a", None).await;
    assert_eq!(lease(&store, "b", LONG).await.lanes, lanes());
}

pub(super) async fn relays_have_equal_shares(subject: Arc<impl Subject>) {
    let store = subject.store();
    lease(&store, "a", LONG).await;
    let second = lease(&store, "b", LONG).await;
    assert_eq!(second, Leased::default(), "none is free yet");
    let first = lease(&store, "a", LONG).await;
    assert_eq!(first.lanes, lanes(), "it keeps them until it gives them up");
    assert_eq!(first.surplus, 8);
    release(&store, "b", Some(&first.lanes)).await;
    let second = lease(&store, "b", LONG).await;
    assert!(second.lanes.is_empty(), "b has none of a's to give up");

    let shares = settle_shares(&store, &["a", "b"], LONG).await;
    assert_eq!(counts(&shares), [8, 8]);
    let shares = settle_shares(&store, &["a", "b", "c"], LONG).await;
    let counts = counts(&shares);
    assert_eq!(counts.iter().sum::<usize>(), 16, "none is left over");
    assert!(
        counts.iter().all(|count| (4..=6).contains(count)),
        "{counts:?}"
    );
    assert!(shares.iter().all(|one| one.surplus == 0), "{shares:?}");
}

pub(super) async fn a_relay_that_leaves_gives_its_lanes_to_the_others(subject: Arc<impl Subject>) {
    let store = subject.store();
    settle_shares(&store, &["a", "b", "c"], LONG).await;
    release(&store, "c", None).await;
    let shares = settle_shares(&store, &["a", "b"], LONG).await;
    assert_eq!(counts(&shares), [8, 8]);
    release(&store, "b", None).await;
    release(&store, "unknown", None).await;
    assert_eq!(lease(&store, "a", LONG).await.lanes, lanes());
}

pub(super) async fn a_relay_that_dies_loses_its_lanes_when_its_lease_ends(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    settle_shares(&store, &["a", "b"], LONG).await;
    let since = Instant::now();
    lease(&store, "b", SHORT).await;
    let all = until(async || {
        let leased = lease(&store, "a", LONG).await;
        (leased.lanes.len() > 8).then_some(leased)
    })
    .await;
    not_before(since, SHORT);
    assert_eq!(all.lanes, lanes(), "the dead one has no share");
    assert_eq!(all.surplus, 0);
    // It was only slow: it has nothing, and its share is waited for.
    assert!(lease(&store, "b", LONG).await.lanes.is_empty());
    assert_eq!(lease(&store, "a", LONG).await.surplus, 8);
}

pub(super) async fn no_lane_belongs_to_two_relays(subject: Arc<impl Subject>) {
    let store = subject.store();
    let mut relays = JoinSet::new();
    for relay in ["a", "b", "c", "d", "e"] {
        let store = Arc::clone(&store);
        relays.spawn(async move { lease(&store, relay, LONG).await });
    }
    let leased = relays.join_all().await;
    let taken: usize = counts(&leased).iter().sum();
    assert!(taken > 0, "somebody has some");
}
