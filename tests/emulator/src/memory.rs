use std::{collections::BTreeMap, ffi::c_void, ptr, slice};

use engine_gpu::kernel::Address;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE: usize = 4096;
/// Of the memory of a device.
const ALIGNMENT: usize = 16;

/// The memory of a device, piece by piece.
#[derive(Debug, Default)]
pub struct Memory(BTreeMap<u64, Buffer>);

impl Memory {
    /// A new piece.
    pub fn allocate(&mut self, num_bytes: usize) -> Address {
        let buffer = Buffer::new(num_bytes);
        let address = buffer.address();
        self.0.insert(address.0, buffer);
        address
    }

    /// Whether there was such a piece.
    pub fn free(&mut self, address: Address) -> bool {
        self.0.remove(&address.0).is_some()
    }

    /// Whether so many bytes lie in one piece.
    #[must_use]
    pub fn holds(&self, start: Address, num_bytes: usize) -> bool {
        let last = self.0.range(..=start.0).next_back();
        last.is_some_and(|(_, buffer)| {
            start.behind(num_bytes).0 <= buffer.address().behind(buffer.len).0
        })
    }

    /// Of all pieces.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.0.values().map(|buffer| buffer.len).sum()
    }
}

/// Memory as a kernel gets it: ones in every bit, which is not a number. Behind its end nothing may be
/// touched: who does is killed by the system.
#[derive(Debug)]
pub(crate) struct Buffer {
    mapping: *mut c_void,
    mapping_len: usize,
    first: *mut c_void,
    len: usize,
}

// SAFETY: memory that belongs to this value alone.
unsafe impl Send for Buffer {}
// SAFETY: it hands out an address, and no reference.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn new(len: usize) -> Self {
        let num_used = len.next_multiple_of(ALIGNMENT);
        let num_accessible = num_used.next_multiple_of(PAGE);
        let mapping_len = num_accessible + PAGE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory, of which nobody knows.
        let mapping =
            unsafe { mmap_anonymous(ptr::null_mut(), mapping_len, access, MapFlags::PRIVATE) };
        let mapping = mapping.expect("memory");
        let end = mapping.wrapping_byte_add(num_accessible);
        // SAFETY: the last page of the mapping, which nobody uses.
        unsafe { mprotect(end, PAGE, MprotectFlags::empty()) }.expect("a page of its own");
        // Within the mapping, and aligned; less than 16 bytes are behind the last byte.
        let first = end.wrapping_byte_sub(num_used);
        // SAFETY: the rest of the mapping, of which nobody knows yet.
        unsafe { slice::from_raw_parts_mut(first.cast::<u8>(), len) }.fill(0xff);
        Self { mapping, mapping_len, first, len }
    }

    fn address(&self) -> Address {
        Address(self.first as u64)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping of this buffer, to which nobody has a reference any more.
        let _ = unsafe { munmap(self.mapping, self.mapping_len) };
    }
}
