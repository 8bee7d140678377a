//! `tidings events replay --topic`: a consumer begins earlier in a topic of Kafka.

use anyhow::bail;
use serde::Serialize;
use tidings::{Transport, replay};
use tidings_kafka::replay::{Replay, Replayed, Start};

use super::{Args, From};
use crate::{
    frame::{Ended, Frame, Usage},
    out::{Page, Report, counted},
};

#[derive(Debug, Serialize)]
struct Told {
    topic: String,
    to: String,
    messages: u64,
    partitions: Vec<Part>,
}

#[derive(Debug, Serialize)]
struct Part {
    partition: i32,
    from: i64,
    until: i64,
}

impl Report for Told {
    fn tell(&self, page: &mut Page) {
        page.line(format!(
            "{} of `{}` for `{}`, when it starts",
            counted(self.messages, "message is there again", "messages are there again"),
            self.topic,
            self.to
        ));
        for Part {
            partition,
            from,
            until,
        } in &self.partitions
        {
            page.line(format!("partition {partition}: from offset {from}, up to {until}"));
        }
    }
}

impl Args {
    pub(super) async fn run_on_kafka(self, frame: &Frame) -> anyhow::Result<Ended> {
        let start = match self.from {
            From::Offsets(offsets) => Start::Offsets(offsets),
            From::Start(replay::Start::Beginning) => Start::Beginning,
            From::Start(replay::Start::Time(time)) => Start::Time(time),
            From::Start(_) => bail!(Usage::new(
                "a topic of Kafka has an offset in each partition: write them as `0:1200,1:980`, or a time, or `beginning`"
            )),
        };
        let topic = self.topic.unwrap_or_default();
        let mut replay = Replay::of(&topic).to(&self.to).from(start);
        if self.new {
            replay = replay.new_consumer();
        }
        if self.reset {
            replay = replay.reset();
        }
        let kafka = frame.kafka("a replay of a topic").await?;
        let replayed = replay.run(&kafka).await;
        kafka.close().await;
        let Replayed { partitions, .. } = &replayed?;
        let partitions = partitions.iter().map(|(partition, (from, until))| Part {
            partition: *partition,
            from: *from,
            until: *until,
        });
        let partitions: Vec<Part> = partitions.collect();
        let of_part = |it: &Part| (it.until - it.from).max(0).unsigned_abs();
        frame.out.show(&Told {
            topic,
            to: self.to,
            messages: partitions.iter().map(of_part).sum(),
            partitions,
        })?;
        Ok(Ended::Done)
    }
}
