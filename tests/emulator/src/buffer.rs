use std::{ffi::c_void, ptr, slice};

use engine_gpu::kernel::Address;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE: usize = 4096;
/// Of the memory of a device.
const ALIGNMENT: usize = 16;

/// Memory as a kernel gets it: ones in every bit, which is not a number. Behind its end nothing may be
/// touched: who does is killed by the system.
#[derive(Debug)]
pub struct Buffer {
    mapping: *mut c_void,
    mapping_len: usize,
    first: *mut c_void,
    pub len: usize,
}

// SAFETY: memory that belongs to this value alone.
unsafe impl Send for Buffer {}
// SAFETY: it hands out an address, and no reference.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub fn new(len: usize) -> Self {
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

    pub fn address(&self) -> Address {
        Address(self.first as u64)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping of this buffer, to which nobody has a reference any more.
        let _ = unsafe { munmap(self.mapping, self.mapping_len) };
    }
}
