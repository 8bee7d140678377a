//! Dead letters as an operation, on a broker in the process: what is found, and what is changed. Jobs
//! are in `redriving.rs`, the real brokers in `dead_letters_amqp.rs`.

mod support;

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use support::{
    BalanceChanged, Database, MoneyDeposited, Running, deposit,
    letters::{Dying, QUEUE, all, desk, letter, publish},
    outgoing, until, write,
};
use tidings::{
    AfterDeadLetter, Error, InboxState,
    dead_letters::{Audit, Code, DeadLetters, Event, Outcome, Report, Selection, consumers_in},
    prelude::*,
};
use tidings_memory::MemoryTransport;
use tidings_sqlite::Tx;
use tokio::time::timeout;

/// Whether the bank is closed; then it refuses everything for good. It never knows the account `bad`.
type IsClosed = Arc<AtomicBool>;

async fn book(
    deposit: MoneyDeposited,
    State(is_closed): State<IsClosed>,
    mut tx: Tx,
) -> Result<()> {
    let number = deposit.number;
    if is_closed.load(Ordering::SeqCst) {
        return Err(Error::msg(format!(
            "the bank is closed for deposit {number}"
        )));
    }
    if deposit.account == "bad" {
        return Err(Error::msg(format!("no account `bad`: deposit {number}")));
    }
    Ok(write(&mut tx, &deposit).await?)
}

struct Bank {
    transport: MemoryTransport,
    database: Database,
    is_closed: IsClosed,
    service: Running,
}

impl Bank {
    async fn open(change: impl FnOnce(Router) -> Router) -> Self {
        let (transport, database) = (MemoryTransport::new(), Database::new().await);
        let is_closed = IsClosed::default();
        let router = Router::new("bank")
            .on(book)
            .transactional(database.store.clone())
            .retry(Retry::none())
            .with_state(Arc::clone(&is_closed));
        let service = Running::start(&transport, change(router)).await;
        Self {
            transport,
            database,
            is_closed,
            service,
        }
    }

    fn letters(&self) -> DeadLetters {
        DeadLetters::new(self.transport.connect(), QUEUE)
    }

    /// Publishes deposits that end as dead letters.
    async fn bury(&self, account: &str, numbers: std::ops::Range<u64>) {
        let dead = self.transport.dead_letters(QUEUE).len() + numbers.clone().count();
        let batch = numbers.map(|number| outgoing(&deposit(account, number)));
        publish(&self.transport, batch.collect()).await;
        until("they are dead letters", async || {
            self.transport.dead_letters(QUEUE).len() == dead
        })
        .await;
    }
}

fn audit() -> Audit {
    Audit::now("ann", "the account was renamed")
}

async fn quickly(letters: &DeadLetters, selection: Selection) -> Report {
    let redrive = letters.redrive(selection).unlimited();
    let report = redrive.settle(Duration::from_millis(300)).run(|_| {}).await;
    report.expect("it runs")
}

/// A redrive of what all comes back: it ends when it is back, long before the time that it may take.
async fn in_vain(letters: &DeadLetters, selection: Selection) -> Report {
    let redrive = letters.redrive(selection).unlimited();
    let redrive = redrive.settle(Duration::from_secs(3600)).run(|_| {});
    let report = timeout(Duration::from_secs(60), redrive).await;
    report.expect("it does not wait").expect("it runs")
}

#[tokio::test]
async fn letters_that_failed_alike_are_one_group() {
    let (transport, letters) = desk().await;
    let mut batch = Vec::new();
    for number in 0..20 {
        let reason = match number % 4 {
            0 => format!("the bank is closed: since {number} o'clock"),
            _ => format!("no account `{number}`"),
        };
        batch.push(letter(&deposit("a", number), QUEUE, &reason, number as i64));
    }
    let changed = BalanceChanged {
        account: "a".into(),
        number: 1,
    };
    batch.push(letter(&changed, QUEUE, "no account `7`", 99));
    publish(&transport, batch).await;

    let groups = letters.groups(&Selection::all()).await.expect("groups");
    assert_eq!((groups.count, groups.left_out), (21, 0));
    let seen: Vec<_> = groups
        .groups
        .iter()
        .map(|it| (it.count, &*it.name))
        .collect();
    let name = "money-deposited.v1";
    assert_eq!(seen, [(15, name), (5, name), (1, "balance-changed.v1")]);
    let first = &groups.groups[0];
    assert_eq!(&*first.fingerprint.pattern, "no account `…`");
    assert_eq!(&*first.consumer, QUEUE);
    assert_eq!(&*first.example_reason, "no account `1`");
    let second = |time: Option<jiff::Timestamp>| time.map(|it| it.as_second() - 1_700_000_000);
    assert_eq!(
        (second(first.first), second(first.last)),
        (Some(1), Some(19))
    );

    let closed = Selection::all().fingerprint(&groups.groups[1].fingerprint.id);
    let closed = all(&letters, &closed).await;
    assert_eq!(closed.len(), 5);
    assert_eq!(
        closed[1].errors(),
        ["the bank is closed", "since 4 o'clock"]
    );
    let shown = letters.show(&first.example_id).await.expect("it is there");
    assert_eq!(&*shown.reason, "no account `1`");
    assert_eq!((shown.failures, shown.history.len()), (1, 1));
    let at = |second: i64| jiff::Timestamp::from_second(1_700_000_000 + second).expect("a time");
    let middle = Selection::all().since(at(5)).before(at(8)).name(name);
    assert_eq!(all(&letters, &middle).await.len(), 3);
    let missing = letters.show("nobody").await.expect_err("it is not there");
    assert_eq!(missing.code(), Code::NoLetter);
    assert_eq!(transport.dead_letters(QUEUE).len(), 21);
}

