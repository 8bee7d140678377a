//! `amqps://`: a TLS listener in front of the broker in the box.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Options};
use tidings_core::{
    Destination, Envelope, Outgoing, Queue, Topology, Transport, TransportError, Unrouted,
};
use tidings_testing::foreign::workspace;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

fn file(name: &str) -> String {
    let path = workspace().join("crates/tidings-amqp/tests/tls").join(name);
    path.to_string_lossy().into_owned()
}

/// Where TLS is spoken, for as long as the tasks live.
async fn listen(broker: SocketAddr) -> (SocketAddr, JoinSet<()>) {
    listen_at("127.0.0.1:0", broker).await
}

async fn listen_at(place: &str, broker: SocketAddr) -> (SocketAddr, JoinSet<()>) {
    let chain = CertificateDer::pem_file_iter(file("certificate.pem"))
        .and_then(Iterator::collect)
        .expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(file("key.pem")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they fit");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(place).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut pairs = JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.expect("accepted");
            let acceptor = acceptor.clone();
            pairs.spawn(async move {
                if let Ok(mut client) = acceptor.accept(client).await {
                    let mut server = TcpStream::connect(broker)
                        .await
                        .expect("the broker is there");
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    (address, tasks)
}

async fn connect(url: String) -> Result<Amqp, TransportError> {
    let connecting = Amqp::connect(&url);
    let answer = tokio::time::timeout(Duration::from_secs(60), connecting).await;
    answer.expect("it succeeds or says why it cannot")
}

#[tokio::test]
async fn a_broker_with_a_certificate_of_a_known_authority_is_trusted() {
    let broker = Broker::start(Options::ephemeral().listen(([127, 0, 0, 1], 0)))
        .await
        .expect("it starts");
    let (address, _tasks) = listen(broker.amqp_addr()).await;
    let authority = file("authority.pem").replace('/', "%2F");
    for host in ["127.0.0.1", "localhost"] {
        let port = address.port();
        let url = format!("amqps://guest:guest@{host}:{port}?cacertfile={authority}");
        let amqp = connect(url).await.expect("it is trusted");
        let topology = Topology::new().queue(Queue::new("secure"));
        amqp.declare(&topology).await.expect("declared");
        let message = Outgoing {
            destination: Destination::queue("secure"),
            unrouted: Unrouted::Hold,
            envelope: Envelope::new("noted.v1", vec![b' '; 300_000]),
        };
        let outcomes = amqp.publish(vec![message; 20]).await;
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        amqp.close().await;
    }
}

/// The certificate is checked against the name of the host that is asked, not of another in the URL.
#[tokio::test]
async fn each_of_several_hosts_is_trusted_by_its_own_name() {
    let broker = Broker::start(Options::ephemeral().listen(([127, 0, 0, 1], 0)))
        .await
        .expect("it starts");
    let (address, _tasks) = listen(broker.amqp_addr()).await;
    let gone = tidings_testing::servers::free_port().expect("a port");
    let (port, authority) = (address.port(), file("authority.pem"));
    for hosts in [
        format!("broker.example:{gone},127.0.0.1:{port}"),
        format!("127.0.0.1:{gone},localhost:{port}"),
    ] {
        for _ in 0..4 {
            let url = format!("amqps://guest:guest@{hosts}?cacertfile={authority}");
            let amqp = connect(url).await.expect("it is trusted");
            amqp.close().await;
        }
    }
    // Loopback too, but no name in the certificate.
    let (other, _tasks) = listen_at("127.0.0.2:0", broker.amqp_addr()).await;
    let url = format!("amqps://guest:guest@127.0.0.1:{gone},{other}?cacertfile={authority}");
    let error = connect(url).await.expect_err("its name is another");
    assert!(error.to_string().contains("127.0.0.2"), "{error}");
}

#[tokio::test]
async fn whom_to_trust_is_never_a_guess() {
    let broker = Broker::start(Options::ephemeral().listen(([127, 0, 0, 1], 0)))
        .await
        .expect("it starts");
    let (tls, _tasks) = listen(broker.amqp_addr()).await;
    let plain = broker.amqp_addr();
    let authority = file("authority.pem");
    let check = async |url: String, expected: &str| {
        let error = connect(url.clone()).await.expect_err(&url);
        assert!(!error.is_temporary(), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    // The system's authorities did not sign it; where there are none, that is said.
    let unknown = connect(format!("amqps://guest:guest@{tls}")).await;
    assert!(unknown.is_err_and(|error| !error.is_temporary()));
    let other_name = "server_name_indication=broker.example";
    check(
        format!("amqps://guest:guest@{tls}?cacertfile={authority}&{other_name}"),
        "certificate",
    )
    .await;
    check(
        format!("amqps://guest:guest@{plain}?cacertfile={authority}"),
        "the port is the one for TLS",
    )
    .await;
    check(
        format!("amqps://guest:guest@{tls}?cacertfile=/nowhere.pem"),
        "`/nowhere.pem`",
    )
    .await;
    check(
        format!("amqps://guest:guest@{tls}?cacertfile={authority}&certfile={authority}"),
        "belong together",
    )
    .await;
    check(format!("amqp://guest:guest@{tls}"), "amqps://").await;
}
