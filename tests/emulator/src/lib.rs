//! The kernels of engine-gpu on the CPU, and what each has to compute.
#![allow(
    missing_docs,
    unsafe_code,
    clippy::expect_used,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    reason = "for tests"
)]

mod buffer;
pub mod cases;
pub mod check;
mod device;
mod element;
#[path = "../../conformance/fixtures.rs"]
mod fixtures;
mod mutants;

use std::ffi::{CStr, CString, c_char, c_void};

use engine_gpu::kernel::Launch;

pub use crate::{
    device::Emulated,
    element::Element,
    mutants::{MUTANTS, Mutant},
};

unsafe extern "C" {
    fn emulator_list();
    fn emulator_launch(
        name: *const c_char,
        args: *const c_void,
        args_size: usize,
        grid: *const u32,
        num_threads: u32,
        seed: u64,
        conflicts: *mut f64,
    ) -> *const c_char;
}

/// Runs a kernel of which the name begins with `variant`: nothing, or a [`Mutant`]'s name. Fails with the
/// reason why it could not be run; or that the rows of a matrix which it reads at once lie in the same banks
/// of shared memory.
fn run(variant: &str, launch: &Launch, seed: u64) -> Result<(), String> {
    let name = CString::new(format!("{variant}{}", launch.kernel)).expect("a name");
    let Launch { grid, num_threads, args, .. } = launch;
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
