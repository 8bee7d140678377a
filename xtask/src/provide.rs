//! What tests need beyond Rust: servers, and the packages of programs in other languages.
//!
//! Servers come from a URL in the environment, from what is installed, or, on Debian as root, from
//! an installation now; Kafka is no package of Debian's and is fetched with Maven, an emulator of Amazon SNS and
//! SQS with npm. Packages of Node and Python go to a folder under cargo's target folder,
//! never into the clone. Nothing here is required: what cannot be had is remembered with the
//! reason, and whoever asked decides what that means.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tidings_testing::foreign::{
    CONFLUENT_PATH, CONTRACTS_NODE_PATH, CONTRACTS_PYTHON_PATH, DEPLOY_PATH, KEDA_PATH, NODE_PATH,
    PYTHON_PATH, chromium_missing,
};
use tidings_testing::servers::{
    AWS_URL, AwsEmulator, KAFKA_URL, Kafka, POSTGRES_URL, Postgres, RABBITMQ_ROOT, RABBITMQ_URL,
    REGISTRY_URL, RabbitMq, S3, S3_URL, SchemaRegistry,
};

use crate::deploy::debootstrap;
use crate::run::{answers, program, quietly, root, target};

/// What tests call the RabbitMQ that runs beside the installed one.
const NEWER_RABBITMQ: &str = "RabbitMQ 4";

/// The oldest Node that Pact's library runs on.
const CONTRACTS_NODE_MAJOR_MIN: u32 = 20;

