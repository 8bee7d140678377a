//! What each process of the shop is told in `deploy/`: the program takes every argument and knows every variable,
//! each service runs, and whom it is led to is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

use crate::manifests::{Manifests, deploy, mutated};

/// A process of the shop, as a Compose file or a Deployment starts it.
pub(crate) struct Process {
    /// The file and its name there.
    pub(crate) at: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
}

/// What somebody has to bring, for `${…}` in Compose files and for references to the Secret.
const BROUGHT: &[(&str, &str)] = &[
    ("SHOP_PASSWORD", "s3cret"),
    ("RABBITMQ_COOKIE", "cookie"),
    ("database", "postgres://shop:s3cret@postgres:5432/shop"),
    ("smtp", "smtp://mail:25"),
    ("AWS_ACCESS_KEY_ID", "key"),
    ("AWS_SECRET_ACCESS_KEY", "s3cret"),
    ("AWS_SESSION_TOKEN", "token"),
];

/// What Amazon's SDK reads in the shop, of its own accord.
const OF_AMAZONS_SDK: [&str; 3] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

/// What the Secret may say of the broker.
const BROKERS: [&str; 2] = [
    "amqp://shop:s3cret@rabbitmq:5672/%2f",
    "aws://eu-central-1/shop-",
];

/// What a variable that is not set in the file is to be.
fn brought(name: &str) -> Option<String> {
    let found = BROUGHT.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| (*value).to_owned())
}

/// A text with `${NAME}`, `${NAME:-default}` and `${NAME:?why}` as Compose fills them in.
fn filled(text: &str, known: &BTreeMap<String, String>) -> Result<String, String> {
    let mut parts = text.split("${");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').ok_or("`${` without `}`")?;
        let (name, default) = match name.split_once(":-") {
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (name.split(":?").next().unwrap_or_default(), None),
        };
        let value = known.get(name).cloned().or(brought(name)).or(default);
        filled += &value.ok_or(format!("nobody says what `{name}` is"))?;
        filled += rest;
    }
    Ok(filled)
}

/// The lines `NAME=value` of a file for Compose.
fn env_file(file: &str, folder: &std::path::Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(folder.join("compose").join(file)).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let lines = lines.map(|(name, value)| (name.to_owned(), value.to_owned()));
    lines.collect()
}

/// The processes of the shop in the Compose file of one engine, and whom they can reach by name.
fn in_compose(
    manifests: &Manifests,
    engine: &str,
    folder: &std::path::Path,
) -> Result<(Vec<Process>, BTreeSet<String>), String> {
    let engine = manifests.one(&format!("compose/{engine}.yaml"));
    let included = &engine["include"][0];
    let known = env_file(included["env_file"].as_str().unwrap(), folder);
    let paths = match &included["path"] {
        Value::Array(_) => texts(&included["path"]),
        path => vec![path.as_str().unwrap().to_owned()],
    };
    let mut files = paths
        .iter()
        .map(|path| manifests.one(&format!("compose/{path}")));
    let shop = files.next().unwrap();
    // What comes behind the first adds to it.
    let more: Vec<&Value> = files.map(|file| &file["services"]).collect();
    for name in more.iter().flat_map(|it| it.as_object().unwrap().keys()) {
        if shop["services"][name].is_null() {
            return Err(format!("there is no service `{name}` to add to"));
        }
    }
    let mut hosts = BTreeSet::new();
    let mut processes = Vec::new();
    for file in [engine, shop] {
        for (name, service) in file["services"].as_object().into_iter().flatten() {
            hosts.insert(name.clone());
            let is_shop = service["build"]["target"] == "shop";
            if !is_shop {
                continue;
            }
            let environments = more.iter().map(|it| &it[name]["environment"]);
            let environments = [&service["environment"]].into_iter().chain(environments);
            let environment = environments.flat_map(|it| it.as_object().into_iter().flatten());
            let environment = environment.map(|(name, value)| {
                if value.is_null() {
                    // It is passed on, if it is there.
                    return Ok((name.clone(), brought(name).unwrap_or_default()));
                }
                let value = value.as_str().ok_or(format!("`{name}` is no text"))?;
                // What a variable is filled in with may have variables itself.
                let value = filled(&filled(value, &known)?, &known)?;
                Ok((name.clone(), value))
            });
            processes.push(Process {
                at: format!("compose/shop.yaml: {name}"),
                arguments: texts(&service["command"]),
                environment: environment.collect::<Result<_, String>>()?,
            });
        }
    }
    Ok((processes, hosts))
}

