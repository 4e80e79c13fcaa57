//! The kernels of engine-gpu on the CPU, and what each has to compute.
#![allow(
    missing_docs,
    unsafe_code,
    clippy::expect_used,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    reason = "for tests"
)]

pub mod cases;
pub mod check;
mod device;
mod element;
#[path = "../../conformance/fixtures.rs"]
mod fixtures;
mod memory;
mod mutants;

use std::ffi::{CStr, CString, c_char, c_void};

use engine_gpu::kernel::Launch;

pub use crate::{
    device::{Emulated, tensor_map},
    element::Element,
    memory::Memory,
    mutants::{MUTANTS, Mutant},
};

unsafe extern "C" {
    fn emulator_list();
    fn emulator_args_size(name: *const c_char) -> usize;
    fn emulator_launch(
        name: *const c_char,
        args: *const c_void,
        args_size: usize,
        grid: *const u32,
        num_threads: u32,
        dynamic_shared: u32,
        seed: u64,
        conflicts: *mut f64,
    ) -> *const c_char;
}

/// Bytes of the arguments of a kernel, if there is such a one.
#[must_use]
pub fn args_size(kernel: &str) -> Option<usize> {
    let name = CString::new(kernel).ok()?;
    // SAFETY: it does nothing.
    unsafe { emulator_list() };
    // SAFETY: a text that ends with a zero.
    let size = unsafe { emulator_args_size(name.as_ptr()) };
    (size > 0).then_some(size)
}

/// Runs a kernel of which the name begins with `variant`: nothing, or a [`Mutant`]'s name. Fails with the
/// reason why it could not be run; or that the rows of a matrix which it reads at once lie in the same banks
/// of shared memory.
pub fn run(variant: &str, launch: &Launch, seed: u64) -> Result<(), String> {
    let name = CString::new(format!("{variant}{}", launch.kernel)).expect("a name");
    let Launch { grid, num_threads, shared_bytes, args, .. } = launch;
    let mut conflicts = 0.0;
    // SAFETY: it does nothing.
    unsafe { emulator_list() };
    // SAFETY: the arguments are those of the kernel, or refused by their size; what they point to are
    // buffers of a check, which end where memory ends that may be touched.
    let failure = unsafe {
        emulator_launch(
            name.as_ptr(),
            args.as_ptr().cast(),
            args.len(),
            grid.as_ptr(),
            *num_threads,
            *shared_bytes,
            seed,
            &raw mut conflicts,
        )
    };
    if !failure.is_null() {
        // SAFETY: it is a literal of the emulator.
        let failure = unsafe { CStr::from_ptr(failure) };
        return Err(format!("{name:?}: {}", failure.to_string_lossy()));
    }
    if conflicts > 1.0 {
        return Err(format!(
            "{name:?}: reads take {conflicts:.2} times as long for conflicts of banks"
        ));
    }
    Ok(())
}
