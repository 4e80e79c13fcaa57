//! What traces and metrics that are sent by OTLP have in common: the variables that say how, who sends
//! them, and requests over HTTP.

use std::{
    fmt,
    io::{self, Write},
    sync::LazyLock,
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::{common::v1 as proto, resource};
use opentelemetry_sdk::{
    Resource,
    trace::{IdGenerator, RandomIdGenerator},
};
use percent_encoding::percent_decode_str;
use reqwest::{
    StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use tokio::time::sleep;

/// Traces or metrics cannot be sent as the environment asks.
#[derive(Debug, thiserror::Error)]
#[error("cannot send traces or metrics by OTLP")]
pub struct OtlpError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl OtlpError {
    pub(crate) fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// How they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `grpc`
    Grpc,
    /// `http/protobuf`
    HttpProtobuf,
}

/// Where and how traces are sent, or metrics:
/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Destination {
    /// `OTEL_EXPORTER_OTLP_…_PROTOCOL`, `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub protocol: Protocol,
    /// `OTEL_EXPORTER_OTLP_…_ENDPOINT`, or a path of its own below `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub url: String,
    /// `OTEL_EXPORTER_OTLP_…_HEADERS`, `OTEL_EXPORTER_OTLP_HEADERS`: they do not show.
    pub headers: HeaderMap,
    /// `OTEL_EXPORTER_OTLP_…_COMPRESSION`, `OTEL_EXPORTER_OTLP_COMPRESSION`.
    pub is_compressed: bool,
    /// `OTEL_EXPORTER_OTLP_…_TIMEOUT`, `OTEL_EXPORTER_OTLP_TIMEOUT`: of one try.
    pub timeout: Duration,
}

/// The variables of traces, or of metrics.
pub(crate) struct Signal {
    exporter: &'static str,
    endpoint: &'static str,
    protocol: &'static str,
    headers: &'static str,
    compression: &'static str,
    timeout: &'static str,
    path: &'static str,
}

pub(crate) const TRACES: Signal = Signal {
    exporter: "OTEL_TRACES_EXPORTER",
    endpoint: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    headers: "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    compression: "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    timeout: "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    path: "v1/traces",
};

pub(crate) const METRICS: Signal = Signal {
    exporter: "OTEL_METRICS_EXPORTER",
    endpoint: "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
    headers: "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
    compression: "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION",
    timeout: "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
    path: "v1/metrics",
};

/// What AWS Lambda says of the process, by OpenTelemetry's names.
pub type OnLambda = Vec<(&'static str, String)>;

const ON_LAMBDA: [(&str, &str); 4] = [
    ("faas.name", "AWS_LAMBDA_FUNCTION_NAME"),
    ("faas.version", "AWS_LAMBDA_FUNCTION_VERSION"),
    ("faas.instance", "AWS_LAMBDA_LOG_STREAM_NAME"),
    ("cloud.region", "AWS_REGION"),
];

/// Where both go, if they have no place of their own.
pub(crate) const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Reads variables, and gathers what is wrong with them.
pub(crate) struct Vars<F> {
    var: F,
    mistakes: Vec<String>,
}

impl<F: Fn(&'static str) -> Option<String>> Vars<F> {
    pub(crate) fn new(var: F) -> Self {
        Self { var, mistakes: Vec::new() }
    }

    /// The value of a variable that has one.
    pub(crate) fn text(&self, name: &'static str) -> Option<String> {
        let value = (self.var)(name)?.trim().to_owned();
        (!value.is_empty()).then_some(value)
    }

    pub(crate) fn mistake(&mut self, name: &str, mistake: impl fmt::Display) {
        self.mistakes.push(format!("{name}: {mistake}"));
    }

    pub(crate) fn or_mistakes<T>(self, value: T) -> Result<T, Vec<String>> {
        if self.mistakes.is_empty() { Ok(value) } else { Err(self.mistakes) }
    }

    /// Whether `signal` is sent: as its exporter says; else if it has an endpoint of its own, or
    /// `is_default`.
    pub(crate) fn asks_for(&mut self, signal: &Signal, is_default: bool) -> bool {
        if self.text("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return false;
        }
        let is_default = is_default || self.text(signal.endpoint).is_some();
        self.choice(signal.exporter, &[("otlp", true), ("none", false)]).unwrap_or(is_default)
    }

    /// As the variables of `signal` say, else those of both.
    pub(crate) fn destination(&mut self, signal: &Signal) -> Destination {
        let known = [("http/protobuf", Protocol::HttpProtobuf), ("grpc", Protocol::Grpc)];
        let protocol = self
            .choice(signal.protocol, &known)
            .or_else(|| self.choice("OTEL_EXPORTER_OTLP_PROTOCOL", &known))
            .unwrap_or(Protocol::HttpProtobuf);
        // Who wants no compression sets none: the library that sends by gRPC knows no word for it.
        let known = [("gzip", true)];
        let is_compressed = self
            .choice(signal.compression, &known)
            .or_else(|| self.choice("OTEL_EXPORTER_OTLP_COMPRESSION", &known))
            .unwrap_or(false);
        let timeout = self.number("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000);
        Destination {
            protocol,
            url: self.url(signal, protocol),
            headers: self.headers(signal),
            is_compressed,
            timeout: self.millis(signal.timeout, timeout),
        }
    }

    fn url(&mut self, signal: &Signal, protocol: Protocol) -> String {
        self.check_endpoint(signal.endpoint);
        self.check_endpoint(ENDPOINT);
        if let Some(own) = self.text(signal.endpoint) {
            return own;
        }
        let of_both = self.text(ENDPOINT);
        match protocol {
            Protocol::Grpc => of_both.unwrap_or("http://localhost:4317".to_owned()),
            Protocol::HttpProtobuf => {
                let below = of_both.unwrap_or("http://localhost:4318".to_owned());
                format!("{}/{}", below.trim_end_matches('/'), signal.path)
            }
        }
    }

    fn check_endpoint(&mut self, name: &'static str) {
        let url = self.text(name).unwrap_or("http://".to_owned());
        if !url.starts_with("https://") && !url.starts_with("http://") {
            self.mistake(name, format_args!("\"{url}\" is not http:// or https://"));
        }
    }

    /// `name=value,…`, values in percent-encoding.
    fn headers(&mut self, signal: &Signal) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for name in ["OTEL_EXPORTER_OTLP_HEADERS", signal.headers] {
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

    /// One of those `known`.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        known: &[(&'static str, T)],
    ) -> Option<T> {
        let text = self.text(name)?;
        let found = known.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            let mistake = format!("\"{text}\" is not one of {}", names.join(", "));
            self.mistake(name, mistake);
        }
        found.map(|(_, value)| *value)
    }

    pub(crate) fn number(&mut self, name: &'static str, default: u32) -> u32 {
        let Some(text) = self.text(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            self.mistake(name, format_args!("\"{text}\" is not a whole number"));
            default
        })
    }

    pub(crate) fn millis(&mut self, name: &'static str, default: u32) -> Duration {
        Duration::from_millis(self.number(name, default).into())
    }

    pub(crate) fn on_lambda(&self) -> OnLambda {
        let known = ON_LAMBDA.into_iter();
        known.filter_map(|(name, variable)| Some((name, self.text(variable)?))).collect()
    }
}

/// Tells this process from others of the same function.
static INSTANCE: LazyLock<String> =
    LazyLock::new(|| RandomIdGenerator::default().new_trace_id().to_string());

fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let value: Vec<u8> = percent_decode_str(value.trim()).collect();
    let mut value = HeaderValue::from_bytes(&value).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

/// The pause before a second try; then twice that. What a collector asks for goes before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Sends by `http/protobuf`.
#[derive(Debug)]
pub(crate) struct Post {
    client: reqwest::Client,
    destination: Destination,
}

/// A request that was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    #[error("the collector answers {status}")]
    Refused { status: StatusCode, retry_after: Option<Duration> },
    #[error("the collector is not reached")]
    Unreached(#[from] reqwest::Error),
    #[error("the request cannot be compressed")]
    Compression(#[from] io::Error),
}

impl PostError {
    /// How long to wait before another try, if one may help; `usual` unless the collector says more.
    fn pause(&self, usual: Duration) -> Option<Duration> {
        match self {
            Self::Refused { status, retry_after } => {
                let is_temporary = matches!(status.as_u16(), 429 | 502 | 503 | 504);
                is_temporary.then_some(retry_after.unwrap_or(usual))
            }
            Self::Unreached(_) => Some(usual),
            Self::Compression(_) => None,
        }
    }
}

impl Post {
    pub(crate) fn new(destination: Destination) -> reqwest::Result<Self> {
        // Whoever was first is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(destination.timeout).build()?;
        Ok(Self { client, destination })
    }

    /// Sends `request`, up to `num_tries` times while another try may help.
    pub(crate) async fn send(&self, request: Vec<u8>, num_tries: u32) -> Result<(), PostError> {
        let request = Bytes::from(self.compressed(request)?);
        let mut usual_pause = FIRST_PAUSE;
        for _ in 1..num_tries {
            let Err(error) = self.send_once(request.clone()).await else { return Ok(()) };
            let Some(pause) = error.pause(usual_pause) else { return Err(error) };
            sleep(pause).await;
            usual_pause *= 2;
        }
        self.send_once(request).await
    }

    fn compressed(&self, request: Vec<u8>) -> io::Result<Vec<u8>> {
        if !self.destination.is_compressed {
            return Ok(request);
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&request)?;
        encoder.finish()
    }

    async fn send_once(&self, request: Bytes) -> Result<(), PostError> {
        let Destination { url, headers, is_compressed, .. } = &self.destination;
        let mut post = self.client.post(url).headers(headers.clone());
        if *is_compressed {
            post = post.header(CONTENT_ENCODING, "gzip");
        }
        let post = post.header(CONTENT_TYPE, "application/x-protobuf").body(request);
        let response = post.send().await?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let seconds = seconds.and_then(|seconds| seconds.parse().ok());
        Err(PostError::Refused { status, retry_after: seconds.map(Duration::from_secs) })
    }
}

/// Who sends: as `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, which the library reads;
/// what they leave out, as it is known here.
pub(crate) fn resource(function: &'static str, on_lambda: &OnLambda) -> Resource {
    let given = Resource::builder().build();
    let is_given = |own: &KeyValue| {
        let value = given.get_ref(&own.key);
        value.is_some_and(|value| !value.as_str().starts_with("unknown_service"))
    };
    let own = [
        KeyValue::new("service.name", function),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", INSTANCE.as_str()),
    ];
    let on_lambda = on_lambda.iter().map(|(name, value)| KeyValue::new(*name, value.clone()));
    let own: Vec<KeyValue> =
        own.into_iter().chain(on_lambda).filter(|own| !is_given(own)).collect();
    Resource::builder().with_attributes(own).build()
}

/// The same, in the words of the protocol.
pub(crate) fn resource_message(
    function: &'static str,
    on_lambda: &OnLambda,
) -> resource::v1::Resource {
    let resource = resource(function, on_lambda);
    let attributes = resource.iter().map(|(key, value)| attribute(key.as_str(), &value.as_str()));
    resource::v1::Resource { attributes: attributes.collect(), ..Default::default() }
}

/// What counts and measures, in the words of the protocol.
pub(crate) fn scope_message() -> proto::InstrumentationScope {
    proto::InstrumentationScope {
        name: SCOPE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    }
}

/// What counts and measures.
pub(crate) const SCOPE: &str = "sanderling";

pub(crate) fn attribute(name: &str, value: &str) -> proto::KeyValue {
    let value = proto::any_value::Value::StringValue(value.to_owned());
    let value = proto::AnyValue { value: Some(value) };
    proto::KeyValue { key: name.to_owned(), value: Some(value), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_collector_cannot_take_now_is_tried_again_when_it_says() {
        let usual = Duration::from_millis(250);
        let pause = |status: u16, retry_after: Option<u64>| {
            let status = StatusCode::from_u16(status).unwrap();
            let retry_after = retry_after.map(Duration::from_secs);
            PostError::Refused { status, retry_after }.pause(usual)
        };
        assert_eq!(pause(503, None), Some(usual));
        assert_eq!(pause(429, Some(7)), Some(Duration::from_secs(7)));
        for forever in [400, 401, 404, 413, 500, 501] {
            assert_eq!(pause(forever, Some(7)), None, "{forever}");
        }
    }
}