/// What was had, and what was not.
#[derive(Default)]
pub(crate) struct Provided {
    env: Vec<(&'static str, String)>,
    /// What tests call it, and why it is not there.
    pub(crate) missing: Vec<(&'static str, String)>,
    // Held for as long as the tests run: dropped, they end.
    rabbitmq: Option<RabbitMq>,
    /// The folder with a Debian whose RabbitMQ is newer than the installed one.
    newer_rabbitmq: Option<PathBuf>,
    kafka: Option<Kafka>,
    registry: Option<SchemaRegistry>,
    aws: Option<AwsEmulator>,
    postgres: Option<Postgres>,
    s3: Option<S3>,
    /// Where the packages of the S3 server are.
    s3_packages: Option<PathBuf>,
}

impl Provided {
    pub(crate) fn env(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.env.iter().map(|(name, value)| (*name, value.as_str()))
    }

    pub(crate) fn missing_names(&self) -> Vec<&'static str> {
        self.missing.iter().map(|(name, _)| *name).collect()
    }

    /// What makes tests start the newer RabbitMQ, if it was had.
    pub(crate) fn newer_rabbitmq(&self) -> Option<[(&'static str, String); 2]> {
        let root = text(self.newer_rabbitmq.as_deref()?);
        Some([(RABBITMQ_ROOT, root), (RABBITMQ_URL, String::new())])
    }

    fn lack(&mut self, name: &'static str, why: impl ToString) {
        self.missing.push((name, why.to_string()));
    }

    fn lacks(&self, name: &str) -> bool {
        self.missing.iter().any(|(missing, _)| *missing == name)
    }
}

/// Gets everything onto the machine that is not there and can be had; starts nothing.
pub(crate) fn install(provided: &mut Provided) -> Result<()> {
    debian(
        provided,
        "RabbitMQ",
        &["rabbitmq-server"],
        RabbitMq::missing,
    );
    debian(provided, "PostgreSQL", &["postgresql"], Postgres::missing);
    newer_rabbitmq(provided);
    kafka(provided);
    registry(provided);
    debian(provided, "OpenSSL", &["libssl-dev", "pkg-config"], || {
        let why = "TLS to Kafka needs OpenSSL's headers and pkg-config (Debian: `apt-get install libssl-dev pkg-config`)";
        (!answers("pkg-config", "openssl")).then(|| why.to_owned())
    });
    if let Some(why) = AwsEmulator::missing() {
        provided.lack("SQS", why);
    } else if let Err(error) = AwsEmulator::fetch() {
        provided.lack("SQS", format!("{error:#}"));
    }
    if !is_root() {
        provided.lack(
            "root",
            "some tests mount a disk of their own to fill it, which root may",
        );
    }
    let cache = target()?.join("foreign");
    let examples = root()?.join("examples");
    if let Err(error) = node(provided, &examples, &cache.join("node")) {
        provided.lack("Node", format!("{error:#}"));
    }
    if let Err(error) = python(provided, &examples, &cache.join("python")) {
        provided.lack("Python", format!("{error:#}"));
    }
    match pip(&root()?.join("xtask/s3"), &cache.join("s3")) {
        Ok(packages) => provided.s3_packages = Some(packages),
        Err(error) => provided.lack("S3", format!("{error:#}")),
    }
    match pip(&root()?.join("xtask/registry"), &cache.join("registry")) {
        Ok(packages) => provided.env.push((CONFLUENT_PATH, text(&packages))),
        Err(error) => provided.lack("Python", format!("{error:#}")),
    }
    contracts(provided, &cache)?;
    deploy(provided, &cache)
}

/// What judges contracts.
fn contracts(provided: &mut Provided, cache: &Path) -> Result<()> {
    // Without what only windows need: 166 MB and 45 s on a Debian that has nothing yet.
    let browser = ["chromium-headless-shell"];
    debian(provided, "Chromium", &browser, chromium_missing);
    let lists = root()?.join("xtask/contracts");
    let packages = node_major().and_then(|major| {
        if major < CONTRACTS_NODE_MAJOR_MIN {
            bail!(
                "Pact's library needs Node {CONTRACTS_NODE_MAJOR_MIN} or newer, and this is Node {major}"
            );
        }
        npm(&lists, &cache.join("contracts/node"))
    });
    match packages {
        Ok(packages) => provided.env.push((CONTRACTS_NODE_PATH, text(&packages))),
        Err(error) => provided.lack("Node", format!("{error:#}")),
    }
    match pip(&lists, &cache.join("contracts/python")) {
        Ok(packages) => provided.env.push((CONTRACTS_PYTHON_PATH, text(&packages))),
        Err(error) => provided.lack("Python", format!("{error:#}")),
    }
    Ok(())
}

/// What checks the files in `deploy/`.
pub(crate) fn deploy(provided: &mut Provided, cache: &Path) -> Result<()> {
    match pip(&root()?.join("xtask/deploy"), &cache.join("deploy")) {
        Ok(packages) => provided.env.push((DEPLOY_PATH, text(&packages))),
        Err(error) => provided.lack("Python", format!("{error:#}")),
    }
    match go_module(&root()?.join("xtask/deploy"), &cache.join("keda")) {
        Ok(folder) => provided.env.push((KEDA_PATH, text(&folder))),
        Err(error) => provided.lack("Go", format!("{error:#}")),
    }
    Ok(())
}

/// Starts the servers that the environment does not name.
pub(crate) fn start(provided: &mut Provided) -> Result<()> {
    if !provided.lacks("RabbitMQ") && !given("RabbitMQ", RABBITMQ_URL) {
        let rabbitmq = RabbitMq::start()?;
        eprintln!("RabbitMQ: {}", rabbitmq.url());
        provided.env.push((RABBITMQ_URL, rabbitmq.url()));
        provided.rabbitmq = Some(rabbitmq);
    }
    if !provided.lacks("Kafka") && !given("Kafka", KAFKA_URL) {
        let kafka = Kafka::start()?;
        eprintln!("Kafka: {}", kafka.url());
        provided.env.push((KAFKA_URL, kafka.url()));
        provided.kafka = Some(kafka);
    }
    if !provided.lacks("Apicurio") && !given("Apicurio", REGISTRY_URL) {
        let registry = SchemaRegistry::start()?;
        eprintln!("Apicurio: {}", registry.url());
        provided.env.push((REGISTRY_URL, registry.url()));
        provided.registry = Some(registry);
    }
    if !provided.lacks("SQS") && !given("SQS", AWS_URL) {
        let aws = AwsEmulator::start()?;
        eprintln!("SNS and SQS: {}", aws.url());
        provided.env.push((AWS_URL, aws.url()));
        // The emulator takes any, but the SDK does not ask without.
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            provided.env.push((name, "test".to_owned()));
        }
        provided.aws = Some(aws);
    }
    if !provided.lacks("PostgreSQL") && !given("PostgreSQL", POSTGRES_URL) {
        let postgres = Postgres::start()?;
        eprintln!("PostgreSQL: {}", postgres.url());
        provided.env.push((POSTGRES_URL, postgres.url()));
        provided.postgres = Some(postgres);
    }
    if !provided.lacks("S3")
        && !given("S3", S3_URL)
        && let Some(packages) = &provided.s3_packages
    {
        let s3 = S3::start(packages)?;
        eprintln!("S3: {}", s3.url());
        provided.env.push((S3_URL, s3.url()));
        provided.s3 = Some(s3);
    }
    Ok(())
}

fn given(name: &str, variable: &str) -> bool {
    let given = std::env::var_os(variable).is_some_and(|url| !url.is_empty());
    if given {
        eprintln!("{name}: as {variable} says");
    }
    given
}

/// Makes sure that a server is installed: tests that kill one start their own, whatever URL
/// the environment has for the others.
fn debian(
    provided: &mut Provided,
    name: &'static str,
    packages: &[&str],
    missing: fn() -> Option<String>,
) {
    let Some(why) = missing() else {
        eprintln!("{name}: installed");
        return;
    };
    if !is_debian_root() {
        return provided.lack(name, why);
    }
    if let Err(error) = apt_get(name, packages) {
        return provided.lack(name, format!("{error:#}"));
    }
    if let Some(why) = missing() {
        provided.lack(
            name,
            format!("{} was installed, and still: {why}", packages.join(", ")),
        );
    }
}

/// The RabbitMQ of the Debian after the oldest that is supported, beside the installed one.
fn newer_rabbitmq(provided: &mut Provided) {
    const RELEASE: &str = "trixie";
    let chosen = |name| std::env::var_os(name).is_some_and(|it| !it.is_empty());
    if chosen(RABBITMQ_ROOT) || chosen(RABBITMQ_URL) {
        eprintln!("{NEWER_RABBITMQ}: not beside the RabbitMQ that the environment names");
        return;
    }
    let made = || {
        if !is_debian_root() {
            bail!("its folder is made and entered by root, on Debian");
        }
        if !answers("debootstrap", "--version") {
            apt_get(NEWER_RABBITMQ, &["debootstrap"])?;
        }
        let folder = target()?
            .join("foreign")
            .join(format!("{RELEASE}-rabbitmq"));
        if !folder.exists() {
            eprintln!("{NEWER_RABBITMQ}: making a Debian for it (about 90 s, 370 MB)");
        }
        debootstrap(&folder, RELEASE, "minbase", &["rabbitmq-server"])?;
        Ok(folder)
    };
    match made() {
        Ok(folder) => provided.newer_rabbitmq = Some(folder),
        Err(error) => provided.lack(NEWER_RABBITMQ, format!("{error:#}")),
    }
}

/// Kafka needs Java and Maven, and is fetched with them.
fn kafka(provided: &mut Provided) {
    let packages = ["default-jre-headless", "maven"];
    debian(provided, "Kafka", &packages, Kafka::missing);
    if !provided.lacks("Kafka")
        && let Err(error) = Kafka::fetch()
    {
        provided.lack("Kafka", format!("{error:#}"));
    }
}

/// So does the schema registry.
fn registry(provided: &mut Provided) {
    let name = "Apicurio";
    if let Some(why) = SchemaRegistry::missing() {
        provided.lack(name, why);
    } else if let Err(error) = SchemaRegistry::fetch() {
        provided.lack(name, format!("{error:#}"));
    }
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}

fn is_debian_root() -> bool {
    is_root() && Path::new("/etc/debian_version").exists() && answers("apt-get", "--version")
}

fn apt_get(name: &str, packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    eprintln!("{name}: not installed; installing `{list}` (about 20 s)");
    let apt_get = |args: &[&str]| {
        let mut command = program("apt-get")?;
        // Without RUNLEVEL the packages would start servers of their own on the usual ports.
        command
            .envs([("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")])
            .args(args);
        quietly(&mut command)
    };
    let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
    let install = [&install[..], packages].concat();
    if apt_get(&install).is_err() {
        // The usual reason is that the machine has no list of packages, or an old one.
        apt_get(&["update", "--quiet"])?;
        apt_get(&install)?;
    }
    Ok(())
}

/// Installs what `examples/package.json` names.
fn node(provided: &mut Provided, examples: &Path, cache: &Path) -> Result<()> {
    if !answers("node", "--version") || !answers("npm", "--version") {
        provided.lack(
            "Node",
            "`node` and `npm` are not installed (Debian: `apt-get install npm`)",
        );
        return Ok(());
    }
    let path = npm(examples, cache)?;
    eprintln!("Node: packages in {}", path.display());
    provided.env.push((NODE_PATH, text(&path)));
    Ok(())
}

/// The major version of the installed Node.
fn node_major() -> Result<u32> {
    let version = quietly(program("node")?.arg("--version"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let major = version.trim().trim_start_matches('v').split('.').next();
    let major = major.and_then(|it| it.parse().ok());
    major.with_context(|| format!("`node --version` says {version:?}"))
}

/// Installs what `package.json` in the folder `lists` names, exactly as its lock file has it, and says where.
fn npm(lists: &Path, cache: &Path) -> Result<PathBuf> {
    once(lists, cache, &["package.json", "package-lock.json"], || {
        let mut npm = program("npm")?;
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]);
        quietly(npm.current_dir(cache)).map(drop)
    })?;
    Ok(cache.join("node_modules"))
}

/// Installs what `examples/requirements.txt` names.
fn python(provided: &mut Provided, examples: &Path, cache: &Path) -> Result<()> {
    if !answers("python3", "--version") {
        provided.lack(
            "Python",
            "`python3` is not installed (Debian: `apt-get install python3-pip`)",
        );
        return Ok(());
    }
    let path = pip(examples, cache)?;
    eprintln!("Python: packages in {}", path.display());
    provided
        .env
        .push((PYTHON_PATH, path.to_string_lossy().into_owned()));
    Ok(())
}

/// Installs what `requirements.txt` in the folder `lists` names, and says where.
fn pip(lists: &Path, cache: &Path) -> Result<PathBuf> {
    let path = cache.join("packages");
    once(lists, cache, &["requirements.txt"], || {
        let mut pip = program("python3")?;
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--upgrade",
        ]);
        pip.arg("--target")
            .arg(&path)
            .args(["--requirement", "requirements.txt"]);
        quietly(pip.current_dir(cache)).map(drop)
    })?;
    Ok(path)
}

