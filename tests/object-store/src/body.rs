//! Bodies on their way out: a file's bytes, then whatever the plan does to them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue};
use tokio::time::Sleep;

use crate::fault::Effect;
use crate::log::Entry;
use crate::throttle::Throttle;

const READ_BYTES: u64 = 256 * 1024;
/// What hyper gets to write out what it holds before an error makes it drop the connection.
const FLUSH: Duration = Duration::from_millis(30);

/// A range of a file.
#[derive(Debug)]
pub(crate) struct FileBody {
    pub(crate) file: File,
    pub(crate) offset: u64,
    pub(crate) end: u64,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    // Reads in place: a hop to another thread costs more than a read that the page cache answers.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let num_bytes = READ_BYTES.min(self.end - self.offset);
        if num_bytes == 0 {
            return Poll::Ready(None);
        }
        let mut bytes = vec![0; num_bytes as usize];
        self.file.read_exact_at(&mut bytes, self.offset)?;
        self.offset += num_bytes;
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.offset == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.offset)
    }
}

/// The body of an answer, at the common rate and with its faults.
#[derive(Debug)]
pub(crate) struct Outgoing {
    inner: s3s::Body,
    /// Read, not yet sent.
    read: Bytes,
    /// Bytes this body has in all, where that is known.
    len: Option<u64>,
    sent: u64,
    /// Where the body begins in the object.
    origin: u64,
    plan: Vec<Effect>,
    throttle: Arc<Throttle>,
    entry: Entry,
    sleep: Option<Pin<Box<Sleep>>>,
    /// What is sent when `sleep` ends, and when that should be.
    due: Option<(Bytes, Instant)>,
    /// By how much the last piece was late.
    delay: Duration,
    /// The value of `sent` at which the last pause was.
    paused_at: Option<u64>,
}

impl Outgoing {
    /// Wraps the body of `response` and makes its headers lie where `plan` says so. Errors stay
    /// whole.
    pub(crate) fn wrap(
        mut response: hyper::Response<s3s::Body>,
        mut plan: Vec<Effect>,
        throttle: Arc<Throttle>,
        entry: Entry,
    ) -> hyper::Response<Self> {
        entry.answered(response.status().as_u16());
        if !response.status().is_success() {
            plan.clear();
        }
        let headers = response.headers_mut();
        let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let origin = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
        let origin = origin.and_then(|origin| origin.parse().ok()).unwrap_or(0);
        let len = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut len: Option<u64> = len;
        for effect in &plan {
            if let (Effect::Shorten { by_bytes }, Some(len)) = (effect, &mut len) {
                *len = len.saturating_sub(*by_bytes);
                headers.insert(CONTENT_LENGTH, HeaderValue::from(*len));
            }
        }
        response.map(|inner| Self {
            len: len.or(inner.size_hint().exact()),
            inner,
            read: Bytes::new(),
            sent: 0,
            origin,
            plan,
            throttle,
            entry,
            sleep: None,
            due: None,
            delay: Duration::ZERO,
            paused_at: None,
        })
    }

    fn emit(&mut self, bytes: Bytes) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut bytes = bytes;
        for effect in &self.plan {
            let Effect::FlipBit { offset } = effect else { continue };
            let index = offset.checked_sub(self.origin + self.sent);
            if let Some(index) = index.filter(|&index| index < bytes.len() as u64) {
                let mut copy = bytes.to_vec();
                copy[index as usize] ^= 1;
                bytes = copy.into();
            }
        }
        self.sent += bytes.len() as u64;
        self.entry.sent(bytes.len());
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        loop {
            if let Some(sleep) = &mut this.sleep {
                ready!(sleep.as_mut().poll(context));
                this.sleep = None;
            }
            if let Some((bytes, due)) = this.due.take() {
                this.delay = due.elapsed();
                return this.emit(bytes);
            }
            let mut room = this.len.map_or(u64::MAX, |len| len - this.sent);
            if room == 0 {
                return Poll::Ready(None);
            }
            for effect in &this.plan {
                match *effect {
                    Effect::Cut { after_bytes } if this.sent < after_bytes => {
                        room = room.min(after_bytes - this.sent);
                    }
                    Effect::Cut { .. } if this.paused_at != Some(this.sent) => {
                        this.paused_at = Some(this.sent);
                        this.sleep = Some(Box::pin(tokio::time::sleep(FLUSH)));
                    }
                    Effect::Cut { .. } => {
                        return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
                    }
                    Effect::Stall { after_bytes } if this.sent < after_bytes => {
                        room = room.min(after_bytes - this.sent);
                    }
                    Effect::Stall { .. } => return Poll::Pending,
                    Effect::Drip { bytes, pause } => {
                        let bytes = bytes.max(1);
                        let stop = this.sent > 0 && this.sent.is_multiple_of(bytes);
                        if stop && this.paused_at != Some(this.sent) {
                            this.paused_at = Some(this.sent);
                            this.sleep = Some(Box::pin(tokio::time::sleep(pause)));
                        }
                        room = room.min(bytes - this.sent % bytes);
                    }
                    _ => {}
                }
            }
            if this.sleep.is_some() {
                continue;
            }
            if this.read.is_empty() {
                match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                    Some(Ok(frame)) => this.read = frame.into_data().unwrap_or_default(),
                    Some(Err(error)) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                    None => return Poll::Ready(None),
                }
                continue;
            }
            let max_bytes = room.min(this.read.len() as u64) as usize;
            let (num_bytes, due) = this.throttle.reserve(max_bytes, this.delay);
            let bytes = this.read.split_to(num_bytes);
            let Some(due) = due else { return this.emit(bytes) };
            if due > Instant::now() {
                this.sleep = Some(Box::pin(tokio::time::sleep_until(due.into())));
            }
            this.due = Some((bytes, due));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.len == Some(self.sent)
    }

    fn size_hint(&self) -> SizeHint {
        match self.len {
            Some(len) => SizeHint::with_exact(len - self.sent),
            None => self.inner.size_hint(),
        }
    }
}
