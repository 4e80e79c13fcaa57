use std::{ffi::c_void, marker::PhantomData, ptr, slice};

use bytemuck::Pod;
use engine_gpu::kernel::Address;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE: usize = 4096;
/// Of the memory of a device.
const ALIGNMENT: usize = 16;

/// Memory as a kernel gets it. Behind its end nothing may be touched: who does is killed by the system.
#[derive(Debug)]
pub struct Buffer<T> {
    mapping: *mut c_void,
    num_bytes: usize,
    first: *mut T,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// A copy of `values`.
    pub fn of(values: &[T]) -> Self {
        let mut buffer = Self::poisoned(values.len());
        buffer.values_mut().copy_from_slice(values);
        buffer
    }

    /// `len` elements of ones in every bit: not a number.
    pub fn poisoned(len: usize) -> Self {
        let num_used = (len * size_of::<T>()).next_multiple_of(ALIGNMENT);
        let num_accessible = num_used.next_multiple_of(PAGE);
        let num_bytes = num_accessible + PAGE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory, of which nobody knows.
        let mapping =
            unsafe { mmap_anonymous(ptr::null_mut(), num_bytes, access, MapFlags::PRIVATE) };
        let mapping = mapping.expect("memory");
        let end = mapping.wrapping_byte_add(num_accessible);
        // SAFETY: the last page of the mapping, which nobody uses.
        unsafe { mprotect(end, PAGE, MprotectFlags::empty()) }.expect("a page of its own");
        // Within the mapping, and aligned; less than 16 bytes are behind the last element.
        let first = end.wrapping_byte_sub(num_used).cast::<T>();
        let mut buffer = Self { mapping, num_bytes, first, len, of: PhantomData };
        bytemuck::cast_slice_mut::<T, u8>(buffer.values_mut()).fill(0xff);
        buffer
    }

    pub fn address(&self) -> Address {
        Address(self.first as u64)
    }

    pub fn values(&self) -> &[T] {
        // SAFETY: `len` elements, alive as long as `self`; kernels write them only within `run`.
        unsafe { slice::from_raw_parts(self.first, self.len) }
    }

    fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { slice::from_raw_parts_mut(self.first, self.len) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of this buffer, to which nobody has a reference any more.
        let _ = unsafe { munmap(self.mapping, self.num_bytes) };
    }
}
