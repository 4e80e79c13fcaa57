//! What the emulated GPU is.

use std::{env, ffi::c_int, slice};

use engine_gpu::kernel::Dtype;

pub(crate) const MEMORY_BYTES: usize = 4 << 30;
/// Of a block.
pub(crate) const MAX_SHARED_BYTES: u32 = 227 << 10;
const NUM_MULTIPROCESSORS: c_int = 4;

// As `cuda.h` numbers them.
pub(crate) const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
pub(crate) const SWIZZLE_128B: c_int = 3;
const MULTIPROCESSOR_COUNT: c_int = 16;
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;
const MEMORY_POOLS_SUPPORTED: c_int = 115;
const FLOAT16: c_int = 6;
const BFLOAT16: c_int = 9;

pub(crate) struct Device {
    capability: [c_int; 2],
    num_passes_left: Option<u32>,
}

impl Default for Device {
    fn default() -> Self {
        let capability = env::var("EMULATED_CAPABILITY").unwrap_or_else(|_| "9.0".to_owned());
        let (major, minor) = capability.split_once('.').unwrap_or((&capability, "0"));
        let capability = [major, minor].map(|number| number.parse().unwrap_or(0));
        let num_passes_left =
            env::var("EMULATED_PASSES").ok().and_then(|passes| passes.parse().ok());
        Self { capability, num_passes_left }
    }
}

impl Device {
    pub(crate) fn attribute(&self, number: c_int) -> Option<c_int> {
        match number {
            MULTIPROCESSOR_COUNT => Some(NUM_MULTIPROCESSORS),
            COMPUTE_CAPABILITY_MAJOR => Some(self.capability[0]),
            COMPUTE_CAPABILITY_MINOR => Some(self.capability[1]),
            MEMORY_POOLS_SUPPORTED => Some(1),
            _ => None,
        }
    }

    /// Whether the pass that is started now is one too many.
    pub(crate) fn is_last_pass(&mut self) -> bool {
        let Some(left) = &mut self.num_passes_left else { return false };
        match left.checked_sub(1) {
            Some(fewer) => *left = fewer,
            None => return true,
        }
        false
    }
}

pub(crate) fn dtype(number: c_int) -> Option<Dtype> {
    match number {
        FLOAT16 => Some(Dtype::F16),
        BFLOAT16 => Some(Dtype::Bf16),
        _ => None,
    }
}

/// A copy of a cubin, as long as its headers say.
pub(crate) unsafe fn code(image: *const u8) -> Option<Vec<u8>> {
    let header = unsafe { slice::from_raw_parts(image, 64) };
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        let bytes = header[range].iter().rev();
        bytes.fold(0, |number, &byte| number << 8 | usize::from(byte))
    };
    // Sections, and the table of them, which lies behind all else.
    let (sections, section_size, num_sections) = (number(40..48), number(58..60), number(60..62));
    let segments = number(32..40) + number(54..56) * number(56..58);
    let len = (sections + section_size * num_sections).max(segments);
    Some(unsafe { slice::from_raw_parts(image, len) }.to_vec())
}