#[tokio::test]
async fn a_redrive_sends_what_is_selected_and_the_consumer_handles_it_once() {
    let bank = Bank::open(|router| router).await;
    bank.is_closed.store(true, Ordering::SeqCst);
    bank.bury("a", 0..30).await;
    bank.bury("bad", 30..33).await;
    let letters = bank.letters();

    let mut would = 0;
    let dry = letters.redrive(Selection::all()).dry_run();
    let dry = dry.run(|event| {
        would += usize::from(matches!(
            event,
            Event::Letter {
                outcome: Outcome::WouldSend,
                ..
            }
        ));
    });
    assert_eq!(dry.await.expect("it runs").sent, 33);
    assert_eq!((would, bank.transport.dead_letters(QUEUE).len()), (33, 33));

    bank.is_closed.store(false, Ordering::SeqCst);
    let one = all(&letters, &Selection::all()).await[4].id.clone();
    assert_eq!(quickly(&letters, Selection::all().id(&one)).await.sent, 1);
    until("it is handled", async || {
        bank.database.effects().await.len() == 1
    })
    .await;
    assert_eq!(bank.transport.dead_letters(QUEUE).len(), 32);

    let mut back = Vec::new();
    let redrive = letters.redrive(Selection::all()).unlimited();
    let redrive = redrive.settle(Duration::from_secs(5));
    let report = redrive.run(|event| {
        if let Event::Letter {
            letter,
            outcome: Outcome::CameBack,
        } = event
        {
            back.push(letter.reason.to_string());
        }
    });
    let report = report.await.expect("it runs");
    assert_eq!((report.sent, report.came_back, report.total), (32, 3, 32));
    assert_eq!(report.stopped, None, "three are too few to stop");
    assert!(back[0].contains("no account `bad`"), "{back:?}");
    assert_eq!(bank.database.effects().await.len(), 30, "each once");

    // What came back has its whole history, and can be sent once more.
    let again = all(&letters, &Selection::all()).await;
    assert_eq!(again.len(), 3);
    assert_eq!((again[0].redrives, again[0].history.len()), (1, 2));
    let report = in_vain(&letters, Selection::all()).await;
    assert_eq!((report.sent, report.came_back), (3, 3));
    assert_eq!(all(&letters, &Selection::all()).await[0].redrives, 2);
    bank.service.stop().await;
}

