//! The body of a request on its way in: counted while it is held, and known to be read or not.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::Version,
};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{runtime::Handle, time::timeout};

/// Most frames of a body nobody reads that are taken, if they are there, to keep its connection.
const MAX_LEFT_FRAMES: usize = 16;

/// How long an h2 stream takes of a body nobody reads. Closed at once, it would be forgotten while
/// frames are on their way, and each of those counts as the caller's mistake: a hundred refusals
/// would end the connection, and what else it carries.
const LEFT_STREAM: Duration = Duration::from_secs(1);

/// Most bytes that it takes.
const MAX_LEFT_BYTES: usize = 128 << 10;

/// Bytes of bodies that are held at once, by all requests of a process.
#[derive(Debug)]
pub(super) struct Bodies {
    max_bytes: usize,
    held_bytes: AtomicUsize,
}

/// There is no room for more of a body.
#[derive(Debug, thiserror::Error)]
#[error("bodies of {max_bytes} bytes are held already")]
pub(crate) struct NoRoom {
    pub(crate) max_bytes: usize,
}

impl Bodies {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, held_bytes: AtomicUsize::new(0) }
    }

    fn hold(&self, num_bytes: usize) -> Result<(), NoRoom> {
        let held_bytes = self.held_bytes.fetch_add(num_bytes, Relaxed);
        if num_bytes <= self.max_bytes.saturating_sub(held_bytes) {
            return Ok(());
        }
        self.release(num_bytes);
        Err(NoRoom { max_bytes: self.max_bytes })
    }

    fn release(&self, num_bytes: usize) {
        self.held_bytes.fetch_sub(num_bytes, Relaxed);
    }
}

/// What becomes of a body; knows it when whoever had it has let it go.
#[derive(Debug)]
pub(super) struct Upload(Option<Arc<AtomicBool>>);

impl Upload {
    /// Watches the body of `request`.
    pub(super) fn watch(request: Request, bodies: &Arc<Bodies>) -> (Request, Self) {
        if request.body().is_end_stream() {
            return (request, Self(None));
        }
        let unread = Arc::new(AtomicBool::new(false));
        let is_stream = request.version() == Version::HTTP_2;
        let request = request.map(|body| {
            let bodies = bodies.clone();
            let unread = unread.clone();
            Body::new(Watched { body, is_stream, ended: false, held_bytes: 0, bodies, unread })
        });
        (request, Self(Some(unread)))
    }

    /// Whether the body was let go before its end had come.
    pub(super) fn is_unread(&self) -> bool {
        self.0.as_ref().is_some_and(|unread| unread.load(Relaxed))
    }
}

#[derive(Debug)]
struct Watched {
    body: Body,
    /// Of h2, which closes it apart from its connection.
    is_stream: bool,
    ended: bool,
    held_bytes: usize,
    bodies: Arc<Bodies>,
    unread: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let num_bytes = frame.data_ref().map_or(0, Bytes::len);
                if let Err(error) = self.bodies.hold(num_bytes) {
                    return Poll::Ready(Some(Err(axum::Error::new(error))));
                }
                self.held_bytes += num_bytes;
                self.ended = self.body.is_end_stream();
            }
            Some(Err(_)) => {}
            None => self.ended = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.bodies.release(self.held_bytes);
        let is_unread = !self.ended && !is_here(&mut self.body);
        self.unread.store(is_unread, Relaxed);
        if is_unread
            && self.is_stream
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(timeout(LEFT_STREAM, take(std::mem::take(&mut self.body))));
        }
    }
}

/// Takes the rest of `body`, up to `MAX_LEFT_BYTES`.
async fn take(mut body: Body) {
    let mut num_bytes = 0;
    while num_bytes <= MAX_LEFT_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        num_bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// Whether all the rest of `body` has come; takes it.
fn is_here(body: &mut Body) -> bool {
    let cx = &mut Context::from_waker(Waker::noop());
    for _ in 0..MAX_LEFT_FRAMES {
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(None) => return true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
        }
    }
    false
}
