//! AVX2 with FMA: eight lanes, 6×32 tiles. VNNI is used where the CPU has it in 256 bits.

use std::arch::x86_64::*;

use super::{
    isa::{Dtype, Isa, PANEL, Prefetch, Tile, tiles},
    lanes::Lanes,
};

/// AVX2 and FMA as of Haswell and Zen, with AVX-VNNI (Alder Lake, Zen 5) or without.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Isa for Avx2<VNNI> {
    type Lanes = __m256;
    const NAME: &'static str = if VNNI { "avx2_vnni" } else { "avx2" };
    const MAX_ROWS: usize = 6;
    const INT8_OFFSET: i32 = if VNNI { 128 } else { 0 };
    const BF16_PRODUCTS: bool = false;

    fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        has.then_some(Self(()))
    }

    fn tile(dtype: Dtype, rows: usize) -> Tile {
        let tiles = match dtype {
            Dtype::F32 => &F32,
            Dtype::Bf16 => &BF16_WIDENED,
            Dtype::Int8 if VNNI => &INT8_DOT,
            Dtype::Int8 => &INT8_WIDENED,
        };
        tiles[rows - 1]
    }

    #[inline(always)]
    unsafe fn run<R>(body: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma")]
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
        for first in (0..rows).step_by(8) {
            let present = (rows - first).min(8);
            for column in [0, 8] {
                unsafe {
                    let source = source.add(first * source_stride + column);
                    let vectors = std::array::from_fn(|row| {
                        // Behind the last row it is read again, and not stored.
                        let row = row.min(present - 1);
                        _mm256_loadu_si256(source.add(row * source_stride).cast())
                    });
                    for (index, vector) in transposed(vectors).into_iter().enumerate() {
                        let target = target.add((column + index) * target_stride + first);
                        store_words(vector, present, target);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn zip(even: *const u16, odd: *const u16, target: *mut u32) {
        for column in [0, 16] {
            unsafe {
                let even = _mm256_loadu_si256(even.add(column).cast());
                let odd = _mm256_loadu_si256(odd.add(column).cast());
                let low = _mm256_unpacklo_epi16(even, odd);
                let high = _mm256_unpackhi_epi16(even, odd);
                let target = target.add(column).cast::<__m256i>();
                _mm256_storeu_si256(target, _mm256_permute2x128_si256::<0x20>(low, high));
                _mm256_storeu_si256(target.add(1), _mm256_permute2x128_si256::<0x31>(low, high));
            }
        }
    }
}

/// Defines a kernel: how an accumulator starts; how it takes one word of a row and eight of a panel,
/// in one product or in several; and how it is stored.
///
/// Sums are kept in up to twelve registers: of all four vectors of columns for one or two rows,
/// otherwise of two vectors, and then of the two others. Each product reads its operands again, for
/// there are no registers to keep them in.
macro_rules! kernel {
    (
        $name:ident, $features:literal, $zero:expr,
        [$(($row:expr, $columns:expr, $product:expr)),+],
        $store:expr
    ) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const ROWS: usize>(
            words: usize,
            rows: *const u32,
            panel: *const u32,
            prefetch: Prefetch,
            tile: *mut f32,
        ) {
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn part<const ROWS: usize, const VECTORS: usize>(
                words: usize,
                mut rows: *const u32,
                mut panel: *const u32,
                prefetch: Prefetch,
                tile: *mut f32,
            ) {
                unsafe {
                    let mut sums = [[$zero; VECTORS]; ROWS];
                    let mut next = prefetch.start;
                    for _ in 0..words {
                        for line in 0..VECTORS / 2 {
                            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(64 * line).cast());
                        }
                        $(
                            (rows, panel) = (again(rows), again(panel));
                            let columns: [_; VECTORS] = std::array::from_fn(|vector| {
                                $columns(panel.add(8 * vector))
                            });
                            for (row, sums) in sums.iter_mut().enumerate() {
                                let word = $row(rows.add(row));
                                for (sum, columns) in sums.iter_mut().zip(columns) {
                                    *sum = $product(*sum, word, columns);
                                }
                            }
                        )+
                        rows = rows.add(ROWS);
                        panel = panel.add(PANEL);
                        next = next.wrapping_add(prefetch.step_bytes);
                    }
                    for (row, sums) in sums.into_iter().enumerate() {
                        for (vector, sum) in sums.into_iter().enumerate() {
                            $store(tile.add(row * PANEL + 8 * vector), sum);
                        }
                    }
                }
            }
            unsafe {
                if ROWS <= 2 {
                    part::<ROWS, 4>(words, rows, panel, prefetch, tile);
                } else {
                    part::<ROWS, 2>(words, rows, panel, prefetch, tile);
                    let prefetch =
                        Prefetch { start: prefetch.start.wrapping_add(64), ..prefetch };
                    part::<ROWS, 2>(words, rows, panel.add(16), prefetch, tile.add(16));
                }
            }
        }
    };
}

/// The same pointer, but the compiler cannot know, and so reads again what is behind it.
#[inline(always)]
fn again(mut pointer: *const u32) -> *const u32 {
    // SAFETY: no instruction.
    unsafe {
        std::arch::asm!("/* {} */", inout(reg) pointer, options(readonly, nostack, preserves_flags));
    }
    pointer
}

/// A word in all places. What is done with it, the compiler would do before spreading it, which
/// takes more instructions than to load it spread.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn spread(word: *const u32) -> __m256i {
    // SAFETY: the caller's word, and no instruction.
    unsafe {
        let mut words = _mm256_set1_epi32(*word.cast());
        std::arch::asm!(
            "/* {} */",
            inout(ymm_reg) words,
            options(pure, nomem, nostack, preserves_flags)
        );
        words
    }
}

kernel!(
    f32_tile,
    "avx2,fma",
    _mm256_setzero_ps(),
    [(
        |word: *const u32| _mm256_set1_ps(*word.cast()),
        |panel: *const u32| _mm256_loadu_ps(panel.cast()),
        |sum, word, columns| _mm256_fmadd_ps(word, columns, sum)
    )],
    |target, sum| _mm256_storeu_ps(target, sum)
);
kernel!(
    bf16_widened_tile,
    "avx2,fma",
    _mm256_setzero_ps(),
    [
        (
            |word: *const u32| even_bf16s(spread(word)),
            |panel: *const u32| even_bf16s(_mm256_loadu_si256(panel.cast())),
            |sum, word, columns| _mm256_fmadd_ps(word, columns, sum)
        ),
        (
            |word: *const u32| odd_bf16s(spread(word)),
            |panel: *const u32| odd_bf16s(_mm256_loadu_si256(panel.cast())),
            |sum, word, columns| _mm256_fmadd_ps(word, columns, sum)
        )
    ],
    |target, sum| _mm256_storeu_ps(target, sum)
);
kernel!(
    int8_dot_tile,
    "avx2,avxvnni",
    _mm256_setzero_si256(),
    [(
        |word: *const u32| _mm256_set1_epi32(*word.cast()),
        |panel: *const u32| _mm256_loadu_si256(panel.cast()),
        |sum, word, columns| _mm256_dpbusd_avx_epi32(sum, word, columns)
    )],
    |target: *mut f32, sum| _mm256_storeu_si256(target.cast(), sum)
);
kernel!(
    int8_widened_tile,
    "avx2",
    _mm256_setzero_si256(),
    [(
        |word: *const u32| _mm256_set1_epi32(*word.cast()),
        |panel: *const u32| _mm256_loadu_si256(panel.cast()),
        |sum, word, columns| {
            // |word| · (columns with the sign of word): no pair of products leaves 16 bits.
            let signed = _mm256_sign_epi8(columns, word);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(word), signed);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    )],
    |target: *mut f32, sum| _mm256_storeu_si256(target.cast(), sum)
);

static F32: [Tile; 6] = tiles!(f32_tile: 1 2 3 4 5 6);
static BF16_WIDENED: [Tile; 6] = tiles!(bf16_widened_tile: 1 2 3 4 5 6);
static INT8_DOT: [Tile; 6] = tiles!(int8_dot_tile: 1 2 3 4 5 6);
static INT8_WIDENED: [Tile; 6] = tiles!(int8_widened_tile: 1 2 3 4 5 6);

/// The first bf16 of each word, widened.
#[inline(always)]
unsafe fn even_bf16s(words: __m256i) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)) }
}

