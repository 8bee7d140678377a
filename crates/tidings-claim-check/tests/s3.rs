//! A bucket, on a server that speaks S3: the suite of all stores, and what is special.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::SystemTime,
};

use jiff::Timestamp;
use support::{BreaksAfter, DAY, assert_missing, content};
use tidings_claim_check::{Bodies, Code, S3Bodies, S3Options};
use tidings_testing::servers::s3_url;
use tokio::io::AsyncReadExt;

/// A bucket of the test's own.
struct Place {
    url: String,
    bucket: String,
}

impl Place {
    fn new(name: &str) -> Place {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let place = Place {
            url: s3_url(),
            bucket: format!("{name}-{}", since.as_nanos()),
        };
        assert!(place.ask("PUT", "").starts_with("HTTP/1.1 200"));
        place
    }

    fn store(&self, prefix: &str) -> S3Bodies {
        S3Bodies::new(S3Options {
            endpoint: self.url.clone(),
            bucket: self.bucket.clone(),
            region: "us-east-1".into(),
            prefix: prefix.into(),
            access_key: "test".into(),
            secret_key: "secret-of-the-test".into(),
            path_style: true,
        })
        .unwrap()
    }

    /// Asks the server itself, without the store. It does not look at the signature.
    fn ask(&self, method: &str, key: &str) -> String {
        let host = self
            .url
            .strip_prefix("http://")
            .unwrap()
            .trim_end_matches('/');
        let mut stream = TcpStream::connect(host).unwrap();
        let bucket = &self.bucket;
        let body = if method == "PUT" && !key.is_empty() {
            "abc"
        } else {
            ""
        };
        write!(
            stream,
            "{method} /{bucket}/{key} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\
             connection: close\r\nauthorization: AWS4-HMAC-SHA256 \
             Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, \
             Signature=none\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn assert_no_uploads(&self) {
        let listed = self.ask("GET", "?uploads");
        assert!(listed.contains("<ListMultipartUploadsResult"), "{listed}");
        assert!(
            !listed.contains("<Upload>"),
            "an upload is left half done: {listed}"
        );
    }
}

#[tokio::test]
#[ignore = "needs S3"]
async fn a_bucket_is_a_store() {
    let place = Place::new("suite");
    support::conformance(place.store("bodies")).await;
    support::conformance(place.store("")).await;
    place.assert_no_uploads();
}

#[tokio::test]
#[ignore = "needs S3"]
async fn bodies_are_where_other_programs_can_find_them_and_damage_is_found() {
    let place = Place::new("layout");
    let bodies = Bodies::new(place.store("/large/bodies/"));
    let attachment = bodies.put(&b"body"[..]).await.unwrap();
    assert_eq!(
        attachment.store().as_str(),
        format!("s3:{}/large/bodies/", place.bucket)
    );
    let claim = attachment.claim();
    let key = format!("large/bodies/{}/{claim}", claim.day());
    assert!(place.ask("GET", &key).ends_with("body"));

    assert!(place.ask("PUT", &key).starts_with("HTTP/1.1 200"));
    assert_eq!(
        bodies.get(&attachment).await.unwrap_err().code(),
        Code::Damaged
    );
    assert!(place.ask("DELETE", &key).starts_with("HTTP/1.1 204"));
    assert_missing(&bodies, &attachment).await;
}

#[tokio::test]
#[ignore = "needs S3"]
async fn an_upload_in_parts_that_fails_leaves_nothing() {
    let place = Place::new("parts");
    let bodies = Bodies::new(place.store("bodies"));
    let failed = bodies.put_from(BreaksAfter(20 << 20)).await.unwrap_err();
    assert_eq!(failed.code(), Code::Source);
    let limited = bodies.clone().body_bytes_max(17 << 20);
    let source = tokio::io::repeat(1).take(18 << 20);
    assert_eq!(
        limited.put_from(source).await.unwrap_err().code(),
        Code::TooLarge
    );
    place.assert_no_uploads();
    let listed = place.ask("GET", "");
    assert!(
        listed.contains("<ListBucketResult") && !listed.contains("<Key>"),
        "{listed}"
    );
}

#[tokio::test]
#[ignore = "needs S3"]
async fn pruning_deletes_nothing_else_and_goes_on_to_the_end() {
    let place = Place::new("prune");
    let foreign = [
        "2020-01-01/notes",
        "a/2020-01-01",
        "0",
        "bodies/README",
        "bodies/2020-01-01/0",
    ];
    for key in foreign {
        assert!(place.ask("PUT", key).starts_with("HTTP/1.1 200"));
    }
    let bodies = Bodies::new(place.store("bodies"));
    let old = bodies.put(content(10)).await.unwrap();
    // Named as if it were old, and written just now: restored from a backup, or a wrong clock.
    let restored = "bodies/2024-12-08/0193a5c0-4d3e-7c11-9a56-2f1f6f2f8a10";
    assert!(place.ask("PUT", restored).starts_with("HTTP/1.1 200"));
    assert_eq!(bodies.prune(Timestamp::now()).await.unwrap().bodies, 0);
    assert!(place.ask("GET", restored).ends_with("abc"));

    for _ in 0..1010 {
        bodies.put(&b"many"[..]).await.unwrap();
    }
    let pruned = bodies.prune(Timestamp::now() + 31 * DAY).await.unwrap();
    assert_eq!(pruned.bodies, 1012);
    assert_missing(&bodies, &old).await;
    for key in foreign {
        assert!(place.ask("GET", key).ends_with("abc"), "{key}");
    }
}

#[tokio::test]
#[ignore = "needs S3"]
async fn a_bucket_that_is_not_there_loses_no_message() {
    let place = Place::new("there");
    let bodies = Bodies::new(place.store(""));
    let attachment = bodies.put(&b"body"[..]).await.unwrap();
    let claim = attachment.claim();
    place.ask("DELETE", &format!("{}/{claim}", claim.day()));
    assert!(place.ask("DELETE", "").starts_with("HTTP/1.1 204"));
    let errors = [
        bodies.get(&attachment).await.unwrap_err(),
        bodies.put(&b"body"[..]).await.unwrap_err(),
        bodies.prune(Timestamp::now()).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("NoSuchBucket"), "{source}");
        assert!(!tidings_core::is_permanent(&error));
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_and_no_secret_is_told() {
    let port = tidings_testing::servers::free_port().unwrap();
    let store = Place {
        url: format!("http://127.0.0.1:{port}"),
        bucket: "nobody".into(),
    }
    .store("");
    let error = Bodies::new(store).put(&b"body"[..]).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(!tidings_core::is_permanent(&error));
    let all = format!("{error:?}");
    assert!(
        !all.contains("secret-of-the-test") && !all.contains("Signature"),
        "{all}"
    );
}