#[tokio::test]
async fn an_edited_letter_is_handled_as_it_is_now() {
    let bank = Bank::open(|router| router).await;
    bank.bury("bad", 0..3).await;
    let letters = bank.letters();
    let id = all(&letters, &Selection::all()).await[1].id.clone();
    let body = r#"{"account":"good","number":1}"#;
    for (body, why) in [
        ("{", "no JSON"),
        (r#"{"account":"bad","number":1}"#, "is what it was"),
    ] {
        let refused = letters
            .edit(&id, body, &audit())
            .await
            .expect_err("refused");
        assert_eq!(refused.code(), Code::NoEdit);
        assert!(refused.to_string().contains(why), "{refused}");
    }
    let edited = letters
        .edit(&id, body, &audit())
        .await
        .expect("it is edited");
    // Others of its key go behind it, so that they stay in order.
    assert_eq!(edited.followers, 1);
    let now = all(&letters, &Selection::all()).await;
    let bodies: Vec<_> = now
        .iter()
        .map(|it| String::from_utf8_lossy(&it.envelope.body))
        .collect();
    assert!(bodies[1] == body && bodies[2].contains('2'), "{bodies:?}");
    let edits = now[1].edits();
    assert_eq!(
        (&*edits[0].by, edits[0].why.as_str()),
        ("ann", "the account was renamed")
    );
    assert!(
        edits[0]
            .was
            .as_deref()
            .is_some_and(|was| was.starts_with("28 bytes"))
    );
    assert!(
        now[1].reason.contains("no account"),
        "it still says why it is here"
    );

    let numbers = now.iter().map(|it| {
        let number = it.envelope.header(tidings::REDRIVE_HEADER);
        (it.redrives, it.edit_count, number)
    });
    assert_eq!(
        numbers.collect::<Vec<_>>(),
        [(0, 0, None), (0, 1, Some("1")), (0, 0, None)],
        "a consumer tries it over the letter as it was, and nobody has redriven it"
    );

    let record = DeadLetters::record(bank.transport.connect());
    let was = all(&record, &Selection::all().consumer(QUEUE)).await;
    assert_eq!(was.len(), 1);
    assert_eq!(was[0].recorded().expect("it says why").what, "edited");
    assert!(String::from_utf8_lossy(&was[0].envelope.body).contains("bad"));

    quickly(&letters, Selection::all().id(&id)).await;
    let expected = [("good".to_owned(), 1)];
    until("it is handled", async || {
        bank.database.effects().await == expected
    })
    .await;
    bank.service.stop().await;
}

#[tokio::test]
async fn what_was_done_to_a_letter_is_told_apart() {
    let bank = Bank::open(|router| router).await;
    bank.bury("bad", 0..2).await;
    let letters = bank.letters();
    let id = all(&letters, &Selection::all()).await[0].id.clone();
    let edit = async |edit: usize| {
        let body = format!(r#"{{"account":"bad","number":0{}}}"#, " ".repeat(edit));
        letters
            .edit(&id, body, &audit())
            .await
            .expect("it is edited");
    };
    for number in 1..=12 {
        edit(number).await;
    }
    let told = async || {
        let letter = letters.show(&id).await.expect("it is there");
        (letter.redrives, letter.edit_count, letter.edits().len())
    };
    assert_eq!(told().await, (0, 12, 10), "the list forgets two");
    let group = async || {
        let groups = letters.groups(&Selection::all()).await.expect("it reads");
        let group = &groups.groups[0];
        (group.count, group.edited, group.redriven)
    };
    assert_eq!(group().await, (2, 1, 0));

    let report = in_vain(&letters, Selection::all().id(&id)).await;
    assert_eq!((report.sent, report.came_back), (1, 1));
    assert_eq!(told().await, (1, 12, 10));
    edit(13).await;
    assert_eq!(told().await, (1, 13, 10));
    assert_eq!(group().await, (2, 1, 1));
    bank.service.stop().await;
}

#[tokio::test]
async fn what_is_discarded_is_recorded_and_lets_its_followers_go() {
    let bank = Bank::open(|it| it.ordered(2).after_dead_letter(AfterDeadLetter::Park)).await;
    bank.is_closed.store(true, Ordering::SeqCst);
    let batch = (0..5).map(|number| outgoing(&deposit("a", number)));
    publish(&bank.transport, batch.collect()).await;
    until("the others are parked behind the first", async || {
        bank.database.rows(InboxState::Parked).await == 4
            && bank.transport.dead_letters("bank.ordered").len() == 1
    })
    .await;
    bank.is_closed.store(false, Ordering::SeqCst);
    let known = consumers_in(&bank.database.store).await.expect("it reads");
    assert_eq!(known, ["bank.ordered"]);
    let letters = DeadLetters::new(bank.transport.connect(), "bank.ordered")
        .store(bank.database.store.clone());
    let mut told = Vec::new();
    let (selection, audit) = (Selection::all(), audit());
    let discarded = letters.discard(&selection, &audit, |it| told.push(it.id.clone()));
    let discarded = discarded.await.expect("it discards");
    assert_eq!((discarded.count, discarded.released, told.len()), (1, 1, 1));
    until("the others go on", async || {
        bank.database.effects().await.len() == 4
    })
    .await;
    assert_eq!(letters.count().await.expect("it counts"), 0);
    let record = DeadLetters::record(bank.transport.connect());
    let recorded = all(&record, &Selection::all()).await;
    assert_eq!(recorded[0].id, told[0]);
    let why = recorded[0].recorded().expect("it says why");
    assert_eq!((&*why.what, &*why.audit.by), ("discarded", "ann"));
    let refused = record.discard(&selection, &audit, |_| {}).await;
    assert_eq!(refused.expect_err("it stays").code(), Code::NoEdit);
    bank.service.stop().await;
}

#[tokio::test]
async fn a_redriven_letter_takes_its_turn_and_the_parked_ones_follow() {
    let bank = Bank::open(|it| it.ordered(2).after_dead_letter(AfterDeadLetter::Park)).await;
    bank.is_closed.store(true, Ordering::SeqCst);
    for (account, first) in [("a", 100), ("b", 200), ("c", 300)] {
        let batch = (first..first + 5).map(|number| outgoing(&deposit(account, number)));
        publish(&bank.transport, batch.collect()).await;
    }
    until("the others are parked behind the first", async || {
        bank.database.rows(InboxState::Parked).await == 12
            && bank.transport.dead_letters("bank.ordered").len() == 3
    })
    .await;
    bank.is_closed.store(false, Ordering::SeqCst);
    let letters = DeadLetters::new(bank.transport.connect(), "bank.ordered");
    assert_eq!(quickly(&letters, Selection::all()).await.sent, 3);
    until("all are handled", async || {
        bank.database.effects().await.len() == 15
    })
    .await;
    for (account, first) in [("a", 100), ("b", 200), ("c", 300)] {
        let effects = bank.database.effects().await;
        let numbers = effects.iter().filter(|(it, _)| it == account);
        let numbers: Vec<u64> = numbers.map(|(_, number)| *number).collect();
        assert!(numbers.into_iter().eq(first..first + 5), "{account}");
    }
    bank.service.stop().await;
}

#[tokio::test]
async fn a_redrive_stops_when_too_many_come_back_and_the_rest_stays() {
    let bank = Bank::open(|router| router).await;
    bank.is_closed.store(true, Ordering::SeqCst);
    bank.bury("a", 0..300).await;
    let letters = bank.letters();
    let redrive = letters
        .redrive(Selection::all())
        .batch(10)
        .ramp(Duration::ZERO);
    let redrive = redrive.rate(NonZeroU32::new(200).expect("not zero"));
    let report = redrive.run(|_| {}).await.expect("it runs");
    let stopped = report.stopped.as_ref().expect("it stops");
    assert!(stopped.came_back >= 10 && report.sent < 200, "{report:?}");
    assert_eq!(report.error().expect("an error").code(), Code::Stopped);
    until("all are dead letters again", async || {
        bank.transport.dead_letters(QUEUE).len() == 300
    })
    .await;
    // The job, run again, does not send again what came back.
    bank.is_closed.store(false, Ordering::SeqCst);
    let rest = letters
        .redrive(Selection::all())
        .job(&report.job)
        .unlimited();
    let rest = rest
        .settle(Duration::ZERO)
        .run(|_| {})
        .await
        .expect("it runs");
    assert_eq!(rest.sent + rest.came_back, 300);
    assert_eq!(rest.came_back, report.sent);
    let anew = quickly(&letters, Selection::all()).await;
    assert_eq!((anew.sent, anew.came_back), (report.sent, 0));
    until("each is handled once", async || {
        bank.database.effects().await.len() == 300
    })
    .await;
    bank.service.stop().await;
}

#[tokio::test]
async fn two_operators_wait_for_each_other_and_not_for_ever() {
    let (transport, letters) = desk().await;
    publish(&transport, vec![letter(&deposit("a", 0), QUEUE, "no", 0)]).await;
    let listing = letters.list(&Selection::all()).await.expect("it is held");
    let other = DeadLetters::new(transport.connect(), QUEUE).patience(Duration::from_millis(100));
    let busy = other
        .groups(&Selection::all())
        .await
        .expect_err("it is held");
    assert_eq!(busy.code(), Code::Busy);
    let patient = DeadLetters::new(transport.connect(), QUEUE);
    let selection = Selection::all();
    let (groups, ()) = tokio::join!(patient.groups(&selection), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(listing);
    });
    assert_eq!(groups.expect("it is free now").count, 1);
}

#[tokio::test]
async fn an_edit_that_dies_anywhere_is_made_once_in_the_end() {
    let mut deaths = 0;
    for steps in 1.. {
        let bank = Bank::open(|router| router).await;
        bank.bury("bad", 0..2).await;
        let again = bank.letters();
        let id = all(&again, &Selection::all()).await[0].id.clone();
        let body = r#"{"account":"good","number":0}"#;
        let dying = Dying::after(steps, &bank.transport);
        let letters = DeadLetters::new(dying.clone(), QUEUE);
        let edit = dying.run(letters.edit(&id, body, &audit())).await;
        deaths += u32::from(edit.is_none());
        // Where it died between the two, the letter as it was is there as well, and goes first.
        let there = all(&again, &Selection::all().id(&id)).await;
        if there.iter().all(|letter| letter.edits().is_empty()) {
            again.edit(&id, body, &audit()).await.expect("it is edited");
        }
        quickly(&again, Selection::all().id(&id)).await;
        let expected = [("good".to_owned(), 0)];
        until("it is handled as it is now", async || {
            bank.database.effects().await == expected
        })
        .await;
        bank.service.stop().await;
        if edit.is_some() {
            break;
        }
    }
    assert!(deaths > 5, "it died {deaths} times");
}
