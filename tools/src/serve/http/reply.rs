//! What goes back to clients.

use http_body_util::{Either, Full};
use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;

use super::events::EventBody;
use super::page::PAGE_POLICY;
use super::route::Route;
use crate::serve::error::ApiError;

pub(super) type ResponseBody = Either<Full<Bytes>, EventBody>;

/// What goes back, before it is a response.
pub(super) enum Reply {
    Json(Value),
    Text {
        content: String,
        kind: &'static str,
    },
    Page {
        content: &'static str,
        kind: &'static str,
    },
    Events(Box<EventBody>),
    Nothing,
}

impl Reply {
    pub(super) fn into_response(self) -> Response<ResponseBody> {
        let full = |content: Vec<u8>, kind| {
            let mut response = Response::new(Either::Left(Full::new(content.into())));
            let kind = HeaderValue::from_static(kind);
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        };
        match self {
            Reply::Json(value) => full(value.to_string().into(), "application/json"),
            Reply::Text { content, kind } => full(content.into(), kind),
            Reply::Page { content, kind } => {
                let mut response = full(content.into(), kind);
                let policy = HeaderValue::from_static(PAGE_POLICY);
                response
                    .headers_mut()
                    .insert(header::CONTENT_SECURITY_POLICY, policy);
                response
            }
            Reply::Nothing => {
                let mut response = Response::new(Either::Left(Full::default()));
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            Reply::Events(body) => {
                let kind = match body.answer.style.is_ollama() {
                    true => "application/x-ndjson",
                    false => "text/event-stream; charset=utf-8",
                };
                let mut response = Response::new(Either::Right(*body));
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                let name = HeaderName::from_static("x-accel-buffering");
                headers.insert(name, HeaderValue::from_static("no"));
                response
            }
        }
    }
}

pub(super) fn refusal(route: Route, error: &ApiError) -> Response<ResponseBody> {
    let body = match route.is_ollama() {
        true => serde_json::json!({ "error": error.message }),
        false => error.to_json(),
    };
    let mut response = Reply::Json(body).into_response();
    *response.status_mut() = error.status;
    let headers = response.headers_mut();
    if let Some(seconds) = error.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if let Some(allow) = error.allow {
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    match error.status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        StatusCode::INTERNAL_SERVER_ERROR => {
            // Official clients would ask again, which gives the same.
            let name = HeaderName::from_static("x-should-retry");
            headers.insert(name, HeaderValue::from_static("false"));
        }
        _ => {}
    }
    // What was not read of the body would be taken for the next request.
    if matches!(
        error.status,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT | StatusCode::UNAUTHORIZED
    ) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
