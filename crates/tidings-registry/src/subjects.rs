//! Under which subject a registry keeps the schema of a message.

use std::{fmt, str::FromStr};

/// How the subject of a message is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Subjects {
    /// `TOPIC-value`: a topic has messages of one type. Confluent's `TopicNameStrategy`, and the default of most clients.
    #[default]
    Topic,
    /// The name of the message, `order-confirmed.v1`: a topic has messages of several types. As Confluent's
    /// `RecordNameStrategy`, with the name on the wire for the name of the record.
    Message,
    /// `TOPIC-MESSAGE`: the same, where one message is another thing in another topic.
    TopicMessage,
}

impl Subjects {
    /// The ways there are, as [`from_str`](FromStr::from_str) reads them.
    pub const NAMES: [&'static str; 3] = ["topic", "message", "topic-message"];

    /// The subject of a message in a topic.
    pub fn subject(self, topic: &str, message: &str) -> String {
        match self {
            Subjects::Topic => format!("{topic}-value"),
            Subjects::Message => message.to_owned(),
            Subjects::TopicMessage => format!("{topic}-{message}"),
        }
    }
}

impl fmt::Display for Subjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Subjects::Topic => "topic",
            Subjects::Message => "message",
            Subjects::TopicMessage => "topic-message",
        })
    }
}

impl FromStr for Subjects {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "topic" => Ok(Subjects::Topic),
            "message" => Ok(Subjects::Message),
            "topic-message" => Ok(Subjects::TopicMessage),
            _ => Err("subjects are by `topic`, `message` or `topic-message`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_called_as_was_chosen() {
        let check = |way: &str, subject: &str| {
            let subjects: Subjects = way.parse().expect(way);
            assert_eq!(subjects.to_string(), way);
            assert_eq!(subjects.subject("order_events", "order-placed.v1"), subject);
        };
        check("topic", "order_events-value");
        check("message", "order-placed.v1");
        check("topic-message", "order_events-order-placed.v1");
        assert_eq!(
            Subjects::NAMES.map(|it| it.parse::<Subjects>().is_ok()),
            [true; 3]
        );
        assert!("record".parse::<Subjects>().is_err());
    }
}
