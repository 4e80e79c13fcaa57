//! How long the linear layers of DistilBERT take on the first GPU, by the kernels that the engine takes for
//! them there: `gpu-linear`.
//!
//! Prints seconds, as JSON, by `<rows>x<in_features>x<out_features>`: of one layer, the least of some runs of
//! many behind each other.
#![allow(clippy::print_stdout, reason = "what it is for")]

use std::{collections::BTreeMap, time::Instant};

use engine_gpu::{
    Cuda, Device, DeviceError,
    kernel::{Activation, Address, Dtype, Launch, Linear},
};
use half::f16;

const NUM_ROWS: u32 = 5632;
/// Of queries, keys and values; of the context; of the intermediate layer, there and back.
const FEATURES: [[u32; 2]; 4] = [[768, 2304], [768, 768], [768, 3072], [3072, 768]];
const NUM_LAUNCHES: usize = 50;
const NUM_RUNS: usize = 20;

fn main() -> Result<(), DeviceError> {
    let mut device = Cuda::open(0)?;
    let mut seconds = BTreeMap::new();
    for [in_features, out_features] in FEATURES {
        let launch = launch(&mut device, in_features, out_features)?;
        let name = format!("{NUM_ROWS}x{in_features}x{out_features}");
        seconds.insert(name, least_seconds(&mut device, &launch)?);
    }
    println!("{}", serde_json::to_string(&seconds)?);
    Ok(())
}

/// Of one launch.
fn least_seconds(device: &mut Cuda, launch: &Launch) -> Result<f64, DeviceError> {
    let graph = device.prepare(vec![launch.clone(); NUM_LAUNCHES])?;
    let word = device.allocate(1)?;
    let mut least = f64::INFINITY;
    for _ in 0..NUM_RUNS {
        let started = Instant::now();
        device.start(&graph)?;
        // Waits for it.
        device.read(word, &mut [0])?;
        least = least.min(started.elapsed().as_secs_f64());
    }
    Ok(least / NUM_LAUNCHES as f64)
}

fn launch(device: &mut Cuda, in_features: u32, out_features: u32) -> Result<Launch, DeviceError> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut numbers =
        |len: u32| -> Vec<f16> { (0..len).map(|_| f16::from_f32(random.f32() - 0.5)).collect() };
    let input = put(device, &numbers(NUM_ROWS * in_features))?;
    let weight = put(device, &numbers(out_features * in_features))?;
    let bias = put(device, &vec![0.5_f32; out_features as usize])?;
    let output = device.allocate((NUM_ROWS * out_features) as usize * size_of::<f16>())?;
    let num_rows = put(device, &[NUM_ROWS])?;
    let linear = Linear {
        num_rows,
        input_rows: Address::NONE,
        input,
        weight,
        bias,
        residual: Address::NONE,
        output,
        logits: Address::NONE,
        in_stride: in_features.cast_signed(),
        out_stride: out_features.cast_signed(),
        out_features: out_features.cast_signed(),
        activation: Activation::Identity,
    };
    linear.choose_launch(device, Dtype::F16, NUM_ROWS)
}

fn put<T: bytemuck::NoUninit>(device: &mut Cuda, values: &[T]) -> Result<Address, DeviceError> {
    let place = device.allocate(size_of_val(values))?;
    device.write(place, bytemuck::cast_slice(values))?;
    Ok(place)
}
