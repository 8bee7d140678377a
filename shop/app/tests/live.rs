//! An order is watched while the shop is killed, answers with errors for a while, and comes back.

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use common::{SOON, Shop, eventually};
use serde_json::json;
use tidings_testing::{
    foreign::workspace,
    servers::{Process, free_port},
};

/// More lines than a stream has until its order is confirmed; it says something every 15 s.
const LINES_MAX: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_cut_has_not_said_that_it_ended() {
    let data = tempfile::tempdir().unwrap();
    let mut shop = Shop::start(data.path(), &[]);
    shop.put("/bank/behaviour", &json!({"mode": "down"})).await;
    let id = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    let mut first = watch(&shop, &id);
    let told = |line: &String| line == "event: order";
    assert!(first.any(|line| told(&line)));
    shop.process.kill9();
    let rest: Vec<_> = first.collect();
    assert!(
        !rest.iter().any(|line| line.contains("event: end")),
        "{rest:?}"
    );

    let shop = Shop::start(data.path(), &[]);
    let mut again = watch(&shop, &id);
    let mut heard = Vec::new();
    heard.extend(again.by_ref().take_while(|line| !told(line)));
    shop.put("/bank/behaviour", &json!({"mode": "ok"})).await;
    let confirmed = |line: &String| line.contains("\"status\":\"CONFIRMED\"");
    heard.extend(again.take_while(|line| !confirmed(line)).take(LINES_MAX));
    assert!(heard.len() < LINES_MAX, "it was not confirmed: {heard:?}");
    assert!(heard.contains(&"retry: 2000".to_owned()), "{heard:?}");
    assert!(
        !heard.iter().any(|line| line.contains("event: end")),
        "{heard:?}"
    );
    assert_eq!(shop.ended(&id).await["status"], "CONFIRMED");
    shop.stop();
}

/// The lines of a stream until it ends, or breaks.
fn watch(shop: &Shop, order_id: &str) -> impl Iterator<Item = String> + use<> {
    let mut stream = TcpStream::connect(shop.http).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let request = format!("GET /orders/{order_id}/events HTTP/1.1\r\nhost: shop\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    BufReader::new(stream).lines().map_while(Result::ok)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node"]
async fn the_page_comes_back_to_its_order_after_every_kind_of_trouble() {
    let data = tempfile::tempdir().unwrap();
    let listen = format!("127.0.0.1:{}", free_port().unwrap());
    let flags = ["--listen", &listen];
    let mut shop = Shop::start(data.path(), &flags);
    shop.put("/bank/behaviour", &json!({"mode": "down"})).await;
    let id = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    shop.happened(&id, &["StockReserved"]).await;

    let folder = workspace().join("shop");
    let mut page = Process::command("node");
    page.arg(folder.join("app/tests/watch.mjs"));
    page.arg(folder.join("storefront/page/live.js"))
        .args([&shop.url(), &id]);
    let mut page = Process::start(page).unwrap();
    let mut says = |text: &str| {
        let line = page.wait_for_line(SOON, |line| line.starts_with(text));
        line.unwrap_or_else(|error| panic!("{error}: {:?} {:?}", page.stdout(), page.stderr()));
    };
    says("state live");
    says("order CREATED");

    // Nobody is there; then somebody who answers with errors, which is where browsers give up.
    shop.process.kill9();
    says("state lost");
    let refusing = Refusing::start(&listen);
    let refused = eventually(SOON, async || {
        let events = format!("GET /orders/{id}/events ");
        refusing.was_asked(&events).then_some(())
    });
    assert!(
        refused.await.is_some(),
        "the page did not ask for the stream"
    );
    refusing.stop();

    let shop = Shop::start(data.path(), &flags);
    says("state live");
    shop.put("/bank/behaviour", &json!({"mode": "ok"})).await;
    says("order CONFIRMED");
    says("state ended");
    shop.stop();
}

/// Somebody who answers every call with 503.
struct Refusing {
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    address: String,
    thread: std::thread::JoinHandle<()>,
}

impl Refusing {
    fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (lines, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.unwrap();
                let mut head = BufReader::new(&stream).lines().map_while(Result::ok);
                let Some(first) = head.next() else { continue };
                head.take_while(|line| !line.is_empty()).for_each(drop);
                let answer = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
                              content-length: 0\r\n\r\n";
                if stream.write_all(answer.as_bytes()).is_ok() {
                    lines.lock().unwrap().push(first);
                }
            }
        });
        Self {
            asked,
            stop,
            address: address.to_owned(),
            thread,
        }
    }

    fn was_asked(&self, start: &str) -> bool {
        let asked = self.asked.lock().unwrap();
        asked.iter().any(|line| line.starts_with(start))
    }

    fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        self.thread.join().unwrap();
    }
}
