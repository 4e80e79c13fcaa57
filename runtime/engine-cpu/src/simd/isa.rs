//! What an instruction set brings: vectors, tile kernels, and two shuffles.

pub(super) use encoder::PANEL;
use engine::Precision;

use super::lanes::Lanes;

/// How the weights of a linear layer are stored, and so how it is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dtype {
    F32,
    Bf16,
    Int8,
}

impl Dtype {
    /// Elements in the 32 bits that a kernel takes as one step.
    pub(crate) const fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

impl From<Precision> for Dtype {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::Int8 => Self::Int8,
        }
    }
}

/// Multiplies a packed block of rows with one panel.
///
/// Takes the number of words along `k`; the rows, `[words, rows]`; the panel, `[words, PANEL]`;
/// where to prefetch from and by how many bytes to go on each step; and the tile to fill,
/// `[rows, PANEL]`: `f32`s, or `i32`s for [`Dtype::Int8`].
pub(crate) type Tile =
    unsafe fn(words: usize, rows: *const u32, panel: *const u32, Prefetch, tile: *mut f32);

/// A stream of bytes that will be wanted soon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefetch {
    pub(crate) start: *const u8,
    pub(crate) step_bytes: usize,
}

/// An instruction set. The types are proofs: values are made by `detect` only.
///
/// # Safety
///
/// Methods other than [`Isa::detect`] may be called only if `detect` gave a value.
pub(crate) trait Isa: Copy + Send + Sync + std::fmt::Debug + 'static {
    type Lanes: Lanes;
    const NAME: &'static str;
    /// Rows of the largest tile, at most 16.
    const MAX_ROWS: usize;
    /// What is added to 8-bit activations so that the kernel can read them as unsigned.
    const INT8_OFFSET: i32;
    /// Whether bf16 products are faster than f32 ones.
    const BF16_PRODUCTS: bool;

    /// A value, if this CPU has all the features.
    fn detect() -> Option<Self>;

    /// The kernel for `rows` rows, 1 to `MAX_ROWS`.
    fn tile(dtype: Dtype, rows: usize) -> Tile;

    /// Runs `body` with the features enabled, so that what it inlines is compiled for them.
    unsafe fn run<R>(body: impl FnOnce() -> R) -> R;

    /// `target[column * target_stride + row] = source[row * source_stride + column]` for sixteen
    /// columns of up to sixteen rows, in words.
    #[inline(always)]
    unsafe fn transpose(
        source: *const u32,
        source_stride: usize,
        rows: usize,
        target: *mut u32,
        target_stride: usize,
    ) {
        for row in 0..rows {
            for column in 0..16 {
                // SAFETY: the caller's pointers cover both matrices.
                unsafe {
                    *target.add(column * target_stride + row) =
                        source.add(row * source_stride + column).read_unaligned();
                }
            }
        }
    }

    /// Pairs two rows of `PANEL` 16-bit elements: word `i` is `even[i]`, then `odd[i]`.
    #[inline(always)]
    unsafe fn zip(even: *const u16, odd: *const u16, target: *mut u32) {
        for column in 0..PANEL {
            // SAFETY: the caller's pointers cover `PANEL` elements.
            unsafe {
                *target.add(column) =
                    u32::from(*even.add(column)) | u32::from(*odd.add(column)) << 16;
            }
        }
    }
}

/// A table of one kernel for 1, 2, … rows.
macro_rules! tiles {
    ($kernel:ident: $($rows:literal)*) => { [$($kernel::<$rows> as $crate::simd::isa::Tile),*] };
}
pub(crate) use tiles;
