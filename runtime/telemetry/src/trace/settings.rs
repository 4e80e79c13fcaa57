//! What `OTEL_…` variables say: <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>.

use std::{str::FromStr, time::Duration};

use super::TraceContext;
use crate::otlp::{self, Destination, OnLambda, Vars};

/// How traces are made and sent.
///
/// Who sends them is read from `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` by the library, and by
/// its exporter for gRPC also where to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// `OTEL_EXPORTER_OTLP_TRACES_…`, `OTEL_EXPORTER_OTLP_…`.
    pub destination: Destination,
    /// `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`.
    pub sampler: Sampler,
    /// `OTEL_PROPAGATORS`: whether the traces of callers go on.
    pub takes_parents: bool,
    /// `OTEL_BSP_MAX_QUEUE_SIZE`: most spans that wait to be sent; more are dropped.
    pub max_queue_size: usize,
    /// `OTEL_BSP_MAX_EXPORT_BATCH_SIZE`: most spans that are sent together.
    pub max_export_batch_size: usize,
    /// `OTEL_BSP_SCHEDULE_DELAY`: longest a span waits for others.
    pub schedule_delay: Duration,
    /// `OTEL_BSP_EXPORT_TIMEOUT`: longest that spans take to be sent, tries included.
    pub export_timeout: Duration,
    /// `OTEL_SPAN_LINK_COUNT_LIMIT`: most requests that the span of a batch names.
    pub max_links: usize,
    /// What AWS Lambda says of the process, by OpenTelemetry's names.
    pub on_lambda: OnLambda,
}

/// Which traces are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// Whether a caller's trace is kept if the caller keeps it.
    follows_parent: bool,
    /// Of 2^63 traces that begin here.
    kept: u64,
}

const ALL: u64 = 1 << 63;

impl Sampler {
    pub(super) fn keeps(self, trace_id: u128, parent: Option<TraceContext>) -> bool {
        match parent {
            Some(parent) if self.follows_parent => parent.is_sampled,
            // Every function that keeps so many keeps the same ones.
            _ => (trace_id as u64 >> 1) < self.kept,
        }
    }
}

impl Settings {
    /// As variables say; `None` if nobody asks for traces.
    ///
    /// # Errors
    ///
    /// The variables that cannot be used, each with the reason.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Vec<String>> {
        let mut vars = Vars::new(var);
        // Nobody waits for traces at the port that they are sent to by default.
        let has_endpoint = vars.text(otlp::ENDPOINT).is_some();
        if !vars.asks_for(&otlp::TRACES, has_endpoint) {
            return vars.or_mistakes(None);
        }
        let destination = vars.destination(&otlp::TRACES);
        let sampler = vars.sampler();
        let propagators = vars.text("OTEL_PROPAGATORS").unwrap_or("tracecontext".to_owned());
        let max_queue_size = vars.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048).max(1) as usize;
        let batch_size = vars.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512).max(1) as usize;
        let settings = Self {
            destination,
            sampler,
            takes_parents: propagators.split(',').any(|name| name.trim() == "tracecontext"),
            max_queue_size,
            max_export_batch_size: batch_size.min(max_queue_size),
            schedule_delay: vars.millis("OTEL_BSP_SCHEDULE_DELAY", 5_000),
            export_timeout: vars.millis("OTEL_BSP_EXPORT_TIMEOUT", 30_000),
            max_links: vars.number("OTEL_SPAN_LINK_COUNT_LIMIT", 128) as usize,
            on_lambda: vars.on_lambda(),
        };
        vars.or_mistakes(Some(settings))
    }
}

