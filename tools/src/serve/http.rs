//! The thread that talks with the clients: connections, routes, bodies, the end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};

use super::access::Caller;
use super::answer::{Answer, Style, failure};
use super::error::ApiError;
use super::fields::{Fields, parse};
use super::listen::Listener;
use super::scheduler::{Event, Message};
use super::{Draft, Served, Server, Submitted, chat, completions, info, ollama};

/// How long a client may take nothing of what it is sent.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Connections at once, and those of them that only this machine may use.
const MAX_CONNECTIONS: usize = 512;
const LOCAL_CONNECTIONS: usize = 16;
/// The longest request line and headers, in bytes and lines.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 100;
/// All bodies that are being read, together.
const MAX_BODY_BYTES: usize = 64 << 20;
/// How often a stream says that it lives while nothing comes.
const PING: Duration = Duration::from_secs(5);
/// How often it is looked whether all is done, when the server is to end.
const END_CHECK: Duration = Duration::from_millis(20);

type ResponseBody = Either<Full<Bytes>, EventBody>;

/// Answers until the server is to end, and those at work have ended.
pub(super) async fn run(server: Arc<Server>, listener: Listener) {
    tokio::spawn(end_by_signal(Arc::clone(&server)));
    let idle = Arc::new(Activity::new());
    if let Some(limit) = server.exit_idle {
        tokio::spawn(end_when_idle(Arc::clone(&server), Arc::clone(&idle), limit));
    }
    let clients = Arc::new(Clients {
        server: Arc::clone(&server),
        activity: idle,
        all: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        remote: Arc::new(Semaphore::new(MAX_CONNECTIONS - LOCAL_CONNECTIONS)),
    });
    let accepted = match listener {
        Listener::Tcp(tcp) => accept_tcp(&clients, tcp).await,
        Listener::Unix(unix) => {
            let listener = unix.listener.try_clone();
            match listener {
                Ok(listener) => accept_unix(&clients, listener).await,
                Err(error) => Err(error),
            }
        }
    };
    if let Err(error) = accepted {
        tell!("error: no more clients can be taken in: {error}");
    }
    wait_for_end(&clients).await;
    if let Some(served) = server.served.get() {
        let _ = served.inbox.send(Message::End);
    }
    if server.served.get().is_none() {
        // The model is being opened for nobody.
        std::process::exit(0);
    }
}

/// Who is connected.
struct Clients {
    server: Arc<Server>,
    activity: Arc<Activity>,
    all: Arc<Semaphore>,
    remote: Arc<Semaphore>,
}

/// When somebody asked last.
struct Activity {
    start: Instant,
    /// Milliseconds since the start.
    last: AtomicUsize,
}

impl Activity {
    fn new() -> Activity {
        Activity {
            start: Instant::now(),
            last: AtomicUsize::new(0),
        }
    }

    fn note(&self) {
        let millis = usize::try_from(self.start.elapsed().as_millis()).unwrap_or(usize::MAX);
        self.last.store(millis, Relaxed);
    }

    fn idle_for(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Relaxed) as u64);
        self.start.elapsed().saturating_sub(last)
    }
}

async fn end_by_signal(server: Arc<Server>) {
    let signals = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            tell!("warning: signals cannot be caught: {error}");
            return;
        }
    };
    let mut next = async || {
        poll_fn(|cx| match terminate.poll_recv(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => interrupt.poll_recv(cx).map(|_| ()),
        })
        .await;
    };
    next().await;
    tell!(
        "ending: answers at work may go on for {} s; a second signal ends at once",
        server.grace.as_secs()
    );
    server.end();
    next().await;
    std::process::exit(0);
}

async fn end_when_idle(server: Arc<Server>, activity: Arc<Activity>, limit: Duration) {
    loop {
        let left = limit.saturating_sub(activity.idle_for());
        if left.is_zero() && server.n_at_work.load(Relaxed) == 0 {
            tell!("ending: nobody has asked for {} s", limit.as_secs());
            server.end();
            return;
        }
        sleep(left.max(Duration::from_secs(1))).await;
    }
}

/// Resolves when the server is to end.
async fn ending(server: &Server) {
    let mut receiver = server.is_ending.subscribe();
    // The sender lives as long as the server.
    let _ = receiver.wait_for(|is_ending| *is_ending).await;
}

