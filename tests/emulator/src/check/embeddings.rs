use engine::reference;
use engine_gpu::kernel::{Address, Embeddings};

use super::{
    SPARE_ROWS,
    norm::{EPSILON, NormWeights},
    numbers, padded, rows,
};
use crate::{Buffer, Element, run};

/// `embeddings.cu`, with and without token types.
pub fn embeddings<T: Element>(
    variant: &str,
    num_tokens: usize,
    hidden_size: usize,
    seed: u64,
) -> Result<(), String> {
    const NUM_ROWS: [u32; 3] = [50, 40, 2];
    let random = &mut fastrand::Rng::with_seed(seed);
    let stride = hidden_size.next_multiple_of(64);
    let tables =
        NUM_ROWS.map(|num_rows| numbers::<T>(random, num_rows as usize * hidden_size, 1.0));
    let ids = NUM_ROWS
        .map(|num_rows| (0..num_tokens).map(|_| random.u32(..num_rows)).collect::<Vec<u32>>());
    let is_typed = random.bool();
    let weights = NormWeights::draw(random, hidden_size, stride);

    let count = Buffer::of(&[num_tokens as u32]);
    let table_buffers =
        tables.each_ref().map(|table| T::buffer(&padded(table, hidden_size, stride)));
    let id_buffers = ids.each_ref().map(|ids| Buffer::of(ids));
    let output = Buffer::<T>::poisoned((num_tokens + SPARE_ROWS) * stride);
    let args = Embeddings {
        num_tokens: count.address(),
        input_ids: id_buffers[0].address(),
        position_ids: id_buffers[1].address(),
        token_type_ids: if is_typed { id_buffers[2].address() } else { Address::NONE },
        words: table_buffers[0].address(),
        positions: table_buffers[1].address(),
        token_types: if is_typed { table_buffers[2].address() } else { Address::NONE },
        hidden_states: output.address(),
        norm: weights.args,
    };
    run(variant, &args.launch(T::DTYPE, (num_tokens + SPARE_ROWS) as u32), seed)?;

    let num_tables = if is_typed { 3 } else { 2 };
    let mut sums = vec![0.0; num_tokens * hidden_size];
    for (table, ids) in tables.iter().zip(&ids).take(num_tables) {
        let found = reference::look_up(table, ids, hidden_size);
        sums.iter_mut().zip(found).for_each(|(sum, value)| *sum += value);
    }
    let expected = reference::layer_norm(&sums, &weights.weight, &weights.bias, EPSILON);
    rows(&output, &padded(&expected, hidden_size, stride), stride)
}
