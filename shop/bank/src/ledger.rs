//! The ledger: entries are added, never changed, and at most one of each kind per idempotency key.
//!
//! Charges and refunds of one key lock that key first, so that of two at the same time the later
//! one sees what the earlier one did.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shop_contracts::{CARD_FLAKY, CARD_OK, Money};
use shop_kit::{Db, Problem, Row, Statement, StoreError, sql};

use crate::behaviour::Refunds;

/// How often the bank fails for `tok_flaky` before it charges.
pub const FLAKY_FAILURES: i64 = 2;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Charge {
    pub(crate) order_id: String,
    #[serde(deserialize_with = "Money::deserialize_positive")]
    pub(crate) amount: Money,
    /// None: the card on file.
    #[serde(default)]
    pub(crate) card: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Refund {
    pub(crate) order_id: String,
}

/// What the bank answers. Declining is an answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// What was given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<Money>,
}

impl Answer {
    const CHARGED: Self = Self::new("CHARGED");
    const NOTHING_TO_REFUND: Self = Self::new("NOTHING_TO_REFUND");

    const fn new(status: &'static str) -> Self {
        Self {
            status,
            reason: None,
            amount: None,
        }
    }

    fn declined(reason: &'static str) -> Self {
        Self {
            reason: Some(reason),
            ..Self::new("DECLINED")
        }
    }

    fn refunded(amount: Money) -> Self {
        Self {
            amount: Some(amount),
            ..Self::new("REFUNDED")
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    kind: String,
    amount: Money,
    idempotency_key: String,
    order_id: String,
    at: Timestamp,
}

/// Takes money, once per key, unless the key is void. The first decision about a key stands: a card
/// that is declined makes the key void, and one that is asked for after a charge changes nothing.
pub(crate) async fn charge(db: &Db, key: &str, charge: &Charge) -> Result<Answer, Problem> {
    let refusal = match charge.card.as_deref() {
        None | Some(CARD_OK) => None,
        Some(CARD_FLAKY) => {
            stumble(db, key).await?;
            None
        }
        Some("tok_declined") => Some("the card was declined"),
        Some(_) => Some("the bank does not know this card"),
    };
    let (lock, take) = (lock(key), take(key, charge));
    let (make_void, kept_charge) = (make_void(key), kept(key, "charge"));
    let kept = db.write(move |mut tx| async move {
        let used = tx.first(lock).await?.ok_or_else(lost)?;
        let is_void = used.get::<i64>(0)? == 1;
        match refusal {
            Some(_) => {
                tx.execute(make_void).await?;
                tx.first(kept_charge).await
            }
            None if is_void => Ok(None),
            None => tx.first(take).await,
        }
    });
    let Some(row) = kept.await? else {
        let before = "this payment was declined or cancelled before";
        return Ok(Answer::declined(refusal.unwrap_or(before)));
    };
    let same =
        row.get::<String>(0)? == charge.order_id && row.get::<i64>(1)? == charge.amount.cents();
    if !same {
        return Err(Problem::key_reused(
            "this key has charged another order or amount; use a new key",
        ));
    }
    Ok(Answer::CHARGED)
}

/// Gives back what was taken with this key, once. If nothing was, the key is void from now on.
///
/// A refund that had to wait for its charge looked at the clock before it; in the ledger it comes after.
///
/// A bank that refuses refunds keeps what it has taken and not given back yet; the rest is answered as ever.
pub(crate) async fn refund(
    db: &Db,
    key: &str,
    refund: &Refund,
    refunds: Refunds,
) -> Result<Answer, Problem> {
    let insert = sql(
        "insert into ledger (idempotency_key, kind, order_id, amount, at)
         select idempotency_key, 'refund', order_id, amount, case when at > $3 then at else $3 end
         from ledger
         where idempotency_key = $1 and kind = 'charge' and order_id = $2
         on conflict (idempotency_key, kind) do nothing",
    )
    .bind(key)
    .bind(&refund.order_id)
    .bind(Timestamp::now().as_microsecond());
    let (lock, make_void) = (lock(key), make_void(key));
    let (kept_charge, kept_refund) = (kept(key, "charge"), kept(key, "refund"));
    let entries = db.write(move |mut tx| async move {
        tx.execute(lock).await?;
        if refunds == Refunds::Ok {
            tx.execute(insert).await?;
        }
        tx.execute(make_void).await?;
        Ok((tx.first(kept_charge).await?, tx.first(kept_refund).await?))
    });
    let (charge, given_back) = entries.await?;
    let Some(row) = charge else {
        return Ok(Answer::NOTHING_TO_REFUND);
    };
    if row.get::<String>(0)? != refund.order_id {
        return Err(Problem::key_reused(
            "this key has charged another order; refund an order with the key that charged it",
        ));
    }
    if given_back.is_none() {
        return Err(Problem::invalid(
            "the refund is refused: the account is closed",
        ));
    }
    Ok(Answer::refunded(Money::from_cents(row.get(1)?)))
}

/// Makes whoever else uses this key wait until this transaction is over, and says whether it is
/// void.
fn lock(key: &str) -> Statement {
    sql(
        "insert into used_key (idempotency_key, is_void) values ($1, 0)
         on conflict (idempotency_key) do update set is_void = used_key.is_void
         returning is_void",
    )
    .bind(key)
}

/// Takes the money unless that was done before, and says for which order, and how much.
fn take(key: &str, charge: &Charge) -> Statement {
    sql(
        "insert into ledger (idempotency_key, kind, order_id, amount, at)
         values ($1, 'charge', $2, $3, $4)
         on conflict (idempotency_key, kind) do update set at = ledger.at
         returning order_id, amount",
    )
    .bind(key)
    .bind(&charge.order_id)
    .bind(charge.amount.cents())
    .bind(Timestamp::now().as_microsecond())
}

/// Forbids charges with this key for ever, unless there was one.
fn make_void(key: &str) -> Statement {
    sql(
        "update used_key set is_void = 1 where idempotency_key = $1 and not exists
             (select 1 from ledger where idempotency_key = $1 and kind = 'charge')",
    )
    .bind(key)
}

fn kept(key: &str, kind: &str) -> Statement {
    sql("select order_id, amount from ledger where idempotency_key = $1 and kind = $2")
        .bind(key)
        .bind(kind)
}

/// The entries about an order, oldest first.
pub(crate) async fn entries(db: &Db, order_id: &str) -> Result<Vec<Entry>, StoreError> {
    let query = sql(
        "select kind, amount, idempotency_key, order_id, at from ledger
         where order_id = $1 order by at, kind",
    );
    let rows = db.read(query.bind(order_id)).await?;
    rows.iter().map(entry).collect()
}

fn entry(row: &Row) -> Result<Entry, StoreError> {
    Ok(Entry {
        kind: row.get(0)?,
        amount: Money::from_cents(row.get(1)?),
        idempotency_key: row.get(2)?,
        order_id: row.get(3)?,
        at: shop_kit::timestamp(row.get(4)?)?,
    })
}

/// Fails for the first requests with a key.
async fn stumble(db: &Db, key: &str) -> Result<(), Problem> {
    let count = sql(
        "insert into flaky_card (idempotency_key, requests) values ($1, 1)
         on conflict (idempotency_key) do update set requests = flaky_card.requests + 1
         returning requests",
    );
    let row = db.first(count.bind(key)).await?.ok_or_else(lost)?;
    if row.get::<i64>(0)? <= FLAKY_FAILURES {
        return Err(Problem::bank_fault("this card's network failed; try again"));
    }
    Ok(())
}

fn lost() -> StoreError {
    StoreError::new("the ledger did not return what was written to it")
}
