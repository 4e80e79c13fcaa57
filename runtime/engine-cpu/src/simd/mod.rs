//! The kernels, for each instruction set, and the pass that strings them together. All `unsafe`
//! code of this crate is here.
//!
//! ```text
//! isa ── avx512, avx2, neon, portable     what differs: vectors, tiles, two shuffles
//! lanes                                   functions of vectors, the same for all
//! linear  norm  attention                 operators on blocks of rows, the same for all
//! walk ── pass, stages, buffer            the operators in their order, shared among threads
//! ```
//!
//! An instruction set is chosen once, at load: [`Kernels::detect`] gives the best one that this
//! CPU has. Everything below is compiled for each of them.
#![allow(
    unsafe_code,
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    reason = "kernels: each function states in `# Safety` what holds for its whole body"
)]

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod buffer;
mod isa;
mod kernels;
mod lanes;
mod linear;
#[cfg(target_arch = "aarch64")]
mod neon;
mod norm;
mod pass;
mod portable;
mod stages;
#[cfg(test)]
mod tests;
mod walk;

pub(crate) use isa::Dtype;
pub(crate) use kernels::Kernels;
pub(crate) use linear::LinearWeights;
pub(crate) use norm::{NormWeights, TableWeights};
pub(crate) use pass::{Local, Pass};
pub(crate) use stages::Stages;
