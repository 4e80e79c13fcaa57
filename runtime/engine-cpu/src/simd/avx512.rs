//! AVX-512: sixteen lanes, 12×32 tiles. VNNI and BF16 are used where the CPU has them.

use std::arch::x86_64::*;

use super::{
    isa::{Dtype, Isa, PANEL, Prefetch, Tile, tiles},
    lanes::Lanes,
};

/// AVX-512 as of Skylake-X, with VNNI (Cascade Lake, Ice Lake) and BF16 (Cooper Lake, Zen 4,
/// Sapphire Rapids) or without.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const VNNI: bool, const BF16: bool>(());

impl<const VNNI: bool, const BF16: bool> Isa for Avx512<VNNI, BF16> {
    type Lanes = __m512;
    const NAME: &'static str = match (VNNI, BF16) {
        (true, true) => "avx512_vnni_bf16",
        (true, false) => "avx512_vnni",
        (false, true) => "avx512_bf16",
        (false, false) => "avx512",
    };
    const MAX_ROWS: usize = 12;
    const INT8_OFFSET: i32 = if VNNI { 128 } else { 0 };
    const BF16_PRODUCTS: bool = BF16;

    fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && (!VNNI || is_x86_feature_detected!("avx512vnni"))
            && (!BF16 || is_x86_feature_detected!("avx512bf16"));
        has.then_some(Self(()))
    }

    fn tile(dtype: Dtype, rows: usize) -> Tile {
        let tiles = match dtype {
            Dtype::F32 => &F32,
            Dtype::Bf16 if BF16 => &BF16_DOT,
            Dtype::Bf16 => &BF16_WIDENED,
            Dtype::Int8 if VNNI => &INT8_DOT,
            Dtype::Int8 => &INT8_WIDENED,
        };
        tiles[rows - 1]
    }

    #[inline(always)]
    unsafe fn run<R>(body: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        #[inline]
        fn enabled<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        // SAFETY: the caller holds a value, so the CPU has the features.
        unsafe { enabled(body) }
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
            let mut vectors = [_mm512_setzero_si512(); 16];
            for (row, vector) in vectors.iter_mut().enumerate().take(rows) {
                *vector = _mm512_loadu_si512(source.add(row * source_stride).cast());
            }
            for (column, vector) in transposed(vectors).into_iter().enumerate() {
                let target = target.add(column * target_stride).cast();
                _mm512_mask_storeu_epi32(target, first(rows), vector);
            }
        }
    }

    #[inline(always)]
    unsafe fn zip(even: *const u16, odd: *const u16, target: *mut u32) {
        unsafe {
            let even = _mm512_loadu_si512(even.cast());
            let odd = _mm512_loadu_si512(odd.cast());
            let widen = |half| _mm512_cvtepu16_epi32(half);
            let pair =
                |even, odd| _mm512_or_si512(widen(even), _mm512_slli_epi32::<16>(widen(odd)));
            let low = pair(_mm512_castsi512_si256(even), _mm512_castsi512_si256(odd));
            let high =
                pair(_mm512_extracti64x4_epi64::<1>(even), _mm512_extracti64x4_epi64::<1>(odd));
            _mm512_storeu_si512(target.cast(), low);
            _mm512_storeu_si512(target.add(16).cast(), high);
        }
    }
}

/// Defines a kernel: how an accumulator starts, how it takes one word of a row and sixteen of a
/// panel, and how it is stored.
macro_rules! kernel {
    ($name:ident, $features:literal, $zero:expr, $row:expr, $columns:expr, $step:expr, $store:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const ROWS: usize>(
            words: usize,
            mut rows: *const u32,
            mut panel: *const u32,
            prefetch: Prefetch,
            tile: *mut f32,
        ) {
            unsafe {
                let mut sums = [[$zero; 2]; ROWS];
                let mut next = prefetch.start;
                for _ in 0..words {
                    let left = $columns(panel);
                    let right = $columns(panel.add(16));
                    _mm_prefetch::<_MM_HINT_T0>(panel.wrapping_add(12 * PANEL).cast());
                    _mm_prefetch::<_MM_HINT_T0>(panel.wrapping_add(12 * PANEL + 16).cast());
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                    _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(64).cast());
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let word = $row(rows.add(row));
                        sums[0] = $step(sums[0], word, left);
                        sums[1] = $step(sums[1], word, right);
                    }
                    rows = rows.add(ROWS);
                    panel = panel.add(PANEL);
                    next = next.wrapping_add(prefetch.step_bytes);
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    $store(tile.add(row * PANEL), sums[0]);
                    $store(tile.add(row * PANEL + 16), sums[1]);
                }
            }
        }
    };
}

