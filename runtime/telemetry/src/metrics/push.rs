//! Metrics sent by OTLP, for functions that nobody scrapes.
//!
//! All of them, as they are, each time: what one request loses, the next has.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient,
    },
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar, metric::Data,
        number_data_point,
    },
    resource::v1::Resource,
};
use prost::Message;
use tokio::time::timeout;
use tonic::{
    codec::CompressionEncoding,
    metadata::MetadataMap,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use super::{BucketCount, Definition, Kind, METRICS, Sink, every, process};
use crate::{
    Causes,
    otlp::{self, Destination, OnLambda, OtlpError, Post, Protocol, Vars, attribute},
};

/// How metrics are sent. Who sends them is read from `OTEL_SERVICE_NAME` and
/// `OTEL_RESOURCE_ATTRIBUTES` by the library.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// `OTEL_EXPORTER_OTLP_METRICS_…`, `OTEL_EXPORTER_OTLP_…`.
    pub destination: Destination,
    /// `OTEL_METRIC_EXPORT_INTERVAL`: from one time to the next.
    pub interval: Duration,
    /// What AWS Lambda says of the process, by OpenTelemetry's names.
    pub on_lambda: OnLambda,
}

impl Settings {
    /// As variables say; `None` if nobody asks for metrics, as those who scrape do not.
    ///
    /// # Errors
    ///
    /// The variables that cannot be used, each with the reason.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Vec<String>> {
        let mut vars = Vars::new(var);
        if !vars.asks_for(&otlp::METRICS, false) {
            return vars.or_mistakes(None);
        }
        let temporality = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        vars.choice(temporality, &[("cumulative", ())]);
        let settings = Self {
            destination: vars.destination(&otlp::METRICS),
            interval: vars
                .millis("OTEL_METRIC_EXPORT_INTERVAL", 60_000)
                .max(Duration::from_millis(1)),
            on_lambda: vars.on_lambda(),
        };
        vars.or_mistakes(Some(settings))
    }
}

static PUSH: OnceLock<Arc<Push>> = OnceLock::new();

/// Sends the metrics of `function` from now on, as `settings` say. Only the first call counts, and
/// only within a runtime of tokio.
///
/// # Errors
///
/// [`OtlpError`] if the environment names a collector that cannot be one.
pub fn start(function: &'static str, settings: Settings) -> Result<(), OtlpError> {
    let push = Arc::new(Push::new(function, settings)?);
    if PUSH.set(push.clone()).is_err() {
        return Ok(());
    }
    tokio::spawn(async move {
        let mut interval = every(push.settings.interval);
        loop {
            interval.tick().await;
            push.send().await;
        }
    });
    Ok(())
}

/// Sends what is known by now, but waits no longer than `limit`, and not at all while nobody takes it.
pub async fn flush(limit: Duration) {
    if let Some(push) = PUSH.get().filter(|push| !push.is_down.load(Relaxed)) {
        let _ = timeout(limit, push.send()).await;
    }
}

/// Sends metrics.
struct Push {
    settings: Settings,
    transport: Transport,
    resource: Resource,
    started: SystemTime,
    /// Whether the last time failed.
    is_down: AtomicBool,
}

impl Push {
    fn new(function: &'static str, settings: Settings) -> Result<Self, OtlpError> {
        Ok(Self {
            transport: Transport::new(&settings.destination)?,
            resource: otlp::resource_message(function, &settings.on_lambda),
            settings,
            started: SystemTime::now(),
            is_down: AtomicBool::new(false),
        })
    }

    /// Says when it fails, and when it does no longer.
    async fn send(&self) {
        let destination = &self.settings.destination;
        let sending = self.transport.send(self.request(), destination);
        let outcome = timeout(destination.timeout, sending).await;
        let outcome = outcome.unwrap_or_else(|elapsed| Err(elapsed.into()));
        let was_down = self.is_down.swap(outcome.is_err(), Relaxed);
        match outcome {
            Ok(()) if was_down => tracing::info!("metrics are sent again"),
            Err(error) if !was_down => {
                tracing::warn!(exception = %Causes(&*error), "metrics cannot be sent");
            }
            _ => {}
        }
    }

    fn request(&self) -> ExportMetricsServiceRequest {
        let mut gathered = Gathered::new(self.started, SystemTime::now());
        METRICS.read(&mut gathered);
        process::read(&mut gathered);
        let scope_metrics = ScopeMetrics {
            scope: Some(otlp::scope_message()),
            metrics: gathered.metrics,
            ..ScopeMetrics::default()
        };
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![scope_metrics],
                ..ResourceMetrics::default()
            }],
        }
    }
}