/// The second bf16 of each word, widened.
#[inline(always)]
unsafe fn odd_bf16s(words: __m256i) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(!0xffff))) }
}

/// Eight rows of eight words as eight columns.
#[inline(always)]
unsafe fn transposed(rows: [__m256i; 8]) -> [__m256i; 8] {
    unsafe {
        let mut pairs = rows;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        let mut fours = rows;
        for i in 0..2 {
            let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
            fours[4 * i] = _mm256_unpacklo_epi64(a, c);
            fours[4 * i + 1] = _mm256_unpackhi_epi64(a, c);
            fours[4 * i + 2] = _mm256_unpacklo_epi64(b, d);
            fours[4 * i + 3] = _mm256_unpackhi_epi64(b, d);
        }
        let mut columns = rows;
        for i in 0..4 {
            columns[i] = _mm256_permute2x128_si256::<0x20>(fours[i], fours[4 + i]);
            columns[4 + i] = _mm256_permute2x128_si256::<0x31>(fours[i], fours[4 + i]);
        }
        columns
    }
}

/// Writes the first `len` words of `vector`. VPMASKMOVD is slow on AMD.
#[inline(always)]
unsafe fn store_words(vector: __m256i, len: usize, mut target: *mut u32) {
    unsafe {
        if len == 8 {
            return _mm256_storeu_si256(target.cast(), vector);
        }
        let mut rest = _mm256_castsi256_si128(vector);
        if len & 4 != 0 {
            _mm_storeu_si128(target.cast(), rest);
            rest = _mm256_extracti128_si256::<1>(vector);
            target = target.add(4);
        }
        if len & 2 != 0 {
            _mm_storel_epi64(target.cast(), rest);
            rest = _mm_unpackhi_epi64(rest, rest);
            target = target.add(2);
        }
        if len & 1 != 0 {
            *target = _mm_cvtsi128_si32(rest).cast_unsigned();
        }
    }
}

