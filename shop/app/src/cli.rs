//! The command line. Every flag has an environment variable; the flag wins.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{
    Args, CommandFactory, Parser, Subcommand, ValueEnum, builder::FalseyValueParser,
    error::ErrorKind,
};
use shop_contracts::CheckoutStyle;
use shop_kit::{BaseUrl, Database, Time};
use shop_orders::OrderDeadline;
use tracing_subscriber::EnvFilter;

use crate::services::{Name, Names, Without};

/// A complete shop of event-driven services.
///
/// Without arguments everything runs in this process: all services, a message broker that speaks
/// AMQP, and SQLite files under ./data. Nothing else is needed.
#[derive(Debug, Parser)]
#[command(name = "shop", version, args_conflicts_with_subcommands = false)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

impl Cli {
    /// What the command line and the environment say. A mistake ends the process with an error
    /// that names it.
    pub(crate) fn read() -> (Command, Options) {
        Self::try_parse()
            .and_then(Self::consistent)
            .unwrap_or_else(|error| error.exit())
    }

    /// Takes what is left out from the services to run.
    fn consistent(self) -> Result<(Command, Options), clap::Error> {
        let mut options = self.options;
        let leads = options.checkout == CheckoutStyle::Orchestration;
        if leads && options.without.contains(Name::Checkout) {
            let why = "`--checkout orchestration` has the service `checkout` lead every order, and \
                       `--without` leaves it out; take one of the two away";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, why));
        }
        let services = options.services.but(&options.without);
        options.services =
            services.map_err(|why| Self::command().error(ErrorKind::ArgumentConflict, why))?;
        Ok((self.command.unwrap_or(Command::Up), options))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the shop (what happens without a command, too).
    Up,
    /// Prints which service handles and sends what, and what may be wrong with it. Needs neither a
    /// broker nor a database; of the other options, `--without` and `--checkout` matter.
    Map(MapOptions),
}

#[derive(Debug, Args)]
pub(crate) struct MapOptions {
    /// What to print.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "mermaid")]
    pub(crate) format: MapFormat,

