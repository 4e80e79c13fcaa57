//! NEON: four lanes, 12×8 or 4×16 sums in registers. Products of bytes and of bf16s are used
//! where the CPU has them.
//!
//! A tile is filled strip by strip, each as wide as its rows leave registers for:
//!
//! ```text
//! chunk of words ──> rows, as they are, widened or paired ─┐
//!                    columns of the panel ─────────────────┴─> strip, += until the last chunk
//! ```

use std::{
    arch::{aarch64::*, asm, is_aarch64_feature_detected},
    mem::MaybeUninit,
};

use super::{
    isa::{Dtype, Isa, PANEL, Prefetch, Tile, tiles},
    lanes::Lanes,
};

/// NEON as of Armv8.0, with dot products of bytes (Neoverse N1, Apple M1) or without, and with
/// matrix products of bytes and of bf16s (Neoverse V1 and N2, Apple M2) or without.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon<const DOTPROD: bool, const MATRIX: bool>(());

impl<const DOTPROD: bool, const MATRIX: bool> Isa for Neon<DOTPROD, MATRIX> {
    type Lanes = float32x4_t;
    const NAME: &'static str = match (DOTPROD, MATRIX) {
        (_, true) => "neon_i8mm_bf16",
        (true, false) => "neon_dotprod",
        (false, false) => "neon",
    };
    // Widened products of bytes need more registers besides the sums.
    const MAX_ROWS: usize = if DOTPROD || MATRIX { ROWS } else { 8 };
    const INT8_OFFSET: i32 = 0;
    const BF16_PRODUCTS: bool = MATRIX;

    fn detect() -> Option<Self> {
        let has = is_aarch64_feature_detected!("neon")
            && (!DOTPROD || is_aarch64_feature_detected!("dotprod"))
            && (!MATRIX || is_aarch64_feature_detected!("i8mm"))
            && (!MATRIX || is_aarch64_feature_detected!("bf16"));
        has.then_some(Self(()))
    }

    fn tile(dtype: Dtype, rows: usize) -> Tile {
        let tiles: &[Tile] = match dtype {
            Dtype::F32 => &F32,
            Dtype::Bf16 if MATRIX => &BF16_MATRIX,
            Dtype::Bf16 => &BF16_WIDENED,
            Dtype::Int8 if MATRIX => &INT8_MATRIX,
            Dtype::Int8 if DOTPROD => &INT8_DOT,
            Dtype::Int8 => &INT8_WIDENED,
        };
        tiles[rows - 1]
    }

    #[inline(always)]
    unsafe fn run<R>(body: impl FnOnce() -> R) -> R {
        // Every AArch64 target of Rust has NEON enabled.
        body()
    }

    #[inline(always)]
    unsafe fn transpose(
        source: *const u32,
        source_stride: usize,
        rows: usize,
        target: *mut u32,
        target_stride: usize,
    ) {
        unsafe {
            if rows < 4 {
                for row in 0..rows {
                    for column in 0..16 {
                        *target.add(column * target_stride + row) =
                            source.add(row * source_stride + column).read_unaligned();
                    }
                }
                return;
            }
            for row in (0..rows).step_by(4) {
                // The last four overlap the four before them.
                let row = row.min(rows - 4);
                for column in (0..16).step_by(4) {
                    let source = source.add(row * source_stride + column);
                    let rows = [0, 1, 2, 3].map(|row| vld1q_u32(source.add(row * source_stride)));
                    let target = target.add(column * target_stride + row);
                    for (column, words) in transposed(rows).into_iter().enumerate() {
                        vst1q_u32(target.add(column * target_stride), words);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn zip(even: *const u16, odd: *const u16, target: *mut u32) {
        for column in (0..PANEL).step_by(8) {
            unsafe {
                let (even, odd) = (vld1q_u16(even.add(column)), vld1q_u16(odd.add(column)));
                let target = target.add(column);
                vst1q_u32(target, vreinterpretq_u32_u16(vzip1q_u16(even, odd)));
                vst1q_u32(target.add(4), vreinterpretq_u32_u16(vzip2q_u16(even, odd)));
            }
        }
    }
}

/// Words that all strips see before any sees more: rows and panel stay in the nearest cache. Even,
/// so that only the last word of all can lack a partner.
const CHUNK: usize = 128;

/// Most rows.
const ROWS: usize = 12;

/// Makes of `words` words of rows what strips read, at most twice as many words.
type Prepare = unsafe fn(words: usize, rows: *const u32, target: *mut u32);

/// Some columns of a tile, for some words.
#[derive(Debug, Clone, Copy)]
struct Strip {
    words: usize,
    /// `[words, ROWS]`, or what [`Prepare`] made of that.
    rows: *const u32,
    /// The first column; rows are `PANEL` apart.
    panel: *const u32,
    prefetch: Prefetch,
    /// The first column; rows are `PANEL` apart.
    tile: *mut u32,
    /// Whether sums start at zero, not at what the tile holds.
    first: bool,
}

/// Fills a tile of `NUM_ROWS` rows, given as one strip, by way of strips `4 * VECTORS` wide.
#[inline(always)]
unsafe fn each_strip<const NUM_ROWS: usize, const VECTORS: usize>(
    whole: Strip,
    prepare: Option<Prepare>,
    fill: unsafe fn(Strip),
) {
    let num_strips = PANEL / (4 * VECTORS);
    let step_bytes = whole.prefetch.step_bytes;
    let mut prepared = [const { MaybeUninit::<u32>::uninit() }; 2 * ROWS * CHUNK];
    unsafe {
        for start in (0..whole.words.max(1)).step_by(CHUNK) {
            let words = CHUNK.min(whole.words - start);
            let mut rows = whole.rows.add(start * NUM_ROWS);
            if let Some(prepare) = prepare {
                prepare(words, rows, prepared.as_mut_ptr().cast());
                rows = prepared.as_ptr().cast();
            }
            for index in 0..num_strips {
                let column = index * 4 * VECTORS;
                // Each strip asks for its share of what is to be prefetched.
                let asked_bytes = (start + words * index / num_strips) * step_bytes;
                fill(Strip {
                    words,
                    rows,
                    panel: whole.panel.add(start * PANEL + column),
                    prefetch: Prefetch {
                        start: whole.prefetch.start.wrapping_add(asked_bytes),
                        step_bytes: step_bytes / num_strips,
                    },
                    tile: whole.tile.add(column),
                    first: start == 0,
                });
            }
        }
    }
}

/// Defines a kernel: how it fills a strip, and how rows are prepared for that.
macro_rules! kernel {
    ($name:ident, $strip:ident, $prepare:expr) => {
        unsafe fn $name<const NUM_ROWS: usize>(
            words: usize,
            rows: *const u32,
            panel: *const u32,
            prefetch: Prefetch,
            tile: *mut f32,
        ) {
            let whole = Strip { words, rows, panel, prefetch, tile: tile.cast(), first: true };
            unsafe {
                if NUM_ROWS <= 4 {
                    each_strip::<NUM_ROWS, 4>(whole, $prepare, $strip::<NUM_ROWS, 4>);
                } else {
                    each_strip::<NUM_ROWS, 2>(whole, $prepare, $strip::<NUM_ROWS, 2>);
                }
            }
        }
    };
}

/// Defines how to fill a strip by products of a vector of columns with one lane of a vector of
/// rows, or of one vector for each part of a word.
macro_rules! lane_strip {
    ($name:ident, $features:literal, $step:ident, $parts:literal: $($row:literal)*) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const NUM_ROWS: usize, const VECTORS: usize>(strip: Strip) {
            let Strip { words, mut rows, mut panel, prefetch, tile, first } = strip;
            unsafe {
                let mut sums = [[vdupq_n_u32(0); VECTORS]; NUM_ROWS];
                if !first {
                    for (row, sums) in sums.iter_mut().enumerate() {
                        *sums = load(tile.add(row * PANEL));
                    }
                }
                let mut next = prefetch.start;
                for _ in 0..words {
                    let columns: [uint32x4_t; VECTORS] = load(panel);
                    ask_for(next, 16 * VECTORS);
                    let fours = [0, 4, 8].map(|row| load_rows::<NUM_ROWS, $parts>(rows, row));
                    $(if let Some(sums) = sums.get_mut($row) {
                        for (sum, columns) in sums.iter_mut().zip(columns) {
                            *sum = $step::<{ $row % 4 }>(*sum, columns, fours[$row / 4]);
                        }
                    })*
                    rows = rows.add($parts * NUM_ROWS);
                    panel = panel.add(PANEL);
                    next = next.wrapping_add(prefetch.step_bytes);
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    store(sums, tile.add(row * PANEL));
                }
            }
        }
    };
}

/// Defines how to fill a strip by products of two rows with two columns, two words deep.
macro_rules! matrix_strip {
    ($name:ident, $features:literal, $step:ident) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const NUM_ROWS: usize, const VECTORS: usize>(strip: Strip) {
            let Strip { words, mut rows, mut panel, prefetch, tile, first } = strip;
            let num_pairs = NUM_ROWS.div_ceil(2);
            let zeros = vdupq_n_u32(0);
            unsafe {
                let mut sums = [[[zeros; 2]; VECTORS]; ROWS / 2];
                for (pair, sums) in sums.iter_mut().enumerate().take(num_pairs) {
                    if !first {
                        *sums = load_pair(tile.add(2 * pair * PANEL), NUM_ROWS - 2 * pair);
                    }
                }
                let mut next = prefetch.start;
                for word in (0..words).step_by(2) {
                    let even: [uint32x4_t; VECTORS] = load(panel);
                    // A last word without a partner is taken twice: the rows have zeros there.
                    let partner = if word + 1 < words { PANEL } else { 0 };
                    let odd: [uint32x4_t; VECTORS] = load(panel.add(partner));
                    ask_for(next, 32 * VECTORS);
                    let mut columns = [[zeros; 2]; VECTORS];
                    for (vector, columns) in columns.iter_mut().enumerate() {
                        let (even, odd) = (even[vector], odd[vector]);
                        *columns = [vzip1q_u32(even, odd), vzip2q_u32(even, odd)];
                    }
                    for (pair, sums) in sums.iter_mut().enumerate().take(num_pairs) {
                        let rows = vld1q_u32(rows.add(4 * pair));
                        for (sums, columns) in sums.iter_mut().zip(columns) {
                            sums[0] = $step(sums[0], rows, columns[0]);
                            sums[1] = $step(sums[1], rows, columns[1]);
                        }
                    }
                    rows = rows.add(4 * num_pairs);
                    panel = panel.add(2 * PANEL);
                    next = next.wrapping_add(2 * prefetch.step_bytes);
                }
                for (pair, sums) in sums.into_iter().enumerate().take(num_pairs) {
                    store_pair(sums, tile.add(2 * pair * PANEL), NUM_ROWS - 2 * pair);
                }
            }
        }
    };
}

lane_strip!(f32_strip, "neon", multiply_f32, 1: 0 1 2 3 4 5 6 7 8 9 10 11);
lane_strip!(bf16_widened_strip, "neon", multiply_widened_bf16, 2: 0 1 2 3 4 5 6 7 8 9 10 11);
matrix_strip!(bf16_matrix_strip, "neon,bf16", bfmmla);
lane_strip!(int8_widened_strip, "neon", multiply_widened_int8, 1: 0 1 2 3 4 5 6 7 8 9 10 11);
lane_strip!(int8_dot_strip, "neon,dotprod", sdot, 1: 0 1 2 3 4 5 6 7 8 9 10 11);
matrix_strip!(int8_matrix_strip, "neon,i8mm", smmla);

kernel!(f32_tile, f32_strip, None);
kernel!(bf16_widened_tile, bf16_widened_strip, Some(widen_rows::<NUM_ROWS>));
kernel!(bf16_matrix_tile, bf16_matrix_strip, Some(pair_rows::<NUM_ROWS>));
kernel!(int8_widened_tile, int8_widened_strip, None);
kernel!(int8_dot_tile, int8_dot_strip, None);
kernel!(int8_matrix_tile, int8_matrix_strip, Some(pair_rows::<NUM_ROWS>));

static F32: [Tile; ROWS] = tiles!(f32_tile: 1 2 3 4 5 6 7 8 9 10 11 12);
static BF16_WIDENED: [Tile; ROWS] = tiles!(bf16_widened_tile: 1 2 3 4 5 6 7 8 9 10 11 12);
static BF16_MATRIX: [Tile; ROWS] = tiles!(bf16_matrix_tile: 1 2 3 4 5 6 7 8 9 10 11 12);
static INT8_WIDENED: [Tile; 8] = tiles!(int8_widened_tile: 1 2 3 4 5 6 7 8);
static INT8_DOT: [Tile; ROWS] = tiles!(int8_dot_tile: 1 2 3 4 5 6 7 8 9 10 11 12);
static INT8_MATRIX: [Tile; ROWS] = tiles!(int8_matrix_tile: 1 2 3 4 5 6 7 8 9 10 11 12);

#[inline]
#[target_feature(enable = "neon")]
fn multiply_f32<const LANE: i32>(
    sum: uint32x4_t,
    columns: uint32x4_t,
    [rows]: [uint32x4_t; 1],
) -> uint32x4_t {
    let [sum, columns, rows] = [sum, columns, rows].map(|words| vreinterpretq_f32_u32(words));
    vreinterpretq_u32_f32(vfmaq_laneq_f32::<LANE>(sum, columns, rows))
}

/// Takes the rows of [`widen_rows`].
#[inline]
#[target_feature(enable = "neon")]
fn multiply_widened_bf16<const LANE: i32>(
    sum: uint32x4_t,
    columns: uint32x4_t,
    [even, odd]: [uint32x4_t; 2],
) -> uint32x4_t {
    let sum = multiply_f32::<LANE>(sum, vshlq_n_u32::<16>(columns), [even]);
    multiply_f32::<LANE>(sum, vandq_u32(columns, vdupq_n_u32(0xffff_0000)), [odd])
}

#[inline]
#[target_feature(enable = "neon")]
fn multiply_widened_int8<const LANE: i32>(
    sum: uint32x4_t,
    columns: uint32x4_t,
    [rows]: [uint32x4_t; 1],
) -> uint32x4_t {
    let columns = vreinterpretq_s8_u32(columns);
    let row = vreinterpretq_s8_u32(vdupq_laneq_u32::<LANE>(rows));
    let left = vmull_s8(vget_low_s8(columns), vget_low_s8(row));
    let right = vmull_high_s8(columns, row);
    // Rows are never -128, so no pair of products leaves 16 bits.
    let sum = vpadalq_s16(vreinterpretq_s32_u32(sum), vpaddq_s16(left, right));
    vreinterpretq_u32_s32(sum)
}

/// Sums of four products of bytes of each column with those of one row.
#[inline]
#[target_feature(enable = "dotprod")]
fn sdot<const LANE: i32>(
    mut sum: uint32x4_t,
    columns: uint32x4_t,
    [rows]: [uint32x4_t; 1],
) -> uint32x4_t {
    // SAFETY: the instruction reads and writes these registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {columns:v}.16b, {rows:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            columns = in(vreg) columns,
            rows = in(vreg) rows,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Adds to `[[sum; 2 columns]; 2 rows]` the products of `[[byte; 8]; 2 rows]` with
/// `[[byte; 8]; 2 columns]`.
#[inline]
#[target_feature(enable = "i8mm")]
fn smmla(mut sums: uint32x4_t, rows: uint32x4_t, columns: uint32x4_t) -> uint32x4_t {
    // SAFETY: the instruction reads and writes these registers only.
    unsafe {
        asm!(
            "smmla {sums:v}.4s, {rows:v}.16b, {columns:v}.16b",
            sums = inout(vreg) sums,
            rows = in(vreg) rows,
            columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Like [`smmla`] for `[[bf16; 4]; 2]`. Sums are rounded to odd, pair by pair of products.
#[inline]
#[target_feature(enable = "bf16")]
fn bfmmla(mut sums: uint32x4_t, rows: uint32x4_t, columns: uint32x4_t) -> uint32x4_t {
    // SAFETY: the instruction reads and writes these registers only.
    unsafe {
        asm!(
            "bfmmla {sums:v}.4s, {rows:v}.8h, {columns:v}.8h",
            sums = inout(vreg) sums,
            rows = in(vreg) rows,
            columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Asks for the cache lines of `len_bytes` bytes, and for one at least.
#[inline(always)]
fn ask_for(start: *const u8, len_bytes: usize) {
    for offset in (0..len_bytes).step_by(64) {
        // SAFETY: a prefetch reads nothing, whatever the address.
        unsafe {
            asm!(
                "prfm pldl2keep, [{address}]",
                address = in(reg) start.wrapping_add(offset).addr(),
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

#[inline(always)]
unsafe fn load<const VECTORS: usize>(source: *const u32) -> [uint32x4_t; VECTORS] {
    // SAFETY: the caller's pointer covers the vectors.
    std::array::from_fn(|vector| unsafe { vld1q_u32(source.add(4 * vector)) })
}

#[inline(always)]
unsafe fn store<const VECTORS: usize>(vectors: [uint32x4_t; VECTORS], target: *mut u32) {
    for (vector, words) in vectors.into_iter().enumerate() {
        // SAFETY: the caller's pointer covers the vectors.
        unsafe { vst1q_u32(target.add(4 * vector), words) };
    }
}

/// One word of four rows from `row` on, or as many as there are, in parts `[PARTS, NUM_ROWS]`.
#[inline(always)]
unsafe fn load_rows<const NUM_ROWS: usize, const PARTS: usize>(
    rows: *const u32,
    row: usize,
) -> [uint32x4_t; PARTS] {
    // SAFETY: the caller's pointer covers `PARTS * NUM_ROWS` words.
    std::array::from_fn(|part| unsafe {
        let zeros = vdupq_n_u32(0);
        let rows = rows.wrapping_add(part * NUM_ROWS + row);
        match NUM_ROWS.saturating_sub(row) {
            0 => zeros,
            1 => vld1q_lane_u32::<0>(rows, zeros),
            2 => vcombine_u32(vld1_u32(rows), vget_low_u32(zeros)),
            3 => {
                let two = vcombine_u32(vld1_u32(rows), vget_low_u32(zeros));
                vld1q_lane_u32::<2>(rows.add(2), two)
            }
            _ => vld1q_u32(rows),
        }
    })
}

/// Makes of rows of bf16s `[words, NUM_ROWS]` rows of f32s `[words, 2, NUM_ROWS]`.
#[inline(always)]
unsafe fn widen_rows<const NUM_ROWS: usize>(words: usize, rows: *const u32, target: *mut u32) {
    for word in 0..words {
        for row in 0..NUM_ROWS {
            // SAFETY: the caller's pointers cover the words of the rows, and twice as many.
            unsafe {
                let pair = *rows.add(word * NUM_ROWS + row);
                *target.add(2 * word * NUM_ROWS + row) = pair << 16;
                *target.add((2 * word + 1) * NUM_ROWS + row) = pair & 0xffff_0000;
            }
        }
    }
}

/// Makes of rows `[words, NUM_ROWS]` pairs, `[words / 2, NUM_ROWS / 2]` of `[[word; 2]; 2 rows]`, rounded
/// up with zeros.
#[inline(always)]
unsafe fn pair_rows<const NUM_ROWS: usize>(words: usize, rows: *const u32, target: *mut u32) {
    let num_pairs = NUM_ROWS.div_ceil(2);
    for word in (0..words).step_by(2) {
        for pair in 0..num_pairs {
            // SAFETY: the caller's pointers cover the words of the rows, and the pairs.
            unsafe {
                let zeros = vdup_n_u32(0);
                let load = |word: usize| {
                    let rows = rows.add(word * NUM_ROWS + 2 * pair);
                    match NUM_ROWS - 2 * pair {
                        _ if word == words => zeros,
                        1 => vld1_lane_u32::<0>(rows, zeros),
                        _ => vld1_u32(rows),
                    }
                };
                let (even, odd) = (load(word), load(word + 1));
                let pair = target.add((word / 2 * num_pairs + pair) * 4);
                vst1q_u32(pair, vcombine_u32(vzip1_u32(even, odd), vzip2_u32(even, odd)));
            }
        }
    }
}

/// Two rows of sums, or the last one, as matrices of two by two.
#[inline(always)]
unsafe fn load_pair<const VECTORS: usize>(
    tile: *const u32,
    rows: usize,
) -> [[uint32x4_t; 2]; VECTORS] {
    // SAFETY: the caller's tile has the rows.
    unsafe {
        let even: [uint32x4_t; VECTORS] = load(tile);
        let odd = if rows > 1 { load(tile.add(PANEL)) } else { [vdupq_n_u32(0); VECTORS] };
        std::array::from_fn(|vector| halves(even[vector], odd[vector]))
    }
}

/// What [`load_pair`] takes.
#[inline(always)]
unsafe fn store_pair<const VECTORS: usize>(
    sums: [[uint32x4_t; 2]; VECTORS],
    tile: *mut u32,
    rows: usize,
) {
    // SAFETY: the caller's tile has the rows.
    unsafe {
        let vectors = sums.map(|[left, right]| halves(left, right));
        store(vectors.map(|[even, _]| even), tile);
        if rows > 1 {
            store(vectors.map(|[_, odd]| odd), tile.add(PANEL));
        }
    }
}

/// The lower halves of both, and the upper ones. Twice that is what it was before.
#[inline]
#[target_feature(enable = "neon")]
fn halves(left: uint32x4_t, right: uint32x4_t) -> [uint32x4_t; 2] {
    [
        vcombine_u32(vget_low_u32(left), vget_low_u32(right)),
        vcombine_u32(vget_high_u32(left), vget_high_u32(right)),
    ]
}

/// Four rows of four words as four columns.
#[inline]
#[target_feature(enable = "neon")]
fn transposed([a, b, c, d]: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
    let even = halves(vtrn1q_u32(a, b), vtrn1q_u32(c, d));
    let odd = halves(vtrn2q_u32(a, b), vtrn2q_u32(c, d));
    [even[0], odd[0], even[1], odd[1]]
}

impl Lanes for float32x4_t {
    const LEN: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        unsafe { vld1q_f32(source) }
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        unsafe { vst1q_f32(target, self) }
    }
    #[inline(always)]
    unsafe fn load_int8_sums(source: *const i32, sums: *const i32, offset: i32) -> Self {
        unsafe { vcvtq_f32_s32(vmlsq_n_s32(vld1q_s32(source), vld1q_s32(sums), offset)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(source: *const u16) -> Self {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(source))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, target: *mut u16) {
        unsafe {
            let bits = vreinterpretq_u32_f32(self);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let number = vceqq_f32(self, self);
            let rounded = vbslq_u32(number, rounded, vdupq_n_u32(0x7fc0_0000));
            vst1_u16(target, vshrn_n_u32::<16>(rounded));
        }
    }
    #[inline(always)]
    unsafe fn load_i8(source: *const i8) -> Self {
        unsafe {
            let bytes = source.cast::<u32>().read_unaligned();
            let wide = vmovl_s8(vcreate_s8(u64::from(bytes)));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, offset: i32, target: *mut u8) {
        unsafe {
            let integers = vaddq_s32(vcvtnq_s32_f32(self), vdupq_n_s32(offset));
            let narrow = vmovn_s32(integers);
            let narrow = vmovn_s16(vcombine_s16(narrow, narrow));
            let bytes = vget_lane_u32::<0>(vreinterpret_u32_s8(narrow));
            target.cast::<u32>().write_unaligned(bytes);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { vaddq_f32(self, other) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { vsubq_f32(self, other) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { vmulq_f32(self, other) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        unsafe { vfmaq_f32(term, self, factor) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { vmaxq_f32(self, other) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { vminq_f32(self, other) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { vabsq_f32(self) }
    }
    #[inline(always)]
    unsafe fn max_magnitude(self, other: Self) -> Self {
        unsafe {
            let bits = vreinterpretq_u32_f32(vabsq_f32(self));
            let other = vreinterpretq_u32_f32(vabsq_f32(other));
            vreinterpretq_f32_u32(vmaxq_u32(bits, other))
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { vrndnq_f32(self) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, exponent: Self) -> Self {
        unsafe {
            let exponents = vcvtq_s32_f32(exponent);
            let power = vshlq_n_s32::<23>(vaddq_s32(exponents, vdupq_n_s32(127)));
            let product = vmulq_f32(self, vreinterpretq_f32_s32(power));
            let underflows = vcltq_f32(exponent, vdupq_n_f32(-126.0));
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(product), underflows))
        }
    }
    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        unsafe {
            // Eight bits, sixteen, and all but the last.
            let guess = vrecpeq_f32(self);
            let guess = vmulq_f32(guess, vrecpsq_f32(self, guess));
            vmulq_f32(guess, vrecpsq_f32(self, guess))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { vaddvq_f32(self) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { vmaxvq_f32(self) }
    }
    #[inline(always)]
    unsafe fn largest_magnitude(self) -> f32 {
        unsafe { f32::from_bits(vmaxvq_u32(vreinterpretq_u32_f32(vabsq_f32(self)))) }
    }

    #[inline(always)]
    unsafe fn load_first(source: *const f32, len: usize, fill: f32) -> Self {
        debug_assert!(len <= Self::LEN);
        let mut elements = [fill; 4];
        unsafe {
            if len == Self::LEN {
                return vld1q_f32(source);
            }
            for (index, element) in elements.iter_mut().enumerate().take(len) {
                *element = *source.add(index);
            }
            vld1q_f32(elements.as_ptr())
        }
    }
}
