//! HTTP/1.1 and h2c on one port, and an orderly end.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request, http::header::CONNECTION};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use telemetry::Causes;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tower::Service;

use super::{
    Edge,
    connection::{Activity, Connections},
    stream::Stream,
};
use crate::{Config, admit::Peer};

/// Pause after an `accept` that fails for lack of something, and would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long open connections stay open for callers to learn, by a 503, that they must go elsewhere.
/// Closed at once, they would be reset under requests already on their way.
const LAME_DUCK: Duration = Duration::from_millis(500);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;

/// Files that are not connections: the model, its cache, stores.
const OTHER_FILES: usize = 128;

/// Requests at once on one h2 connection.
const MAX_STREAMS: u32 = 200;

/// What a caller may send on one h2 stream, and on all of a connection, before it is read.
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;

/// Streams that a caller may reset before they are looked at, or by its mistakes; more end the
/// connection.
const MAX_RESET_STREAMS: usize = 20;
const MAX_MISTAKEN_STREAMS: usize = 100;

/// Pings in the time that a connection may be idle.
const NUM_IDLE_PINGS: u32 = 4;

/// Serves `app` until `stop` ends; then refuses new requests, lets those in flight end within the
/// request timeout, and returns.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    edge: Edge,
    config: &Config,
    stop: impl Future<Output = ()>,
) {
    let server = Server::new(app, config);
    let mut stopped = pin!(async {
        stop.await;
        edge.drain();
        tracing::info!("draining");
        sleep(LAME_DUCK).await;
        timeout(config.request_timeout, server.connections.stop()).await
    });
    tokio::select! {
        outcome = &mut stopped => {
            if outcome.is_err() {
                tracing::warn!("some requests did not end in time");
            }
        }
        // Whoever still comes while others end is told to go elsewhere.
        never = server.accept_all(&listener) => match never {},
    }
}

/// Serves `app` until the process ends.
pub(crate) async fn serve_always(listener: TcpListener, app: Router, config: Config) -> Infallible {
    Server::new(app, &config).accept_all(&listener).await
}

/// The port, opened. Connections that come faster than they are accepted wait, up to the system's
/// limit; without a place to wait they would lose a second each.
pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([0, 0, 0, 0], port)))?;
    socket.listen(BACKLOG)
}

struct Server {
    app: Router,
    protocols: auto::Builder<TokioExecutor>,
    connections: Arc<Connections>,
}

impl Server {
    fn new(app: Router, config: &Config) -> Self {
        let mut protocols = auto::Builder::new(TokioExecutor::new());
        protocols
            .http1()
            .timer(TokioTimer::new())
            // `Connections` does that, and leaves time to those who have not begun.
            .header_read_timeout(None)
            .max_buf_size(config.max_header_bytes);
        protocols
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(config.max_header_bytes as u32)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
            .max_local_error_reset_streams(MAX_MISTAKEN_STREAMS)
            .keep_alive_interval(config.idle_timeout / NUM_IDLE_PINGS)
            .keep_alive_timeout(config.header_timeout);
        let connections = Arc::new(Connections::new(
            max_connections(config.max_connections),
            config.idle_timeout,
            config.header_timeout,
            config.request_timeout,
        ));
        Self { app, protocols, connections }
    }

    /// Accepts connections as there are places for them. One that has no place is taken from the
    /// backlog, waits and makes the next ones wait there.
    async fn accept_all(&self, listener: &TcpListener) -> Infallible {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok((stream, address)) => (stream, Peer(address.ip())),
                Err(error) => {
                    self.not_accepted(&error).await;
                    continue;
                }
            };
            // Answers are small; a stream that cannot be told so is gone already.
            let _ = stream.set_nodelay(true);
            if let Some(place) = self.connections.place().await {
                self.spawn(stream, peer, place);
            }
        }
    }

    async fn not_accepted(&self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
        // The caller left; that says nothing of the next.
        if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
            return;
        }
        tracing::warn!(exception = %Causes(error), "no connection accepted");
        self.connections.make_room();
        sleep(ACCEPT_PAUSE).await;
    }

    fn spawn(&self, stream: TcpStream, peer: Peer, place: OwnedSemaphorePermit) {
        let activity = Arc::new(Activity::default());
        let app = self.app.clone();
        let service = {
            let activity = activity.clone();
            service_fn(move |request: Request<hyper::body::Incoming>| {
                let exchange = activity.begin();
                let activity = activity.clone();
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(peer);
                let answer = app.clone().call(request);
                async move {
                    let Ok(response) = answer.await;
                    if response.headers().contains_key(CONNECTION) {
                        activity.leave_unread();
                    }
                    Ok::<_, Infallible>(response.map(|body| exchange.body(body)))
                }
            })
        };
        let stream = TokioIo::new(Stream::new(stream, activity.clone()));
        let connection = self.protocols.serve_connection(stream, service).into_owned();
        tokio::spawn(self.connections.attend(connection, activity, place));
    }
}

/// How many connections may be open: `wanted`, if this process may open as many files. Its soft
/// limit on them is raised to the hard one.
fn max_connections(wanted: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let max_files = if raised.is_ok() { maximum } else { current };
    let max_files = max_files.map_or(usize::MAX, |files| files as usize);
    let max_connections = wanted.min(max_files.saturating_sub(OTHER_FILES).max(1));
    if max_connections < wanted {
        tracing::info!(max_connections, max_files, "fewer connections than MAX_CONNECTIONS");
    }
    max_connections
}
