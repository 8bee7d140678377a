//! A Kafka node that asks who comes: by certificates, by user and password, and whether they may.
//!
//! It has a listener for each way in. Beside them is the plain one, whose clients may do everything, for the test itself.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Kafka, replicas};

/// What the node shows, and whom it knows.
#[derive(Debug, Clone, Copy)]
pub struct Security<'a> {
    /// Its key and its certificates, as PEM.
    pub identity: &'a str,
    /// Who signs the certificates of clients, as PEM.
    pub authority: &'a str,
    /// Users that may do everything: how the node calls them (`alice`, `CN=payment`).
    pub super_users: &'a [&'a str],
    /// Users and their passwords, for `PLAIN`, `SCRAM-SHA-256` and `SCRAM-SHA-512` alike.
    pub passwords: &'a [(&'a str, &'a str)],
}

/// Something that access is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource<'a> {
    /// A topic, or all (`*`).
    Topic(&'a str),
    /// A consumer group, or all (`*`).
    Group(&'a str),
}

/// What somebody wants to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Anything.
    All,
    /// To receive, or to be in the group.
    Read,
    /// To publish.
    Write,
    /// To see that it is there.
    Describe,
}

/// A node with access lists; dropped, it is gone.
pub struct SecuredKafka {
    node: Kafka,
    tls: u16,
    mutual: u16,
    sasl: u16,
    sasl_tls: u16,
}

impl SecuredKafka {
    /// Starts a node and returns when it answers.
    pub fn start(security: &Security<'_>) -> Result<SecuredKafka> {
        let mut kafka = SecuredKafka {
            node: Kafka::prepare()?,
            tls: crate::servers::free_port()?,
            mutual: crate::servers::free_port()?,
            sasl: crate::servers::free_port()?,
            sasl_tls: crate::servers::free_port()?,
        };
        kafka.node.write("identity.pem", security.identity)?;
        kafka.node.write("authority.pem", security.authority)?;
        let voters = format!("1@127.0.0.1:{}", kafka.node.controller_port);
        let scram = security.passwords.iter().flat_map(|(user, password)| {
            ["SCRAM-SHA-256", "SCRAM-SHA-512"]
                .map(|mechanism| format!("{mechanism}=[name={user},password={password}]"))
        });
        kafka.node.scram = scram.collect();
        let settings = kafka.settings(security);
        kafka.node.configure(1, &voters, &replicas(1), &settings)?;
        kafka.node.restart()?;
        Ok(kafka)
    }

    fn settings(&self, security: &Security<'_>) -> String {
        let listeners = [
            ("PLAINTEXT", self.node.port, "PLAINTEXT"),
            ("TLS", self.tls, "SSL"),
            ("MUTUAL", self.mutual, "SSL"),
            ("SASL", self.sasl, "SASL_PLAINTEXT"),
            ("SASLTLS", self.sasl_tls, "SASL_SSL"),
        ];
        let at = listeners.map(|(name, port, _)| format!("{name}://127.0.0.1:{port}"));
        let protocols = listeners.map(|(name, _, protocol)| format!("{name}:{protocol}"));
        let users = security.passwords.iter();
        let users = users.map(|(user, password)| format!(" user_{user}=\"{password}\""));
        let users: String = users.collect();
        let modules = "org.apache.kafka.common.security";
        let sasl = ["sasl", "sasltls"].map(|name| {
            let of = format!("listener.name.{name}");
            format!(
                "{of}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
                 {of}.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required{users};\n\
                 {of}.scram-sha-256.sasl.jaas.config={modules}.scram.ScramLoginModule required;\n\
                 {of}.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;\n"
            )
        });
        let super_users = security.super_users.iter();
        let super_users: String = super_users.map(|user| format!(";User:{user}")).collect();
        let folder = self.node.folder.path().display();
        format!(
            "listeners={},CONTROLLER://127.0.0.1:{}\n\
             advertised.listeners={}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,{}\n\
             inter.broker.listener.name=PLAINTEXT\n\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location={folder}/identity.pem\n\
             ssl.truststore.type=PEM\n\
             ssl.truststore.location={folder}/authority.pem\n\
             listener.name.mutual.ssl.client.auth=required\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS{super_users}\n\
             {}",
            at.join(","),
            self.node.controller_port,
            at.join(","),
            protocols.join(","),
            sasl.concat()
        )
    }

    /// Where nobody is asked.
    pub fn url(&self) -> String {
        self.node.url()
    }

    /// `host:port` where TLS is spoken, and nothing else is asked.
    pub fn tls(&self) -> String {
        format!("127.0.0.1:{}", self.tls)
    }

    /// `host:port` where TLS is spoken to clients with a certificate.
    pub fn mutual_tls(&self) -> String {
        format!("127.0.0.1:{}", self.mutual)
    }

    /// `host:port` where user and password are asked for, without TLS.
    pub fn sasl(&self) -> String {
        format!("127.0.0.1:{}", self.sasl)
    }

    /// `host:port` where user and password are asked for, within TLS.
    pub fn sasl_tls(&self) -> String {
        format!("127.0.0.1:{}", self.sasl_tls)
    }

    /// Lets a user do something.
    pub fn allow(&self, user: &str, resource: Resource<'_>, operation: Operation) -> Result<()> {
        self.enter(user, resource, operation, 3)
    }

    /// Lets a user not do something, whatever else is allowed.
    pub fn deny(&self, user: &str, resource: Resource<'_>, operation: Operation) -> Result<()> {
        self.enter(user, resource, operation, 2)
    }

    /// Makes an entry of the access lists: the request `CreateAcls`, version 1.
    fn enter(
        &self,
        user: &str,
        resource: Resource<'_>,
        operation: Operation,
        permission: u8,
    ) -> Result<()> {
        let (kind, name) = match resource {
            Resource::Topic(name) => (2, name),
            Resource::Group(name) => (3, name),
        };
        let operation = match operation {
            Operation::All => 2,
            Operation::Read => 3,
            Operation::Write => 4,
            Operation::Describe => 8,
        };
        let principal = format!("User:{user}");
        // Which request, its number, no name of the client; one entry, for the name as it is.
        let mut request = vec![0, 30, 0, 1, 0, 0, 0, 7, 0xff, 0xff, 0, 0, 0, 1, kind];
        push_text(&mut request, name)?;
        request.push(3);
        push_text(&mut request, &principal)?;
        push_text(&mut request, "*")?;
        request.extend([operation, permission]);
        let length = u32::try_from(request.len())?.to_be_bytes();

        let mut stream = TcpStream::connect(("127.0.0.1", self.node.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(&[&length[..], &request].concat())?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length))?];
        stream.read_exact(&mut answer)?;
        // The request's number, how long to wait, and how many results; then the first one's error.
        let error = answer.get(12..14).context("the answer has no result")?;
        let why = String::from_utf8_lossy(answer.get(16..).unwrap_or_default());
        ensure!(error == [0, 0], "no entry for `{user}`: {error:?} {why}");
        Ok(())
    }
}

fn push_text(request: &mut Vec<u8>, text: &str) -> Result<()> {
    request.extend(u16::try_from(text.len())?.to_be_bytes());
    request.extend(text.as_bytes());
    Ok(())
}
