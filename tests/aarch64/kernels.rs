//! The modules of `engine-cpu` that need no tract, with their unit tests, as a crate of their own.
#![expect(dead_code, reason = "the rest of engine-cpu uses it")]

// What `exported` imports from tract is at the end of this file.
extern crate self as tract_onnx;

#[path = "../../runtime/engine-cpu/src/exported.rs"]
mod exported;
#[path = "../../runtime/engine-cpu/src/model.rs"]
mod model;
#[path = "../../runtime/engine-cpu/src/pack.rs"]
mod pack;
#[path = "../../runtime/engine-cpu/src/pool.rs"]
mod pool;
#[path = "../../runtime/engine-cpu/src/simd/mod.rs"]
mod simd;
#[path = "../../runtime/engine-cpu/src/stack.rs"]
mod stack;
#[path = "../../runtime/engine-cpu/src/threads.rs"]
mod threads;

/// Kernels that a CPU lacks are not tested on it: it must have those it was chosen for.
#[test]
fn the_best_kernels_are_those_expected() {
    #[expect(clippy::disallowed_methods, reason = "no setting: what tests/run chose the CPU for")]
    let expected = std::env::var("BEST_KERNELS").expect("tests/run sets BEST_KERNELS");
    assert_eq!(simd::Kernels::detect().name(), expected);
}

mod pb {
    /// Stands for a graph; there is none.
    #[derive(Debug)]
    pub(crate) struct ModelProto;
}
