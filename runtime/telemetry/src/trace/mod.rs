//! Traces: the spans of requests, of the batches that they share, and of a start, sent by OTLP.
//!
//! ```text
//! predict                                       a request, as whoever called it began the trace
//! ├─ tokenization
//! ├─ queue
//! ├─ model_inference ───────────> batch         links, both ways: requests share a forward pass
//! └─ postprocessing
//!
//! cold_start                                    a trace of its own
//! ├─ open
//! └─ ...
//! ```
//!
//! Spans are made when a request has ended, from what is known of it by then: one that is not kept
//! costs its ids. Nothing waits for a collector.

mod context;
mod exporter;
mod settings;
mod span;

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use opentelemetry::trace::TraceState;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

pub use self::{
    context::TraceContext,
    settings::{Sampler, Settings},
};
use self::{
    exporter::{Collector, Exporter, Outbox},
    span::{Parent, Span, Spans, Value},
};
use crate::{Facts, OtlpError, Stage};

static TRACER: OnceLock<Tracer> = OnceLock::new();

/// Makes spans, and sends those that are kept.
#[derive(Debug)]
struct Tracer {
    function: &'static str,
    settings: Settings,
    outbox: Outbox,
}

/// Sends the traces of `function` as `settings` say. Only the first call counts, and only within a
/// runtime of tokio.
///
/// # Errors
///
/// [`OtlpError`] if the environment names a collector that cannot be one.
pub fn start(function: &'static str, settings: Settings) -> Result<(), OtlpError> {
    let collector = Collector::new(function, &settings)?;
    let _ = TRACER.set(Tracer::new(function, settings, collector));
    Ok(())
}

/// Waits until all spans that have ended were sent, but no longer than `limit`, and not at all while
/// nobody takes them.
pub async fn flush(limit: Duration) {
    if let Some(tracer) = TRACER.get() {
        tracer.outbox.flush(limit).await;
    }
}

/// The span of a request that has begun.
#[derive(Debug)]
pub struct RequestSpan {
    tracer: &'static Tracer,
    context: TraceContext,
    parent: Option<TraceContext>,
    /// `tracestate`
    state: String,
    clock: Clock,
}

/// What is known of a request over HTTP besides [`Facts`].
#[derive(Debug, Clone, Copy)]
pub struct HttpFacts<'a> {
    /// `POST`
    pub method: &'a str,
    /// `/v1/models/{model}`
    pub route: &'a str,
    /// 200
    pub status: u16,
    /// `x-request-id`
    pub request_id: &'a str,
}

impl RequestSpan {
    /// Begins with the headers `traceparent` and `tracestate` of a request; `None` if traces are not
    /// sent.
    #[must_use]
    pub fn begin(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<Self> {
        let tracer = TRACER.get()?;
        Some(tracer.begin(traceparent, tracestate))
    }

    /// Its place in its trace.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        self.context
    }

    /// Ends now, and is sent if its trace is kept.
    pub fn end(self, http: HttpFacts<'_>, facts: &Facts) {
        if self.context.is_sampled {
            let mut spans = self.tracer.spans();
            self.write(http, facts, &mut spans);
            self.tracer.outbox.put(spans);
        }
    }

