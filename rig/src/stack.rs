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
}

/// One of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stack {
    pub(crate) database: Database,
    pub(crate) broker: Broker,
}

impl FromStr for Stack {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "`{text}` is no stack; take `sqlite+embedded`, `sqlite+rabbitmq`, \
                 `postgres+embedded` or `postgres+rabbitmq`"
            )
        };
        let (database, broker) = text.split_once('+').ok_or_else(refused)?;
        let database = match database {
            "sqlite" => Database::Sqlite,
            "postgres" => Database::Postgres,
            _ => return Err(refused()),
        };
        let broker = match broker {
            "embedded" => Broker::Embedded,
            "rabbitmq" => Broker::RabbitMq,
            _ => return Err(refused()),
        };
        Ok(Self { database, broker })
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = match self.database {
            Database::Sqlite => "sqlite",
            Database::Postgres => "postgres",
        };
        let broker = match self.broker {
            Broker::Embedded => "embedded",
            Broker::RabbitMq => "rabbitmq",
        };
        write!(f, "{database}+{broker}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stack_reads_as_it_prints_and_nothing_else_is_one() {
        let all = [
            "sqlite+embedded",
            "sqlite+rabbitmq",
            "postgres+embedded",
            "postgres+rabbitmq",
        ];
        for text in all {
            assert_eq!(text.parse::<Stack>().unwrap().to_string(), text);
        }
        let error = "mysql+rabbitmq".parse::<Stack>().unwrap_err();
        assert!(error.contains("`mysql+rabbitmq` is no stack"), "{error}");
    }
}
