//! Which crate may depend on which: from programs to the pure cores, never back.
//!
//! Only programs choose adapters; adapters know neither the router nor each other; the toolkit and
//! the broker meet only in the wire format. Dev-dependencies are free: a test may use anything.

use std::collections::BTreeSet;

use super::{Complaint, Repository};

/// Each crate with the crates of this workspace that it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("tidings-wire", &[]),
    ("tidings-broker-core", &[]),
    ("tidings-broker-log", &["tidings-broker-core"]),
    (
        "tidings-broker",
        &["tidings-wire", "tidings-broker-core", "tidings-broker-log"],
    ),
    ("tidings-core", &[]),
    ("tidings-formats", &["tidings-core"]),
    ("tidings-names", &[]),
    ("tidings-macros", &["tidings-names"]),
    ("tidings-saga", &["tidings-core"]),
    (
        "tidings",
        &[
            "tidings-core",
            "tidings-formats",
            "tidings-macros",
            "tidings-saga",
        ],
    ),
    ("tidings-adapter", &["tidings-core"]),
    (
        "tidings-amqp",
        &["tidings-adapter", "tidings-core", "tidings-wire"],
    ),
    ("tidings-aws", &["tidings-adapter", "tidings-core"]),
    ("tidings-registry", &[]),
    (
        "tidings-kafka",
        &[
            "tidings-adapter",
            "tidings-core",
            "tidings-formats",
            "tidings-registry",
        ],
    ),
    ("tidings-claim-check", &["tidings-core"]),
    (
        "tidings-contracts",
        &["tidings", "tidings-formats", "tidings-names"],
    ),
    ("tidings-memory", &["tidings-core"]),
    ("tidings-operator", &["tidings-core"]),
    ("tidings-postgres", &["tidings-core"]),
    ("tidings-sqlite", &["tidings-core"]),
    (
        "tidings-testing",
        &["tidings", "tidings-core", "tidings-memory"],
    ),
    (
        "tidings-examples",
        &[
            "tidings",
            "tidings-amqp",
            "tidings-broker",
            "tidings-sqlite",
        ],
    ),
    // It attacks all of them together, and nothing depends on it.
    (
        "rig",
        &[
            "tidings",
            "tidings-amqp",
            "tidings-aws",
            "tidings-broker",
            "tidings-core",
            "tidings-kafka",
            "tidings-postgres",
            "tidings-sqlite",
            "tidings-testing",
        ],
    ),
    ("shop-contracts", &["tidings"]),
    (
        "shop-kit",
        &[
            "tidings",
            "tidings-core",
            "tidings-postgres",
            "tidings-sqlite",
        ],
    ),
    ("shop-bank", SERVICE),
    ("shop-checkout", SERVICE),
    ("shop-inventory", SERVICE),
    ("shop-loyalty", SERVICE),
    ("shop-notification", SERVICE),
    ("shop-orders", SERVICE),
    ("shop-payment", SERVICE),
    ("shop-shipping", SERVICE),
    ("shop-storefront", SERVICE),
    (
        "shop",
        &[
            "shop-bank",
            "shop-checkout",
            "shop-contracts",
            "shop-inventory",
            "shop-kit",
            "shop-loyalty",
            "shop-notification",
            "shop-orders",
            "shop-payment",
            "shop-shipping",
            "shop-storefront",
            "tidings",
            "tidings-amqp",
            "tidings-aws",
            "tidings-broker",
            "tidings-core",
            "tidings-kafka",
            "tidings-operator",
            "tidings-postgres",
            "tidings-sqlite",
        ],
    ),
    // The command: it looks at everybody's databases and brokers, and knows no service.
    (
        "tidings-cli",
        &[
            "tidings",
            "tidings-adapter",
            "tidings-amqp",
            "tidings-aws",
            "tidings-broker",
            "tidings-contracts",
            "tidings-formats",
            "tidings-kafka",
            "tidings-operator",
            "tidings-postgres",
            "tidings-registry",
            "tidings-sqlite",
        ],
    ),
    // For the tests of services; only they depend on it.
    ("shop-testing", &["shop-kit", "tidings", "tidings-memory"]),
    (
        "bench",
        &[
            "tidings",
            "tidings-amqp",
            "tidings-aws",
            "tidings-kafka",
            "tidings-postgres",
            "tidings-sqlite",
            "tidings-testing",
            "tidings-wire",
        ],
    ),
    ("xtask", &["tidings-testing"]),
];

