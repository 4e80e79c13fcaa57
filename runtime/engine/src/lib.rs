//! The contract between the pipeline and an engine: what goes in, what comes out, what can fail.
//!
//! ```text
//! Batch ──> Engine::forward ──> Output
//!             │
//!             └─> EngineError
//! ```
//!
//! # Invariants
//!
//! - No I/O, no threads, no `async`, no `unsafe`: whoever writes a new engine needs no other crate.
//! - Token positions are packed without padding; `cu_seqlens` says where each sequence starts.
//! - Shapes are row-major, written `[rows, columns]`.
#![forbid(unsafe_code)]

mod batch;
mod error;
mod options;
mod output;
mod pooling;
mod precision;
pub mod reference;

pub use batch::Batch;
pub use error::EngineError;
pub use options::Options;
pub use output::Output;
pub use pooling::{Pooling, UnknownPooling};
pub use precision::{Precision, UnknownPrecision};

/// A loaded model that turns packed sequences of token ids into one row of numbers each.
pub trait Engine: Send + 'static {
    /// Runs the model once over `batch`; returns when the result is in host memory.
    ///
    /// A sequence gives the same row alone and beside others.
    ///
    /// # Errors
    ///
    /// [`EngineError::Backend`] if the library or device below fails, [`EngineError::Lost`] if for good;
    /// [`EngineError::ShapeMismatch`] if the model gives something other than one row a sequence.
    fn forward(&mut self, batch: &Batch) -> Result<Output, EngineError>;

    /// Another engine of the same model, which runs a batch while this one runs another; none if nothing
    /// is gained by that.
    fn another(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }
}