enum Transport {
    Http(Post),
    Grpc(MetricsServiceClient<Channel>),
}

impl Transport {
    fn new(destination: &Destination) -> Result<Self, OtlpError> {
        match destination.protocol {
            Protocol::HttpProtobuf => {
                Ok(Self::Http(Post::new(destination.clone()).map_err(OtlpError::new)?))
            }
            Protocol::Grpc => {
                let endpoint = Endpoint::from_shared(destination.url.clone());
                let roots = ClientTlsConfig::new().with_enabled_roots();
                let endpoint = endpoint.and_then(|endpoint| endpoint.tls_config(roots));
                let channel = endpoint.map_err(OtlpError::new)?.connect_lazy();
                let client = MetricsServiceClient::new(channel);
                Ok(Self::Grpc(match destination.is_compressed {
                    true => client.send_compressed(CompressionEncoding::Gzip),
                    false => client,
                }))
            }
        }
    }

    async fn send(
        &self,
        request: ExportMetricsServiceRequest,
        destination: &Destination,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self {
            Self::Http(post) => post.send(request.encode_to_vec(), 1).await?,
            Self::Grpc(client) => {
                let headers = MetadataMap::from_headers(destination.headers.clone());
                let request = tonic::Request::from_parts(headers, Default::default(), request);
                client.clone().export(request).await?;
            }
        }
        Ok(())
    }
}

/// What metrics say, in the words of the protocol.
struct Gathered {
    started: u64,
    now: u64,
    metrics: Vec<Metric>,
}

impl Gathered {
    fn new(started: SystemTime, now: SystemTime) -> Self {
        Self { started: nanos(started), now: nanos(now), metrics: Vec::new() }
    }

    /// Where the next point belongs.
    fn data(&mut self) -> Option<&mut Data> {
        self.metrics.last_mut()?.data.as_mut()
    }
}

impl Sink for Gathered {
    fn begin(&mut self, definition: &'static Definition) {
        let aggregation_temporality = AggregationTemporality::Cumulative.into();
        let data_points = Vec::new();
        let data = match definition.kind {
            Kind::Gauge => Data::Gauge(Gauge { data_points }),
            Kind::Counter => {
                Data::Sum(Sum { data_points, aggregation_temporality, is_monotonic: true })
            }
            Kind::Histogram => {
                Data::Histogram(Histogram { data_points: Vec::new(), aggregation_temporality })
            }
        };
        self.metrics.push(Metric {
            name: definition.name.to_owned(),
            description: definition.help.to_owned(),
            unit: unit(definition).to_owned(),
            data: Some(data),
            ..Metric::default()
        });
    }

    fn number(&mut self, labels: &[(&str, &str)], value: f64) {
        let point = NumberDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: self.started,
            time_unix_nano: self.now,
            value: Some(number_data_point::Value::AsDouble(value)),
            ..NumberDataPoint::default()
        };
        if let Some(Data::Gauge(Gauge { data_points }) | Data::Sum(Sum { data_points, .. })) =
            self.data()
        {
            data_points.push(point);
        }
    }

    fn histogram(&mut self, labels: &[(&str, &str)], buckets: &[BucketCount], sum: f64) {
        let bounds = buckets.iter().map(|bucket| bucket.bound);
        let exemplars = buckets.iter().filter_map(|bucket| bucket.exemplar);
        let point = HistogramDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: self.started,
            time_unix_nano: self.now,
            count: buckets.iter().map(|bucket| bucket.count).sum(),
            sum: Some(sum),
            bucket_counts: buckets.iter().map(|bucket| bucket.count).collect(),
            explicit_bounds: bounds.filter(|bound| bound.is_finite()).collect(),
            exemplars: exemplars.map(exemplar).collect(),
            ..HistogramDataPoint::default()
        };
        if let Some(Data::Histogram(Histogram { data_points, .. })) = self.data() {
            data_points.push(point);
        }
    }
}

/// As UCUM has it.
fn unit(definition: &Definition) -> &'static str {
    match definition.unit() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        Some("requests") => "{request}",
        Some("tokens") => "{token}",
        _ => "1",
    }
}

