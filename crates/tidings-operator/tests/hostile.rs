//! What strangers send to an endpoint: it refuses them, stays up, and serves whoever may.

use std::{net::SocketAddr, time::Duration};

use tidings_core::{
    Commit, Expected, RecordChange, RecordId, RecordValue, Records as _, Store as _,
};
use tidings_memory::{MemoryStore, MemoryTransport};
use tidings_operator::{Access, CONNECTIONS_MAX, Operator, REQUEST_BYTES_MAX, Remote, Token};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, timeout},
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const SOON: Duration = Duration::from_secs(20);
const SERVICES: &str = r#"{"ask":"services"}"#;

struct Serving {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Serving {
    async fn start(with: impl FnOnce(Operator) -> Operator) -> Self {
        let store = MemoryStore::new();
        let operator = with(Operator::new(MemoryTransport::new())).service("payment", store);
        let endpoint = operator.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        Self {
            address: endpoint.address(),
            stop,
            task: tokio::spawn(endpoint.serve(async move { stopped.await.unwrap_or_default() })),
        }
    }

    fn remote(&self, token: Option<&str>) -> Remote {
        let token = token.map(|token| Token::new(token).unwrap());
        Remote::new(&format!("http://{}", self.address), token.as_ref()).unwrap()
    }

    /// Whoever may is still served, and soon.
    async fn serves(&self, token: Option<&str>) {
        let remote = self.remote(token);
        let services = timeout(SOON, remote.services()).await.expect("it answers");
        assert_eq!(services.unwrap(), ["payment"]);
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(SOON, self.task).await.expect("it stops").unwrap();
    }

