//! Side-by-side benchmarks: the same client drives every peer, the peers take turns in one run, and
//! what is reported is the ratio between them.
//!
//! A figure without its durability class means nothing, so every row carries one: **D1** page cache
//! (survives `kill -9`), **D2** fsync before the confirm (survives a power cut).
//!
//! ```text
//! bench broker      confirmed publish, and publish + consume: the broker in the box beside RabbitMQ
//! bench orders      orders per second through the whole shop, and how long a customer waits
//! bench engine      publishing and receiving over each engine's transport, beside its own client
//! bench held        what a million rows that nobody wants cost the others
//! bench floors      handler, inbox and relay beside the bare statements through the raw driver
//! bench aged        the same on tables that have been in use for long
//! bench handler     a handler without a store beside the raw client
//! bench sagas       steps of sagas beside the bare statements, and a mountain of timers
//! bench redrive     dead letters that are sent again, beside the raw client
//! bench replay      what keeping events costs, and how fast they are sent again
//! ```

mod aged;
mod amqp;
mod broker;
mod clients;
mod cost;
mod engine;
mod feed;
mod floors;
mod handler;
mod held;
mod machine;
mod order_floor;
mod orders;
mod peers;
mod perftest;
mod redrive;
mod replay;
mod report;
mod sagas;
mod servers;

use clap::{Parser, Subcommand};

/// As the shop has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Side-by-side benchmarks of Tidings.
#[derive(Parser)]
#[command(after_help = "`cargo xtask bench` builds what is measured first, in release mode.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The broker in the box beside RabbitMQ, classic and quorum queues.
    Broker(broker::Options),
    /// Orders per second through the whole shop.
    Orders(orders::Options),
    /// Publishing and receiving over an engine's transport, beside the engine's own client.
    Engine(engine::Options),
    /// What rows that nobody wants cost the others.
    Held(held::Options),
    /// Handler, inbox and relay beside the bare statements through the raw driver.
    Floors(floors::Options),
    /// The same on tables that have been in use for long.
    Aged(aged::Options),
    /// A handler without a store beside the raw client.
    Handler(handler::Options),
    /// Steps of sagas beside the bare statements, and a mountain of timers.
    Sagas(sagas::Options),
    /// Dead letters that are sent again, beside the raw client.
    Redrive(redrive::Options),
    /// What keeping events costs, and how fast they are sent again.
    Replay(replay::Options),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Broker(options) => broker::run(&options),
        Command::Orders(options) => orders::run(&options),
        Command::Engine(options) => engine::run(&options),
        Command::Held(options) => held::run(&options),
        Command::Floors(options) => floors::run(&options),
        Command::Aged(options) => aged::run(&options),
        Command::Handler(options) => handler::run(&options),
        Command::Sagas(options) => sagas::run(&options),
        Command::Redrive(options) => redrive::run(&options),
        Command::Replay(options) => replay::run(&options),
    }
}
