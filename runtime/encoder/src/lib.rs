//! A transformer encoder as a bundle holds it: what it computes, where its weights lie, and what a batch
//! looks up in its tables. Every engine reads the same bundle.
//!
//! ```text
//! Description ──> Layout::read ──> tables, norms, layers, head: each a range of the weights
//! Batch ──> Tokens::read ──> rows of the tables
//! ```
//!
//! # Invariants
//!
//! - Whatever a description says, a range of a [`Layout`] lies within the weights, and fits the others.
//! - Ids of [`Tokens`] are rows that the tables have.
//! - No arithmetic on weights, no I/O, no threads.
#![forbid(unsafe_code)]

mod description;
mod layout;
mod position_bias;
mod source;
mod tokens;

pub use description::{
    ALIGNMENT, Activation, Description, ElementType, Head, LAYOUT, PANEL, SEGMENT, Tensor, padded,
};
pub use layout::{Layer, Layout, Linear, Norm, Table};
pub use source::Source;
pub use tokens::Tokens;

use engine::EngineError;

fn unsupported(reason: impl Into<String>) -> EngineError {
    EngineError::Unsupported { reason: reason.into() }
}
