//! What every verb has: the options before it, databases, a broker, and a place to print.

mod broker;

use std::{fmt, io::IsTerminal as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::SignedDuration;
use tidings::{Store, Transport};
use tidings_amqp::QueueDepth;
use tidings_operator::{Remote, Token};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, timeout},
};
use tracing_subscriber::EnvFilter;

use crate::{
    code::Code,
    mask::{Marked, Mask, SENSITIVE},
    out::Out,
    places::{Access, Located, Place},
};

/// How long to wait for a broker.
pub(crate) const BROKER_WAIT_MAX: Duration = Duration::from_secs(10);

/// The variable with the token of an operator endpoint.
const TOKEN_VARIABLE: &str = "TIDINGS_OPERATOR_TOKEN";

/// Options of all verbs.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The broker, `amqp://user:password@host:port/vhost`, or `host:port,host:port` for a cluster; `kafka://host:port` in a
    /// build with `--features kafka`, `aws://region/prefix` in one with `--features aws`
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

    /// The operator endpoint of a running service, `http://127.0.0.1:7070`, instead of its database and
    /// its broker; repeatable
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TIDINGS_AT",
        help_heading = "Where"
    )]
    at: Vec<String>,

    /// The file with the token of the operator endpoint; or the token itself in TIDINGS_OPERATOR_TOKEN
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TIDINGS_OPERATOR_TOKEN_FILE",
        help_heading = "Where"
    )]
    operator_token_file: Option<PathBuf>,

    /// Only this service (repeatable); all that are there when not given
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

/// Resolves at this time, or never.
pub(crate) async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => sleep(until.saturating_duration_since(Instant::now())).await,
        None => std::future::pending().await,
    }
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

