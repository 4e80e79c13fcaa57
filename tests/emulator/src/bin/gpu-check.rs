//! Every check of the emulator on a GPU: `gpu-check [<folder of the tests>]`.
//!
//! Prints what fails, and `GPU PASS n/n`, or `GPU SKIP` with the reason, which is no pass.
#![allow(clippy::print_stdout, reason = "what it is for")]

use std::process::ExitCode;

use emulator::cases;
use engine_gpu::{Cuda, Device, kernel::Dtype};

fn main() -> ExitCode {
    let tests = std::env::args().nth(1).unwrap_or_else(|| "tests".to_owned());
    let device = match Cuda::open(0) {
        Ok(device) => device,
        Err(error) => {
            println!("GPU SKIP: {error}");
            return ExitCode::from(2);
        }
    };
    println!("{}, {} multiprocessors", device.name(), device.num_multiprocessors());
    let has_bf16 = device.has_bf16();
    drop(device);
    let mut cases = cases::all::<Cuda>(&tests);
    cases.retain(|case| has_bf16 || case.dtype != Dtype::Bf16);
    let mut num_passed = 0;
    for case in &cases {
        match Cuda::open(0).map_err(Into::into).and_then(&case.check) {
            Ok(()) => num_passed += 1,
            Err(error) => println!("FAILED {}: {error}", case.name),
        }
    }
    let is_passed = num_passed == cases.len();
    println!("GPU {} {num_passed}/{}", if is_passed { "PASS" } else { "FAIL" }, cases.len());
    if is_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