/// The processes of the shop in Kubernetes with the URL of a broker, and whom they can reach by name.
fn in_kubernetes(
    manifests: &Manifests,
    broker: &str,
) -> Result<(Vec<Process>, BTreeSet<String>), String> {
    let mut processes = Vec::new();
    for (path, deployment) in manifests.of_kind("Deployment") {
        for container in deployment["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
        {
            let at = format!("{path}: {}", container["name"]);
            let mut environment = BTreeMap::new();
            for from in container["envFrom"].as_array().into_iter().flatten() {
                let name = &from["configMapRef"]["name"];
                let mut maps = manifests.of_kind("ConfigMap");
                let map = maps.find(|(_, map)| map["metadata"]["name"] == *name);
                let (_, map) = map.ok_or(format!("{at}: there is no ConfigMap {name}"))?;
                let pairs = map["data"].as_object().unwrap().iter();
                environment.extend(pairs.map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())));
            }
            for variable in container["env"].as_array().into_iter().flatten() {
                let name = variable["name"].as_str().unwrap().to_owned();
                let secret = &variable["valueFrom"]["secretKeyRef"];
                let value = match (variable["value"].as_str(), secret["key"].as_str()) {
                    (Some(value), _) => value.to_owned(),
                    (None, Some("broker")) if secret["name"] == "shop" => broker.to_owned(),
                    (None, Some(key)) if secret["name"] == "shop" => brought(key)
                        .ok_or(format!("{at}: nobody is told to bring the secret `{key}`"))?,
                    _ => return Err(format!("{at}: `{name}` has no value")),
                };
                environment.insert(name, value);
            }
            processes.push(Process {
                at,
                arguments: texts(&container["args"]),
                environment,
            });
        }
    }
    let services = manifests.of_kind("Service");
    let hosts = services.map(|(_, service)| service["metadata"]["name"].as_str().unwrap().into());
    Ok((processes, hosts.collect()))
}

