//! The operator endpoint of a running shop: off unless asked for, and never open to the network by mistake.

mod common;

use std::net::{SocketAddr, TcpListener, TcpStream};

use common::{SOON, Shop, command};
use tidings::{Deferred as _, Outbox as _, Transport as _};
use tidings_operator::{Access, Remote, Token};
use tidings_testing::servers::Process;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn endpoint_of(shop: &Shop) -> Option<SocketAddr> {
    let lines = shop.process.stdout();
    let mut addresses = lines
        .iter()
        .filter_map(|line| line.strip_prefix("listening operator "));
    addresses.next().map(|address| address.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_shop_is_operated_through_its_endpoint_and_stops_with_it() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let listen = ["--operator-listen", "127.0.0.1:0"];
    let token = ["--operator-token-file", file.to_str().unwrap()];
    let shop = Shop::start(data.path(), &[listen, token].concat());
    let address = endpoint_of(&shop).expect("it says where it listens");
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    assert_eq!(shop.ended(&order).await["status"], "CONFIRMED");

    let url = format!("http://{address}");
    assert!(
        Remote::new(&url, None)
            .unwrap()
            .services()
            .await
            .unwrap_err()
            .is_refused()
    );
    let remote = Remote::new(&url, Some(&Token::new(TOKEN).unwrap())).unwrap();
    let services = remote.services().await.unwrap();
    for service in ["orders", "payment", "inventory", "shipping"] {
        assert!(services.iter().any(|it| it == service), "{services:?}");
    }
    assert!(
        !services.iter().any(|it| it == "storefront"),
        "it has no database: {services:?}"
    );
    let payment = remote.store("payment", Access::Look);
    assert_eq!(payment.stats().await.unwrap().held, 0);
    let consumers = payment.consumers(10).await.unwrap();
    assert!(
        consumers
            .iter()
            .any(|it| &**it == "payment.order-placed.v1"),
        "{consumers:?}"
    );
    let queues = ["payment.order-placed.v1".to_owned(), "nobody's".to_owned()];
    let depths = remote.broker().queue_depths(&queues).await.unwrap();
    assert_eq!(depths[0].unwrap().receivers, Some(1));
    assert_eq!(depths[1], None);

    let logs = shop.process.stderr().join("\n");
    assert!(logs.contains("has refused a request"), "{logs}");
    assert!(!logs.contains(TOKEN), "{logs}");
    let _idle = TcpStream::connect(address).unwrap();
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_being_asked_a_shop_has_no_endpoint() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    assert_eq!(endpoint_of(&shop), None);
    shop.stop();
}

#[test]
fn an_endpoint_that_cannot_be_is_named_with_its_flags() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let check = |arguments: &[&str], parts: &[&str]| {
        let data = tempfile::tempdir().unwrap();
        let mut process = Process::start(command(data.path(), arguments)).unwrap();
        let status = process.wait(SOON).unwrap();
        let stderr = process.stderr().join("\n");
        assert!(!status.success(), "{arguments:?}: {stderr}");
        for part in parts {
            assert!(
                stderr.contains(part),
                "{arguments:?}: `{part}` is not in: {stderr}"
            );
        }
    };
    let open = [
        "TDG-8001",
        "--operator-listen",
        "--operator-token-file",
        "127.0.0.1",
    ];
    check(&["--operator-listen", "0.0.0.0:0"], &open);
    check(&["--operator-listen", "[::]:0"], &open);
    check(
        &["--operator-listen", &taken],
        &["TDG-8003", "--operator-listen"],
    );
    let no_file = [
        "--operator-listen",
        "127.0.0.1:0",
        "--operator-token-file",
        "/no/such/file",
    ];
    check(&no_file, &["TDG-8002", "/no/such/file"]);
    check(&["--operator-listen", "everywhere"], &["--operator-listen"]);
}
