//! Answers that are streamed.

use std::convert::Infallible;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};

use super::AtWork;
use crate::serve::answer::{Answer, failure};
use crate::serve::error::ApiError;
use crate::serve::task::Event;

/// How often a stream says that it lives while nothing comes.
const PING: Duration = Duration::from_secs(5);

/// A stream of an answer's pieces. Dropped, as its client has left, it lets the model's thread know.
pub(super) struct EventBody {
    pub answer: Answer,
    events: mpsc::Receiver<Event>,
    /// When to say that it lives.
    ping: Pin<Box<Sleep>>,
    is_over: bool,
    _at_work: AtWork,
}

impl EventBody {
    pub(super) fn new(answer: Answer, events: mpsc::Receiver<Event>, at_work: AtWork) -> EventBody {
        EventBody {
            answer,
            events,
            ping: Box::pin(sleep(PING)),
            is_over: false,
            _at_work: at_work,
        }
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let mut out = String::new();
        while out.is_empty() {
            let body = &mut *self;
            let taken = match body.events.poll_recv(cx) {
                Poll::Ready(Some(event)) => body.answer.take(event, &mut out),
                Poll::Ready(None) => Err(ApiError::internal()),
                Poll::Pending if body.answer.style.is_ollama() => return Poll::Pending,
                Poll::Pending => {
                    ready!(body.ping.as_mut().poll(cx));
                    out.push_str(":\n\n");
                    Ok(())
                }
            };
            if let Err(error) = taken {
                out.push_str(&failure(body.answer.style, &error));
                body.is_over = true;
            }
            body.is_over |= body.answer.is_over();
            if body.is_over && out.is_empty() {
                return Poll::Ready(None);
            }
        }
        let next = tokio::time::Instant::now() + PING;
        self.ping.as_mut().reset(next);
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
