//! What is special about a folder: damage, foreign files, hosts that do not share it, full disks.

mod support;

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use jiff::Timestamp;
use support::{DAY, assert_missing, content, eventually};
use tempfile::TempDir;
use tidings_claim_check::{Attachment, Bodies, Code, FolderBodies, StoreId};
use tokio::io::AsyncReadExt;
use uuid::Uuid;

/// A folder for bodies that is not there yet.
fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large/bodies");
    (folder, path)
}

fn file_of(path: &Path, attachment: &Attachment) -> PathBuf {
    let claim = attachment.claim();
    path.join(claim.day()).join(claim.to_string())
}

fn unfinished(path: &Path) -> usize {
    fs::read_dir(path.join("unfinished")).unwrap().count()
}

/// Writes a body that was put `days` ago.
fn old_body(path: &Path, days: u32) -> PathBuf {
    let file = place_of_body(path, Timestamp::now() - days * DAY);
    old_file(&file, days);
    file
}

/// Where a body is that was put then.
fn place_of_body(path: &Path, put: Timestamp) -> PathBuf {
    let seconds = u64::try_from(put.as_second()).unwrap();
    let id = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0));
    path.join(put.strftime("%Y-%m-%d").to_string())
        .join(id.to_string())
}

/// Writes a file that nobody touched for `days`.
fn old_file(path: &Path, days: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(b"text").unwrap();
    file.set_modified(SystemTime::now() - days * DAY).unwrap();
}

#[tokio::test]
async fn a_folder_is_a_store() {
    let (_guard, path) = folder();
    support::conformance(FolderBodies::open(&path).await.unwrap()).await;
    assert_eq!(unfinished(&path), 0, "nothing is left of what failed");
    let days = fs::read_dir(&path).unwrap().filter(|entry| {
        let entry = entry.as_ref().unwrap();
        entry.file_type().unwrap().is_dir() && entry.file_name() != "unfinished"
    });
    assert_eq!(days.count(), 0, "days without bodies are gone");
}

type Inflict = fn(&mut Vec<u8>);

#[tokio::test]
async fn a_damaged_body_is_refused_however_it_is_read() {
    let damages: [(&str, Inflict); 4] = [
        ("one bit", |body| body[700_000] ^= 1),
        ("cut off", |body| body.truncate(999_999)),
        ("longer", |body| body.push(0)),
        ("empty", Vec::clear),
    ];
    for (damage, inflict) in damages {
        let (_guard, path) = folder();
        let bodies = Bodies::folder(&path).await.unwrap();
        let attachment = bodies.put(content(1_000_000)).await.unwrap();
        let file = file_of(&path, &attachment);
        let mut body = fs::read(&file).unwrap();
        inflict(&mut body);
        fs::write(&file, body).unwrap();

        let error = bodies.get(&attachment).await.unwrap_err();
        assert_eq!(error.code(), Code::Damaged, "{damage}: {error}");
        assert!(tidings_core::is_permanent(&error), "{damage}");

        let mut reader = bodies.read(&attachment).await.unwrap();
        let error = tokio::io::copy(&mut reader, &mut tokio::io::sink())
            .await
            .unwrap_err();
        assert!(tidings_core::is_permanent(&error), "{damage}");
        assert!(
            error.to_string().contains("(TDG-1003)"),
            "{damage}: {error}"
        );
    }
}

#[tokio::test]
async fn pruning_keeps_what_is_young_by_either_clock_and_what_is_not_ours() {
    let (_guard, path) = folder();
    let bodies = Bodies::folder(&path).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();

    let old = old_body(&path, 31);
    let older = old_body(&path, 400);
    let young = old_body(&path, 29);
    let restored = old_body(&path, 60);
    File::options()
        .write(true)
        .open(&restored)
        .unwrap()
        .set_modified(SystemTime::now())
        .unwrap();
    // On the day of the limit itself, and a minute too young; its file was copied with an old date.
    let last = Timestamp::now() - 30 * DAY + DAY / 1440;
    let last = place_of_body(&path, last);
    old_file(&last, 400);
    // As if the clock of who put it had been wrong, and not that of the file system.
    let new = bodies.put(&b"new"[..]).await.unwrap();
    let day = path.join("2020-01-01");
    let misplaced = day.join(young.file_name().unwrap());
    old_file(&misplaced, 500);
    let foreign = [
        path.join("README"),
        path.join("2020-01-01.tar"),
        day.join("notes.txt"),
        path.join("photos/2020-01-01")
            .join(old.file_name().unwrap()),
        path.join("unfinished/notes.txt"),
    ];
    foreign.iter().for_each(|file| old_file(file, 500));
    let linked = old_body(elsewhere.path(), 100);
    let link = path.join(linked.parent().unwrap().file_name().unwrap());
    std::os::unix::fs::symlink(linked.parent().unwrap(), link).unwrap();
    let left = path.join("unfinished").join(Uuid::now_v7().to_string());
    old_file(&left, 2);
    let going_on = path.join("unfinished").join(Uuid::now_v7().to_string());
    old_file(&going_on, 0);

    let pruned = bodies.prune(Timestamp::now()).await.unwrap();
    assert_eq!((pruned.bodies, pruned.unfinished), (2, 1));
    assert!(!old.exists() && !older.exists() && !left.exists());
    assert!(!older.parent().unwrap().exists(), "an empty day is gone");
    for kept in foreign
        .iter()
        .chain([&young, &restored, &last, &misplaced, &linked, &going_on])
    {
        assert!(kept.exists(), "{}", kept.display());
    }
    bodies.get(&new).await.unwrap();
}

