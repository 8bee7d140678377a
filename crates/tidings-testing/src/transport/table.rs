//! What an engine can do, in the words of a table for people.
//!
//! The table is made from [`Features`], so a page that shows it can be held against the adapters: each checks its own column.

use std::time::Duration;

use tidings_core::Features;

/// The rows of an engine's column: what is asked, and the answer.
pub fn rows(features: &Features) -> Vec<(&'static str, String)> {
    let yes_or = |can: bool, no: &str| if can { "yes" } else { no }.to_owned();
    let waits = match features.delay_max {
        Duration::ZERO => "in the service's store; without one it does not start".to_owned(),
        longest => format!(
            "in the store; without one at the engine, up to {}",
            time(longest)
        ),
    };
    let ordered = match (features.partitions_max, features.shares_partitions) {
        (0, _) => "refused at start".to_owned(),
        (most, false) => format!("up to {most} partitions"),
        (most, true) => format!("up to {most} partitions, from one topic"),
    };
    let order = match (features.keeps_order, features.shares_partitions) {
        (false, _) => "no",
        (true, false) => "of all messages",
        (true, true) => "of each key, within a topic",
    };
    let share = if features.shares_partitions {
        "partitions or keys"
    } else {
        "single messages"
    };
    let again = features.shares_partitions || features.fetches_ahead;
    let body = features.body_bytes_max;
    vec![
        (
            "messages survive a restart of it",
            yes_or(features.durable, "no"),
        ),
        (
            "a publisher learns that nothing wants a message",
            yes_or(features.reports_unroutable, "no"),
        ),
        ("a message that failed waits", waits),
        ("a queue keeps the order", order.to_owned()),
        ("ordered groups", ordered),
        ("consumers of a queue share", share.to_owned()),
        (
            "says how often it handed a message out",
            yes_or(features.counts_deliveries, "no"),
        ),
        (
            "after a crash, messages that nobody had may be marked as redelivered",
            yes_or(again, "no"),
        ),
        (
            "`tidings dead-letters` works them off",
            yes_or(
                features.holds_dead_letters,
                "not yet: the engine's own tools",
            ),
        ),
        (
            "names of queues and topics",
            format!("{} bytes", features.name_bytes_max),
        ),
        (
            "bodies",
            body.map_or("as the broker allows".to_owned(), |most| {
                format!("{} KiB", most / 1024)
            }),
        ),
    ]
}

fn time(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds % 86_400 == 0 => format!("{} days", seconds / 86_400),
        seconds if seconds % 3_600 == 0 => format!("{} h", seconds / 3_600),
        seconds if seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

/// Panics if the column of the table in a Markdown page is not what the engine says of itself, with what should stand there.
/// The table has the rows of [`rows`], whose first cells are what is asked.
#[track_caller]
pub fn assert_documented(page: &str, column: &str, features: &Features) {
    let cells = |line: &str| -> Option<Vec<String>> {
        let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
        Some(
            inner
                .split('|')
                .map(|cell| cell.trim().to_owned())
                .collect(),
        )
    };
    let lines: Vec<_> = page.lines().filter_map(cells).collect();
    let place = lines
        .iter()
        .find_map(|line| line.iter().position(|cell| cell == column));
    let place = place.unwrap_or_else(|| panic!("no table has a column `{column}`"));
    for (what, answer) in rows(features) {
        let line = lines.iter().find(|line| line[0] == what);
        let line = line.unwrap_or_else(|| panic!("the table has no row `{what}`"));
        assert_eq!(line.get(place), Some(&answer), "`{what}` of `{column}`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(features: &Features) -> String {
        let lines = rows(features);
        let lines = lines
            .iter()
            .map(|(what, answer)| format!("| {what} | {answer} |\n"));
        format!("| | Mine |\n| --- | --- |\n{}", lines.collect::<String>())
    }

    #[test]
    fn a_page_says_what_an_engine_says() {
        let mut features = Features::new("mine");
        assert_documented(&page(&features), "Mine", &features);
        features.delay_max = Duration::from_secs(900);
        features.body_bytes_max = Some(256 * 1024);
        let page = page(&features);
        assert_documented(&page, "Mine", &features);
        assert!(
            page.contains("up to 15 min") && page.contains("| 256 KiB |"),
            "{page}"
        );
    }

    #[test]
    #[should_panic(expected = "`messages survive a restart of it` of `Mine`")]
    fn a_page_that_promises_more_is_noticed() {
        let mut features = Features::new("mine");
        features.durable = true;
        let page = page(&features);
        features.durable = false;
        assert_documented(&page, "Mine", &features);
    }
}
