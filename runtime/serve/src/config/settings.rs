//! The table of settings: their names, defaults and meanings, and `--help`, which prints it.

use std::fmt;

use super::{admission, default_models};

/// One line of `--help`.
#[derive(Clone, Copy)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    pub(super) meaning: &'static str,
}

pub(super) const fn setting(
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Setting {
    Setting { name, default, meaning }
}

pub(super) const PORT: Setting =
    setting("PORT", "8080", "TCP port for HTTP/1.1 and h2c; 0 takes a free one");
pub(super) const METRICS_PORT: Setting =
    setting("METRICS_PORT", "", "TCP port of GET /metrics (default: PORT)");
pub(super) const MODEL_URI: Setting = setting(
    "MODEL_URI",
    "",
    "model: a path, file://, http(s)://, s3:// or hf://; #sha256=… pins it",
);
pub(super) const MODEL_RELOAD: Setting = setting(
    "MODEL_RELOAD",
    "off",
    "when a newer model is looked for: off, sighup, or poll:30s (s, m or h)",
);
pub(super) const CACHE_DIR: Setting = setting(
    "CACHE_DIR",
    "",
    "folder for fetched and packed models (default: sanderling in the temporary folder)",
);
pub(super) const MAX_CACHE_BYTES: Setting =
    setting("MAX_CACHE_BYTES", "10737418240", "how much of them is kept, in bytes");
pub(super) const HF_ENDPOINT: Setting =
    setting("HF_ENDPOINT", "https://huggingface.co", "where hf:// models come from");
pub(super) const HF_TOKEN: Setting =
    setting("HF_TOKEN", "", "token for hf:// models that are not public");
pub(super) const HF_TOKEN_FILE: Setting = setting("HF_TOKEN_FILE", "", "file of that token");
pub(super) const AWS_CA_BUNDLE: Setting =
    setting("AWS_CA_BUNDLE", "", "PEM file of certificates to trust besides the system's");
pub(super) const PRECISION: Setting = setting(
    "PRECISION",
    "",
    "f32, bf16 or int8 linear layers (default: what the model says, else f32)",
);
pub(super) const POOLING: Setting = setting(
    "POOLING",
    "",
    "mean, cls, last or max hidden state as embedding (default: what the model says, else mean)",
);
pub(super) const NUM_THREADS: Setting =
    setting("NUM_THREADS", "", "threads of the engine (default: the CPU quota, else the cores)");
pub(super) const MAX_BATCH_TOKENS: Setting =
    setting("MAX_BATCH_TOKENS", "16384", "tokens in one forward pass");
pub(super) const MAX_BATCH_REQUESTS: Setting =
    setting("MAX_BATCH_REQUESTS", "64", "texts in one forward pass");
pub(super) const MAX_QUEUE_WAIT_MS: Setting = setting(
    "MAX_QUEUE_WAIT_MS",
    "2",
    "longest a text waits, while the model could run it, for others to join it, in milliseconds",
);
pub(super) const MAX_QUEUE_REQUESTS: Setting =
    setting("MAX_QUEUE_REQUESTS", "512", "texts that may wait; more get 429");
pub(super) const MAX_CONCURRENT_REQUESTS: Setting =
    setting("MAX_CONCURRENT_REQUESTS", "512", "requests answered at once; more get 503");
pub(super) const MAX_CONNECTIONS: Setting =
    setting("MAX_CONNECTIONS", "16384", "open connections; the longest idle one makes room");
pub(super) const REQUEST_TIMEOUT_MS: Setting =
    setting("REQUEST_TIMEOUT_MS", "30000", "longest a request may take, in milliseconds");
pub(super) const HEADER_TIMEOUT_MS: Setting =
    setting("HEADER_TIMEOUT_MS", "10000", "longest its headers may take to arrive");
pub(super) const IDLE_TIMEOUT_MS: Setting =
    setting("IDLE_TIMEOUT_MS", "120000", "longest a connection stays open without a request");
pub(super) const MAX_HEADER_BYTES: Setting =
    setting("MAX_HEADER_BYTES", "16384", "headers of a request, in bytes; half for its URI");
pub(super) const MAX_BODY_BYTES: Setting =
    setting("MAX_BODY_BYTES", "2000000", "longest body of a request, in bytes");
pub(super) const MAX_BODIES_BYTES: Setting = setting(
    "MAX_BODIES_BYTES",
    "",
    "bodies held at once, in bytes; more get 503 (default: 134217728, and one)",
);
pub(super) const MAX_CLIENT_BATCH_SIZE: Setting = setting(
    "MAX_CLIENT_BATCH_SIZE",
    "",
    "texts in one request, at most MAX_QUEUE_REQUESTS (default: 32)",
);
pub(super) const MAX_INPUT_CHARS: Setting =
    setting("MAX_INPUT_CHARS", "5000", "longest text, in Unicode characters");
pub(super) const MAX_INPUT_TOKENS: Setting =
    setting("MAX_INPUT_TOKENS", "512", "tokens of a text that are read, at most the model's");
pub(super) const TRUNCATION: Setting =
    setting("TRUNCATION", "right", "what longer texts lose: right, left; off refuses them");
pub(super) const ALLOW_TOKEN_IDS: Setting = setting(
    "ALLOW_TOKEN_IDS",
    "false",
    "true if callers of /v1/embeddings may send token ids of the model's own vocabulary",
);
pub(super) const RUST_LOG: Setting = setting("RUST_LOG", "info", "which events are logged");
pub(super) const LOG_FORMAT: Setting =
    setting("LOG_FORMAT", "", "json or text (default: text on a terminal, else json)");
pub(super) const METRICS_NAMESPACE: Setting = setting(
    "METRICS_NAMESPACE",
    "",
    "CloudWatch namespace of metrics, which are then lines of the log as well (default: none)",
);

/// Read by [`telemetry`], with others of OpenTelemetry.
const OTEL_SETTINGS: [Setting; 7] = [
    setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "",
        "where traces are sent: http(s)://… (default: nowhere)",
    ),
    setting("OTEL_METRICS_EXPORTER", "none", "otlp if metrics are sent there, too"),
    setting("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "how: http/protobuf or grpc"),
    setting("OTEL_EXPORTER_OTLP_HEADERS", "", "with which headers: name=value,…"),
    setting("OTEL_SERVICE_NAME", "", "whose they are (default: the function's name)"),
    setting(
        "OTEL_TRACES_SAMPLER",
        "parentbased_always_on",
        "which traces are kept: always_on, always_off, traceidratio, or these behind parentbased_",
    ),
    setting("OTEL_TRACES_SAMPLER_ARG", "1", "the share of traceidratio, from 0 to 1"),
];

const SETTINGS: [Setting; 30] = [
    PORT,
    METRICS_PORT,
    MODEL_URI,
    MODEL_RELOAD,
    CACHE_DIR,
    MAX_CACHE_BYTES,
    HF_ENDPOINT,
    HF_TOKEN,
    HF_TOKEN_FILE,
    AWS_CA_BUNDLE,
    PRECISION,
    POOLING,
    NUM_THREADS,
    MAX_BATCH_TOKENS,
    MAX_BATCH_REQUESTS,
    MAX_QUEUE_WAIT_MS,
    MAX_QUEUE_REQUESTS,
    MAX_CONCURRENT_REQUESTS,
    MAX_CONNECTIONS,
    REQUEST_TIMEOUT_MS,
    HEADER_TIMEOUT_MS,
    IDLE_TIMEOUT_MS,
    MAX_HEADER_BYTES,
    MAX_BODY_BYTES,
    MAX_BODIES_BYTES,
    MAX_CLIENT_BATCH_SIZE,
    MAX_INPUT_CHARS,
    MAX_INPUT_TOKENS,
    TRUNCATION,
    ALLOW_TOKEN_IDS,
];
const LOG_SETTINGS: [Setting; 3] = [RUST_LOG, LOG_FORMAT, METRICS_NAMESPACE];

/// Those of a function without a model that are not about tokens.
const EDGE_SETTINGS: [Setting; 11] = [
    PORT,
    METRICS_PORT,
    NUM_THREADS,
    MAX_CONCURRENT_REQUESTS,
    MAX_CONNECTIONS,
    REQUEST_TIMEOUT_MS,
    HEADER_TIMEOUT_MS,
    IDLE_TIMEOUT_MS,
    MAX_HEADER_BYTES,
    MAX_BODY_BYTES,
    MAX_BODIES_BYTES,
];

/// The function that issues tokens, and has no model.
pub(super) const TOKEN: &str = "token";

/// All settings of `function`, in the order of `--help`.
pub(super) fn settings(function: &str) -> Vec<Setting> {
    match function {
        TOKEN => {
            [&EDGE_SETTINGS[..], &admission::TOKEN_SETTINGS, &LOG_SETTINGS, &OTEL_SETTINGS].concat()
        }
        _ => [&SETTINGS[..], &admission::SETTINGS, &LOG_SETTINGS, &OTEL_SETTINGS].concat(),
    }
}

/// What `--help` prints.
pub(crate) struct Help(pub(crate) &'static str);

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = self.0;
        let path = if function == TOKEN { "login" } else { function };
        writeln!(f, "{function}: answers POST /{path} and GET /health")?;
        writeln!(f, "\nUsage: {function} [--check | --help | --version]")?;
        writeln!(f, "  --check    checks the settings and the model, then exits")?;
        writeln!(f, "\nSettings, from the environment:")?;
        for Setting { name, default, meaning } in settings(function) {
            write!(f, "  {name:<27} {meaning}")?;
            if !default.is_empty() {
                write!(f, " (default: {default})")?;
            }
            writeln!(f)?;
        }
        if function != TOKEN {
            writeln!(f, "\nWithout MODEL_URI the model is the first of:")?;
            for path in default_models(function) {
                writeln!(f, "  {}", path.display())?;
            }
        }
        writeln!(f, "\nWith AWS_LAMBDA_RUNTIME_API set, requests come from AWS Lambda, not PORT.")
    }
}
