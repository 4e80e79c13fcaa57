//! Where a model comes from and what it is: the folder, its files, labels and digest.
//!
//! ```text
//! MODEL_URI ──> Bundle::open ──> labels, name, version
//!                    ├──> graph()       model.onnx
//!                    └──> tokenizer()   tokenizer.json
//! ```
//!
//! A version is a digest: two bundles with the same version hold the same bytes.
#![forbid(unsafe_code)]

mod bundle;
mod config;
mod error;
mod uri;

pub use bundle::Bundle;
pub use error::WeightsError;