    fn write(&self, http: HttpFacts<'_>, facts: &Facts, spans: &mut Spans) {
        let Self { tracer, context, clock, .. } = self;
        let ended = Instant::now();
        let base = Span { state: &self.state, ..span(tracer.function, *context, [0; 2]) };

        let error_type = (http.status >= 500).then(|| http.status.to_string());
        let mut attributes = Vec::with_capacity(10);
        attributes.extend([
            ("http.request.method", Value::Text(http.method)),
            ("http.route", Value::Text(http.route)),
            ("http.response.status_code", Value::Number(http.status.into())),
            ("request_id", Value::Text(http.request_id)),
        ]);
        if let Some(error_type) = &error_type {
            attributes.push(("error.type", Value::Text(error_type)));
        }
        if facts.asked.is_some() {
            attributes.extend([
                ("num_texts", number(facts.num_texts)),
                ("text_length", number(facts.text_length)),
                ("num_tokens", number(facts.num_tokens)),
            ]);
            if let Some(label) = &facts.label {
                attributes.push(("prediction_label", Value::Text(label)));
            }
            attributes.extend(model(facts));
        }
        spans.push(Span {
            parent: self.parent.map(|parent| Parent { span_id: parent.span_id, is_remote: true }),
            is_server: true,
            start: clock.nanos(clock.instant),
            end: clock.nanos(ended),
            attributes: &attributes,
            has_failed: error_type.is_some(),
            ..base
        });

        // Of several texts, the longest of each step: no step is longer than the request.
        let Some(mut start) = facts.asked else { return };
        let mut step = |name, duration: Option<Duration>, attributes: &[_], links: &[_]| {
            let end = duration.and_then(|duration| start.checked_add(duration));
            let end = end.unwrap_or(ended).min(ended);
            spans.push(Span {
                name,
                context: tracer.child(*context),
                parent: Some(Parent { span_id: context.span_id, is_remote: false }),
                start: clock.nanos(start),
                end: clock.nanos(end),
                attributes,
                links,
                ..base
            });
            start = end;
        };
        let num_tokens = [("num_tokens", number(facts.num_tokens))];
        step("tokenization", Some(facts.tokenization), &num_tokens, &[]);
        step("queue", Some(facts.queue), &[], &[]);
        let mut attributes = Vec::with_capacity(3);
        attributes.push(("batch_size", number(facts.batch_size)));
        attributes.extend(model(facts));
        step("model_inference", Some(facts.forward), &attributes, facts.batch.as_slice());
        step("postprocessing", None, &[], &[]);
    }
}

/// A forward pass that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Forward<'a> {
    /// Whose.
    pub model: &'a str,
    /// Of the model.
    pub version: &'a str,
    /// Texts.
    pub batch_size: usize,
    /// Tokens of these.
    pub num_tokens: usize,
    /// When it began.
    pub started: Instant,
    /// How long it took.
    pub duration: Duration,
    /// Whether it failed.
    pub failed: bool,
}

/// The span of a forward pass that the requests of `members` shared: a trace of its own, which names
/// them. `None` if none of theirs is kept.
pub fn batch(
    forward: Forward<'_>,
    members: impl Iterator<Item = TraceContext>,
) -> Option<TraceContext> {
    let tracer = TRACER.get()?;
    let mut spans = tracer.spans();
    let context = tracer.batch(forward, members, &mut spans)?;
    tracer.outbox.put(spans);
    Some(context)
}

/// The trace of a start that took `total`, until now.
pub(crate) fn cold_start(stages: &[Stage], total: Duration) {
    let Some(tracer) = TRACER.get() else { return };
    let context = tracer.root();
    if context.is_sampled {
        let mut spans = tracer.spans();
        tracer.cold_start(context, stages, total, &mut spans);
        tracer.outbox.put(spans);
    }
}

impl Tracer {
    fn new(function: &'static str, settings: Settings, exporter: impl Exporter) -> Self {
        let outbox = Outbox::start(exporter, &settings);
        Self { function, settings, outbox }
    }

    /// No spans, in the form in which they are sent.
    fn spans(&self) -> Spans {
        Collector::spans(self.settings.destination.protocol)
    }

    fn begin(&'static self, traceparent: Option<&str>, tracestate: Option<&str>) -> RequestSpan {
        let parent = traceparent.filter(|_| self.settings.takes_parents);
        let parent = parent.and_then(TraceContext::parse);
        let context = match parent {
            None => self.root(),
            Some(parent) => TraceContext {
                is_sampled: self.settings.sampler.keeps(parent.trace_id, Some(parent)),
                ..self.child(parent)
            },
        };
        let state = tracestate.filter(|_| parent.is_some());
        let state = state.and_then(|state| state.parse::<TraceState>().ok());
        let state = state.map(|state| state.header()).unwrap_or_default();
        RequestSpan { tracer: self, context, parent, state, clock: Clock::now() }
    }

