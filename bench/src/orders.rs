//! Orders per second through the whole shop, with every promise on.
//!
//! Customers place orders over HTTP as fast as the shop takes them. The clock runs from the first
//! request to the last fact of the last order (paid, reserved, booked, written to, points given), as
//! the shop's own timeline has it. Afterwards every order is checked: one charge each, none lost.
//!
//! On PostgreSQL and RabbitMQ the floor has a turn of its own in each round ([`order_floor`]).

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tidings_testing::servers::{Postgres, RabbitMq};
use tokio::net::TcpStream;

use crate::{
    cost::{self, Cost, Log},
    machine::Machine,
    order_floor::{self, Awaits},
    peers::sibling,
    report::Report,
    servers::{AWS_CREDENTIALS, Asked},
};

/// The facts that a confirmed order ends with.
const LAST_FACTS: [&str; 3] = ["ShipmentBooked", "EmailSent", "PointsAwarded"];
/// How often a customer looks what became of the only order.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A product that orders knows even while inventory is away.
const ALWAYS_THERE: &str = "TEA-EARL-GREY";
const DRAIN_MAX: Duration = Duration::from_secs(300);
/// Turns of the bare statements take a fraction of the shop's, so they are so many times as many orders.
const FLOOR_TIMES: u64 = 5;
const FLOORS: [(&str, Awaits); 2] = [
    ("floor: order by order, raw client", Awaits::EachOrder),
    ("floor: 64 orders at once, raw client", Awaits::EachCommit),
];
const COMPLETED: &str = "orders completed /s";

/// Orders per second through the whole shop.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Orders per round.
    #[arg(long, default_value_t = 5000)]
    orders: usize,
    /// Customers at a time.
    #[arg(long, default_value_t = 32)]
    customers: usize,
    /// Rounds, each with a fresh shop.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only place orders, and do not wait for what becomes of them: how long do customers wait for
    /// their answer while the broker or every other service is away? For example
    /// `--answers-only -- --services orders --broker amqp://127.0.0.1:1/`.
    #[arg(long)]
    answers_only: bool,
    /// Each customer places an order when the last fact of the one before is known: how long does
    /// an order take while nothing else is to be done? With `--customers 1`.
    #[arg(long, conflicts_with = "answers_only")]
    one_by_one: bool,
    /// The shop's program; by default the one beside this program. Given more than once, they take
    /// turns, and are compared with the first: `--shop now=PATH --shop before=PATH`.
    #[arg(long, value_name = "[NAME=]PATH")]
    shop: Vec<String>,
    /// On PostgreSQL, with an empty database for each turn; a server is started from what is
    /// installed.
    #[arg(long)]
    postgres: bool,
    /// What to run on instead of the broker in the box; started anew for each turn.
    #[command(flatten)]
    engine: Asked,
    /// Where to write the figures as JSON.
    #[arg(long, default_value = "bench/orders.json")]
    json: PathBuf,
    /// Passed on to the shop, for example `-- --broker amqp://… --database postgres://…`.
    #[arg(last = true)]
    shop_args: Vec<String>,
}

