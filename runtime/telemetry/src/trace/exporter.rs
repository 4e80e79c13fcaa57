//! From ended spans to a collector: a queue, and a task that empties it.

use std::{
    sync::{
        Arc,
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
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::Settings;
use crate::{
    Causes, METRICS,
    otlp::{self, Protocol},
};

/// How often spans are tried to be sent, and the pause after the first time; then twice that.
const NUM_TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

enum Message {
    Span(Box<SpanData>),
    /// To be told when all spans before it were sent, or dropped.
    Flush(oneshot::Sender<()>),
}

/// Where ended spans go. Whoever ends one waits for nothing.
#[derive(Debug)]
pub(super) struct Outbox {
    messages: mpsc::Sender<Message>,
    /// Whether the last spans could not be sent.
    is_down: Arc<AtomicBool>,
}

impl Outbox {
    /// Starts the task that sends to `exporter`: only within a runtime of tokio.
    pub(super) fn start(exporter: impl SpanExporter + 'static, settings: &Settings) -> Self {
        let (messages, outgoing) = mpsc::channel(settings.max_queue_size);
        let is_down = Arc::new(AtomicBool::new(false));
        let sender = Sender {
            exporter,
            max_batch_size: settings.max_export_batch_size,
            schedule_delay: settings.schedule_delay,
            export_timeout: settings.export_timeout,
            is_down: is_down.clone(),
        };
        tokio::spawn(sender.run(outgoing));
        Self { messages, is_down }
    }

    /// Puts spans into the queue, together or not at all.
    pub(super) fn put(&self, spans: impl ExactSizeIterator<Item = SpanData>) {
        let num_spans = spans.len();
        match self.messages.try_reserve_many(num_spans) {
            Ok(places) => {
                places.zip(spans).for_each(|(place, span)| place.send(Message::Span(span.into())));
            }
            Err(_) => METRICS.spans_dropped_total.with([]).add(num_spans as u64),
        }
    }

    /// Waits until what is in the queue was sent, but no longer than `limit`, and not at all while
    /// nobody takes it.
    pub(super) async fn flush(&self, limit: Duration) {
        if self.is_down.load(Relaxed) {
            return;
        }
        let (done, flushed) = oneshot::channel();
        let _ = timeout(limit, async {
            if self.messages.send(Message::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        })
        .await;
    }
}

struct Sender<E> {
    exporter: E,
    max_batch_size: usize,
    schedule_delay: Duration,
    export_timeout: Duration,
    is_down: Arc<AtomicBool>,
}

impl<E: SpanExporter> Sender<E> {
    /// Sends what comes until nobody can send more.
    async fn run(self, mut messages: mpsc::Receiver<Message>) {
        while let Some(first) = messages.recv().await {
            let mut batch = Vec::new();
            let mut flushed = None;
            let gather = async {
                let mut next = Some(first);
                while let Some(message) = next {
                    match message {
                        Message::Span(span) => batch.push(*span),
                        Message::Flush(done) => flushed = Some(done),
                    }
                    if batch.len() >= self.max_batch_size || flushed.is_some() {
                        break;
                    }
                    next = messages.recv().await;
                }
            };
            let _ = timeout(self.schedule_delay, gather).await;
            if !batch.is_empty() {
                self.send(batch).await;
            }
            if let Some(done) = flushed {
                let _ = done.send(());
            }
        }
    }

    /// Sends a batch, or drops it after a few tries. Says so when that changes.
    async fn send(&self, batch: Vec<SpanData>) {
        let num_spans = batch.len();
        let outcome = timeout(self.export_timeout, self.try_to_send(batch)).await;
        let outcome = outcome.unwrap_or(Err(OTelSdkError::Timeout(self.export_timeout)));
        let was_down = self.is_down.swap(outcome.is_err(), Relaxed);
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

    async fn try_to_send(&self, batch: Vec<SpanData>) -> Result<(), OTelSdkError> {
        for number in 0..NUM_TRIES - 1 {
            if self.exporter.export(batch.clone()).await.is_ok() {
                return Ok(());
            }
            sleep(FIRST_PAUSE * 2_u32.pow(number)).await;
        }
        self.exporter.export(batch).await
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
    use std::sync::Mutex;

    use opentelemetry_sdk::error::OTelSdkResult;

    use super::*;
    use crate::trace::tests::{settings, span};

    /// Takes spans, unless it is told to fail.
    #[derive(Debug, Clone, Default)]
    struct Collector {
        batches: Arc<Mutex<Vec<usize>>>,
        fails: Arc<AtomicBool>,
        hangs: Arc<AtomicBool>,
    }

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            if self.hangs.load(Relaxed) {
                std::future::pending::<()>().await;
            }
            if self.fails.load(Relaxed) {
                return Err(OTelSdkError::InternalFailure("no room".to_owned()));
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
    async fn a_collector_that_comes_back_gets_what_it_missed() {
        let collector = Collector::default();
        collector.fails.store(true, Relaxed);
        let outbox = Outbox::start(collector.clone(), &settings());
        outbox.put([span()].into_iter());
        sleep(settings().schedule_delay + FIRST_PAUSE / 2).await;
        collector.fails.store(false, Relaxed);
        outbox.flush(LONG).await;
        assert_eq!(collector.batches(), [1]);
        assert!(!outbox.is_down.load(Relaxed));
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
