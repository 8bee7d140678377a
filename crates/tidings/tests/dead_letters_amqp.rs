//! Dead letters as an operation on real brokers: the broker in the box and RabbitMQ, while consumers
//! run, and when the process of the operator is killed.

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
    Database, MoneyDeposited, Running, deposit,
    letters::{all, letter, publish},
    outgoing, until, write,
};
use tidings::{
    AfterDeadLetter, Destination, Envelope, Error, InboxState, Outgoing, Queue, RECORD_QUEUE,
    Topology, Transport, Unrouted, dead_letter_queue,
    dead_letters::{Audit, DeadLetters, Event, Letter, Outcome, Selection},
    prelude::*,
};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Handle, Options};
use tidings_sqlite::Tx;
use tidings_testing::servers::{Process, RabbitMq, rabbitmq_url};

const URL: &str = "TIDINGS_TEST_OPERATOR_URL";
const CONSUMER: &str = "TIDINGS_TEST_OPERATOR_CONSUMER";
const JOB: &str = "TIDINGS_TEST_OPERATOR_JOB";

/// Longer than a slow machine needs.
const DEADLINE: Duration = Duration::from_secs(60);

type IsClosed = Arc<AtomicBool>;

async fn book(deposit: MoneyDeposited, State(closed): State<IsClosed>, mut tx: Tx) -> Result<()> {
    if closed.load(Ordering::SeqCst) {
        let number = deposit.number;
        return Err(Error::msg(format!("the bank is closed: deposit {number}")));
    }
    Ok(write(&mut tx, &deposit).await?)
}

/// A service of a name that no other test uses, on the broker at `url`.
struct Bank {
    url: String,
    amqp: Arc<Amqp>,
    consumer: &'static str,
    database: Database,
    is_closed: IsClosed,
    service: Running,
}

async fn connect(url: &str) -> Arc<Amqp> {
    let log = tracing_subscriber::fmt().with_test_writer();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = log.with_env_filter(filter).try_init();
    Arc::new(Amqp::connect(url).await.expect("it connects"))
}

impl Bank {
    async fn open(url: &str, change: impl FnOnce(Router) -> Router) -> Self {
        let name = format!("bank-{}", uuid());
        let consumer: &'static str = name.leak();
        let (amqp, database) = (connect(url).await, Database::new().await);
        let is_closed = Arc::new(AtomicBool::new(true));
        let router = Router::new(consumer)
            .on(book)
            .transactional(database.store.clone())
            .retry(Retry::none())
            .with_state(Arc::clone(&is_closed));
        let service = Running::start(&amqp, change(router)).await;
        Self {
            url: url.to_owned(),
            amqp,
            consumer,
            database,
            is_closed,
            service,
        }
    }

    fn queue(&self) -> String {
        format!("{}.money-deposited.v1", self.consumer)
    }

    /// Those of its queue, for an operator with a connection of its own.
    async fn letters(&self) -> DeadLetters {
        DeadLetters::new(connect(&self.url).await, &self.queue())
    }

    async fn send(&self, numbers: std::ops::Range<u64>) {
        let to_queue = numbers.map(|number| Outgoing {
            destination: Destination::Queue(self.queue().into()),
            ..outgoing(&deposit(number % 7, number))
        });
        publish(&self.amqp, to_queue.collect()).await;
    }

    async fn close(self) {
        self.service.stop().await;
        self.amqp.close().await;
    }
}

fn uuid() -> String {
    let now = std::time::SystemTime::now();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    format!("{}-{}", std::process::id(), now.as_nanos())
}

async fn count(letters: &DeadLetters) -> u64 {
    letters.count().await.expect("it counts")
}

fn same(one: &[Letter], other: &[Letter]) -> bool {
    let of = |it: &Letter| (it.envelope.clone(), it.history.clone(), it.reason.clone());
    one.iter().map(of).eq(other.iter().map(of))
}

