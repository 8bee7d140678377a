//! The faults: what is drawn from the seed, done to the world, and mended some time later.
//!
//! Several faults may be on at a time; one that would meet another of its own kind mends that first.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tidings_sqlite::rusqlite::Connection;

use crate::{
    messages::TOPIC,
    random::Random,
    stack::{Broker, Database, Stack},
    world::{Kind, World},
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillProducer,
    KillConsumer,
    KillBroker,
    /// One node of several.
    KillNode,
    KillDatabase,
    /// SIGSTOP of a process with a relay, for longer than its lanes are leased.
    StopProducer,
    /// SIGSTOP of a process with consumers, for longer than its rows are leased.
    StopConsumer,
    CutBroker,
    CutDatabase,
    HalfOpenBroker,
    HalfOpenDatabase,
    SlowBroker,
    RefusingBroker,
    /// Somebody else holds the database's lock.
    LockDatabase,
    /// A queue of somebody else is full and refuses what is published.
    FullListener,
    Duplicates,
    /// All consumers are down while producers go on.
    ConsumersAway,
    /// The broker is down while producers go on.
    BrokerAway,
}

impl Fault {
    /// How often each is in the deck from which a stack's faults are drawn.
    pub(crate) fn deck(stack: Stack, only_kills: bool) -> Vec<Fault> {
        let is_postgres = stack.database == Database::Postgres;
        // RabbitMQ and Kafka take ten seconds to come back, so they die less often than ours. Of a cluster a node dies;
        // that all of it is down is a fault of its own.
        let (broker_kills, node_kills) = match stack.broker {
            Broker::Embedded | Broker::Aws => (3, 0),
            Broker::RabbitMq | Broker::Kafka => (1, 0),
            Broker::RabbitMqCluster => (0, 2),
        };
        let on = usize::from;
        let refuses = on(stack.broker.has_queues_that_refuse());
        let counts = [
            (Self::KillProducer, 3),
            (Self::KillConsumer, 3),
            (Self::KillBroker, broker_kills),
            (Self::KillNode, node_kills),
            (Self::KillDatabase, on(is_postgres) * 2),
            (Self::StopProducer, 2),
            (Self::StopConsumer, 2),
            (Self::CutBroker, 3),
            (Self::CutDatabase, on(is_postgres) * 2),
            (Self::HalfOpenBroker, 1),
            (Self::HalfOpenDatabase, on(is_postgres)),
            (Self::SlowBroker, 1),
            (Self::RefusingBroker, 1),
            (Self::LockDatabase, on(!is_postgres)),
            (Self::FullListener, refuses * 2),
            (Self::Duplicates, 3),
            (Self::ConsumersAway, 1),
            (Self::BrokerAway, 1),
        ];
        let is_kill = |fault| {
            use Fault::{KillBroker, KillConsumer, KillDatabase, KillNode, KillProducer};
            matches!(
                fault,
                KillBroker | KillConsumer | KillDatabase | KillNode | KillProducer
            )
        };
        let cards = counts.into_iter();
        let cards = cards.filter(|(fault, _)| !only_kills || is_kill(*fault));
        cards
            .flat_map(|(fault, count)| vec![fault; count])
            .collect()
    }

    /// Draws `count` faults from a deck: every kind in turn, in an order that the seed decides. A short run
    /// begins with one of each kind as far as it goes.
    pub(crate) fn draw(deck: &[Fault], random: &mut Random, count: u64) -> Vec<Fault> {
        let mut drawn = Vec::new();
        let mut is_first = true;
        while (drawn.len() as u64) < count {
            let mut deck = deck.to_vec();
            if std::mem::take(&mut is_first) {
                deck.dedup();
            }
            for at in (1..deck.len()).rev() {
                deck.swap(at, random.below(at as u64 + 1) as usize);
            }
            drawn.extend(deck);
        }
        drawn.truncate(count as usize);
        drawn
    }

