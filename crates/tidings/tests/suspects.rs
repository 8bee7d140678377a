//! A message whose handler may have ended the process is tried alone, and only what it did alone counts
//! against it.

mod support;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use support::{
    Database, MoneyDeposited, Running,
    bank::QUEUE,
    broker::Broker,
    deposit,
    outage::Outage,
    outgoing,
    outside::{Outside, bank, book, waiting},
    until, write,
};
use tidings::{Error, InboxState, Store, prelude::*};
use tidings_sqlite::Tx;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_message_whose_handler_never_lets_the_process_live_is_a_dead_letter_and_harms_no_other() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let hung = Arc::new(AtomicU32::new(0));
    let hang = |deposit: MoneyDeposited, State(hung): State<Arc<AtomicU32>>, mut tx: Tx| async move {
        if deposit.account == "fatal" {
            hung.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
        write(&mut tx, &deposit).await?;
        Ok::<_, Error>(())
    };
    let router = || {
        Router::new("bank")
            .on(hang)
            .transactional(database.store.clone())
            .lease(Duration::from_millis(200))
            .with_state(Arc::clone(&hung))
    };
    broker.declare_for(&router()).await;
    broker.publish_raw(outgoing(&deposit("fatal", 0)));
    for number in 1..10 {
        broker.publish_raw(outgoing(&deposit("a", number)));
    }
    let mut crashes = 0;
    while broker.dead_letters(QUEUE).is_empty() {
        let before = hung.load(Ordering::SeqCst);
        let service = Running::start(&broker, router()).await;
        until("it hangs, or it is dead", async || {
            hung.load(Ordering::SeqCst) > before || !broker.dead_letters(QUEUE).is_empty()
        })
        .await;
        service.crash().await;
        broker.set_down(true);
        broker.set_down(false);
        crashes += 1;
        assert!(crashes < 10, "it is tried for ever");
    }
    let service = Running::start(&broker, router()).await;
    until("the others are handled", async || {
        database.effects().await.len() == 9
    })
    .await;
    service.stop().await;
    let dead = broker.dead_letters(QUEUE);
    assert_eq!(dead.len(), 1, "and no other");
    let reason = &dead[0].history.last().expect("a reason").reason;
    assert!(
        reason.contains("was started alone 3 times and never finished"),
        "{reason}"
    );
    assert_eq!(
        hung.load(Ordering::SeqCst),
        5,
        "once as a delivery, once beside others, three times alone"
    );
}

/// Another instance takes what is due, and dies. Says how much it was.
async fn a_worker_takes_all_and_dies(database: &Database) -> usize {
    let deferred = database.store.deferred();
    let lease = Duration::from_millis(1);
    let taken = deferred.take_due(&[QUEUE.into()], "dead", lease, 10).await;
    taken.expect("it takes").len()
}

