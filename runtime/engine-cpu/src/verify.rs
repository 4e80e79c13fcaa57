//! The proof of what `recognize` says: the encoder and the graph give the same numbers.

use std::sync::Arc;

use engine::{Batch, EngineError, Pooling, Precision};
use tract_onnx::pb::ModelProto;

use crate::{
    exported::{Encoder, Head, Positions},
    graph::{Graph, Sequence},
    model::Model,
    pack,
    pool::pool,
    simd::Kernels,
    stack::EncoderStack,
};

/// Lengths of the sequences that are compared: odd ones, one beyond a tile, and one with distances
/// that share buckets.
const SEQ_LENS: [usize; 3] = [3, 21, 150];

/// Largest difference, relative to the largest number: sums in `f32` in another order.
const TOLERANCE: f32 = 1e-3;

/// Runs `encoder` in `f32`, and `proto` in tract, on made-up sequences. What tract cannot run cannot
/// be compared; the log says so.
///
/// # Errors
///
/// [`EngineError::Unsupported`] if they disagree.
pub(crate) fn verify(encoder: &Encoder, proto: &ModelProto) -> Result<(), EngineError> {
    let (description, weights) = pack::pack(encoder, Precision::F32);
    let model = Model::new(description, Arc::new(weights), Kernels::detect(), Pooling::Cls)?;
    let mut stack = EncoderStack::new(model, 1)?;
    for sequence in SEQ_LENS.map(|seq_len| sequence(encoder, seq_len)).iter().flatten() {
        let (input_ids, token_type_ids) = sequence;
        let seq_len = input_ids.len();
        let run = |proto, hidden_states| {
            let sequence = Sequence { input_ids, token_type_ids, hidden_states };
            let (values, shape) = Graph::load_for(proto, seq_len)?.run(sequence)?;
            Ok::<_, EngineError>(pool(values, &shape, Pooling::Cls))
        };
        let expected = match run(proto, &[]) {
            Ok(expected) => expected,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    exception = error,
                    "tract cannot run the graph: the encoder is not checked"
                );
                return Ok(());
            }
        };
        let mut batch = Batch::new();
        batch.push_segments(input_ids, token_type_ids);
        let rows = stack.forward(&batch)?;
        let actual = match &encoder.head {
            Head::Graph(head) => run(head, &rows)?,
            Head::HiddenStates | Head::FirstToken(_) => rows,
        };
        if let Some(difference) = difference(&actual, &expected) {
            return Err(EngineError::Unsupported {
                reason: format!(
                    "the encoder differs from the graph by {difference} at {seq_len} tokens"
                ),
            });
        }
    }
    Ok(())
}

/// Made-up ids and segments of `seq_len` tokens; `None` if the model has no positions for so many.
fn sequence(encoder: &Encoder, seq_len: usize) -> Option<(Vec<u32>, Vec<u32>)> {
    let embeddings = &encoder.embeddings;
    let first = match embeddings.positions {
        Positions::FromZero => 0,
        Positions::AfterPadding { padding_idx } => padding_idx as usize + 1,
    };
    if first + seq_len > embeddings.position.num_rows {
        return None;
    }
    let vocab_size = embeddings.word.num_rows as u64;
    let mut state = seq_len as u64;
    let mut input_ids: Vec<u32> = (0..seq_len)
        .map(|_| {
            // Knuth's generator: any ids do, as long as they are the same each time.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % vocab_size) as u32
        })
        .collect();
    if let Positions::AfterPadding { padding_idx } = embeddings.positions {
        input_ids[seq_len / 2] = padding_idx;
    }
    let num_types = embeddings.token_type.as_ref().map_or(1, |table| table.num_rows);
    let token_type_ids =
        (0..seq_len).map(|token| ((2 * token / seq_len) % num_types) as u32).collect();
    Some((input_ids, token_type_ids))
}

/// The largest difference, if it is over the tolerance.
fn difference(actual: &[f32], expected: &[f32]) -> Option<f32> {
    if actual.len() != expected.len() {
        return Some(f32::INFINITY);
    }
    let largest = expected.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
    let pairs = actual.iter().zip(expected);
    let difference = pairs.fold(0.0f32, |difference, (a, b)| {
        let apart = (a - b).abs();
        if apart.is_nan() { f32::INFINITY } else { difference.max(apart) }
    });
    (difference > TOLERANCE * largest).then_some(difference)
}
