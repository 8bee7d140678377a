//! The orders in the database. Every statement may run again without doing more.

use jiff::Timestamp;
use serde::Serialize;
use shop_contracts::{Money, OrderPlaced, OrderStatus};
use shop_kit::{Db, Problem, Row, Statement, StoreError, sql};

/// Who answers whether there is the money, and whether there are the goods.
pub(crate) const PAYMENT: &str = "payment";
pub(crate) const INVENTORY: &str = "inventory";
/// Who decides, if the order is led.
pub(crate) const CHECKOUT: &str = "checkout";

/// The longest reason of a refusal that is kept; what a service says at greater length is cut, so
/// that `OrderCancelled` is never too large to be published.
const REASON_BYTES_MAX: usize = 500;
/// The longest customer id and address of an order from elsewhere that are kept. What is longer, or
/// has control characters, is no customer id and no address.
const CUSTOMER_BYTES_MAX: usize = 128;
const EMAIL_BYTES_MAX: usize = 254;

/// What payment or inventory said, with why if they refused.
pub(crate) enum Answer {
    Payment { refused: Option<String> },
    Stock { refused: Option<String> },
}

impl Answer {
    /// The event that said it.
    pub(crate) const fn event(&self) -> &'static str {
        match self {
            Self::Payment { refused: None } => "PaymentAuthorized",
            Self::Payment { refused: Some(_) } => "PaymentDeclined",
            Self::Stock { refused: None } => "StockReserved",
            Self::Stock { refused: Some(_) } => "StockRejected",
        }
    }
}

/// What payment and inventory have said so far.
pub(crate) struct Answers {
    pub(crate) payment: Option<String>,
    pub(crate) stock: Option<String>,
}

/// What is known of an order when something about it is heard.
pub(crate) struct Known {
    status: String,
    amount: Option<Money>,
    pub(crate) customer_id: Option<String>,
    pub(crate) email: Option<String>,
    answers: Answers,
    reason: Option<String>,
    /// The checkout has had something done for it: that decides.
    is_led: bool,
}

/// How an order ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Confirm { amount: Money },
    Cancel { reason: String },
}

const ACCEPTED: &str = "ACCEPTED";
const REFUSED: &str = "REFUSED";

impl Known {
    /// From a row of `status, amount, customer_id, email, payment, stock, reason, led`.
    pub(crate) fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            status: row.get(0)?,
            amount: row.get::<Option<i64>>(1)?.map(Money::from_cents),
            customer_id: row.get(2)?,
            email: row.get(3)?,
            answers: Answers {
                payment: row.get(4)?,
                stock: row.get(5)?,
            },
            reason: row.get(6)?,
            is_led: row.get::<i64>(7)? != 0,
        })
    }

    /// Whether it is confirmed or cancelled.
    pub(crate) fn has_ended(&self) -> bool {
        self.status != OrderStatus::Created.as_str()
    }

    /// The first refusal decides; otherwise both have to accept. None as long as that is open, if
    /// the order itself has not been heard of, if it was decided before, or if the checkout decides.
    pub(crate) fn decision(&self) -> Option<Decision> {
        if self.has_ended() || self.is_led {
            return None;
        }
        let amount = self.amount?;
        let answers = [&self.answers.payment, &self.answers.stock].map(Option::as_deref);
        if answers.contains(&Some(REFUSED)) {
            let reason = self.reason.clone();
            let reason = reason.unwrap_or_else(|| "it was refused".to_owned());
            return Some(Decision::Cancel { reason });
        }
        let accepted = answers == [Some(ACCEPTED); 2];
        accepted.then_some(Decision::Confirm { amount })
    }
}

impl Decision {
    pub(crate) const fn status(&self) -> OrderStatus {
        match self {
            Self::Confirm { .. } => OrderStatus::Confirmed,
            Self::Cancel { .. } => OrderStatus::Cancelled,
        }
    }

    /// The event that announces it.
    const fn event(&self) -> &'static str {
        match self {
            Self::Confirm { .. } => "OrderConfirmed",
            Self::Cancel { .. } => "OrderCancelled",
        }
    }
}

