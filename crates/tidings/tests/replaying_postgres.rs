//! A replay from a PostgreSQL that goes away in the middle.

mod support;

use std::{sync::Mutex, time::Duration};

use support::{broker::Broker, outgoing, until};
use tidings::{
    Commit, Outgoing, Queue, Store, Topology, Transport,
    replay::{Replay, Start},
};
use tidings_postgres::PostgresStore;
use tidings_testing::servers::Postgres;

const LATE: &str = "late.money-deposited.v1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn a_database_that_restarts_in_the_middle_is_waited_for() {
    const COUNT: u64 = 1500;
    let mut server = Postgres::start().expect("it starts");
    let store = PostgresStore::connect(&server.url(), "teller")
        .await
        .expect("it connects");
    store
        .log()
        .expect("it has one")
        .keep(Duration::from_secs(86_400));
    for first in (0..COUNT).step_by(100) {
        let outbox: Vec<Outgoing> = (first..first + 100)
            .map(|number| outgoing(&support::deposit(number % 3, number)))
            .collect();
        let commit = Commit {
            outbox,
            ..Commit::default()
        };
        store.commit(commit).await.expect("it commits");
    }
    let broker = Broker::default();
    let topology = Topology::new().queue(Queue::new(LATE));
    broker.declare(&topology).await.expect("it declares");

    let sent = Mutex::new(0);
    let replay = Replay::to(LATE).from(Start::Beginning).rate(300);
    let run = replay.run(&store, &broker, |progress| {
        *sent.lock().expect("a number") = progress.sent;
    });
    let restart = async {
        until("some are sent", async || {
            *sent.lock().expect("a number") > 400
        })
        .await;
        server.kill9();
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.restart().expect("it starts again");
    };
    let (ended, ()) = tokio::join!(run, restart);
    let ended = ended.expect("it goes on by itself");
    assert!(ended.is_done);
    assert_eq!((ended.sent, ended.not_sent), (COUNT, 0));
    let numbers: Vec<u64> = broker
        .published()
        .iter()
        .map(|it| {
            let deposit: support::MoneyDeposited =
                serde_json::from_slice(&it.envelope.body).expect("JSON");
            deposit.number
        })
        .collect();
    assert!(numbers.into_iter().eq(0..COUNT), "in order, each once");
}
