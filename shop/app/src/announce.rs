//! What the program says on stdout. Lines that scripts wait for stand alone: `listening http ADDR`,
//! `listening amqp ADDR`, `ready`. What follows is for people.

use std::{io::Write, net::SocketAddr};

use crate::services::{Name, Names};

/// Says that something accepts connections. A reader that has gone away is no reason to stop.
pub(crate) fn listening(what: &str, address: SocketAddr) {
    say(&format!("listening {what} {address}\n"));
}

/// Says that everything is connected, and what to try.
pub(crate) fn ready(services: &Names, http: SocketAddr, amqp: Option<SocketAddr>) {
    say("ready\n");
    say(&hints(services, http, amqp));
}

fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

fn hints(services: &Names, http: SocketAddr, amqp: Option<SocketAddr>) -> String {
    let mut text = String::from("\n");
    if services.contains(Name::Storefront) {
        text += &format!("  Open http://{http}/ in a browser.\n\n");
    }
    if services.contains(Name::Orders) {
        text += &format!(
            r#"  Place an order:

    curl http://{http}/orders -H 'content-type: application/json' -d '{{
      "customerId": "c-1", "email": "ada@example.org", "card": "tok_ok",
      "items": [{{"sku": "TEA-EARL-GREY", "quantity": 2}}]}}'

  See what became of it (also with "card": "tok_declined" or "tok_flaky"):

    curl 'http://{http}/orders?customerId=c-1'

"#
        );
    }
    if services.contains(Name::Bank) {
        text += &format!(
            r#"  Take the bank away, order, and bring it back with "ok":

    curl -X PUT http://{http}/bank/behaviour -H 'content-type: application/json' -d '{{"mode": "down"}}'

"#
        );
    }
    text += &format!("  All calls: http://{http}/openapi.json");
    if let Some(amqp) = amqp {
        text += &format!("   Any AMQP client: amqp://guest:guest@{amqp}");
    }
    text + "\n  Ctrl-C stops the shop; so does anything worse, and nothing is lost.\n\n"
}
