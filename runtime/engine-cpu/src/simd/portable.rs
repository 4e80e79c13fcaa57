//! Plain Rust for any CPU: the answer key for the other instruction sets, and, compiled for SSE4.1,
//! the kernels of old x86-64.

use super::{
    isa::{Dtype, Isa, PANEL, Prefetch, Tile, tiles},
    lanes::Lanes,
};

/// Code without intrinsics, compiled with SSE4.1 or with what the target always has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable<const SSE41: bool>(());

impl<const SSE41: bool> Isa for Portable<SSE41> {
    type Lanes = [f32; 4];
    const NAME: &'static str = if SSE41 { "sse4.1" } else { "portable" };
    const MAX_ROWS: usize = 4;
    const INT8_OFFSET: i32 = 0;
    const BF16_PRODUCTS: bool = false;

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Option<Self> {
        (!SSE41 || is_x86_feature_detected!("sse4.1")).then_some(Self(()))
    }
    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Option<Self> {
        (!SSE41).then_some(Self(()))
    }

    fn tile(dtype: Dtype, rows: usize) -> Tile {
        #[cfg(target_arch = "x86_64")]
        if SSE41 {
            return sse41::tile(dtype, rows);
        }
        tile(dtype, rows)
    }

    #[inline(always)]
    unsafe fn run<R>(body: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        if SSE41 {
            // SAFETY: the caller holds a value, so the CPU has the feature.
            return unsafe { sse41::run(body) };
        }
        body()
    }
}

/// How one word of a row and one of a column are multiplied and added.
trait Product {
    type Sum: Copy + Default;

    fn add(sum: Self::Sum, word: u32, column: u32) -> Self::Sum;
}

#[derive(Debug)]
struct F32;

impl Product for F32 {
    type Sum = f32;

    #[inline(always)]
    fn add(sum: f32, word: u32, column: u32) -> f32 {
        sum + f32::from_bits(word) * f32::from_bits(column)
    }
}

#[derive(Debug)]
struct Bf16;

impl Product for Bf16 {
    type Sum = f32;

    #[inline(always)]
    fn add(sum: f32, word: u32, column: u32) -> f32 {
        let even = F32::add(sum, word << 16, column << 16);
        F32::add(even, word & 0xffff_0000, column & 0xffff_0000)
    }
}

#[derive(Debug)]
struct Int8;

impl Product for Int8 {
    type Sum = i32;

    #[inline(always)]
    fn add(sum: i32, word: u32, column: u32) -> i32 {
        (0..4).fold(sum, |sum, place| {
            let byte = |word: u32| (word << (24 - 8 * place)).cast_signed() >> 24;
            sum + byte(word) * byte(column)
        })
    }
}

/// Fills a tile, `COLUMNS` columns at a time: as many as the compiler finds registers for.
///
/// # Safety
///
/// The pointers cover `[words, ROWS]`, `[words, PANEL]` and `[ROWS, PANEL]`.
#[inline(always)]
unsafe fn multiply<P: Product, const ROWS: usize, const COLUMNS: usize>(
    words: usize,
    rows: *const u32,
    panel: *const u32,
    tile: *mut P::Sum,
) {
    unsafe {
        for first in (0..PANEL).step_by(COLUMNS) {
            let mut sums = [[P::Sum::default(); COLUMNS]; ROWS];
            for word in 0..words {
                let columns = panel.add(word * PANEL + first).cast::<[u32; COLUMNS]>().read();
                let rows = rows.add(word * ROWS).cast::<[u32; ROWS]>().read();
                for (sums, word) in sums.iter_mut().zip(rows) {
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = P::add(*sum, word, column);
                    }
                }
            }
            for (row, sums) in sums.into_iter().enumerate() {
                tile.add(row * PANEL + first).cast::<[P::Sum; COLUMNS]>().write(sums);
            }
        }
    }
}

