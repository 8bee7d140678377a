//! From what is asked to the port, and back.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::Serialize;
use tidings_core::{
    Ask, BoxFuture, Claim, Commit, DeadLetterAccess, InboxQuery, InboxState, LetterPlace,
    OutboxState, RecordId, RecordQuery, Store, Transport,
};
use tokio::time::timeout;

use crate::{
    holds::Holds,
    limits::{ANSWER_BYTES_MAX, BROKER_TIME_MAX, NAMES_MAX, ROWS_MAX},
    wire::{
        Answer, BrokerAsk, Failure, Malformed, Request, Rows, StoreAsk, WireClaim, WireDepth,
        WireEnvelope, WireInboxRow, WireLetter, WireListedRow, WireRecord, WireSeen, WireStats,
    },
};

/// The records that operators write: pauses, schedules, what they ask of sagas, and handlers that are gone, which
/// they forget. All others are the services' own.
fn is_operators(kind: &str) -> bool {
    matches!(
        kind,
        "tidings.pause" | "tidings.schedule" | "tidings.handler"
    ) || kind.starts_with("saga-operation:")
        || kind.starts_with("saga-check:")
}

/// What is operated.
pub(crate) struct Operated {
    pub(crate) services: HashMap<String, Arc<dyn Store>>,
    pub(crate) broker: Arc<dyn Transport>,
    pub(crate) holds: Holds,
}

type Done = Result<Vec<u8>, Failure>;

impl Operated {
    /// Does what is asked. The answer is JSON.
    pub(crate) async fn answer(&self, request: Request) -> Vec<u8> {
        let doing: BoxFuture<'_, Done> = match request {
            Request::Services => {
                let mut names: Vec<&String> = self.services.keys().collect();
                names.sort();
                Box::pin(std::future::ready(encode(&names)))
            }
            Request::Store { service, what } => match self.services.get(&service) {
                Some(store) => Box::pin(ask_store(&**store, what)),
                None => {
                    let why = format!("there is no service `{service}` here");
                    Box::pin(std::future::ready(Err(Failure::new("other", why))))
                }
            },
            Request::Broker { what } => Box::pin(self.ask_broker(what)),
        };
        doing.await.unwrap_or_else(failed)
    }

    async fn ask_broker(&self, what: BrokerAsk) -> Done {
        match what {
            BrokerAsk::Depths { queues } => {
                let look = timeout(BROKER_TIME_MAX, self.broker.queue_depths(&queues));
                let depths = look.await.map_err(|_| {
                    Failure::new(
                        "unavailable",
                        "the service has no connection with its broker",
                    )
                })??;
                let depths = depths.into_iter().map(|depth| depth.map(WireDepth::from));
                encode(&depths.collect::<Vec<_>>())
            }
            BrokerAsk::Count { queue } => encode(&self.letters()?.count(&queue).await?),
            BrokerAsk::SendBack { consumer, batch } => {
                let sent = self.letters()?.send_back(&consumer, read_all(batch)?).await;
                encode(&outcomes(sent))
            }
            BrokerAsk::Put { queue, batch } => {
                let put = self.letters()?.put(&queue, read_all(batch)?).await;
                encode(&outcomes(put))
            }
            BrokerAsk::Hold { queue } => {
                self.holds.room()?;
                let held = self.letters()?.hold(&queue).await?;
                encode(&self.holds.keep(held))
            }
            BrokerAsk::Next { hold, count } => {
                let mut held = self.holds.letters(&hold).await?;
                let letters = held.next(count.min(ROWS_MAX)).await?;
                let done = encode(
                    &letters
                        .into_iter()
                        .map(WireLetter::from)
                        .collect::<Vec<_>>(),
                );
                self.holds.touch(&hold)?;
                done
            }
            BrokerAsk::Remove { hold, places } => {
                let places: Vec<LetterPlace> = places.into_iter().map(LetterPlace).collect();
                let mut held = self.holds.letters(&hold).await?;
                encode(&held.remove(&places).await?)
            }
            BrokerAsk::Behind { hold } => {
                let mut held = self.holds.letters(&hold).await?;
                encode(&held.behind().await?)
            }
            BrokerAsk::Release { hold } => match self.holds.take(&hold).await {
                Some(held) => encode(&held.release().await?),
                // It was given back already.
                None => encode(&()),
            },
            BrokerAsk::Keep { hold } => encode(&self.holds.touch(&hold)?),
        }
    }

    fn letters(&self) -> Result<&dyn DeadLetterAccess, Failure> {
        self.broker.dead_letter_access().ok_or_else(|| {
            let engine = self.broker.features().engine;
            Failure::new(
                "refused",
                format!("{engine} gives no access to dead letters"),
            )
        })
    }
}

