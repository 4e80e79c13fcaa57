//! ONNX encoders on the CPU, through tract.
//!
//! ```text
//! model.onnx ──> CpuEngine::load: parse, optimize ──> plan, shared by the threads
//! Batch ──> forward: each sequence by itself, sequences spread over the threads ──> Output
//! ```
//!
//! # Invariants
//!
//! - A sequence never shares a tensor with another: no padding, and the same row, bit for bit,
//!   alone and in any batch.
//! - Knows neither files nor text: it takes the bytes of a graph and token ids.

mod graph;

use std::{
    error::Error,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use engine::{Batch, Engine, EngineError, Output};

use crate::graph::Graph;

/// An ONNX encoder, ready to run.
#[derive(Debug)]
pub struct CpuEngine {
    graph: Graph,
    num_threads: usize,
}

impl CpuEngine {
    /// Prepares the ONNX model in `onnx` to run on up to `num_threads` threads.
    ///
    /// The graph takes `input_ids` and may take `attention_mask` and `token_type_ids`, all 64-bit
    /// integers `[batch_size, seq_len]`; its first output is `[batch_size, width]`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unsupported`] if the graph has other inputs; [`EngineError::Backend`] if
    /// tract cannot read or prepare it.
    pub fn load(onnx: &[u8], num_threads: usize) -> Result<Self, EngineError> {
        Ok(Self { graph: Graph::load(onnx)?, num_threads: num_threads.max(1) })
    }

    /// Runs sequences that no other thread has taken until none is left.
    fn run_rest(&self, batch: &Batch, next: &AtomicUsize) -> Result<Rows, EngineError> {
        let mut rows = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= batch.batch_size() {
                return Ok(rows);
            }
            rows.push((index, self.graph.run(batch.sequence(index))?));
        }
    }
}

/// Some rows of an output, each with its place in the batch.
type Rows = Vec<(usize, Vec<f32>)>;

impl Engine for CpuEngine {
    fn forward(&mut self, batch: &Batch) -> Result<Output, EngineError> {
        let next = AtomicUsize::new(0);
        let num_helpers = self.num_threads.min(batch.batch_size()).saturating_sub(1);
        let mut rows = thread::scope(|scope| {
            let helpers: Vec<_> =
                (0..num_helpers).map(|_| scope.spawn(|| self.run_rest(batch, &next))).collect();
            let mut rows = self.run_rest(batch, &next)?;
            for helper in helpers {
                rows.extend(
                    helper.join().map_err(|_| backend("a thread of the engine panicked"))??,
                );
            }
            Ok(rows)
        })?;
        rows.sort_unstable_by_key(|&(index, _)| index);
        Output::new(rows.into_iter().flat_map(|(_, row)| row).collect(), batch.batch_size())
    }
}

fn backend(source: impl Into<Box<dyn Error + Send + Sync>>) -> EngineError {
    EngineError::Backend { engine: "tract", source: source.into() }
}