impl<F: Fn(&'static str) -> Option<String>> Vars<F> {
    fn sampler(&mut self) -> Sampler {
        let name = "OTEL_TRACES_SAMPLER";
        let text = self.text(name).unwrap_or("parentbased_always_on".to_owned());
        let (follows_parent, kind) = match text.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, &*text),
        };
        let kept = match kind {
            "always_on" => ALL,
            "always_off" => 0,
            "traceidratio" => (self.ratio("OTEL_TRACES_SAMPLER_ARG") * ALL as f64) as u64,
            _ => {
                let known = "always_on, always_off, traceidratio, or these behind parentbased_";
                self.mistake(name, format_args!("\"{text}\" is not one of {known}"));
                ALL
            }
        };
        Sampler { follows_parent, kept }
    }

    fn ratio(&mut self, name: &'static str) -> f64 {
        let text = self.text(name).unwrap_or("1".to_owned());
        match f64::from_str(&text) {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
            _ => {
                self.mistake(name, format_args!("\"{text}\" is not between 0 and 1"));
                1.0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;

    use super::*;
    use crate::Protocol;

    const ON: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    fn read(vars: &[(&str, &str)]) -> Result<Option<Settings>, Vec<String>> {
        let var = |name: &str| vars.iter().find(|(known, _)| *known == name);
        Settings::from_vars(|name| var(name).map(|(_, value)| (*value).to_owned()))
    }

    fn sampler(name: &str, argument: &str) -> Sampler {
        let vars = [ON, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)];
        read(&vars).unwrap().unwrap().sampler
    }

    #[test]
    fn traces_are_sent_where_somebody_asks_for_them() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(None));
        assert!(read(&[ON]).unwrap().is_some());
        assert!(read(&[("OTEL_TRACES_EXPORTER", "otlp")]).unwrap().is_some());
        assert_eq!(read(&[ON, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        assert_eq!(read(&[ON, ("OTEL_SDK_DISABLED", "True")]), Ok(None));
    }

    #[test]
    fn defaults_are_the_specification_s() {
        let expected = Settings {
            destination: Destination {
                protocol: Protocol::HttpProtobuf,
                url: "http://collector:4318/v1/traces".to_owned(),
                headers: HeaderMap::new(),
                is_compressed: false,
                timeout: Duration::from_secs(10),
            },
            sampler: Sampler { follows_parent: true, kept: ALL },
            takes_parents: true,
            max_queue_size: 2048,
            max_export_batch_size: 512,
            schedule_delay: Duration::from_secs(5),
            export_timeout: Duration::from_secs(30),
            max_links: 128,
            on_lambda: Vec::new(),
        };
        assert_eq!(read(&[ON]), Ok(Some(expected)));
    }

    #[test]
    fn a_setting_of_traces_goes_before_one_of_all() {
        let all = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc");
        let settings = read(&[ON, all, own]).unwrap().unwrap();
        assert_eq!(settings.destination.protocol, Protocol::Grpc);
        let none = [ON, ("OTEL_PROPAGATORS", "b3,baggage")];
        assert!(!read(&none).unwrap().unwrap().takes_parents);
    }

    #[test]
    fn every_mistake_is_named() {
        let mistakes = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ]);
        assert_eq!(
            mistakes.unwrap_err(),
            [
                "OTEL_EXPORTER_OTLP_PROTOCOL: \"http/json\" is not one of http/protobuf, grpc",
                "OTEL_EXPORTER_OTLP_ENDPOINT: \"collector:4318\" is not http:// or https://",
                "OTEL_TRACES_SAMPLER_ARG: \"2\" is not between 0 and 1",
                "OTEL_BSP_SCHEDULE_DELAY: \"soon\" is not a whole number",
            ]
        );
        let mistakes = read(&[ON, ("OTEL_TRACES_SAMPLER", "xray")]).unwrap_err();
        assert!(mistakes[0].starts_with("OTEL_TRACES_SAMPLER: \"xray\""), "{mistakes:?}");
        let mistakes = read(&[("OTEL_TRACES_EXPORTER", "zipkin")]).unwrap_err();
        assert_eq!(mistakes, ["OTEL_TRACES_EXPORTER: \"zipkin\" is not one of otlp, none"]);
    }

    #[test]
    fn parents_decide_where_they_are_asked() {
        let parent = |is_sampled| Some(TraceContext { trace_id: 1, span_id: 1, is_sampled });
        for (name, alone, of_kept, of_dropped) in [
            ("always_on", true, true, true),
            ("always_off", false, false, false),
            ("parentbased_always_on", true, true, false),
            ("parentbased_always_off", false, true, false),
        ] {
            let sampler = sampler(name, "");
            let kept = [None, parent(true), parent(false)].map(|parent| sampler.keeps(7, parent));
            assert_eq!(kept, [alone, of_kept, of_dropped], "{name}");
        }
    }

    #[test]
    fn a_share_of_the_traces_is_kept() {
        let sampler = sampler("traceidratio", "0.25");
        // Spread evenly over all that there are.
        let kept = (0..1000_u128).filter(|share| sampler.keeps((share << 64) / 1000, None));
        assert_eq!(kept.count(), 250);
    }
}