async fn looking_changes_nothing_while_consumers_run(url: String) {
    let bank = Bank::open(&url, |router| router).await;
    bank.send(0..100).await;
    let (letters, other) = (bank.letters().await, bank.letters().await);
    until("all are dead letters", async || {
        count(&letters).await == 100
    })
    .await;
    let before = all(&letters, &Selection::all()).await;
    for look in 0..30 {
        let letters = [&letters, &other][look % 2];
        match look % 3 {
            0 => drop(letters.list(&Selection::all()).await.expect("it lists")),
            1 => drop(letters.groups(&Selection::all()).await.expect("it groups")),
            _ => drop(letters.show(&before[look].id).await.expect("it shows")),
        }
        let next = 100 + look as u64;
        bank.send(next..next + 1).await;
    }
    until("all are dead letters", async || {
        count(&letters).await == 130
    })
    .await;
    let after = all(&letters, &Selection::all()).await;
    assert!(
        same(&before, &after[..100]),
        "as they were, in their places"
    );
    let groups = letters.groups(&Selection::all()).await.expect("it groups");
    assert_eq!((groups.count, groups.groups.len()), (130, 1));
    let pattern = &*groups.groups[0].fingerprint.pattern;
    assert_eq!(pattern, "the bank is closed: deposit #");
    bank.close().await;
}

async fn an_operator_who_is_killed_loses_nothing_and_the_job_goes_on(url: String) {
    const COUNT: u64 = 600;
    let bank = Bank::open(&url, |router| router).await;
    bank.send(0..COUNT).await;
    let letters = bank.letters().await;
    until("all are dead letters", async || {
        count(&letters).await == COUNT
    })
    .await;
    bank.is_closed.store(false, Ordering::SeqCst);
    let job = format!("job-{}", uuid());
    let mut handled = 0;
    for _ in 0..3 {
        let mut operator = start_operator(&url, &bank.queue(), &job);
        let sent = |line: &str| line.contains("sent ");
        operator
            .wait_for_line(DEADLINE, sent)
            .expect("it sends some");
        tokio::time::sleep(Duration::from_millis(150)).await;
        operator.kill9();
        let now = bank.database.effects().await.len();
        assert!(now > handled, "some were sent before");
        handled = now;
    }
    assert!(handled < COUNT as usize, "killed in the middle: {handled}");
    // What the last one held comes back when the broker sees that it is gone.
    let redrive = letters.redrive(Selection::all()).job(&job).unlimited();
    let report = redrive.run(|_| {}).await.expect("it runs");
    assert_eq!((report.came_back, report.not_sent), (0, 0));
    until("all are handled", async || {
        bank.database.effects().await.len() as u64 >= COUNT
    })
    .await;
    assert_eq!(count(&letters).await, 0, "none is left");
    assert_handled_once(&bank, COUNT).await;
    bank.close().await;
}

/// A process that redrives: this program, started again for `operator_of_a_test` alone.
fn start_operator(url: &str, consumer: &str, job: &str) -> Process {
    let program = std::env::current_exe().expect("this program");
    let mut command = Process::command(program);
    command.args(["--exact", "operator_of_a_test", "--nocapture"]);
    command.env(URL, url).env(CONSUMER, consumer).env(JOB, job);
    Process::start(command).expect("it starts")
}

/// Not a test, but the process that another test kills. Does nothing unless that asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_of_a_test() {
    let asked = [URL, CONSUMER, JOB].map(std::env::var);
    let [Ok(url), Ok(consumer), Ok(job)] = asked else {
        return;
    };
    let letters = DeadLetters::new(connect(&url).await, &consumer);
    let redrive = letters.redrive(Selection::all()).job(&job).batch(5);
    let redrive = redrive.rate(NonZeroU32::new(300).expect("not zero"));
    let redrive = redrive.ramp(Duration::ZERO).run(|event| {
        if let Event::Letter {
            letter,
            outcome: Outcome::Sent,
        } = event
        {
            println!("sent {}", letter.id);
        }
    });
    println!("{:?}", redrive.await);
}

