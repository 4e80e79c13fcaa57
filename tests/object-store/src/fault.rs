//! What goes wrong, for which requests, and how often.

use std::sync::Mutex;
use std::time::Duration;

use hyper::header::RANGE;
use s3s::dto::Range;

use crate::log::lock;

/// What goes wrong with one request.
///
/// Bytes are counted in the body of one answer, except where an offset in the object is meant. The
/// bodies of refusals stay whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// The connection closes after this many bytes of the body.
    Cut {
        /// Bytes sent before.
        after_bytes: u64,
    },
    /// 503 `SlowDown`.
    SlowDown,
    /// 500 `InternalError`.
    InternalError,
    /// The body comes in pieces with pauses between them.
    Drip {
        /// Bytes in a piece.
        bytes: u64,
        /// Time between two pieces.
        pause: Duration,
    },
    /// After this many bytes of the body nothing follows, and the connection stays open.
    Stall {
        /// Bytes sent before.
        after_bytes: u64,
    },
    /// The last bytes of the body are left out, and `Content-Length` agrees; `Content-Range` does
    /// not.
    Shorten {
        /// Bytes left out.
        by_bytes: u64,
    },
    /// The lowest bit of one byte is wrong. Only answers that hold the byte count as matching.
    FlipBit {
        /// Where the byte lies in the object.
        offset: u64,
    },
    /// 200 with the whole object, whatever range was asked for.
    IgnoreRange,
    /// The object gets new content, atomically, once the request's own answer is opened: that one
    /// still carries the old content.
    Replace {
        /// The new content.
        content: Vec<u8>,
    },
    /// 302 to another path of this server.
    Redirect {
        /// The path, with its leading slash and percent-encoded.
        to: String,
    },
}

/// An [`Effect`] and the requests it meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    suffix: String,
    method: String,
    spared: u64,
    limit: u64,
    effect: Effect,
}

impl Fault {
    /// Meets every `GET` whose percent-decoded path ends with `suffix`.
    pub fn on(suffix: impl Into<String>, effect: Effect) -> Self {
        let method = String::from("GET");
        Self { suffix: suffix.into(), method, spared: 0, limit: u64::MAX, effect }
    }

    /// Meets requests of another method: `HEAD`, `PUT`, ….
    #[must_use]
    pub fn method(self, method: impl Into<String>) -> Self {
        Self { method: method.into(), ..self }
    }

    /// Spares the first `num_requests` matching requests.
    #[must_use]
    pub fn after(self, num_requests: u64) -> Self {
        Self { spared: num_requests, ..self }
    }

    /// Ends once it has met `num_requests` requests.
    #[must_use]
    pub fn first(self, num_requests: u64) -> Self {
        Self { limit: num_requests, ..self }
    }

    fn matches(&self, method: &str, path: &str, range: Option<Range>) -> bool {
        let holds = match (&self.effect, range) {
            (Effect::FlipBit { offset }, Some(Range::Int { first, last })) => {
                (first..=last.unwrap_or(u64::MAX)).contains(offset)
            }
            _ => true,
        };
        holds && method == self.method && path.ends_with(&self.suffix)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(crate) fn add(&self, fault: Fault) {
        lock(&self.0).push(fault);
    }

    pub(crate) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// The effects on this request, in the order they were asked for; counts it.
    pub(crate) fn plan<B>(&self, request: &hyper::Request<B>) -> Vec<Effect> {
        let mut faults = lock(&self.0);
        if faults.is_empty() {
            return Vec::new();
        }
        let path = percent_decode(request.uri().path());
        let range = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
        let range = range.and_then(|value| Range::parse(value).ok());
        let mut plan = Vec::new();
        for fault in faults.iter_mut() {
            if !fault.matches(request.method().as_str(), &path, range) {
                continue;
            }
            if fault.spared > 0 {
                fault.spared -= 1;
            } else if fault.limit > 0 {
                fault.limit -= 1;
                plan.push(fault.effect.clone());
            }
        }
        plan
    }
}

/// Decodes a path; what is no escape stays as it is.
pub(crate) fn percent_decode(path: &str) -> String {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [byte, tail @ ..] = rest {
        let escape = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escape = escape.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (byte, escape) {
            (b'%', Some(escaped)) => {
                decoded.push(escaped);
                rest = &tail[2..];
            }
            _ => {
                decoded.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
