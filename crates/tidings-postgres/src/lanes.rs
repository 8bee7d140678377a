//! How relays share the lanes of the outbox: the port's side for relays.
//!
//! Every relay is a row with the time until which it counts as alive, every lane a row with the
//! relay that has it and until when.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use tidings_core::{
    BoxFuture, Destination, Lane, Leased, ListedRow, Outbox, OutboxRow, OutboxState, OutboxStats,
    StoreError,
};

use crate::{
    Shared,
    connection::Pool,
    error::{Error, explain},
    outbox,
    values::{lane_numbers, seconds},
};

/// All of it runs on the connections that are kept for it: a relay must not lose its lanes because
/// handlers have all others.
impl Outbox for Shared {
    fn lease<'a>(
        &'a self,
        relay: &'a str,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Leased, StoreError>> {
        Box::pin(async move {
            let leased = lease_lanes(&self.reserved, relay, lease).await?;
            // Nobody else has a lane, so nobody else has to be woken.
            let is_alone = leased.lanes.len() == usize::from(Lane::COUNT);
            let until = is_alone.then(|| Instant::now() + lease);
            *self.alone_until.lock() = until;
            Ok(leased)
        })
    }

    fn release<'a>(
        &'a self,
        relay: &'a str,
        lanes: Option<&'a [Lane]>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        *self.alone_until.lock() = None;
        Box::pin(release_lanes(&self.reserved, relay, lanes))
    }

    fn next<'a>(
        &'a self,
        lanes: &'a [Lane],
        held: &'a [Destination],
        except: &'a [i64],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        Box::pin(outbox::next(
            &self.reserved,
            &self.progress,
            lanes,
            held,
            except,
            limit,
        ))
    }

    fn confirmed<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(outbox::confirmed(&self.removals, &self.progress, positions))
    }

    fn hold<'a>(
        &'a self,
        relay: &'a str,
        positions: &'a [i64],
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let state = OutboxState::Held;
        Box::pin(outbox::withdraw(
            &self.reserved,
            &self.progress,
            relay,
            positions,
            state,
            reason,
        ))
    }

    fn held<'a>(
        &'a self,
        lanes: &'a [Lane],
    ) -> BoxFuture<'a, Result<Vec<Destination>, StoreError>> {
        Box::pin(outbox::held(&self.reserved, lanes))
    }

    fn next_held<'a>(
        &'a self,
        lanes: &'a [Lane],
        destination: &'a Destination,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        Box::pin(outbox::next_held(&self.reserved, lanes, destination, limit))
    }

    fn set_aside<'a>(
        &'a self,
        relay: &'a str,
        positions: &'a [i64],
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let state = OutboxState::SetAside;
        Box::pin(outbox::withdraw(
            &self.reserved,
            &self.progress,
            relay,
            positions,
            state,
            reason,
        ))
    }

    fn list<'a>(
        &'a self,
        state: OutboxState,
        after: Option<i64>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ListedRow>, StoreError>> {
        Box::pin(outbox::list(&self.reserved, state, after, limit))
    }

    fn restore<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move {
            let restored = outbox::restore(&self.reserved, positions).await?;
            if restored > 0 {
                self.progress.begin_anew();
                self.wake();
            }
            Ok(restored)
        })
    }

    fn discard<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(outbox::discard(&self.reserved, positions))
    }

    fn committed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut wakes = self.wakes.subscribe();
            loop {
                let now = *wakes.borrow_and_update();
                if self.wakes_seen.swap(now, Ordering::Relaxed) != now {
                    return;
                }
                // An error is impossible: `self` holds a sender.
                let _ = wakes.changed().await;
            }
        })
    }

    fn stats(&self) -> BoxFuture<'_, Result<OutboxStats, StoreError>> {
        Box::pin(outbox::stats(&self.reserved, &self.progress))
    }
}

/// Renews what the relay has, and takes free lanes up to its share.
///
/// It first locks its own lanes (`mine` is read before `free`, which needs its count), and passes
/// over free ones that another relay is just taking; then it says that it is alive, and only then
/// (`gone` asks for `me`) removes relays that are not, passing over those that are just saying that
/// they are. So nobody waits for somebody who waits. Relays that register at the same moment may not
/// count each other; the next renewal does.
const LEASE: &str = "
    with me as (
        insert into tidings_relay (relay, alive_until)
        values ($1, statement_timestamp() + make_interval(secs => $2))
        on conflict (relay) do update set alive_until = excluded.alive_until
        returning relay
    ), gone as (
        delete from tidings_relay where relay = any (array(
            select relay from tidings_relay
            where relay <> $1 and alive_until <= statement_timestamp()
              and exists (select from me)
            for update skip locked
        ))
    ), share as materialized (
        select ceil($3::float8 / (1 + count(*)))::bigint as lanes from tidings_relay
        where relay <> $1 and alive_until > statement_timestamp()
    ), mine as materialized (
        select lane from tidings_lane where relay = $1 order by lane for update
    ), free as materialized (
        select lane from tidings_lane
        where relay is null or relay <> $1 and leased_until <= statement_timestamp()
        order by lane
        limit greatest(0, (select lanes from share) - (select count(*) from mine))
        for update skip locked
    )
    update tidings_lane as lane
    set relay = $1, leased_until = statement_timestamp() + make_interval(secs => $2)
    from (select lane from mine union all select lane from free) as own
    where lane.lane = own.lane
    returning lane.lane, (select lanes from share)";

async fn lease_lanes(pool: &Pool, relay: &str, lease: Duration) -> Result<Leased, StoreError> {
    let failed = |error| explain("lease outbox lanes", error);
    let rows = pool
        .rows(LEASE, &[&relay, &seconds(lease), &f64::from(Lane::COUNT)])
        .await
        .map_err(failed)?;
    let rows = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<Vec<(i16, i64)>, Error>>()
        .map_err(failed)?;
    let share = rows.first().map_or(0, |(_, share)| *share);
    let mut lanes: Vec<Lane> = rows
        .iter()
        .map(|(lane, _)| Lane(lane.cast_unsigned()))
        .collect();
    lanes.sort_unstable();
    let share = usize::try_from(share).unwrap_or(0);
    let surplus = u16::try_from(lanes.len().saturating_sub(share)).unwrap_or(Lane::COUNT);
    Ok(Leased { lanes, surplus })
}

async fn release_lanes(pool: &Pool, relay: &str, lanes: Option<&[Lane]>) -> Result<(), StoreError> {
    pool.execute(
        "with gone as (
             delete from tidings_relay where relay = $1 and $2::smallint[] is null
         ), given_up as materialized (
             select lane from tidings_lane
             where relay = $1 and ($2 is null or lane = any ($2)) order by lane for update
         )
         update tidings_lane as lane set relay = null, leased_until = '-infinity'
         from given_up where lane.lane = given_up.lane",
        &[&relay, &lanes.map(lane_numbers)],
    )
    .await
    .map(drop)
    .map_err(|error| explain("release outbox lanes", error))
}
