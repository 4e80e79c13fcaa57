//! Transformer encoders on the CPU: packed, quantized and run by kernels of our own; tract runs
//! what those do not know.
//!
//! ```text
//! model.onnx ──> recognize ──> pack ──> weights as the kernels read them ──> EncoderStack
//!                    │ no                        head of its own │              (simd)
//!                    └──────────> tract <────────────────────────┘
//! Batch ──> forward ──> Output: one row a sequence
//! ```
//!
//! # Invariants
//!
//! - No padding: a sequence gives the same row, bit for bit, alone and in any batch, on any number
//!   of threads.
//! - What `recognize` finds is believed only if it gives the same numbers as the graph in tract.
//! - `unsafe` code is in `simd`, and nowhere else.
//! - Knows neither files nor text: it takes a graph, or bytes that are mapped, and token ids.

mod exported;
mod graph;
mod load;
mod model;
mod pack;
mod pool;
mod recognize;
mod simd;
mod stack;
mod threads;
mod verify;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use engine::{Batch, Engine, EngineError, Output, Pooling};

pub use crate::load::{PackedModel, pack};
use crate::{
    graph::{Graph, Sequence},
    pool::pool,
    stack::EncoderStack,
};

/// A model, ready to run.
#[derive(Debug)]
pub struct CpuEngine {
    path: Path,
    num_threads: usize,
    pooling: Pooling,
}

/// What runs the model.
#[derive(Debug)]
enum Path {
    /// Our kernels.
    Fused(EncoderStack),
    /// Our kernels, then tract for a head that they do not know.
    FusedWithHead(EncoderStack, Graph),
    /// tract.
    Graph(Graph),
}

impl Engine for CpuEngine {
    fn forward(&mut self, batch: &Batch) -> Result<Output, EngineError> {
        let rows = match &mut self.path {
            Path::Fused(stack) => stack.forward(batch)?,
            Path::FusedWithHead(stack, graph) => {
                let hidden_states = stack.forward(batch)?;
                let width = stack.width();
                run_graph(graph, batch, &hidden_states, width, self.num_threads, self.pooling)?
            }
            Path::Graph(graph) => run_graph(graph, batch, &[], 0, self.num_threads, self.pooling)?,
        };
        Output::new(rows, batch.batch_size())
    }
}

/// Runs `graph` for each sequence by itself, sequences spread over the threads.
fn run_graph(
    graph: &Graph,
    batch: &Batch,
    hidden_states: &[f32],
    width: usize,
    num_threads: usize,
    pooling: Pooling,
) -> Result<Vec<f32>, EngineError> {
    let next = AtomicUsize::new(0);
    let run_rest = || {
        let mut rows: Rows = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= batch.batch_size() {
                return Ok(rows);
            }
            let [start, end] = [0, 1].map(|next| batch.cu_seqlens()[index + next] as usize);
            let (values, shape) = graph.run(Sequence {
                input_ids: batch.sequence(index),
                token_type_ids: batch.token_types(index),
                hidden_states: &hidden_states[start * width..end * width],
            })?;
            rows.push((index, pool(values, &shape, pooling)));
        }
    };
    let num_helpers = num_threads.min(batch.batch_size()).saturating_sub(1);
    let mut rows = thread::scope(|scope| {
        let helpers: Vec<_> = (0..num_helpers).map(|_| scope.spawn(run_rest)).collect();
        let mut rows = run_rest()?;
        for helper in helpers {
            let panicked =
                |_| EngineError::Backend { engine: "tract", source: "a thread panicked".into() };
            rows.extend(helper.join().map_err(panicked)??);
        }
        Ok::<_, EngineError>(rows)
    })?;
    rows.sort_unstable_by_key(|&(index, _)| index);
    Ok(rows.into_iter().flat_map(|(_, row)| row).collect())
}

/// Some rows of an output, each with its place in the batch.
type Rows = Vec<(usize, Vec<f32>)>;