#[tokio::test]
async fn a_suspect_does_not_begin_before_the_others_are_given_back() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let outside = Outside::default();
    let outage = Outage::of(database.store.clone());
    let hour = Duration::from_secs(3600);
    let router = Router::new("bank")
        .on(book)
        .transactional(outage.clone())
        .retry(Retry::exponential(hour).delay_max(hour).fast_attempts(1))
        .with_state(outside.clone());
    let service = Running::start(&broker, router).await;
    let deferred = database.store.deferred();
    let at_rest = async |failures: &[u32]| {
        let rows = waiting(&database).await;
        let rows = rows.iter().filter(|row| !row.is_leased);
        rows.map(|row| row.failures).eq(failures.iter().copied())
    };
    let all_due = async || {
        let claims: Vec<_> = waiting(&database)
            .await
            .into_iter()
            .map(|row| row.claim)
            .collect();
        let rescheduled = deferred.reschedule(&claims, Duration::ZERO).await;
        rescheduled.expect("it does")
    };
    // Once the worker has tried one that is no suspect, it takes many at a time.
    broker.publish_raw(outgoing(&deposit("a", 1)));
    until("it waits", async || at_rest(&[1]).await).await;
    all_due().await;
    until("it was tried again", async || at_rest(&[2]).await).await;
    broker.publish_raw(outgoing(&deposit("b", 2)));
    until("both wait", async || at_rest(&[2, 1]).await).await;
    // Another instance takes them and dies.
    let taking = outage.taking.lock().await;
    assert_eq!(all_due().await, 2);
    assert_eq!(a_worker_takes_all_and_dies(&database).await, 2);

    let held = outage.giving_back.lock().await;
    outside.set_up(true);
    let before = outside.calls();
    drop(taking);
    until("they are to be given back", async || {
        outage.asked_to_give_back.load(Ordering::SeqCst) > 0
    })
    .await;
    for _ in 0..20 {
        database.effects().await; // What was begun would run meanwhile.
    }
    assert_eq!(outside.calls(), before, "nothing runs yet");
    drop(held);
    until("both are handled", async || {
        database.effects().await.len() == 2
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn while_a_suspect_is_tried_nothing_else_is_under_way() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let outside = Outside::default();
    let service = Running::start(&broker, bank(&database, &outside, Duration::ZERO)).await;
    broker.publish_raw(outgoing(&deposit("suspect", 1)));
    broker.publish_raw(outgoing(&deposit("suspect", 2)));
    until("both wait in the store", async || {
        database.rows(InboxState::Deferred).await == 2
    })
    .await;
    service.stop().await;
    until("both are taken", async || {
        a_worker_takes_all_and_dies(&database).await == 2
    })
    .await;

    /// How many runs are under way, and how many had company while a suspect ran.
    #[derive(Default)]
    struct Counts {
        running: AtomicU32,
        suspects: AtomicU32,
        disturbed: AtomicU32,
        others: AtomicU32,
    }
    let counts = Arc::new(Counts::default());
    let slow = |deposit: MoneyDeposited, State(counts): State<Arc<Counts>>, mut tx: Tx| async move {
        let is_suspect = deposit.account == "suspect";
        let of_kind = if is_suspect {
            &counts.suspects
        } else {
            &counts.others
        };
        of_kind.fetch_add(1, Ordering::SeqCst);
        counts.running.fetch_add(1, Ordering::SeqCst);
        for _ in 0..if is_suspect { 100 } else { 5 } {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if is_suspect && counts.running.load(Ordering::SeqCst) > 1 {
                counts.disturbed.fetch_add(1, Ordering::SeqCst);
            }
        }
        write(&mut tx, &deposit).await?;
        counts.running.fetch_sub(1, Ordering::SeqCst);
        Ok::<_, Error>(())
    };
    let router = Router::new("bank")
        .on(slow)
        .transactional(database.store.clone())
        .with_state(Arc::clone(&counts));
    for number in 10..40 {
        broker.publish_raw(outgoing(&deposit("other", number)));
    }
    let service = Running::start(&broker, router).await;
    let published = AtomicU32::new(40);
    until("the suspects are handled", async || {
        let number = published.fetch_add(1, Ordering::SeqCst);
        broker.publish_raw(outgoing(&deposit("other", number.into())));
        counts.suspects.load(Ordering::SeqCst) == 2
    })
    .await;
    until("all are handled", async || {
        database.effects().await.len() as u32 == published.load(Ordering::SeqCst) - 8
    })
    .await;
    service.stop().await;
    assert!(counts.others.load(Ordering::SeqCst) >= 30);
    assert_eq!(counts.disturbed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_a_shutdown_cuts_off_is_no_suspect() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let started = Arc::new(AtomicU32::new(0));
    // Its first attempt fails, so that it is tried again from the store, and never ends.
    let slow = |_: MoneyDeposited, State(started): State<Arc<AtomicU32>>| async move {
        if started.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(Error::msg("try again"));
        }
        std::future::pending::<()>().await;
        Ok(())
    };
    let router = Router::new("bank")
        .on(slow)
        .transactional(database.store.clone())
        .retry(Retry::exponential(Duration::ZERO).fast_attempts(1))
        .shutdown_timeout(Duration::from_millis(50))
        .lease(Duration::from_secs(3600))
        .with_state(Arc::clone(&started));
    let service = Running::start(&broker, router).await;
    broker.publish_raw(outgoing(&deposit("a", 1)));
    until("it is tried from the store", async || {
        started.load(Ordering::SeqCst) == 2
    })
    .await;
    service.stop().await;
    let deferred = database.store.deferred();
    let lease = Duration::from_secs(1);
    let due = deferred.take_due(&[QUEUE.into()], "next", lease, 10).await;
    let due = due.expect("it takes");
    assert_eq!(due.len(), 1, "its lease has ended");
    assert_eq!(due[0].unfinished, 0);
}

/// A message that waits in the store, and whose start by another instance never finished.
async fn suspect(broker: &Broker, database: &Database, account: &str) {
    let outside = Outside::default();
    let service = Running::start(broker, bank(database, &outside, Duration::ZERO)).await;
    broker.publish_raw(outgoing(&deposit(account, 1)));
    until("it waits in the store", async || {
        database.rows(InboxState::Deferred).await == 1
    })
    .await;
    service.stop().await;
    until("another instance takes it", async || {
        a_worker_takes_all_and_dies(database).await == 1
    })
    .await;
}

#[tokio::test]
async fn a_suspect_is_tried_though_its_lease_cannot_be_made_longer() {
    let (broker, database) = (Broker::default(), Database::new().await);
    suspect(&broker, &database, "a").await;
    let outage = Outage::of(database.store.clone());
    outage.keep_leases_short();
    let outside = Outside::default();
    outside.set_up(true);
    let router = Router::new("bank")
        .on(book)
        .transactional(outage)
        .lease(Duration::from_millis(100))
        .with_state(outside);
    let service = Running::start(&broker, router).await;
    until("it is handled", async || {
        database.effects().await.len() == 1
    })
    .await;
    service.stop().await;
    assert!(broker.dead_letters(QUEUE).is_empty());
}

/// What happens while a message is handled for long.
#[derive(Clone, Default)]
struct Long {
    failed: Arc<Mutex<HashSet<String>>>,
    begun: CancellationToken,
    end: CancellationToken,
    suspects: Arc<AtomicU32>,
}

/// The deposits that are to wait in the store fail at first. Then `long` goes on until it is to end.
async fn book_long(deposit: MoneyDeposited, State(long): State<Long>, mut tx: Tx) -> Result<()> {
    let account = deposit.account.clone();
    if account != "other" && long.failed.lock().await.insert(account) {
        return Err(Error::msg("it is to wait"));
    }
    match &*deposit.account {
        "long" => {
            long.begun.cancel();
            long.end.cancelled().await;
        }
        "suspect" => _ = long.suspects.fetch_add(1, Ordering::SeqCst),
        _ => {}
    }
    Ok(write(&mut tx, &deposit).await?)
}

impl Long {
    /// A service that handles a long one, from the store, when a suspect becomes due, and has given
    /// that back because it was not taken alone.
    async fn start(&self, broker: &Broker, database: &Database, outage: &Outage) -> Running {
        let hour = Duration::from_secs(3600);
        let router = Router::new("bank")
            .on(book_long)
            .transactional(outage.clone())
            .retry(Retry::exponential(hour).delay_max(hour).fast_attempts(1))
            .lease(hour)
            .shutdown_timeout(Duration::from_millis(50))
            .with_state(self.clone());
        let service = Running::start(broker, router).await;
        let make_due = async |account, number| {
            broker.publish_raw(outgoing(&deposit(account, number)));
            until("it waits in the store", async || {
                due_now(database).await == 1
            })
            .await;
        };
        make_due("long", 1).await;
        until("the long one is under way", async || {
            self.begun.is_cancelled()
        })
        .await;
        let taking = outage.taking.lock().await;
        make_due("suspect", 2).await;
        assert_eq!(a_worker_takes_all_and_dies(database).await, 1);
        drop(taking);
        until("it is given back", async || {
            outage.asked_to_give_back.load(Ordering::SeqCst) == 1
        })
        .await;
        service
    }
}

/// Makes due what waits and is not being tried. Says how much that is.
async fn due_now(database: &Database) -> u64 {
    let rows = waiting(database).await.into_iter();
    let claims: Vec<_> = rows
        .filter(|row| !row.is_leased)
        .map(|row| row.claim)
        .collect();
    let rescheduled = database.store.deferred();
    let rescheduled = rescheduled.reschedule(&claims, Duration::ZERO).await;
    rescheduled.expect("it does")
}

#[tokio::test]
async fn a_suspect_that_has_no_quiet_waits_and_the_others_do_not() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let (outage, long) = (Outage::of(database.store.clone()), Long::default());
    let service = long.start(&broker, &database, &outage).await;
    until("it is given back again, for longer", async || {
        outage.asked_to_give_back.load(Ordering::SeqCst) == 2
    })
    .await;
    broker.publish_raw(outgoing(&deposit("other", 3)));
    until("another is handled", async || {
        database.effects().await.len() == 1
    })
    .await;
    assert_eq!(long.suspects.load(Ordering::SeqCst), 0);
    long.end.cancel();
    until("all are handled", async || {
        database.effects().await.len() == 3
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_until_a_suspect_has_quiet() {
    let (broker, database) = (Broker::default(), Database::new().await);
    let (outage, long) = (Outage::of(database.store.clone()), Long::default());
    let service = long.start(&broker, &database, &outage).await;
    service.stop().await;
    due_now(&database).await;
    let deferred = database.store.deferred();
    let lease = Duration::from_secs(1);
    let due = deferred.take_due(&[QUEUE.into()], "next", lease, 10).await;
    let due = due.expect("it takes");
    let mut unfinished: Vec<u32> = due.iter().map(|due| due.unfinished).collect();
    unfinished.sort_unstable();
    assert_eq!(unfinished, [0, 1], "the long one was given back");
}
