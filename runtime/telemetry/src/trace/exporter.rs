//! From ended spans to a collector: a queue, and a task that empties it.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry_otlp::{WithTonicConfig, tonic_types::transport::ClientTlsConfig};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use opentelemetry_sdk::trace::SpanExporter;
use prost::Message;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

use super::{
    Settings,
    span::{Spans, message},
};
use crate::{
    Causes, METRICS,
    otlp::{self, OtlpError, Post, Protocol},
};

/// How often spans are tried to be sent.
const NUM_TRIES: u32 = 4;

type SendError = Box<dyn std::error::Error + Send + Sync>;

/// Sends spans, and tries again where that may help.
pub(super) trait Exporter: Send + Sync + 'static {
    fn export(&self, batch: Vec<Spans>) -> impl Future<Output = Result<(), SendError>> + Send;
}

/// Where ended spans go. Whoever ends one waits for nothing.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: Arc<Queue>,
    max_queue_size: usize,
}

#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Told when there is a batch, or somebody waits for less.
    is_due: Notify,
    max_batch_size: usize,
    /// Whether the last spans could not be sent.
    is_down: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    spans: VecDeque<Spans>,
    num_spans: usize,
    /// To be told when all spans before them were sent, or dropped.
    flushes: Vec<oneshot::Sender<()>>,
}

impl Outbox {
    /// Starts the task that sends to `exporter`: only within a runtime of tokio.
    pub(super) fn start(exporter: impl Exporter, settings: &Settings) -> Self {
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            is_due: Notify::new(),
            max_batch_size: settings.max_export_batch_size,
            is_down: AtomicBool::new(false),
        });
        let sender = Sender {
            exporter,
            queue: queue.clone(),
            schedule_delay: settings.schedule_delay,
            export_timeout: settings.export_timeout,
        };
        tokio::spawn(sender.run());
        Self { queue, max_queue_size: settings.max_queue_size }
    }

    /// Puts spans into the queue, together or not at all.
    pub(super) fn put(&self, spans: Spans) {
        let mut waiting = self.queue.lock();
        if waiting.num_spans + spans.len() > self.max_queue_size {
            drop(waiting);
            METRICS.spans_dropped_total.with([]).add(spans.len() as u64);
            return;
        }
        waiting.num_spans += spans.len();
        waiting.spans.push_back(spans);
        if waiting.num_spans >= self.queue.max_batch_size {
            self.queue.is_due.notify_one();
        }
    }

    /// Waits until what is in the queue was sent, but no longer than `limit`, and not at all while
    /// nobody takes it.
    pub(super) async fn flush(&self, limit: Duration) {
        if self.queue.is_down.load(Relaxed) {
            return;
        }
        let (done, flushed) = oneshot::channel();
        self.queue.lock().flushes.push(done);
        self.queue.is_due.notify_one();
        let _ = timeout(limit, flushed).await;
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spans that have waited longest, as many as go together.
    fn take_batch(&self) -> Vec<Spans> {
        let mut waiting = self.lock();
        let mut batch = Vec::new();
        let mut num_spans = 0;
        while let Some(next) = waiting.spans.front() {
            num_spans += next.len();
            if num_spans > self.max_batch_size && !batch.is_empty() {
                break;
            }
            waiting.num_spans -= next.len();
            batch.extend(waiting.spans.pop_front());
        }
        batch
    }
}

struct Sender<E> {
    exporter: E,
    queue: Arc<Queue>,
    schedule_delay: Duration,
    export_timeout: Duration,
}

impl<E: Exporter> Sender<E> {
    /// Sends whole batches as soon as they are there; all that waits when it is time, or when somebody
    /// waits for it.
    async fn run(self) {
        let Self { queue, .. } = &self;
        loop {
            let is_time = timeout(self.schedule_delay, queue.is_due.notified()).await.is_err();
            let (num_waiting, flushes) = {
                let mut waiting = queue.lock();
                (waiting.num_spans, mem::take(&mut waiting.flushes))
            };
            let is_all = is_time || !flushes.is_empty();
            let mut num_due =
                if is_all { num_waiting } else { num_waiting - num_waiting % queue.max_batch_size };
            while num_due > 0 {
                let batch = queue.take_batch();
                num_due = num_due.saturating_sub(num_spans(&batch));
                self.send(batch).await;
            }
            for done in flushes {
                let _ = done.send(());
            }
        }
    }

    /// Sends a batch, or drops it after the tries that the exporter makes. Says so when that changes.
    async fn send(&self, batch: Vec<Spans>) {
        let num_spans = num_spans(&batch);
        let outcome = timeout(self.export_timeout, self.exporter.export(batch)).await;
        let outcome = outcome.unwrap_or_else(|elapsed| Err(elapsed.into()));
        let was_down = self.queue.is_down.swap(outcome.is_err(), Relaxed);
        match outcome {
            Ok(()) if was_down => tracing::info!("traces are sent again"),
            Ok(()) => {}
            Err(error) => {
                METRICS.spans_dropped_total.with([]).add(num_spans as u64);
                if !was_down {
                    tracing::warn!(exception = %Causes(&*error), "traces cannot be sent");
                }
            }
        }
    }
}

fn num_spans(batch: &[Spans]) -> usize {
    batch.iter().map(Spans::len).sum()
}

/// The exporter that the environment asks for.
#[derive(Debug)]
pub(super) enum Collector {
    Http(HttpExporter),
    /// Of the library, which tries again by itself.
    Grpc(opentelemetry_otlp::SpanExporter),
}

