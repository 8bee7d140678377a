//! What `deploy/` says about a shop that runs: its probes and its figures answer, its queues decide how many
//! processes there are, and its end is waited for.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;
use tidings_testing::{
    foreign,
    servers::{Process, free_port},
};

use crate::{
    common::{SOON, Shop, command, eventually},
    manifests::{Manifests, deploy},
};

/// The partitions of a topic on Kafka, if nobody says otherwise: more consumers get nothing.
const KAFKA_PARTITIONS: u64 = 12;

/// The account in the files for Amazon, to be replaced.
const ACCOUNT: &str = "123456789012";

/// What is left of a grace period for what nobody measures.
const ROOM: u64 = 10;

/// The `CMD`s of health checks in the Containerfile, by the stage.
fn health_checks() -> BTreeMap<String, Vec<String>> {
    let text = std::fs::read_to_string(deploy().join("Containerfile")).unwrap();
    let mut checks = BTreeMap::new();
    let mut stage = "";
    for line in text.lines() {
        if let Some((_, name)) = line
            .strip_prefix("FROM ")
            .and_then(|it| it.split_once(" AS "))
        {
            stage = name;
        } else if let Some(command) = line.trim_start().strip_prefix("CMD ") {
            checks.insert(stage.to_owned(), serde_json::from_str(command).unwrap());
        }
    }
    checks
}

/// Whether a health check finds a program well that listens here.
fn is_well(check: &[String], variable: &str, address: &str) -> bool {
    let mut command = Command::new(&check[0]);
    command.args(&check[1..]).env(variable, address);
    command.output().unwrap().status.success()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Python and Go"]
async fn a_running_shop_is_as_deploy_says() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let manifests = Manifests::read(&deploy());
    let figures = eventually(SOON, async || {
        // Some figures come with the first look at the outbox.
        let answer = shop.get("/metrics").await;
        let has = answer.text.contains("tidings_outbox_oldest_age_seconds{");
        has.then_some(answer.text)
    });
    let figures = figures.await.unwrap();

    let mut paths = 0;
    for (file, deployment) in manifests.of_kind("Deployment") {
        let pod = &deployment["spec"]["template"];
        let container = &pod["spec"]["containers"][0];
        let annotations = &pod["metadata"]["annotations"];
        let probes = ["livenessProbe", "readinessProbe"];
        let asked = probes.map(|probe| &container[probe]["httpGet"]["path"]);
        for path in asked
            .into_iter()
            .chain([&annotations["prometheus.io/path"]])
        {
            let path = path
                .as_str()
                .unwrap_or_else(|| panic!("{file}: a probe has no path"));
            assert_eq!(shop.get(path).await.status, 200, "{file}: {path}");
            paths += 1;
        }
        let ports = container["ports"].as_array().unwrap().iter();
        let ports: BTreeSet<u64> = ports
            .map(|port| port["containerPort"].as_u64().unwrap())
            .collect();
        assert_eq!(ports, [8080].into(), "{file}");
        assert_eq!(annotations["prometheus.io/port"], "8080", "{file}");
    }
    assert_eq!(paths, 3 * 9);

    alerts_are_about(&manifests, &figures);
    scaling_looks_at(&manifests, &queues(&figures));
    shop.stop();
}

/// Every queue of a service that may have a backlog.
fn queues(figures: &str) -> BTreeSet<String> {
    let lines = figures.lines();
    let queues = lines.filter_map(|line| line.strip_prefix("tidings_deferred_messages{queue=\""));
    queues
        .filter_map(|line| Some(line.split_once('"')?.0.to_owned()))
        .collect()
}

