use engine::Pooling;
use engine_gpu::{
    Device, DeviceError,
    kernel::{Order, Packed, Tile, WideTile},
};
use half::{bf16, f16};

use super::Case;
use crate::{
    Element,
    check::{self, Form},
};

const NUM_DRAWS: u64 = 6;

/// Of every kernel: at the edges of its tiles, and for shapes drawn at random.
#[must_use]
pub fn every_kernel<D: Device>() -> Vec<Case<D>> {
    let mut cases = norm();
    cases.extend(embeddings());
    cases.extend(Tile::ALL.into_iter().map(Form::Any).flat_map(linear));
    cases.extend(WideTile::ALL.into_iter().map(Form::Wide).flat_map(linear));
    cases.extend([32, 64, 96, 128].into_iter().flat_map(attention));
    cases.extend(pool());
    cases.extend(unpack());
    cases
}

/// Adds a case for numbers of `T`.
fn add<T: Element, D: Device>(
    cases: &mut Vec<Case<D>>,
    name: String,
    check: impl Fn(&mut D) -> Result<(), DeviceError> + 'static,
) {
    cases.push(Case {
        name: format!("{name}, {:?}", T::DTYPE),
        dtype: T::DTYPE,
        check: Box::new(move |mut device| check(&mut device)),
    });
}

/// Random numbers of a seed each, and the seed.
fn draws() -> impl Iterator<Item = (fastrand::Rng, u64)> {
    (0..NUM_DRAWS).map(|seed| (fastrand::Rng::with_seed(seed), seed))
}

/// `norm.cu`
#[must_use]
pub fn norm<D: Device>() -> Vec<Case<D>> {
    let mut cases = Vec::new();
    for hidden_size in [1, 40, 64, 384, 768, 1000, 2048] {
        for num_tokens in [1, 4, 5] {
            let name = format!("norm of {num_tokens} by {hidden_size}");
            add::<f16, D>(&mut cases, name.clone(), move |device| {
                check::norm::<f16>(device, num_tokens, hidden_size, 1)
            });
            add::<bf16, D>(&mut cases, name, move |device| {
                check::norm::<bf16>(device, num_tokens, hidden_size, 2)
            });
        }
    }
    cases
}

/// `embeddings.cu`
#[must_use]
pub fn embeddings<D: Device>() -> Vec<Case<D>> {
    let mut cases = Vec::new();
    for (mut random, seed) in draws() {
        let (num_tokens, hidden_size) = (random.usize(1..40), random.usize(1..400));
        let name = format!("embeddings of {num_tokens} by {hidden_size}");
        add::<f16, D>(&mut cases, name.clone(), move |device| {
            check::embeddings::<f16>(device, num_tokens, hidden_size, seed)
        });
        add::<bf16, D>(&mut cases, name, move |device| {
            check::embeddings::<bf16>(device, num_tokens, hidden_size, seed)
        });
    }
    cases
}

/// `linear.cu` or `sm90_linear.cu`, by tiles of one size.
#[must_use]
pub fn linear<D: Device>(form: Form) -> Vec<Case<D>> {
    let mut cases = Vec::new();
    let edges = match form {
        Form::Any(tile) => {
            let [rows, _] = tile.size();
            vec![1, rows as usize - 1, rows as usize, rows as usize + 1]
        }
        Form::Wide(_) => vec![1, 64, 65, 127, 128, 129],
    };
    let edges = edges.into_iter().map(|num_rows| (num_rows, [64, 64], num_rows as u64));
    let drawn = draws().map(|(mut random, seed)| {
        let features = [random.usize(1..300), random.usize(1..300)];
        (random.usize(1..200), features, seed)
    });
    // And a layer of DistilBERT.
    let whole = (40, [768, 3072], 1);
    for (num_rows, features, seed) in edges.chain(drawn).chain([whole]) {
        let name = format!("linear, {form:?}, of {num_rows} by {features:?}");
        add::<f16, D>(&mut cases, name.clone(), move |device| {
            check::linear::<f16>(device, form, num_rows, features, seed)
        });
        add::<bf16, D>(&mut cases, name, move |device| {
            check::linear::<bf16>(device, form, num_rows, features, seed + NUM_DRAWS)
        });
    }
    cases
}

/// `attention.cu`, of heads that are padded to `padded_head_dim`.
#[must_use]
pub fn attention<D: Device>(padded_head_dim: usize) -> Vec<Case<D>> {
    let mut cases = Vec::new();
    let head_dims = [padded_head_dim, padded_head_dim - 12];
    let edges: [&[u32]; 6] = [&[1], &[64], &[65], &[31, 32, 33], &[1, 130, 7], &[512, 3]];
    let edges = (0..).zip(edges).flat_map(|(seed, seq_lens)| {
        head_dims.map(|head_dim| (seq_lens.to_vec(), 2, head_dim, seed))
    });
    let drawn = draws().map(|(mut random, seed)| {
        let seq_lens: Vec<u32> = (0..random.usize(1..5)).map(|_| random.u32(1..200)).collect();
        (seq_lens, random.usize(1..4), head_dims[random.usize(..2)], seed)
    });
    for (seq_lens, num_heads, head_dim, seed) in edges.chain(drawn) {
        let name = format!("attention of {num_heads} heads of {head_dim}, {seq_lens:?} tokens");
        let same = seq_lens.clone();
        add::<f16, D>(&mut cases, name.clone(), move |device| {
            check::attention::<f16>(device, &same, num_heads, head_dim, seed)
        });
        add::<bf16, D>(&mut cases, name, move |device| {
            check::attention::<bf16>(device, &seq_lens, num_heads + 1, head_dim, seed + 10)
        });
    }
    cases
}

/// `pool.cu`
#[must_use]
pub fn pool<D: Device>() -> Vec<Case<D>> {
    let mut cases = Vec::new();
    for pooling in Pooling::ALL {
        for (mut random, seed) in draws() {
            let seq_lens: Vec<u32> = (0..random.usize(1..6)).map(|_| random.u32(1..60)).collect();
            let hidden_size = random.usize(1..300);
            let name = format!("{pooling} of {seq_lens:?} tokens by {hidden_size}");
            let same = seq_lens.clone();
            add::<f16, D>(&mut cases, name.clone(), move |device| {
                check::pool::<f16>(device, &same, hidden_size, pooling, seed)
            });
            add::<bf16, D>(&mut cases, name, move |device| {
                check::pool::<bf16>(device, &seq_lens, hidden_size, pooling, seed)
            });
        }
    }
    cases
}

/// `unpack.cu`, to the last bit.
#[must_use]
pub fn unpack<D: Device>() -> Vec<Case<D>> {
    let mut cases = Vec::new();
    for dtype in [Packed::F32, Packed::Bf16, Packed::Int8] {
        for order in [Order::Panels, Order::Rows] {
            let name = format!("unpack {order:?} of {dtype:?}");
            add::<f16, D>(&mut cases, name.clone(), move |device| {
                check::unpack::<f16>(device, dtype, order, [64, 192], 1)
            });
            add::<bf16, D>(&mut cases, name, move |device| {
                check::unpack::<bf16>(device, dtype, order, [96, 64], 2)
            });
        }
    }
    cases
}
