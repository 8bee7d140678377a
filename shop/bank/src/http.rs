//! The bank over HTTP.

use axum::{
    Json, Router,
    extract::State,
    http::HeaderMap,
    routing::{get, post, put},
};
use serde::Deserialize;
use shop_kit::{Db, JsonBody, Problem, QueryOf, idempotency_key};

use crate::{
    behaviour::{Behaviour, Fate, Settings},
    ledger::{self, Answer, Charge, Entry, Refund},
};

#[derive(Clone)]
struct Bank {
    db: Db,
    behaviour: Behaviour,
}

pub(crate) fn routes(db: Db, behaviour: Behaviour) -> Router {
    Router::new()
        .route("/bank/charges", post(charge))
        .route("/bank/refunds", post(refund))
        .route("/bank/ledger", get(entries))
        .route("/bank/behaviour", put(set_behaviour).get(behaviour_now))
        .with_state(Bank { db, behaviour })
}

async fn charge(
    State(bank): State<Bank>,
    headers: HeaderMap,
    JsonBody(charge): JsonBody<Charge>,
) -> Result<Json<Answer>, Problem> {
    let key = required_key(&headers)?;
    bank.behave(async |db| ledger::charge(db, &key, &charge).await)
        .await
}

async fn refund(
    State(bank): State<Bank>,
    headers: HeaderMap,
    JsonBody(refund): JsonBody<Refund>,
) -> Result<Json<Answer>, Problem> {
    let key = required_key(&headers)?;
    let refunds = bank.behaviour.refunds();
    bank.behave(async |db| ledger::refund(db, &key, &refund, refunds).await)
        .await
}

impl Bank {
    /// Does `work` the way the bank behaves for now.
    async fn behave(
        &self,
        work: impl AsyncFnOnce(&Db) -> Result<Answer, Problem>,
    ) -> Result<Json<Answer>, Problem> {
        match self.behaviour.meet().await {
            Fate::Answer => work(&self.db).await.map(Json),
            Fate::Fail => Err(Problem::bank_fault("the bank failed; try again")),
            Fate::LoseAnswer => {
                work(&self.db).await?;
                Err(Problem::bank_fault(
                    "the answer of the bank was lost; try again",
                ))
            }
            Fate::Refuse => Err(Problem::unavailable("the bank is down; try again later")),
        }
    }
}

fn required_key(headers: &HeaderMap) -> Result<String, Problem> {
    idempotency_key(headers)?.ok_or_else(|| {
        Problem::malformed("the bank moves no money without an `Idempotency-Key` header")
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfOrder {
    order_id: String,
}

async fn entries(
    State(bank): State<Bank>,
    QueryOf(of): QueryOf<OfOrder>,
) -> Result<Json<Vec<Entry>>, Problem> {
    Ok(Json(ledger::entries(&bank.db, &of.order_id).await?))
}

async fn behaviour_now(State(bank): State<Bank>) -> Json<Settings> {
    Json(bank.behaviour.settings())
}

async fn set_behaviour(
    State(bank): State<Bank>,
    JsonBody(settings): JsonBody<Settings>,
) -> Result<Json<Settings>, Problem> {
    let settings = bank.behaviour.set(&bank.db, settings).await?;
    tracing::info!(?settings, "the bank behaves differently from now on");
    Ok(Json(settings))
}
