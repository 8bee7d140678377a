//! What a service may do by the policy that is made for it, beside what it asks for.

use std::collections::BTreeSet;

use serde_json::Value;
use tidings_aws::{Piece, PieceKind, PieceState};
use tidings_core::{Attempt, Group, dead_letter_queue};
use tidings_testing::servers::AwsEmulator;

use super::*;

/// The account of the emulator.
const ARN: &str = "eu-central-1:000000000000";

type Call = (String, String);

fn calls(server: &AwsEmulator) -> BTreeSet<Call> {
    let calls = server.calls().expect("an answer");
    let calls: Vec<(String, String, String)> = serde_json::from_str(&calls).expect("JSON");
    let calls = calls.into_iter();
    calls.map(|(action, about, _)| (action, about)).collect()
}

/// The actions that a policy allows, each with a resource, by name.
fn allowed(policy: &Value) -> BTreeSet<Call> {
    let statements = policy["Statement"].as_array().expect("statements").iter();
    let pairs = statements.flat_map(|it| {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let resources: Vec<String> = it["Resource"]
            .as_array()
            .expect("a list")
            .iter()
            .map(text)
            .collect();
        let actions: Vec<String> = it["Action"]
            .as_array()
            .expect("a list")
            .iter()
            .map(text)
            .collect();
        actions.into_iter().flat_map(move |action| {
            let service = action[..3].to_owned();
            let resources = resources.clone().into_iter();
            resources.map(move |resource| {
                let prefix = format!("arn:aws:{service}:{ARN}:");
                let name = resource
                    .strip_prefix(&prefix)
                    .unwrap_or(&resource)
                    .to_owned();
                (action.clone(), name)
            })
        })
    });
    pairs.collect()
}

