//! Every call over HTTP ends in time, whoever is slow or away, and says truly what was done.

mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::Method;
use common::{Answer, SOON, Shop, command, eventually, order};
use shop_kit::HttpClient;
use tidings_testing::servers::{Postgres, Process, free_port};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
};

/// What a call is given by its services: 6 s, and some for a machine that is busy.
const CALL_MAX: Duration = Duration::from_secs(9);

/// A slow client is given 15 s for the head and 15 s for the body.
const SLOW_CLIENT_MAX: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_comes_to_an_end_is_let_go() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let head = "POST /orders HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n";
    let cases = [
        ("", ""),
        (head, ""),
        (
            "POST /orders HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n\
          content-length: 500\r\n\r\n{\"customerId\"",
            "HTTP/1.1 400",
        ),
    ];
    let http = shop.http;
    let clients = cases.map(|(sent, expected)| {
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect(http).unwrap();
            stream.set_read_timeout(Some(SLOW_CLIENT_MAX)).unwrap();
            stream.write_all(sent.as_bytes()).unwrap();
            let mut answer = String::new();
            let ended = stream.read_to_string(&mut answer);
            assert!(
                ended.is_ok(),
                "still open after {SLOW_CLIENT_MAX:?}: `{sent}`"
            );
            assert!(answer.starts_with(expected), "`{sent}`: `{answer}`");
        })
    });
    for client in clients {
        tokio::task::spawn_blocking(move || client.join().unwrap())
            .await
            .unwrap();
    }
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_database_that_is_away_is_said_in_time() {
    let mut postgres = Postgres::start().unwrap();
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &["--database", &postgres.url()]);
    let id = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    shop.ended(&id).await;
    postgres.kill9();
    let placed = timed(place(&shop, Some("k-1"))).await;
    assert_eq!(
        placed.json["type"], "/problems/unavailable",
        "{}",
        placed.text
    );
    assert!(
        placed.text.contains("nothing was stored"),
        "{}",
        placed.text
    );
    for path in [
        &format!("/orders/{id}"),
        "/orders?customerId=c-1",
        "/orders?status=stuck",
        &format!("/orders/{id}/events"),
        &format!("/payments/{id}"),
        "/products",
        "/loyalty/c-1",
    ] {
        let answer = timed(shop.get(path)).await;
        assert_eq!(
            answer.header("content-type"),
            "application/problem+json",
            "{path}"
        );
    }
    let ready = timed_as(503, shop.get("/health/ready")).await;
    assert_eq!(ready.json["checks"]["database of orders"], "down");
    assert_eq!(shop.get("/health/live").await.status, 200);

    postgres.restart().unwrap();
    let taken = eventually(SOON, async || {
        (place(&shop, Some("k-1")).await.status == 202).then_some(())
    });
    assert!(taken.await.is_some());
    shop.until("/health/ready", |health| health["status"] == "up")
        .await;
    let orders = shop.get("/orders?customerId=c-1").await.json;
    assert_eq!(orders.as_array().unwrap().len(), 2, "{orders}");
    shop.stop();
}

