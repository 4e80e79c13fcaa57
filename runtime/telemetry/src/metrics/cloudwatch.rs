//! Metrics as lines on standard output from which CloudWatch makes its own: for functions that nobody
//! scrapes.
//!
//! A line has what changed since the one before, of one set of labels. Those of the process are left
//! out: the platform knows them.
//!
//! # Source
//!
//! <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>;
//! `Values` and `Counts` are as AWS' exporter for OpenTelemetry writes them.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};

use super::{BucketCount, Definition, Kind, METRICS, Sink, every};

/// How often lines are written by themselves: CloudWatch counts by the minute.
const INTERVAL: Duration = Duration::from_secs(60);

static LINES: OnceLock<Mutex<Lines>> = OnceLock::new();

/// Writes the metrics of `function` from now on, under `namespace`. Only the first call counts, and
/// only within a runtime of tokio.
pub fn start(function: &'static str, namespace: String) {
    let lines = Lines { function, namespace, past: HashMap::new() };
    if LINES.set(Mutex::new(lines)).is_err() {
        return;
    }
    tokio::spawn(async {
        let mut interval = every(INTERVAL);
        loop {
            interval.tick().await;
            flush();
        }
    });
}

/// Writes what has changed; nothing if nobody has asked for it.
pub fn flush() {
    let Some(lines) = LINES.get() else { return };
    let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
    let written = lines.since_last(|changes| METRICS.read(changes), SystemTime::now());
    // Like a line of the log: whoever closed the pipe does not want it.
    let _ = crate::log::Stdout::default().write_all(written.as_bytes());
}

/// What was written, and for whom.
#[derive(Debug)]
struct Lines {
    function: &'static str,
    namespace: String,
    past: HashMap<Series, Past>,
}

/// Names and values.
type Labels = Vec<(String, String)>;
type Series = (&'static str, Labels);

/// What a series said before.
#[derive(Debug, Default)]
struct Past {
    number: f64,
    counts: Vec<u64>,
}

impl Lines {
    /// The lines for what `read` tells that is new.
    fn since_last(&mut self, read: impl FnOnce(&mut Changes<'_>), now: SystemTime) -> String {
        let mut changes = Changes {
            past: &mut self.past,
            definition: &super::ALL[0],
            by_labels: BTreeMap::new(),
        };
        read(&mut changes);
        let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let by_labels = changes.by_labels;
        by_labels.iter().map(|(labels, changed)| self.line(millis, labels, changed)).collect()
    }

    fn line(&self, millis: u64, labels: &Labels, changed: &[(&Definition, Value)]) -> String {
        let names = labels.iter().map(|(name, _)| name.as_str());
        let dimensions: Vec<&str> = ["function"].into_iter().chain(names).collect();
        let metrics = changed
            .iter()
            .map(|(definition, _)| json!({"Name": definition.name, "Unit": unit(definition)}));
        let mut line = Map::new();
        line.insert(
            "_aws".to_owned(),
            json!({
                "Timestamp": millis,
                "CloudWatchMetrics": [{
                    "Namespace": self.namespace,
                    "Dimensions": [dimensions],
                    "Metrics": metrics.collect::<Vec<_>>(),
                }],
            }),
        );
        line.insert("function".to_owned(), self.function.into());
        line.extend(labels.iter().map(|(name, value)| (name.clone(), value.as_str().into())));
        let values = changed.iter().map(|(definition, value)| (definition.name, value));
        line.extend(values.map(|(name, value)| (name.to_owned(), value.clone())));
        format!("{}\n", Value::Object(line))
    }
}

/// In CloudWatch's words.
fn unit(definition: &Definition) -> &'static str {
    match definition.unit() {
        Some("seconds") => "Seconds",
        Some("bytes") => "Bytes",
        None if definition.kind == Kind::Gauge => "None",
        _ => "Count",
    }
}

/// Gathers what is not as it was.
struct Changes<'lines> {
    past: &'lines mut HashMap<Series, Past>,
    definition: &'static Definition,
    by_labels: BTreeMap<Labels, Vec<(&'static Definition, Value)>>,
}

impl Changes<'_> {
    fn past(&mut self, labels: &[(&str, &str)]) -> (Labels, &mut Past) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let labels: Labels = labels.iter().map(owned).collect();
        let past = self.past.entry((self.definition.name, labels.clone())).or_default();
        (labels, past)
    }

    fn add(&mut self, labels: Labels, value: Value) {
        self.by_labels.entry(labels).or_default().push((self.definition, value));
    }
}

