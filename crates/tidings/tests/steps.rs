//! The targets of steps at their edges, through `serve`: an answer that is too large, a journal that is full,
//! a handler that takes steps by the batch. None of them leaves a saga that waits and does not say why.

mod support;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use support::{Database, Running, broker::Broker, outgoing, until};
use tidings::{
    InboxQuery, InboxState, Saga, Sagas, Step, StepReply, Store,
    prelude::*,
    sagas::{self, Action, Operation, SagaState, What},
};
use tidings_postgres::PostgresStore;

#[derive(Serialize, Deserialize, Event)]
#[event(id = "document")]
struct PrintOrdered {
    document: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "printer", reply = String)]
struct RenderPages {
    document: String,
    part: u32,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "printer", reply = ())]
struct ShredPages {
    part: u32,
}

/// That sagas may ask for it stands beside it, and not in its name.
#[derive(Serialize, Deserialize, Command)]
#[command(target = "printer")]
struct BindPages {}

impl Step for BindPages {
    type Reply = ();
}

/// Renders the parts, each undone by shredding.
async fn print(order: PrintOrdered, saga: Saga) -> Result<(), ()> {
    for part in 1..=3 {
        let document = order.document.clone();
        let render = RenderPages { document, part };
        saga.step(format!("render-{part}"), render)
            .undo(move |_| ShredPages { part })
            .await
            .map_err(drop)?;
    }
    if order.document == "done-10" {
        let bind = saga.step("bind", BindPages {}).no_undo();
        bind.await.map_err(drop)?;
    }
    Ok(())
}

/// As many bytes as the document is called.
async fn render(command: RenderPages) -> Result<StepReply<String>> {
    let (word, bytes) = command.document.split_once('-').expect("a word and bytes");
    let text = "p".repeat(bytes.parse()?);
    Ok(match word {
        "refused" => StepReply::refused(text),
        _ => StepReply::Done(text),
    })
}

async fn shred(_: ShredPages) -> Result<()> {
    Ok(())
}

async fn bind_many(_: Batch<BindPages>) -> Result<()> {
    Ok(())
}

/// The printer and who leads it, with one store.
struct World {
    broker: Broker,
    store: Arc<dyn Store>,
    _database: Option<Database>,
}

impl World {
    async fn sqlite() -> Self {
        let database = Database::new().await;
        Self {
            broker: Broker::default(),
            store: database.store.clone().into(),
            _database: Some(database),
        }
    }

    async fn postgres() -> Self {
        let schema = format!("steps_{:x}", rand_number());
        let store = PostgresStore::connect(tidings_testing::servers::postgres_url(), schema).await;
        Self {
            broker: Broker::default(),
            store: Arc::new(store.expect("PostgreSQL")),
            _database: None,
        }
    }

    async fn start(&self) -> Running {
        let sagas = Sagas::new("print", |it: &PrintOrdered| it.document.clone());
        let routers = [
            Router::new("desk")
                .saga(sagas.version(1, print))
                .transactional(Arc::clone(&self.store)),
            Router::new("printer")
                .on(render)
                .on(shred)
                .on(bind_many)
                .retry(Retry::exponential(Duration::from_millis(10)).attempts(3))
                .transactional(Arc::clone(&self.store)),
        ];
        Running::start_all(&self.broker, routers).await
    }

    fn order(&self, document: &str) {
        let document = document.to_owned();
        self.broker
            .publish_raw(outgoing(&PrintOrdered { document }));
    }

    async fn state(&self, document: &str) -> Option<SagaState> {
        let journal = sagas::journal(&*self.store, "print", document).await;
        Some(journal.expect("an answer")?.state)
    }

    /// Why a saga is stuck, as soon as it is.
    async fn stuck(&self, document: &str) -> String {
        let is_stuck = async || {
            let state = self.state(document).await;
            matches!(state, Some(SagaState::Stuck { .. }))
        };
        until("it is stuck", is_stuck).await;
        match self.state(document).await {
            Some(SagaState::Stuck { reason, .. }) => reason.into(),
            state => panic!("{state:?}"),
        }
    }

    async fn operate(&self, document: &str, action: Action) {
        let operation = Operation {
            who: "ann".into(),
            why: "it is too large".into(),
            action,
        };
        sagas::operate(&*self.store, "print", document, &operation)
            .await
            .expect("it is asked for");
    }

