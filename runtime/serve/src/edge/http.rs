//! HTTP/1.1 and h2c on one port, and an orderly end.

use std::{io, pin::pin, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use telemetry::Causes;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::Edge;

/// Pause after a failed `accept`, which fails again at once while file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long open connections stay open for callers to learn, by a 503, that they must go elsewhere.
/// Closed at once, they would be reset under requests already on their way.
const LAME_DUCK: Duration = Duration::from_millis(500);

/// Serves `app` until `stop` ends; then refuses new requests, lets those in flight end within the
/// request timeout, and returns.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    edge: Edge,
    stop: impl Future<Output = ()>,
) {
    let server = Server::new(app);
    let connections = GracefulShutdown::new();
    let mut stop = pin!(async {
        stop.await;
        edge.drain();
        tracing::info!("draining");
        sleep(LAME_DUCK).await;
    });
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => {
                if let Some(stream) = server.accepted(accepted).await {
                    let connection = connections.watch(server.connection(stream));
                    tokio::spawn(async { log_end(connection.await) });
                }
            }
        }
    }

    let mut drained = pin!(timeout(edge.request_timeout, connections.shutdown()));
    loop {
        tokio::select! {
            outcome = &mut drained => {
                if outcome.is_err() {
                    tracing::warn!("some requests did not end in time");
                }
                return;
            }
            // Whoever still comes is told to go elsewhere.
            accepted = listener.accept() => {
                if let Some(stream) = server.accepted(accepted).await {
                    let connection = server.connection(stream);
                    tokio::spawn(async { log_end(connection.await) });
                }
            }
        }
    }
}

struct Server {
    app: TowerToHyperService<Router>,
    protocols: auto::Builder<TokioExecutor>,
}

impl Server {
    fn new(app: Router) -> Self {
        let mut protocols = auto::Builder::new(TokioExecutor::new());
        protocols.http1().timer(TokioTimer::new());
        protocols.http2().timer(TokioTimer::new());
        Self { app: TowerToHyperService::new(app), protocols }
    }

    /// The stream, ready for small answers; `None`, after a pause, if there is none.
    async fn accepted(
        &self,
        accepted: io::Result<(TcpStream, std::net::SocketAddr)>,
    ) -> Option<TcpStream> {
        match accepted.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream)) {
            Ok(stream) => Some(stream),
            Err(error) => {
                tracing::warn!(error = %Causes(&error), "no connection accepted");
                sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }

    fn connection(
        &self,
        stream: TcpStream,
    ) -> auto::Connection<'static, TokioIo<TcpStream>, TowerToHyperService<Router>, TokioExecutor>
    {
        self.protocols.serve_connection(TokioIo::new(stream), self.app.clone()).into_owned()
    }
}

fn log_end(outcome: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = outcome {
        tracing::debug!(error = %Causes(&*error), "connection ended early");
    }
}