    /// Ends with the exit code 1 if something may be wrong.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MapFormat {
    /// A flowchart, for documents that draw it.
    Mermaid,
    /// A graph for Graphviz.
    Dot,
    /// For programs.
    Json,
    /// A picture.
    Svg,
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where messages go: `embedded`, `amqp://user:password@host:port/vhost` (a cluster is named by several of its
    /// nodes, `host:port,host:port`), or, if it was built with `--features kafka`, `kafka://host:port`, or with
    /// `--features aws`, `aws://REGION/PREFIX`.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TIDINGS_BROKER",
        hide_env_values = true,
        default_value = "embedded"
    )]
    pub(crate) broker: BrokerAt,

    /// Where services keep their data: `postgres://…` (one schema per service) or
    /// `sqlite://folder` (one file per service). Default: SQLite files under the data folder.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TIDINGS_DATABASE",
        hide_env_values = true
    )]
    pub(crate) database: Option<Database>,

    /// Which services run in this process, separated by commas: orders, payment, inventory,
    /// shipping, notification, loyalty, checkout, storefront, bank; or `all`.
    #[arg(
        long,
        global = true,
        value_name = "LIST",
        env = "TIDINGS_SERVICES",
        default_value = "all"
    )]
    pub(crate) services: Names,

    /// Which services this shop does without for good, separated by commas, in every process of it
    /// alike. Every process declares the queues of all services before its own begin, so that a
    /// service which starts later finds what it missed; for those left out nothing is declared and
    /// nothing is kept. Queues that were declared before stay on the broker until somebody deletes
    /// them.
    ///
    /// Example: `shop --without loyalty,notification` runs all services but these two.
    #[arg(
        long,
        global = true,
        value_name = "LIST",
        env = "TIDINGS_WITHOUT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) without: Without,

    /// Who decides what happens to the orders that are placed from now on: the services by each other's
    /// events (`choreography`), or the service checkout by a saga (`orchestration`). What customers and
    /// listeners see is the same. Use the same in every process of the shop. It may be changed when the
    /// shop is started anew: orders that are under way end as they began, so let `checkout` run in both.
    #[arg(
        long,
        global = true,
        value_name = "STYLE",
        env = "TIDINGS_CHECKOUT",
        default_value = "choreography"
    )]
    pub(crate) checkout: CheckoutStyle,

    /// How long an order may wait for its answers, as `90s`, `15m`, `24h` or `2d`. What is not
    /// decided by then is cancelled, and everything done for it is undone. Use the same in every
    /// process that runs `orders`.
    #[arg(
        long,
        global = true,
        value_name = "TIME",
        env = "TIDINGS_ORDER_DEADLINE",
        default_value = "24h"
    )]
    pub(crate) order_deadline: OrderDeadline,

    /// How long each service keeps the events that it has sent, as `15m`, `24h` or `30d`, so that they
    /// can be sent again to a service that is added later (`tidings events replay`). Default: none
    /// are kept. Use the same in every process.
    #[arg(long, global = true, value_name = "TIME", env = "TIDINGS_KEEP_EVENTS")]
    pub(crate) keep_events: Option<Retention>,

    /// Where the services of this process answer HTTP; port 0 picks a free one and prints it.
    #[arg(
        long,
        global = true,
        value_name = "ADDR",
        env = "TIDINGS_LISTEN",
        default_value = "127.0.0.1:8080"
    )]
    pub(crate) listen: SocketAddr,

    /// Where the embedded broker answers AMQP; port 0 picks a free one and prints it.
    #[arg(
        long,
        global = true,
        value_name = "ADDR",
        env = "TIDINGS_AMQP_LISTEN",
        default_value = "127.0.0.1:5672"
    )]
    pub(crate) amqp_listen: SocketAddr,

    /// The folder for everything that must survive a restart.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "TIDINGS_DATA",
        default_value = "./data"
    )]
    pub(crate) data: PathBuf,

    /// Keep everything in a temporary folder that is gone afterwards.
    #[arg(long, global = true, env = "TIDINGS_EPHEMERAL", value_parser = FalseyValueParser::new())]
    pub(crate) ephemeral: bool,

    /// Where the bank is, if it does not run in this process.
    #[arg(long, global = true, value_name = "URL", env = "TIDINGS_BANK")]
    pub(crate) bank: Option<BaseUrl>,

    /// The mail server, as `smtp://host:port`. Default: mails are `.eml` files under the data
    /// folder.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TIDINGS_SMTP",
        hide_env_values = true
    )]
    pub(crate) smtp: Option<String>,

    /// Where the storefront finds services that do not run in this process: one URL for all, or
    /// `service=URL`, several separated by commas.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TIDINGS_API",
        value_delimiter = ','
    )]
    pub(crate) api: Vec<Api>,

    /// Where operators reach the services of this process, without their database and their broker:
    /// `tidings --at http://ADDR doctor`. Off when not given. An address that is not loopback needs a token.
    #[arg(
        long,
        global = true,
        value_name = "ADDR",
        env = "TIDINGS_OPERATOR_LISTEN"
    )]
    pub(crate) operator_listen: Option<SocketAddr>,

    /// The file with the token that operators must have. The token itself may stand in
    /// `TIDINGS_OPERATOR_TOKEN`; there is no flag for it, which everybody on the machine could read.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TIDINGS_OPERATOR_TOKEN_FILE"
    )]
    pub(crate) operator_token_file: Option<PathBuf>,

    /// How logs look.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        env = "TIDINGS_LOG_FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
}

/// How long events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention(pub(crate) Duration);

impl FromStr for Retention {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Time>()?.duration() {
            Duration::ZERO => Err(format!("`{text}` keeps nothing; leave the flag out")),
            retention => Ok(Self(retention)),
        }
    }
}

/// Where the broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BrokerAt {
    Embedded,
    Amqp(String),
    #[cfg(feature = "kafka")]
    Kafka(String),
    #[cfg(feature = "aws")]
    Aws(String),
}

