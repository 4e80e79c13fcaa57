//! What traces and metrics that are sent by OTLP have in common: the variables that say how, who sends
//! them, and with which client.

use std::{fmt, sync::LazyLock, time::Duration};

use opentelemetry::KeyValue;
use opentelemetry_sdk::{
    Resource,
    trace::{IdGenerator, RandomIdGenerator},
};

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

    /// Whether `exporter` says so, or by default.
    pub(crate) fn asks_for(&mut self, exporter: &'static str, default: bool) -> bool {
        if self.text("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return false;
        }
        self.choice(exporter, &[("otlp", true), ("none", false)]).unwrap_or(default)
    }

    pub(crate) fn check_endpoint(&mut self, name: &'static str) {
        let url = self.text(name).unwrap_or("http://".to_owned());
        if !url.starts_with("https://") && !url.starts_with("http://") {
            self.mistake(name, format_args!("\"{url}\" is not http:// or https://"));
        }
    }

    /// As the variable called `own` says, else that of both.
    pub(crate) fn protocol(&mut self, own: &'static str) -> Protocol {
        let known = [("http/protobuf", Protocol::HttpProtobuf), ("grpc", Protocol::Grpc)];
        self.choice(own, &known)
            .or_else(|| self.choice("OTEL_EXPORTER_OTLP_PROTOCOL", &known))
            .unwrap_or(Protocol::HttpProtobuf)
    }

    /// The same. Who wants no compression sets none: the library that sends traces knows no word for it.
    pub(crate) fn is_compressed(&mut self, own: &'static str) -> bool {
        let known = [("gzip", true)];
        self.choice(own, &known)
            .or_else(|| self.choice("OTEL_EXPORTER_OTLP_COMPRESSION", &known))
            .unwrap_or(false)
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

/// A client for `http/protobuf`.
pub(crate) fn http_client() -> reqwest::Result<reqwest::Client> {
    // Whoever was first is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().build()
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