kernel!(
    f32_tile,
    "avx512f",
    _mm512_setzero_ps(),
    |word: *const u32| _mm512_set1_ps(*word.cast()),
    |panel: *const u32| _mm512_loadu_ps(panel.cast()),
    |sum, word, columns| _mm512_fmadd_ps(word, columns, sum),
    |target, sum| _mm512_storeu_ps(target, sum)
);
kernel!(
    bf16_dot_tile,
    "avx512f,avx512bf16",
    _mm512_setzero_ps(),
    |word: *const u32| bf16s(_mm512_set1_epi32(*word.cast())),
    |panel: *const u32| bf16s(_mm512_loadu_si512(panel.cast())),
    |sum, word, columns| _mm512_dpbf16_ps(sum, word, columns),
    |target, sum| _mm512_storeu_ps(target, sum)
);
kernel!(
    bf16_widened_tile,
    "avx512f",
    _mm512_setzero_ps(),
    |word: *const u32| _mm512_set1_epi32(*word.cast()),
    |panel: *const u32| _mm512_loadu_si512(panel.cast()),
    |sum, word, columns| {
        let sum = _mm512_fmadd_ps(even_bf16s(word), even_bf16s(columns), sum);
        _mm512_fmadd_ps(odd_bf16s(word), odd_bf16s(columns), sum)
    },
    |target, sum| _mm512_storeu_ps(target, sum)
);
kernel!(
    int8_dot_tile,
    "avx512f,avx512vnni",
    _mm512_setzero_si512(),
    |word: *const u32| _mm512_set1_epi32(*word.cast()),
    |panel: *const u32| _mm512_loadu_si512(panel.cast()),
    |sum, word, columns| _mm512_dpbusd_epi32(sum, word, columns),
    |target: *mut f32, sum| _mm512_storeu_si512(target.cast(), sum)
);
kernel!(
    int8_widened_tile,
    "avx512f,avx512bw",
    _mm512_setzero_si512(),
    |word: *const u32| _mm512_set1_epi32(*word.cast()),
    |panel: *const u32| _mm512_loadu_si512(panel.cast()),
    |sum, word, columns| {
        // |word| · (columns with the sign of word): no pair of products leaves 16 bits.
        let negative = _mm512_movepi8_mask(word);
        let signed = _mm512_mask_sub_epi8(columns, negative, _mm512_setzero_si512(), columns);
        let pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(word), signed);
        _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    },
    |target: *mut f32, sum| _mm512_storeu_si512(target.cast(), sum)
);

static F32: [Tile; 12] = tiles!(f32_tile: 1 2 3 4 5 6 7 8 9 10 11 12);
static BF16_DOT: [Tile; 12] = tiles!(bf16_dot_tile: 1 2 3 4 5 6 7 8 9 10 11 12);
static BF16_WIDENED: [Tile; 12] = tiles!(bf16_widened_tile: 1 2 3 4 5 6 7 8 9 10 11 12);
static INT8_DOT: [Tile; 12] = tiles!(int8_dot_tile: 1 2 3 4 5 6 7 8 9 10 11 12);
static INT8_WIDENED: [Tile; 12] = tiles!(int8_widened_tile: 1 2 3 4 5 6 7 8 9 10 11 12);

#[inline(always)]
unsafe fn bf16s(vector: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits in which every pattern is a value.
    unsafe { std::mem::transmute(vector) }
}

/// The first bf16 of each word, widened.
#[inline(always)]
unsafe fn even_bf16s(words: __m512i) -> __m512 {
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)) }
}

/// The second bf16 of each word, widened.
#[inline(always)]
unsafe fn odd_bf16s(words: __m512i) -> __m512 {
    unsafe { _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(!0xffff))) }
}

