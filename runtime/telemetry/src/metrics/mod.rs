//! Every metric of a process: its name, unit, labels and meaning, in one table.
//!
//! ```text
//! METRICS.predictions_total.with(["sst2", "success"]).add(1)
//!         └ the field's name is the metric's
//! ```
//!
//! Label values are bounded: a family has at most [`MAX_SERIES`] of them, then all others count as
//! one. What is recorded costs a hash, a read lock and two atomic additions.

pub mod cloudwatch;
mod kinds;
mod process;
pub mod push;
mod text;

use std::{sync::LazyLock, time::Duration};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

pub use self::{
    kinds::{Counter, Exemplar, Family, Gauge, Histogram, MAX_SERIES},
    text::TextFormat,
};

/// What a metric is called, and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// As it is scraped; those of counters end in `_total`.
    pub name: &'static str,
    /// What it counts or measures.
    pub help: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What its series differ in.
    pub labels: &'static [&'static str],
}

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations, in buckets.
    Histogram,
}

/// Is told what metrics say: of each who it is, then its series.
trait Sink {
    /// What follows is of `definition`.
    fn begin(&mut self, definition: &'static Definition);

    /// A counter or a gauge.
    fn number(&mut self, labels: &[(&str, &str)], value: f64);

    /// A histogram; the last bucket has no bound.
    fn histogram(&mut self, labels: &[(&str, &str)], buckets: &[BucketCount], sum: f64);
}

/// How many observations are not above `bound`, but above that of the bucket before.
#[derive(Debug, Clone, Copy, PartialEq)]
struct BucketCount {
    bound: f64,
    count: u64,
    exemplar: Option<Exemplar>,
}

impl Definition {
    /// What its values are in: the last word of its name, if that is a unit.
    #[must_use]
    pub fn unit(&self) -> Option<&'static str> {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        let unit = name.rsplit('_').next()?;
        ["bytes", "requests", "seconds", "tokens"].contains(&unit).then_some(unit)
    }
}

/// Seconds that a caller waits: finer below 10 ms than what dashboards were made for.
const LATENCY: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Seconds of a step on the way.
const STEP: &[f64] =
    &[0.00001, 0.000_05, 0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];
const TOKENS: &[f64] = &[16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0];
const REQUESTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

const fn count(labels: &[&str]) -> usize {
    labels.len()
}

/// Writes the table down once: as a struct with a family a metric, and as a list of definitions.
macro_rules! metrics {
    ($($kind:ident $name:ident [$($label:ident),*] $(in $buckets:ident)? : $help:literal,)*) => {
        /// All metrics of a process; see [`ALL`] for what each says.
        #[derive(Debug)]
        #[allow(missing_docs, reason = "each has its help text")]
        pub struct Metrics {
            $(pub $name: Family<$kind, { count(&[$(stringify!($label)),*]) }>,)*
        }

        impl Metrics {
            fn new() -> Self {
                let mut definitions = ALL.iter();
                Self {
                    $($name: Family::new(
                        // The list has one for each, in this order.
                        definitions.next().unwrap_or(&ALL[0]),
                        metrics!(@buckets $($buckets)?),
                    ),)*
                }
            }

            /// Tells `sink` what all of them say.
            fn read(&self, sink: &mut dyn Sink) {
                $(self.$name.read(sink);)*
            }
        }

        /// What a process says of itself, besides [`process::ALL`](PROCESS).
        pub const ALL: &[Definition] = &[
            $(Definition {
                name: stringify!($name),
                help: $help,
                kind: Kind::$kind,
                labels: &[$(stringify!($label)),*],
            },)*
        ];
    };
    (@buckets) => { &[] };
    (@buckets $buckets:ident) => { $buckets };
}

metrics! {
    Counter auth_failures_total [reason]: "Requests whose token was refused.",
    Gauge gpu_memory_allocated_bytes []: "Memory of the GPU that this process has for its model.",
    Gauge gpu_memory_bytes []: "All memory of the GPU.",
    Histogram http_request_duration_seconds [method, route] in LATENCY:
        "From the head of a request to its answer.",
    Counter http_requests_total [method, route, status]: "Requests that were answered.",
    Histogram inference_batch_requests [] in REQUESTS: "Texts in a forward pass.",
    Histogram inference_batch_tokens [] in TOKENS: "Tokens in a forward pass.",
    Histogram inference_busy_seconds [] in LATENCY:
        "From a forward pass on an idle engine until it is idle again.",
    Gauge inference_cold_start_seconds [stage]: "What the start of the process took, by its stages.",
    Histogram inference_forward_seconds [] in LATENCY: "A forward pass.",
    Gauge inference_max_batch_tokens []: "Most tokens of a forward pass.",
    Histogram inference_queue_wait_seconds [] in STEP:
        "How long a text waited for its forward pass.",
    Histogram inference_tokenization_seconds [] in STEP: "From a text to token ids.",
    Counter inference_truncated_total []: "Texts of which a part was cut off.",
    Counter model_load_failures_total []: "Times that the model could not be loaded.",
    Gauge model_info [model, version, digest]: "1 for the model that answers, 0 for those before it.",
    Histogram prediction_latency_seconds [model] in LATENCY:
        "From the arrival of a text to what the model says of it.",
    Counter predictions_total [model, status]: "Texts that reached the model.",
    Gauge queue_length []: "Texts that wait for a forward pass.",
    Counter rate_limited_total [role]: "Requests over a limit of their role.",
    Counter redis_failures_total []: "Requests that Redis did not answer in time.",
    Gauge redis_up []: "Whether Redis, if it is set, answers.",
    Counter spans_dropped_total []: "Spans that were not sent: too many waited, or nobody took them.",
    Counter log_lines_dropped_total []: "Lines of the log that were not written: nobody read them.",
    Counter weights_fetched_bytes_total [store]: "Bytes of models that were fetched.",
}

/// Those of the process as the system sees it.
pub const PROCESS: &[Definition] = process::ALL;

/// The metrics of this process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// All metrics as a page for Prometheus.
#[must_use]
pub fn scrape(format: TextFormat) -> String {
    let mut writer = text::Writer::new(format);
    METRICS.read(&mut writer);
    process::read(&mut writer);
    writer.finish()
}

/// Ticks after each `period`; what came too late puts off the next.
fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    pub(super) const FETCHED: Definition = Definition {
        name: "fetched_bytes_total",
        help: "Much.",
        kind: Kind::Counter,
        labels: &["store"],
    };
    pub(super) const WAIT: Definition =
        Definition { name: "wait_seconds", help: "Long.", kind: Kind::Histogram, labels: &[] };

    #[test]
    fn names_say_kinds_and_units_once() {
        let all: Vec<&Definition> = ALL.iter().chain(PROCESS).collect();
        let names: BTreeSet<&str> = all.iter().map(|definition| definition.name).collect();
        assert_eq!(names.len(), all.len());
        for definition in all {
            let is_total = definition.name.ends_with("_total");
            assert_eq!(is_total, definition.kind == Kind::Counter, "{definition:?}");
            assert!(definition.help.ends_with('.'), "{definition:?}");
            if definition.kind == Kind::Histogram {
                assert!(definition.unit().is_some(), "{definition:?}");
            }
        }
        assert!(names.contains(METRICS.queue_length.definition().name));
    }
}
