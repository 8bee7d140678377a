//! Every call ends: how long a client may take to send it, and how long the answer may take.
//!
//! The bounds are about the head of the answer. A stream of events goes on after that for as long
//! as its service lets it.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use shop_kit::Problem;
use tokio::sync::oneshot;

/// How long a client may take to send the head of a request, and how long a connection may rest
/// between two requests.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a client may take to send the body of a request. Calls that take JSON say a moment
/// before that what is missing.
const BODY_TIMEOUT: Duration = Duration::from_secs(16);

/// How long an answer may take once the request has come. A little more than what services give
/// their databases, so that a service which knows what did not happen in time can say so.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);

/// Ends a call that takes too long, with the problem that says whose fault it is.
pub(crate) async fn keep(request: Request, next: Next) -> Response {
    let is_safe = request.method().is_safe();
    let (arrival, arrived) = oneshot::channel();
    let request = request.map(|body| {
        Body::new(Arriving {
            body,
            arrival: Some(arrival),
        })
    });
    let mut answer = pin!(next.run(request));
    tokio::select! {
        answer = &mut answer => return answer,
        // It has come, or nobody wants to read it.
        _ = arrived => {}
        () = tokio::time::sleep(BODY_TIMEOUT) => {
            return Problem::too_slow(format_args!(
                "the body did not arrive within {BODY_TIMEOUT:?}; send it faster"
            ))
            .into_response();
        }
    }
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => no_answer(is_safe).into_response(),
    }
}

fn no_answer(is_safe: bool) -> Problem {
    let problem = if is_safe {
        Problem::unavailable(format_args!(
            "there was no answer within {ANSWER_TIMEOUT:?}; try again"
        ))
    } else {
        Problem::outcome_unknown(format_args!(
            "there was no answer within {ANSWER_TIMEOUT:?}; the call may have been done or not, \
             so look before you repeat it (with the same `Idempotency-Key` it is safe to repeat)"
        ))
    };
    problem.retry_soon()
}

/// A body that lets go of `arrival` when all of it was read, or it is dropped.
struct Arriving {
    body: Body,
    /// Never sent on: the receiver resolves when it is dropped.
    arrival: Option<oneshot::Sender<()>>,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.arrival = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