#[tokio::test]
async fn pruning_goes_on_in_batches_to_the_end() {
    let (_guard, path) = folder();
    let bodies = Bodies::folder(&path).await.unwrap();
    for n in 0..2100 {
        old_body(&path, 31 + n % 3);
    }
    let (one, other) = tokio::join!(
        bodies.prune(Timestamp::now()),
        bodies.prune(Timestamp::now())
    );
    assert_eq!(one.unwrap().bodies + other.unwrap().bodies, 2100);
}

#[tokio::test(start_paused = true)]
async fn a_service_prunes_daily() {
    let (_guard, path) = folder();
    let bodies = Bodies::folder(&path).await.unwrap();
    let pruner = bodies.clone();
    let pruning = tokio::spawn(async move { pruner.prune_daily().await });
    for _ in 0..3 {
        let old = old_body(&path, 31);
        // The clock is tokio's: a day passes as soon as nothing else happens.
        tokio::time::sleep(DAY + DAY / 24).await;
        assert!(!old.exists());
    }
    // A failure is got over within the hour.
    let away = path.with_extension("away");
    fs::rename(&path, &away).unwrap();
    tokio::time::sleep(2 * DAY).await;
    fs::rename(&away, &path).unwrap();
    let old = old_body(&path, 31);
    tokio::time::sleep(DAY / 12).await;
    assert!(!old.exists());
    pruning.abort();
}

#[tokio::test]
async fn a_body_that_was_pruned_says_so() {
    let (_guard, path) = folder();
    let bodies = Bodies::folder(&path).await.unwrap();
    let attachment = bodies.put(&b"body"[..]).await.unwrap();
    fs::remove_file(file_of(&path, &attachment)).unwrap();
    let says = assert_missing(&bodies, &attachment).await.to_string();
    assert!(
        says.contains("deleted by hand") && says.contains("(TDG-1001)"),
        "{says}"
    );

    let mut written = serde_json::to_value(&attachment).unwrap();
    written["claim"] = "0193a5c0-4d3e-7c11-9a56-2f1f6f2f8a10".into();
    let old: Attachment = serde_json::from_value(written).unwrap();
    let says = assert_missing(&bodies, &old).await.to_string();
    assert!(
        says.contains("2024-12-08") && says.contains("30 days, so it was pruned"),
        "{says}"
    );
}

#[tokio::test]
async fn hosts_that_do_not_share_the_folder_are_told_so() {
    let (_one, sender) = folder();
    let (_other, receiver) = folder();
    let attachment = Bodies::folder(&sender)
        .await
        .unwrap()
        .put(&b"body"[..])
        .await
        .unwrap();
    let receiving = Bodies::folder(&receiver).await.unwrap();
    let refused = receiving.get(&attachment).await.unwrap_err();
    assert_eq!(refused.code(), Code::OtherStore);
    // The message is not at fault: it is tried again when the folder is shared.
    assert!(!tidings_core::is_permanent(&refused));
    let says = refused.to_string();
    assert!(says.contains(attachment.store().as_str()), "{says}");
    assert!(says.contains(receiving.store().as_str()), "{says}");

    let both = receiving.reading_also(FolderBodies::open(&sender).await.unwrap());
    assert_eq!(both.get(&attachment).await.unwrap(), "body");
}

