//! Everything between a caller and a pipeline: settings, HTTP and AWS Lambda, JSON, status codes.
//!
//! ```text
//! run ──> Config ──> load the model on a thread ──────────────────────────┐
//!            │                                                            v
//!            └─────> edge::{http, lambda} ──> Routes ──> admit ──> dialect ──> Endpoint ──> Pipeline
//! ```
//!
//! A function is a `main` that names its routes and how its pipeline is loaded; see
//! `functions/predict`, whose routes are [`predict()`]. The port is open, or Lambda polled, while the
//! model still loads: a request waits for it as long as it may wait for anything.
//!
//! # Invariants
//!
//! - The only crate that knows status codes and the JSON of the wire.
//! - The only crate that reads the environment, in [`Config`].
#![forbid(unsafe_code)]

mod admit;
mod answer;
mod config;
mod dialect;
mod edge;
mod endpoint;
mod error;
mod face;
#[cfg(fuzzing)]
pub mod fuzzing;
mod json;
mod load;
mod metrics;
mod model;
mod openapi;
mod routes;
mod run;
mod service;
mod token;

pub use answer::Answer;
pub use config::{Config, ConfigError, Platform, Reload, TokenOptions};
pub use dialect::{embed, predict, rerank};
pub use endpoint::{Endpoint, Texts};
pub use error::ApiError;
pub use load::LoadError;
pub use routes::Routes;
pub use run::run;
pub use token::run as token;
