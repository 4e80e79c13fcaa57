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

use opentelemetry_otlp::{
    ExporterBuildError, WithHttpConfig, WithTonicConfig, tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{
    error::OTelSdkError,
    trace::{SpanData, SpanExporter},
};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

use super::Settings;
use crate::{
    Causes, METRICS,
    otlp::{self, Protocol},
};

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
    spans: VecDeque<SpanData>,
    /// To be told when all spans before them were sent, or dropped.
    flushes: Vec<oneshot::Sender<()>>,
}

impl Outbox {
    /// Starts the task that sends to `exporter`: only within a runtime of tokio.
    pub(super) fn start(exporter: impl SpanExporter + 'static, settings: &Settings) -> Self {
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
    pub(super) fn put(&self, spans: impl ExactSizeIterator<Item = SpanData>) {
        let num_spans = spans.len();
        let mut waiting = self.queue.lock();
        if waiting.spans.len() + num_spans > self.max_queue_size {
            drop(waiting);
            METRICS.spans_dropped_total.with([]).add(num_spans as u64);
            return;
        }
        waiting.spans.extend(spans);
        if waiting.spans.len() >= self.queue.max_batch_size {
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
}

struct Sender<E> {
    exporter: E,
    queue: Arc<Queue>,
    schedule_delay: Duration,
    export_timeout: Duration,
}

impl<E: SpanExporter> Sender<E> {
    /// Sends whole batches as soon as they are there; all that waits when it is time, or when somebody
    /// waits for it.
    async fn run(self) {
        let Self { queue, .. } = &self;
        loop {
            let is_time = timeout(self.schedule_delay, queue.is_due.notified()).await.is_err();
            let (mut num_due, flushes) = {
                let mut waiting = queue.lock();
                (waiting.spans.len(), mem::take(&mut waiting.flushes))
            };
            if !is_time && flushes.is_empty() {
                num_due -= num_due % queue.max_batch_size;
            }
            while num_due > 0 {
                let batch_size = num_due.min(queue.max_batch_size);
                num_due -= batch_size;
                let batch = queue.lock().spans.drain(..batch_size).collect();
                self.send(batch).await;
            }
            for done in flushes {
                let _ = done.send(());
            }
        }
    }

    /// Sends a batch, or drops it after the tries that the exporter makes. Says so when that changes.
    async fn send(&self, batch: Vec<SpanData>) {
        let num_spans = batch.len();
        let outcome = timeout(self.export_timeout, self.exporter.export(batch)).await;
        let outcome = outcome.unwrap_or(Err(OTelSdkError::Timeout(self.export_timeout)));
        let was_down = self.queue.is_down.swap(outcome.is_err(), Relaxed);
        match outcome {
            Ok(()) if was_down => tracing::info!("traces are sent again"),
            Ok(()) => {}
            Err(error) => {
                METRICS.spans_dropped_total.with([]).add(num_spans as u64);
                if !was_down {
                    tracing::warn!(exception = %Causes(&error), "traces cannot be sent");
                }
            }
        }
    }
}

/// The exporter that the environment asks for.
pub(super) fn exporter(
    function: &'static str,
    settings: &Settings,
) -> Result<impl SpanExporter + 'static, ExporterBuildError> {
    let builder = opentelemetry_otlp::SpanExporter::builder();
    let mut exporter = match settings.protocol {
        Protocol::Grpc => {
            let roots = ClientTlsConfig::new().with_enabled_roots();
            builder.with_tonic().with_tls_config(roots).build()
        }
        Protocol::HttpProtobuf => {
            let client = otlp::http_client()
                .map_err(|error| ExporterBuildError::InternalFailure(error.to_string()))?;
            builder.with_http().with_http_client(client).build()
        }
    }?;
    exporter.set_resource(&otlp::resource(function, &settings.on_lambda));
    Ok(exporter)
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkResult;
    use tokio::time::sleep;

    use super::*;
    use crate::trace::tests::{settings, span};

    /// Takes spans, unless it is told to hang.
    #[derive(Debug, Clone, Default)]
    struct Collector {
        batches: Arc<Mutex<Vec<usize>>>,
        hangs: Arc<AtomicBool>,
    }

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            if self.hangs.load(Relaxed) {
                std::future::pending::<()>().await;
            }
            self.batches.lock().unwrap().push(batch.len());
            Ok(())
        }
    }

    impl Collector {
        fn batches(&self) -> Vec<usize> {
            self.batches.lock().unwrap().clone()
        }
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn spans_go_together_when_it_is_time_or_there_are_enough() {
        let collector = Collector::default();
        let outbox = Outbox::start(collector.clone(), &settings());
        outbox.put([span(), span()].into_iter());
        sleep(Duration::from_secs(4)).await;
        assert!(collector.batches().is_empty());
        sleep(Duration::from_secs(2)).await;
        assert_eq!(collector.batches(), [2]);
        outbox.put(vec![span(); 7].into_iter());
        sleep(Duration::from_millis(1)).await;
        assert_eq!(collector.batches(), [2, 3, 3], "and one waits for more");
        outbox.flush(LONG).await;
        assert_eq!(collector.batches(), [2, 3, 3, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_dropped_and_counted() {
        let collector = Collector::default();
        collector.hangs.store(true, Relaxed);
        let outbox = Outbox::start(collector.clone(), &settings());
        let dropped = METRICS.spans_dropped_total.with([]);
        let before = dropped.value();
        for _ in 0..10 {
            outbox.put(vec![span(); 4].into_iter());
        }
        assert_eq!(dropped.value() - before, 40 - 8);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_collector_that_is_gone() {
        let collector = Collector::default();
        collector.hangs.store(true, Relaxed);
        let outbox = Outbox::start(collector.clone(), &settings());
        outbox.put([span()].into_iter());
        let started = tokio::time::Instant::now();
        outbox.flush(Duration::from_secs(1)).await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
        sleep(settings().export_timeout).await;
        // Known by now.
        outbox.put([span()].into_iter());
        let started = tokio::time::Instant::now();
        outbox.flush(Duration::from_secs(1)).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        collector.hangs.store(false, Relaxed);
        sleep(settings().export_timeout).await;
        outbox.put([span()].into_iter());
        outbox.flush(LONG).await;
        assert!(!collector.batches().is_empty(), "and is asked again");
    }
}