/// A service of the shop knows the others only through the contracts.
const SERVICE: &[&str] = &["tidings", "tidings-core", "shop-contracts", "shop-kit"];

/// Crates that take time in and give effects out, and what would end that.
const PURE: &[&str] = &[
    "tidings-wire",
    "tidings-broker-core",
    "tidings-core",
    "tidings-macros",
    "tidings-names",
    "tidings-saga",
];
const IMPURE_CRATES: &[&str] = &[
    "tokio",
    "mio",
    "rusqlite",
    "tokio-postgres",
    "hyper",
    "axum",
    "rustix",
];
const IMPURE_CODE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
];

/// Crates that take minutes to build, need another compiler, or bring many others, for which a user has to ask by a feature.
const HEAVY: &[&str] = &[
    "apache-avro",
    "aws-config",
    "aws-lc-sys",
    "aws-sdk-sns",
    "aws-sdk-sqs",
    "openssl-sys",
    "jsonschema",
    "pact_matching",
    "protox-parse",
    "rdkafka-sys",
    "schemars",
    "tidings-aws",
    "tidings-contracts",
    "tidings-formats",
    "tidings-kafka",
];

pub(super) fn the_default_build_is_light(repository: &Repository) -> Vec<Complaint> {
    let built = repository.default_build.iter();
    let heavy: BTreeSet<&String> = built
        .filter(|name| HEAVY.contains(&name.as_str()))
        .collect();
    let complaint = |name| {
        let says =
            format!("`{name}` is in the default build of a program: put it behind a feature");
        Complaint::new("Cargo.toml", says)
    };
    heavy.into_iter().map(complaint).collect()
}

pub(super) fn point_one_way(repository: &Repository) -> Vec<Complaint> {
    let ours = |name: &str| ARROWS.iter().any(|(crate_name, _)| *crate_name == name);
    let mut complaints = Vec::new();
    for package in &repository.packages {
        let allowed = allowed(&package.name).unwrap_or_default();
        let ours = package.dependencies.iter().filter(|name| ours(name));
        complaints.extend(
            ours.filter(|name| !allowed.contains(&name.as_str()))
                .map(|name| {
                    Complaint::new(
                        format!("{}/Cargo.toml", package.folder),
                        format!(
                            "`{}` must not depend on `{name}` (see {})",
                            package.name,
                            file!()
                        ),
                    )
                }),
        );
    }
    complaints
}

pub(super) fn every_crate_has_a_row(repository: &Repository) -> Vec<Complaint> {
    let packages = repository.packages.iter();
    packages
        .filter(|package| allowed(&package.name).is_none())
        .map(|package| {
            let says = format!("say in {} what `{}` may depend on", file!(), package.name);
            Complaint::new(format!("{}/Cargo.toml", package.folder), says)
        })
        .collect()
}

pub(super) fn cores_are_pure(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for package in repository
        .packages
        .iter()
        .filter(|p| PURE.contains(&p.name.as_str()))
    {
        for name in package
            .dependencies
            .iter()
            .filter(|n| IMPURE_CRATES.contains(&n.as_str()))
        {
            let says = format!("`{}` does no I/O: it cannot need `{name}`", package.name);
            complaints.push(Complaint::new(
                format!("{}/Cargo.toml", package.folder),
                says,
            ));
        }
        let source = format!("{}/src/", package.folder);
        for file in repository
            .rust_files()
            .filter(|file| file.path.starts_with(&source))
        {
            // Tests beside the code may read clocks and files.
            let code = file.text.split("#[cfg(test)]").next().unwrap_or_default();
            let code = code
                .lines()
                .enumerate()
                .filter(|(_, l)| !l.trim_start().starts_with("//"));
            for (number, line) in code {
                for what in IMPURE_CODE.iter().filter(|what| line.contains(**what)) {
                    let at = format!("{}:{}", file.path, number + 1);
                    let says = format!(
                        "`{}` is given the time and does no I/O: take `{what}` out",
                        package.name
                    );
                    complaints.push(Complaint::new(at, says));
                }
            }
        }
    }
    complaints
}

pub(super) fn folders_are_named_like_crates(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for package in &repository.packages {
        let expected = match package.folder.split_once('/') {
            Some(("shop", "app")) => "shop".to_owned(),
            Some(("shop", service)) => format!("shop-{service}"),
            Some((_, folder)) => folder.to_owned(),
            None if package.folder == "cli" => "tidings-cli".to_owned(),
            None => package.folder.clone(),
        };
        if package.name != expected {
            let says = format!(
                "call the crate `{expected}`, not `{}`, or move it",
                package.name
            );
            complaints.push(Complaint::new(
                format!("{}/Cargo.toml", package.folder),
                says,
            ));
        }
    }
    complaints
}