#[tokio::test]
async fn a_service_that_expects_a_store_does_not_start_with_another() {
    let (guard, path) = folder();
    let opened = FolderBodies::open(&path).await.unwrap();
    let id: StoreId = Bodies::new(opened).store().clone();
    FolderBodies::open_expecting(&path, &id).await.unwrap();

    let (_other, another) = folder();
    FolderBodies::open(&another).await.unwrap();
    let empty = guard.path().join("not-mounted");
    fs::create_dir(&empty).unwrap();
    for wrong in [&another, &empty, &guard.path().join("missing")] {
        let refused = FolderBodies::open_expecting(wrong, &id).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotTheStore, "{refused}");
    }
    assert_eq!(
        fs::read_dir(&empty).unwrap().count(),
        0,
        "nothing was created"
    );
    assert!(!guard.path().join("missing").exists());
}

#[tokio::test]
async fn a_share_that_is_unmounted_loses_no_message_and_takes_no_body() {
    let (_guard, path) = folder();
    let bodies = Bodies::folder(&path).await.unwrap();
    let attachment = bodies.put(&b"body"[..]).await.unwrap();
    let away = path.with_extension("away");
    fs::rename(&path, &away).unwrap();
    fs::create_dir(&path).unwrap();
    for attempt in 0..2 {
        let error = bodies.get(&attachment).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(!tidings_core::is_permanent(&error));
        let error = bodies.put(&b"body"[..]).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert_eq!(
            bodies.prune(Timestamp::now()).await.unwrap_err().code(),
            Code::Unavailable
        );
        if attempt == 0 {
            assert_eq!(
                fs::read_dir(&path).unwrap().count(),
                0,
                "nothing was written there"
            );
            // Now as if another share had been mounted instead.
            FolderBodies::open(&path).await.unwrap();
        }
    }
    fs::remove_dir_all(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    assert_eq!(bodies.get(&attachment).await.unwrap(), "body");
}

#[tokio::test]
async fn programs_that_start_at_once_agree_which_store_it_is() {
    let (_guard, path) = folder();
    let opening: Vec<_> = (0..16)
        .map(|_| tokio::spawn(Bodies::folder(path.clone())))
        .collect();
    let mut ids = Vec::new();
    for opened in opening {
        ids.push(opened.await.unwrap().unwrap().store().to_string());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(unfinished(&path), 0);
}

#[tokio::test]
async fn a_marker_that_cannot_be_understood_stops_the_start() {
    for text in ["", "{", r#"{"format":2,"id":"a"}"#, r#"{"format":1}"#] {
        let (_guard, path) = folder();
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("tidings-bodies.json"), text).unwrap();
        let refused = Bodies::folder(&path).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{text}");
        assert_eq!(
            fs::read_to_string(path.join("tidings-bodies.json")).unwrap(),
            text
        );
    }
}

#[tokio::test]
async fn a_put_that_is_dropped_leaves_nothing() {
    let (_guard, path) = folder();
    let bodies = Bodies::folder(&path).await.unwrap();
    let (mut sending, source) = tokio::io::duplex(1 << 20);
    let put = tokio::spawn(async move { bodies.put_from(source).await });
    tokio::io::AsyncWriteExt::write_all(&mut sending, &content(600_000))
        .await
        .unwrap();
    eventually("it is being put", || unfinished(&path) == 1).await;
    put.abort();
    eventually("it is gone", || unfinished(&path) == 0).await;
}

/// A file system of its own that can be filled.
struct Disk(TempDir);

impl Disk {
    fn of_megabytes(megabytes: u32) -> Disk {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={megabytes}m"),
            "tidings-test",
        ]);
        assert!(mount.arg(folder.path()).status().unwrap().success());
        Disk(folder)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_full_disk_refuses_a_body_keeps_the_others_and_is_got_over() {
    let disk = Disk::of_megabytes(8);
    let path = disk.0.path().join("bodies");
    let bodies = Bodies::folder(&path).await.unwrap();
    let before = bodies.put(content(3 << 20)).await.unwrap();
    let full = bodies.put(content(6 << 20)).await.unwrap_err();
    assert_eq!(full.code(), Code::Unavailable);
    assert!(!tidings_core::is_permanent(&full));
    let source = std::error::Error::source(&full).unwrap().to_string();
    assert!(source.contains("No space left"), "{source}");
    assert_eq!(unfinished(&path), 0, "the half of it makes room again");
    let after = bodies.put(content(4 << 20)).await.unwrap();
    let mut read = Vec::new();
    bodies
        .read(&before)
        .await
        .unwrap()
        .read_to_end(&mut read)
        .await
        .unwrap();
    assert!(read == content(3 << 20));
    assert!(bodies.get(&after).await.unwrap() == content(4 << 20));
}