fn exemplar(super::Exemplar { trace_id, value, time }: super::Exemplar) -> Exemplar {
    Exemplar {
        time_unix_nano: nanos(time),
        trace_id: trace_id.to_be_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(value)),
        ..Exemplar::default()
    }
}

fn attributes(labels: &[(&str, &str)]) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| attribute(name, value)).collect()
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Counter, Family,
            tests::{FETCHED, WAIT},
        },
        *,
    };

    fn read(vars: &[(&'static str, &str)]) -> Result<Option<Settings>, Vec<String>> {
        Settings::from_vars(|name| {
            let found = vars.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const ON: (&str, &str) = ("OTEL_METRICS_EXPORTER", "otlp");

    #[test]
    fn metrics_are_sent_where_somebody_asks_for_them() {
        assert_eq!(read(&[(otlp::ENDPOINT, "http://collector:4318")]), Ok(None));
        let settings = read(&[ON]).unwrap().unwrap();
        assert_eq!(settings.destination.url, "http://localhost:4318/v1/metrics");
        assert_eq!(settings.destination.timeout, Duration::from_secs(10));
        assert_eq!(settings.interval, Duration::from_secs(60));
        let url = |vars: &[(&'static str, &str)]| read(vars).unwrap().unwrap().destination.url;
        let of_both = (otlp::ENDPOINT, "http://collector:4318/");
        assert_eq!(url(&[ON, of_both]), "http://collector:4318/v1/metrics");
        let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://elsewhere/in");
        assert_eq!(url(&[of_both, own]), "https://elsewhere/in");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert_eq!(url(&[ON, of_both, grpc]), "http://collector:4318/");
        assert_eq!(read(&[ON, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
    }

    #[test]
    fn headers_are_decoded_and_do_not_show() {
        let both = ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=k%201, a=b");
        let own = ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "a=c");
        let settings = read(&[ON, both, own]).unwrap().unwrap();
        assert_eq!(settings.destination.headers["api-key"], "k 1");
        assert_eq!(settings.destination.headers["a"], "c");
        assert!(!format!("{settings:?}").contains("k 1"));
        let mistakes = read(&[ON, ("OTEL_EXPORTER_OTLP_HEADERS", "planted")]).unwrap_err();
        assert_eq!(mistakes, ["OTEL_EXPORTER_OTLP_HEADERS: is not like name=value,name=value"]);
    }

    #[test]
    fn every_mistake_is_named() {
        let mistakes = read(&[
            ON,
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "collector"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "often"),
        ]);
        let expected = [
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: \"delta\" is not one of cumulative",
            "OTEL_EXPORTER_OTLP_COMPRESSION: \"zstd\" is not one of gzip",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: \"collector\" is not http:// or https://",
            "OTEL_METRIC_EXPORT_INTERVAL: \"often\" is not a whole number",
        ];
        assert_eq!(mistakes.unwrap_err(), expected);
    }

    #[test]
    fn points_follow_the_metric_they_belong_to() {
        let fetched: Family<Counter, 1> = Family::new(&FETCHED, &[]);
        let wait: Family<super::super::Histogram, 0> = Family::new(&WAIT, &[1.0]);
        fetched.with(["s3"]).add(7);
        wait.with([]).observe(0.5);
        wait.with([]).observe_traced(3.0, Some(0xabc));
        let mut gathered = Gathered::new(UNIX_EPOCH, UNIX_EPOCH + Duration::from_nanos(5));
        fetched.read(&mut gathered);
        wait.read(&mut gathered);
        let [fetched, wait] = &gathered.metrics[..] else { panic!("{:?}", gathered.metrics) };
        assert_eq!((&*fetched.name, &*fetched.unit), ("fetched_bytes_total", "By"));
        let Some(Data::Sum(sum)) = &fetched.data else { panic!("{fetched:?}") };
        assert!(sum.is_monotonic);
        let point = &sum.data_points[0];
        assert_eq!(point.value, Some(number_data_point::Value::AsDouble(7.0)));
        assert_eq!(point.attributes, [attribute("store", "s3")]);
        let Some(Data::Histogram(histogram)) = &wait.data else { panic!("{wait:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum, point.time_unix_nano), (2, Some(3.5), 5));
        assert_eq!((&*point.bucket_counts, &*point.explicit_bounds), (&[1, 1][..], &[1.0][..]));
        assert_eq!(point.exemplars[0].trace_id, 0xabc_u128.to_be_bytes());
    }
}
