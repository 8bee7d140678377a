//! How fast the transport publishes with confirms and receives with acknowledgements, and what it
//! costs this process: `cargo run --release -p tidings-amqp --example transport_cost -- amqp://...`
//!
//! 256-byte bodies, persistent, mandatory, confirmed; batches of 256 by 8 callers, prefetch 500.

use std::{
    error::Error,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use tidings_amqp::Amqp;
use tidings_core::{
    Deliveries, Destination, Envelope, Outgoing, Queue, Settlement, Subscription, Topology,
    Transport, Unrouted,
};

const CALLERS: usize = 8;
const BATCH: usize = 256;
const QUEUE: &str = "throughput";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("say which broker: amqp://...")?;
    let count: usize = arguments
        .next()
        .map_or(Ok(200_000), |count| count.parse())?;
    let rounds = count.div_ceil(CALLERS * BATCH);
    let count = rounds * CALLERS * BATCH;
    let amqp = Arc::new(Amqp::connect(&url).await?);
    let topology = Topology::new().queue(Queue::new(QUEUE));
    amqp.declare(&topology).await?;
    let subscription = Subscription::new(QUEUE);
    let subscription = subscription.prefetch(NonZeroU16::new(500).ok_or("not zero")?);

    let measured = Measured::start();
    publish(&amqp, rounds).await?;
    measured.report("published, confirmed", count);

    let measured = Measured::start();
    let mut deliveries = amqp.subscribe(subscription).await?;
    receive(&mut deliveries, count).await?;
    measured.report("received, acknowledged", count);

    let measured = Measured::start();
    let (published, received) =
        tokio::join!(publish(&amqp, rounds), receive(&mut deliveries, count));
    published.and(received)?;
    measured.report("both at once", count);
    amqp.close().await;
    Ok(())
}

async fn publish(amqp: &Amqp, rounds: usize) -> Result<(), Box<dyn Error>> {
    let callers = (0..CALLERS).map(async |caller| {
        for round in 0..rounds {
            let batch = (0..BATCH).map(|number| message(format!("{caller}/{round}/{number}")));
            for outcome in amqp.publish(batch.collect()).await {
                outcome?;
            }
        }
        Ok(())
    });
    join_all(callers).await.into_iter().collect()
}

fn message(id: String) -> Outgoing {
    let mut envelope = Envelope::new("order-placed.v1", [b' '; 256].as_slice());
    envelope.key = Some(id.as_str().into());
    envelope.id = Some(id.into());
    envelope.source = "throughput".into();
    Outgoing {
        destination: Destination::queue(QUEUE),
        unrouted: Unrouted::Hold,
        envelope,
    }
}

async fn receive(deliveries: &mut Deliveries, count: usize) -> Result<(), Box<dyn Error>> {
    for _ in 0..count {
        let delivery = deliveries.next().await.ok_or("the stream ended")??;
        delivery.settle(Settlement::Ack).await?;
    }
    Ok(())
}

struct Measured {
    started: Instant,
    cpu: Duration,
}

impl Measured {
    fn start() -> Self {
        Self {
            started: Instant::now(),
            cpu: cpu_time(),
        }
    }

    fn report(self, what: &str, count: usize) {
        let wall = self.started.elapsed();
        let cpu = cpu_time() - self.cpu;
        println!(
            "{what}: {:.0}/s, {:.2} µs of CPU each",
            count as f64 / wall.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / count as f64
        );
    }
}

/// What this process has used, in hundredths of a second; zero where there is no `/proc`.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |at: usize| fields.split_whitespace().nth(at)?.parse::<u64>().ok();
    Duration::from_millis(10 * (ticks(11).unwrap_or(0) + ticks(12).unwrap_or(0)))
}
