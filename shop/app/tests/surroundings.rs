//! Bad surroundings: one clear error that says what to do, an exit code that is not 0, and nothing
//! damaged.

mod common;

use std::{net::TcpListener, path::Path};

use common::{SOON, Shop, command};
use tidings_testing::servers::Process;

/// Starts a shop that must not start.
fn refused(data: &Path, arguments: &[&str]) -> String {
    let mut process = Process::start(command(data, arguments)).unwrap();
    let status = process.wait(SOON).unwrap();
    let stderr = process.stderr().join("\n");
    assert!(!status.success(), "{arguments:?}: {stderr}");
    assert_eq!(
        process
            .stdout()
            .iter()
            .filter(|line| *line == "ready")
            .count(),
        0
    );
    let errors = stderr.matches("error: ").count();
    assert_eq!(errors, 1, "{arguments:?}: {stderr}");
    stderr
}

fn check(arguments: &[&str], parts: &[&str]) {
    let data = tempfile::tempdir().unwrap();
    let error = refused(data.path(), arguments);
    for part in parts {
        assert!(
            error.contains(part),
            "{arguments:?}: `{part}` is not in: {error}"
        );
    }
}

#[test]
fn a_wrong_flag_is_named() {
    check(
        &["--services", "orders,paiment"],
        &["--services", "`paiment` is not a service"],
    );
    check(
        &["--checkout", "orchestration", "--without", "checkout"],
        &["--checkout orchestration", "--without"],
    );
    check(&["--database", "mysql://x"], &["--database", "`mysql`"]);
    check(&["--smtp", "http://x"], &["--smtp", "smtp://host:port"]);
    check(&["--services", "payment"], &["payment", "--bank"]);
}

#[test]
#[cfg(not(any(feature = "kafka", feature = "aws")))]
fn a_build_without_an_engine_says_how_to_get_it() {
    check(
        &["--broker", "kafka://localhost:9092"],
        &["--broker", "build it with `--features kafka`"],
    );
    check(
        &["--broker", "aws://eu-west-1"],
        &["--broker", "build it with `--features aws`"],
    );
}

#[test]
fn a_port_that_is_taken_is_named_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let port = address.port().to_string();
    check(
        &["--listen", &address.to_string()],
        &[&port, "taken", "--listen"],
    );
    check(
        &["--amqp-listen", &address.to_string()],
        &[&port, "taken", "--amqp-listen"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_in_use_is_left_alone() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let error = refused(data.path(), &[]);
    assert!(
        error.contains("used by another process") && error.contains("--data"),
        "{error}"
    );
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    assert_eq!(shop.ended(&order).await["status"], "CONFIRMED");
    shop.stop();
}

#[test]
fn a_data_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let error = refused(&file, &[]);
    assert!(
        error.contains("file") && error.contains("--data"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_newer_version_is_left_alone() {
    let data = tempfile::tempdir().unwrap();
    Shop::start(data.path(), &[]).stop();
    let folder = format!("sqlite://{}", data.path().join("db").display());
    let database: shop_kit::Database = folder.parse().unwrap();
    // All steps are there, and one comes from the future.
    let later = [shop_orders::MIGRATIONS, &["create table later (id bigint)"]].concat();
    drop(database.open("orders", &later).await.unwrap());
    let error = refused(data.path(), &[]);
    assert!(
        error.contains("`orders` cannot start") && error.contains("newer"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_no_database_is_left_alone() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("db/payment.db");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text = "this is no database, it is a text that somebody still needs. ".repeat(100);
    std::fs::write(&path, &text).unwrap();
    let error = refused(data.path(), &[]);
    assert!(error.contains("payment.db"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_from_a_broker_that_is_not_there_yet() {
    let data = tempfile::tempdir().unwrap();
    let broker = Shop::start(data.path(), &["--services", "storefront"]);
    let url = broker.amqp_url().replace("guest:guest", "guest:wrong");
    let other = tempfile::tempdir().unwrap();
    let error = refused(other.path(), &["--broker", &url]);
    assert!(
        error.contains("password") || error.contains("ACCESS_REFUSED"),
        "{error}"
    );
    broker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_data_is_gone_afterwards() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &["--ephemeral"]);
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    assert_eq!(shop.ended(&order).await["status"], "CONFIRMED");
    shop.stop();
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0);
}