/// The alerts ask for figures that the shop shows.
fn alerts_are_about(manifests: &Manifests, figures: &str) {
    let alerts = manifests.one("prometheus/alerts.yaml");
    let rules = alerts["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() > 3);
    for rule in rules {
        let expression = rule["expr"].as_str().unwrap();
        let words = expression.split(|c: char| !c.is_alphanumeric() && c != '_');
        let names = words.filter(|word| word.starts_with("tidings_") || word.starts_with("shop_"));
        let names: Vec<&str> = names.collect();
        assert_eq!(names.len(), 1, "{expression}");
        let shown = [format!("\n{}{{", names[0]), format!("\n{} ", names[0])];
        let is_shown = shown.iter().any(|start| figures.contains(start.as_str()));
        assert!(is_shown, "nobody shows `{}`", names[0]);
        if let Some((_, label)) = expression.split_once("{end=\"") {
            let value = label.split('"').next().unwrap();
            assert!(
                figures.contains(&format!("end=\"{value}\"")),
                "{expression}"
            );
        }
    }
}

/// The queue whose URL at Amazon this is, with the prefix `shop-`.
fn queue_at_amazon(metadata: &Value) -> String {
    let url = metadata["queueURL"].as_str().unwrap();
    let region = metadata["awsRegion"].as_str().unwrap();
    let start = format!("https://sqs.{region}.amazonaws.com/{ACCOUNT}/shop-");
    let name = url
        .strip_prefix(&start)
        .and_then(|it| it.strip_suffix(".fifo"));
    let name = name.unwrap_or_else(|| panic!("{url} is no FIFO queue of the shop in {region}"));
    name.replace("--", ".")
}

/// Each service is scaled by all of its queues, on each engine; never to nothing, and on Kafka to no more than
/// get something to do.
fn scaling_looks_at(manifests: &Manifests, queues: &BTreeSet<String>) {
    assert!(queues.len() > 20, "{queues:?}");
    let mut seen: BTreeMap<(&str, String), ()> = BTreeMap::new();
    for (file, scaled) in manifests.of_kind("ScaledObject") {
        let spec = &scaled["spec"];
        let service = spec["scaleTargetRef"]["name"].as_str().unwrap();
        let deployment = manifests.of_kind("Deployment");
        let mut deployment = deployment.filter(|(_, it)| it["metadata"]["name"] == service);
        let (_, deployment) = deployment
            .next()
            .unwrap_or_else(|| panic!("{file}: {service}"));
        assert!(
            deployment["spec"]["replicas"].is_null(),
            "{service}: two decide how many there are"
        );
        assert!(
            spec["minReplicaCount"].as_u64().unwrap() >= 1,
            "{file}: {service}"
        );
        assert!(
            spec["maxReplicaCount"].as_u64().unwrap() <= KAFKA_PARTITIONS,
            "{file}: {service}"
        );
        for trigger in spec["triggers"].as_array().unwrap() {
            let metadata = &trigger["metadata"];
            let queue = metadata["queueName"]
                .as_str()
                .or(metadata["consumerGroup"].as_str())
                .map(str::to_owned)
                .unwrap_or_else(|| queue_at_amazon(metadata));
            assert!(
                queue.starts_with(&format!("{service}.")),
                "{file}: {service} is scaled by {queue}"
            );
            assert!(
                seen.insert((file, queue), ()).is_none(),
                "{file}: {service}: twice"
            );
        }
    }
    for file in [
        "kubernetes/rabbitmq/scaling.yaml",
        "kubernetes/kafka/scaling.yaml",
        "kubernetes/aws/scaling.yaml",
    ] {
        let looked_at = seen.keys().filter(|(at, _)| *at == file);
        let looked_at: BTreeSet<String> = looked_at.map(|(_, queue)| queue.clone()).collect();
        assert_eq!(looked_at, *queues, "{file}");
    }
}

/// A container is well while its databases answer, and not before, nor when nobody is there.
#[tokio::test(flavor = "multi_thread")]
async fn the_health_checks_of_images_tell_well_from_unwell() {
    let checks = health_checks();
    let (shops, brokers) = (&checks["shop"], &checks["broker"]);
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let (http, amqp) = (shop.http.to_string(), shop.amqp.unwrap().to_string());
    assert!(is_well(shops, "TIDINGS_LISTEN", &http));
    assert!(is_well(brokers, "TIDINGS_AMQP_LISTEN", &amqp));
    shop.stop();
    assert!(!is_well(shops, "TIDINGS_LISTEN", &http));
    assert!(!is_well(brokers, "TIDINGS_AMQP_LISTEN", &amqp));

    // Nobody is at its database: it answers, and says that it is not ready.
    let http = format!("127.0.0.1:{}", free_port().unwrap());
    let database = format!("postgres://nobody@127.0.0.1:{}/x", free_port().unwrap());
    let arguments = ["--listen", &http, "--database", &database];
    let _waits = Process::start(command(data.path(), &arguments)).unwrap();
    let answers = eventually(SOON, async || std::net::TcpStream::connect(&http).ok());
    answers.await.expect("it does not answer");
    assert!(!is_well(shops, "TIDINGS_LISTEN", &http));
}

/// What a process needs to end is less than it is given: what nobody calls any more, its handlers, HTTP, and room.
#[test]
#[ignore = "needs Python and Go"]
fn an_end_has_the_time_it_takes() {
    let manifests = Manifests::read(&deploy());
    let seconds = |file: &str, constant: &str| -> u64 {
        let text = std::fs::read_to_string(foreign::workspace().join(file)).unwrap();
        let (_, rest) = text
            .split_once(&format!(
                "const {constant}: Duration = Duration::from_secs("
            ))
            .unwrap();
        rest.split(')').next().unwrap().parse().unwrap()
    };
    let takes = seconds("shop/app/src/run.rs", "HANDLERS_FINISH_TIMEOUT")
        + seconds("shop/app/src/http.rs", "FINISH_TIMEOUT")
        + ROOM;
    for (file, deployment) in manifests.of_kind("Deployment") {
        let pod = &deployment["spec"]["template"]["spec"];
        let before = &pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
        let given = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(
            given >= before.as_u64().unwrap() + takes,
            "{file}: {given} s"
        );
    }
    let shop = manifests.one("compose/shop.yaml");
    for (name, service) in shop["services"].as_object().unwrap() {
        if service["build"]["target"] == "shop" {
            let given = service["stop_grace_period"]
                .as_str()
                .unwrap()
                .trim_end_matches('s');
            assert!(given.parse::<u64>().unwrap() >= takes, "{name}: {given} s");
        }
    }
}

/// Every file is applied, objects find each other by their labels, and nothing holds a secret.
#[test]
#[ignore = "needs Python and Go"]
fn objects_of_kubernetes_belong_together() {
    let manifests = Manifests::read(&deploy());
    for (path, documents) in &manifests.0 {
        let Some(folder) = path.strip_suffix("/kustomization.yaml") else {
            continue;
        };
        let listed = documents[0]["resources"].as_array().unwrap().iter();
        let listed: BTreeSet<String> = listed.map(|it| it.as_str().unwrap().to_owned()).collect();
        let beside = manifests
            .0
            .keys()
            .filter_map(|path| path.strip_prefix(&format!("{folder}/")));
        let beside = beside
            .filter(|name| *name != "kustomization.yaml")
            .map(str::to_owned);
        let mut beside: BTreeSet<String> = beside.collect();
        if !folder.ends_with("base") {
            beside.insert("../base".to_owned());
        }
        assert_eq!(listed, beside, "{path}");
    }
    assert_eq!(manifests.of_kind("Secret").count(), 0);
    let mut roles = roles_at_amazon(&manifests);
    for (file, deployment) in manifests.of_kind("Deployment") {
        let name = &deployment["metadata"]["name"];
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/name"], *name, "{file}");
        assert_eq!(
            deployment["spec"]["selector"]["matchLabels"], *labels,
            "{file}"
        );
        let selects = |kind: &'static str, selector: fn(&Value) -> &Value| {
            let mut found = manifests
                .of_kind(kind)
                .filter(|(_, it)| it["metadata"]["name"] == *name);
            let (_, object) = found
                .next()
                .unwrap_or_else(|| panic!("{name} has no {kind}"));
            assert_eq!(selector(&object["spec"]), labels, "{kind} of {name}");
        };
        // Who it is to a cloud. Nobody to Kubernetes.
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["serviceAccountName"], *name, "{file}");
        let mut accounts = manifests.of_kind("ServiceAccount");
        let account = accounts.find(|(_, it)| it["metadata"]["name"] == *name);
        let (_, account) = account.unwrap_or_else(|| panic!("{name} has no ServiceAccount"));
        for gives_a_token in [pod, account] {
            assert_eq!(
                gives_a_token["automountServiceAccountToken"], false,
                "{file}"
            );
        }
        assert_eq!(
            roles.remove(name.as_str().unwrap()),
            Some(1),
            "a role of {name}"
        );
        selects("Service", |spec| &spec["selector"]);
        selects(
            "PodDisruptionBudget",
            |spec| &spec["selector"]["matchLabels"],
        );
    }
    assert_eq!(roles, BTreeMap::new(), "roles of nobody");
}