impl Lanes for __m256 {
    const LEN: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        unsafe { _mm256_loadu_ps(source) }
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        unsafe { _mm256_storeu_ps(target, self) }
    }
    #[inline(always)]
    unsafe fn load_int8_sums(source: *const i32, sums: *const i32, offset: i32) -> Self {
        unsafe {
            let sums = _mm256_loadu_si256(sums.cast());
            let sums = _mm256_mullo_epi32(sums, _mm256_set1_epi32(offset));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_loadu_si256(source.cast()), sums))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(source: *const u16) -> Self {
        unsafe { even_bf16s(_mm256_cvtepu16_epi32(_mm_loadu_si128(source.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, target: *mut u16) {
        unsafe {
            let bits = _mm256_castps_si256(self);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self, self));
            let rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0_0000), nan);
            let narrow = narrowed(_mm256_srli_epi32::<16>(rounded));
            _mm_storeu_si128(target.cast(), narrow);
        }
    }
    #[inline(always)]
    unsafe fn load_i8(source: *const i8) -> Self {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(source.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, offset: i32, target: *mut u8) {
        unsafe {
            let integers = _mm256_add_epi32(_mm256_cvtps_epi32(self), _mm256_set1_epi32(offset));
            let narrow = narrowed(_mm256_and_si256(integers, _mm256_set1_epi32(0xff)));
            _mm_storel_epi64(target.cast(), _mm_packus_epi16(narrow, narrow));
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { _mm256_add_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { _mm256_sub_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { _mm256_mul_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        unsafe { _mm256_fmadd_ps(self, factor, term) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // The second operand is the result when either is NaN.
        unsafe { _mm256_max_ps(other, self) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { _mm256_min_ps(other, self) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self) }
    }
    #[inline(always)]
    unsafe fn max_magnitude(self, other: Self) -> Self {
        unsafe {
            let bits = _mm256_castps_si256(self.abs());
            _mm256_castsi256_ps(_mm256_max_epu32(bits, _mm256_castps_si256(other.abs())))
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, exponent: Self) -> Self {
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127));
            let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased));
            let normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(exponent, _mm256_set1_ps(-126.0));
            _mm256_and_ps(_mm256_mul_ps(self, power), normal)
        }
    }
    /// A division: what VRCPPS gives differs from one maker of CPUs to the other.
    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        unsafe { _mm256_div_ps(_mm256_set1_ps(1.0), self) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { fold(self, |left, right| _mm_add_ps(left, right)) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { fold(self, |left, right| _mm_max_ps(left, right)) }
    }
    #[inline(always)]
    unsafe fn largest_magnitude(self) -> f32 {
        unsafe {
            fold(self.abs(), |left, right| {
                let bits = _mm_max_epu32(_mm_castps_si128(left), _mm_castps_si128(right));
                _mm_castsi128_ps(bits)
            })
        }
    }

    #[inline(always)]
    unsafe fn load_first(source: *const f32, len: usize, fill: f32) -> Self {
        unsafe {
            let mask = first(len);
            let values = _mm256_maskload_ps(source, mask);
            _mm256_blendv_ps(_mm256_set1_ps(fill), values, _mm256_castsi256_ps(mask))
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, target: *mut f32, len: usize) {
        unsafe { _mm256_maskstore_ps(target, first(len), self) }
    }
}

/// Joins the elements of a vector by `join`.
#[inline(always)]
unsafe fn fold(vector: __m256, join: impl Fn(__m128, __m128) -> __m128) -> f32 {
    unsafe {
        let fours = join(_mm256_castps256_ps128(vector), _mm256_extractf128_ps::<1>(vector));
        let pairs = join(fours, _mm_movehl_ps(fours, fours));
        _mm_cvtss_f32(join(pairs, _mm_movehdup_ps(pairs)))
    }
}

/// Words below 2¹⁶ in 16 bits.
#[inline(always)]
unsafe fn narrowed(words: __m256i) -> __m128i {
    unsafe { _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)) }
}

/// A mask of the first `len` of eight.
#[inline(always)]
unsafe fn first(len: usize) -> __m256i {
    unsafe {
        let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(len as i32), places)
    }
}

