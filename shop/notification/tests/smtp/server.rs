//! A mail server on loopback that answers as a test says: enough of SMTP for a client to hand over
//! mail, or to be refused at any step.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// Where in the dialogue something else than usual happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Greeting,
    Mail,
    Rcpt,
    Data,
    /// After the mail.
    End,
}

/// What happens there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    Says(&'static str),
    HangsUp,
}

#[derive(Clone)]
pub(crate) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// What happens in the next dialogues.
    next: VecDeque<(At, Answer)>,
    dialogues: usize,
    /// The recipients of the mails that were taken.
    taken: Vec<String>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        let accepting = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that goes away in the middle is no concern of a mail server.
                tokio::spawn(accepting.clone().converse(stream));
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }

    /// Makes the next dialogue that is as usual another one.
    pub(crate) fn next(&self, at: At, answer: Answer) {
        self.state.lock().unwrap().next.push_back((at, answer));
    }

    pub(crate) fn dialogues(&self) -> usize {
        self.state.lock().unwrap().dialogues
    }

    pub(crate) fn taken(&self) -> Vec<String> {
        self.state.lock().unwrap().taken.clone()
    }

    async fn converse(self, stream: TcpStream) -> io::Result<()> {
        let rule = {
            let mut state = self.state.lock().unwrap();
            state.dialogues += 1;
            state.next.pop_front()
        };
        let mut stream = BufReader::new(stream);
        let mut to = String::new();
        if !say(&mut stream, rule, At::Greeting, "220 ready").await? {
            return Ok(());
        }
        while let Some(line) = read(&mut stream).await? {
            let verb = line.split([' ', ':']).next().unwrap_or_default();
            let (at, usual) = match verb.to_ascii_uppercase().as_str() {
                "MAIL" => (At::Mail, "250 ok"),
                "RCPT" => {
                    to = line;
                    (At::Rcpt, "250 ok")
                }
                "DATA" => (At::Data, "354 go on"),
                "QUIT" => return stream.write_all(b"221 bye\r\n").await,
                _ => {
                    stream.write_all(b"250 ok\r\n").await?;
                    continue;
                }
            };
            if !say(&mut stream, rule, at, usual).await? {
                return Ok(());
            }
            if at == At::Data && !is_at(rule, At::Data) {
                while read(&mut stream).await?.is_some_and(|line| line != ".") {}
                if !is_at(rule, At::End) {
                    self.state.lock().unwrap().taken.push(to.clone());
                }
                if !say(&mut stream, rule, At::End, "250 taken").await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn is_at(rule: Option<(At, Answer)>, at: At) -> bool {
    rule.is_some_and(|(there, _)| there == at)
}

/// Says what is usual, or what the rule says. False if that is the end of the dialogue.
async fn say(
    stream: &mut BufReader<TcpStream>,
    rule: Option<(At, Answer)>,
    at: At,
    usual: &str,
) -> io::Result<bool> {
    let text = match rule {
        Some((there, Answer::HangsUp)) if there == at => return Ok(false),
        Some((there, Answer::Says(text))) if there == at => text,
        _ => usual,
    };
    stream.write_all(format!("{text}\r\n").as_bytes()).await?;
    Ok(true)
}

async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut line = String::new();
    let bytes = stream.read_line(&mut line).await?;
    Ok((bytes > 0).then(|| line.trim_end().to_owned()))
}