/// How many roles each service account is given on Amazon, each called as its service.
fn roles_at_amazon(manifests: &Manifests) -> BTreeMap<String, usize> {
    let mut roles = BTreeMap::new();
    let patches = &manifests.one("kubernetes/aws/kustomization.yaml")["patches"];
    for patch in patches.as_array().unwrap() {
        assert_eq!(patch["target"]["kind"], "ServiceAccount");
        let name = patch["target"]["name"].as_str().unwrap();
        let expected = format!(
            "- op: add\n  path: /metadata/annotations\n  value: {{eks.amazonaws.com/role-arn: \
             \"arn:aws:iam::{ACCOUNT}:role/shop-{name}\"}}"
        );
        assert_eq!(patch["patch"].as_str().unwrap().trim_end(), expected);
        *roles.entry(name.to_owned()).or_default() += 1;
    }
    roles
}

/// The queues that services are scaled by on Amazon are called as the transport calls them.
#[cfg(feature = "aws")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SQS, Python and Go"]
async fn services_are_scaled_by_the_queues_that_they_receive_at_amazon() {
    use shop_contracts::CheckoutStyle;
    use tidings_aws::Aws;

    let endpoint = tidings_testing::servers::aws_url();
    let (region, endpoint) = endpoint.split_once('?').unwrap();
    let url = format!("{region}/shop-?account={ACCOUNT}&{endpoint}");
    let aws = Aws::connect(&url).await.unwrap();
    let styles = [CheckoutStyle::Choreography, CheckoutStyle::Orchestration];
    let topologies = styles.into_iter().flat_map(|style| {
        [
            ("orders", shop_orders::topology()),
            ("payment", shop_payment::topology(style)),
            ("inventory", shop_inventory::topology(style)),
            ("shipping", shop_shipping::topology()),
            ("notification", shop_notification::topology()),
            ("loyalty", shop_loyalty::topology()),
            ("checkout", shop_checkout::topology(style)),
        ]
    });
    let mut received = BTreeSet::new();
    for (service, topology) in topologies {
        let policy = aws.policy(&topology, &BTreeSet::new()).await.unwrap();
        let statements = policy["Statement"].as_array().unwrap().iter();
        let receive = statements.filter(|it| it["Sid"] == "Receive");
        for arn in receive.flat_map(|it| it["Resource"].as_array().unwrap()) {
            let arn: Vec<&str> = arn.as_str().unwrap().split(':').collect();
            let [_, _, "sqs", region, account, name] = arn[..] else {
                panic!("{arn:?}");
            };
            let url = format!("https://sqs.{region}.amazonaws.com/{account}/{name}");
            received.insert((service.to_owned(), url));
        }
    }
    let manifests = Manifests::read(&deploy());
    let mut scaled_by = BTreeSet::new();
    let file = "kubernetes/aws/scaling.yaml";
    for (_, scaled) in manifests.of_kind("ScaledObject").filter(|it| it.0 == file) {
        let service = scaled["spec"]["scaleTargetRef"]["name"].as_str().unwrap();
        for trigger in scaled["spec"]["triggers"].as_array().unwrap() {
            let url = trigger["metadata"]["queueURL"].as_str().unwrap();
            scaled_by.insert((service.to_owned(), url.to_owned()));
        }
    }
    assert_eq!(scaled_by, received);

    // And whoever scales may look at them.
    let policy = std::fs::read_to_string(deploy().join("iam/scale.json")).unwrap();
    let policy: Value = serde_json::from_str(&policy).unwrap();
    let statement = &policy["Statement"][0];
    assert_eq!(statement["Action"][0], "sqs:GetQueueAttributes");
    let resource = statement["Resource"][0].as_str().unwrap();
    let start = resource.strip_suffix('*').unwrap();
    let all = received.iter().all(|(_, url)| {
        let name = url.rsplit('/').next().unwrap_or_default();
        format!("arn:aws:sqs:eu-central-1:{ACCOUNT}:{name}").starts_with(start)
    });
    assert!(all, "{resource}: {received:?}");
}