/// `Avx2<true>`, as far as CPUs with AVX-512 VNNI can run it: the instruction is the same but
/// for its encoding. Tests run it where AVX-VNNI is missing.
#[cfg(test)]
pub(crate) mod evex {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Avx2Evex(());

    kernel!(
        int8_dot_tile,
        "avx512f,avx512vl,avx512vnni",
        _mm256_setzero_si256(),
        [(
            |word: *const u32| _mm256_set1_epi32(*word.cast()),
            |panel: *const u32| _mm256_loadu_si256(panel.cast()),
            |sum, word, columns| _mm256_dpbusd_epi32(sum, word, columns)
        )],
        |target: *mut f32, sum| _mm256_storeu_si256(target.cast(), sum)
    );
    static INT8_DOT: [Tile; 6] = tiles!(int8_dot_tile: 1 2 3 4 5 6);

    impl Isa for Avx2Evex {
        type Lanes = __m256;
        const NAME: &'static str = "avx2_vnni in EVEX";
        const MAX_ROWS: usize = Avx2::<true>::MAX_ROWS;
        const INT8_OFFSET: i32 = Avx2::<true>::INT8_OFFSET;
        const BF16_PRODUCTS: bool = Avx2::<true>::BF16_PRODUCTS;

        fn detect() -> Option<Self> {
            let has =
                is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni");
            Avx2::<false>::detect().filter(|_| has).map(|_| Self(()))
        }

        fn tile(dtype: Dtype, rows: usize) -> Tile {
            match dtype {
                Dtype::Int8 => INT8_DOT[rows - 1],
                Dtype::F32 | Dtype::Bf16 => Avx2::<true>::tile(dtype, rows),
            }
        }

        #[inline(always)]
        unsafe fn run<R>(body: impl FnOnce() -> R) -> R {
            unsafe { Avx2::<true>::run(body) }
        }
    }
}
