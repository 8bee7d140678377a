//! What every verb has: the options before it, databases, a broker, and a place to print.

use std::{fmt, io::IsTerminal as _, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::SignedDuration;
use tidings::Store;
use tidings_amqp::{Amqp, QueueDepth};
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

use crate::{
    code::Code,
    mask::{Mask, SENSITIVE},
    out::Out,
    places::{Access, Located, Place},
};

/// How long to wait for a broker.
const BROKER_WAIT_MAX: Duration = Duration::from_secs(10);

/// Options of all verbs.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The broker, `amqp://user:password@host:port/vhost`
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TIDINGS_BROKER",
        hide_env_values = true,
        help_heading = "Where"
    )]
    broker: Option<String>,

    /// Databases of services: `sqlite://folder` (a file per service), `sqlite://folder/payment.db`,
    /// or `postgres://…` (a schema per service); repeatable
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TIDINGS_DATABASE",
        hide_env_values = true,
        help_heading = "Where"
    )]
    database: Vec<String>,

    /// Only this service (repeatable); all of the databases when not given
    #[arg(long, global = true, value_name = "NAME", help_heading = "Where")]
    service: Vec<String>,

    /// Print one JSON document instead of tables
    #[arg(long, global = true, help_heading = "How")]
    json: bool,

    /// Show the values of sensitive fields
    #[arg(long, global = true, help_heading = "How")]
    reveal: bool,

    /// The fields of bodies and headers whose values are hidden
    #[arg(
        long,
        global = true,
        value_name = "FIELDS",
        env = "TIDINGS_SENSITIVE",
        value_delimiter = ',',
        default_value = SENSITIVE,
        help_heading = "How"
    )]
    sensitive: Vec<String>,
}

/// How a verb ended that did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is done: exit code 0.
    Done,
    /// A problem was found, and told: exit code 1.
    Problem,
}

/// A length of time on the command line: `90s`, `15m`, `2h`, `3d`.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("`{text}` is not a length of time; write it as `90s`, `15m`, `2h` or `3d`");
    if let Some(days) = text.strip_suffix('d') {
        let days: u32 = days.trim().parse().map_err(|_| wrong())?;
        return Ok(Duration::from_secs(u64::from(days) * 86_400));
    }
    let time: SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(time).map_err(|_| wrong())
}

/// An error of the toolkit, which is no [`std::error::Error`] of its own.
pub(crate) fn toolkit(error: tidings::Error) -> anyhow::Error {
    anyhow::Error::from_boxed(error.into_inner())
}

/// An error that says the command was used wrongly: exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(String);

