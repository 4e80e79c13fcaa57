//! Memory that threads share: aligned, grown by its owner, written through pointers.

use std::cell::UnsafeCell;

/// One cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Line {
    _bytes: UnsafeCell<[u8; 64]>,
}

/// Bytes on a cache line's boundary. They are reached through raw pointers only: who dereferences
/// one answers for what other threads do.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<Line>);

// SAFETY: a shared `Buffer` gives out pointers and never reads or writes through them.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Room for `len` elements. If it has to grow, all of it is zeros.
    pub(crate) fn reserve<T: Copy>(&mut self, len: usize) -> *mut T {
        let lines = (len * size_of::<T>()).div_ceil(64);
        if lines > self.0.len() {
            self.0 = (0..lines).map(|_| Line { _bytes: UnsafeCell::new([0; 64]) }).collect();
        }
        self.pointer()
    }

    /// The first element.
    pub(crate) fn pointer<T: Copy>(&self) -> *mut T {
        UnsafeCell::raw_get(self.0.as_ptr().cast::<UnsafeCell<T>>())
    }
}