impl FromStr for BrokerAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            None if text == "embedded" => Ok(Self::Embedded),
            Some(("amqp" | "amqps", _)) => Ok(Self::Amqp(text.to_owned())),
            #[cfg(feature = "kafka")]
            Some(("kafka" | "kafkas", _)) => Ok(Self::Kafka(text.to_owned())),
            #[cfg(not(feature = "kafka"))]
            Some(("kafka" | "kafkas", _)) => Err(
                "this build of the shop cannot use Kafka; build it with `--features kafka`"
                    .to_owned(),
            ),
            #[cfg(feature = "aws")]
            Some(("aws", _)) => Ok(Self::Aws(text.to_owned())),
            #[cfg(not(feature = "aws"))]
            Some(("aws", _)) => Err(
                "this build of the shop cannot use Amazon SNS and SQS; build it with `--features aws`".to_owned(),
            ),
            _ => Err("use `embedded` or `amqp://user:password@host:port/vhost`".to_owned()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Where some or all services are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Api {
    /// `None`: all for which nothing else is said.
    pub(crate) service: Option<Name>,
    pub(crate) url: BaseUrl,
}

impl FromStr for Api {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, url) = match text.split_once('=') {
            Some((service, url)) => (Some(service.parse()?), url),
            None => (None, text),
        };
        Ok(Self {
            service,
            url: url.parse()?,
        })
    }
}

/// What is logged if `RUST_LOG` does not say: nothing per message, and not what a database remarks on
/// statements.
const LOG_FILTER: &str = "info,tokio_postgres=warn";

/// Logs go to stderr.
pub(crate) fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logs.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &str) -> Result<Options, String> {
        let arguments = std::iter::once("shop").chain(arguments.split_whitespace());
        Cli::try_parse_from(arguments)
            .and_then(Cli::consistent)
            .map(|(_, options)| options)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn up_may_be_said_or_left_out() {
        for arguments in ["--listen 127.0.0.1:0", "up --listen 127.0.0.1:0"] {
            assert_eq!(options(arguments).unwrap().listen.port(), 0, "{arguments}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_clearly() {
        let check = |arguments, part: &str| {
            let error = options(arguments).expect_err(arguments);
            assert!(error.contains(part), "{arguments}: {error}");
        };
        #[cfg(not(feature = "kafka"))]
        check(
            "--broker kafka://localhost:9092",
            "build it with `--features kafka`",
        );
        #[cfg(not(feature = "aws"))]
        check("--broker aws://eu-west-1", "build it with `--features aws`");
        check("--broker rabbit", "use `embedded` or `amqp://");
        check("--database mysql://x", "`mysql` is not a database");
        check("--services orders,paiment", "`paiment` is not a service");
        check("--services ,", "names no service");
        check("--without paiment", "`paiment` is not a service");
        check(
            "--services orders,loyalty --without loyalty",
            "names `loyalty`",
        );
        check("--without all", "leaves no service");
        check("--order-deadline 0s", "cancel every order at once");
        check("--order-deadline soon", "`90s`, `15m`, `24h` or `2d`");
        check("--keep-events 0d", "keeps nothing");
        check("--keep-events long", "`90s`, `15m`, `24h` or `2d`");
        check("--api paiment=http://x", "`paiment` is not a service");
        check("--bank https://bank", "TLS proxy");
        check("--checkout ballet", "`choreography` and `orchestration`");
        check(
            "--checkout orchestration --without checkout",
            "has the service `checkout` lead",
        );
    }

    #[test]
    fn one_url_or_one_per_service() {
        let api = options("--api http://a,payment=http://b").unwrap().api;
        let found: Vec<_> = api
            .iter()
            .map(|api| (api.service.map(Name::as_str), api.url.to_string()))
            .collect();
        let expected = [
            (None, "http://a".to_owned()),
            (Some("payment"), "http://b".to_owned()),
        ];
        assert_eq!(found, expected);
    }
}
