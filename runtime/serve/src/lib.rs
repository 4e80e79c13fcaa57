//! Everything between a caller and a pipeline: settings, HTTP and AWS Lambda, JSON, status codes.
//!
//! ```text
//! run ──> Config ──> load the model on a thread ──────────────┐
//!            │                                                v
//!            └─────> edge::{http, lambda} ──> router ──> endpoint ──> Pipeline
//! ```
//!
//! A function is a `main` that names an endpoint and how its pipeline is loaded; see
//! `functions/predict`. The port is open, or Lambda polled, while the model still loads: a request
//! waits for it as long as it may wait for anything.
//!
//! # Invariants
//!
//! - The only crate that knows status codes and the JSON of the wire.
//! - The only crate that reads the environment, in [`Config`].
#![forbid(unsafe_code)]

mod config;
mod edge;
pub mod endpoint;
mod error;
mod json;
mod load;
mod model;
mod run;

pub use config::{Config, ConfigError, Platform, Reload};
pub use load::LoadError;
pub use model::Model;
pub use run::run;
