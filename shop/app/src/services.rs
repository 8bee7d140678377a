//! The services there are, and how each is made.

use std::{collections::HashSet, fmt, str::FromStr, time::Duration};

use anyhow::Context;
use shop_contracts::CheckoutStyle;
use shop_kit::{BaseUrl, Database, Service};
use shop_notification::Mailer;
use shop_orders::{OrderDeadline, Overdue};
use shop_storefront::Elsewhere;
use tidings::{
    Topology,
    event_map::{EventMap, HandlerMap},
};

use crate::cli::Api;

/// A service of the shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    Orders,
    Payment,
    Inventory,
    Shipping,
    Notification,
    Loyalty,
    Checkout,
    Bank,
    Storefront,
}

impl Name {
    pub(crate) const ALL: [Self; 9] = [
        Self::Orders,
        Self::Payment,
        Self::Inventory,
        Self::Shipping,
        Self::Notification,
        Self::Loyalty,
        Self::Checkout,
        Self::Bank,
        Self::Storefront,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::Payment => "payment",
            Self::Inventory => "inventory",
            Self::Shipping => "shipping",
            Self::Notification => "notification",
            Self::Loyalty => "loyalty",
            Self::Checkout => "checkout",
            Self::Bank => "bank",
            Self::Storefront => "storefront",
        }
    }

    /// Where the paths of its HTTP API begin.
    const fn paths(self) -> &'static [&'static str] {
        match self {
            Self::Orders => &["/orders"],
            Self::Payment => &["/payments"],
            Self::Inventory => &["/products", "/stock"],
            Self::Shipping => &["/shipments"],
            Self::Notification => &["/emails"],
            Self::Loyalty => &["/loyalty"],
            Self::Bank => &["/bank"],
            Self::Checkout | Self::Storefront => &[],
        }
    }

    /// The topics and queues it needs on the broker, exactly as it declares them itself when it
    /// runs; `None` if it handles no messages.
    fn topology(self, style: CheckoutStyle) -> Option<Topology> {
        Some(match self {
            Self::Orders => shop_orders::topology(),
            Self::Payment => shop_payment::topology(style),
            Self::Inventory => shop_inventory::topology(style),
            Self::Shipping => shop_shipping::topology(),
            Self::Notification => shop_notification::topology(),
            Self::Loyalty => shop_loyalty::topology(),
            Self::Checkout => shop_checkout::topology(style),
            Self::Bank | Self::Storefront => return None,
        })
    }

    /// What it handles and sends; nothing if it handles no messages. In choreography nobody sends the
    /// checkout's commands: whoever could carry them out is shown without.
    fn event_map(self, style: CheckoutStyle) -> EventMap {
        let map = match self {
            Self::Orders => shop_orders::event_map(),
            Self::Payment => shop_payment::event_map(style),
            Self::Inventory => shop_inventory::event_map(style),
            Self::Shipping => shop_shipping::event_map(),
            Self::Notification => shop_notification::event_map(),
            Self::Loyalty => shop_loyalty::event_map(),
            Self::Checkout if style == CheckoutStyle::Orchestration => shop_checkout::event_map(),
            Self::Checkout | Self::Bank | Self::Storefront => EventMap::default(),
        };
        if style == CheckoutStyle::Orchestration {
            return map;
        }
        let led = shop_checkout::event_map();
        let sagas = led.services().iter().flat_map(|checkout| &checkout.sagas);
        let commands = sagas.flat_map(|saga| saga.sends.iter().chain(&saga.ends));
        let commands: HashSet<&str> = commands.map(|sent| &*sent.message).collect();
        let services = map.services().iter().cloned();
        let without = services.map(|mut service| {
            let stays = |handler: &HandlerMap| !commands.contains(&*handler.message);
            service.handlers.retain(stays);
            service
        });
        without.fold(EventMap::default(), EventMap::with)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|name| name.as_str() == text);
        named.ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|name| name.as_str()).collect();
            format!(
                "`{text}` is not a service; there are {}, or `all`",
                known.join(", ")
            )
        })
    }
}

/// A set of services, as in `--services`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// Those that were named one by one, in the order of [`Name::ALL`].
    named: Vec<Name>,
    /// `all` was said.
    is_all: bool,
}

impl Names {
    pub(crate) fn contains(&self, name: Name) -> bool {
        self.is_all || self.named.contains(&name)
    }

    fn iter(&self) -> impl Iterator<Item = Name> {
        Name::ALL.into_iter().filter(|name| self.contains(*name))
    }

