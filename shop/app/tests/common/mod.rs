//! The shop as its tests see it: a program that is started, called over HTTP, stopped and killed.
//!
//! ```ignore
//! let data = tempfile::tempdir()?;
//! let shop = Shop::start(data.path(), &[]);          // everything, on free ports
//! let order = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
//! assert_eq!(shop.ended(&order).await["status"], "CONFIRMED");
//! ```

// Each test file is a crate of its own that uses its own part of this.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request},
};
use serde_json::{Value, json};
use shop_kit::HttpClient;
use tidings_testing::servers::Process;

/// How long anything may take that normally takes well under a second: tests share the machine.
pub const SOON: Duration = Duration::from_secs(60);

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Who leads an order: `--checkout`. Most of what is promised holds for both styles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Choreography,
    Orchestration,
}

impl Style {
    /// The flags of a process of a shop in this style.
    pub fn flags<'a>(self, more: &[&'a str]) -> Vec<&'a str> {
        let name = match self {
            Self::Choreography => "choreography",
            Self::Orchestration => "orchestration",
        };
        [&["--checkout", name], more].concat()
    }

    /// One of the two.
    pub fn pick<T>(self, choreography: T, orchestration: T) -> T {
        match self {
            Self::Choreography => choreography,
            Self::Orchestration => orchestration,
        }
    }
}

/// Makes functions that take a [`Style`] tests, one for each style.
#[macro_export]
macro_rules! in_both_styles {
    ($($test:ident)*) => {
        mod choreography {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test($crate::common::Style::Choreography).await;
            }
        )*}

        mod orchestration {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test($crate::common::Style::Orchestration).await;
            }
        )*}
    };
}

/// A running shop, or some of its services. Dropping it kills it.
pub struct Shop {
    pub process: Process,
    /// Where it answers HTTP.
    pub http: SocketAddr,
    /// Where its broker listens, if that runs here.
    pub amqp: Option<SocketAddr>,
    client: HttpClient,
}

/// An answer over HTTP.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    /// `null` if the body is not JSON.
    pub json: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

