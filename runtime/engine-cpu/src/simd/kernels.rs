//! Which instruction sets this CPU has, and which of them is used.

use super::{attention::Scratch, isa::Isa, pass::Pass, portable::Portable, walk};

/// The instruction set that passes run with, and the proof that this CPU has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernels {
    name: &'static str,
    pub(super) run: fn(&Pass, &mut Scratch),
}

impl Kernels {
    /// The best that this CPU has.
    pub(crate) fn detect() -> Self {
        Self::available()[0]
    }

    /// All that this CPU has, best first.
    pub(crate) fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let candidates = {
            use super::{avx2::Avx2, avx512::Avx512};
            [
                Self::of::<Avx512<true, true>>(),
                Self::of::<Avx512<true, false>>(),
                Self::of::<Avx512<false, false>>(),
                Self::of::<Avx2<true>>(),
                Self::of::<Avx2<false>>(),
                Self::of::<Portable<true>>(),
            ]
        };
        #[cfg(target_arch = "aarch64")]
        let candidates = {
            use super::neon::Neon;
            [
                Self::of::<Neon<true, true>>(),
                Self::of::<Neon<true, false>>(),
                Self::of::<Neon<false, false>>(),
            ]
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let candidates = [];
        candidates.into_iter().chain([Self::of::<Portable<false>>()]).flatten().collect()
    }

    fn of<I: Isa>() -> Option<Self> {
        I::detect().map(|_| Self {
            name: I::NAME,
            // SAFETY: `I::detect` found the features.
            run: |pass, scratch| unsafe { I::run(|| walk::run::<I>(pass, scratch)) },
        })
    }

    /// Name of the instruction set.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}