async fn what_cannot_be_read_is_mended_and_handled(url: String) {
    let bank = Bank::open(&url, |router| router).await;
    bank.is_closed.store(false, Ordering::SeqCst);
    let mut strange = Envelope::new("", r#"{"account": "a", "number": "seven"#);
    strange.content_type = "".into();
    let strange = Outgoing {
        destination: Destination::Queue(bank.queue().into()),
        unrouted: Unrouted::Hold,
        envelope: strange,
    };
    publish(&bank.amqp, vec![strange]).await;
    let letters = bank.letters().await;
    until("it is a dead letter", async || count(&letters).await == 1).await;
    let listed = all(&letters, &Selection::all()).await;
    let id = &*listed[0].id;
    assert!(id.starts_with("body:"), "{id}");
    assert_eq!(*listed[0].consumer, *bank.queue());
    assert!(listed[0].reason.contains("EOF"), "{}", listed[0].reason);
    let audit = Audit::now("ann", "cut off");
    let body = r#"{"account": "a", "number": 7}"#;
    letters.edit(id, body, &audit).await.expect("it is edited");
    let report = letters
        .redrive(Selection::all())
        .settle(Duration::ZERO)
        .run(|_| {});
    assert_eq!(report.await.expect("it runs").sent, 1);
    let expected = [("a".to_owned(), 7)];
    until("it is handled", async || {
        bank.database.effects().await == expected
    })
    .await;
    let record = DeadLetters::record(connect(&url).await);
    let was = all(&record, &Selection::all().consumer(&bank.queue())).await;
    assert_eq!(&*was[0].id, id, "as it was, in `{RECORD_QUEUE}`");
    bank.close().await;
}

async fn an_ordered_group_goes_on_in_order_after_a_redrive(url: String) {
    let park = |router: Router| router.ordered(3).after_dead_letter(AfterDeadLetter::Park);
    let bank = Bank::open(&url, park).await;
    let group = format!("{}.ordered", bank.consumer);
    let letters = DeadLetters::new(connect(&url).await, &group);
    let access = bank.amqp.dead_letter_access().expect("it has one");
    let deposits = (0..70).map(|number| outgoing(&deposit(number % 7, number)).envelope);
    for outcome in access.send_back(&group, deposits.collect()).await {
        outcome.expect("it is taken");
    }
    until(
        "the first of each key is dead, the others are parked",
        async || bank.database.rows(InboxState::Parked).await == 63 && count(&letters).await == 7,
    )
    .await;
    bank.is_closed.store(false, Ordering::SeqCst);
    let report = letters.redrive(Selection::all()).unlimited().run(|_| {});
    assert_eq!(report.await.expect("it runs").sent, 7);
    until("all are handled", async || {
        bank.database.effects().await.len() == 70
    })
    .await;
    for account in 0..7 {
        let effects = bank.database.effects().await;
        let of_account = effects.iter().filter(|(it, _)| *it == account.to_string());
        let numbers: Vec<u64> = of_account.map(|(_, number)| *number).collect();
        assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    }
    bank.close().await;
}

/// Many letters, of which the last is wanted: read once, never all in memory, and none is lost.
async fn a_long_queue_is_worked_off_in_time(url: String) {
    const COUNT: u64 = 20_000;
    let amqp = connect(&url).await;
    let queue = format!("bank-{}.money-deposited.v1", uuid());
    let topology = Topology::new().queue(Queue::new(queue.clone()));
    amqp.declare(&topology).await.expect("it declares");
    for start in (0..COUNT).step_by(2000) {
        let batch = (start..start + 2000).map(|number| {
            letter(
                &deposit(number % 7, number),
                &queue,
                &format!("no {number}"),
                0,
            )
        });
        publish(&amqp, batch.collect()).await;
    }
    let letters = DeadLetters::new(connect(&url).await, &queue);
    let began = std::time::Instant::now();
    let groups = letters.groups(&Selection::all()).await.expect("it groups");
    assert_eq!((groups.count, groups.groups.len()), (COUNT, 1));
    println!("{COUNT} letters grouped in {:?}", began.elapsed());
    let last = format!("money-deposited.v1/{}", COUNT - 1);
    let began = std::time::Instant::now();
    let redrive = letters.redrive(Selection::all().id(&last)).unlimited();
    let report = redrive
        .settle(Duration::ZERO)
        .run(|_| {})
        .await
        .expect("it runs");
    assert_eq!((report.sent, report.passed_over), (1, COUNT - 1));
    println!("the last of {COUNT} redriven in {:?}", began.elapsed());
    let began = std::time::Instant::now();
    let redrive = letters.redrive(Selection::all()).unlimited().batch(500);
    let report = redrive
        .settle(Duration::ZERO)
        .run(|_| {})
        .await
        .expect("it runs");
    assert_eq!(report.sent, COUNT - 1);
    println!("{} letters redriven in {:?}", COUNT - 1, began.elapsed());
    let access = amqp.dead_letter_access().expect("it has one");
    let there = access.count(&queue).await.expect("it counts");
    assert_eq!(there, COUNT);
    assert_eq!(
        access
            .count(&dead_letter_queue(&queue))
            .await
            .expect("it counts"),
        0
    );
    amqp.close().await;
}

/// Half of the letters are chosen. While they are redriven, the consumer works, and letters of others come.
async fn a_selection_is_redriven_while_the_consumer_works_and_others_come(url: String) {
    let bank = Bank::open(&url, |router| router).await;
    bank.send(0..200).await;
    let letters = bank.letters().await;
    until("all are dead letters", async || {
        count(&letters).await == 200
    })
    .await;
    let before = all(&letters, &Selection::all()).await;
    bank.is_closed.store(false, Ordering::SeqCst);
    let (mut chosen, mut others) = (Selection::all(), Vec::new());
    for letter in &before {
        let number = number_of(letter);
        match number % 2 {
            0 => chosen = chosen.id(&letter.id),
            _ => others.push(number),
        }
    }
    let rate = NonZeroU32::new(100).expect("not zero");
    let redrive = letters.redrive(chosen).rate(rate).ramp(Duration::ZERO);
    let redrive = redrive.batch(10).settle(Duration::ZERO).run(|_| {});
    let strangers = async {
        until("it has begun", async || {
            !bank.database.effects().await.is_empty()
        })
        .await;
        for number in 1000..1010 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut envelope =
                Envelope::new("money-deposited.v1", format!("\"stranger {number}\""));
            envelope.id = Some(format!("stranger/{number}").into());
            let stranger = Outgoing {
                destination: Destination::Queue(bank.queue().into()),
                unrouted: Unrouted::Hold,
                envelope,
            };
            publish(&bank.amqp, vec![stranger]).await;
        }
    };
    let (report, ()) = tokio::join!(redrive, strangers);
    let report = report.expect("it runs");
    assert_eq!(
        (report.sent, report.passed_over, report.came_back),
        (100, 100, 0)
    );
    until("the chosen ones are handled", async || {
        bank.database.effects().await.len() == 100
    })
    .await;
    until("the strangers are there", async || {
        count(&letters).await == 110
    })
    .await;
    let handled = bank.database.effects().await;
    assert!(handled.iter().all(|(_, number)| number % 2 == 0));
    let left = all(&letters, &Selection::all()).await;
    let (stayed, came) = left.split_at(100);
    let stayed: Vec<u64> = stayed.iter().map(number_of).collect();
    assert_eq!(stayed, others, "those that stay keep their places");
    assert!(came.iter().all(|it| it.id.starts_with("stranger/")));
    let cause = &*came[0].fingerprint.id;
    // Nobody can handle these: they come back, once for this job.
    let redrive = letters.redrive(Selection::all().fingerprint(cause));
    let redrive = redrive.job("strangers").never_stop().settle(DEADLINE);
    let report = redrive.run(|_| {}).await.expect("it runs");
    assert_eq!((report.sent, report.came_back), (10, 10));
    let redrive = letters.redrive(Selection::all().fingerprint(cause));
    let report = redrive.job("strangers").run(|_| {}).await.expect("it runs");
    assert_eq!((report.sent, report.came_back), (0, 10));
    assert_eq!(count(&letters).await, 110);
    bank.close().await;
}

