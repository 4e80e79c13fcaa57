//! Where a model comes from and what it is: the folder, its files, labels and digest.
//!
//! ```text
//! MODEL_URI ──> Bundle::open ──> labels, name, version, tokenizer()
//!                    ├──> graph()    model.onnx, as it was exported
//!                    └──> packed()   weights.bin, mapped, as an engine reads it
//!                           ^
//!               keep() ─────┘        what an engine made of the export, in the cache
//! ```
//!
//! A version is a digest: two bundles with the same version hold the same bytes.

mod bundle;
mod config;
mod error;
mod map;
mod packed;
mod uri;

pub use bundle::Bundle;
pub use error::WeightsError;
pub use map::Mapping;
pub use packed::{Packed, Unpacked};