/// Fetches the module that `module.txt` in the folder `lists` names, as `PATH@VERSION`, and says where its files are.
fn go_module(lists: &Path, cache: &Path) -> Result<PathBuf> {
    let list = "module.txt";
    once(lists, cache, &[list], || {
        let name = std::fs::read_to_string(lists.join(list))?;
        let name = name.lines().find(|line| !line.starts_with('#'));
        let mut go = program("go")?;
        // With what else is installed for tests, and as easy to remove.
        go.env("GOMODCACHE", cache.join("modules"))
            .env("GOFLAGS", "-modcacherw")
            .args(["mod", "download", "-json"]);
        let fetched = quietly(go.arg(name.unwrap_or_default()).current_dir(cache))?;
        let fetched: serde_json::Value = serde_json::from_slice(&fetched.stdout)?;
        let folder = fetched["Dir"].as_str();
        let folder = folder.context("`go mod download` did not say where it put the module")?;
        Ok(std::fs::write(cache.join("folder"), folder)?)
    })?;
    let folder = std::fs::read_to_string(cache.join("folder"))?;
    Ok(PathBuf::from(folder))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Copies `lists` from the folder `from` to `cache` and installs what they name, unless that is done.
fn once(
    from: &Path,
    cache: &Path,
    lists: &[&str],
    install: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let done = cache.join("done");
    let texts = lists
        .iter()
        .map(|list| std::fs::read_to_string(from.join(list)));
    let wanted = texts
        .collect::<Result<String, _>>()
        .context("cannot read the lists of packages")?;
    if std::fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    std::fs::create_dir_all(cache)?;
    for list in lists {
        std::fs::copy(from.join(list), cache.join(list))?;
    }
    install()?;
    Ok(std::fs::write(done, wanted)?)
}
