//! The services there are, and how each is made.

use std::{fmt, str::FromStr};

use anyhow::Context;
use shop_kit::{BaseUrl, Database, Service};
use shop_notification::Mailer;
use shop_storefront::Elsewhere;

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
    Bank,
    Storefront,
}

impl Name {
    pub(crate) const ALL: [Self; 8] = [
        Self::Orders,
        Self::Payment,
        Self::Inventory,
        Self::Shipping,
        Self::Notification,
        Self::Loyalty,
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
            Self::Storefront => &[],
        }
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
        if text == "checkout" {
            return Err(
                "the service `checkout` (the saga manager) is planned, but not there yet; the \
                 other services decide by each other's events"
                    .to_owned(),
            );
        }
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
pub(crate) struct Names(Vec<Name>);

impl Names {
    pub(crate) fn contains(&self, name: Name) -> bool {
        self.0.contains(&name)
    }
}

impl FromStr for Names {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut names = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            match part {
                "all" => names.extend(Name::ALL),
                name => names.push(name.parse()?),
            }
        }
        names.sort();
        names.dedup();
        if names.is_empty() {
            return Err("it names no service".to_owned());
        }
        Ok(Self(names))
    }
}

/// What services are made from.
pub(crate) struct Surroundings<'a> {
    pub(crate) database: &'a Database,
    pub(crate) bank: Option<BaseUrl>,
    pub(crate) mailer: Option<Mailer>,
    pub(crate) api: &'a [Api],
}

/// Makes the services that run here.
pub(crate) async fn open(names: &Names, around: &Surroundings<'_>) -> anyhow::Result<Vec<Service>> {
    let mut services = Vec::with_capacity(names.0.len());
    for &name in &names.0 {
        let service = one(name, names, around).await;
        services.push(service.with_context(|| format!("`{name}` cannot start"))?);
    }
    Ok(services)
}

async fn one(name: Name, here: &Names, around: &Surroundings<'_>) -> anyhow::Result<Service> {
    let database = around.database;
    Ok(match name {
        Name::Orders => shop_orders::service(database).await?,
        Name::Payment => {
            let bank = around
                .bank
                .clone()
                .context("it needs a bank; say where with `--bank URL`")?;
            shop_payment::service(database, bank).await?
        }
        Name::Inventory => shop_inventory::service(database).await?,
        Name::Shipping => shop_shipping::service(database).await?,
        Name::Notification => {
            let mailer = around
                .mailer
                .clone()
                .context("it has no way to send mails")?;
            shop_notification::service(database, mailer).await?
        }
        Name::Loyalty => shop_loyalty::service(database).await?,
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
