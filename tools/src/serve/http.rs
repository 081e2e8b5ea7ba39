//! The thread that talks with the clients: their connections, and the end.

mod body;
mod events;
mod handle;
mod impatient;
mod page;
mod reply;
mod route;

pub(super) use self::route::Offers;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use self::impatient::Impatient;
use super::Server;
use super::access::Peer;
use super::listen::Listener;
use super::task::Message;

/// Connections at once, and those of them that only this machine may use.
const MAX_CONNECTIONS: usize = 512;
const LOCAL_CONNECTIONS: usize = 16;
/// The longest request line and headers, in bytes and lines.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 100;
/// How often it is looked whether all is done, when the server is to end.
const END_CHECK: Duration = Duration::from_millis(20);
/// How long it may take until clients know that their answers are broken off.
const BREAK_OFF: Duration = Duration::from_secs(2);

/// Answers until the server is to end, and those at work have ended.
pub(super) async fn run(server: Arc<Server>, listener: Listener) {
    tokio::spawn(end_by_signal(Arc::clone(&server)));
    tokio::spawn(reload_by_signal(Arc::clone(&server)));
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
    server.has_grace.send_replace(false);
}

/// Reads the bundles anew when the process gets SIGHUP. Answers at work go on with what they began with.
async fn reload_by_signal(server: Arc<Server>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        return;
    };
    while hangup.recv().await.is_some() {
        let server = Arc::clone(&server);
        // Files are read, for which clients do not wait.
        let _ = tokio::task::spawn_blocking(move || match server.served.get() {
            Some(served) => served.reload(),
            None => tell!("note: the model is being opened, with its bundles as they are"),
        })
        .await;
    }
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
        let _ = stream.set_nodelay(true);
        let is_local = address.ip().to_canonical().is_loopback();
        let permit = match is_local {
            true => None,
            // Those who come from elsewhere and are too many are not waited for: this machine's owner is
            // behind them.
            false => match Arc::clone(&clients.remote).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => continue,
            },
        };
        clients
            .take_in(stream, Peer::of(address.ip()), permit)
            .await;
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
            Ok((stream, _)) => clients.take_in(stream, Peer::HERE, None).await,
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
    /// Serves a connection, one from elsewhere with its permit. Those that are too many wait for a place.
    async fn take_in<S>(
        self: &Arc<Self>,
        stream: S,
        peer: Peer,
        remote: Option<OwnedSemaphorePermit>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut permits = Vec::from_iter(remote);
        let place = Arc::clone(&self.all).acquire_owned();
        match unless_ending(&self.server, place).await {
            Some(Ok(permit)) => permits.push(permit),
            _ => return,
        }
        tokio::spawn(Arc::clone(self).connection(stream, peer, permits));
    }

    async fn connection<S>(
        self: Arc<Self>,
        stream: S,
        peer: Peer,
        permits: Vec<OwnedSemaphorePermit>,
    ) where
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
        let service =
            service_fn(move |request| handle::answer(Arc::clone(&clients), peer, request));
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

/// Waits until all answers are out, no longer than there is grace for. What is not whole then is broken off with
/// an error.
async fn wait_for_end(clients: &Clients) {
    let server = &clients.server;
    let start = Instant::now();
    let is_at_work = || server.n_at_work.load(Relaxed) > 0;
    while is_at_work() && *server.has_grace.borrow() && start.elapsed() < server.grace {
        sleep(END_CHECK).await;
    }
    if is_at_work()
        && let Some(served) = server.served.get()
    {
        let _ = served.inbox.send(Message::BreakOff);
        let start = Instant::now();
        while is_at_work() && start.elapsed() < BREAK_OFF {
            sleep(END_CHECK).await;
        }
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
