use engine::reference::{self, PositionBias};
use engine_gpu::{
    Device, DeviceError,
    kernel::{Address, Attention, attention_blocks, padded_head_dim},
};

use super::{Room, SPARE_ROWS, bounds, numbers, padded, put, rows, untouched};
use crate::Element;

/// `attention.cu`, with and without a bias by distance.
pub fn attention<T: Element>(
    device: &mut impl Device,
    seq_lens: &[u32],
    num_heads: usize,
    head_dim: usize,
    seed: u64,
) -> Result<(), DeviceError> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let (cu_seqlens, num_tokens) = bounds(seq_lens);
    let padded_dim = padded_head_dim(head_dim as u32).expect("a kernel") as usize;
    let [in_stride, out_stride] =
        [3, 1].map(|parts| (parts * num_heads * padded_dim).next_multiple_of(64));
    // Scores of some size: some keys matter, others do not.
    let query_key_value = numbers::<T>(random, num_tokens * 3 * num_heads * head_dim, 2.0);
    let max_seqlen = seq_lens.iter().copied().max().unwrap_or(1) as usize + random.usize(..3);
    let bias: Vec<f32> =
        (0..num_heads * (2 * max_seqlen - 1)).map(|_| random.f32() * 4.0 - 2.0).collect();
    let is_biased = random.bool();

    let blocks = attention_blocks(&cu_seqlens);
    let heads = padded(&query_key_value, head_dim, padded_dim);
    let input = T::all(&padded(&heads, 3 * num_heads * padded_dim, in_stride));
    let output = Room::<T>::make(device, (num_tokens + SPARE_ROWS) * out_stride)?;
    let args = Attention {
        num_blocks: put(device, &[blocks.len() as u32])?,
        blocks: put(device, &blocks)?,
        cu_seqlens: put(device, &cu_seqlens)?,
        query_key_value: put(device, &input)?,
        position_bias: if is_biased { put(device, &bias)? } else { Address::NONE },
        context: output.address,
        max_seqlen: max_seqlen as i32,
        in_stride: in_stride as i32,
        out_stride: out_stride as i32,
        scale: 1.0 / (head_dim as f32).sqrt(),
    };
    let max_blocks = blocks.len() as u32 + 2;
    let launch = args.launch(T::DTYPE, padded_dim as u32, num_heads as u32, max_blocks);
    device.launch(&launch.expect("a kernel"))?;

    let bias = is_biased.then_some(PositionBias { values: &bias, max_seqlen });
    let expected = reference::attention(&query_key_value, &cu_seqlens, num_heads, head_dim, bias);
    let expected = padded(&expected, head_dim, padded_dim);
    // Behind the last head nothing is written: see whether that is so, and leave it out.
    let width = num_heads * padded_dim;
    let output = output.read(device)?;
    let cut = |part: fn(&[T], usize) -> &[T]| -> Vec<T> {
        output.chunks_exact(out_stride).flat_map(|row| part(row, width)).copied().collect()
    };
    untouched(&cut(|row, width| &row[width..]), num_tokens)?;
    rows(&cut(|row, width| &row[..width]), &expected, width)
}
