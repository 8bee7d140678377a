//! Ordered groups: one FIFO queue for each, from which all of its partitions receive.
//!
//! SQS hands out no message of a message group, which is a key, while an earlier one is out. So it does itself what
//! partitions are for on other engines, and nothing has to divide the keys: a partition is a receiver of the group's queue,
//! and how many there are says how many may receive at once. The partition for what has no key receives nothing.
//!
//! A command of a group has no queue of its own but a topic, `C.group`, from which the group's queue is fed.

use tidings_core::Group;

use crate::{Shared, client::Trouble, publisher::Place};

/// Of which group a queue is a partition, and its number; none for what has no key. Nothing if it is no partition.
pub(crate) fn partition(queue: &str) -> Option<(&str, Option<u16>)> {
    let (group, partition) = queue.rsplit_once('.')?;
    if partition == "any" {
        return Some((group, None));
    }
    let (number, count) = partition.split_once("of")?;
    let (number, count): (u16, u16) = (number.parse().ok()?, count.parse().ok()?);
    (number < count).then_some((group, Some(number)))
}

/// The topic for what is sent to a command of a group.
pub(crate) fn topic_of_command(command: &str) -> String {
    format!("{command}.group")
}

impl Shared {
    pub(crate) async fn make_group(&self, group: &Group) -> Result<(), Trouble> {
        let mut topics: Vec<String> = group.topics.iter().map(|it| it.to_string()).collect();
        for command in &group.commands {
            let called = self.name_of(command);
            if self.queue_called(&called).await?.is_some() {
                return Err(Trouble::Invalid(format!(
                    "its command `{command}` has a queue `{called}` from a time without order, which publishers would go \
                     on to fill: let a version without `.ordered` work off what is in it, and delete it"
                )));
            }
            topics.push(topic_of_command(command));
        }
        for topic in &topics {
            self.make_topic(topic).await?;
        }
        let letters = self
            .make_queue(&tidings_core::dead_letter_queue(&group.name))
            .await?;
        let at = self.make_queue(&group.name).await?;
        for topic in &topics {
            self.subscribe_queue(topic, &at, Some(&letters)).await?;
        }
        Ok(())
    }

    /// Where what is sent to a queue goes: there, or to the group whose command it is.
    pub(crate) async fn place_of_queue(&self, queue: &str) -> Result<Option<Place>, Trouble> {
        let topic = topic_of_command(queue);
        if !self.is_known_as_wanted(&topic)
            && let Some(at) = self.queue(queue).await?
        {
            return Ok(Some(Place::Queue(at.url)));
        }
        let is_wanted = self.address.is_fifo && self.is_wanted(&topic).await?;
        Ok(is_wanted.then(|| Place::Topic(self.topic_arn(&topic))))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    #[test]
    fn partitions_are_known_by_their_names() {
        let group = Group::new("pay.ordered", NonZeroU16::new(12).expect("not zero"));
        assert_eq!(
            partition(&group.partition(11)),
            Some(("pay.ordered", Some(11)))
        );
        assert_eq!(partition(&group.any()), Some(("pay.ordered", None)));
        for other in [
            "pay.ordered",
            "pay.12of12",
            "pay.order-placed.v1",
            "any",
            "1of2",
        ] {
            assert_eq!(partition(other), None, "{other}");
        }
    }
}
