//! One connection: what happens on it, and when that has taken too long.
//!
//! ```text
//!          a byte                headers whole              answer handed over
//! Idle ────────────────> Head ─────────────────> Busy ───────────────────────> Idle
//!  │ IDLE_TIMEOUT_MS      │ HEADER_TIMEOUT_MS     │ 2 · REQUEST_TIMEOUT_MS
//!  └──> Closing           └──> cut                └──> cut
//! ```
//!
//! The times are counted from the last step, and no byte prolongs them: who drips is cut like who is
//! silent. A request is answered within `REQUEST_TIMEOUT_MS`, see `request`; the second half is for
//! a caller that does not take its answer.

use std::{
    future::{pending, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    BoxError,
    body::{Body, Bytes},
};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper_util::server::graceful::GracefulConnection;
use telemetry::Causes;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, futures::Notified, watch},
    time::{Instant, sleep_until, timeout},
};

/// How long a connection is left alone before it is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// How long a newcomer waits before one more connection is told to make room.
const PATIENCE: Duration = Duration::from_millis(50);

/// What happens on a connection, told by its stream and its requests.
#[derive(Debug, Default)]
pub(super) struct Activity {
    begun: AtomicU32,
    ended: AtomicU32,
    head: AtomicBool,
    closing: AtomicBool,
    unread: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is asked.
    Idle,
    /// A part of a request has come.
    Head,
    /// Requests are being answered.
    Busy,
    /// It ends as soon as the caller lets it.
    Closing,
}

/// A step of an [`Activity`]: another step, another value.
type Step = (u32, Phase);

impl Activity {
    /// A request came whole, but for its body.
    pub(super) fn begin(self: &Arc<Self>) -> Exchange {
        self.head.store(false, Relaxed);
        self.begun.fetch_add(1, Relaxed);
        Exchange(self.clone())
    }

    /// Bytes came that are no request yet.
    pub(super) fn head(&self) {
        self.head.store(true, Relaxed);
    }

    /// From now on it only ends.
    pub(super) fn close(&self) {
        self.closing.store(true, Relaxed);
    }

    /// The caller is answered, and may send more of what nobody will read.
    pub(super) fn leave_unread(&self) {
        self.unread.store(true, Relaxed);
    }

    pub(super) fn is_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    pub(super) fn phase(&self) -> Phase {
        self.step().1
    }

    fn step(&self) -> Step {
        let begun = self.begun.load(Relaxed);
        let phase = if begun != self.ended.load(Relaxed) {
            Phase::Busy
        } else if self.closing.load(Relaxed) {
            Phase::Closing
        } else if self.head.load(Relaxed) {
            Phase::Head
        } else {
            Phase::Idle
        };
        (begun, phase)
    }
}

/// A request and its answer, until the answer is handed over or given up.
#[derive(Debug)]
pub(super) struct Exchange(Arc<Activity>);

impl Exchange {
    /// The body of the answer.
    pub(super) fn body(self, body: Body) -> Answer {
        Answer { body, _exchange: self }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Relaxed);
    }
}

/// The body of an answer; the request is over when it is dropped.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    _exchange: Exchange,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The connections of a process: how many there may be, and how long each may take.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) idle_timeout: Duration,
    pub(super) header_timeout: Duration,
    pub(super) request_timeout: Duration,
    places: Arc<Semaphore>,
    /// Where connections that have been idle for a while wait to be told to make room, the one
    /// idle longest first.
    crowded: Notify,
    stopping: watch::Sender<bool>,
}

impl Connections {
    pub(super) fn new(
        max_connections: usize,
        idle_timeout: Duration,
        header_timeout: Duration,
        request_timeout: Duration,
    ) -> Self {
        Self {
            idle_timeout,
            header_timeout,
            request_timeout,
            places: Arc::new(Semaphore::new(max_connections)),
            crowded: Notify::new(),
            stopping: watch::Sender::new(false),
        }
    }

