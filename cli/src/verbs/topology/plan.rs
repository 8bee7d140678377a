//! `tidings topology plan`: what is there, and what is not.

use serde::Serialize;
use tidings_amqp::{Amqp, PieceState};

use super::{Needed, Written, planned};
use crate::{
    code::Code,
    frame::{Ended, Frame},
    out::{Cell, Page, Report, counted, one_line},
};

#[derive(Debug, Serialize)]
struct Plan {
    /// Nothing is known to be missing or otherwise.
    complete: bool,
    items: Vec<Item>,
    /// How many handlers are gone.
    gone: usize,
}

#[derive(Debug, Serialize)]
struct Item {
    #[serde(flatten)]
    piece: Needed,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Report for Plan {
    fn tell(&self, page: &mut Page) {
        let row = |it: &Item| -> Vec<Cell> {
            let services: Vec<&str> = it.piece.services.iter().map(|it| &**it).collect();
            vec![
                it.piece.kind.into(),
                (&it.piece.told).into(),
                match it.state {
                    "there" => Cell::good(it.state),
                    "unknown" => Cell::warning(it.state),
                    _ => Cell::bad(it.state),
                },
                services.join(",").into(),
                it.why.as_deref().map_or("-".to_owned(), one_line).into(),
            ]
        };
        let shown = self.items.iter().filter(|it| it.state != "unseen");
        let rows: Vec<Vec<Cell>> = shown.map(row).collect();
        page.table(&["WHAT", "NAME", "STATE", "SERVICES", "WHY"], &rows);
        let unseen = self.items.iter().filter(|it| it.state == "unseen").count();
        page.line(format!(
            "and {}, which AMQP does not show: `tidings topology apply` makes sure",
            counted(unseen as u64, "binding", "bindings")
        ));
        if self.gone > 0 {
            let gone = counted(self.gone as u64, "handler is", "handlers are");
            page.line(format!("{gone} gone: see `tidings topology prune`"));
        }
    }
}

pub(super) async fn run(frame: &Frame, broker: &Amqp, written: &Written) -> anyhow::Result<Ended> {
    let needed_by = written.needed_by()?;
    let seen = broker.inspect(&written.topology()).await;
    let seen = seen.map_err(|error| Code::Broker.of(error))?;
    let items = seen.into_iter().map(|(piece, state)| {
        let (state, why) = match state {
            PieceState::There => ("there", None),
            PieceState::Unknown(why) => ("unknown", Some(why)),
            PieceState::Missing => ("missing", None),
            PieceState::Differs(why) => ("differs", Some(why)),
            PieceState::Unseen => ("unseen", None),
        };
        Item {
            piece: Needed::new(piece, &needed_by),
            state,
            why,
        }
    });
    let items: Vec<Item> = items.collect();
    let count = |state: &str| items.iter().filter(|it| it.state == state).count();
    let (missing, differs) = (count("missing"), count("differs"));
    let complete = missing + differs == 0;
    frame.out.show(&Plan {
        complete,
        gone: written.gone(),
        items,
    })?;
    Ok(planned(frame, missing, differs))
}
