//! Where a model comes from and what it is: stores, the bundle and its digests, the cache.
//!
//! ```text
//! MODEL_URI ──> Bundle::open ──> labels, name, version, tokenizer()
//!      │             ├──> graph()    model.onnx, as it was exported
//!    store           └──> packed()   weights.bin, mapped, as an engine reads it; it may still be
//!      │                     ^       arriving: Weights::wait
//!  download ─> arrive ─> cache
//!                            ^
//!               keep() ──────┘       what an engine made of an export
//! ```
//!
//! # Invariants
//!
//! - A version is a digest: two bundles with the same version hold the same bytes.
//! - What came over a network is checked against its digest before anybody reads it.
//! - An entry of the cache is whole, or it is not there.

mod access;
mod arrive;
mod bundle;
mod cache;
mod config;
mod digest;
mod download;
mod error;
mod inspect;
mod manifest;
mod map;
mod progress;
mod repository;
mod sentence;
mod store;
mod stored;
mod transfer;
mod uri;

pub use access::Access;
pub use bundle::{Bundle, Options};
pub use encoder::Tensor;
pub use error::WeightsError;
pub use inspect::{Contents, ModelFile, inspect};
pub use manifest::{Packed, Unpacked};
pub use map::Weights;
pub use progress::{OnProgress, Progress};
pub use repository::Moved;
pub use sentence::Sentence;
pub use transfer::{Pushed, promote, pull, push, rollback};