impl Collector {
    pub(super) fn new(function: &'static str, settings: &Settings) -> Result<Self, OtlpError> {
        match settings.destination.protocol {
            Protocol::HttpProtobuf => Ok(Self::Http(HttpExporter::new(function, settings)?)),
            Protocol::Grpc => {
                let builder = opentelemetry_otlp::SpanExporter::builder().with_tonic();
                let roots = ClientTlsConfig::new().with_enabled_roots();
                let exporter = builder.with_tls_config(roots).build();
                let mut exporter = exporter.map_err(OtlpError::new)?;
                exporter.set_resource(&otlp::resource(function, &settings.on_lambda));
                Ok(Self::Grpc(exporter))
            }
        }
    }

    /// Where ended spans begin to wait, in the form in which they are sent.
    pub(super) fn spans(protocol: Protocol) -> Spans {
        match protocol {
            Protocol::HttpProtobuf => Spans::bytes(),
            Protocol::Grpc => Spans::data(),
        }
    }
}

impl Exporter for Collector {
    async fn export(&self, batch: Vec<Spans>) -> Result<(), SendError> {
        match self {
            Self::Http(exporter) => exporter.export(&batch).await,
            Self::Grpc(exporter) => {
                let data = |spans| match spans {
                    Spans::Data(spans) => spans,
                    Spans::Bytes(..) => Vec::new(),
                };
                Ok(exporter.export(batch.into_iter().flat_map(data).collect()).await?)
            }
        }
    }
}

/// Joins spans that are bytes already.
#[derive(Debug)]
pub(super) struct HttpExporter {
    post: Post,
    /// What stands before the spans: a message `ResourceSpans` without its scope, and that scope.
    resource: Vec<u8>,
    scope: Vec<u8>,
}

/// `ExportTraceServiceRequest.resource_spans`
const RESOURCE_SPANS: u32 = 1;
/// `ResourceSpans.scope_spans`
const SCOPE_SPANS: u32 = 2;

impl HttpExporter {
    fn new(function: &'static str, settings: &Settings) -> Result<Self, OtlpError> {
        let resource = otlp::resource_message(function, &settings.on_lambda);
        let resource = ResourceSpans { resource: Some(resource), ..ResourceSpans::default() };
        let scope = ScopeSpans { scope: Some(otlp::scope_message()), ..ScopeSpans::default() };
        Ok(Self {
            post: Post::new(settings.destination.clone()).map_err(OtlpError::new)?,
            resource: resource.encode_to_vec(),
            scope: scope.encode_to_vec(),
        })
    }

    async fn export(&self, batch: &[Spans]) -> Result<(), SendError> {
        Ok(self.post.send(self.request(batch), NUM_TRIES).await?)
    }

    /// `ExportTraceServiceRequest`
    fn request(&self, batch: &[Spans]) -> Vec<u8> {
        let mut request = Vec::new();
        message(&mut request, RESOURCE_SPANS, |request| {
            request.extend_from_slice(&self.resource);
            message(request, SCOPE_SPANS, |request| {
                request.extend_from_slice(&self.scope);
                for spans in batch {
                    if let Spans::Bytes(bytes, _) = spans {
                        request.extend_from_slice(bytes);
                    }
                }
            });
        });
        request
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::trace::tests::{settings, spans};

    /// Takes spans, unless it is told to hang.
    #[derive(Debug, Clone, Default)]
    struct Listener {
        batches: Arc<Mutex<Vec<usize>>>,
        hangs: Arc<AtomicBool>,
    }

    impl Exporter for Listener {
        async fn export(&self, batch: Vec<Spans>) -> Result<(), SendError> {
            if self.hangs.load(Relaxed) {
                std::future::pending::<()>().await;
            }
            self.batches.lock().unwrap().push(num_spans(&batch));
            Ok(())
        }
    }

    impl Listener {
        fn batches(&self) -> Vec<usize> {
            self.batches.lock().unwrap().clone()
        }
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn spans_go_together_when_it_is_time_or_there_are_enough() {
        let collector = Listener::default();
        let outbox = Outbox::start(collector.clone(), &settings());
        outbox.put(spans(2));
        sleep(Duration::from_secs(4)).await;
        assert!(collector.batches().is_empty());
        sleep(Duration::from_secs(2)).await;
        assert_eq!(collector.batches(), [2]);
        (0..7).for_each(|_| outbox.put(spans(1)));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(collector.batches(), [2, 3, 3], "and one waits for more");
        outbox.flush(LONG).await;
        assert_eq!(collector.batches(), [2, 3, 3, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_dropped_and_counted() {
        let collector = Listener::default();
        collector.hangs.store(true, Relaxed);
        let outbox = Outbox::start(collector.clone(), &settings());
        let dropped = METRICS.spans_dropped_total.with([]);
        let before = dropped.value();
        for _ in 0..10 {
            outbox.put(spans(4));
        }
        assert_eq!(dropped.value() - before, 40 - 8);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_collector_that_is_gone() {
        let collector = Listener::default();
        collector.hangs.store(true, Relaxed);
        let outbox = Outbox::start(collector.clone(), &settings());
        outbox.put(spans(1));
        let started = tokio::time::Instant::now();
        outbox.flush(Duration::from_secs(1)).await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
        sleep(settings().export_timeout).await;
        // Known by now.
        outbox.put(spans(1));
        let started = tokio::time::Instant::now();
        outbox.flush(Duration::from_secs(1)).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        collector.hangs.store(false, Relaxed);
        sleep(settings().export_timeout).await;
        outbox.put(spans(1));
        outbox.flush(LONG).await;
        assert!(!collector.batches().is_empty(), "and is asked again");
    }
}
