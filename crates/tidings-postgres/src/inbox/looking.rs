//! What is known of a message before its handler runs, which may spare running it. Only a hint: the
//! commit decides.
//!
//! It is asked in front of each attempt that may call the outside, so a look must cost next to nothing. Of one
//! message the names are parameters of their own: how long a list is, the database does not know, so it
//! believes that a plan for the values at hand is cheaper than one for all, and plans each time anew, which
//! costs ten times as much as the look. A plan for one message it makes five times and never again.

use tidings_core::{Ask, InboxState, Seen, StoreError};
use tokio_postgres::Row;

use crate::{
    connection::{Params, Pool},
    error::{Error, explain},
    values::{claim_columns, counter},
};

/// Many messages. Each is looked up for itself: a plan for all values that was made while the inbox was nearly
/// empty would read all of it where it joins.
pub(crate) const LOOK: &str = concat!(
    "select row.state, row.redrive, asked.order_key is not null and ",
    has_head!(
        "asked.order_group",
        "asked.order_key",
        "and not (head.consumer = asked.consumer and head.message = asked.message)"
    ),
    " from unnest($1::text[], $2::text[], $3::text[], $4::text[]) with ordinality
         as asked (consumer, message, order_group, order_key, number)
     left join lateral (
         select state, redrive from tidings_inbox as own
         where own.consumer = asked.consumer and own.message = asked.message limit 1
     ) as row on true
     order by asked.number"
);

/// One message that no order is kept for.
pub(crate) const LOOK_ONE: &str = "
    select row.state, row.redrive, false
    from (select) as asked left join (
        select state, redrive from tidings_inbox where consumer = $1 and message = $2
    ) as row on true";

/// One message with a key.
pub(crate) const LOOK_ONE_OF_KEY: &str = concat!(
    "select row.state, row.redrive, ",
    has_head!(
        "$3",
        "$4",
        "and not (head.consumer = $1 and head.message = $2)"
    ),
    " from (select) as asked left join (
         select state, redrive from tidings_inbox where consumer = $1 and message = $2
     ) as row on true"
);

pub(crate) async fn look(pool: &Pool, asked: &[Ask]) -> Result<Vec<Seen>, StoreError> {
    let failed = |error| explain("look for messages in the inbox", error);
    let rows = match asked {
        [] => return Ok(Vec::new()),
        [Ask { claim, order: None }] => {
            let params: Params<'_> = &[&&*claim.consumer, &claim.message.as_str()];
            pool.rows(LOOK_ONE, params).await
        }
        [
            Ask {
                claim,
                order: Some(order),
            },
        ] => {
            let params: Params<'_> = &[
                &&*claim.consumer,
                &claim.message.as_str(),
                &&*order.group,
                &&*order.key,
            ];
            pool.rows(LOOK_ONE_OF_KEY, params).await
        }
        many => look_for_many(pool, many).await,
    };
    let rows = rows.map_err(failed)?;
    let seen = rows.iter().map(|row| {
        let state: Option<i16> = row.try_get(0)?;
        let redrive: Option<i64> = row.try_get(1)?;
        Ok(Seen {
            state: state.and_then(InboxState::from_number),
            redrive: counter(redrive.unwrap_or(0)),
            behind: row.try_get(2)?,
        })
    });
    seen.collect::<Result<_, Error>>().map_err(failed)
}

async fn look_for_many(pool: &Pool, asked: &[Ask]) -> Result<Vec<Row>, Error> {
    let (consumers, messages) = claim_columns(asked.iter().map(|ask| &ask.claim));
    let orders = asked.iter().map(|ask| ask.order.as_ref());
    let (groups, keys): (Vec<Option<&str>>, Vec<Option<&str>>) = orders
        .map(|order| {
            (
                order.map(|order| &*order.group),
                order.map(|order| &*order.key),
            )
        })
        .unzip();
    pool.rows(LOOK, &[&consumers, &messages, &groups, &keys])
        .await
}