fn texts(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten();
    texts
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

fn shop() -> Command {
    let mut shop = Command::new(env!("CARGO_BIN_EXE_shop"));
    shop.env_clear();
    shop
}

fn help() -> String {
    let help = shop().arg("--help").output().unwrap();
    String::from_utf8(help.stdout).unwrap()
}

/// What is wrong with what a process is told.
fn complaint(process: &Process, help: &str, hosts: &BTreeSet<String>) -> Option<String> {
    let broker = process.environment.get("TIDINGS_BROKER");
    let is_on = |scheme: &str| broker.is_some_and(|url| url.starts_with(scheme));
    for (name, value) in &process.environment {
        let is_of_sdk = is_on("aws://") && OF_AMAZONS_SDK.contains(&&**name);
        if !is_of_sdk && !help.contains(&format!("[env: {name}")) {
            return Some(format!("the shop does not know the variable `{name}`"));
        }
        // Services call each other's HTTP by name, at the port that all listen on.
        for url in value
            .split([',', '='])
            .filter(|part| part.starts_with("http://"))
        {
            let host = url
                .strip_prefix("http://")
                .and_then(|url| url.strip_suffix(":8080"));
            if host.is_none_or(|host| !hosts.contains(host)) {
                return Some(format!("`{name}` leads to `{url}`, where nobody is"));
            }
        }
    }
    // It reads all its options, and needs neither a broker nor a database for this.
    let mut map = shop();
    map.args(&process.arguments)
        .envs(&process.environment)
        .arg("map");
    let output = map.output().unwrap();
    // This build may lack it.
    let expected = match () {
        () if is_on("kafka://") && !cfg!(feature = "kafka") => "--features kafka",
        () if is_on("aws://") && !cfg!(feature = "aws") => "--features aws",
        () => "",
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let well = output.status.success() == expected.is_empty() && said.contains(expected);
    (!well).then(|| format!("the shop says: {said}"))
}

/// Which service each process runs; together all that there are, each in one process.
fn services_that_run(processes: &[Process]) -> BTreeSet<String> {
    let mut services = BTreeSet::new();
    for process in processes {
        let at = process
            .arguments
            .iter()
            .position(|word| word == "--services");
        let names = at.and_then(|at| process.arguments.get(at + 1));
        let names = names.unwrap_or_else(|| panic!("{}: it runs all services", process.at));
        for name in names.split(',') {
            assert!(services.insert(name.to_owned()), "{name} runs twice");
        }
    }
    services
}

/// As the help names them.
fn services_there_are(help: &str) -> BTreeSet<String> {
    let words: Vec<&str> = help.split_whitespace().collect();
    let words = words.join(" ");
    let (_, list) = words.split_once("separated by commas: ").unwrap();
    let (list, _) = list.split_once("; or").unwrap();
    list.split(", ").map(str::to_owned).collect()
}

/// Everything that is wrong with what the processes are told.
fn complaints(folder: &std::path::Path) -> Vec<String> {
    let manifests = Manifests::read(folder);
    let help = help();
    let compose = ["rabbitmq", "kafka", "aws"].map(|engine| in_compose(&manifests, engine, folder));
    let kubernetes = BROKERS.map(|broker| in_kubernetes(&manifests, broker));
    let mut complaints = Vec::new();
    for stack in compose.into_iter().chain(kubernetes) {
        let (processes, hosts) = match stack {
            Ok(stack) => stack,
            Err(complaint) => {
                complaints.push(complaint);
                continue;
            }
        };
        assert_eq!(services_that_run(&processes), services_there_are(&help));
        for process in &processes {
            let complaint = complaint(process, &help, &hosts);
            complaints.extend(complaint.map(|complaint| format!("{}: {complaint}", process.at)));
        }
    }
    complaints
}

/// A mistake of each kind: the file, what is replaced by what, and what is said.
const MISTAKES: &[(&str, &str, &str, &str)] = &[
    (
        "kubernetes/base/settings.yaml",
        "  TIDINGS_CHECKOUT:",
        "  TIDINGS_CHECKOUTS:",
        "does not know the variable `TIDINGS_CHECKOUTS`",
    ),
    (
        "kubernetes/base/settings.yaml",
        "TIDINGS_ORDER_DEADLINE: 24h",
        "TIDINGS_ORDER_DEADLINE: soon",
        "invalid value 'soon'",
    ),
    (
        "kubernetes/base/orders.yaml",
        "args: [",
        "args: [\"--loud\", ",
        "unexpected argument '--loud'",
    ),
    (
        "kubernetes/base/payment.yaml",
        "http://bank:8080",
        "http://banks:8080",
        "where nobody is",
    ),
    (
        "kubernetes/base/payment.yaml",
        "key: broker",
        "key: brokers",
        "nobody is told to bring the secret `brokers`",
    ),
    (
        "compose/shop.yaml",
        "TIDINGS_SMTP: smtp://",
        "TIDINGS_MAIL: smtp://",
        "does not know the variable `TIDINGS_MAIL`",
    ),
    (
        "compose/shop.yaml",
        "orders=http://orders:8080",
        "orders=http://orders:8081",
        "where nobody is",
    ),
    (
        "compose/rabbitmq.env",
        "TIDINGS_BROKER=amqp:",
        "TIDINGS_BROKER=rabbit:",
        "invalid value 'rabbit:",
    ),
    (
        "compose/aws-access.yaml",
        "    AWS_ACCESS_KEY_ID:",
        "    AWS_ACCESS_KEY:",
        "does not know the variable `AWS_ACCESS_KEY`",
    ),
    (
        "compose/aws-access.yaml",
        "  payment: *",
        "  payments: *",
        "there is no service `payments` to add to",
    ),
    (
        "compose/kafka.env",
        "TIDINGS_BROKER=",
        "BROKER=",
        "nobody says what `TIDINGS_BROKER` is",
    ),
];

#[test]
#[ignore = "needs Python and Go"]
fn the_program_takes_what_every_process_is_told() {
    assert_eq!(complaints(&deploy()), [""; 0]);
    for (file, from, to, said) in MISTAKES {
        let found = complaints(mutated(file, from, to).path());
        let is_said = found.iter().any(|complaint| complaint.contains(said));
        assert!(is_said, "`{to}` in {file}: {found:?}");
    }
}

/// A URL of a broker is read for good only by what connects to it.
#[test]
fn the_brokers_urls_name_all_nodes() {
    let folder = deploy();
    let known = env_file("rabbitmq.env", &folder);
    let url = filled(&known["TIDINGS_BROKER"], &known).unwrap();
    assert!(tidings_amqp::Amqp::builder(&url).is_ok(), "{url}");
    assert_eq!(url.matches(":5672").count(), 3, "{url}");
    let known = env_file("kafka.env", &folder);
    let url = filled(&known["TIDINGS_BROKER"], &known).unwrap();
    #[cfg(feature = "kafka")]
    assert!(tidings_kafka::Kafka::builder(&url).is_ok(), "{url}");
    assert_eq!(url.matches(":9092").count(), 3, "{url}");
    let known = env_file("aws.env", &folder);
    let url = filled(&known["TIDINGS_BROKER"], &known).unwrap();
    #[cfg(feature = "aws")]
    assert!(tidings_aws::Aws::builder(&url).is_ok(), "{url}");
    assert_eq!(url, BROKERS[1]);
}
