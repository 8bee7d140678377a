//! Services as their documents say, in whatever language they are written: the four mistakes, and whether the queues that they
//! receive from, and the dead letters of these, are on the broker.

use std::path::PathBuf;

use tidings::{QueueDepth, Transport};
use tidings_contracts::{
    MessageKind,
    check::{lints, system},
};

use super::{Finding, Looked};
use crate::{code::Code, frame::Frame, out::counted, verbs::contracts::files::load};

/// A queue of a service, by its document.
#[derive(Debug)]
pub(super) struct Documented {
    service: String,
    pub(super) queue: String,
    /// The queue of its dead letters, if the document says.
    dead_letters: Option<String>,
}

impl Looked {
    /// What the documents say, without the broker.
    pub(super) async fn at_documents(&mut self, sources: &[PathBuf]) -> anyhow::Result<()> {
        let documents = load(sources).await?;
        let mistakes = system(&documents).into_iter().chain(lints(&documents));
        self.findings.extend(mistakes.map(|it| {
            let service = it.consumer.as_ref().unwrap_or(&it.service);
            Finding::new(Code::ContractFinding, service, it.what, it.todo)
        }));
        for document in &documents {
            for contract in &document.receives {
                let is_event = contract.kind == MessageKind::Event;
                let own = || (!is_event).then(|| contract.address.clone());
                let Some(queue) = contract.queue.clone().or_else(own) else {
                    continue;
                };
                if self.documented.iter().all(|it| it.queue != queue) {
                    self.documented.push(Documented {
                        service: document.service.clone(),
                        queue,
                        dead_letters: contract.dead_letters.clone(),
                    });
                }
            }
            self.checked.push(super::Checked {
                kind: "document",
                name: document.service.clone(),
                version: Some(document.version.clone()),
            });
        }
        Ok(())
    }

    /// The queues of documents on the broker, but for those of which a database has said more.
    pub(super) async fn at_documented(
        &mut self,
        frame: &Frame,
        broker: &(impl Transport + ?Sized),
    ) -> anyhow::Result<()> {
        let is_known = |it: &Documented| self.queues.iter().any(|known| known.name == it.queue);
        self.documented.retain(|it| !is_known(it));
        let names: Vec<String> = self.documented.iter().flat_map(Documented::names).collect();
        let depths = frame.depths(broker, &names).await?;
        for (documented, depths) in self.documented.iter().zip(depths.chunks(2)) {
            let at = |index: usize| depths.get(index).copied().flatten();
            self.findings.extend(documented.at(at(0), at(1)));
        }
        Ok(())
    }
}

impl Documented {
    /// What has to be looked up on the broker.
    pub(super) fn names(&self) -> [String; 2] {
        let dead_letters = self.dead_letters.as_ref().unwrap_or(&self.queue);
        [self.queue.clone(), dead_letters.clone()]
    }

    /// What is wrong with it there.
    pub(super) fn at(&self, own: Option<QueueDepth>, dead: Option<QueueDepth>) -> Vec<Finding> {
        let Self { service, queue, .. } = self;
        let finding = |code, what, todo: String| Finding::new(code, service, what, todo);
        let Some(dead_letters) = &self.dead_letters else {
            // That none are documented is one of the mistakes.
            return Vec::from_iter(own.is_none().then(|| self.missing()));
        };
        match (own, dead) {
            (None, None) => vec![self.missing()],
            (Some(_), None) => vec![finding(
                Code::MissingOnBroker,
                format!(
                    "`{dead_letters}` is not there, where the document of `{service}` says that dead letters of `{queue}` go: \
                     what it cannot handle is lost, or comes again for ever"
                ),
                format!("declare `{dead_letters}`, and let `{queue}` dead-letter into it"),
            )],
            // An ordered group has no queue under its own name.
            (_, Some(dead)) if dead.ready > 0 => vec![finding(
                Code::DeadLetters,
                format!(
                    "{} in `{dead_letters}`",
                    counted(dead.ready.into(), "dead letter is", "dead letters are")
                ),
                format!("see why, mend `{service}`, and send them again"),
            )],
            (_, Some(_)) => Vec::new(),
        }
    }

    fn missing(&self) -> Finding {
        let Self { service, queue, .. } = self;
        Finding::new(
            Code::MissingOnBroker,
            service,
            format!(
                "the queue `{queue}` is not there, from which `{service}` receives by its document"
            ),
            format!("start `{service}`, or correct its document"),
        )
    }
}
