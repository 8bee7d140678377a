//! Kafka has lost something: the end of a log, or how far a queue was.

use std::{fs, path::Path};

use rdkafka::admin::AdminOptions;
use tidings_core::Transport;
use tidings_testing::servers::Kafka as Server;

use super::*;

/// The broker's disk loses the end of a partition, as after an unclean change of leaders. The producer's numbers do not fit
/// what is there any more, an error that no producer survives: what is published from then on comes nevertheless, once
/// and in order.
pub(crate) async fn a_producer_that_cannot_go_on_is_made_anew(mut server: Server) {
    let (kafka, place) = (connect(&server.url()).await, Place::new());
    place.declare(&kafka).await;
    place.publish(&kafka, 0..10).await;
    let partition = server.data().join(format!("{}-0", place.topic));
    let early = tempfile::tempdir().expect("a folder");
    copy_files(&partition, early.path());
    place.publish(&kafka, 10..20).await;
    server.kill9();
    fs::remove_dir_all(&partition).expect("the disk loses it");
    fs::create_dir(&partition).expect("and has");
    copy_files(early.path(), &partition);
    server.restart().expect("it starts again");

    let mut batch: Vec<usize> = (20..30).collect();
    let mut tries = 0;
    while !batch.is_empty() {
        let messages = batch.iter().map(|body| place.message(None, body));
        let outcomes = kafka.publish(messages.collect()).await;
        let taken = outcomes.iter().position(Result::is_err);
        batch.drain(..taken.unwrap_or(outcomes.len()));
        tries += 1;
        assert!(tries < 200, "it is never taken: {outcomes:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (_, end) = ends(&server.url(), &place.topic, 0).expect("the partition");
    assert_eq!(end, 20, "each stands there once");
    let mut deliveries = place.subscribe(&kafka, 100).await;
    let expected = (0..10).chain(20..30);
    take(&mut deliveries, expected.map(|body| (body, false))).await;
    none(&mut deliveries).await;
}

/// The files of a folder that are no indexes: Kafka makes those anew.
fn copy_files(from: &Path, to: &Path) {
    for file in fs::read_dir(from).expect("a folder") {
        let path = file.expect("a file").path();
        let name = path.file_name().expect("a name");
        let is_index = path
            .extension()
            .is_some_and(|it| it == "index" || it == "timeindex");
        if !is_index {
            fs::copy(&path, to.join(name)).expect("it can be copied");
        }
    }
}

/// Kafka forgets how far a group is that had no member for a while. Everything comes again, and says so; nothing is left
/// out, and what nobody had yet is new.
pub(crate) async fn committed_offsets_that_expired_are_told_and_nothing_is_left_out(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    place.declare(&kafka).await;
    place.publish(&kafka, 0..5).await;
    let mut deliveries = place.subscribe(&kafka, 100).await;
    take(&mut deliveries, (0..5).map(|body| (body, false))).await;
    // Until that there is an offset is written down, which is done after the first commit.
    tokio::time::sleep(Duration::from_secs(3)).await;
    kafka.close().await;
    let told = || log::told_with(&["TDG-4012", &place.queue, &place.topic]);
    assert_eq!(told(), 0);

    // Which is what Kafka does itself, seven days later.
    let deleted = admin(&url)
        .delete_groups(&[&place.queue], &AdminOptions::new())
        .await;
    assert!(deleted.expect("an answer")[0].is_ok());
    let kafka = connect(&url).await;
    place.publish(&kafka, 5..7).await;
    let mut deliveries = place.subscribe(&kafka, 100).await;
    take(&mut deliveries, (0..7).map(|body| (body, true))).await;
    assert_eq!(told(), 1);
    place.publish(&kafka, [7]).await;
    take(&mut deliveries, [(7, false)]).await;
    none(&mut deliveries).await;

    // It is told once, and not to a queue that nobody has received before.
    kafka.close().await;
    let kafka = connect(&url).await;
    let mut deliveries = place.subscribe(&kafka, 100).await;
    none(&mut deliveries).await;
    assert_eq!(told(), 1);
}