    /// These services but for `without`. `all` means all that are not left out; a service that is
    /// named cannot be left out as well.
    pub(crate) fn but(&self, without: &Without) -> Result<Self, String> {
        let contradiction = self.named.iter().find(|name| without.contains(**name));
        if let Some(name) = contradiction {
            return Err(format!(
                "`--services` names `{name}` and `--without` leaves it out; name it in one of the \
                 two only"
            ));
        }
        let left: Vec<_> = self
            .iter()
            .filter(|name| !without.contains(*name))
            .collect();
        if left.is_empty() {
            return Err("`--without` leaves no service to run; name fewer services in it".into());
        }
        Ok(Self {
            named: left,
            is_all: false,
        })
    }
}

impl FromStr for Names {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut names = Self {
            named: Vec::new(),
            is_all: false,
        };
        let parts = text.split(',').map(str::trim);
        for part in parts.filter(|part| !part.is_empty()) {
            match part {
                "all" => names.is_all = true,
                name => names.named.push(name.parse()?),
            }
        }
        names.named.sort();
        names.named.dedup();
        if names.named.is_empty() && !names.is_all {
            return Err("it names no service".to_owned());
        }
        Ok(names)
    }
}

/// The services that this shop does without for good, as in `--without`; often none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Without(Option<Names>);

impl Without {
    pub(crate) fn contains(&self, name: Name) -> bool {
        self.0.as_ref().is_some_and(|names| names.contains(name))
    }

    /// What every service of the shop needs on the broker, wherever it runs, but for those that
    /// are left out. Subscriptions that are ended come last: while a shop changes its style, an order goes
    /// to both who may lead it rather than to nobody.
    pub(crate) fn topologies(&self, style: CheckoutStyle) -> Vec<Topology> {
        let kept = Name::ALL.into_iter().filter(|name| !self.contains(*name));
        let topologies = kept.filter_map(|name| name.topology(style));
        let mut topologies: Vec<_> = topologies.collect();
        topologies.sort_by_key(|topology| topology.queues.iter().any(|it| !it.left.is_empty()));
        topologies
    }

    /// What every service of the shop handles and sends, but for those that are left out.
    pub(crate) fn event_map(&self, style: CheckoutStyle) -> EventMap {
        let kept = Name::ALL.into_iter().filter(|name| !self.contains(*name));
        kept.map(|name| name.event_map(style))
            .fold(EventMap::default(), EventMap::merge)
    }
}

impl FromStr for Without {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        text.parse().map(|names| Self(Some(names)))
    }
}

/// What services are made from.
pub(crate) struct Surroundings<'a> {
    pub(crate) database: &'a Database,
    pub(crate) bank: Option<BaseUrl>,
    pub(crate) mailer: Option<Mailer>,
    pub(crate) api: &'a [Api],
    pub(crate) order_deadline: OrderDeadline,
    pub(crate) checkout: CheckoutStyle,
    pub(crate) keep_events: Option<Duration>,
}

/// The services that run here, and what runs beside them.
pub(crate) struct Opened {
    pub(crate) services: Vec<Service>,
    /// Keeps the deadline of orders, where orders runs.
    pub(crate) overdue: Option<Overdue>,
}

/// Makes the services that run here.
pub(crate) async fn open(names: &Names, around: &Surroundings<'_>) -> anyhow::Result<Opened> {
    let mut opened = Opened {
        services: Vec::new(),
        overdue: None,
    };
    for name in names.iter() {
        let service = one(name, names, around, &mut opened.overdue).await;
        let mut service = service.with_context(|| format!("`{name}` cannot start"))?;
        if let Some(retention) = around.keep_events {
            // Before it answers HTTP, so that the first order is kept too.
            let messages = service.messages.take();
            service.messages = messages.map(|router| router.keep_events(retention));
        }
        opened.services.push(service);
    }
    Ok(opened)
}

async fn one(
    name: Name,
    here: &Names,
    around: &Surroundings<'_>,
    overdue: &mut Option<Overdue>,
) -> anyhow::Result<Service> {
    let (database, style) = (around.database, around.checkout);
    Ok(match name {
        Name::Orders => {
            let (service, task) =
                shop_orders::service(database, around.order_deadline, style).await?;
            *overdue = Some(task);
            service
        }
        Name::Payment => {
            let bank = around
                .bank
                .clone()
                .context("it needs a bank; say where with `--bank URL`")?;
            shop_payment::service(database, bank, style).await?
        }
        Name::Inventory => shop_inventory::service(database, style).await?,
        Name::Shipping => shop_shipping::service(database).await?,
        Name::Notification => {
            let mailer = around
                .mailer
                .clone()
                .context("it has no way to send mails")?;
            shop_notification::service(database, mailer).await?
        }
        Name::Loyalty => shop_loyalty::service(database).await?,
        Name::Checkout => shop_checkout::service(database, style).await?,
        Name::Bank => shop_bank::service(database).await?,
        Name::Storefront => shop_storefront::service(elsewhere(here, around.api)),
    })
}