    /// Sends bytes as they are, and reads until the other end closes.
    async fn say(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The other end may close before it has read everything.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let read = timeout(SOON, stream.read_to_end(&mut answer)).await;
        let _ = read.expect("it closes the connection");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A request as the client sends it, with some lines changed or added, gets this status.
    async fn check(&self, replace: &[(&str, &str)], add: &str, status: u16) {
        let mut head = format!(
            "POST /v1/look HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             tidings-operator: 1\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {}\r\n",
            self.address,
            SERVICES.len()
        );
        for (from, to) in replace {
            assert!(head.contains(from), "{from} is not in {head}");
            head = head.replace(from, to);
        }
        let answer = self
            .say(format!("{head}{add}\r\n{SERVICES}").as_bytes())
            .await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{replace:?} {add}: {answer}");
        assert!(!answer.contains(TOKEN), "{answer}");
        let is_served = answer.contains("payment");
        assert_eq!(is_served, status == 200, "{replace:?} {add}: {answer}");
        assert!(
            !answer.to_lowercase().contains("access-control"),
            "{answer}"
        );
    }
}

fn with_token(operator: Operator) -> Operator {
    operator.token(Token::new(TOKEN).unwrap())
}

#[tokio::test]
async fn a_wrong_token_is_refused() {
    let endpoint = Serving::start(with_token).await;
    endpoint.check(&[], "", 200).await;
    let said = format!("Bearer {TOKEN}");
    for wrong in [
        String::new(),
        "Bearer ".to_owned(),
        format!("Bearer {}", &TOKEN[1..]),
        format!("Bearer {TOKEN}0"),
        format!("Bearer {}", TOKEN.to_uppercase()),
        format!("Basic {TOKEN}"),
        TOKEN.to_owned(),
    ] {
        endpoint.check(&[(&said, &wrong)], "", 401).await;
    }
    let line = format!("authorization: Bearer {TOKEN}\r\n");
    endpoint.check(&[(&line, "")], "", 401).await;
    let refused = endpoint.remote(None).services().await.unwrap_err();
    assert!(
        refused.is_refused() && refused.to_string().contains("TDG-8005"),
        "{refused}"
    );
    endpoint.serves(Some(TOKEN)).await;
    endpoint.stop().await;
}

#[tokio::test]
async fn a_name_that_a_stranger_has_point_to_loopback_is_refused() {
    let endpoint = Serving::start(|operator| operator).await;
    let own = endpoint.address.to_string();
    let port = endpoint.address.port();
    for host in [
        format!("localhost:{port}"),
        format!("127.0.0.2:{port}"),
        format!("[::1]:{port}"),
    ] {
        endpoint.check(&[(&own, &host)], "", 200).await;
    }
    for host in [
        format!("evil.example:{port}"),
        "localhost.evil.example".to_owned(),
        String::new(),
    ] {
        endpoint.check(&[(&own, &host)], "", 403).await;
    }
    endpoint.check(&[], "host: localhost\r\n", 403).await;
    endpoint.serves(None).await;
    endpoint.stop().await;
}

#[tokio::test]
async fn a_web_page_is_refused() {
    let endpoint = Serving::start(|operator| operator).await;
    // What a page can send without being asked, and what it says of itself.
    endpoint
        .check(&[], "origin: http://evil.example\r\n", 403)
        .await;
    endpoint.check(&[], "origin: null\r\n", 403).await;
    endpoint
        .check(&[], "sec-fetch-site: cross-site\r\n", 403)
        .await;
    endpoint
        .check(&[("tidings-operator: 1\r\n", "")], "", 403)
        .await;
    endpoint
        .check(&[("application/json", "text/plain")], "", 415)
        .await;
    endpoint
        .check(
            &[("application/json", "application/x-www-form-urlencoded")],
            "",
            415,
        )
        .await;
    endpoint.check(&[("POST", "GET")], "", 405).await;
    // A preflight gets no leave.
    endpoint
        .check(
            &[("POST", "OPTIONS")],
            "access-control-request-method: POST\r\n",
            405,
        )
        .await;
    endpoint.check(&[("/v1/look", "/")], "", 404).await;
    endpoint.serves(None).await;
    endpoint.stop().await;
}

#[tokio::test]
async fn a_huge_body_is_refused_before_and_while_it_comes() {
    let endpoint = Serving::start(with_token).await;
    let length = format!("content-length: {}", SERVICES.len());
    let huge = format!("content-length: {}", REQUEST_BYTES_MAX + 1);
    endpoint.check(&[(&length, &huge)], "", 413).await;
    for (length_said, status) in [("99999999999999", 413), ("18446744073709551615", 431)] {
        let said = format!("content-length: {length_said}");
        endpoint.check(&[(&length, &said)], "", status).await;
    }
    // Without a length; it is cut off on its way.
    let head = format!(
        "POST /v1/look HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         tidings-operator: 1\r\nauthorization: Bearer {TOKEN}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let mut stream = TcpStream::connect(endpoint.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    let mut sent = 0;
    while sent < 4 * REQUEST_BYTES_MAX && stream.write_all(chunk.as_bytes()).await.is_ok() {
        sent += 1 << 20;
    }
    assert!(sent < 4 * REQUEST_BYTES_MAX, "it takes everything");
    endpoint.serves(Some(TOKEN)).await;
    endpoint.stop().await;
}

#[tokio::test]
async fn garbage_is_refused() {
    let endpoint = Serving::start(|operator| operator).await;
    endpoint.say(b"\x00\x01\x02 AMQP\r\n\r\n").await;
    endpoint.say(&b"A".repeat(1 << 20)).await;
    let headers = "x: y\r\n".repeat(10_000);
    endpoint
        .say(format!("POST /v1/look HTTP/1.1\r\n{headers}\r\n").as_bytes())
        .await;
    let length = format!("content-length: {}", SERVICES.len());
    endpoint
        .check(&[(&length, "content-length: 3")], "", 400)
        .await;
    let deep = "[".repeat(100_000);
    for body in [&*deep, "null", "{}", r#"{"ask":"dropEverything"}"#, "\u{0}"] {
        let request = format!(
            "POST /v1/look HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             tidings-operator: 1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = endpoint.say(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    endpoint.serves(None).await;
    endpoint.stop().await;
}

#[tokio::test]
async fn a_change_is_refused_where_one_looks() {
    let endpoint = Serving::start(|operator| operator).await;
    let body =
        r#"{"ask":"store","service":"payment","what":{"ask":"outboxDiscard","positions":[1]}}"#;
    let request = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             tidings-operator: 1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let answer = endpoint.say(request("/v1/look").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let answer = endpoint.say(request("/v1/change").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    endpoint.stop().await;
}

#[tokio::test]
async fn slow_connections_do_not_keep_others_out() {
    let endpoint = Serving::start(|operator| operator).await;
    // More than there is room for; each sends a byte of its head now and then.
    let mut slow = Vec::new();
    for _ in 0..CONNECTIONS_MAX + 8 {
        let mut stream = TcpStream::connect(endpoint.address).await.unwrap();
        slow.push(tokio::spawn(async move {
            for byte in b"POST /v1/look HTTP/1.1\r\nhost: localhost\r\nx: "
                .iter()
                .chain(&[b'y'; 100])
            {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            unreachable!("a head may take a minute");
        }));
    }
    let since = Instant::now();
    endpoint.serves(None).await;
    assert!(since.elapsed() < SOON);
    for task in slow {
        // Its head came too slowly, so that its connection was closed.
        timeout(SOON, task).await.expect("it is closed").unwrap();
    }
    endpoint.stop().await;
}

#[tokio::test]
async fn it_stops_although_connections_are_open() {
    let endpoint = Serving::start(|operator| operator).await;
    let idle = TcpStream::connect(endpoint.address).await.unwrap();
    endpoint.serves(None).await;
    let address = endpoint.address;
    let since = Instant::now();
    endpoint.stop().await;
    assert!(
        since.elapsed() < Duration::from_secs(4),
        "{:?}",
        since.elapsed()
    );
    drop(idle);
    TcpStream::connect(address)
        .await
        .expect_err("nobody listens");
}

#[tokio::test]
async fn an_address_for_the_network_needs_a_token() {
    let everywhere: SocketAddr = ([0, 0, 0, 0], 0).into();
    let open = Operator::new(MemoryTransport::new())
        .listen(everywhere)
        .await
        .unwrap_err();
    let says = open.to_string();
    assert!(
        says.contains("TDG-8001") && says.contains("token") && says.contains("127.0.0.1"),
        "{says}"
    );
    let guarded = with_token(Operator::new(MemoryTransport::new()));
    let shown = format!("{guarded:?}");
    assert!(!shown.contains(TOKEN), "{shown}");
    let endpoint = guarded.listen(everywhere).await.unwrap();
    assert_ne!(endpoint.address().port(), 0);
    let taken = with_token(Operator::new(MemoryTransport::new()));
    let taken = taken.listen(endpoint.address()).await.unwrap_err();
    assert!(taken.to_string().contains("TDG-8003"), "{taken}");
}

#[tokio::test]
async fn records_that_are_the_services_own_are_not_written() {
    let endpoint = Serving::start(|operator| operator).await;
    let write = async |kind: &str, access| {
        let store = endpoint.remote(None).store("payment", access);
        let commit = Commit {
            records: vec![RecordChange {
                id: RecordId::new(kind, "x"),
                expected: Expected::Anything,
                value: Some(RecordValue::default()),
            }],
            ..Commit::default()
        };
        let written = store.commit(commit).await.is_ok();
        let there = store.read(&[RecordId::new(kind, "x")]).await.unwrap()[0].is_some();
        assert_eq!(written, there, "{kind}");
        written
    };
    assert!(!write("tidings.pause", Access::Look).await);
    assert!(write("tidings.pause", Access::Change).await);
    assert!(write("saga-operation:checkout", Access::Change).await);
    for own in [
        "saga:checkout",
        "tidings.step",
        "tidings.group",
        "tidings.replay",
        "",
    ] {
        assert!(!write(own, Access::Change).await, "{own}");
    }
    endpoint.stop().await;
}