impl Options {
    fn has_floor(&self) -> bool {
        self.postgres && self.engine.rabbitmq && !self.answers_only
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let settings = BTreeMap::from([
        ("orders per round", options.orders.to_string()),
        ("customers at a time", options.customers.to_string()),
        ("shop", options.shop_args.join(" ")),
        (
            "database",
            if options.postgres {
                "PostgreSQL"
            } else {
                "SQLite"
            }
            .to_owned(),
        ),
        ("broker", options.engine.name().to_owned()),
    ]);
    let mut report = Report::new(Machine::look()?, settings);
    // The rounds' folders stay until the end: a file system that has just deleted thousands of mails
    // is slow to make new ones.
    let mut folders = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut programs = Vec::new();
    for given in &options.shop {
        let (name, path) = given.split_once('=').unwrap_or((given, given));
        programs.push((name, sibling(Some(Path::new(path)), "shop")?));
    }
    if programs.is_empty() {
        programs.push(("shop", sibling(None, "shop")?));
    }
    let postgres = match options.postgres {
        true => Some(Postgres::start()?),
        false => None,
    };
    for round in 1..=options.rounds {
        for (turn, (name, program)) in programs.iter().enumerate() {
            let data = tempfile::tempdir_in(std::env::current_dir()?)?;
            let mut args = options.shop_args.clone();
            if let Some(postgres) = &postgres {
                let database = postgres.database(&format!("shop_{round}_{turn}"))?;
                args.extend(["--database".to_owned(), database]);
            }
            let server = options.engine.start()?;
            if let Some(server) = &server {
                args.extend(["--broker".to_owned(), server.url()]);
            }
            let shop = Shop::start(program, &args, options.answers_only, data.path())?;
            folders.push(data);
            let figures = runtime.block_on(place_and_wait(&shop, options, postgres.as_ref()))?;
            eprintln!("round {round}, {name}: {figures}");
            figures.add_to(&mut report, name, options.orders as f64);
        }
        if let Some(postgres) = postgres.as_ref().filter(|_| options.has_floor()) {
            for (name, awaits) in FLOORS {
                let database = postgres.database("floor")?;
                let rabbitmq = RabbitMq::start()?;
                let (url, orders) = (rabbitmq.url(), options.orders as u64 * FLOOR_TIMES);
                let rate = runtime.block_on(order_floor::run(&database, &url, orders, awaits))?;
                eprintln!("round {round}, {name}: {rate:.0} orders/s");
                report.add(COMPLETED, name, "D2", rate);
            }
        }
    }
    report.print();
    report.write(&options.json)
}

struct Figures {
    accepted_per_second: f64,
    /// Unless nobody was there to complete them.
    completed: Option<Completed>,
    p50: Duration,
    p99: Duration,
    /// On PostgreSQL.
    cost: Option<Cost>,
}

/// How the orders of a round ended.
struct Completed {
    per_second: f64,
    /// The shop's user and system time for each.
    cpu: Duration,
    /// From the request to the last fact.
    p50: Duration,
    p99: Duration,
}

/// An order that a customer has placed.
struct Placed {
    id: String,
    asked: SystemTime,
    answered_after: Duration,
}

/// The median and the 99th percentile.
fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} accepted/s, ", self.accepted_per_second)?;
        if let Some(completed) = &self.completed {
            write!(
                f,
                "{:.0} completed/s, CPU {:?} per order, last fact p50 {:?} p99 {:?}, ",
                completed.per_second, completed.cpu, completed.p50, completed.p99
            )?;
        }
        write!(f, "answer p50 {:?} p99 {:?}", self.p50, self.p99)
    }
}

impl Figures {
    fn add_to(&self, report: &mut Report, shop: &str, orders: f64) {
        let mut add = |job, figure| report.add(job, shop, "D2", figure);
        add("orders accepted /s", self.accepted_per_second);
        if let Some(completed) = &self.completed {
            add(COMPLETED, completed.per_second);
            add("CPU per order, us", completed.cpu.as_secs_f64() * 1e6);
            add("last fact p50, us", completed.p50.as_micros() as f64);
            add("last fact p99, us", completed.p99.as_micros() as f64);
        }
        add("answer p50, us", self.p50.as_micros() as f64);
        add("answer p99, us", self.p99.as_micros() as f64);
        if let Some(cost) = &self.cost {
            cost.add_to(report, shop, orders);
        }
    }
}

