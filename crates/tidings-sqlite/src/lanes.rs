//! How the relays that are alive share the lanes of the outbox.
//!
//! Each relay says that it is alive when it renews its lease. Its share is an equal part of the
//! lanes, rounded up. It takes free lanes up to its share and keeps those it has; it is told how
//! many it has beyond its share, and gives them up itself once nothing of theirs is in flight.

use std::time::Duration;

use rusqlite::{Connection, Result};
use tidings_core::{Lane, Leased};

use crate::clock::{later, limit, now_ms};

const FORGET_DEAD_RELAYS: &str = "delete from tidings_relay where alive_until <= ?1";

const IS_ALIVE: &str = "\
insert into tidings_relay (relay, alive_until) values (?1, ?2) \
on conflict (relay) do update set alive_until = excluded.alive_until";

const COUNT: &str = "select count(*) from tidings_relay";

const RENEW: &str = "\
update tidings_lane set leased_until = ?2 where relay = ?1 returning lane";

/// Free lanes, and those whose relay stopped renewing them.
const TAKE: &str = "\
update tidings_lane set relay = ?1, leased_until = ?2 where lane in ( \
    select lane from tidings_lane where relay is null or (relay <> ?1 and leased_until <= ?3) \
    order by lane limit ?4) \
returning lane";

const RELEASE: &str = "\
update tidings_lane set relay = null, leased_until = 0 where relay = ?1 and lane = ?2";

const RELEASE_ALL: &str = "\
update tidings_lane set relay = null, leased_until = 0 where relay = ?1";

const LEAVE: &str = "delete from tidings_relay where relay = ?1";

pub(crate) fn lease(connection: &Connection, relay: &str, lease: Duration) -> Result<Leased> {
    let now = now_ms();
    let until = later(now, lease);
    connection
        .prepare_cached(FORGET_DEAD_RELAYS)?
        .execute((now,))?;
    connection
        .prepare_cached(IS_ALIVE)?
        .execute((relay, until))?;
    let alive: u16 = connection
        .prepare_cached(COUNT)?
        .query_row((), |row| row.get(0))?;
    let share = usize::from(Lane::COUNT.div_ceil(alive.max(1)));

    let mut lanes: Vec<Lane> = connection
        .prepare_cached(RENEW)?
        .query_map((relay, until), |row| row.get(0).map(Lane))?
        .collect::<Result<_>>()?;
    if lanes.len() < share {
        let room = limit(share - lanes.len());
        let mut take = connection.prepare_cached(TAKE)?;
        let taken = take.query_map((relay, until, now, room), |row| row.get(0).map(Lane))?;
        for lane in taken {
            lanes.push(lane?);
        }
    }
    lanes.sort_unstable();
    Ok(Leased {
        surplus: u16::try_from(lanes.len().saturating_sub(share)).unwrap_or(Lane::COUNT),
        lanes,
    })
}

pub(crate) fn release(connection: &Connection, relay: &str, lanes: Option<&[Lane]>) -> Result<()> {
    let Some(lanes) = lanes else {
        connection.prepare_cached(RELEASE_ALL)?.execute((relay,))?;
        connection.prepare_cached(LEAVE)?.execute((relay,))?;
        return Ok(());
    };
    let mut release = connection.prepare_cached(RELEASE)?;
    lanes
        .iter()
        .try_for_each(|lane| release.execute((relay, lane.0)).map(drop))
}