    fn batch(
        &self,
        forward: Forward<'_>,
        members: impl Iterator<Item = TraceContext>,
        spans: &mut Spans,
    ) -> Option<TraceContext> {
        let mut members = members.filter(|member| member.is_sampled).peekable();
        members.peek()?;
        let context = TraceContext { is_sampled: true, ..self.root() };
        let attributes = [
            ("batch_size", number(forward.batch_size)),
            ("num_tokens", number(forward.num_tokens)),
            ("model", Value::Text(forward.model)),
            ("model_version", Value::Text(forward.version)),
        ];
        // Texts of one request come one behind the other.
        let mut links: Vec<TraceContext> = members.collect();
        links.dedup();
        let num_dropped = links.len().saturating_sub(self.settings.max_links);
        links.truncate(self.settings.max_links);
        let clock = Clock::now();
        let times = [forward.started, forward.started + forward.duration];
        spans.push(Span {
            attributes: &attributes,
            links: &links,
            num_dropped_links: num_dropped as u32,
            has_failed: forward.failed,
            ..span("batch", context, times.map(|time| clock.nanos(time)))
        });
        Some(context)
    }

    fn cold_start(
        &self,
        context: TraceContext,
        stages: &[Stage],
        total: Duration,
        spans: &mut Spans,
    ) {
        let clock = Clock::now();
        let started = clock.instant.checked_sub(total).unwrap_or(clock.instant);
        let times = |start, end| [start, end].map(|time| clock.nanos(time));
        spans.push(span("cold_start", context, times(started, clock.instant)));
        for stage in stages {
            let start = started + stage.start;
            let parent = Parent { span_id: context.span_id, is_remote: false };
            spans.push(Span {
                parent: Some(parent),
                ..span(stage.name, self.child(context), times(start, start + stage.duration))
            });
        }
    }

    /// A new trace.
    fn root(&self) -> TraceContext {
        let ids = RandomIdGenerator::default();
        let trace_id = u128::from_be_bytes(ids.new_trace_id().to_bytes());
        let is_sampled = self.settings.sampler.keeps(trace_id, None);
        self.child(TraceContext { trace_id, span_id: 0, is_sampled })
    }

    /// A new span in the trace of `parent`.
    fn child(&self, parent: TraceContext) -> TraceContext {
        let span_id = RandomIdGenerator::default().new_span_id();
        TraceContext { span_id: u64::from_be_bytes(span_id.to_bytes()), ..parent }
    }
}

/// A span without a parent, and with no more to it than this.
fn span(name: &'static str, context: TraceContext, [start, end]: [u64; 2]) -> Span<'static> {
    Span {
        name,
        context,
        state: "",
        parent: None,
        is_server: false,
        start,
        end,
        attributes: &[],
        links: &[],
        num_dropped_links: 0,
        has_failed: false,
    }
}

/// One moment on both clocks: spans have the time of day, but are measured by one that never jumps.
#[derive(Debug)]
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    /// Since 1970.
    fn nanos(&self, instant: Instant) -> u64 {
        let time = match instant.checked_duration_since(self.instant) {
            Some(after) => self.time + after,
            None => self.time - (self.instant - instant),
        };
        time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
    }
}

fn number(count: usize) -> Value<'static> {
    Value::Number(count as u64)
}