    /// Waits for a place. If there is none, the connection idle longest makes room; if none is idle,
    /// the next one that is.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        loop {
            self.make_room();
            let place = self.places.clone().acquire_owned();
            // Who makes room may take its time; then the next one is asked as well.
            if let Ok(place) = timeout(PATIENCE, place).await {
                return place.ok();
            }
        }
    }

    /// Ends the connection that has been idle longest.
    pub(super) fn make_room(&self) {
        self.crowded.notify_one();
    }

    /// Ends those connections that are open now, each when its requests are answered. Those that
    /// come later are not waited for.
    pub(super) async fn stop(&self) {
        self.stopping.send_replace(true);
        self.stopping.closed().await;
    }

    fn allowed(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Idle => self.idle_timeout,
            Phase::Head | Phase::Closing => self.header_timeout,
            Phase::Busy => 2 * self.request_timeout,
        }
    }

    /// Drives `connection`, which `activity` tells of, to its end, or ends it.
    pub(super) fn attend<C: GracefulConnection<Error = BoxError>>(
        self: &Arc<Self>,
        connection: C,
        activity: Arc<Activity>,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + use<C> {
        let stopping = (!*self.stopping.borrow()).then(|| self.stopping.subscribe());
        let connections = self.clone();
        // In a box, since a future that hands another one on has room for it twice.
        let connection = Box::pin(connection);
        async move {
            connections.watch(connection, &activity, stopping).await;
            drop(place);
        }
    }

    async fn watch<C: GracefulConnection<Error = BoxError>>(
        &self,
        mut connection: Pin<Box<C>>,
        activity: &Activity,
        stopping: Option<watch::Receiver<bool>>,
    ) {
        let mut step = activity.step();
        let mut since = Instant::now();
        let mut wake = pin!(sleep_until(since + LOOK.min(self.allowed(step.1))));
        let mut crowded = pin!(None);
        let mut stop = pin!(stop(stopping));
        let mut stopped = None;
        loop {
            let event = tokio::select! {
                biased;
                event = poll_fn(|cx| match connection.as_mut().poll(cx) {
                    Poll::Ready(outcome) => Poll::Ready(Event::Ended(outcome)),
                    Poll::Pending if activity.step() != step => Poll::Ready(Event::Moved),
                    Poll::Pending => Poll::Pending,
                }) => event,
                receiver = &mut stop, if stopped.is_none() => Event::Stop(receiver),
                () = notified(crowded.as_mut()) => Event::MakeRoom,
                () = &mut wake => Event::Look,
            };
            let now = Instant::now();
            match event {
                Event::Ended(Ok(())) => return,
                Event::Ended(Err(error)) => {
                    tracing::debug!(exception = %Causes(&*error), "connection ended early");
                    return;
                }
                Event::Moved => {
                    let was_left_alone = crowded.is_some();
                    crowded.set(None);
                    (step, since) = (activity.step(), now);
                    if stopped.is_some() {
                        activity.close();
                        connection.as_mut().graceful_shutdown();
                    }
                    // A busy connection is looked at soon enough; setting its clock costs.
                    if was_left_alone || step.1 != Phase::Busy && self.allowed(step.1) < LOOK {
                        wake.as_mut().reset(now + LOOK.min(self.allowed(step.1)));
                    }
                }
                Event::Stop(receiver) => {
                    stopped = Some(receiver);
                    // A request that is on its way is told so when its head is whole.
                    if step.1 != Phase::Head {
                        activity.close();
                        connection.as_mut().graceful_shutdown();
                    }
                }
                Event::MakeRoom => {
                    activity.close();
                    connection.as_mut().graceful_shutdown();
                    // A caller that is gone does not answer the farewell of h2.
                    let _ = timeout(LOOK, connection).await;
                    return;
                }
                Event::Look => {
                    let due = since + self.allowed(step.1);
                    if now < due {
                        let is_idle = matches!(step.1, Phase::Idle | Phase::Head);
                        if is_idle && crowded.is_none() && now >= since + LOOK {
                            crowded.set(Some(self.crowded.notified()));
                        }
                        let look = if crowded.is_some() { due } else { due.min(now + LOOK) };
                        wake.as_mut().reset(look);
                    } else if step.1 == Phase::Idle {
                        activity.close();
                        connection.as_mut().graceful_shutdown();
                    } else {
                        tracing::debug!(phase = ?step.1, "connection cut");
                        return;
                    }
                }
            }
        }
    }
}

enum Event {
    Ended(Result<(), BoxError>),
    Moved,
    Stop(Result<watch::Receiver<bool>, watch::error::RecvError>),
    MakeRoom,
    Look,
}

/// Ends when connections are to end; never for one that came later. What it gives says, until it is
/// dropped, that the connection is still there.
async fn stop(
    stopping: Option<watch::Receiver<bool>>,
) -> Result<watch::Receiver<bool>, watch::error::RecvError> {
    match stopping {
        Some(mut stopping) => {
            stopping.wait_for(|stopping| *stopping).await?;
            Ok(stopping)
        }
        None => pending().await,
    }
}

async fn notified(crowded: Pin<&mut Option<Notified<'_>>>) {
    match crowded.as_pin_mut() {
        Some(notified) => notified.await,
        None => pending().await,
    }
}
