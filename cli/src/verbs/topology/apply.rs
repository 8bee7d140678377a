//! `tidings topology apply`: makes what is missing.

use serde::Serialize;
use tidings_amqp::{Amqp, PieceMade};

use super::{Needed, Written, note};
use crate::{
    code::Code,
    frame::{Ended, Frame},
    out::{Cell, Page, Report, counted, one_line},
};

#[derive(Debug, Serialize)]
struct Applied {
    /// Everything is there.
    complete: bool,
    items: Vec<Item>,
}

#[derive(Debug, Serialize)]
struct Item {
    #[serde(flatten)]
    piece: Needed,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Report for Applied {
    fn tell(&self, page: &mut Page) {
        let is_told = |it: &&Item| matches!(it.outcome, "made" | "refused");
        let row = |it: &Item| -> Vec<Cell> {
            vec![
                it.piece.kind.into(),
                (&it.piece.told).into(),
                match it.outcome {
                    "made" => Cell::good(it.outcome),
                    _ => Cell::bad(it.outcome),
                },
                it.why.as_deref().map_or("-".to_owned(), one_line).into(),
            ]
        };
        let rows: Vec<Vec<Cell>> = self.items.iter().filter(is_told).map(row).collect();
        if !rows.is_empty() {
            page.table(&["WHAT", "NAME", "OUTCOME", "WHY"], &rows);
        }
        let count = |outcome: &str, one: &str, many: &str| {
            let items = self.items.iter().filter(|it| it.outcome == outcome);
            counted(items.count() as u64, one, many)
        };
        page.line(format!(
            "{}, {}, {}, {}",
            count("kept", "was there", "were there"),
            count("made", "was made", "were made"),
            count("ensured", "binding is sure", "bindings are sure"),
            count("refused", "could not be made", "could not be made")
        ));
    }
}

pub(super) async fn run(frame: &Frame, broker: &Amqp, written: &Written) -> anyhow::Result<Ended> {
    let needed_by = written.needed_by()?;
    let made = broker.make(&written.topology()).await;
    let made = made.map_err(|error| Code::Broker.of(error))?;
    let items = made.into_iter().map(|(piece, made)| {
        let (outcome, why) = match made {
            PieceMade::Kept => ("kept", None),
            PieceMade::Made => ("made", None),
            PieceMade::Ensured => ("ensured", None),
            PieceMade::Refused(why) => ("refused", Some(why)),
        };
        Item {
            piece: Needed::new(piece, &needed_by),
            outcome,
            why,
        }
    });
    let items: Vec<Item> = items.collect();
    let refused = items.iter().filter(|it| it.outcome == "refused").count();
    frame.out.show(&Applied {
        complete: refused == 0,
        items,
    })?;
    note(frame, Code::DiffersOnBroker, refused, "could not be made", "could not be made");
    match refused {
        0 => Ok(Ended::Done),
        _ => Ok(Ended::Problem),
    }
}