fn number_of(letter: &Letter) -> u64 {
    let deposit: MoneyDeposited = serde_json::from_slice(&letter.envelope.body).expect("JSON");
    deposit.number
}

async fn two_operators_who_start_the_same_job_send_each_letter_once(url: String) {
    const COUNT: u64 = 500;
    let bank = Bank::open(&url, |router| router).await;
    bank.send(0..COUNT).await;
    let (ann, bob) = (bank.letters().await, bank.letters().await);
    until("all are dead letters", async || count(&ann).await == COUNT).await;
    bank.is_closed.store(false, Ordering::SeqCst);
    let job = format!("job-{}", uuid());
    let run = async |letters: &DeadLetters| {
        let redrive = letters.redrive(Selection::all()).job(&job).unlimited();
        let redrive = redrive.batch(50).settle(Duration::ZERO);
        redrive.run(|_| {}).await.expect("it runs").sent
    };
    let (one, other) = tokio::join!(run(&ann), run(&bob));
    assert_eq!(one + other, COUNT, "{one} and {other}");
    until("all are handled", async || {
        bank.database.effects().await.len() as u64 >= COUNT
    })
    .await;
    assert_handled_once(&bank, COUNT).await;
    assert_eq!(count(&ann).await, 0);
    bank.close().await;
}

