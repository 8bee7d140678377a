//! How much memory a large body takes: in a process of its own, so that no other test counts.

use tidings_claim_check::Bodies;
use tokio::io::AsyncReadExt;

const BODY_BYTES: u64 = 100 << 20;

/// The most memory that this process has had, in bytes.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_body_of_100_megabytes_goes_through_a_few() {
    let folder = tempfile::tempdir().unwrap();
    let bodies = Bodies::folder(folder.path().join("bodies")).await.unwrap();
    let warm = bodies.put(vec![7; 1 << 20]).await.unwrap();
    bodies.get(&warm).await.unwrap();

    let before = most_memory();
    let source = tokio::io::repeat(7).take(BODY_BYTES);
    let attachment = bodies.put_from(source).await.unwrap();
    assert_eq!(attachment.bytes(), BODY_BYTES);
    let mut reader = bodies.read(&attachment).await.unwrap();
    let read = tokio::io::copy(&mut reader, &mut tokio::io::sink())
        .await
        .unwrap();
    assert_eq!(read, BODY_BYTES);
    let grown = most_memory() - before;
    assert!(grown < 12 << 20, "{grown} bytes");
}
