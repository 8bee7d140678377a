//! What a database URL says, TLS among it.
//!
//! The driver knows how to ask for TLS, not whom to trust. `sslmode`, `sslrootcert`, `sslcert` and
//! `sslkey` are read here, with the meaning that PostgreSQL's own programs give them: `prefer` (the
//! default) and `require` encrypt and trust any certificate, `verify-full` (and `verify-ca`, which
//! is as strict here) trusts those of `sslrootcert`, or of the system, for the name of the host.

use std::{str::FromStr, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres::Config;
use tokio_postgres_rustls::MakeRustlsConnect;

pub(crate) type Tls = MakeRustlsConnect;

/// What to connect to, and whom to trust.
pub(crate) fn read_url(url: &str) -> Result<(Config, Tls), String> {
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let mut wanted = Wanted::default();
    let mut others = Vec::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if !wanted.take(name, value)? {
            others.push(parameter);
        }
    }
    let mode = wanted.mode.driver();
    others.push(&mode);
    let config = Config::from_str(&format!("{place}?{}", others.join("&")));
    let config = config.map_err(|error| match std::error::Error::source(&error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    })?;
    Ok((config, MakeRustlsConnect::new(wanted.client()?)))
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    #[default]
    Prefer,
    Require,
    Verify,
}

impl Mode {
    fn driver(self) -> String {
        let mode = match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require | Self::Verify => "require",
        };
        format!("sslmode={mode}")
    }
}

/// What the URL says about TLS; files by their paths.
#[derive(Debug, Default)]
struct Wanted {
    mode: Mode,
    roots: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

impl Wanted {
    /// False if the parameter is about something else.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let path = || decode(value).map(Some);
        match name {
            "sslmode" => {
                self.mode = match value {
                    "disable" => Mode::Disable,
                    "allow" | "prefer" => Mode::Prefer,
                    "require" => Mode::Require,
                    "verify-ca" | "verify-full" => Mode::Verify,
                    _ => {
                        return Err(format!(
                            "`sslmode={value}` is none of `disable`, `prefer`, `require` and \
                             `verify-full`"
                        ));
                    }
                }
            }
            "sslrootcert" => self.roots = path()?,
            "sslcert" => self.certificate = path()?,
            "sslkey" => self.key = path()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn client(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match self.mode {
            Mode::Verify => builder.with_root_certificates(self.trusted()?),
            Mode::Disable | Mode::Prefer | Mode::Require => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        };
        let (chain, key) = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => (
                certificates(certificate)?,
                PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| format!("`sslkey={key}` cannot be read: {error}"))?,
            ),
            (None, None) => return Ok(builder.with_no_client_auth()),
            _ => return Err("`sslcert` and `sslkey` go together, and one is missing".to_owned()),
        };
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| format!("`sslcert` and `sslkey` cannot be used: {error}"))
    }

    fn trusted(&self) -> Result<RootCertStore, String> {
        let mut trusted = RootCertStore::empty();
        match &self.roots {
            Some(path) => {
                for certificate in certificates(path)? {
                    trusted
                        .add(certificate)
                        .map_err(|error| format!("`sslrootcert={path}`: {error}"))?;
                }
            }
            None => {
                let system = rustls_native_certs::load_native_certs();
                trusted.add_parsable_certificates(system.certs);
                if trusted.is_empty() {
                    return Err(
                        "this system has no trusted certificates; name a file with `sslrootcert`"
                            .to_owned(),
                    );
                }
            }
        }
        Ok(trusted)
    }
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<_> =
        certificates.map_err(|error| format!("`{path}` cannot be read: {error}"))?;
    match certificates.is_empty() {
        true => Err(format!("`{path}` holds no certificate in PEM")),
        false => Ok(certificates),
    }
}

/// `%2F` and the like.
fn decode(value: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = (byte == b'%').then(|| after.get(..2)).flatten();
        let hex = hex.and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| format!("`{value}` is not UTF-8"))
}

/// Trusts any certificate, as `sslmode=require` does: the connection is encrypted, and who is at
/// the other end is not known.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_url_says_about_tls_is_taken_out_of_it() {
        let check = |url: &str, mode: tokio_postgres::config::SslMode| {
            let (config, _) = read_url(url).unwrap_or_else(|why| panic!("{url}: {why}"));
            assert_eq!(config.get_ssl_mode(), mode, "{url}");
            assert_eq!(config.get_dbname(), Some("d"), "{url}");
        };
        use tokio_postgres::config::SslMode::{Disable, Prefer, Require};
        check("postgres://u:p@h/d", Prefer);
        check("postgres://u:p@h/d?sslmode=disable", Disable);
        check(
            "postgres://u:p@h/d?connect_timeout=3&sslmode=require",
            Require,
        );
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let check = |query: &str, part: &str| match read_url(&format!("postgres://u@h/d?{query}")) {
            Ok(_) => panic!("{query} must be refused"),
            Err(why) => assert!(why.contains(part), "{query}: {why}"),
        };
        check("sslmode=sometimes", "`sslmode=sometimes` is none of");
        check(
            "sslmode=verify-full&sslrootcert=%2Fnowhere%2Fca.pem",
            "`/nowhere/ca.pem` cannot be read",
        );
        check("sslcert=a.pem", "`sslkey` go together");
        check("colour=red", "colour");
    }

    #[test]
    fn percent_signs_are_decoded() {
        assert_eq!(decode("%2Fa%20b").as_deref(), Ok("/a b"));
        assert_eq!(decode("100%").as_deref(), Ok("100%"));
        assert!(decode("%FF").is_err());
    }
}
