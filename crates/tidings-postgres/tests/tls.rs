//! TLS to a real server, as the URL asks for it.

use std::fs;

use tidings_postgres::PostgresStore;
use tidings_testing::{foreign::workspace, servers::Postgres};

fn file(name: &str) -> String {
    let path = workspace().join("crates/tidings-amqp/tests/tls").join(name);
    path.to_string_lossy().into_owned()
}

/// A server with a certificate for 127.0.0.1. It writes its files itself, so that they are its own.
fn start() -> Postgres {
    let mut postgres = Postgres::start().expect("a server of its own");
    let folder = postgres.sql("show data_directory").expect("its folder");
    for (name, from) in [("server.crt", "certificate.pem"), ("server.key", "key.pem")] {
        let pem = fs::read_to_string(file(from)).expect("a file of the tests");
        let lines = format!("select unnest(string_to_array($pem${pem}$pem$, E'\\n'))");
        let into = format!("umask 077 && cat > {folder}/{name}");
        let written = postgres.sql(&format!("copy ({lines}) to program '{into}'"));
        written.expect("a file of the server");
    }
    postgres.sql("alter system set ssl = on").expect("set");
    postgres.restart().expect("it starts with TLS");
    postgres
}

async fn is_encrypted(url: &str) -> bool {
    let store = PostgresStore::connect(url, "secure").await;
    let store = store.unwrap_or_else(|error| panic!("{url}: {error}"));
    let client = store.client().await.expect("a connection");
    let asked = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let row = client.query_one(asked, &[]).await.expect("an answer");
    row.get(0)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn the_url_says_whether_to_encrypt_and_whom_to_trust() {
    let postgres = start();
    let url = postgres.url();
    let authority = file("authority.pem").replace('/', "%2F");
    assert!(is_encrypted(&url).await, "where the server can");
    assert!(!is_encrypted(&format!("{url}?sslmode=disable")).await);
    assert!(is_encrypted(&format!("{url}?sslmode=require")).await);
    let trusted = format!("{url}?sslmode=verify-full&sslrootcert={authority}");
    assert!(is_encrypted(&trusted).await);

    // Another authority did not sign it: the certificate itself is none.
    let other = file("certificate.pem").replace('/', "%2F");
    let untrusted = format!("{url}?sslmode=verify-full&sslrootcert={other}");
    let error = PostgresStore::connect(untrusted, "secure").await.err();
    let error = error.expect("it is refused at once").to_string();
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_server_without_tls_is_refused_by_who_requires_it() {
    let postgres = Postgres::start().expect("a server of its own");
    assert!(!is_encrypted(&postgres.url()).await);
    let url = format!("{}?sslmode=require", postgres.url());
    let error = PostgresStore::connect(url, "secure").await.err();
    let error = error.expect("it is refused at once").to_string();
    assert!(error.contains("TLS"), "{error}");
}