fn model(facts: &Facts) -> impl Iterator<Item = (&'static str, Value<'_>)> {
    let model = facts.model.as_deref().map(|model| ("model", Value::Text(model)));
    let version = facts.version.as_deref().map(|version| ("model_version", Value::Text(version)));
    model.into_iter().chain(version)
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, Status};
    use opentelemetry_sdk::trace::SpanData;

    use super::{span::span_context, *};

    pub(super) fn settings() -> Settings {
        let vars = [
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3"),
            ("OTEL_SPAN_LINK_COUNT_LIMIT", "2"),
        ];
        let var = |name: &str| vars.iter().find(|(known, _)| *known == name);
        let settings = Settings::from_vars(|name| var(name).map(|(_, value)| (*value).to_owned()));
        settings.unwrap().unwrap()
    }

    pub(super) fn spans(len: usize) -> Spans {
        let context = TraceContext { trace_id: 1, span_id: 2, is_sampled: true };
        let mut spans = Spans::bytes();
        (0..len).for_each(|_| spans.push(span("span", context, [0, 1])));
        spans
    }

    #[derive(Debug)]
    struct Nobody;

    impl Exporter for Nobody {
        async fn export(
            &self,
            _: Vec<Spans>,
        ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            Ok(())
        }
    }

    fn tracer() -> &'static Tracer {
        Box::leak(Box::new(Tracer::new("predict", settings(), Nobody)))
    }

    /// What `write` writes.
    fn written(write: impl FnOnce(&mut Spans)) -> Vec<SpanData> {
        let mut spans = Spans::data();
        write(&mut spans);
        match spans {
            Spans::Data(spans) => spans,
            Spans::Bytes(..) => Vec::new(),
        }
    }

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    const HTTP: HttpFacts<'_> =
        HttpFacts { method: "POST", route: "/predict", status: 200, request_id: "r-1" };

    fn attribute(span: &SpanData, name: &str) -> Option<String> {
        let attribute = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
        attribute.map(|attribute| attribute.value.as_str().into_owned())
    }

    fn length(span: &SpanData) -> Duration {
        span.end_time.duration_since(span.start_time).unwrap()
    }

    #[tokio::test]
    async fn a_request_has_a_span_for_each_step_of_its_texts() {
        let mut request = tracer().begin(Some(TRACE), Some("vendor=1,other=2"));
        // Half a second ago.
        request.clock.instant -= Duration::from_millis(500);
        request.clock.time -= Duration::from_millis(500);
        let (context, began) = (request.context(), request.clock.instant);
        let shared = TraceContext { trace_id: 5, span_id: 6, is_sampled: true };
        let facts = Facts {
            num_texts: 1,
            text_length: 13,
            num_tokens: 5,
            label: Some("POSITIVE".to_owned()),
            tokenization: Duration::from_millis(1),
            queue: Duration::from_millis(20),
            forward: Duration::from_millis(300),
            asked: Some(began + Duration::from_millis(10)),
            model: Some("sst2".into()),
            version: Some("abc".into()),
            batch_size: 4,
            batch: Some(shared),
        };
        let spans = written(|spans| request.write(HTTP, &facts, spans));
        let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!(
            names,
            ["predict", "tokenization", "queue", "model_inference", "postprocessing"]
        );
        let parent = TraceContext::parse(TRACE).unwrap();
        assert_eq!(spans[0].parent_span_id, SpanId::from(parent.span_id));
        assert!(spans[0].parent_span_is_remote);
        for (index, span) in spans.iter().enumerate() {
            let of = &span.span_context;
            assert_eq!(of.trace_id().to_bytes(), parent.trace_id.to_be_bytes());
            assert_eq!(of.trace_state().header(), "vendor=1,other=2");
            assert!(of.is_sampled());
            let is_first = index == 0;
            assert_eq!(of.span_id() == SpanId::from(context.span_id), is_first);
            assert_eq!(span.parent_span_id == SpanId::from(context.span_id), !is_first);
        }
        for (name, value) in [
            ("http.request.method", "POST"),
            ("http.route", "/predict"),
            ("http.response.status_code", "200"),
            ("request_id", "r-1"),
            ("text_length", "13"),
            ("num_tokens", "5"),
            ("prediction_label", "POSITIVE"),
            ("model", "sst2"),
            ("model_version", "abc"),
        ] {
            assert_eq!(attribute(&spans[0], name).as_deref(), Some(value), "{name}");
        }
        let [_, tokenization, queue, inference, postprocessing] = &spans[..] else { panic!() };
        assert_eq!(
            [tokenization, queue, inference].map(length),
            [1, 20, 300].map(Duration::from_millis)
        );
        assert_eq!(tokenization.start_time, spans[0].start_time + Duration::from_millis(10));
        assert_eq!(inference.end_time, postprocessing.start_time);
        assert_eq!(postprocessing.end_time, spans[0].end_time);
        assert_eq!(attribute(inference, "batch_size").as_deref(), Some("4"));
        let link = &inference.links[0].span_context;
        assert_eq!(*link, span_context(shared, TraceState::default()));
    }

    #[tokio::test]
    async fn a_request_without_texts_has_one_span_and_a_failure_is_one() {
        let request = tracer().begin(None, Some("vendor=1"));
        let http = HttpFacts { status: 503, ..HTTP };
        let spans = written(|spans| request.write(http, &Facts::default(), spans));
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].parent_span_id, SpanId::INVALID);
        assert_eq!(spans[0].span_context.trace_state().header(), "", "of no parent");
        assert_eq!(spans[0].status, Status::error(""));
        assert_eq!(attribute(&spans[0], "error.type").as_deref(), Some("503"));
    }

    #[tokio::test]
    async fn no_step_ends_after_its_request() {
        let request = tracer().begin(None, None);
        let facts = Facts {
            asked: Some(request.clock.instant),
            queue: Duration::from_secs(5),
            forward: Duration::MAX,
            ..Facts::default()
        };
        let spans = written(|spans| request.write(HTTP, &facts, spans));
        assert!(spans.iter().all(|span| span.end_time <= spans[0].end_time));
    }

    #[tokio::test]
    async fn what_nobody_understands_begins_a_trace_anew() {
        let [one, other] =
            ["nonsense", "00-0-0-01"].map(|parent| tracer().begin(Some(parent), None));
        assert!(one.parent.is_none() && other.parent.is_none());
        assert_ne!(one.context().trace_id, other.context().trace_id);
        let dropped = tracer().begin(Some(&TRACE.replace("-01", "-00")), None);
        assert!(dropped.parent.is_some() && !dropped.context().is_sampled);
    }

    #[tokio::test]
    async fn a_batch_names_the_requests_that_are_kept() {
        let member = |trace_id, is_sampled| TraceContext { trace_id, span_id: 1, is_sampled };
        let forward = Forward {
            model: "sst2",
            version: "abc",
            batch_size: 5,
            num_tokens: 40,
            started: Instant::now(),
            duration: Duration::from_millis(3),
            failed: false,
        };
        let of = |members: &[TraceContext]| {
            let mut context = None;
            let members = members.iter().copied();
            let spans = written(|spans| context = tracer().batch(forward, members, spans));
            (context, spans)
        };
        let (context, spans) = of(&[member(1, false)]);
        assert!(context.is_none() && spans.is_empty());
        let members = [member(1, true), member(1, true), member(2, false), member(3, true)];
        let (context, spans) = of(&members);
        let [span] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(span.span_context, span_context(context.unwrap(), TraceState::default()));
        let traces = |span: &SpanData| -> Vec<u128> {
            let links = span.links.iter();
            links.map(|link| u128::from_be_bytes(link.span_context.trace_id().to_bytes())).collect()
        };
        assert_eq!((traces(span), span.links.dropped_count), (vec![1, 3], 0));
        assert_eq!(length(span), Duration::from_millis(3));
        assert_eq!(attribute(span, "batch_size").as_deref(), Some("5"));
        let members = [1, 2, 3, 4].map(|trace_id| member(trace_id, true));
        let (_, spans) = of(&members);
        let span = &spans[0];
        assert_eq!((traces(span), span.links.dropped_count), (vec![1, 2], 2));
    }

    #[tokio::test]
    async fn a_start_is_a_trace_of_its_stages() {
        let millis = Duration::from_millis;
        let stages = [
            Stage { name: "open", start: millis(1), duration: millis(5) },
            Stage { name: "warm_up", start: millis(4), duration: millis(6) },
        ];
        let tracer = tracer();
        let spans = written(|spans| tracer.cold_start(tracer.root(), &stages, millis(12), spans));
        let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["cold_start", "open", "warm_up"]);
        assert_eq!(length(&spans[0]), millis(12));
        assert_eq!(spans[1].start_time, spans[0].start_time + millis(1));
        assert_eq!(length(&spans[2]), millis(6));
        for stage in &spans[1..] {
            assert_eq!(stage.parent_span_id, spans[0].span_context.span_id());
            assert_eq!(stage.span_context.trace_id(), spans[0].span_context.trace_id());
        }
    }
}
