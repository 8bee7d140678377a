//! What stands between payment and the bank: a real HTTP server that passes requests on, except
//! where a test made a rule for the next one.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode},
    middleware::{self, Next},
};
use tokio::{net::TcpListener, sync::Notify};

use shop_testing::SOON;

/// What the bank is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Charge,
    Refund,
}

/// What becomes of the next request of a kind.
#[derive(Debug, Clone)]
pub(crate) enum Rule {
    /// It waits before it reaches the bank, also when nobody waits for its answer any more.
    HoldRequest(Held),
    /// The bank carries it out, and its answer waits.
    HoldAnswer(Held),
    /// It waits, and then fails without having reached the bank.
    HoldFailure(Held),
    /// The bank carries it out, and its answer is lost.
    LoseAnswer,
    /// The bank never sees it; this is answered instead.
    Answer(u16, &'static str),
}

/// A request that is held.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(Arc<(Notify, Notify)>);

impl Held {
    /// Waits until the request is there.
    pub(crate) async fn arrived(&self, story: &str) {
        let arrived = tokio::time::timeout(SOON, self.0.0.notified()).await;
        arrived.unwrap_or_else(|_| panic!("{story}: no request came to be held in {SOON:?}"));
    }

    pub(crate) fn release(&self) {
        self.0.1.notify_one();
    }

    async fn hold(&self) {
        self.0.0.notify_one();
        self.0.1.notified().await;
    }
}

#[derive(Clone)]
pub(crate) struct Gate {
    address: SocketAddr,
    state: Arc<Mutex<Rules>>,
}

#[derive(Default)]
struct Rules {
    next: VecDeque<(Call, Rule)>,
    seen: Vec<Call>,
}

impl Gate {
    /// A gate in front of `bank`, on a port of its own.
    pub(crate) async fn serve(bank: Router) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let gate = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        let guarded = bank.layer(middleware::from_fn_with_state(gate.clone(), pass));
        tokio::spawn(async move { axum::serve(listener, guarded).await.unwrap() });
        gate
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes a rule for the next request of this kind that has none yet.
    pub(crate) fn rule(&self, call: Call, rule: Rule) {
        self.state.lock().unwrap().next.push_back((call, rule));
    }

    /// How many requests of a kind came.
    pub(crate) fn count(&self, call: Call) -> usize {
        let state = self.state.lock().unwrap();
        state.seen.iter().filter(|seen| **seen == call).count()
    }

    fn take(&self, call: Call) -> Option<Rule> {
        let mut state = self.state.lock().unwrap();
        state.seen.push(call);
        let at = state.next.iter().position(|(of, _)| *of == call)?;
        state.next.remove(at).map(|(_, rule)| rule)
    }
}

async fn pass(State(gate): State<Gate>, request: Request, next: Next) -> Response<Body> {
    let call = match request.uri().path() {
        "/bank/charges" => Call::Charge,
        "/bank/refunds" => Call::Refund,
        other => panic!("payment asked the bank for {other}"),
    };
    let rule = gate.take(call);
    // In a task of its own: a bank goes on when a client has hung up.
    let answer = tokio::spawn(async move {
        match rule {
            None => next.run(request).await,
            Some(Rule::HoldRequest(held)) => {
                held.hold().await;
                next.run(request).await
            }
            Some(Rule::HoldAnswer(held)) => {
                let answer = next.run(request).await;
                held.hold().await;
                answer
            }
            Some(Rule::HoldFailure(held)) => {
                held.hold().await;
                plain(500, "the bank failed")
            }
            Some(Rule::LoseAnswer) => {
                next.run(request).await;
                plain(502, "the connection to the bank broke")
            }
            Some(Rule::Answer(status, body)) => plain(status, body),
        }
    });
    answer.await.unwrap()
}

fn plain(status: u16, body: &'static str) -> Response<Body> {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}
