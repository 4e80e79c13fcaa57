use engine::{Pooling, reference};
use engine_gpu::{Device, DeviceError, kernel::Pool};

use super::{Room, SPARE_ROWS, bounds, numbers, padded, put, same, untouched};
use crate::Element;

/// `pool.cu`
pub fn pool<T: Element>(
    device: &mut impl Device,
    seq_lens: &[u32],
    hidden_size: usize,
    pooling: Pooling,
    seed: u64,
) -> Result<(), DeviceError> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let (cu_seqlens, num_tokens) = bounds(seq_lens);
    let stride = hidden_size.next_multiple_of(64);
    let hidden_states = numbers::<T>(random, num_tokens * hidden_size, 1.0);
    let output = Room::<f32>::make(device, (seq_lens.len() + SPARE_ROWS) * hidden_size)?;
    let args = Pool {
        batch_size: put(device, &[seq_lens.len() as u32])?,
        cu_seqlens: put(device, &cu_seqlens)?,
        hidden_states: put(device, &T::all(&padded(&hidden_states, hidden_size, stride)))?,
        embeddings: output.address,
        stride: stride as i64,
        hidden_size: hidden_size as i32,
        pooling: pooling.into(),
    };
    device.launch(&args.launch(T::DTYPE, (seq_lens.len() + SPARE_ROWS) as u32))?;
    let expected = reference::pool(&hidden_states, &cu_seqlens, hidden_size, pooling);
    let output = output.read(device)?;
    let (written, spare) = output.split_at(expected.len());
    // Sums in f32 of up to some hundred numbers.
    same(written, &expected, hidden_size, 1e-5)?;
    untouched(spare, SPARE_ROWS)
}
