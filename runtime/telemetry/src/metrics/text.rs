//! The page that Prometheus scrapes.
//!
//! # Source
//!
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/> (1.0), and
//! <https://prometheus.io/docs/instrumenting/exposition_formats/> (0.0.4).

use std::{
    fmt::{Display, Write},
    time::UNIX_EPOCH,
};

use super::{BucketCount, Definition, Exemplar, Kind, Sink};

/// How the page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// With units, and with exemplars that name traces.
    OpenMetrics,
    /// For whoever does not ask for the other.
    Prometheus,
}

impl TextFormat {
    /// The one that a scraper takes, by its `Accept`.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// Its media type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A page as far as it is written.
#[derive(Debug)]
pub(super) struct Writer {
    format: TextFormat,
    page: String,
    name: &'static str,
}

impl Writer {
    pub(super) fn new(format: TextFormat) -> Self {
        Self { format, page: String::with_capacity(16 << 10), name: "" }
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == TextFormat::OpenMetrics {
            self.page.push_str("# EOF\n");
        }
        self.page
    }

    /// How many observations are not above `bound`, and one of those above the bound before.
    fn bucket(
        &mut self,
        labels: &[(&str, &str)],
        bound: f64,
        count: u64,
        exemplar: Option<Exemplar>,
    ) {
        self.series("_bucket", labels, Some(bound));
        let _ = write!(self.page, " {count}");
        if self.format == TextFormat::OpenMetrics
            && let Some(Exemplar { trace_id, value, time }) = exemplar
        {
            let secs = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let _ = write!(self.page, " # {{trace_id=\"{trace_id:032x}\"}} {value} {secs:.3}");
        }
        self.page.push('\n');
    }

    /// One sample; `suffix` stands behind the metric's name.
    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.series(suffix, labels, None);
        self.line(format_args!(" {value}"));
    }

    fn series(&mut self, suffix: &str, labels: &[(&str, &str)], bound: Option<f64>) {
        self.page.push_str(self.name);
        self.page.push_str(suffix);
        let mut before = '{';
        for (name, value) in labels {
            self.page.push(before);
            before = ',';
            let _ = write!(self.page, "{name}=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.page.push_str("\\\\"),
                    '"' => self.page.push_str("\\\""),
                    '\n' => self.page.push_str("\\n"),
                    other => self.page.push(other),
                }
            }
            self.page.push('"');
        }
        if let Some(bound) = bound {
            self.page.push(before);
            before = ',';
            let _ = match bound.is_finite() {
                true => write!(self.page, "le=\"{bound:?}\""),
                false => write!(self.page, "le=\"+Inf\""),
            };
        }
        if before == ',' {
            self.page.push('}');
        }
    }

    fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.page, "{line}");
    }
}

impl Sink for Writer {
    fn begin(&mut self, definition: &'static Definition) {
        self.name = definition.name;
        let mut family = definition.name;
        let mut unit = None;
        if self.format == TextFormat::OpenMetrics {
            family = family.strip_suffix("_total").unwrap_or(family);
            unit = definition.unit();
        }
        let kind = match definition.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.line(format_args!("# HELP {family} {}", definition.help));
        self.line(format_args!("# TYPE {family} {kind}"));
        if let Some(unit) = unit {
            self.line(format_args!("# UNIT {family} {unit}"));
        }
    }

    fn number(&mut self, labels: &[(&str, &str)], value: f64) {
        self.sample("", labels, value);
    }

    fn histogram(&mut self, labels: &[(&str, &str)], buckets: &[BucketCount], sum: f64) {
        let mut total = 0;
        for BucketCount { bound, count, exemplar } in buckets {
            total += count;
            self.bucket(labels, *bound, total, *exemplar);
        }
        self.sample("_sum", labels, sum);
        self.sample("_count", labels, total);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{Counter, Family, Histogram},
        *,
    };

    const SECONDS: Definition = Definition {
        name: "wait_seconds",
        help: "How long.",
        kind: Kind::Histogram,
        labels: &["route"],
    };
    const TOTAL: Definition =
        Definition { name: "fetched_bytes_total", help: "Much.", kind: Kind::Counter, labels: &[] };

    fn page(format: TextFormat) -> String {
        let seconds: Family<Histogram, 1> = Family::new(&SECONDS, &[0.5, 1.0]);
        seconds.with(["/a\"b\\\n"]).observe(0.25);
        seconds.with(["/a\"b\\\n"]).observe(3.0);
        let total: Family<Counter, 0> = Family::new(&TOTAL, &[]);
        total.with([]).add(7);
        let mut writer = Writer::new(format);
        seconds.read(&mut writer);
        total.read(&mut writer);
        writer.finish()
    }

    #[test]
    fn prometheus_gets_its_text() {
        let expected = "\
# HELP wait_seconds How long.
# TYPE wait_seconds histogram
wait_seconds_bucket{route=\"/a\\\"b\\\\\\n\",le=\"0.5\"} 1
wait_seconds_bucket{route=\"/a\\\"b\\\\\\n\",le=\"1.0\"} 1
wait_seconds_bucket{route=\"/a\\\"b\\\\\\n\",le=\"+Inf\"} 2
wait_seconds_sum{route=\"/a\\\"b\\\\\\n\"} 3.25
wait_seconds_count{route=\"/a\\\"b\\\\\\n\"} 2
# HELP fetched_bytes_total Much.
# TYPE fetched_bytes_total counter
fetched_bytes_total 7
";
        assert_eq!(page(TextFormat::Prometheus), expected);
    }

    #[test]
    fn open_metrics_has_units_and_an_end() {
        let page = page(TextFormat::OpenMetrics);
        assert!(page.contains("# TYPE fetched_bytes counter\n# UNIT fetched_bytes bytes\n"));
        assert!(page.contains("\nfetched_bytes_total 7\n"), "{page}");
        assert!(page.contains("# UNIT wait_seconds seconds\n"), "{page}");
        assert!(page.ends_with("# EOF\n"), "{page}");
    }

    #[test]
    fn an_exemplar_names_its_trace() {
        let mut writer = Writer::new(TextFormat::OpenMetrics);
        writer.begin(&SECONDS);
        let time = UNIX_EPOCH + Duration::from_millis(1500);
        let exemplar = Exemplar { trace_id: 0xabc, value: 0.25, time };
        writer.bucket(&[("route", "/")], 0.5, 1, Some(exemplar));
        let expected = "wait_seconds_bucket{route=\"/\",le=\"0.5\"} 1 \
             # {trace_id=\"00000000000000000000000000000abc\"} 0.25 1.500\n";
        assert!(writer.finish().contains(expected));
    }

    #[test]
    fn scrapers_get_what_they_take() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        assert_eq!(TextFormat::accepted(prometheus), TextFormat::OpenMetrics);
        assert_eq!(TextFormat::accepted("*/*"), TextFormat::Prometheus);
    }
}