/// The command that starts a shop on free ports with its data in `data`.
pub fn command(data: &Path, arguments: &[&str]) -> Command {
    let mut command = Process::command(env!("CARGO_BIN_EXE_shop"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDINGS_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG");
    command.arg("--data").arg(data);
    for flag in ["--listen", "--amqp-listen"] {
        if !arguments.contains(&flag) {
            command.args([flag, "127.0.0.1:0"]);
        }
    }
    command.args(arguments);
    command
}

impl Shop {
    /// Starts a shop and waits until it is ready.
    pub fn start(data: &Path, arguments: &[&str]) -> Self {
        let mut shop = Self::launch(data, arguments);
        shop.process
            .wait_for_line(SOON, |line| line == "ready")
            .unwrap();
        shop
    }

    /// Starts a shop and waits until it answers HTTP; its broker may not be there yet.
    pub fn launch(data: &Path, arguments: &[&str]) -> Self {
        let mut process = Process::start(command(data, arguments)).unwrap();
        let mut listening = |what: &str| -> SocketAddr {
            let prefix = format!("listening {what} ");
            let line = process
                .wait_for_line(SOON, |line| line.starts_with(&prefix))
                .unwrap();
            line[prefix.len()..].parse().unwrap()
        };
        let http = listening("http");
        let elsewhere = arguments.iter().any(|argument| {
            ["amqp", "kafka", "aws"]
                .iter()
                .any(|it| argument.starts_with(it))
        });
        let amqp = (!elsewhere).then(|| listening("amqp"));
        Self {
            process,
            http,
            amqp,
            client: HttpClient::default(),
        }
    }

    /// Asks it to end, and checks that it ends well.
    pub fn stop(mut self) {
        let status = self.process.stop(SOON).unwrap();
        assert!(status.success(), "{status}: {:#?}", self.process.stderr());
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// For `--broker` of other processes.
    pub fn amqp_url(&self) -> String {
        format!(
            "amqp://guest:guest@{}/%2f",
            self.amqp.expect("its broker runs elsewhere")
        )
    }

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        call(&self.client, self.http, method, path, headers, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &[], Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.call(Method::POST, path, &json, body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.call(Method::PUT, path, &json, body.to_string()).await
    }

    /// Places an order of the customer `c-1`; the answer is its id.
    pub async fn order(&self, card: &str, items: &[(&str, u32)]) -> String {
        let answer = self.post("/orders", &order("c-1", card, items)).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        answer.json["orderId"].as_str().unwrap().to_owned()
    }

    /// The order, once it is confirmed or cancelled.
    pub async fn ended(&self, order_id: &str) -> Value {
        self.until(&format!("/orders/{order_id}"), |order| {
            order["status"] == "CONFIRMED" || order["status"] == "CANCELLED"
        })
        .await
    }

    /// The order, once all of this has happened to it.
    pub async fn happened(&self, order_id: &str, events: &[&str]) -> Value {
        self.until(&format!("/orders/{order_id}"), |order| {
            let happened = timeline(order);
            events.iter().all(|event| happened.contains(event))
        })
        .await
    }

    /// What stands at `path`, once it is as wanted.
    pub async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let last = std::cell::RefCell::new(String::new());
        let found = eventually(SOON, async || {
            let answer = self.get(path).await;
            let found = answer.status == 200 && wanted(&answer.json);
            *last.borrow_mut() = answer.text;
            found.then_some(answer.json)
        });
        found
            .await
            .unwrap_or_else(|| panic!("{path} is still {}", last.borrow()))
    }

    pub async fn stock(&self, sku: &str) -> [i64; 3] {
        let stock = self.get(&format!("/stock/{sku}")).await.json;
        ["available", "reserved", "shipped"].map(|part| stock[part].as_i64().unwrap())
    }

    /// What the bank did about an order, as `charge 12.90`.
    pub async fn ledger(&self, order_id: &str) -> Vec<String> {
        let entries = self
            .get(&format!("/bank/ledger?orderId={order_id}"))
            .await
            .json;
        let entries = entries.as_array().unwrap().iter();
        entries
            .map(|entry| {
                format!(
                    "{} {:.2}",
                    entry["kind"].as_str().unwrap(),
                    entry["amount"].as_f64().unwrap()
                )
            })
            .collect()
    }

    /// Waits until the customer has paid nothing for an order: it was not charged, or what was
    /// charged once was given back once. Asks this process for the bank's ledger.
    pub async fn pays_nothing(&self, order_id: &str) {
        let last = std::cell::RefCell::new(Vec::new());
        let nothing = eventually(SOON, async || {
            let ledger = self.ledger(order_id).await;
            let nothing = match ledger.as_slice() {
                [] => true,
                [charge, refund] => {
                    let charged = charge.strip_prefix("charge ");
                    charged.is_some() && charged == refund.strip_prefix("refund ")
                }
                _ => false,
            };
            *last.borrow_mut() = ledger;
            nothing.then_some(())
        });
        let nothing = nothing.await;
        assert!(nothing.is_some(), "the ledger of {order_id} is {last:?}");
    }

    pub async fn points(&self, customer_id: &str) -> i64 {
        self.get(&format!("/loyalty/{customer_id}")).await.json["points"]
            .as_i64()
            .unwrap()
    }
}

/// Calls whoever listens at an address.
pub async fn call(
    client: &HttpClient,
    http: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Answer {
    let uri = format!("http://{http}{path}");
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body.into()).unwrap();
    let answer = tokio::time::timeout(SOON, client.call(request, ANSWER_BYTES_MAX));
    let (parts, body) = answer.await.expect(path).expect(path).into_parts();
    let text = String::from_utf8(body.to_vec()).unwrap();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        json: serde_json::from_str(&text).unwrap_or_default(),
        text,
    }
}

/// What `POST /orders` takes.
pub fn order(customer_id: &str, card: &str, items: &[(&str, u32)]) -> Value {
    let items: Vec<_> = items
        .iter()
        .map(|(sku, quantity)| json!({"sku": sku, "quantity": quantity}))
        .collect();
    json!({
        "customerId": customer_id, "email": "ada@example.org", "card": card, "items": items,
    })
}

/// What happened to an order, in order.
pub fn timeline(order: &Value) -> Vec<&str> {
    let timeline = order["timeline"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    timeline
        .iter()
        .filter_map(|entry| entry["event"].as_str())
        .collect()
}

/// Asks until there is an answer, or the deadline has passed.
pub async fn eventually<T>(
    deadline: Duration,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let end = std::time::Instant::now() + deadline;
    loop {
        if let Some(answer) = ask().await {
            return Some(answer);
        }
        if std::time::Instant::now() > end {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
