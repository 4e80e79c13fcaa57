//! How a function tells what it does: log lines on standard output, metrics to be scraped, traces
//! and metrics sent by OTLP.
//!
//! Messages are constant, facts are typed fields; one event a fact. Prompts, outputs, tokens and
//! credentials are never logged at any level.
#![forbid(unsafe_code)]

mod causes;
mod log;
mod metrics;
mod otlp;
mod request;
mod secret;
mod stages;
pub mod trace;

use std::time::Duration;

pub use causes::Causes;
pub use log::{Gathering, LogError, LogFormat, gather_lines, init};
pub use metrics::{
    ALL, Counter, Definition, Exemplar, Family, Gauge, Histogram, Kind, MAX_SERIES, METRICS,
    Metrics, PROCESS, TextFormat, cloudwatch, push, scrape,
};
pub use otlp::{Destination, OnLambda, OtlpError, Protocol};
pub use request::{Facts, facts, note, request, trace_context};
pub use secret::Secret;
pub use stages::{Stage, StageTimer, ready, stage, started, take_stages};

/// Sends and writes what waits to be, for no longer than `limit`.
pub async fn flush(limit: Duration) {
    cloudwatch::flush();
    tokio::join!(trace::flush(limit), push::flush(limit));
}