async fn place_and_wait(
    shop: &Shop,
    options: &Options,
    postgres: Option<&Postgres>,
) -> anyhow::Result<Figures> {
    let address = &*shop.address;
    let skus = match options.answers_only {
        true => vec![ALWAYS_THERE.to_owned()],
        false => skus_in_stock(address, options.orders as u64).await?,
    };
    let skus = Arc::new(skus);
    let log_before = postgres.map(Log::look).transpose()?;
    let others_before = postgres.map(cost::cpu).transpose()?;
    let begun = SystemTime::now();
    let clock = Instant::now();
    let cpu_before = shop.cpu()?;
    let next = Arc::new(AtomicUsize::new(0));
    let customers: Vec<_> = (0..options.customers)
        .map(|_| {
            let (address, next, count) = (address.to_owned(), Arc::clone(&next), options.orders);
            let skus = Arc::clone(&skus);
            let one_by_one = options.one_by_one;
            tokio::spawn(async move {
                let mut http = Http::connect(&address).await?;
                let mut placed = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return anyhow::Ok(placed);
                    }
                    let (asked, clock) = (SystemTime::now(), Instant::now());
                    let id = http.place_order(number, &skus[number % skus.len()]).await?;
                    let answered_after = clock.elapsed();
                    if one_by_one {
                        wait_until_complete(&mut http, &id, clock + DRAIN_MAX, LOOK_EVERY).await?;
                    }
                    placed.push(Placed {
                        id,
                        asked,
                        answered_after,
                    });
                }
            })
        })
        .collect();
    let mut orders = Vec::with_capacity(options.orders);
    for customer in customers {
        orders.extend(customer.await??);
    }
    let accepted = clock.elapsed();

    let count = orders.len() as f64;
    let mut cost = None;
    let completed = match options.answers_only {
        true => None,
        false => {
            let (ends, cpu, others) = completion(shop, &orders, postgres).await?;
            if let (Some(postgres), Some(before), Some(cpu_before), Some(cpu_after)) =
                (postgres, log_before, others_before, others)
            {
                tokio::time::sleep(cost::TOLD_AFTER).await;
                let figures = Http::connect(address).await?.text("/metrics").await?;
                cost = Some(Cost {
                    before,
                    after: Log::look(postgres)?,
                    cpu_before,
                    cpu_after,
                    messages: cost::sum(&figures, "tidings_outbox_sent_total", ""),
                    deliveries: cost::sum(&figures, "tidings_messages_total", "end=\"handled\""),
                });
            }
            let last = ends.iter().max().copied().unwrap_or(begun);
            let times = ends.iter().zip(orders.iter().rev());
            let times = times.map(|(end, order)| end.duration_since(order.asked));
            let (p50, p99) = percentiles(times.collect::<Result<_, _>>()?);
            Some(Completed {
                per_second: count / last.duration_since(begun)?.as_secs_f64(),
                cpu: cpu.saturating_sub(cpu_before) / u32::try_from(orders.len())?,
                p50,
                p99,
            })
        }
    };
    let (p50, p99) = percentiles(orders.iter().map(|order| order.answered_after).collect());
    Ok(Figures {
        accepted_per_second: count / accepted.as_secs_f64(),
        completed,
        p50,
        p99,
        cost,
    })
}

/// Waits for the last fact of every order and checks what the bank says; returns when that was, for
/// the last order first, and the CPU of the shop and of the others until the last order's.
async fn completion(
    shop: &Shop,
    orders: &[Placed],
    postgres: Option<&Postgres>,
) -> anyhow::Result<(Vec<SystemTime>, Duration, Option<(Duration, Duration)>)> {
    let mut http = Http::connect(&shop.address).await?;
    let deadline = Instant::now() + DRAIN_MAX;
    let mut ends = Vec::with_capacity(orders.len());
    // The last ones first, so that asking does not take the shop's time while it is at work.
    let (mut cpu, mut others) = (Duration::ZERO, None);
    for order in orders.iter().rev() {
        ends.push(wait_until_complete(&mut http, &order.id, deadline, LOOK_EVERY * 10).await?);
        if ends.len() == 1 {
            cpu = shop.cpu()?;
            others = postgres.map(cost::cpu).transpose()?;
        }
    }
    for Placed { id, .. } in orders {
        let ledger = http.get(&format!("/bank/ledger?orderId={id}")).await?;
        let charges = ledger.as_array().map_or(0, Vec::len);
        ensure!(
            charges == 1,
            "order {id} has {charges} entries in the bank's ledger, not 1"
        );
    }
    Ok((ends, cpu, others))
}

/// The products that every order of a round could take one of.
async fn skus_in_stock(address: &str, orders: u64) -> anyhow::Result<Vec<String>> {
    let products = Http::connect(address).await?.get("/products").await?;
    let skus: Vec<String> = products
        .as_array()
        .into_iter()
        .flatten()
        .filter(|product| product["available"].as_u64() >= Some(orders))
        .filter_map(|product| product["sku"].as_str().map(str::to_owned))
        .collect();
    ensure!(
        !skus.is_empty(),
        "no product has {orders} in stock: {products}"
    );
    Ok(skus)
}