/// A service that uses everything there is asks for what its policy allows, and for nothing else.
pub(crate) async fn a_policy_allows_what_a_service_asks_for_and_no_more(server: AwsEmulator) {
    for queues in ["fifo", "standard"] {
        // Names of its own: both kinds are in one account.
        let url = server
            .url()
            .replace("eu-central-1", &format!("eu-central-1/{queues}-"));
        let options =
            format!("queues={queues}&account=000000000000&wait=1&visibility=6&handover=1");
        let is_fifo = queues == "fifo";
        let others = connect_with(&url, &options).await;
        let commanded = Group::new("bank.ordered", NonZeroU16::MIN).command("bank.withdraw.v1");
        let mut of_others = Topology::new()
            .topic("parcel_events")
            .queue(Queue::new("mail.send-mail.v1"));
        if is_fifo {
            of_others = of_others.group(commanded);
        }
        others.declare(&of_others).await.expect("declared");
        let listening = Queue::new("loyalty.order-placed.v1").topic("order_events");
        others
            .declare(&Topology::new().queue(listening))
            .await
            .expect("declared");

        let mut topology = Topology::new()
            .topic("order_events")
            .topic("new_events")
            .queue(
                Queue::new("orders.parcel-sent.v1")
                    .topic("parcel_events")
                    .leaves("old_events"),
            )
            .queue(Queue::new("orders.place-order.v1"));
        if is_fifo {
            let group = Group::new("orders.ordered", NonZeroU16::MIN);
            topology = topology.group(group.topic("stock_events").command("orders.count.v1"));
        }
        let mut commands = BTreeSet::from(["mail.send-mail.v1".to_owned()]);
        if is_fifo {
            commands.insert("bank.withdraw.v1".into());
        }
        let policy = others.policy(&topology, &commands).await.expect("a policy");
        let allowed = allowed(&policy);
        // What there is from before: a subscription to be ended, and one with other attributes.
        let before = Queue::new("orders.parcel-sent.v1")
            .topic("old_events")
            .topic("parcel_events");
        let before = before.ephemeral();
        others
            .declare(&Topology::new().queue(before))
            .await
            .expect("declared");
        calls(&server);

        let service = connect_with(&url, &options).await;
        service.declare(&topology).await.expect("declared");
        // As its next start does.
        service.declare(&topology).await.expect("declared");
        let message = |destination: Destination, id: &str| {
            let mut envelope = Envelope::new("noted.v1", id.to_owned());
            envelope.id = Some(id.into());
            envelope.key = Some(id.to_owned().into());
            Outgoing {
                destination,
                unrouted: Unrouted::Hold,
                envelope,
            }
        };
        let mut batch = vec![
            message(Destination::Topic("order_events".into()), "1"),
            message(Destination::queue("mail.send-mail.v1"), "2"),
        ];
        if is_fifo {
            batch.push(message(Destination::queue("bank.withdraw.v1"), "3"));
        }
        for outcome in service.publish(batch).await {
            outcome.expect("published");
        }
        let queue = "orders.place-order.v1".to_owned();
        // Some of them are fetched and given back at the end.
        let to_itself = ["4", "5", "6", "7", "8", "9", "10", "11"];
        let to_itself = to_itself.map(|id| message(Destination::Queue(queue.clone().into()), id));
        for outcome in others.publish(to_itself.to_vec()).await {
            outcome.expect("published");
        }
        let mut deliveries = service
            .subscribe(Subscription::new(queue.clone()))
            .await
            .expect("subscribed");
        settle(next(&mut deliveries).await, Settlement::Ack).await;
        settle(next(&mut deliveries).await, Settlement::Requeue).await;
        let attempt = || Attempt {
            at: jiff::Timestamp::UNIX_EPOCH,
            reason: "it fails".into(),
            by: None,
        };
        settle(
            next(&mut deliveries).await,
            Settlement::DeadLetter { attempt: attempt() },
        )
        .await;
        if !is_fifo {
            let (attempt, delay) = (attempt(), Duration::from_secs(1));
            settle(
                next(&mut deliveries).await,
                Settlement::Retry { attempt, delay },
            )
            .await;
        }
        drop(deliveries);
        service.queue_depths(&[queue]).await.expect("looked");
        let mut asked = calls(&server);
        let until = tokio::time::Instant::now() + SOON;
        let gives_back = |asked: &BTreeSet<Call>| {
            asked
                .iter()
                .any(|(action, _)| action == "sqs:ChangeMessageVisibility")
        };
        while !gives_back(&asked) {
            assert!(tokio::time::Instant::now() < until, "{asked:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            asked.extend(calls(&server));
        }
        service.close().await;

        asked.extend(calls(&server));
        let too_much: Vec<_> = asked.difference(&allowed).collect();
        assert!(
            too_much.is_empty(),
            "{queues}: it asks for what it may not: {too_much:?}"
        );
        let actions = |pairs: &BTreeSet<Call>| -> BTreeSet<String> {
            pairs.iter().map(|(action, _)| action.clone()).collect()
        };
        assert_eq!(
            actions(&asked),
            actions(&allowed),
            "{queues}: actions that nobody needs"
        );
        others.close().await;
    }
}

/// What is there is told from what is not, without making anything.
pub(crate) async fn what_is_missing_is_seen_and_nothing_is_made(url: String) {
    let aws = connect(&url).await;
    let place = Place::new();
    let seen = aws.inspect(&place.topology()).await.expect("it looks");
    let kinds: Vec<PieceKind> = seen.iter().map(|(piece, _)| piece.kind).collect();
    use PieceKind::{Queue as OfQueue, Subscription as OfSubscription, Topic as OfTopic};
    assert_eq!(kinds, [OfTopic, OfQueue, OfQueue, OfSubscription]);
    assert!(
        seen.iter().all(|(_, state)| *state == PieceState::Missing),
        "{seen:?}"
    );
    let again = aws.inspect(&place.topology()).await.expect("it looks");
    assert_eq!(again, seen);

    place.declare(&aws).await;
    let seen = aws.inspect(&place.topology()).await.expect("it looks");
    assert!(
        seen.iter().all(|(_, state)| *state == PieceState::There),
        "{seen:?}"
    );
    let letters = |(piece, _): &&(Piece, PieceState)| piece.name == dead_letter_queue(&place.queue);
    assert_eq!(seen.iter().filter(letters).count(), 1);
    aws.close().await;
}