/// What `future` gives, or `None` when the server is to end before.
async fn unless_ending<T>(server: &Server, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut ending = pin!(ending(server));
    poll_fn(|cx| {
        if ending.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

async fn accept_tcp(clients: &Arc<Clients>, listener: std::net::TcpListener) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    while let Some(accepted) = unless_ending(&clients.server, listener.accept()).await {
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                out_of_descriptors(error).await?;
                continue;
            }
        };
        let is_local = address.ip().to_canonical().is_loopback();
        let _ = stream.set_nodelay(true);
        clients.take_in(stream, is_local).await;
    }
    Ok(())
}

async fn accept_unix(
    clients: &Arc<Clients>,
    listener: std::os::unix::net::UnixListener,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    while let Some(accepted) = unless_ending(&clients.server, listener.accept()).await {
        match accepted {
            Ok((stream, _)) => clients.take_in(stream, true).await,
            Err(error) => out_of_descriptors(error).await?,
        }
    }
    Ok(())
}

/// A connection that failed is its client's trouble; where there are no descriptors left, some come back.
async fn out_of_descriptors(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => Ok(()),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
            sleep(Duration::from_millis(100)).await;
            Ok(())
        }
        _ => Err(error),
    }
}

impl Clients {
    /// Serves a connection. Those that are too many wait for a place.
    async fn take_in<S>(self: &Arc<Self>, stream: S, is_local: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut permits = Vec::new();
        if !is_local {
            // Those who come from elsewhere and are too many are not waited for: this machine's owner is
            // behind them.
            match Arc::clone(&self.remote).try_acquire_owned() {
                Ok(permit) => permits.push(permit),
                Err(_) => return,
            }
        }
        let place = Arc::clone(&self.all).acquire_owned();
        match unless_ending(&self.server, place).await {
            Some(Ok(permit)) => permits.push(permit),
            _ => return,
        }
        tokio::spawn(Arc::clone(self).connection(stream, permits));
    }

    async fn connection<S>(self: Arc<Self>, stream: S, permits: Vec<OwnedSemaphorePermit>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _permits = permits;
        let counted = self
            .server
            .served
            .get()
            .map(|served| Arc::clone(&served.metrics));
        if let Some(metrics) = &counted {
            metrics.connections.fetch_add(1, Relaxed);
        }
        let clients = Arc::clone(&self);
        let service = service_fn(move |request| answer(Arc::clone(&clients), request));
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.server.timeout_idle)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEADER_BYTES)
            .half_close(false);
        let mut connection =
            pin!(builder.serve_connection(TokioIo::new(Impatient::new(stream)), service));
        let mut ending = pin!(ending(&self.server));
        let mut is_told = false;
        // What goes wrong here is the client's trouble: it has left, or sent nonsense.
        let _ = poll_fn(|cx| {
            if !is_told && ending.as_mut().poll(cx).is_ready() {
                is_told = true;
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx)
        })
        .await;
        if let Some(metrics) = &counted {
            metrics.connections.fetch_sub(1, Relaxed);
        }
    }

    fn n_connections(&self) -> usize {
        MAX_CONNECTIONS - self.all.available_permits()
    }
}

/// Waits until all answers are out, no longer than there is grace for.
async fn wait_for_end(clients: &Clients) {
    let server = &clients.server;
    let start = Instant::now();
    while server.n_at_work.load(Relaxed) > 0 && start.elapsed() < server.grace {
        sleep(END_CHECK).await;
    }
    // What was written last is on its way; whoever only keeps a connection has no claim.
    let start = Instant::now();
    while clients.n_connections() > 0 && start.elapsed() < Duration::from_millis(500) {
        sleep(END_CHECK).await;
    }
}

/// Counts a request as at work until its answer is out.
struct AtWork(Arc<Server>);

impl AtWork {
    fn new(server: &Arc<Server>) -> AtWork {
        server.n_at_work.fetch_add(1, Relaxed);
        AtWork(Arc::clone(server))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.n_at_work.fetch_sub(1, Relaxed);
    }
}

/// A path, and what is there.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Route {
    Page(Part),
    Health,
    Models,
    Model,
    Props,
    Metrics,
    Chat,
    Completions,
    Tokenize,
    Detokenize,
    ApplyTemplate,
    Embeddings,
    OllamaVersion,
    OllamaTags,
    OllamaPs,
    OllamaShow,
    OllamaPull,
    OllamaChat,
    OllamaGenerate,
    OllamaOther,
    Unknown,
}

/// What the page is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Html,
    Css,
    Script,
}

