//! `tidings dead-letters`: what could not be handled, looked at, mended, and sent on.

mod change;
mod look;
mod redrive;
mod select;

use std::sync::Arc;

use anyhow::bail;
use clap::Subcommand;
use tidings::{
    Store, Transport,
    dead_letters::{Audit, DeadLetters, consumers_in, consumers_of},
    handlers::{self, HandlerRecord},
};

use crate::{
    frame::{Ended, Frame, Usage, toolkit},
    places::Access,
    verbs::deferred::CONSUMERS_MAX,
};

/// Dead letters: what consumers could not handle, beside their queues in the broker.
///
/// Looking takes nothing out and changes no order, while consumers run. A consumer is named by its queue,
/// `payment.order-placed.v1`, or its ordered group, `payment.ordered`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

const EXAMPLES: &str = "\
Examples:
  tidings dead-letters groups payment.order-placed.v1         what fails, and how often
  tidings dead-letters groups                                 of all consumers in TIDINGS_DATABASE
  tidings dead-letters list payment.order-placed.v1 --since 2h
  tidings dead-letters show payment.order-placed.v1 ID
  tidings dead-letters edit payment.order-placed.v1 ID --body mended.json --why 'the amount was a text'
  tidings dead-letters redrive payment.order-placed.v1 --fingerprint 1f0c6a93d2be --dry-run
  tidings dead-letters redrive payment.order-placed.v1 --all --rate 100
  tidings dead-letters discard payment.order-placed.v1 --id ID --why 'a test order'
  tidings dead-letters list --recorded                        what was discarded, or is edited since

As JSON:
  groups   {groups: [{consumer, name, fingerprint, pattern, count, edited, redriven, first?, last?,
            example: {id, reason}}], count, leftOut}
  list     {letters: [{consumer, id, name, key?, diedAt?, failures, redrives, editCount, fingerprint, reason}],
            more}
  show     {consumer, id, diedAt?, failures, redrives, editCount, fingerprint, errors, history, edits, recorded?, message}
  edit     {consumer, was, id, followers}
  discard  {consumer, count, released}
  redrive  {consumer, job, dryRun, total, sent, cameBack, keptBack, notSent, passedOver, stopped?,
            letters: [{id, outcome, reason?}], more}
A redrive that stops, or of which letters come back, ends with exit code 1.";

#[derive(Debug, Subcommand)]
enum What {
    /// Groups letters by consumer, message name and what their reasons have in common
    Groups(look::Groups),
    /// Lists letters, oldest first
    List(look::List),
    /// Shows a letter: body, headers, history, and the chain of errors
    Show(look::Show),
    /// Gives a letter another body; the old one goes into the record
    Edit(change::Edit),
    /// Takes letters out for good, into the record
    Discard(change::Discard),
    /// Sends letters to their consumer again
    Redrive(redrive::Redrive),
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let broker = frame.broker().await?;
        let ended = match self.what {
            What::Groups(it) => it.run(frame, &broker).await,
            What::List(it) => it.run(frame, &broker).await,
            What::Show(it) => it.run(frame, &broker).await,
            What::Edit(it) => it.run(frame, &broker).await,
            What::Discard(it) => it.run(frame, &broker).await,
            What::Redrive(it) => it.run(frame, &broker).await,
        };
        broker.close().await;
        ended
    }
}

/// Who changes a letter, and why.
#[derive(Debug, clap::Args)]
struct Who {
    /// Why; it is kept with the letter
    #[arg(long)]
    why: String,
    /// Who does it
    #[arg(long, env = "USER", default_value = "unknown")]
    by: String,
}

impl Who {
    fn audit(&self) -> Audit {
        Audit::now(&self.by, &self.why)
    }
}

/// The database of a consumer's service, if the command line says where it is.
async fn store_of(
    frame: &Frame,
    consumer: &str,
    access: Access,
) -> anyhow::Result<Option<Arc<dyn Store>>> {
    if !frame.has_database() {
        return Ok(None);
    }
    let service = consumer.split('.').next().unwrap_or_default();
    let located = frame.located().await?;
    match located.into_iter().find(|it| it.service == service) {
        Some(located) => Ok(Some(located.open(access).await?.store)),
        None => Ok(None),
    }
}

/// What the letters of a handler are beside: where it receives, and where it received before.
fn beside(handler: &HandlerRecord) -> Vec<String> {
    let before = handlers::abandoned(handler).into_iter();
    let before = before.flat_map(|(topology, _)| consumers_of(&topology));
    std::iter::once(handler.dead_letters_beside().to_owned()).chain(before).collect()
}

/// The letters that are meant: of these consumers, of the record, or of all that the databases know
/// and that have some.
async fn letters_of(
    frame: &Frame,
    broker: &Arc<dyn Transport>,
    consumers: &[String],
    recorded: bool,
) -> anyhow::Result<Vec<DeadLetters>> {
    if recorded {
        if !consumers.is_empty() {
            bail!(Usage::new(
                "the record is of all consumers: say `--recorded` without one"
            ));
        }
        return Ok(vec![DeadLetters::record(Arc::clone(broker))]);
    }
    let of = |consumer: &String| DeadLetters::new(Arc::clone(broker), consumer);
    if !consumers.is_empty() {
        return Ok(consumers.iter().map(of).collect());
    }
    if !frame.has_database() {
        bail!(Usage::new(
            "name a consumer (`payment.order-placed.v1`): the broker cannot say which there are; or say \
             where their databases are (`--database`), which know"
        ));
    }
    let mut known = Vec::new();
    let all = frame.each(Access::Look, async |database| {
        known.extend(consumers_in(&*database.store).await?);
        let handlers = database.store.deferred().consumers(CONSUMERS_MAX).await?;
        known.extend(handlers.into_iter().map(String::from));
        known.push(format!("{}.ordered", database.service));
        // Those of which no message could be read, or that are gone, have no rows.
        for handler in handlers::list(&*database.store).await.map_err(toolkit)? {
            known.extend(beside(&handler));
        }
        Ok(())
    });
    all.await?;
    known.sort();
    known.dedup();
    let queues: Vec<String> = known.iter().map(|it| tidings::dead_letter_queue(it)).collect();
    let depths = frame.depths(broker, &queues).await?;
    let with_letters = known.iter().zip(depths);
    let with_letters = with_letters.filter(|(_, depth)| {
        depth.as_ref().is_some_and(|depth| depth.ready > 0)
    });
    Ok(with_letters.map(|(consumer, _)| of(consumer)).collect())
}