async fn ask_store(store: &dyn Store, what: StoreAsk) -> Done {
    match what {
        StoreAsk::OutboxStats => encode(&WireStats::from(store.outbox().stats().await?)),
        StoreAsk::OutboxList {
            state,
            after,
            limit,
        } => {
            let state = match state {
                1 => OutboxState::Held,
                2 => OutboxState::SetAside,
                _ => return Err(Malformed("a state is none".to_owned()).into()),
            };
            let rows = store
                .outbox()
                .list(state, after, limit.min(ROWS_MAX))
                .await?;
            some_of::<_, WireListedRow>(rows, limit)
        }
        StoreAsk::OutboxRestore { positions } => encode(&store.outbox().restore(&positions).await?),
        StoreAsk::OutboxDiscard { positions } => encode(&store.outbox().discard(&positions).await?),
        StoreAsk::Consumers { limit } => {
            encode(&store.deferred().consumers(limit.min(NAMES_MAX)).await?)
        }
        StoreAsk::Waiting { consumer, limit } => {
            encode(&store.deferred().waiting(&consumer, limit).await?)
        }
        StoreAsk::InboxList {
            consumer,
            state,
            after,
            limit,
        } => {
            let query = InboxQuery {
                consumer: consumer.map(Into::into),
                state: state.and_then(InboxState::from_number),
                after,
                limit: limit.min(ROWS_MAX),
            };
            some_of::<_, WireInboxRow>(store.deferred().list(&query).await?, limit)
        }
        StoreAsk::InboxReschedule { claims, due_in_ms } => {
            let due_in = Duration::from_millis(due_in_ms);
            encode(
                &store
                    .deferred()
                    .reschedule(&read_claims(claims), due_in)
                    .await?,
            )
        }
        StoreAsk::InboxDiscard { claims } => {
            encode(&store.deferred().discard(&read_claims(claims)).await?)
        }
        StoreAsk::Look { asked } => {
            let asked: Vec<Ask> = asked.into_iter().map(Ask::from).collect();
            let seen = store.look(&asked).await?;
            encode(&seen.into_iter().map(WireSeen::from).collect::<Vec<_>>())
        }
        StoreAsk::RecordsRead { ids } => {
            let ids = ids.into_iter().map(|(kind, id)| RecordId::new(kind, id));
            let found = store.records().read(&ids.collect::<Vec<_>>()).await?;
            let found = found.into_iter().map(|record| record.map(WireRecord::from));
            encode(&found.collect::<Vec<_>>())
        }
        StoreAsk::RecordKinds { limit } => {
            encode(&store.records().kinds(limit.min(NAMES_MAX)).await?)
        }
        StoreAsk::RecordsList { query } => {
            let limit = query.limit;
            let mut query = RecordQuery::from(query);
            query.limit = limit.min(ROWS_MAX);
            some_of::<_, WireRecord>(store.records().list(&query).await?, limit)
        }
        StoreAsk::RecordsWrite { changes } => {
            if let Some(own) = changes.iter().find(|change| !is_operators(&change.kind)) {
                let why = format!("operators do not write records of the kind `{}`", own.kind);
                return Err(Failure::new("other", why));
            }
            let records = changes.into_iter().map(|change| change.read());
            let commit = Commit {
                records: records.collect::<Result<_, _>>()?,
                ..Commit::default()
            };
            store.commit(commit).await?;
            encode(&())
        }
    }
}

/// As many rows as fit into an answer, at least one. `limit` is how many were asked for.
fn some_of<T, W: Serialize + From<T>>(rows: Vec<T>, limit: usize) -> Done {
    let mut more = rows.len() >= ROWS_MAX && limit > ROWS_MAX;
    let mut bytes = 0;
    let mut some = Vec::new();
    for row in rows {
        if bytes > ANSWER_BYTES_MAX {
            more = true;
            break;
        }
        let row = serde_json::value::to_raw_value(&W::from(row)).map_err(unwritable)?;
        bytes += row.get().len();
        some.push(row);
    }
    encode(&Rows { rows: some, more })
}

fn read_all(batch: Vec<WireEnvelope>) -> Result<Vec<tidings_core::Envelope>, Malformed> {
    batch.into_iter().map(WireEnvelope::read).collect()
}

fn read_claims(claims: Vec<WireClaim>) -> Vec<Claim> {
    claims
        .into_iter()
        .map(|claim| Ask::from(claim).claim)
        .collect()
}

fn outcomes<E: Into<Failure>>(outcomes: Vec<Result<(), E>>) -> Vec<Option<Failure>> {
    let failure = |outcome: Result<(), E>| outcome.err().map(Into::into);
    outcomes.into_iter().map(failure).collect()
}

fn encode<T: Serialize>(value: &T) -> Done {
    serde_json::to_vec(&Answer::Done(value)).map_err(unwritable)
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` passes it")]
fn unwritable(error: serde_json::Error) -> Failure {
    Failure::new("other", format!("the answer cannot be written: {error}"))
}

/// A failure as an answer.
pub(crate) fn failed(failure: Failure) -> Vec<u8> {
    let answer = serde_json::to_vec(&Answer::<()>::Failed(failure));
    answer.unwrap_or_else(|error| unreachable!("two texts are JSON: {error}"))
}