impl Usage {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What every verb has.
#[derive(Debug)]
pub(crate) struct Frame {
    options: Options,
    /// Where its report goes.
    pub(crate) out: Out,
    /// What is hidden in it.
    pub(crate) mask: Mask,
}

/// The database of a service.
pub(crate) struct Database {
    /// The service's name: that of the file or of the schema.
    pub(crate) service: String,
    /// The database's program and its version.
    pub(crate) engine: String,
    /// What is in it.
    pub(crate) store: Arc<dyn Store>,
}

impl Frame {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            out: Out::new(options.json),
            mask: Mask::new(&options.sensitive, options.reveal),
            options,
        }
    }

    /// Sends warnings to stderr; `RUST_LOG` filters them.
    pub(crate) fn init_logs() {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }

    /// The databases that the command line names, of all services or of those it names.
    ///
    /// # Errors
    ///
    /// When it names none, or one is not there.
    pub(crate) async fn located(&self) -> anyhow::Result<Vec<Located>> {
        if self.options.database.is_empty() {
            bail!(Usage::new(
                "say where the databases are: `--database sqlite://folder` or \
                 `--database postgres://…`, or set TIDINGS_DATABASE"
            ));
        }
        let mut located = Vec::new();
        for url in &self.options.database {
            // Not by clap, which would print the URL with its password.
            let place: Place = url.parse().map_err(Usage::new)?;
            located.extend(place.services().await?);
        }
        let wanted = &self.options.service;
        if wanted.is_empty() {
            return Ok(located);
        }
        for name in wanted {
            if !located.iter().any(|it| it.service == *name) {
                let there: Vec<&str> = located.iter().map(|it| &*it.service).collect();
                let why = format!(
                    "there is no database of a service `{name}`; there are those of `{}`",
                    there.join("`, `")
                );
                return Err(Code::Database.of(why));
            }
        }
        located.retain(|it| wanted.contains(&it.service));
        Ok(located)
    }

    /// Does something with each database, one after the other; only one is open at a time. What is
    /// said about it begins with the service's name.
    ///
    /// # Errors
    ///
    /// When one cannot be opened, or the work fails.
    pub(crate) async fn each<T>(
        &self,
        access: Access,
        mut work: impl AsyncFnMut(&Database) -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<T>> {
        let mut done = Vec::new();
        for located in self.located().await? {
            let service = located.service.clone();
            let database = located.open(access).await?;
            done.push(work(&database).await.with_context(|| service)?);
        }
        Ok(done)
    }

    /// The database of this service, which [`each`](Self::each) has shown.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub(crate) async fn one(&self, service: &str, access: Access) -> anyhow::Result<Database> {
        let mut located = self.located().await?.into_iter();
        let one = located.find(|it| it.service == service);
        let one = one.with_context(|| format!("the database of `{service}` has gone away"))?;
        one.open(access).await
    }

    /// The database of the one service that the command line names.
    ///
    /// # Errors
    ///
    /// When it names several, or the database cannot be opened.
    pub(crate) async fn only(&self, access: Access) -> anyhow::Result<Database> {
        let mut located = self.located().await?;
        match (located.pop(), located.len()) {
            (Some(one), 0) => one.open(access).await,
            (last, _) => {
                let names = located.iter().chain(&last).map(|it| &*it.service);
                let names: Vec<&str> = names.collect();
                bail!(Usage::new(format!(
                    "say of which service with `--service NAME`; there are `{}`",
                    names.join("`, `")
                )));
            }
        }
    }

    /// Whether the command line names a broker.
    pub(crate) fn has_broker(&self) -> bool {
        self.options.broker.is_some()
    }

    /// Whether the command line names a database.
    pub(crate) fn has_database(&self) -> bool {
        !self.options.database.is_empty()
    }

    /// The broker's URL without user and password.
    pub(crate) fn broker_address(&self) -> String {
        let url = self.options.broker.as_deref().unwrap_or_default();
        match (url.split_once("://"), url.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, address))) => format!("{scheme}://{address}"),
            _ => url.to_owned(),
        }
    }

    /// A connection with the broker, within ten seconds.
    ///
    /// # Errors
    ///
    /// When the command line names none, or it cannot be reached.
    pub(crate) async fn broker(&self) -> anyhow::Result<Amqp> {
        let url = match self.options.broker.as_deref() {
            None => bail!(Usage::new(
                "say where the broker is: `--broker amqp://user:password@host:port/vhost`, or set \
                 TIDINGS_BROKER"
            )),
            Some("embedded") => bail!(Usage::new(
                "`embedded` is the broker in the program of a service; name the address at which \
                 that listens: `--broker amqp://guest:guest@127.0.0.1:5672`"
            )),
            Some(url) => url,
        };
        let builder = Amqp::builder(url).map_err(|error| Usage::new(error.to_string()))?;
        let amqp = builder.name("tidings");
        match timeout(BROKER_WAIT_MAX, amqp.connect()).await {
            Ok(Ok(amqp)) => Ok(amqp),
            Ok(Err(error)) => Err(Code::Broker.of(error)),
            Err(_) => Err(Code::Broker.of(format!(
                "the broker cannot be reached: it did not answer in {} seconds; see that it runs, and \
                 that `--broker` names its address",
                BROKER_WAIT_MAX.as_secs()
            ))),
        }
    }

    /// How full these queues are, in their order, within ten seconds; `None` for one that is not
    /// there.
    ///
    /// # Errors
    ///
    /// When the broker does not answer, or refuses the look.
    pub(crate) async fn depths(
        &self,
        broker: &Amqp,
        queues: &[impl AsRef<str>],
    ) -> anyhow::Result<Vec<Option<QueueDepth>>> {
        match timeout(BROKER_WAIT_MAX, broker.depths(queues)).await {
            Ok(depths) => depths.map_err(|error| Code::Broker.of(error)),
            Err(_) => Err(Code::Broker.of("the broker does not answer any more")),
        }
    }

    /// A bar for something long; drawn on stderr, if that is a terminal.
    pub(crate) fn progress(&self, count: u64, what: &'static str) -> ProgressBar {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}");
        let bar = ProgressBar::with_draw_target(Some(count), target).with_message(what);
        match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let check = |text: &str, seconds: Option<u64>| {
            assert_eq!(time(text).ok(), seconds.map(Duration::from_secs), "{text}");
        };
        check("90s", Some(90));
        check("1h 5m", Some(3900));
        check("2d", Some(172_800));
        for wrong in ["", "5", "-5s", "soon", "d", "-1d"] {
            check(wrong, None);
        }
    }
}