    /// How long it lasts.
    fn lasts(self, random: &mut Random) -> Duration {
        let (least, most) = match self {
            Self::KillProducer | Self::KillConsumer | Self::KillBroker | Self::KillDatabase => {
                (0, 800)
            }
            // Long enough that the others notice, and go on without it.
            Self::KillNode => (0, 6_000),
            // Leases are 4 s (lanes) and 2 s (rows).
            Self::StopProducer => (4_500, 7_000),
            Self::StopConsumer => (2_500, 6_000),
            Self::CutBroker | Self::CutDatabase | Self::Duplicates => (0, 0),
            Self::HalfOpenBroker | Self::HalfOpenDatabase => (3_000, 7_000),
            Self::SlowBroker | Self::LockDatabase => (500, 3_000),
            Self::RefusingBroker => (500, 3_000),
            Self::FullListener => (1_000, 3_000),
            Self::ConsumersAway | Self::BrokerAway => (2_000, 5_000),
        };
        random.between(Duration::from_millis(least), Duration::from_millis(most))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KillProducer => "kill -9 of a producer",
            Self::KillConsumer => "kill -9 of a consumer",
            Self::KillBroker => "kill -9 of the broker",
            Self::KillNode => "kill -9 of a node of the broker",
            Self::KillDatabase => "kill -9 of the database",
            Self::StopProducer => "SIGSTOP of a producer (its relay)",
            Self::StopConsumer => "SIGSTOP of a consumer",
            Self::CutBroker => "connections with the broker cut",
            Self::CutDatabase => "connections with the database cut",
            Self::HalfOpenBroker => "half-open connections with the broker",
            Self::HalfOpenDatabase => "half-open connections with the database",
            Self::SlowBroker => "a slow network to the broker",
            Self::RefusingBroker => "a broker that refuses connections",
            Self::LockDatabase => "a lock on the databases",
            Self::FullListener => "a full queue of a stranger that refuses",
            Self::Duplicates => "duplicates",
            Self::ConsumersAway => "all consumers down",
            Self::BrokerAway => "the broker down for long",
        })
    }
}

/// A fault that is on.
pub(crate) struct Active {
    pub(crate) fault: Fault,
    until: Instant,
    parts: Vec<usize>,
    locks: Vec<Connection>,
}

/// The faults that are on.
#[derive(Default)]
pub(crate) struct Faults {
    active: Vec<Active>,
}

impl Faults {
    /// Does it. Says what was done.
    pub(crate) fn inject(
        &mut self,
        fault: Fault,
        world: &mut World,
        random: &mut Random,
    ) -> Result<String> {
        self.make_way(fault, world)?;
        let lasts = fault.lasts(random);
        let mut active = Active {
            fault,
            until: Instant::now() + lasts,
            parts: Vec::new(),
            locks: Vec::new(),
        };
        let mut detail = String::new();
        match fault {
            Fault::KillProducer | Fault::KillConsumer => {
                let number = a_part(world, fault, random);
                world.kill_part(number);
                active.parts.push(number);
            }
            Fault::StopProducer | Fault::StopConsumer => {
                let number = a_part(world, fault, random);
                world.stop_part(number, true)?;
                active.parts.push(number);
            }
            Fault::ConsumersAway => {
                active.parts = world.all_of(Kind::Consumer);
                for &number in &active.parts {
                    world.kill_part(number);
                }
            }
            Fault::KillBroker | Fault::BrokerAway => world.broker.kill9(),
            Fault::KillNode => {
                let node = world.broker.kill9_node(random)?;
                detail = format!(" {node}");
            }
            Fault::KillDatabase => {
                if let Some(postgres) = &mut world.postgres {
                    postgres.kill9();
                }
            }
            Fault::CutBroker => world.broker_proxies.cut(),
            Fault::CutDatabase => {
                if let Some(proxy) = &world.database_proxy {
                    proxy.cut();
                }
            }
            Fault::HalfOpenBroker => world.broker_proxies.silence(),
            Fault::HalfOpenDatabase => {
                if let Some(proxy) = &world.database_proxy {
                    proxy.silence();
                }
            }
            Fault::SlowBroker => world.broker_proxies.delay(Duration::from_millis(60)),
            Fault::RefusingBroker => world.broker_proxies.refuse(),
            Fault::LockDatabase => active.locks = lock_databases(world)?,
            Fault::FullListener => {
                let witness = world.witness()?;
                world.runtime.block_on(witness.invite_stranger(TOPIC))?;
            }
            Fault::Duplicates => {
                let witness = world.witness()?;
                let wanted = 5 + random.below(100);
                let count = world
                    .runtime
                    .block_on(witness.publish_again(TOPIC, wanted))?;
                detail = format!(" of {count} messages");
            }
        }
        for &number in &active.parts {
            detail = format!("{detail} {}", world.parts[number].name());
        }
        self.active.push(active);
        Ok(format!("{fault}{detail} for {lasts:.1?}"))
    }

    /// Mends what stands in the way of another fault.
    fn make_way(&mut self, fault: Fault, world: &mut World) -> Result<()> {
        use Fault::{
            BrokerAway, ConsumersAway, Duplicates, FullListener, KillBroker, KillConsumer,
            KillNode, KillProducer, StopConsumer, StopProducer,
        };
        let group = |fault| match fault {
            KillProducer | StopProducer => 1,
            KillConsumer | StopConsumer | ConsumersAway => 2,
            KillBroker | KillNode | BrokerAway | FullListener | Duplicates => 3,
            other => 10 + other as u8,
        };
        self.mend(world, |active| group(active.fault) == group(fault))
    }