/// The services that the page needs and that do not run here.
fn elsewhere(here: &Names, api: &[Api]) -> Vec<Elsewhere> {
    let at = |name: Name| {
        let of_it = api.iter().find(|api| api.service == Some(name));
        let of_all = || api.iter().find(|api| api.service.is_none());
        of_it.or_else(of_all).map(|api| api.url.clone())
    };
    Name::ALL
        .into_iter()
        .filter(|name| !here.contains(*name))
        .map(|name| Elsewhere {
            service: name.as_str(),
            paths: name.paths(),
            at: at(name),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(services: &str, without: &str, expected: Result<&[&str], &str>) {
        let services: Names = services.parse().unwrap();
        let without = without.parse::<Without>().unwrap();
        match (services.but(&without), expected) {
            (Ok(left), Ok(names)) => {
                assert_eq!(left.iter().map(Name::as_str).collect::<Vec<_>>(), names);
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (left, _) => panic!("{services:?} without {without:?}: {left:?}"),
        }
    }

    #[test]
    fn a_service_is_run_or_left_out() {
        check("orders,bank", "", Ok(&["orders", "bank"]));
        check("orders,bank", "loyalty", Ok(&["orders", "bank"]));
        let all = "all";
        let left = [
            "orders",
            "payment",
            "inventory",
            "checkout",
            "bank",
            "storefront",
        ];
        check(all, "shipping,notification,loyalty", Ok(&left));
        check("all,loyalty", "loyalty", Err("names `loyalty`"));
        check("orders,loyalty", "loyalty, bank", Err("names `loyalty`"));
        check("orders", all, Err("names `orders`"));
        check(all, all, Err("leaves no service"));
    }

    #[test]
    fn queues_are_declared_for_every_service_that_is_not_left_out() {
        let queues = |without: &str| {
            let without: Without = without.parse().unwrap();
            let topologies = without.topologies(CheckoutStyle::Choreography);
            let queues = topologies.iter().flat_map(|topology| &topology.queues);
            queues
                .map(|queue| queue.name.to_string())
                .collect::<Vec<_>>()
        };
        let all = queues("");
        for consumer in [
            "orders",
            "payment",
            "inventory",
            "shipping",
            "notification",
            "loyalty",
            "checkout",
        ] {
            let own = format!("{consumer}.");
            assert!(
                all.iter().any(|queue| queue.starts_with(&own)),
                "{consumer}"
            );
            let rest: Vec<_> = all
                .iter()
                .filter(|queue| !queue.starts_with(&own))
                .collect();
            assert_eq!(
                queues(consumer).iter().collect::<Vec<_>>(),
                rest,
                "{consumer}"
            );
        }
        assert_eq!(queues("bank,storefront"), all);
    }

    /// In which order topics are subscribed to and left, of `order_events` alone.
    fn orders_go_to(style: CheckoutStyle) -> Vec<String> {
        let topologies = Without::default().topologies(style);
        let queues = topologies.iter().flat_map(|topology| &topology.queues);
        let about = queues.filter_map(|queue| {
            let is_about = |topics: &[std::borrow::Cow<'_, str>]| {
                topics.iter().any(|topic| topic == "order_events")
            };
            match (is_about(&queue.topics), is_about(&queue.left)) {
                (true, _) => Some(format!("+{}", queue.name)),
                (_, true) => Some(format!("-{}", queue.name)),
                _ => None,
            }
        });
        about.collect()
    }

    #[test]
    fn an_order_goes_to_whoever_leads_and_at_no_moment_to_nobody() {
        assert_eq!(
            orders_go_to(CheckoutStyle::Choreography),
            [
                "+orders.order-placed.v1",
                "+payment.order-placed.v1",
                "+inventory.order-placed.v1",
                "-checkout.order-placed.v1",
            ]
        );
        assert_eq!(
            orders_go_to(CheckoutStyle::Orchestration),
            [
                "+orders.order-placed.v1",
                "+checkout.order-placed.v1",
                "-payment.order-placed.v1",
                "-inventory.order-placed.v1",
            ]
        );
    }
}
