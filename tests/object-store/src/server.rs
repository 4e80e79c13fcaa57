//! The server: a thread, a listener, and what a test holds of them.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use hyper::body::Incoming;
use hyper::header::{HeaderValue, LOCATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Error, s3_error};
use tokio::sync::oneshot;

use crate::access::{Access, Buckets, KeyPair};
use crate::body::Outgoing;
use crate::fault::{Effect, Fault, Faults, percent_decode};
use crate::log::{Log, Request};
use crate::store::{IgnoreRange, Store};
use crate::throttle::Throttle;

const MAX_THREADS: usize = 4;

/// How a [`Server`] starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The port on 127.0.0.1; 0 for any that is free.
    pub port: u16,
    /// The one access key that is known.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// Buckets whose objects anyone may read, without a signature.
    pub public: Buckets,
    /// Buckets that answer 403 `AccessDenied` to everyone.
    pub denied: Buckets,
    /// Rate of the bodies of all answers together, in bits a second; `None` for no limit.
    pub bits_per_second: Option<u64>,
}

impl Default for Options {
    /// Any free port, the key pair `test` and `test-secret`, no bucket public or denied, no limit.
    fn default() -> Self {
        Self {
            port: 0,
            access_key: "test".into(),
            secret_key: "test-secret".into(),
            public: Buckets::None,
            denied: Buckets::None,
            bits_per_second: None,
        }
    }
}

/// A running server; dropping it closes the port and every connection.
#[derive(Debug)]
pub struct Server {
    endpoint: String,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the folder `root` on a thread of its own.
    ///
    /// # Errors
    ///
    /// If `root` is no folder, the port is taken, or the system has no thread left.
    pub fn start(root: &Path, options: Options) -> io::Result<Self> {
        let root = root.canonicalize()?;
        if !root.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))?;
        listener.set_nonblocking(true)?;
        let endpoint = format!("http://{}", listener.local_addr()?);

        let store = Store::new(root);
        let mut service = S3ServiceBuilder::new(store.clone());
        service
            .set_auth(KeyPair { access_key: options.access_key, secret_key: options.secret_key });
        service.set_access(Access { public: options.public, denied: options.denied });
        let shared = Arc::new(Shared {
            store,
            service: service.build(),
            faults: Faults::default(),
            throttle: Arc::new(Throttle::new(options.bits_per_second)),
            log: Log::new(),
        });

        let num_threads = std::thread::available_parallelism().map_or(1, |num| num.get());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(num_threads.min(MAX_THREADS))
            .thread_name("object-store")
            .enable_all()
            .build()?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let accepts = accept(listener, Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("object-store".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accepts => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { endpoint, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Adds a fault; those already there stay. All that match a request apply to it.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// Ends all faults; answers under way keep theirs.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Changes [`Options::bits_per_second`], for answers under way too.
    pub fn set_bits_per_second(&self, bits_per_second: Option<u64>) {
        self.shared.throttle.set(bits_per_second);
    }

    /// The last 65,536 requests, in the order they came.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.requests()
    }

    /// Forgets the requests so far; their clock runs on.
    pub fn clear_requests(&self) {
        self.shared.log.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread returns nothing, and if it panicked it has said so itself.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Shared {
    store: Store,
    service: S3Service,
    faults: Faults,
    throttle: Arc<Throttle>,
    log: Log,
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    for connection in 0.. {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of files, or the client is gone already.
            Err(_) => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        // Without it answers are slower, not wrong.
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request| {
            let shared = Arc::clone(&shared);
            async move { Ok::<_, Infallible>(shared.answer(connection, request).await) }
        });
        tokio::spawn(async move {
            // Clients that hang up and connections that a fault cuts end here.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Shared {
    async fn answer(
        &self,
        connection: u64,
        mut request: hyper::Request<Incoming>,
    ) -> Response<Outgoing> {
        let entry = self.log.begin(connection, &request);
        let plan = self.faults.plan(&request);
        let refusal = plan.iter().find_map(|effect| match effect {
            Effect::SlowDown => {
                Some(refuse(s3_error!(SlowDown, "Please reduce your request rate")))
            }
            Effect::InternalError => Some(refuse(s3_error!(InternalError, "Please try again"))),
            Effect::Redirect { to } => Some(redirect(to)),
            _ => None,
        });
        let response = match refusal {
            Some(refusal) => refusal,
            None => {
                if plan.contains(&Effect::IgnoreRange) {
                    request.extensions_mut().insert(IgnoreRange);
                }
                let path = percent_decode(request.uri().path());
                let answered = self.service.call(request.map(s3s::Body::from)).await;
                let replaced = plan.iter().try_for_each(|effect| match effect {
                    Effect::Replace { content } => self.store.replace(&path, content),
                    _ => Ok(()),
                });
                match (answered, replaced) {
                    (Ok(response), Ok(())) => response,
                    (_, Err(error)) => refuse(error),
                    (Err(_), _) => refuse(s3_error!(InternalError)),
                }
            }
        };
        Outgoing::wrap(response, plan, Arc::clone(&self.throttle), entry)
    }
}

fn refuse(error: S3Error) -> Response<s3s::Body> {
    error.to_http_response().unwrap_or_else(|_| empty(StatusCode::INTERNAL_SERVER_ERROR))
}

fn redirect(to: &str) -> Response<s3s::Body> {
    let mut response = empty(StatusCode::FOUND);
    match HeaderValue::from_str(to) {
        Ok(location) => response.headers_mut().insert(LOCATION, location),
        Err(_) => return empty(StatusCode::INTERNAL_SERVER_ERROR),
    };
    response
}

fn empty(status: StatusCode) -> Response<s3s::Body> {
    let mut response = Response::new(s3s::Body::empty());
    *response.status_mut() = status;
    response
}
