//! Composing mails, and handing them to a mail server or, for want of one, to a folder.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::http::Uri;
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::{self, authentication::Credentials},
};
use tidings::{Error, MessageId, Permanent, PermanentExt};
use tokio::sync::Mutex;

/// Who writes.
const FROM: &str = "Tidings shop <orders@shop.example>";
/// The right-hand side of every `Message-ID`.
const MESSAGE_ID_DOMAIN: &str = "shop.example";
/// Where mail servers listen if nobody says otherwise.
const SMTP_PORT: u16 = 25;
/// How long the mail server may take for each step.
const SMTP_TIMEOUT: Duration = Duration::from_secs(20);

/// What is written to whom.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) to: String,
    pub(crate) subject: String,
    pub(crate) text: String,
}

/// Where mails go.
#[derive(Clone)]
pub struct Mailer(Way);

#[derive(Clone)]
enum Way {
    /// One mail at a time: threads that make files in one folder at once only spin for each other
    /// in the kernel.
    Folder(Arc<Mutex<PathBuf>>),
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
}

impl Mailer {
    /// Writes each mail as an `.eml` file into `folder`, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub fn folder(folder: impl Into<PathBuf>) -> Result<Self, MailerError> {
        let folder = folder.into();
        std::fs::create_dir_all(&folder).map_err(|error| {
            MailerError(format!(
                "cannot make the folder `{}` for mails: {error}; choose another place with \
                 `--data`, or a mail server with `--smtp`",
                folder.display()
            ))
        })?;
        Ok(Self(Way::Folder(Arc::new(Mutex::new(folder)))))
    }

    /// Sends each mail by the server at this URL: `smtp://user:password@host:port`.
    ///
    /// # Errors
    ///
    /// When that is not such a URL.
    pub fn smtp(url: &str) -> Result<Self, MailerError> {
        let wrong = |why: &str| {
            MailerError(format!(
                "`--smtp` names no mail server: {why}; use `smtp://host:port`"
            ))
        };
        let uri: Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
        match uri.scheme_str() {
            Some("smtp") => {}
            Some("smtps") => return Err(wrong("TLS is not spoken here")),
            _ => return Err(wrong("it must begin with `smtp://`")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
        let mut server = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(authority.host())
            .port(authority.port_u16().unwrap_or(SMTP_PORT))
            .timeout(Some(SMTP_TIMEOUT));
        if let Some((login, _)) = authority.as_str().rsplit_once('@') {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            server = server.credentials(Credentials::new(user.to_owned(), password.to_owned()));
        }
        Ok(Self(Way::Smtp(server.build())))
    }

    /// Sends a mail about the message `id`.
    pub(crate) async fn send(&self, letter: &Letter, id: &MessageId) -> Result<(), Error> {
        let message = compose(letter, id)?;
        match &self.0 {
            Way::Folder(folder) => {
                let (folder, name) = (Arc::clone(folder).lock_owned().await, file_name(id));
                let written = tokio::task::spawn_blocking(move || {
                    write(&folder, &name, &message.formatted())
                });
                written.await??;
            }
            Way::Smtp(server) => {
                let sent = server.send(message).await;
                sent.map_err(|error| refused(error, letter))?;
            }
        }
        Ok(())
    }
}

/// A server that refuses a mail for good (5xx) does so the next time too, and one that knows no
/// addresses in other letters than ASCII will not learn them. Everything else may pass: a server
/// that is busy (4xx), a connection that fails.
fn refused(error: smtp::Error, letter: &Letter) -> Error {
    let is_unspeakable = error.is_client() && !letter.to.is_ascii();
    if error.is_permanent() || is_unspeakable {
        return Permanent::new(error).into();
    }
    error.into()
}

/// Why mails cannot be sent the way that was asked for.
#[derive(Debug)]
pub struct MailerError(String);

impl fmt::Display for MailerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MailerError {}

/// An address that is none does not become one by trying again.
fn compose(letter: &Letter, id: &MessageId) -> Result<Message, Error> {
    let not_an_address = |error| format!("`{}` is not an address to write to: {error}", letter.to);
    let to: Mailbox = letter.to.parse().map_err(not_an_address).permanent()?;
    let from: Mailbox = FROM.parse()?;
    Message::builder()
        .from(from)
        .to(to)
        .subject(&letter.subject)
        .message_id(Some(format!(
            "<{}@{MESSAGE_ID_DOMAIN}>",
            plain(id.as_str())
        )))
        .date_now()
        .header(ContentType::TEXT_PLAIN)
        .body(letter.text.clone())
        .permanent()
}

/// Whole or not at all, and the same mail again is the same file. It is not synced to the disk: it
/// survives the end of the process, like a mail that another process took over.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!(".{name}.tmp"));
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, folder.join(name))
}

fn file_name(id: &MessageId) -> String {
    format!("{}.eml", plain(id.as_str()))
}

/// Letters that mean nothing special in a file name or a header; every other byte is `%` and its
/// number, so that different ids stay different.
fn plain(id: &str) -> String {
    let mut plain = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                plain.push(char::from(byte));
            }
            _ => plain.push_str(&format!("%{byte:02X}")),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(to: &str) -> Letter {
        Letter {
            to: to.into(),
            subject: "Your order 1 is confirmed".into(),
            text: "Grüße\n".into(),
        }
    }

    #[test]
    fn a_mail_has_what_mail_programs_ask_for() {
        let mail = compose(
            &letter("ada@example.org"),
            &MessageId::new("order-confirmed.v1/o-1"),
        );
        let text = String::from_utf8(mail.unwrap().formatted()).unwrap();
        for part in [
            "From: \"Tidings shop\" <orders@shop.example>",
            "To: ada@example.org",
            "Subject: Your order 1 is confirmed",
            "Message-ID: <order-confirmed.v1%2Fo-1@shop.example>",
            "Content-Type: text/plain; charset=utf-8",
            "Date: ",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_a_permanent_error() {
        let error = compose(&letter("nobody"), &MessageId::new("1")).unwrap_err();
        assert!(error.is_permanent());
        assert!(
            error.to_string().contains("`nobody` is not an address"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_repeated_mail_is_the_same_file_wherever_its_id_points() {
        let folder = tempfile::tempdir().unwrap();
        let mails = folder.path().join("mail");
        let mailer = Mailer::folder(&mails).unwrap();
        let id = MessageId::new("order-confirmed.v1/../../x");
        mailer.send(&letter("ada@example.org"), &id).await.unwrap();
        mailer.send(&letter("ada@example.org"), &id).await.unwrap();
        let files = std::fs::read_dir(&mails)
            .unwrap()
            .map(|file| file.unwrap().file_name());
        assert_eq!(
            files.collect::<Vec<_>>(),
            ["order-confirmed.v1%2F..%2F..%2Fx.eml"]
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_mail_server_is_named_by_a_url() {
        assert!(Mailer::smtp("smtp://127.0.0.1:2525").is_ok());
        assert!(Mailer::smtp("smtp://me:secret@mail.example").is_ok());
        for wrong in ["http://127.0.0.1", "smtps://127.0.0.1", "127.0.0.1", ""] {
            let error = Mailer::smtp(wrong).err().unwrap().to_string();
            assert!(error.contains("smtp://host:port"), "{error}");
        }
    }
}
