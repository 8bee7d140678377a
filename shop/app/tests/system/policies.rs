//! What each service of the shop may do at Amazon: what `docs/guide/deploying.md` says of its role, beside what it asks
//! for while orders are worked off.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use shop_contracts::CheckoutStyle;
use tidings::{Topology, Transport};
use tidings_aws::Aws;
use tidings_testing::foreign::workspace;

use crate::world::{CHECKOUT, World};

/// The most that the policies of a role may have at Amazon, in characters that are no space.
const POLICIES_CHARACTERS_MAX: usize = 10_240;

/// An action, and the name of the queue or topic that it is about, which may end with `*`.
type Call = (String, String);

/// Asserts that no process asked for what the policies of its service do not allow.
pub(crate) fn allow_what_was_asked_for(world: &World) {
    let declaring = workspace().join("deploy/iam/declare.json");
    let declaring = std::fs::read_to_string(declaring).unwrap();
    let declaring: Value = serde_json::from_str(&declaring).unwrap();
    let mut asked = asked(world);
    for (service, own) in policies(&world.broker_url(), world.style()) {
        let characters = format!("{own}{declaring}").len();
        assert!(
            characters <= POLICIES_CHARACTERS_MAX,
            "{service}: {characters}"
        );
        let allowed = &allowed(&own) | &allowed(&declaring);
        let asked = asked.remove(&service).unwrap_or_default();
        let may = |(action, name): &&Call| {
            let is_of = |pattern: &str| match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == pattern,
            };
            allowed
                .iter()
                .any(|(it, pattern)| it == action && is_of(pattern))
        };
        let too_much: Vec<_> = asked.iter().filter(|call| !may(call)).collect();
        assert!(too_much.is_empty(), "{service} may not: {too_much:?}");
        let receives = |(action, _): &Call| action == "sqs:ReceiveMessage";
        assert!(asked.iter().any(receives), "{service} did nothing");
    }
    assert_eq!(asked, BTreeMap::new(), "others asked for something");
}

/// What each service asked for. Processes have the names of their services as keys.
fn asked(world: &World) -> BTreeMap<String, BTreeSet<Call>> {
    let calls = world.aws().calls().unwrap();
    let calls: Vec<(String, String, String)> = serde_json::from_str(&calls).unwrap();
    let mut asked: BTreeMap<String, BTreeSet<Call>> = BTreeMap::new();
    for (action, about, service) in calls {
        // Everybody may ask whose they are.
        if action != "sts:GetCallerIdentity" {
            asked.entry(service).or_default().insert((action, about));
        }
    }
    asked
}

/// The policy that `tidings topology plan` prints for each service.
fn policies(url: &str, style: CheckoutStyle) -> BTreeMap<String, Value> {
    let topologies = [
        ("orders", shop_orders::topology()),
        ("payment", shop_payment::topology(style)),
        ("inventory", shop_inventory::topology(style)),
        ("shipping", shop_shipping::topology()),
        ("notification", shop_notification::topology()),
        ("loyalty", shop_loyalty::topology()),
        (CHECKOUT, shop_checkout::topology(style)),
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let aws = Aws::connect(url).await.unwrap();
        let mut policies = BTreeMap::new();
        for (service, topology) in &topologies {
            let others = topologies.iter().filter(|(other, _)| other != service);
            let commands = others
                .flat_map(|(_, topology)| commands(topology))
                .collect();
            let policy = aws.policy(topology, &commands).await.unwrap();
            policies.insert((*service).to_owned(), policy);
        }
        aws.close().await;
        policies
    })
}

fn commands(topology: &Topology) -> impl Iterator<Item = String> {
    let queues = topology.queues.iter().filter(|it| it.topics.is_empty());
    queues.map(|it| it.name.to_string())
}

fn allowed(policy: &Value) -> BTreeSet<Call> {
    let texts = |list: &Value| -> Vec<String> {
        let texts = list.as_array().unwrap().iter();
        texts.map(|it| it.as_str().unwrap().to_owned()).collect()
    };
    let mut allowed = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        for resource in texts(&statement["Resource"]) {
            let name = resource.rsplit(':').next().unwrap_or_default();
            let actions = texts(&statement["Action"]).into_iter();
            allowed.extend(actions.map(|action| (action, name.to_owned())));
        }
    }
    allowed
}