/// Stores an order of this shop and returns it, unless its idempotency key was used before.
pub(crate) fn place(
    order: &OrderPlaced,
    idempotency_key: Option<&str>,
    request: Option<&str>,
) -> Statement {
    sql("insert into orders
         (order_id, status, amount, customer_id, email, placed_at, idempotency_key, request)
         values ($1, 'CREATED', $2, $3, $4, $5, $6, $7)
         on conflict (idempotency_key) do nothing
         returning order_id")
    .bind(&order.order_id)
    .bind(order.amount.cents())
    .bind(order.customer_id.as_deref())
    .bind(order.email.as_deref())
    .bind(order.timestamp.as_microsecond())
    .bind(idempotency_key)
    .bind(request)
}

/// The order that was placed with this idempotency key.
pub(crate) fn with_key(key: &str) -> Statement {
    sql("select order_id, amount, request from orders where idempotency_key = $1").bind(key)
}

/// Stores an order that somebody else published, unless it is known: then its row is not even
/// locked, so that an answer to it, which another copy of this service may have in hand, does not
/// wait. Its time is when it, or an answer to it, was first heard of: whoever published it may have
/// another clock.
pub(crate) fn adopt(order: &OrderPlaced) -> Statement {
    let kept = |text: &Option<String>, bytes_max| {
        let text = text.as_deref();
        text.filter(|text| text.len() <= bytes_max && !text.chars().any(char::is_control))
            .map(ToOwned::to_owned)
    };
    sql(
        "insert into orders (order_id, status, amount, customer_id, email, placed_at)
         select $1, 'CREATED', cast($2 as bigint), $3, $4, cast($5 as bigint) where not exists
             (select 1 from orders where order_id = $1 and amount is not null)
         on conflict (order_id) do update
         set amount = excluded.amount, customer_id = excluded.customer_id,
             email = excluded.email, placed_at = coalesce(orders.placed_at, excluded.placed_at)
         where orders.amount is null
         returning status, amount, customer_id, email, payment, stock, reason, led",
    )
    .bind(&order.order_id)
    .bind(order.amount.cents())
    .bind(kept(&order.customer_id, CUSTOMER_BYTES_MAX))
    .bind(kept(&order.email, EMAIL_BYTES_MAX))
    .bind(Timestamp::now().as_microsecond())
}

/// Takes an answer, also to an order that is not known yet, unless the same service has answered
/// before. Of an order that has ended it keeps nothing but that there was one. An answer to the checkout
/// says that the order is led.
pub(crate) fn answered(order_id: &str, answer: &Answer, is_led: bool, at: Timestamp) -> Statement {
    let (statement, refused) = match answer {
        Answer::Payment { refused } => (
            sql(
                "insert into orders (order_id, status, payment, reason, placed_at, history, led)
                 values ($1, 'CREATED', $2, $3, $4, $5, $6)
                 on conflict (order_id) do update
                 set payment = excluded.payment,
                     led = case excluded.led when 1 then 1 else orders.led end,
                     reason = case orders.status
                         when 'CREATED' then coalesce(orders.reason, excluded.reason)
                         else orders.reason
                     end,
                     history = case orders.status
                         when 'CREATED' then orders.history || excluded.history
                         else orders.history
                     end
                 where orders.payment is null
                 returning status, amount, customer_id, email, payment, stock, reason, led",
            ),
            refused,
        ),
        Answer::Stock { refused } => (
            sql(
                "insert into orders (order_id, status, stock, reason, placed_at, history, led)
                 values ($1, 'CREATED', $2, $3, $4, $5, $6)
                 on conflict (order_id) do update
                 set stock = excluded.stock,
                     led = case excluded.led when 1 then 1 else orders.led end,
                     reason = case orders.status
                         when 'CREATED' then coalesce(orders.reason, excluded.reason)
                         else orders.reason
                     end,
                     history = case orders.status
                         when 'CREATED' then orders.history || excluded.history
                         else orders.history
                     end
                 where orders.stock is null
                 returning status, amount, customer_id, email, payment, stock, reason, led",
            ),
            refused,
        ),
    };
    let word = if refused.is_some() { REFUSED } else { ACCEPTED };
    statement
        .bind(order_id)
        .bind(word)
        .bind(refused.as_deref().map(plain))
        .bind(Timestamp::now().as_microsecond())
        .bind(entry(answer.event(), at))
        .bind(i64::from(is_led))
}

/// A reason as it is kept: without control characters, and not longer than anybody reads.
fn plain(reason: &str) -> String {
    let mut kept = String::new();
    for character in reason.chars().filter(|character| !character.is_control()) {
        if kept.len() + character.len_utf8() > REASON_BYTES_MAX {
            kept.push('…');
            break;
        }
        kept.push(character);
    }
    kept
}

/// Ends an order that is undecided. One that has ended never changes again.
pub(crate) fn decided(order_id: &str, decision: &Decision) -> Statement {
    sql("update orders set status = $2, history = history || $3
         where order_id = $1 and status = 'CREATED'")
    .bind(order_id)
    .bind(decision.status().as_str())
    .bind(entry(decision.event(), Timestamp::now()))
}

/// Confirms an order that is undecided, as the checkout says; gives `amount, customer_id, email`. That both
/// have accepted is in what it says, so it stands in the history before the end, even if their own events
/// are heard of later.
pub(crate) fn confirmed(order_id: &str) -> Statement {
    let now = Timestamp::now();
    let [reserved, paid] = [
        Answer::Stock { refused: None },
        Answer::Payment { refused: None },
    ];
    let decision = Decision::Confirm {
        amount: Money::ZERO,
    };
    sql("update orders
         set status = 'CONFIRMED', led = 1,
             stock = coalesce(stock, 'ACCEPTED'), payment = coalesce(payment, 'ACCEPTED'),
             history = history || case when stock is null then $2 else '' end
                 || case when payment is null then $3 else '' end || $4
         where order_id = $1 and status = 'CREATED' and amount is not null
         returning amount, customer_id, email")
    .bind(order_id)
    .bind(entry(reserved.event(), now))
    .bind(entry(paid.event(), now))
    .bind(entry(decision.event(), now))
}

/// Cancels an order that is undecided, as the checkout says; gives `reason, email`. What refused it may
/// have said why before.
pub(crate) fn cancelled(order_id: &str, reason: &str) -> Statement {
    let decision = Decision::Cancel {
        reason: String::new(),
    };
    sql("update orders
         set status = 'CANCELLED', led = 1, reason = coalesce(reason, $2), history = history || $3
         where order_id = $1 and status = 'CREATED' and amount is not null
         returning reason, email")
    .bind(order_id)
    .bind(plain(reason))
    .bind(entry(decision.event(), Timestamp::now()))
}

/// The status of an order, and its reason.
pub(crate) fn status(order_id: &str) -> Statement {
    sql("select status, reason from orders where order_id = $1").bind(order_id)
}

/// An event as it stands in the history of an order.
pub(crate) fn entry(event: &'static str, at: Timestamp) -> String {
    format!("{event} {} ", at.as_microsecond())
}

/// The events of a history, in the order in which they were heard of.
fn entries(history: &str) -> Result<Vec<Happening>, StoreError> {
    let words: Vec<&str> = history.split_ascii_whitespace().collect();
    let unread = || StoreError::new(format!("`{history}` is not the history of an order"));
    let entries = words.chunks(2).map(|entry| match *entry {
        [event, at] => Ok(Happening {
            at: shop_kit::timestamp(at.parse().map_err(|_| unread())?)?,
            event: event.to_owned(),
        }),
        _ => Err(unread()),
    });
    entries.collect()
}

/// Notes what happened to an order without deciding anything, after all that was heard before; each
/// thing happens once to an order. `at` is when it happened according to whoever says so, and is
/// only shown.
pub(crate) fn noted(order_id: &str, event: &'static str, at: Timestamp) -> Statement {
    sql("insert into happening (order_id, event, at, number)
         select $1, $2, cast($3 as bigint), coalesce(max(number), 0) + 1
         from happening where order_id = $1
         on conflict (order_id, event) do nothing")
    .bind(order_id)
    .bind(event)
    .bind(at.as_microsecond())
}

/// An order as it is told over HTTP.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Order {
    order_id: String,
    pub(crate) status: String,
    amount: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    customer_id: Option<String>,
    placed_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    pub(crate) timeline: Vec<Happening>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Happening {
    at: Timestamp,
    event: String,
}

/// An order without what happened to it, as lists show it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    pub(crate) order_id: String,
    status: String,
    amount: Money,
    placed_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// One order, with its timeline: that it was placed, which was the first whenever it was heard of,
/// then what decided it, then what was noted.
pub(crate) async fn find(db: &Db, order_id: &str) -> Result<Order, Problem> {
    let query = sql(
        "select orders.status, orders.amount, orders.customer_id, orders.placed_at, orders.reason,
                orders.history, happening.at, happening.event
         from orders left join happening on happening.order_id = orders.order_id
         where orders.order_id = $1 and orders.amount is not null
         order by happening.number, happening.at, happening.event",
    );
    let rows = db.read(query.bind(order_id)).await?;
    let row = rows
        .first()
        .ok_or_else(|| Problem::not_found(format_args!("there is no order `{order_id}`")))?;
    let placed_at = shop_kit::timestamp(row.get(3)?)?;
    let mut timeline = vec![Happening {
        at: placed_at,
        event: "OrderPlaced".to_owned(),
    }];
    timeline.extend(entries(&row.get::<String>(5)?)?);
    for row in &rows {
        let (Some(at), Some(event)) = (row.get(6)?, row.get::<Option<String>>(7)?) else {
            continue;
        };
        // What decided an order may be told again, when it is not known as a duplicate any more.
        if !timeline.iter().any(|happened| happened.event == event) {
            let at = shop_kit::timestamp(at)?;
            timeline.push(Happening { at, event });
        }
    }
    let status: String = row.get(0)?;
    // A refusal is a reason only once the order ended by it.
    let reason = row.get(4)?;
    let cancelled = status == OrderStatus::Cancelled.as_str();
    Ok(Order {
        order_id: order_id.to_owned(),
        amount: Money::from_cents(row.get(1)?),
        customer_id: row.get(2)?,
        placed_at,
        reason: if cancelled { reason } else { None },
        status,
        timeline,
    })
}

/// The orders of a customer, newest first; those before `before` if that is given.
pub(crate) async fn of_customer(
    db: &Db,
    customer_id: &str,
    limit: u32,
    before: Option<&str>,
) -> Result<Vec<Summary>, StoreError> {
    let query = match before {
        None => sql(
            "select order_id, status, amount, placed_at, reason from orders
             where customer_id = $1
             order by placed_at desc, order_id desc limit $2",
        ),
        Some(_) => sql(
            "select order_id, status, amount, placed_at, reason from orders
             where customer_id = $1
               and (placed_at, order_id) <
                   (select placed_at, order_id from orders where order_id = $3)
             order by placed_at desc, order_id desc limit $2",
        ),
    };
    let query = query.bind(customer_id).bind(i64::from(limit));
    let query = match before {
        None => query,
        Some(before) => query.bind(before),
    };
    let rows = db.read(query).await?;
    rows.iter().map(summary).collect()
}

fn summary(row: &Row) -> Result<Summary, StoreError> {
    let status: String = row.get(1)?;
    let cancelled = status == OrderStatus::Cancelled.as_str();
    Ok(Summary {
        order_id: row.get(0)?,
        amount: Money::from_cents(row.get(2)?),
        placed_at: shop_kit::timestamp(row.get(3)?)?,
        reason: if cancelled { row.get(4)? } else { None },
        status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(payment: Option<&str>, stock: Option<&str>, placed: bool, expected: Option<&str>) {
        let mut known = Known {
            status: "CREATED".into(),
            amount: placed.then_some(Money::from_cents(100)),
            customer_id: None,
            email: None,
            answers: Answers {
                payment: payment.map(Into::into),
                stock: stock.map(Into::into),
            },
            reason: Some("no money".into()),
            is_led: false,
        };
        let status = known.decision().map(|decision| decision.status().as_str());
        assert_eq!(status, expected, "{payment:?} {stock:?} {placed}");
        known.is_led = true;
        assert_eq!(known.decision(), None, "led {payment:?} {stock:?}");
        known.is_led = false;
        for ended in ["CONFIRMED", "CANCELLED"] {
            known.status = ended.into();
            assert_eq!(known.decision(), None, "{ended} {payment:?} {stock:?}");
        }
    }

    #[test]
    fn the_first_refusal_cancels_and_both_confirm() {
        check(None, None, true, None);
        check(Some(ACCEPTED), None, true, None);
        check(None, Some(ACCEPTED), true, None);
        check(None, Some(REFUSED), true, Some("CANCELLED"));
        check(Some(REFUSED), None, true, Some("CANCELLED"));
        check(Some(REFUSED), None, false, None);
        check(Some(ACCEPTED), Some(ACCEPTED), false, None);
        check(Some(ACCEPTED), Some(ACCEPTED), true, Some("CONFIRMED"));
        check(Some(REFUSED), Some(ACCEPTED), true, Some("CANCELLED"));
        check(Some(ACCEPTED), Some(REFUSED), true, Some("CANCELLED"));
        check(Some(REFUSED), Some(REFUSED), true, Some("CANCELLED"));
    }

    #[test]
    fn a_reason_is_short_and_plain() {
        assert_eq!(plain("no\u{0} money\n"), "no money");
        let long = plain(&"ä".repeat(100_000));
        assert_eq!(long.len(), REASON_BYTES_MAX + "…".len());
    }
}