/// Sixteen rows of sixteen words as sixteen columns.
#[inline(always)]
unsafe fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    unsafe {
        let mut pairs = rows;
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        let mut fours = rows;
        for i in 0..4 {
            let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
            fours[4 * i] = _mm512_unpacklo_epi64(a, c);
            fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
            fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
            fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
        }
        let mut columns = rows;
        for i in 0..4 {
            let low = [fours[i], fours[4 + i]];
            let high = [fours[8 + i], fours[12 + i]];
            let even_low = _mm512_shuffle_i32x4::<0x88>(low[0], low[1]);
            let odd_low = _mm512_shuffle_i32x4::<0xdd>(low[0], low[1]);
            let even_high = _mm512_shuffle_i32x4::<0x88>(high[0], high[1]);
            let odd_high = _mm512_shuffle_i32x4::<0xdd>(high[0], high[1]);
            columns[i] = _mm512_shuffle_i32x4::<0x88>(even_low, even_high);
            columns[8 + i] = _mm512_shuffle_i32x4::<0xdd>(even_low, even_high);
            columns[4 + i] = _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high);
            columns[12 + i] = _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high);
        }
        columns
    }
}

impl Lanes for __m512 {
    const LEN: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(source) }
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        unsafe { _mm512_storeu_ps(target, self) }
    }
    #[inline(always)]
    unsafe fn load_int8_sums(source: *const i32, sums: *const i32, offset: i32) -> Self {
        unsafe {
            let sums =
                _mm512_mullo_epi32(_mm512_loadu_si512(sums.cast()), _mm512_set1_epi32(offset));
            _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(source.cast()), sums))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(source: *const u16) -> Self {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, target: *mut u16) {
        // What VCVTNEPS2BF16 does, also on CPUs without it; NaN stays NaN.
        unsafe {
            let bits = _mm512_castps_si512(self);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self, self);
            let rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0_0000));
            let narrow = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            _mm256_storeu_si256(target.cast(), narrow);
        }
    }
    #[inline(always)]
    unsafe fn load_i8(source: *const i8) -> Self {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(source.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, offset: i32, target: *mut u8) {
        unsafe {
            let integers = _mm512_add_epi32(_mm512_cvtps_epi32(self), _mm512_set1_epi32(offset));
            _mm_storeu_si128(target.cast(), _mm512_cvtepi32_epi8(integers));
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { _mm512_add_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { _mm512_sub_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { _mm512_mul_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, factor, term) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // The second operand is the result when either is NaN.
        unsafe { _mm512_max_ps(other, self) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { _mm512_min_ps(other, self) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { _mm512_abs_ps(self) }
    }
    #[inline(always)]
    unsafe fn max_magnitude(self, other: Self) -> Self {
        unsafe {
            let bits = _mm512_castps_si512(_mm512_abs_ps(self));
            let other = _mm512_castps_si512(_mm512_abs_ps(other));
            _mm512_castsi512_ps(_mm512_max_epu32(bits, other))
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { _mm512_roundscale_ps::<0>(self) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, exponent: Self) -> Self {
        unsafe { _mm512_scalef_ps(self, exponent) }
    }
    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        unsafe {
            let guess = _mm512_rcp14_ps(self);
            _mm512_mul_ps(guess, _mm512_fnmadd_ps(self, guess, _mm512_set1_ps(2.0)))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self) }
    }
    #[inline(always)]
    unsafe fn largest_magnitude(self) -> f32 {
        unsafe { f32::from_bits(_mm512_reduce_max_epu32(_mm512_castps_si512(_mm512_abs_ps(self)))) }
    }

    #[inline(always)]
    unsafe fn load_first(source: *const f32, len: usize, fill: f32) -> Self {
        unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(len), source) }
    }
    #[inline(always)]
    unsafe fn store_first(self, target: *mut f32, len: usize) {
        unsafe { _mm512_mask_storeu_ps(target, first(len), self) }
    }
}

/// A mask of the first `len` of sixteen.
#[inline(always)]
fn first(len: usize) -> u16 {
    ((1u32 << len) - 1) as u16
}
