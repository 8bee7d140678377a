//! Scaling out: copies of a slow service share its backlog, and nobody does the same twice.

use std::time::Duration;

use tidings_testing::servers::wait_until;

use crate::smtp::SlowMail;
use crate::world::{BrokerKind, DatabaseKind, SERVICES, World, good_order};

/// What the mail server takes for one mail. Everything else should be little beside it.
const DELAY: Duration = Duration::from_secs(1);

/// Orders whose mails wait when the copies start. A copy sends 16 at once.
const ORDERS: usize = 256;

#[test]
#[ignore = "needs PostgreSQL"]
fn four_copies_drain_a_backlog_of_slow_mails_four_times_as_fast() {
    let one = time_to_drain(1);
    let four = time_to_drain(4);
    let ratio = one.as_secs_f64() / four.as_secs_f64();
    println!("one copy {one:?}, four copies {four:?}: {ratio:.1} times as fast");
    assert!(
        ratio > 2.5,
        "four copies were only {ratio:.1} times as fast"
    );
}

fn time_to_drain(copies: usize) -> Duration {
    let mail = SlowMail::start(DELAY);
    let mut world = World::new(BrokerKind::Embedded, DatabaseKind::Postgres);
    world.flags = vec!["--smtp".to_owned(), mail.url()];
    let mut world = world.with_services(SERVICES);
    // Its queues are there from now on; it works them off when it comes back, in copies.
    let first = world.all_of("notification")[0];
    world.stop(first);
    let orders: Vec<String> = (0..ORDERS)
        .map(|number| {
            world.place(
                &good_order(&format!("customer-{number}")),
                &number.to_string(),
            )
        })
        .collect();
    world.wait_for_all(&orders, "CONFIRMED", Duration::from_secs(60));

    world.restart(first);
    for _ in 1..copies {
        world.start("notification");
    }
    mail.open();
    wait_until("all mails", Duration::from_secs(120), || {
        mail.count() >= ORDERS
    })
    .unwrap();
    assert_eq!(mail.repeated(), [], "mails went out twice");
    mail.took()
}