fn allowed(name: &str) -> Option<&'static [&'static str]> {
    ARROWS
        .iter()
        .find(|(crate_name, _)| *crate_name == name)
        .map(|(_, allowed)| *allowed)
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn an_arrow_that_is_not_in_the_table_is_refused() {
        let arrow = |from, to| Repository::with_package(from, "crates/x", &[to, "bytes"]);
        check(point_one_way, &arrow("tidings-amqp", "tidings-core"), &[]);
        check(
            point_one_way,
            &arrow("tidings-core", "tidings"),
            &["crates/x/Cargo.toml"],
        );
        check(
            point_one_way,
            &arrow("shop-orders", "shop-payment"),
            &["crates/x/Cargo.toml"],
        );
        check(
            point_one_way,
            &arrow("tidings-amqp", "tidings-broker"),
            &["crates/x/Cargo.toml"],
        );
        check(
            point_one_way,
            &arrow("unheard-of", "tidings"),
            &["crates/x/Cargo.toml"],
        );
    }

    #[test]
    fn what_takes_long_to_build_is_asked_for() {
        let build = |names: &[&str]| Repository {
            default_build: names.iter().map(|&name| name.to_owned()).collect(),
            ..Repository::default()
        };
        check(
            the_default_build_is_light,
            &build(&["tokio", "tidings"]),
            &[],
        );
        check(
            the_default_build_is_light,
            &build(&["tokio", "rdkafka-sys", "tidings", "rdkafka-sys"]),
            &["Cargo.toml"],
        );
    }

    #[test]
    fn a_new_crate_needs_a_row() {
        let package = |name| Repository::with_package(name, "crates/x", &[]);
        check(every_crate_has_a_row, &package("tidings"), &[]);
        check(
            every_crate_has_a_row,
            &package("unheard-of"),
            &["crates/x/Cargo.toml"],
        );
    }

    #[test]
    fn the_table_itself_points_one_way() {
        // A row may name only rows above it, so there can be no circle.
        let rows = ARROWS.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        for (at, (name, allowed)) in ARROWS.iter().enumerate() {
            let below = allowed.iter().find(|to| !rows[..at].contains(to));
            assert_eq!(
                below, None,
                "`{name}` may depend on it, but it does not stand above"
            );
        }
    }

    #[test]
    fn a_core_with_a_clock_or_a_socket_is_no_core() {
        let with = |text: &str| {
            let mut repository =
                Repository::with_package("tidings-wire", "crates/tidings-wire", &[]);
            repository.files = Repository::with_file("crates/tidings-wire/src/lib.rs", text).files;
            repository
        };
        check(
            cores_are_pure,
            &with("//! No `std::net` here.\nfn f() {}\n"),
            &[],
        );
        check(
            cores_are_pure,
            &with("fn f() {}\n#[cfg(test)]\nuse std::fs;\n"),
            &[],
        );
        let line_2 = ["crates/tidings-wire/src/lib.rs:2"];
        check(
            cores_are_pure,
            &with("\nlet now = Instant::now();\n"),
            &line_2,
        );
        check(
            cores_are_pure,
            &with("\nuse std::net::TcpStream;\n"),
            &line_2,
        );
        let tokio = Repository::with_package("tidings-core", "crates/tidings-core", &["tokio"]);
        check(cores_are_pure, &tokio, &["crates/tidings-core/Cargo.toml"]);
        let broker = Repository::with_package("tidings-broker", "crates/x", &["tokio"]);
        check(cores_are_pure, &broker, &[]);
    }

    #[test]
    fn a_crate_is_called_like_its_folder() {
        let rule = folders_are_named_like_crates;
        let package = |name, folder| Repository::with_package(name, folder, &[]);
        check(rule, &package("tidings-wire", "crates/tidings-wire"), &[]);
        check(rule, &package("shop-orders", "shop/orders"), &[]);
        check(rule, &package("shop", "shop/app"), &[]);
        check(rule, &package("bench", "bench"), &[]);
        check(rule, &package("tidings-cli", "cli"), &[]);
        check(
            rule,
            &package("wire", "crates/tidings-wire"),
            &["crates/tidings-wire/Cargo.toml"],
        );
        check(
            rule,
            &package("orders", "shop/orders"),
            &["shop/orders/Cargo.toml"],
        );
    }
}