/// Waits for the last fact of an order and returns when it was recorded.
async fn wait_until_complete(
    http: &mut Http,
    id: &str,
    deadline: Instant,
    pause: Duration,
) -> anyhow::Result<SystemTime> {
    loop {
        let order = http.get(&format!("/orders/{id}")).await?;
        let timeline = order["timeline"]
            .as_array()
            .context("an order without a timeline")?;
        let has = |fact| timeline.iter().any(|entry| entry["event"] == fact);
        ensure!(
            order["status"] != "CANCELLED",
            "order {id} was cancelled: {order}"
        );
        if LAST_FACTS.iter().all(|fact| has(*fact)) {
            let times = timeline.iter().filter_map(|entry| entry["at"].as_str());
            let last = times.max().context("a timeline without times")?;
            return Ok(last.parse::<jiff::Timestamp>()?.into());
        }
        if Instant::now() > deadline {
            bail!("order {id} did not end within {DRAIN_MAX:?}: {order}");
        }
        tokio::time::sleep(pause).await;
    }
}

/// One kept-alive connection.
struct Http(http1::SendRequest<Full<Bytes>>);

impl Http {
    async fn connect(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    async fn place_order(&mut self, number: usize, sku: &str) -> anyhow::Result<String> {
        let body = format!(
            r#"{{"customerId":"c-{}","email":"c{}@example.org","card":"tok_ok","items":[{{"sku":"{sku}","quantity":1}}]}}"#,
            number % 100,
            number % 100,
        );
        let (status, answer) = self.call(Method::POST, "/orders", body.into()).await?;
        ensure!(
            status == StatusCode::ACCEPTED,
            "POST /orders answered {status}: {answer}"
        );
        Ok(answer["orderId"]
            .as_str()
            .context("no orderId in the answer")?
            .to_owned())
    }

    async fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        let (status, answer) = self.call(Method::GET, path, Bytes::new()).await?;
        ensure!(
            status == StatusCode::OK,
            "GET {path} answered {status}: {answer}"
        );
        Ok(answer)
    }

    /// What is not JSON.
    async fn text(&mut self, path: &str) -> anyhow::Result<String> {
        let (status, answer) = self.bytes(Method::GET, path, Bytes::new()).await?;
        ensure!(status == StatusCode::OK, "GET {path} answered {status}");
        Ok(String::from_utf8(answer.into())?)
    }

    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let (status, answer) = self.bytes(method, path, body).await?;
        Ok((status, serde_json::from_slice(&answer)?))
    }

    async fn bytes(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "shop")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        self.0.ready().await?;
        let answer = self.0.send_request(request).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }
}

/// A shop of its own; ended with the round.
struct Shop {
    process: Child,
    address: String,
}

impl Shop {
    fn start(
        program: &Path,
        args: &[String],
        answers_only: bool,
        data: &Path,
    ) -> anyhow::Result<Self> {
        let mut process = Command::new(program)
            .args([
                "--listen",
                "127.0.0.1:0",
                "--amqp-listen",
                "127.0.0.1:0",
                "--data",
            ])
            .arg(data)
            .args(args)
            .envs(AWS_CREDENTIALS)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        let mut address = None;
        let stdout = process.stdout.take().context("no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        for line in &mut lines {
            let line = line?;
            if let Some(listening) = line.strip_prefix("listening http ") {
                address = Some(listening.to_owned());
                if answers_only {
                    break; // Ready it is only when the broker is there.
                }
            } else if line == "ready" {
                break;
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        let address = address.context("the shop ended before it was ready")?;
        Ok(Self { process, address })
    }

    /// User and system time that it has used.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // After the name, which may hold anything: fields 3 and on; 14 and 15 are the times.
        let (_, fields) = stat.rsplit_once(')').context("an odd `stat`")?;
        let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        let (user, system) = (
            times.next().context("no utime")??,
            times.next().context("no stime")??,
        );
        let ticks = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_millis((user + system) * 1000 / ticks))
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        // The round is over and its folder will go: nothing is left to shut down in order.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
