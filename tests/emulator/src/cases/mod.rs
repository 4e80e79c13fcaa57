//! What is checked of every kernel, and of whole models: on the emulator by the tests, on a GPU by
//! `gpu-check`.

mod kernels;
mod models;

use std::fmt;

use engine_gpu::{DeviceError, kernel::Dtype};

pub use self::{kernels::*, models::*};

/// Something that a device has to do right.
pub struct Case<D> {
    /// What, and with which numbers.
    pub name: String,
    /// Of the kernels that it needs.
    pub dtype: Dtype,
    /// Fails with the reason.
    pub check: Box<dyn Fn(D) -> Result<(), DeviceError>>,
}

impl<D> fmt::Debug for Case<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All of them; `tests` is the folder of the repository's tests.
#[must_use]
pub fn all<D: engine_gpu::Device>(tests: &str) -> Vec<Case<D>> {
    let mut cases = every_kernel();
    cases.extend(architectures(tests));
    cases.extend(["predict", "embed"].into_iter().flat_map(|function| bundled(tests, function)));
    cases
}
