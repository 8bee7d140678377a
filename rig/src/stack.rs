//! A stack: which database and which broker the parts run on.

use std::{fmt, str::FromStr};

/// Where services keep what they know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Database {
    Sqlite,
    Postgres,
}

/// What carries the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broker {
    /// The broker in the box, in a process of its own.
    Embedded,
    RabbitMq,
    /// Three nodes of RabbitMQ, with quorum queues.
    RabbitMqCluster,
    Kafka,
    /// Amazon SNS and SQS: an emulator of them.
    Aws,
}

/// The brokers, as they are called in a stack's name.
const BROKERS: [(&str, Broker); 5] = [
    ("embedded", Broker::Embedded),
    ("rabbitmq", Broker::RabbitMq),
    ("rabbitmq-cluster", Broker::RabbitMqCluster),
    ("kafka", Broker::Kafka),
    ("aws", Broker::Aws),
];

impl Broker {
    /// True if its queues can be told to refuse what is published when they are full.
    pub(crate) fn has_queues_that_refuse(self) -> bool {
        !matches!(self, Self::Kafka | Self::Aws)
    }

    /// The feature without which this build cannot use it.
    fn missing_feature(self) -> Option<&'static str> {
        match self {
            Self::Kafka if !cfg!(feature = "kafka") => Some("kafka"),
            Self::Aws if !cfg!(feature = "aws") => Some("aws"),
            _ => None,
        }
    }
}

/// One of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stack {
    pub(crate) database: Database,
    pub(crate) broker: Broker,
}

impl FromStr for Stack {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            let brokers = BROKERS.map(|(name, _)| format!("`{name}`")).join(", ");
            format!(
                "`{text}` is no stack; take `sqlite` or `postgres`, a `+`, and one of {brokers}"
            )
        };
        let (database, broker) = text.split_once('+').ok_or_else(refused)?;
        let database = match database {
            "sqlite" => Database::Sqlite,
            "postgres" => Database::Postgres,
            _ => return Err(refused()),
        };
        let broker = BROKERS.iter().find(|(name, _)| *name == broker);
        let (_, broker) = *broker.ok_or_else(refused)?;
        if let Some(feature) = broker.missing_feature() {
            return Err(format!(
                "this build of the rig cannot use `{text}`; build it with `--features {feature}`"
            ));
        }
        Ok(Self { database, broker })
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = match self.database {
            Database::Sqlite => "sqlite",
            Database::Postgres => "postgres",
        };
        let broker = BROKERS.iter().find(|(_, broker)| *broker == self.broker);
        let broker = broker.map_or("", |(name, _)| name);
        write!(f, "{database}+{broker}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stack_reads_as_it_prints_and_nothing_else_is_one() {
        for database in ["sqlite", "postgres"] {
            for (broker, its) in BROKERS {
                let text = format!("{database}+{broker}");
                match (text.parse::<Stack>(), its.missing_feature()) {
                    (Ok(stack), None) => assert_eq!(stack.to_string(), text),
                    (Err(error), Some(feature)) => {
                        let way_out = format!("build it with `--features {feature}`");
                        assert!(error.ends_with(&way_out), "{error}");
                    }
                    (parsed, missing) => panic!("{text}: {parsed:?}, missing {missing:?}"),
                }
            }
        }
        let error = "mysql+rabbitmq".parse::<Stack>().unwrap_err();
        assert!(error.contains("`mysql+rabbitmq` is no stack"), "{error}");
    }
}
