//! What was asked and what was answered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{IF_MATCH, RANGE};
use hyper::http::HeaderName;

/// Requests kept; the oldest go first.
const MAX_REQUESTS: usize = 65_536;

/// One request, answered or under way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// Number of the connection it came on, from 0 in the order they were accepted.
    pub connection: u64,
    /// `GET`, `PUT`, ….
    pub method: String,
    /// The path as it was sent, percent-encoded, without the query.
    pub path: String,
    /// The query as it was sent, without the question mark.
    pub query: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `If-Match` header.
    pub if_match: Option<String>,
    /// Status of the answer; 0 until there is one.
    pub status: u16,
    /// Bytes of the body handed to the connection so far.
    pub bytes_sent: u64,
    /// When its head was read, since the server started.
    pub start: Duration,
    /// When its body was all handed over or given up, since the server started; `None` until then.
    pub end: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct Log {
    started: Instant,
    requests: Mutex<VecDeque<Arc<Mutex<Request>>>>,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), requests: Mutex::default() }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        lock(&self.requests).iter().map(|request| lock(request).clone()).collect()
    }

    pub(crate) fn clear(&self) {
        lock(&self.requests).clear();
    }

    pub(crate) fn begin<B>(&self, connection: u64, request: &hyper::Request<B>) -> Entry {
        let header = |name: HeaderName| {
            let value = request.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let request = Arc::new(Mutex::new(Request {
            connection,
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            range: header(RANGE),
            if_match: header(IF_MATCH),
            start: self.started.elapsed(),
            ..Request::default()
        }));
        let mut requests = lock(&self.requests);
        if requests.len() == MAX_REQUESTS {
            requests.pop_front();
        }
        requests.push_back(Arc::clone(&request));
        Entry { started: self.started, request }
    }
}

/// A request under way; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    started: Instant,
    request: Arc<Mutex<Request>>,
}

impl Entry {
    pub(crate) fn answered(&self, status: u16) {
        lock(&self.request).status = status;
    }

    pub(crate) fn sent(&self, num_bytes: usize) {
        lock(&self.request).bytes_sent += num_bytes as u64;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.request).end = Some(self.started.elapsed());
    }
}

/// Locks; what another thread left when it panicked is as good as any.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