impl Part {
    fn reply(self) -> Reply {
        let (content, kind) = match self {
            Part::Html => (include_str!("page/index.html"), "text/html; charset=utf-8"),
            Part::Css => (include_str!("page/page.css"), "text/css; charset=utf-8"),
            Part::Script => (
                include_str!("page/page.js"),
                "text/javascript; charset=utf-8",
            ),
        };
        Reply::Page { content, kind }
    }
}

/// What the page may do: talk with this server, and nothing else.
const PAGE_POLICY: &str = "default-src 'self'; img-src 'self' data:; base-uri 'none'; \
                           form-action 'none'; frame-ancestors 'none'";

impl Route {
    fn of(path: &str) -> Route {
        match path {
            "/" => Route::Page(Part::Html),
            "/page.css" => Route::Page(Part::Css),
            "/page.js" => Route::Page(Part::Script),
            "/health" | "/v1/health" => Route::Health,
            "/models" | "/v1/models" => Route::Models,
            "/props" => Route::Props,
            "/metrics" => Route::Metrics,
            "/chat/completions" | "/v1/chat/completions" => Route::Chat,
            "/completions" | "/v1/completions" => Route::Completions,
            "/tokenize" => Route::Tokenize,
            "/detokenize" => Route::Detokenize,
            "/apply-template" => Route::ApplyTemplate,
            "/embeddings" | "/v1/embeddings" => Route::Embeddings,
            "/api/version" => Route::OllamaVersion,
            "/api/tags" => Route::OllamaTags,
            "/api/ps" => Route::OllamaPs,
            "/api/show" => Route::OllamaShow,
            "/api/pull" => Route::OllamaPull,
            "/api/chat" => Route::OllamaChat,
            "/api/generate" => Route::OllamaGenerate,
            "/api/create" | "/api/delete" | "/api/copy" | "/api/push" | "/api/embed"
            | "/api/embeddings" => Route::OllamaOther,
            path if path.starts_with("/v1/models/") => Route::Model,
            path if path.starts_with("/api/blobs/") => Route::OllamaOther,
            _ => Route::Unknown,
        }
    }

    /// The path as metrics and the log name it.
    fn name(self) -> &'static str {
        match self {
            Route::Page(_) => "/",
            Route::Health => "/health",
            Route::Models => "/v1/models",
            Route::Model => "/v1/models/{id}",
            Route::Props => "/props",
            Route::Metrics => "/metrics",
            Route::Chat => "/v1/chat/completions",
            Route::Completions => "/v1/completions",
            Route::Tokenize => "/tokenize",
            Route::Detokenize => "/detokenize",
            Route::ApplyTemplate => "/apply-template",
            Route::Embeddings => "/v1/embeddings",
            Route::OllamaVersion => "/api/version",
            Route::OllamaTags => "/api/tags",
            Route::OllamaPs => "/api/ps",
            Route::OllamaShow => "/api/show",
            Route::OllamaPull => "/api/pull",
            Route::OllamaChat => "/api/chat",
            Route::OllamaGenerate => "/api/generate",
            Route::OllamaOther => "/api/{other}",
            Route::Unknown => "{unknown}",
        }
    }

    fn is_get(self) -> bool {
        matches!(
            self,
            Route::Page(_)
                | Route::Health
                | Route::Models
                | Route::Model
                | Route::Props
                | Route::Metrics
                | Route::OllamaVersion
                | Route::OllamaTags
                | Route::OllamaPs
        )
    }

    fn is_ollama(self) -> bool {
        self.name().starts_with("/api/")
    }

    /// Whether nobody needs a key for it.
    fn is_open(self) -> bool {
        matches!(self, Route::Health | Route::Page(_))
    }
}

