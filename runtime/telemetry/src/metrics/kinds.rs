use std::{
    fmt,
    hash::BuildHasher,
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{BucketCount, Definition, Kind, Sink};

/// Most series of one metric; what would be more counts in one whose labels are all `other`.
pub const MAX_SERIES: usize = 1000;

/// The series of one metric, by the values of its `N` labels.
pub struct Family<M: 'static, const N: usize> {
    definition: &'static Definition,
    bounds: &'static [f64],
    hasher: DefaultHashBuilder,
    series: RwLock<HashTable<Series<M, N>>>,
}

struct Series<M: 'static, const N: usize> {
    labels: [Box<str>; N],
    metric: &'static M,
}

impl<M, const N: usize> Series<M, N> {
    fn is_of(&self, labels: &[&str; N]) -> bool {
        self.labels.iter().zip(labels).all(|(label, wanted)| **label == **wanted)
    }
}

#[allow(private_bounds, reason = "the three kinds are all there are")]
impl<M: Metric, const N: usize> Family<M, N> {
    pub(super) fn new(definition: &'static Definition, bounds: &'static [f64]) -> Self {
        let family = Self {
            definition,
            bounds,
            hasher: DefaultHashBuilder::default(),
            series: RwLock::default(),
        };
        // A gauge that nobody sets says nothing, while a counter says that nothing has happened.
        if N == 0 && definition.kind != Kind::Gauge {
            family.with([""; N]);
        }
        family
    }

    /// What it is called, and what it says.
    pub fn definition(&self) -> &'static Definition {
        self.definition
    }

    /// The series of `labels`; a new one if there is none. It is kept as long as the process runs.
    pub fn with(&self, labels: [&str; N]) -> &'static M {
        let hash = self.hasher.hash_one(labels);
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = series.find(hash, |series| series.is_of(&labels)) {
            return found.metric;
        }
        drop(series);
        self.insert(labels)
    }

    fn insert(&self, mut labels: [&str; N]) -> &'static M {
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        if series.len() >= MAX_SERIES {
            labels = ["other"; N];
        }
        // Somebody may have been faster.
        let hash = self.hasher.hash_one(labels);
        if let Some(found) = series.find(hash, |series| series.is_of(&labels)) {
            return found.metric;
        }
        let metric: &'static M = Box::leak(Box::new(M::new(self.bounds)));
        let added = Series { labels: labels.map(Box::from), metric };
        series.insert_unique(hash, added, |series| {
            self.hasher.hash_one(series.labels.each_ref().map(|label| &**label))
        });
        metric
    }

    pub(super) fn read(&self, sink: &mut dyn Sink) {
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        let mut sorted: Vec<&Series<M, N>> = series.iter().collect();
        sorted.sort_by(|a, b| a.labels.cmp(&b.labels));
        sink.begin(self.definition);
        for Series { labels, metric } in sorted {
            let labels =
                self.definition.labels.iter().copied().zip(labels.iter().map(|label| &**label));
            metric.read(sink, &labels.collect::<Vec<_>>());
        }
    }
}

impl<M, const N: usize> fmt::Debug for Family<M, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Family").field(&self.definition.name).finish()
    }
}

/// One series.
pub(super) trait Metric {
    /// `bounds` are those of the buckets, if it has any.
    fn new(bounds: &'static [f64]) -> Self;

    fn read(&self, sink: &mut dyn Sink, labels: &[(&str, &str)]);
}

/// A number that only grows.
#[derive(Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `number` more.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Relaxed);
    }

    /// What was counted.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Metric for Counter {
    fn new(_: &'static [f64]) -> Self {
        Self(AtomicU64::new(0))
    }

    fn read(&self, sink: &mut dyn Sink, labels: &[(&str, &str)]) {
        sink.number(labels, self.value() as f64);
    }
}

/// A number that goes up and down.
#[derive(Debug)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// It is `value` now.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// It is `number` more now.
    pub fn add(&self, number: f64) {
        add(&self.0, number);
    }

    /// What it is.
    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

impl Metric for Gauge {
    fn new(_: &'static [f64]) -> Self {
        Self(AtomicU64::new(0.0_f64.to_bits()))
    }

    fn read(&self, sink: &mut dyn Sink, labels: &[(&str, &str)]) {
        sink.number(labels, self.value());
    }
}

