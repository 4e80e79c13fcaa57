//! Metrics sent by OTLP, for functions that nobody scrapes.
//!
//! All of them, as they are, each time: what one request loses, the next has.

use std::{
    io::Write,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, write::GzEncoder};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient,
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar, metric::Data,
        number_data_point,
    },
    resource::v1::Resource,
};
use percent_encoding::percent_decode_str;
use prost::Message;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use tokio::time::timeout;
use tonic::{
    codec::CompressionEncoding,
    metadata::MetadataMap,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use super::{BucketCount, Definition, Kind, METRICS, Sink, every, process};
use crate::{
    Causes,
    otlp::{self, OnLambda, OtlpError, Protocol, Vars},
};

/// How metrics are sent:
/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>. Who sends them is read from
/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` by the library.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// `OTEL_EXPORTER_OTLP_METRICS_PROTOCOL`, `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub protocol: Protocol,
    /// `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`, or `/v1/metrics` below `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub url: String,
    /// `OTEL_EXPORTER_OTLP_METRICS_HEADERS`, `OTEL_EXPORTER_OTLP_HEADERS`: they do not show.
    pub headers: HeaderMap,
    /// `OTEL_EXPORTER_OTLP_METRICS_COMPRESSION`, `OTEL_EXPORTER_OTLP_COMPRESSION`.
    pub is_compressed: bool,
    /// `OTEL_EXPORTER_OTLP_METRICS_TIMEOUT`, `OTEL_EXPORTER_OTLP_TIMEOUT`.
    pub timeout: Duration,
    /// `OTEL_METRIC_EXPORT_INTERVAL`: from one time to the next.
    pub interval: Duration,
    /// What AWS Lambda says of the process, by OpenTelemetry's names.
    pub on_lambda: OnLambda,
}

const OWN_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";

impl Settings {
    /// As variables say; `None` if nobody asks for metrics, as those who scrape do not.
    ///
    /// # Errors
    ///
    /// The variables that cannot be used, each with the reason.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Vec<String>> {
        let mut vars = Vars::new(var);
        let has_endpoint = vars.text(OWN_ENDPOINT).is_some();
        if !vars.asks_for("OTEL_METRICS_EXPORTER", has_endpoint) {
            return vars.or_mistakes(None);
        }
        let protocol = vars.protocol("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL");
        let temporality = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        vars.choice(temporality, &[("cumulative", ())]);
        let is_compressed = vars.is_compressed("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION");
        let timeout = vars.millis("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000).as_millis() as u32;
        let settings = Self {
            protocol,
            url: vars.metrics_url(protocol),
            headers: vars.headers(),
            is_compressed,
            timeout: vars.millis("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", timeout),
            interval: vars
                .millis("OTEL_METRIC_EXPORT_INTERVAL", 60_000)
                .max(Duration::from_millis(1)),
            on_lambda: vars.on_lambda(),
        };
        vars.or_mistakes(Some(settings))
    }
}

impl<F: Fn(&'static str) -> Option<String>> Vars<F> {
    fn metrics_url(&mut self, protocol: Protocol) -> String {
        self.check_endpoint(OWN_ENDPOINT);
        self.check_endpoint(otlp::ENDPOINT);
        if let Some(own) = self.text(OWN_ENDPOINT) {
            return own;
        }
        let of_both = self.text(otlp::ENDPOINT);
        match protocol {
            Protocol::Grpc => of_both.unwrap_or("http://localhost:4317".to_owned()),
            Protocol::HttpProtobuf => {
                let below = of_both.unwrap_or("http://localhost:4318".to_owned());
                format!("{}/v1/metrics", below.trim_end_matches('/'))
            }
        }
    }

    /// `name=value,…`, values in percent-encoding.
    fn headers(&mut self) -> HeaderMap {
        let names = ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS"];
        let mut headers = HeaderMap::new();
        for name in names {
            let text = self.text(name).unwrap_or_default();
            for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
                match header(pair) {
                    Some((key, value)) => drop(headers.insert(key, value)),
                    // What stands there may be a secret.
                    None => self.mistake(name, "is not like name=value,name=value"),
                }
            }
        }
        headers
    }
}

fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let value: Vec<u8> = percent_decode_str(value.trim()).collect();
    let mut value = HeaderValue::from_bytes(&value).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
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
        let resource = otlp::resource(function, &settings.on_lambda);
        let attributes =
            resource.iter().map(|(key, value)| attribute(key.as_str(), &value.as_str()));
        Ok(Self {
            transport: Transport::new(&settings)?,
            resource: Resource { attributes: attributes.collect(), ..Resource::default() },
            settings,
            started: SystemTime::now(),
            is_down: AtomicBool::new(false),
        })
    }

    /// Says when it fails, and when it does no longer.
    async fn send(&self) {
        let sending = self.transport.send(self.request(), &self.settings);
        let outcome = timeout(self.settings.timeout, sending).await;
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
        let scope = InstrumentationScope {
            name: "sanderling".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let scope_metrics = ScopeMetrics {
            scope: Some(scope),
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
    Http(reqwest::Client),
    Grpc(MetricsServiceClient<Channel>),
}

impl Transport {
    fn new(settings: &Settings) -> Result<Self, OtlpError> {
        match settings.protocol {
            Protocol::HttpProtobuf => Ok(Self::Http(otlp::http_client().map_err(OtlpError::new)?)),
            Protocol::Grpc => {
                let endpoint = Endpoint::from_shared(settings.url.clone());
                let roots = ClientTlsConfig::new().with_enabled_roots();
                let endpoint = endpoint.and_then(|endpoint| endpoint.tls_config(roots));
                let channel = endpoint.map_err(OtlpError::new)?.connect_lazy();
                let client = MetricsServiceClient::new(channel);
                Ok(Self::Grpc(match settings.is_compressed {
                    true => client.send_compressed(CompressionEncoding::Gzip),
                    false => client,
                }))
            }
        }
    }

    async fn send(
        &self,
        request: ExportMetricsServiceRequest,
        settings: &Settings,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self {
            Self::Http(client) => {
                let mut body = request.encode_to_vec();
                let mut post = client.post(&settings.url).headers(settings.headers.clone());
                if settings.is_compressed {
                    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                    encoder.write_all(&body)?;
                    body = encoder.finish()?;
                    post = post.header(CONTENT_ENCODING, "gzip");
                }
                let post = post.header(CONTENT_TYPE, "application/x-protobuf").body(body);
                post.send().await?.error_for_status()?;
            }
            Self::Grpc(client) => {
                let headers = MetadataMap::from_headers(settings.headers.clone());
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

fn attribute(name: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() }
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
        assert_eq!(settings.url, "http://localhost:4318/v1/metrics");
        assert_eq!(settings.timeout, Duration::from_secs(10));
        assert_eq!(settings.interval, Duration::from_secs(60));
        let url = |vars: &[(&'static str, &str)]| read(vars).unwrap().unwrap().url;
        let of_both = (otlp::ENDPOINT, "http://collector:4318/");
        assert_eq!(url(&[ON, of_both]), "http://collector:4318/v1/metrics");
        let own = (OWN_ENDPOINT, "https://elsewhere/in");
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
        assert_eq!(settings.headers["api-key"], "k 1");
        assert_eq!(settings.headers["a"], "c");
        assert!(!format!("{settings:?}").contains("k 1"));
        let mistakes = read(&[ON, ("OTEL_EXPORTER_OTLP_HEADERS", "planted")]).unwrap_err();
        assert_eq!(mistakes, ["OTEL_EXPORTER_OTLP_HEADERS: is not like name=value,name=value"]);
    }

    #[test]
    fn every_mistake_is_named() {
        let mistakes = read(&[
            ON,
            (OWN_ENDPOINT, "collector"),
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
