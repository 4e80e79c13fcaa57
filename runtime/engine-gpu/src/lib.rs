//! Transformer encoders on a GPU.
//!
//! ```text
//! bundle ──> Weights: unpacked on the device ──┐
//! Batch ──> Tokens ──> Pass of the least Size that has room ──> Output
//!                        │
//! input_ids ─> Embeddings ─┬─> Linear ─> Attention ─> Linear ─> Norm ─> Linear ─> Linear ─> Norm ─┬─>
//!                          └────────────────────────── a layer, again and again ──────────────────┘
//! hidden states ─┬─> Pool ─> embeddings
//!                └─> Linear, of each sequence's first token ─> logits
//! ```
//!
//! # Invariants
//!
//! - Tokens are packed without padding; `cu_seqlens` says where each sequence starts.
//! - Kernels read how many tokens, sequences and blocks there are from the memory of the device: a start
//!   is for the most that there may be, and blocks behind the last do nothing.
//! - What is computed of shapes (grids, tiles, lists of blocks, sizes) is computed in plain functions here.
//! - Whatever runs kernels is a [`Device`]: all but `cuda` is tested without a GPU.
//! - `unsafe` code is in `cuda`, and nowhere else.

mod cuda;
mod device;
mod engine;
mod image;
pub mod kernel;
mod pass;
mod weights;

use ::engine::EngineError;

pub use crate::{
    cuda::{Cuda, CudaError},
    device::{AllocatedBytes, Device, DeviceError},
    engine::GpuEngine,
};

fn failed(source: DeviceError) -> EngineError {
    EngineError::Backend { engine: "gpu", source }
}