async fn assert_handled_once(bank: &Bank, count: u64) {
    let effects = bank.database.effects().await;
    let mut numbers: Vec<u64> = effects.into_iter().map(|it| it.1).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..count), "each once");
}

/// A broker that is stopped and comes back at its old place, with what it had.
trait Restarts {
    fn url(&self) -> String;
    async fn restart(&mut self);
}

struct InTheBox {
    broker: Option<Handle>,
    data: tempfile::TempDir,
    address: std::net::SocketAddr,
}

impl InTheBox {
    async fn start() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let options = Options::durable(data.path()).listen(([127, 0, 0, 1], 0));
        let broker = Broker::start(options).await.expect("the broker starts");
        let address = broker.amqp_addr();
        Self {
            broker: Some(broker),
            data,
            address,
        }
    }
}

impl Restarts for InTheBox {
    fn url(&self) -> String {
        format!("amqp://guest:guest@{}", self.address)
    }

    async fn restart(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.shutdown().await.expect("it stops");
        }
        let options = Options::durable(self.data.path()).listen(self.address);
        let broker = Broker::start(options).await.expect("the broker starts");
        self.broker = Some(broker);
    }
}

impl Restarts for RabbitMq {
    fn url(&self) -> String {
        self.url()
    }

    async fn restart(&mut self) {
        self.kill9();
        RabbitMq::restart(self).expect("it starts again");
    }
}

/// The job waits for the broker and goes on by itself; each letter has its effect once.
async fn a_redrive_outlasts_a_restart_of_the_broker(mut server: impl Restarts) {
    const COUNT: u64 = 600;
    let bank = Bank::open(&server.url(), |router| router).await;
    bank.send(0..COUNT).await;
    let letters = bank.letters().await;
    until("all are dead letters", async || {
        count(&letters).await == COUNT
    })
    .await;
    bank.is_closed.store(false, Ordering::SeqCst);
    let rate = NonZeroU32::new(200).expect("not zero");
    let redrive = letters.redrive(Selection::all()).rate(rate);
    let redrive = redrive.ramp(Duration::ZERO).batch(20).run(|_| {});
    let restart = async {
        until("some are handled", async || {
            bank.database.effects().await.len() > 50
        })
        .await;
        server.restart().await;
        let handled = bank.database.effects().await.len() as u64;
        assert!(handled < COUNT, "in the middle: {handled}");
    };
    let (report, ()) = tokio::join!(redrive, restart);
    let report = report.expect("it goes on");
    assert_eq!(
        (report.came_back, report.not_sent, report.stopped),
        (0, 0, None)
    );
    until("all are handled", async || {
        bank.database.effects().await.len() as u64 >= COUNT
    })
    .await;
    assert_handled_once(&bank, COUNT).await;
    assert_eq!(count(&letters).await, 0, "none is left");
    bank.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_outlasts_a_restart_of_the_broker_in_the_box() {
    a_redrive_outlasts_a_restart_of_the_broker(InTheBox::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn a_redrive_outlasts_a_kill_of_rabbitmq() {
    let server = RabbitMq::start().expect("it starts");
    a_redrive_outlasts_a_restart_of_the_broker(server).await;
}

async fn on_the_broker_in_the_box<F: Future<Output = ()>>(test: impl FnOnce(String) -> F) {
    let data = tempfile::tempdir().expect("a folder");
    let options = Options::durable(data.path()).listen(([127, 0, 0, 1], 0));
    let broker: Handle = Broker::start(options).await.expect("the broker starts");
    test(broker.amqp_url()).await;
    broker.shutdown().await.expect("it stops");
}

macro_rules! on_both {
    ($($test:ident)*) => {
        mod embedded {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::on_the_broker_in_the_box(super::$test).await;
            }
        )*}
        mod rabbitmq {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
            async fn $test() {
                super::$test(super::rabbitmq_url()).await;
            }
        )*}
    };
}

on_both! {
    looking_changes_nothing_while_consumers_run
    an_operator_who_is_killed_loses_nothing_and_the_job_goes_on
    what_cannot_be_read_is_mended_and_handled
    an_ordered_group_goes_on_in_order_after_a_redrive
    a_long_queue_is_worked_off_in_time
    a_selection_is_redriven_while_the_consumer_works_and_others_come
    two_operators_who_start_the_same_job_send_each_letter_once
}