/// Observations, counted in buckets.
#[derive(Debug)]
pub struct Histogram {
    /// The largest value of each bucket but the last, which takes all others.
    bounds: &'static [f64],
    buckets: Box<[Bucket]>,
    sum: AtomicU64,
}

#[derive(Debug, Default)]
struct Bucket {
    count: AtomicU64,
    exemplar: Mutex<Option<Exemplar>>,
}

/// An observation of which there is a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exemplar {
    /// Whose.
    pub trace_id: u128,
    /// What was observed.
    pub value: f64,
    /// When.
    pub time: SystemTime,
}

impl Histogram {
    /// Counts `value`.
    pub fn observe(&self, value: f64) {
        self.observe_traced(value, None);
    }

    /// Counts `value`, which belongs to a trace that is kept.
    pub fn observe_traced(&self, value: f64, trace_id: Option<u128>) {
        let bucket = self.bounds.iter().take_while(|bound| value > **bound).count();
        let bucket = &self.buckets[bucket];
        bucket.count.fetch_add(1, Relaxed);
        add(&self.sum, value);
        // Nobody waits for an example.
        if let Some(trace_id) = trace_id
            && let Ok(mut exemplar) = bucket.exemplar.try_lock()
        {
            *exemplar = Some(Exemplar { trace_id, value, time: SystemTime::now() });
        }
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.count.load(Relaxed)).sum()
    }

    /// What they are together.
    pub fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Relaxed))
    }
}

impl Metric for Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| Bucket::default()).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0.0_f64.to_bits()) }
    }

    fn read(&self, sink: &mut dyn Sink, labels: &[(&str, &str)]) {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets = self.buckets.iter().zip(bounds).map(|(bucket, bound)| BucketCount {
            bound,
            count: bucket.count.load(Relaxed),
            exemplar: *bucket.exemplar.lock().unwrap_or_else(PoisonError::into_inner),
        });
        sink.histogram(labels, &buckets.collect::<Vec<_>>(), self.sum());
    }
}

fn add(bits: &AtomicU64, number: f64) {
    let sum = |bits| Some((f64::from_bits(bits) + number).to_bits());
    let _ = bits.fetch_update(Relaxed, Relaxed, sum);
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const DEFINITION: Definition = Definition {
        name: "lengths_bytes",
        help: "Of letters.",
        kind: Kind::Histogram,
        labels: &["to", "by"],
    };

    #[test]
    fn series_are_told_apart_by_all_labels() {
        let family: Family<Counter, 2> = Family::new(&DEFINITION, &[]);
        family.with(["a", "b"]).add(1);
        family.with(["a", "c"]).add(2);
        family.with(["ab", ""]).add(3);
        family.with(["a", "b"]).add(4);
        let value = |labels| family.with(labels).value();
        assert_eq!([value(["a", "b"]), value(["a", "c"]), value(["ab", ""])], [5, 2, 3]);
    }

    #[test]
    fn labels_that_never_end_take_no_memory() {
        let family: Family<Counter, 2> = Family::new(&DEFINITION, &[]);
        for number in 0..2 * MAX_SERIES {
            family.with([&number.to_string(), "x"]).add(1);
        }
        let series = family.series.read().unwrap();
        assert_eq!(series.len(), MAX_SERIES + 1);
        drop(series);
        assert_eq!(family.with(["other", "other"]).value(), MAX_SERIES as u64);
    }

    #[test]
    fn values_fall_into_the_first_bucket_that_holds_them() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 2.5, f64::INFINITY] {
            histogram.observe(value);
        }
        let counts = histogram.buckets.iter().map(|bucket| bucket.count.load(Relaxed));
        assert_eq!(counts.collect::<Vec<_>>(), [2, 2, 2]);
        assert_eq!(histogram.count(), 6);
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let family: Family<Histogram, 2> = Family::new(&DEFINITION, &[0.5]);
        let gauge = Gauge::new(&[]);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for index in 0..1000 {
                        family.with(["a", "b"]).observe_traced(1.0, Some(index));
                        gauge.add(1.0);
                    }
                });
            }
        });
        assert_eq!(family.with(["a", "b"]).count(), 4000);
        assert_eq!(family.with(["a", "b"]).sum(), 4000.0);
        assert_eq!(gauge.value(), 4000.0);
    }
}