/// Reads at most `limit` in steps of at most `step`: `read` is given the last one that was read, and how many to read
/// after it; fewer than that are the last.
///
/// # Errors
///
/// Those of `read`.
pub(crate) async fn pages<T>(
    limit: usize,
    step: usize,
    mut read: impl AsyncFnMut(Option<&T>, usize) -> anyhow::Result<Vec<T>>,
) -> anyhow::Result<Vec<T>> {
    let mut all = Vec::new();
    loop {
        let count = step.min(limit - all.len());
        let next = read(all.last(), count).await?;
        let is_last = next.len() < count;
        all.extend(next);
        if is_last || all.len() >= limit {
            return Ok(all);
        }
    }
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
    /// What is hidden in it, once somebody has asked.
    mask: OnceCell<Mask>,
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
            mask: OnceCell::new(),
            options,
        }
    }

    /// What is hidden where messages are shown: fields by their names, and those that services have marked, as
    /// far as the command line names their databases. All of them, whatever service is asked about: who
    /// sends a message need not be who has written down what is sensitive in it.
    pub(crate) async fn mask(&self) -> &Mask {
        let made = async {
            let Options {
                sensitive, reveal, ..
            } = &self.options;
            let marked = match reveal {
                true => Marked::default(),
                false => self.marked().await,
            };
            Mask::new(sensitive, *reveal, marked)
        };
        self.mask.get_or_init(|| Box::pin(made)).await
    }

    async fn marked(&self) -> Marked {
        let mut marked = Marked::default();
        if !self.has_database() {
            return marked;
        }
        let unknown = |whose: &str, error: anyhow::Error| {
            self.out.note(&format!(
                "which fields {whose} marked as sensitive is not known, so only fields with sensitive names \
                 are hidden: {error:#}"
            ));
        };
        let located = match self.everywhere().await {
            Ok(located) => located,
            Err(error) => {
                unknown("services have", error);
                return marked;
            }
        };
        for located in located {
            let service = located.service.clone();
            let learned = async {
                let database = located.open(Access::Look).await?;
                marked.learn_from(&*database.store).await.map_err(toolkit)
            };
            if let Err(error) = learned.await {
                unknown(&format!("`{service}` has"), error);
            }
        }
        marked
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
        if !self.has_database() {
            bail!(Usage::new(
                "say where the databases are: `--database sqlite://folder` or \
                 `--database postgres://…`, or set TIDINGS_DATABASE; or where a running service has its \
                 operator endpoint: `--at http://127.0.0.1:7070`"
            ));
        }
        let mut located = self.everywhere().await?;
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

    /// The databases of all services, also of those that are not asked about.
    async fn everywhere(&self) -> anyhow::Result<Vec<Located>> {
        let mut located: Vec<Located> = Vec::new();
        // Several instances of a service have one database: the first is enough.
        for remote in self.remotes()? {
            for found in Place::At(remote).services().await? {
                if !located.iter().any(|it| it.service == found.service) {
                    located.push(found);
                }
            }
        }
        let through_endpoints: Vec<String> = located.iter().map(|it| it.service.clone()).collect();
        for url in &self.options.database {
            // Not by clap, which would print the URL with its password.
            let place: Place = url.parse().map_err(Usage::new)?;
            let found = place.services().await?.into_iter();
            located.extend(found.filter(|it| !through_endpoints.contains(&it.service)));
        }
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

    /// The operator endpoints that the command line names.
    fn remotes(&self) -> anyhow::Result<Vec<Remote>> {
        if self.options.at.is_empty() {
            return Ok(Vec::new());
        }
        let token = match (
            &self.options.operator_token_file,
            std::env::var(TOKEN_VARIABLE),
        ) {
            (Some(file), _) => Some(Token::from_file(file)?),
            (None, Ok(token)) => Some(Token::new(&token)?),
            (None, Err(_)) => None,
        };
        let remote = |url: &String| Remote::new(url, token.as_ref());
        let remotes = self.options.at.iter().map(remote);
        let remotes = remotes.collect::<Result<_, _>>();
        Ok(remotes.map_err(|error| Usage::new(error.to_string()))?)
    }

    /// Whether the command line names an operator endpoint.
    pub(crate) fn has_endpoint(&self) -> bool {
        !self.options.at.is_empty()
    }

    /// Whether the command line names a broker, or an endpoint that reaches one.
    pub(crate) fn has_broker(&self) -> bool {
        self.options.broker.is_some() || self.has_endpoint()
    }

    /// Whether the command line names a database, or an endpoint that reaches one.
    pub(crate) fn has_database(&self) -> bool {
        !self.options.database.is_empty() || self.has_endpoint()
    }

    /// Fails if the command line names an operator endpoint, with what to name instead.
    ///
    /// # Errors
    ///
    /// If so.
    pub(crate) fn not_through_an_endpoint(&self, what: &str, instead: &str) -> anyhow::Result<()> {
        match self.has_endpoint() {
            false => Ok(()),
            true => bail!(tidings_operator::Error::impossible(format!(
                "{what} cannot be done through an operator endpoint (`--at`); use `{instead}`"
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
        broker: &(impl Transport + ?Sized),
        queues: &[impl AsRef<str>],
    ) -> anyhow::Result<Vec<Option<QueueDepth>>> {
        let queues: Vec<String> = queues.iter().map(|it| it.as_ref().to_owned()).collect();
        match timeout(BROKER_WAIT_MAX, broker.queue_depths(&queues)).await {
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

    #[tokio::test]
    async fn what_is_read_in_steps_is_all_or_as_much_as_was_asked_for() {
        let check = async |there: usize, limit: usize, steps: &[usize]| {
            let mut asked = Vec::new();
            let all = pages(limit, 4, async |last: Option<&usize>, count| {
                asked.push(count);
                let from = last.map_or(0, |last| last + 1);
                Ok((from..there.min(from + count)).collect())
            });
            let all = all.await.unwrap();
            assert!(all.into_iter().eq(0..there.min(limit)), "{there} {limit}");
            assert_eq!(asked, steps, "{there} {limit}");
        };
        check(0, 10, &[4]).await;
        check(3, 10, &[4]).await;
        check(8, 10, &[4, 4, 2]).await;
        check(20, 10, &[4, 4, 2]).await;
        check(20, 8, &[4, 4]).await;
    }
}
