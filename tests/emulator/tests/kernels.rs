//! Every kernel computes what its answer key does: at the edges of its tiles, and for shapes drawn at
//! random.

use engine::Pooling;
use engine_gpu::kernel::{Order, Packed, Tile};
use half::{bf16, f16};
use sanderling_emulator::check;

const NUM_DRAWS: u64 = 6;

fn passed(outcome: Result<(), String>, case: impl std::fmt::Debug) {
    assert_eq!(outcome, Ok(()), "{case:?}");
}

/// Calls `check` with random numbers of a seed each, and the seed.
fn draw(mut check: impl FnMut(&mut fastrand::Rng, u64)) {
    for seed in 0..NUM_DRAWS {
        check(&mut fastrand::Rng::with_seed(seed), seed);
    }
}

#[test]
fn norm_of_each_row() {
    for hidden_size in [1, 40, 64, 384, 768, 1000, 2048] {
        for num_tokens in [1, 4, 5] {
            let case = (num_tokens, hidden_size);
            passed(check::norm::<f16>("", num_tokens, hidden_size, 1), case);
            passed(check::norm::<bf16>("", num_tokens, hidden_size, 2), case);
        }
    }
}

#[test]
fn embeddings_are_sums_of_rows_normalized() {
    draw(|random, seed| {
        let case = (random.usize(1..40), random.usize(1..400));
        passed(check::embeddings::<f16>("", case.0, case.1, seed), case);
        passed(check::embeddings::<bf16>("", case.0, case.1, seed), case);
    });
}

fn linear(tile: Tile) {
    let [rows, _] = tile.size();
    for num_rows in [1, rows - 1, rows, rows + 1] {
        let case = (num_rows as usize, [64, 64]);
        passed(check::linear::<f16>("", tile, case.0, case.1, num_rows.into()), case);
    }
    draw(|random, seed| {
        let features = [random.usize(1..300), random.usize(1..300)];
        let case = (random.usize(1..200), features);
        passed(check::linear::<f16>("", tile, case.0, case.1, seed), case);
        passed(check::linear::<bf16>("", tile, case.0, case.1, seed + NUM_DRAWS), case);
    });
}

#[test]
fn linear_by_large_tiles() {
    linear(Tile::Large);
}

#[test]
fn linear_by_medium_tiles() {
    linear(Tile::Medium);
}

#[test]
fn linear_by_small_tiles() {
    linear(Tile::Small);
}

#[test]
fn linear_of_a_whole_layer() {
    let case = (40, [768, 3072]);
    passed(check::linear::<f16>("", Tile::Medium, case.0, case.1, 1), case);
}

fn attention(head_dims: [usize; 2]) {
    let edges: [&[u32]; 5] = [&[1], &[64], &[65], &[31, 32, 33], &[1, 130, 7]];
    for (seed, seq_lens) in (0..).zip(edges) {
        for head_dim in head_dims {
            let case = (seq_lens, head_dim);
            passed(check::attention::<f16>("", seq_lens, 2, head_dim, seed), case);
            passed(check::attention::<bf16>("", seq_lens, 3, head_dim, seed + 10), case);
        }
    }
    draw(|random, seed| {
        let seq_lens: Vec<u32> = (0..random.usize(1..5)).map(|_| random.u32(1..200)).collect();
        let case = (&seq_lens[..], random.usize(1..4), head_dims[random.usize(..2)]);
        passed(check::attention::<f16>("", case.0, case.1, case.2, seed), case);
    });
}

#[test]
fn attention_of_heads_up_to_32() {
    attention([32, 20]);
}

#[test]
fn attention_of_heads_up_to_64() {
    attention([64, 40]);
}

#[test]
fn attention_of_heads_up_to_96() {
    attention([96, 80]);
}

#[test]
fn attention_of_heads_up_to_128() {
    attention([128, 100]);
}

#[test]
fn attention_of_a_long_sequence() {
    passed(check::attention::<f16>("", &[512, 3], 1, 64, 1), "512 tokens");
}

#[test]
fn each_sequence_is_pooled_by_itself() {
    for pooling in Pooling::ALL {
        draw(|random, seed| {
            let seq_lens: Vec<u32> = (0..random.usize(1..6)).map(|_| random.u32(1..60)).collect();
            let case = (&seq_lens[..], random.usize(1..300), pooling);
            passed(check::pool::<f16>("", case.0, case.1, case.2, seed), case);
            passed(check::pool::<bf16>("", case.0, case.1, case.2, seed), case);
        });
    }
}

#[test]
fn weights_are_unpacked_to_the_last_bit() {
    for dtype in [Packed::F32, Packed::Bf16, Packed::Int8] {
        for order in [Order::Panels, Order::Rows] {
            let case = (dtype, order);
            passed(check::unpack::<f16>("", dtype, order, [64, 192], 1), case);
            passed(check::unpack::<bf16>("", dtype, order, [96, 64], 2), case);
        }
    }
}