/// The worst moment: the database has committed, and its answer is lost.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn an_order_whose_commit_was_not_confirmed_is_not_told_as_not_stored() {
    let postgres = Postgres::start().unwrap();
    let between = Between::start(postgres.port()).await;
    let url = postgres.url().replace(
        &format!(":{}", postgres.port()),
        &format!(":{}", between.port),
    );
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &["--database", &url, "--services", "orders"]);

    between.swallow(true);
    // A connection on which somebody else's commit was lost cannot even begin: then nothing was
    // stored, and another one is tried.
    let unconfirmed = async |key| {
        for _ in 0..5 {
            let answer = timed(place(&shop, key)).await;
            if answer.json["type"] != "/problems/unavailable" {
                return answer;
            }
        }
        panic!("no commit was lost in five tries");
    };
    let with_key = unconfirmed(Some("k-1")).await;
    let without_key = unconfirmed(None).await;
    between.swallow(false);
    for (answer, what_to_do) in [
        (&with_key, "with the same `Idempotency-Key` is safe"),
        (&without_key, "look at `GET /orders?customerId=`"),
    ] {
        assert_eq!(
            answer.json["type"], "/problems/outcome-unknown",
            "{}",
            answer.text
        );
        let detail = answer.json["detail"].as_str().unwrap();
        assert!(detail.contains("may have been stored"), "{detail}");
        assert!(detail.contains(what_to_do), "{detail}");
    }
    let again = eventually(SOON, async || {
        let again = place(&shop, Some("k-1")).await;
        (again.status == 202).then_some(again)
    });
    let again = again.await.unwrap().json;
    let orders = shop.get("/orders?customerId=c-1").await.json;
    // Both were stored, and the one with the key once.
    let orders = orders.as_array().unwrap();
    assert_eq!(orders.len(), 2, "{orders:?}");
    assert!(
        orders
            .iter()
            .any(|order| order["orderId"] == again["orderId"])
    );
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_whose_databases_are_not_there_yet_says_that_it_is_not_ready() {
    let data = tempfile::tempdir().unwrap();
    let [http, nobody] = [free_port().unwrap(), free_port().unwrap()];
    let listen = format!("127.0.0.1:{http}");
    let database = format!("postgres://postgres@127.0.0.1:{nobody}/shop");
    let flags = [
        "--listen",
        &listen,
        "--database",
        &database,
        "--services",
        "orders",
    ];
    let mut process = Process::start(command(data.path(), &flags)).unwrap();
    let shop: SocketAddr = listen.parse().unwrap();
    let up = eventually(SOON, async || {
        tokio::net::TcpStream::connect(&listen).await.ok()
    });
    assert!(up.await.is_some(), "{:#?}", process.stderr());
    let client = HttpClient::default();
    let get = async |path| common::call(&client, shop, Method::GET, path, &[], "").await;
    let ready = get("/health/ready").await;
    assert_eq!((ready.status, &ready.json["status"]), (503, &"down".into()));
    assert_eq!(get("/health/live").await.status, 200);
    let products = timed(get("/products")).await;
    assert_eq!(products.json["type"], "/problems/unavailable");
    assert!(process.stop(SOON).unwrap().success());
}

async fn place(shop: &Shop, key: Option<&str>) -> Answer {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    let order = order("c-1", "tok_ok", &[("MUG-ENAMEL", 1)]);
    shop.call(Method::POST, "/orders", &headers, order.to_string())
        .await
}

/// An answer that says when to try again, in time.
async fn timed(call: impl Future<Output = Answer>) -> Answer {
    let answer = timed_as(503, call).await;
    assert_eq!(answer.header("retry-after"), "2", "{}", answer.text);
    answer
}

async fn timed_as(status: u16, call: impl Future<Output = Answer>) -> Answer {
    let start = Instant::now();
    let answer = call.await;
    assert_eq!(answer.status, status, "{}", answer.text);
    assert!(
        start.elapsed() < CALL_MAX,
        "{:?}: {}",
        start.elapsed(),
        answer.text
    );
    answer
}

/// A way to a database server that can swallow the answers to commits.
struct Between {
    port: u16,
    swallows: Arc<AtomicBool>,
}

impl Between {
    async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let swallows = Arc::new(AtomicBool::new(false));
        let armed = Arc::clone(&swallows);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(("127.0.0.1", server));
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.await.unwrap().into_split();
                let lost = Arc::new(AtomicBool::new(false));
                let commits = Watch {
                    armed: Arc::clone(&armed),
                    lost: Arc::clone(&lost),
                };
                tokio::spawn(pass(from_client, to_server, Some(commits), None));
                tokio::spawn(pass(from_server, to_client, None, Some(lost)));
            }
        });
        Self { port, swallows }
    }

    fn swallow(&self, swallow: bool) {
        self.swallows.store(swallow, Ordering::SeqCst);
    }
}

struct Watch {
    armed: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
}

/// The word `commit`; not `committed`, which every new connection says.
fn commits(bytes: &[u8]) -> bool {
    let (word, next) = bytes.split_at(6);
    word.eq_ignore_ascii_case(b"commit") && !next.eq_ignore_ascii_case(b"t")
}

/// Passes bytes on. When those of a client commit and that is armed, its answers are lost.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    watch: Option<Watch>,
    lost: Option<Arc<AtomicBool>>,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let bytes = &bytes[..count];
        if let Some(watch) = &watch
            && watch.armed.load(Ordering::SeqCst)
            && bytes.windows(7).any(commits)
        {
            watch.lost.store(true, Ordering::SeqCst);
        }
        if lost
            .as_ref()
            .is_some_and(|lost| lost.load(Ordering::SeqCst))
        {
            continue;
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