    /// Mends what has lasted long enough, but not `keeps`.
    pub(crate) fn mend_due(&mut self, world: &mut World, keeps: Option<Fault>) -> Result<()> {
        let now = Instant::now();
        self.mend(world, |active| {
            active.until <= now && Some(active.fault) != keeps
        })
    }

    /// Mends everything.
    pub(crate) fn mend_all(&mut self, world: &mut World) -> Result<()> {
        self.mend(world, |_| true)
    }

    /// True while a fault of this kind is on.
    pub(crate) fn is_on(&self, fault: Fault) -> bool {
        self.active.iter().any(|active| active.fault == fault)
    }

    fn mend(&mut self, world: &mut World, which: impl Fn(&Active) -> bool) -> Result<()> {
        let mut due = Vec::new();
        for active in std::mem::take(&mut self.active) {
            match which(&active) {
                true => due.push(active),
                false => self.active.push(active),
            }
        }
        for active in due {
            let fault = active.fault;
            mend(active, world).with_context(|| format!("cannot mend: {fault}"))?;
        }
        Ok(())
    }
}

fn mend(active: Active, world: &mut World) -> Result<()> {
    match active.fault {
        Fault::KillProducer | Fault::KillConsumer | Fault::ConsumersAway => {
            for number in active.parts {
                world.start_part(number)?;
            }
        }
        Fault::StopProducer | Fault::StopConsumer => {
            for number in active.parts {
                world.stop_part(number, false)?;
            }
        }
        Fault::KillBroker | Fault::KillNode | Fault::BrokerAway => {
            world.broker.restart()?;
            if world.stack.broker.has_queues_that_refuse() {
                // RabbitMQ can forget a deletion when it is killed right after it, and a stranger's queue
                // that is there again would refuse for ever.
                let witness = world.witness()?;
                world.runtime.block_on(witness.dismiss_stranger())?;
            }
        }
        Fault::KillDatabase => {
            if let Some(postgres) = &mut world.postgres {
                postgres.restart()?;
            }
        }
        Fault::SlowBroker | Fault::RefusingBroker | Fault::HalfOpenBroker => {
            world.broker_proxies.heal();
        }
        Fault::HalfOpenDatabase => {
            if let Some(proxy) = &world.database_proxy {
                proxy.heal();
            }
        }
        Fault::FullListener => {
            let witness = world.witness()?;
            world.runtime.block_on(witness.dismiss_stranger())?;
        }
        Fault::LockDatabase => drop(active.locks),
        Fault::CutBroker | Fault::CutDatabase | Fault::Duplicates => {}
    }
    Ok(())
}

fn a_part(world: &World, fault: Fault, random: &mut Random) -> usize {
    let kind = match fault {
        Fault::KillProducer | Fault::StopProducer => Kind::Producer,
        _ => Kind::Consumer,
    };
    let all = world.all_of(kind);
    all[random.below(all.len() as u64) as usize]
}

/// Takes the write lock of both SQLite files, as another program would.
fn lock_databases(world: &World) -> Result<Vec<Connection>> {
    let lock = |name: &str| -> Result<Connection> {
        let connection = Connection::open(world.folder.join(name))?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.execute_batch("begin immediate")?;
        Ok(connection)
    };
    // A file that is busy for so long is locked enough.
    let files = ["producer.db", "consumer.db"].into_iter();
    Ok(files.filter_map(|name| lock(name).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_has_the_faults_that_its_engines_can_have() {
        let has = |database, broker, fault| {
            let stack = Stack { database, broker };
            Fault::deck(stack, false).contains(&fault)
        };
        for broker in [
            Broker::Embedded,
            Broker::RabbitMq,
            Broker::RabbitMqCluster,
            Broker::Kafka,
            Broker::Aws,
        ] {
            let of = |fault| has(Database::Sqlite, broker, fault);
            let is_cluster = broker == Broker::RabbitMqCluster;
            assert_eq!(of(Fault::KillNode), is_cluster, "{broker:?}");
            assert_eq!(of(Fault::KillBroker), !is_cluster, "{broker:?}");
            let refuses = !matches!(broker, Broker::Kafka | Broker::Aws);
            assert_eq!(of(Fault::FullListener), refuses, "{broker:?}");
            assert!(of(Fault::LockDatabase) && !of(Fault::KillDatabase));
            assert!(has(Database::Postgres, broker, Fault::KillDatabase));
            assert!(!has(Database::Postgres, broker, Fault::LockDatabase));
        }
    }
}
