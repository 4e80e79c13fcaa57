use engine::{Pooling, reference};
use engine_gpu::kernel::Pool;

use super::{SPARE_ROWS, bounds, numbers, padded, same, untouched};
use crate::{Buffer, Element, run};

/// `pool.cu`
pub fn pool<T: Element>(
    variant: &str,
    seq_lens: &[u32],
    hidden_size: usize,
    pooling: Pooling,
    seed: u64,
) -> Result<(), String> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let (cu_seqlens, num_tokens) = bounds(seq_lens);
    let stride = hidden_size.next_multiple_of(64);
    let hidden_states = numbers::<T>(random, num_tokens * hidden_size, 1.0);
    let count = Buffer::of(&[seq_lens.len() as u32]);
    let bound_buffer = Buffer::of(&cu_seqlens);
    let input = T::buffer(&padded(&hidden_states, hidden_size, stride));
    let output = Buffer::<f32>::poisoned((seq_lens.len() + SPARE_ROWS) * hidden_size);
    let args = Pool {
        batch_size: count.address(),
        cu_seqlens: bound_buffer.address(),
        hidden_states: input.address(),
        embeddings: output.address(),
        stride: stride as i64,
        hidden_size: hidden_size as i32,
        pooling: pooling.into(),
    };
    run(variant, &args.launch(T::DTYPE, (seq_lens.len() + SPARE_ROWS) as u32), seed)?;
    let expected = reference::pool(&hidden_states, &cu_seqlens, hidden_size, pooling);
    let (written, spare) = output.values().split_at(expected.len());
    // Sums in f32 of up to some hundred numbers.
    same(written, &expected, hidden_size, 1e-5)?;
    untouched(spare, SPARE_ROWS)
}
