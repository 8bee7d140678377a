//! The files in `deploy/`: each is what the schema of its kind allows, and what they say about the shop is
//! true of the program. Whatever a check is for is also broken on purpose, to see that it is found.

#[path = "../common/mod.rs"]
mod common;

mod manifests;
mod processes;
mod running;

use manifests::{complaints_of_schemas, deploy, mutated_alone};

/// What is wrong with `deploy/`, and a mistake of each kind: the file, what is replaced by what, and what is said.
const MISTAKES: &[(&str, &str, &str, &str)] = &[
    (
        "compose/shop.yaml",
        "stop_grace_period: 30s",
        "stop_grace_periods: 30s",
        "'stop_grace_periods' was unexpected",
    ),
    (
        "compose/rabbitmq.yaml",
        "env_file: rabbitmq.env",
        "env_files: rabbitmq.env",
        "include/0",
    ),
    (
        "compose/kafka.yaml",
        "KAFKA_MIN_INSYNC_REPLICAS: 2",
        "KAFKA_DEFAULT_REPLICATION_FACTOR: 2",
        "is there twice",
    ),
    (
        "kubernetes/base/orders.yaml",
        "periodSeconds: 10",
        "periodSecond: 10",
        "'periodSecond' was unexpected",
    ),
    (
        "kubernetes/base/payment.yaml",
        "maxUnavailable: 1\n",
        "maxUnavailable: [1]\n",
        "[1] is not valid",
    ),
    (
        "kubernetes/base/network.yaml",
        "podSelector:",
        "podselector:",
        "'podselector' was unexpected",
    ),
    (
        "kubernetes/rabbitmq/scaling.yaml",
        "minReplicaCount: 2",
        "minReplicasCount: 2",
        "'minReplicasCount' was unexpected",
    ),
    (
        "kubernetes/rabbitmq/scaling.yaml",
        "mode: QueueLength",
        "modus: QueueLength",
        "does not take `modus`",
    ),
    (
        "kubernetes/kafka/scaling.yaml",
        "bootstrapServers: kafka-bootstrap:9092\n",
        "bootstrapServer: kafka-bootstrap:9092\n",
        "needs `bootstrapServers`",
    ),
    (
        "kubernetes/aws/scaling.yaml",
        "queueURL: https",
        "queueUrl: https",
        "needs `queueURL`",
    ),
    (
        "kubernetes/aws/scaling.yaml",
        "podIdentity: {provider: aws}",
        "podIdentity: {provider: amazon}",
        "'amazon' is not one of",
    ),
    (
        "compose/aws.yaml",
        "path: [shop.yaml, aws-access.yaml]",
        "paths: [shop.yaml, aws-access.yaml]",
        "include/0",
    ),
    (
        "kubernetes/kafka/scaling.yaml",
        "offsetResetPolicy: earliest",
        "offsetResetPolicy: first",
        "not one of ['latest', 'earliest']",
    ),
];

#[test]
#[ignore = "needs Python and Go"]
fn every_file_is_what_its_schema_allows() {
    assert_eq!(complaints_of_schemas(&deploy()), "");
    for (file, from, to, said) in MISTAKES {
        let complaints = complaints_of_schemas(mutated_alone(file, from, to).path());
        assert!(
            complaints.starts_with(file) && complaints.contains(said),
            "`{to}` in {file}: {complaints}"
        );
    }
}