    /// The reasons of what the printer has given up.
    async fn given_up(&self) -> Vec<String> {
        let query = InboxQuery {
            state: Some(InboxState::Dead),
            limit: 100,
            ..InboxQuery::default()
        };
        let dead = self.store.deferred().list(&query).await.expect("a list");
        dead.into_iter()
            .filter_map(|row| Some(row.history.last()?.reason.clone()))
            .collect()
    }
}

fn rand_number() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

macro_rules! on_both {
    ($($test:ident: $sqlite:ident, $postgres:ident;)+) => {$(
        #[tokio::test]
        async fn $sqlite() {
            $test(World::sqlite().await).await;
        }

        #[tokio::test]
        #[ignore = "needs PostgreSQL"]
        async fn $postgres() {
            $test(World::postgres().await).await;
        }
    )+};
}

on_both! {
    too_large: an_answer_that_is_too_large_is_a_dead_letter_on_sqlite,
        an_answer_that_is_too_large_is_a_dead_letter_on_postgresql;
    full: a_saga_whose_journal_is_full_can_be_undone_on_sqlite,
        a_saga_whose_journal_is_full_can_be_undone_on_postgresql;
    batch: a_step_that_comes_to_a_batch_is_a_dead_letter_on_sqlite,
        a_step_that_comes_to_a_batch_is_a_dead_letter_on_postgresql;
}

/// An answer, and a refusal: the letter says the bytes and the bound, the saga says what the letter says, and
/// whoever answers by hand ends it.
async fn too_large(world: World) {
    let running = world.start().await;
    for document in ["done-66000", "refused-66000"] {
        world.order(document);
        let why = world.stuck(document).await;
        let bytes = match document.starts_with("done") {
            true => 66_000 + r#"{"done":""}"#.len(),
            false => 66_000 + r#"{"refused":{"reason":"","forNow":false}}"#.len(),
        };
        let expected = format!(
            "the command of `render-1` is a dead letter: the answer to the saga has {bytes} bytes, more \
             than the 65536 that an answer may have; answer with a reference to what is large (a claim \
             check) (TDG-3011)"
        );
        assert_eq!(why, expected);
        let reasons = world.given_up().await;
        let reason = reasons.iter().find(|it| it.contains(&bytes.to_string()));
        assert!(
            reason.is_some_and(|it| expected.ends_with(&**it)),
            "{reasons:?}"
        );

        let refused = sagas::Answer::Refused {
            reason: "it is printed elsewhere".into(),
            for_now: false,
        };
        let answer = Action::Answer("render-1".into(), refused);
        world.operate(document, answer).await;
        until("it ends", async || {
            world.state(document).await == Some(SagaState::Compensated)
        })
        .await;
    }
    let letters = world.broker.dead_letters("printer.render-pages.v1");
    assert_eq!(letters.len(), 2);
    running.stop().await;
}

/// Answers that fit by themselves, and not together. What was done is undone in one go when an operator says
/// so.
async fn full(world: World) {
    let running = world.start().await;
    world.order("done-40000");
    let why = world.stuck("done-40000").await;
    assert!(why.starts_with("its journal is full"), "{why}");
    world.operate("done-40000", Action::Compensate).await;
    until("it ends", async || {
        world.state("done-40000").await == Some(SagaState::Compensated)
    })
    .await;
    let journal = sagas::journal(&*world.store, "print", "done-40000").await;
    let journal = journal.expect("an answer").expect("a journal");
    let undone = journal.entries.iter().filter_map(|it| match &it.what {
        What::Undone { step } => Some(&**step),
        _ => None,
    });
    assert_eq!(
        undone.collect::<Vec<_>>(),
        ["render-3", "render-2", "render-1"]
    );
    assert_eq!(world.given_up().await, Vec::<String>::new());
    running.stop().await;
}

/// The start cannot tell, because the command does not say that it is a step.
async fn batch(world: World) {
    let running = world.start().await;
    world.order("done-10");
    let why = world.stuck("done-10").await;
    let expected = "the command of `bind` is a dead letter: the handler cannot run: it takes a `Batch`, \
                    and `bind-pages.v1` is a step of sagas";
    assert!(why.starts_with(expected), "{why}");
    assert!(why.ends_with("(TDG-3010)"), "{why}");

    // What no saga asks for is a batch as any other.
    let mut message = outgoing(&BindPages {});
    message.envelope.id = Some("b-1".into());
    world.broker.publish_raw(message);
    until("it is handled", async || world.broker.is_settled()).await;
    assert_eq!(world.given_up().await.len(), 1);
    assert_eq!(world.broker.dead_letters("printer.bind-pages.v1").len(), 1);
    running.stop().await;
}
