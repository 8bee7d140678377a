//! What services send, compared with what a schema registry has: programs that know the registry only are consumers too.

use super::{Finding, Rule, Severity, about, field, mend};
use crate::{
    document::{Body, Contract, Document},
    formats,
};

/// What a registry has under the subject of an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Registered {
    /// The subject.
    pub subject: String,
    /// Its latest version with the body that it describes; nothing if there is none.
    pub latest: Option<(u32, Body)>,
}

/// What each event that is sent would break for programs that read it by the latest version of its schema, and by the rule also
/// what of such bodies the new schema does not read. What is not registered as it is sent is told.
pub fn registered<'a>(
    documents: &[Document],
    rule: Rule,
    known: impl Fn(&Contract) -> Option<&'a Registered>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    for (sender, sent) in super::sent(documents) {
        let Some(Registered { subject, latest }) = known(sent) else {
            continue;
        };
        let todo = "Register it before what sends it is deployed: `tidings contracts register`";
        let Some((version, body)) = latest else {
            found.push(Finding {
                what: format!(
                    "`{}` {} sends `{}`, and the registry has nothing under `{subject}`",
                    sender.service, sender.version, sent.name
                ),
                todo: todo.to_owned(),
                ..about("not-registered", sender, sent, None)
            });
            continue;
        };
        let before = found.len();
        if rule.is_forward() {
            found.extend(formats::breaks(&sent.body, body).into_iter().map(|it| Finding {
                field: field(&it),
                what: format!(
                    "who reads by version {version} of `{subject}` cannot read `{}` as `{}` {} writes it: {it}",
                    sent.name, sender.service, sender.version
                ),
                todo: mend(&it, sent),
                ..about("registry-changed", sender, sent, None)
            }));
        }
        if rule.is_backward() {
            found.extend(formats::breaks(body, &sent.body).into_iter().map(|it| Finding {
                field: field(&it),
                what: format!(
                    "by the schema of `{}` {} a `{}` cannot be read that was written by version {version} of `{subject}`, \
                     and such messages still wait: {it}",
                    sender.service, sender.version, sent.name
                ),
                todo: mend(&it, sent),
                ..about("registry-changed", sender, sent, None)
            }));
        }
        if found.len() == before && sent.body != *body {
            found.push(Finding {
                severity: Severity::Warning,
                what: format!(
                    "`{}` {} writes `{}` otherwise than version {version} of `{subject}`; it breaks nobody",
                    sender.service, sender.version, sent.name
                ),
                todo: todo.to_owned(),
                ..about("not-registered", sender, sent, None)
            });
        }
    }
    found
}