/// Defines the kernels, and the table of them, with attributes.
macro_rules! kernels {
    ($(#[$attribute:meta])*) => {
        kernels!(f32_tile F32 8 $(#[$attribute])*);
        kernels!(bf16_tile Bf16 8 $(#[$attribute])*);
        kernels!(int8_tile Int8 16 $(#[$attribute])*);

        pub(super) fn tile(dtype: Dtype, rows: usize) -> Tile {
            static F32: [Tile; 4] = tiles!(f32_tile: 1 2 3 4);
            static BF16: [Tile; 4] = tiles!(bf16_tile: 1 2 3 4);
            static INT8: [Tile; 4] = tiles!(int8_tile: 1 2 3 4);
            let tiles = match dtype {
                Dtype::F32 => &F32,
                Dtype::Bf16 => &BF16,
                Dtype::Int8 => &INT8,
            };
            tiles[rows - 1]
        }
    };
    ($name:ident $product:ident $columns:literal $(#[$attribute:meta])*) => {
        $(#[$attribute])*
        unsafe fn $name<const ROWS: usize>(
            words: usize,
            rows: *const u32,
            panel: *const u32,
            _: Prefetch,
            tile: *mut f32,
        ) {
            // SAFETY: passed on to the caller.
            unsafe { multiply::<$product, ROWS, $columns>(words, rows, panel, tile.cast()) }
        }
    };
}

kernels!();

#[cfg(target_arch = "x86_64")]
mod sse41 {
    use super::*;

    kernels!(#[target_feature(enable = "sse4.1")]);

    #[target_feature(enable = "sse4.1")]
    #[inline]
    pub(super) fn run<R>(body: impl FnOnce() -> R) -> R {
        body()
    }
}

/// Applies `function` to elements of the same place.
#[inline(always)]
fn zip(left: [f32; 4], right: [f32; 4], function: impl Fn(f32, f32) -> f32) -> [f32; 4] {
    std::array::from_fn(|index| function(left[index], right[index]))
}

/// `2²³`: from here on, every `f32` is an integer.
const INTEGERS: f32 = 8_388_608.0;

impl Lanes for [f32; 4] {
    const LEN: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 4]
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        unsafe { source.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        unsafe { target.cast::<Self>().write_unaligned(self) }
    }
    #[inline(always)]
    unsafe fn load_int8_sums(source: *const i32, sums: *const i32, offset: i32) -> Self {
        let (source, sums) = unsafe {
            let source = source.cast::<[i32; 4]>().read_unaligned();
            (source, sums.cast::<[i32; 4]>().read_unaligned())
        };
        std::array::from_fn(|index| (source[index] - offset * sums[index]) as f32)
    }
    #[inline(always)]
    unsafe fn load_bf16(source: *const u16) -> Self {
        let halves = unsafe { source.cast::<[u16; 4]>().read_unaligned() };
        halves.map(|half| f32::from_bits(u32::from(half) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, target: *mut u16) {
        let halves = self.map(|value| {
            let bits = value.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            (if value.is_nan() { 0x7fc0 } else { rounded }) as u16
        });
        unsafe { target.cast::<[u16; 4]>().write_unaligned(halves) }
    }
    #[inline(always)]
    unsafe fn load_i8(source: *const i8) -> Self {
        unsafe { source.cast::<[i8; 4]>().read_unaligned() }.map(f32::from)
    }
    /// Takes what is not a number below 2²² as 0.
    #[inline(always)]
    unsafe fn store_i8(self, offset: i32, target: *mut u8) {
        let bytes = self.map(|value| {
            // In the binade of 2²³ the last bits of an `f32` are an integer's, rounded.
            let bits = (value + 1.5 * INTEGERS).to_bits();
            let integer = if value.abs() < INTEGERS / 2.0 { bits } else { 0 };
            integer.wrapping_add_signed(offset) as u8
        });
        unsafe { target.cast::<[u8; 4]>().write_unaligned(bytes) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        zip(self, other, |left, right| left + right)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        zip(self, other, |left, right| left - right)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        zip(self, other, |left, right| left * right)
    }
    /// Rounds twice: without the instruction, [`f32::mul_add`] is a slow function of libm.
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        std::array::from_fn(|index| self[index] * factor[index] + term[index])
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        zip(self, other, |value, other| if other > value { other } else { value })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        zip(self, other, |value, other| if other < value { other } else { value })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        self.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn max_magnitude(self, other: Self) -> Self {
        // As integers, magnitudes are in the same order, and NaNs are above them.
        zip(self, other, |left, right| {
            f32::from_bits(left.abs().to_bits().max(right.abs().to_bits()))
        })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.map(|value| {
            let integers = INTEGERS.copysign(value);
            let rounded = (value + integers) - integers;
            if value.abs() < INTEGERS { rounded } else { value }
        })
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, exponent: Self) -> Self {
        zip(self, exponent, |value, exponent| {
            // The same trick as in `store_i8`; the exponent of 1 is 127.
            let power = (exponent + (1.5 * INTEGERS + 127.0)).to_bits() << 23;
            if exponent < -126.0 { 0.0 } else { value * f32::from_bits(power) }
        })
    }
    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        self.map(|value| 1.0 / value)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        (self[0] + self[2]) + (self[1] + self[3])
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.into_iter().fold(
            f32::NEG_INFINITY,
            |largest, value| {
                if value > largest { value } else { largest }
            },
        )
    }
    #[inline(always)]
    unsafe fn largest_magnitude(self) -> f32 {
        f32::from_bits(
            self.into_iter().fold(0, |largest, value| value.abs().to_bits().max(largest)),
        )
    }

    #[inline(always)]
    unsafe fn load_first(source: *const f32, len: usize, fill: f32) -> Self {
        std::array::from_fn(|index| {
            // SAFETY: `source` covers `len` elements.
            if index < len { unsafe { source.add(index).read() } } else { fill }
        })
    }
}
