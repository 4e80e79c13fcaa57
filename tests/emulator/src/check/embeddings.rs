use engine::reference;
use engine_gpu::{
    Device, DeviceError,
    kernel::{Address, Embeddings},
};

use super::{
    Room, SPARE_ROWS,
    norm::{EPSILON, NormWeights},
    numbers, padded, put, rows,
};
use crate::Element;

/// `embeddings.cu`, with and without token types.
pub fn embeddings<T: Element>(
    device: &mut impl Device,
    num_tokens: usize,
    hidden_size: usize,
    seed: u64,
) -> Result<(), DeviceError> {
    const NUM_ROWS: [u32; 3] = [50, 40, 2];
    let random = &mut fastrand::Rng::with_seed(seed);
    let stride = hidden_size.next_multiple_of(64);
    let tables =
        NUM_ROWS.map(|num_rows| numbers::<T>(random, num_rows as usize * hidden_size, 1.0));
    let ids = NUM_ROWS
        .map(|num_rows| (0..num_tokens).map(|_| random.u32(..num_rows)).collect::<Vec<u32>>());
    let is_typed = random.bool();
    let weights = NormWeights::draw(device, random, hidden_size, stride)?;

    let output = Room::<T>::make(device, (num_tokens + SPARE_ROWS) * stride)?;
    let mut put_table = |table: &[f32]| put(device, &T::all(&padded(table, hidden_size, stride)));
    let [words, positions, token_types] = tables.each_ref();
    let (words, positions) = (put_table(words)?, put_table(positions)?);
    let token_types = if is_typed { put_table(token_types)? } else { Address::NONE };
    let args = Embeddings {
        num_tokens: put(device, &[num_tokens as u32])?,
        input_ids: put(device, &ids[0])?,
        position_ids: put(device, &ids[1])?,
        token_type_ids: if is_typed { put(device, &ids[2])? } else { Address::NONE },
        words,
        positions,
        token_types,
        hidden_states: output.address,
        norm: weights.args,
    };
    device.launch(&args.launch(T::DTYPE, (num_tokens + SPARE_ROWS) as u32))?;

    let num_tables = if is_typed { 3 } else { 2 };
    let mut sums = vec![0.0; num_tokens * hidden_size];
    for (table, ids) in tables.iter().zip(&ids).take(num_tables) {
        let found = reference::look_up(table, ids, hidden_size);
        sums.iter_mut().zip(found).for_each(|(sum, value)| *sum += value);
    }
    let expected = reference::layer_norm(&sums, &weights.weight, &weights.bias, EPSILON);
    rows(&output.read(device)?, &padded(&expected, hidden_size, stride), stride)
}
