//! From a request to its answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::body::read_body;
use super::events::EventBody;
use super::reply::{Reply, ResponseBody, refusal};
use super::route::Route;
use super::{AtWork, Clients};
use crate::serve::access::{Caller, Peer};
use crate::serve::answer::Style;
use crate::serve::error::ApiError;
use crate::serve::fields::{Fields, parse};
use crate::serve::{Job, Served, Server, Submitted, chat, completions, info, ollama};

pub(super) async fn answer(
    clients: Arc<Clients>,
    peer: Peer,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let server = Arc::clone(&clients.server);
    let start = Instant::now();
    let route = server.offers.route(request.uri().path());
    let method = request.method().clone();
    let is_preflight = method == Method::OPTIONS;
    let (parts, body) = request.into_parts();
    let at_work = AtWork::new(&server);
    let source = server.access.check_source(&parts.headers);
    let cors = match &source {
        Ok(()) => server.access.cors(&parts.headers, is_preflight),
        Err(_) => Vec::new(),
    };
    let replied = match source {
        Ok(()) if is_preflight => Ok(Reply::Nothing),
        Ok(()) => {
            let accepted = Accepted {
                server: Arc::clone(&server),
                route,
                method: method.clone(),
                peer,
                parts,
                at_work,
            };
            if route != Route::Health && route != Route::Metrics {
                clients.activity.note();
            }
            accepted.answer(body).await
        }
        Err(error) => Err(error),
    };
    let mut response = match replied {
        Ok(reply) => reply.into_response(),
        Err(error) => refusal(route, &error),
    };
    let headers = response.headers_mut();
    headers.extend(cors);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    let status = response.status().as_u16();
    if let Some(served) = server.served.get() {
        served.metrics.add_request(route.name(), status);
    }
    if !matches!(route, Route::Health | Route::Metrics) {
        let ms = start.elapsed().as_millis();
        tell!("{method} {} {status} {ms} ms", route.name());
    }
    Ok(response)
}

/// A request that may be answered.
struct Accepted {
    server: Arc<Server>,
    route: Route,
    method: Method,
    peer: Peer,
    parts: hyper::http::request::Parts,
    at_work: AtWork,
}

impl Accepted {
    async fn answer(self, body: Incoming) -> Result<Reply, ApiError> {
        let Accepted {
            server,
            route,
            method,
            peer,
            parts,
            at_work,
        } = self;
        if route == Route::Unknown {
            let message = "there is nothing at this path";
            return Err(ApiError::new(StatusCode::NOT_FOUND, message));
        }
        let is_get = method == Method::GET || method == Method::HEAD;
        if is_get != route.is_get() || !(is_get || method == Method::POST) {
            let allow = if route.is_get() { "GET, HEAD" } else { "POST" };
            let message = format!("this path has {allow} only");
            return Err(ApiError {
                allow: Some(allow),
                ..ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
            });
        }
        let caller = match route.is_open() {
            true => Caller::at(peer),
            false => server.access.caller(&parts.headers, peer)?,
        };
        if route.is_get() {
            return get(&server, route, parts.uri.path());
        }
        if matches!(route, Route::Embeddings | Route::OllamaOther) {
            let message =
                "this server only generates text: embeddings, and changing models, are not offered";
            let error = ApiError::new(StatusCode::NOT_IMPLEMENTED, message);
            return Err(error.code("unsupported_endpoint"));
        }
        if server.is_ending() {
            return Err(ApiError::shutting_down());
        }
        server.served()?;
        let body = read_body(&server, &parts.headers, body).await?;
        // Long texts take their time, and compositions may have to be opened: others do not wait for it.
        let reading = Arc::clone(&server);
        let read = tokio::task::spawn_blocking(move || {
            let object = parse(&body.bytes)?;
            post(reading.served()?, route, &object, caller)
        });
        match read.await.unwrap_or_else(|_| Err(ApiError::internal()))? {
            Done::Json(value) => Ok(Reply::Json(value)),
            Done::Submitted(submitted) => at_work_on(*submitted, at_work).await,
        }
    }
}

/// What is there to be read.
fn get(server: &Server, route: Route, path: &str) -> Result<Reply, ApiError> {
    if let Route::Page(part) = route {
        return Ok(part.reply());
    }
    let served = server.served()?;
    Ok(match route {
        Route::Health => Reply::Json(serde_json::json!({"status": "ok"})),
        Route::Models => Reply::Json(info::models(served)),
        Route::Model => {
            let id = path.strip_prefix("/v1/models/").unwrap_or_default();
            Reply::Json(info::model(
                served,
                &percent_decode_str(id).decode_utf8_lossy(),
            )?)
        }
        Route::Props => Reply::Json(info::props(served)?),
        Route::Metrics => Reply::Text {
            content: served.metrics_text(),
            kind: "text/plain; version=0.0.4; charset=utf-8",
        },
        Route::OllamaVersion => Reply::Json(ollama::version()),
        Route::OllamaTags => Reply::Json(ollama::tags(served)),
        Route::OllamaPs => Reply::Json(ollama::running(served)),
        _ => return Err(ApiError::internal()),
    })
}

/// What a request that was read is to be answered with.
enum Done {
    Json(Value),
    Submitted(Box<Submitted>),
}

fn post(
    served: &Served,
    route: Route,
    object: &Map<String, Value>,
    caller: Caller,
) -> Result<Done, ApiError> {
    let fields = &Fields::new(object);
    let job: Job = match route {
        Route::Tokenize => return info::tokenize(fields, served).map(Done::Json),
        Route::Detokenize => return info::detokenize(fields, served).map(Done::Json),
        Route::ApplyTemplate => return info::apply_template(fields, served).map(Done::Json),
        Route::OllamaShow => return ollama::show(fields, served).map(Done::Json),
        Route::OllamaPull => return ollama::pull(fields, served).map(Done::Json),
        Route::OllamaChat | Route::OllamaGenerate if ollama::is_load(fields) => {
            return ollama::loaded(fields, served).map(Done::Json);
        }
        Route::OllamaChat => ollama::chat(fields, served, caller)?,
        Route::OllamaGenerate => ollama::generate(fields, served, caller)?,
        Route::Completions => completions::job(fields, served, caller)?,
        _ => chat::job(fields, served, caller, Style::Chat)?,
    };
    job.submit(served)
        .map(|submitted| Done::Submitted(Box::new(submitted)))
}

/// Streams an answer, or gathers it.
async fn at_work_on(submitted: Submitted, at_work: AtWork) -> Result<Reply, ApiError> {
    let Submitted {
        mut answer,
        mut events,
        stream,
    } = submitted;
    if stream {
        return Ok(Reply::Events(Box::new(EventBody::new(
            answer, events, at_work,
        ))));
    }
    let mut nothing = String::new();
    while !answer.is_over() {
        let event = events.recv().await.ok_or_else(ApiError::internal)?;
        answer.take(event, &mut nothing)?;
    }
    Ok(Reply::Json(answer.whole()))
}