/// What goes back, before it is a response.
enum Reply {
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

async fn answer(
    clients: Arc<Clients>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let server = Arc::clone(&clients.server);
    let start = Instant::now();
    let route = Route::of(request.uri().path());
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
            let asked = Asked {
                server: Arc::clone(&server),
                route,
                method: method.clone(),
                parts,
                at_work,
            };
            if route != Route::Health && route != Route::Metrics {
                clients.activity.note();
            }
            asked.answer(body).await
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

impl Reply {
    fn into_response(self) -> Response<ResponseBody> {
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

fn refusal(route: Route, error: &ApiError) -> Response<ResponseBody> {
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

/// A request that may be answered.
struct Asked {
    server: Arc<Server>,
    route: Route,
    method: Method,
    parts: hyper::http::request::Parts,
    at_work: AtWork,
}

impl Asked {
    async fn answer(self, body: Incoming) -> Result<Reply, ApiError> {
        let Asked {
            server,
            route,
            method,
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
            true => Caller::ANYBODY,
            false => server.access.caller(&parts.headers)?,
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
            Reply::Json(info::model(served, &percent_decoded(id))?)
        }
        Route::Props => Reply::Json(info::props(served)?),
        Route::Metrics => Reply::Text {
            content: served.metrics.text(served.catalog.ids()),
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
    let draft: Draft = match route {
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
        Route::Completions => completions::draft(fields, served, caller)?,
        _ => chat::draft(fields, served, caller, Style::Chat)?,
    };
    draft
        .submit(served)
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
        return Ok(Reply::Events(Box::new(EventBody {
            answer,
            events,
            ping: Box::pin(sleep(PING)),
            is_over: false,
            _at_work: at_work,
        })));
    }
    let mut nothing = String::new();
    while !answer.is_over() {
        let event = events.recv().await.ok_or_else(ApiError::internal)?;
        answer.take(event, &mut nothing)?;
    }
    Ok(Reply::Json(answer.whole()))
}

/// A request's body, counted among the bytes of all until it was read.
struct HeldBody {
    server: Arc<Server>,
    bytes: Vec<u8>,
}

impl HeldBody {
    fn add(&mut self, data: &[u8]) -> Result<(), ApiError> {
        let before = self.server.n_body_bytes.fetch_add(data.len(), Relaxed);
        self.bytes.extend_from_slice(data);
        match before + data.len() > MAX_BODY_BYTES {
            true => Err(ApiError::overloaded(1)),
            false => Ok(()),
        }
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        self.server
            .n_body_bytes
            .fetch_sub(self.bytes.len(), Relaxed);
    }
}

async fn read_body(
    server: &Arc<Server>,
    headers: &hyper::HeaderMap,
    mut body: Incoming,
) -> Result<HeldBody, ApiError> {
    let too_large = || {
        let message = format!("the body is larger than {} bytes", server.max_body);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("request_too_large")
    };
    let claimed = headers.get(header::CONTENT_LENGTH);
    let claimed = claimed.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if claimed.is_some_and(|n| n > server.max_body as u64) {
        return Err(too_large());
    }
    let mut held = HeldBody {
        server: Arc::clone(server),
        bytes: Vec::new(),
    };
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::bad("the body cannot be read"))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if held.bytes.len() + data.len() > server.max_body {
                return Err(too_large());
            }
            held.add(&data)?;
        }
        Ok(())
    };
    let read = timeout(server.timeout_read, reading).await;
    read.unwrap_or_else(|_| {
        let message = "the body did not come in time";
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
    })?;
    Ok(held)
}

/// A connection on which writes fail whose client takes nothing for a while.
struct Impatient<S> {
    stream: S,
    /// When that is, while a write waits.
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(stream: S) -> Impatient<S> {
        let until = None;
        Impatient { stream, until }
    }

    /// What a write gave, or an error where it waited too long.
    fn judge<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.until = None;
            return written;
        }
        let until = self
            .until
            .get_or_insert_with(|| Box::pin(sleep(WRITE_PATIENCE)));
        ready!(until.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.judge(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.judge(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A stream of an answer's pieces. Dropped, as its client has left, it lets the model's thread know.
struct EventBody {
    answer: Answer,
    events: mpsc::Receiver<Event>,
    /// When to say that it lives.
    ping: Pin<Box<Sleep>>,
    is_over: bool,
    _at_work: AtWork,
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

/// A path's part with its escapes replaced; what is no escape stays.
fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (byte, escaped) {
            (b'%', Some(escaped)) => {
                out.push(escaped);
                rest = &after[2..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_be_escaped() {
        assert_eq!(percent_decoded("a%2Fb"), "a/b");
        assert_eq!(percent_decoded("100%"), "100%");
        assert_eq!(percent_decoded("%zz%C3%A9"), "%zz\u{e9}");
    }

    #[test]
    fn every_route_has_one_method() {
        assert_eq!(Route::of("/v1/models/a/b"), Route::Model);
        assert_eq!(Route::of("/v1/nothing"), Route::Unknown);
        assert_eq!(Route::of("/../etc/passwd"), Route::Unknown);
        assert!(Route::Health.is_open() && !Route::Metrics.is_open());
    }
}