impl Sink for Changes<'_> {
    fn begin(&mut self, definition: &'static Definition) {
        self.definition = definition;
    }

    fn number(&mut self, labels: &[(&str, &str)], value: f64) {
        let is_counter = self.definition.kind == Kind::Counter;
        let (labels, past) = self.past(labels);
        let before = std::mem::replace(&mut past.number, value);
        if value != before {
            self.add(labels, json!(if is_counter { value - before } else { value }));
        }
    }

    fn histogram(&mut self, labels: &[(&str, &str)], buckets: &[BucketCount], sum: f64) {
        let (labels, past) = self.past(labels);
        let sum = sum - std::mem::replace(&mut past.number, sum);
        past.counts.resize(buckets.len(), 0);
        let mut lower = 0.0;
        let (mut values, mut counts) = (Vec::new(), Vec::new());
        for (BucketCount { bound, count, .. }, before) in buckets.iter().zip(&mut past.counts) {
            let new = count - std::mem::replace(before, *count);
            if new > 0 {
                values.push(if bound.is_finite() { (lower + bound) / 2.0 } else { lower });
                counts.push(new);
            }
            lower = *bound;
        }
        let count: u64 = counts.iter().sum();
        // Of those in one bucket the mean is known, and of one alone all.
        if let [value] = &mut values[..] {
            *value = sum / count as f64;
        }
        if let (Some(least), Some(most)) = (values.first(), values.last()) {
            let value = json!({
                "Values": values, "Counts": counts, "Count": count, "Sum": sum, "Min": least, "Max": most,
            });
            self.add(labels, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Counter, Family, Gauge, Histogram,
            tests::{FETCHED, WAIT},
        },
        *,
    };

    const UP: Definition =
        Definition { name: "up", help: "Or not.", kind: Kind::Gauge, labels: &["store"] };

    fn lines() -> Lines {
        Lines { function: "predict", namespace: "Edge".to_owned(), past: HashMap::new() }
    }

    fn parsed(lines: &str) -> Vec<Value> {
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_has_the_metrics_of_its_labels() {
        let fetched: Family<Counter, 1> = Family::new(&FETCHED, &[]);
        let up: Family<Gauge, 1> = Family::new(&UP, &[]);
        fetched.with(["s3"]).add(5);
        up.with(["s3"]).set(1.0);
        let now = UNIX_EPOCH + Duration::from_millis(1500);
        let written = lines().since_last(
            |changes| {
                fetched.read(changes);
                up.read(changes);
            },
            now,
        );
        let expected = json!({
            "_aws": {
                "Timestamp": 1500,
                "CloudWatchMetrics": [{
                    "Namespace": "Edge",
                    "Dimensions": [["function", "store"]],
                    "Metrics": [
                        {"Name": "fetched_bytes_total", "Unit": "Bytes"},
                        {"Name": "up", "Unit": "None"},
                    ],
                }],
            },
            "function": "predict",
            "store": "s3",
            "fetched_bytes_total": 5.0,
            "up": 1.0,
        });
        assert_eq!(parsed(&written), [expected]);
    }

    #[test]
    fn what_was_written_is_not_written_again() {
        let fetched: Family<Counter, 1> = Family::new(&FETCHED, &[]);
        let up: Family<Gauge, 1> = Family::new(&UP, &[]);
        let mut lines = lines();
        let mut written = || {
            let read = |changes: &mut Changes<'_>| {
                fetched.read(changes);
                up.read(changes);
            };
            parsed(&lines.since_last(read, UNIX_EPOCH))
        };
        fetched.with(["s3"]).add(5);
        up.with(["hub"]).set(1.0);
        assert_eq!(written().len(), 2);
        assert!(written().is_empty());
        fetched.with(["s3"]).add(2);
        assert_eq!(written()[0]["fetched_bytes_total"], 2.0);
        up.with(["hub"]).set(0.0);
        assert_eq!(written()[0]["up"], 0.0);
    }

    #[test]
    fn observations_are_told_as_well_as_their_buckets_know_them() {
        let wait: Family<Histogram, 0> = Family::new(&WAIT, &[1.0, 2.0]);
        let mut lines = lines();
        let mut written = || parsed(&lines.since_last(|changes| wait.read(changes), UNIX_EPOCH));
        assert!(written().is_empty());
        wait.with([]).observe(1.25);
        let one = json!({
            "Values": [1.25], "Counts": [1], "Count": 1, "Sum": 1.25, "Min": 1.25, "Max": 1.25,
        });
        assert_eq!(written()[0]["wait_seconds"], one);
        for value in [0.25, 0.5, 1.25, 4.0] {
            wait.with([]).observe(value);
        }
        let some = json!({
            "Values": [0.5, 1.5, 2.0], "Counts": [2, 1, 1], "Count": 4, "Sum": 6.0, "Min": 0.5, "Max": 2.0,
        });
        assert_eq!(written()[0]["wait_seconds"], some);
        assert!(written().is_empty());
    }
}
