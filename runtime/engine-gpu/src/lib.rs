//! Transformer encoders on a GPU.
//!
//! ```text
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
//! - What is computed of shapes (grids, tiles, lists of blocks) is computed in plain functions here.
#![forbid(unsafe_code)]

pub mod kernel;
