//! What every instruction set must compute: each that this CPU has, against plain loops in `f64`.
//! Integers and bits are compared exactly; tolerances say what they allow for.

use std::sync::LazyLock;

use encoder::{Activation, SEGMENT};
use engine::reference;

use super::{
    attention::{self, Head, Scratch},
    isa::{Dtype, Isa, PANEL, Prefetch},
    kernels::Kernels,
    lanes::{self, Lanes},
    linear::{
        self, LinearWeights, PackedRows, Panels, Target, block_rows, multiply_panel, num_blocks,
        pack_block,
    },
    norm::{NormWeights, TableWeights, add_norm, add_table_row},
    portable::Portable,
};

/// Runs generic checks for each instruction set that this CPU has, a test each.
macro_rules! check_each_isa {
    ($($check:ident)*) => {
        mod each_isa {
            use super::*;
            #[cfg(target_arch = "x86_64")]
            use crate::simd::{avx2::{Avx2, evex::Avx2Evex}, avx512::Avx512};
            #[cfg(target_arch = "aarch64")]
            use crate::simd::neon::Neon;

            $(
                #[test]
                fn $check() {
                    super::$check::<Portable<false>>();
                    #[cfg(target_arch = "x86_64")]
                    check_each_isa!(
                        $check: Portable<true>, Avx2<false>, Avx2<true>, Avx2Evex,
                        Avx512<false, false>, Avx512<false, true>, Avx512<true, false>,
                        Avx512<true, true>
                    );
                    #[cfg(target_arch = "aarch64")]
                    check_each_isa!(
                        $check: Neon<false, false>, Neon<true, false>, Neon<true, true>
                    );
                }
            )*
        }
    };
    ($check:ident: $($isa:ty),*) => {
        $(if <$isa>::detect().is_some() {
            super::$check::<$isa>();
        })*
    };
}

check_each_isa! {
    tiles_sum_products
    blocks_are_packed_in_word_order
    transposing_and_pairing_move_words_only
    vectors_are_read_and_written_as_said
    vectors_order_numbers_and_nan_as_said
    exponentials_and_activations_are_close
    layer_norm_is_close_for_every_width
    table_rows_are_added
    attention_is_softmax_of_every_length
    linear_layers_scale_add_and_activate
}

#[test]
fn every_cpu_has_kernels() {
    let names: Vec<_> = Kernels::available().iter().map(Kernels::name).collect();
    assert_eq!(names.last(), Some(&"portable"), "{names:?}");
    assert_eq!(Kernels::detect().name(), names[0]);
}

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::Int8];
/// In memory that nobody should touch.
const UNTOUCHED: u32 = 0xdead_beef;

/// Numbers that look random, the same on each run.
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u32 {
        // Steele & Vigna 2021, "Computationally easy, spectrally good multipliers", table 5.
        self.0 = self.0.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        (self.0 >> 32) as u32
    }

    /// From -1 to 1.
    fn float(&mut self) -> f32 {
        self.bits().cast_signed() as f32 / 2f32.powi(31)
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    /// Something that `dtype` stores exactly; of 8 bits, often the largest.
    fn element(&mut self, dtype: Dtype) -> f32 {
        match dtype {
            Dtype::F32 => self.float(),
            Dtype::Bf16 => widened(bf16(self.float())),
            Dtype::Int8 => match self.bits() % 4 {
                0 => 127.0,
                1 => -127.0,
                _ => (self.float() * 127.0).round(),
            },
        }
    }

    fn rows(&mut self, dtype: Dtype, rows: usize, len: usize) -> Vec<Vec<f32>> {
        (0..rows).map(|_| (0..len).map(|_| self.element(dtype)).collect()).collect()
    }
}

fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() { 0x7fc0 } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}

fn widened(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Rows in words, `[words, rows]`.
fn in_words(dtype: Dtype, offset: i32, rows: &[Vec<f32>]) -> Vec<u32> {
    let per_word = dtype.per_word();
    let bits = |value: f32| match dtype {
        Dtype::F32 => value.to_bits(),
        Dtype::Bf16 => bf16(value).into(),
        Dtype::Int8 => u32::from((value as i32 + offset) as u8),
    };
    let word = |elements: &[f32]| {
        elements.iter().rev().fold(0, |word: u32, &value| {
            word.checked_shl(32 / per_word as u32).unwrap_or(0) | bits(value)
        })
    };
    let words = rows[0].len() / per_word;
    (0..words)
        .flat_map(|index| rows.iter().map(move |row| word(&row[index * per_word..][..per_word])))
        .collect()
}

/// Sum of products, and of their magnitudes.
fn dot(left: &[f32], right: &[f32]) -> (f64, f64) {
    left.iter().zip(right).fold((0.0, 0.0), |(sum, magnitudes), (&left, &right)| {
        let product = f64::from(left) * f64::from(right);
        (sum + product, magnitudes + product.abs())
    })
}

#[track_caller]
fn assert_close(value: f32, expected: f64, tolerance: f64, case: &str) {
    let error = (f64::from(value) - expected).abs();
    assert!(error <= tolerance, "{case}: {value} is not {expected} within {tolerance}");
}

/// `function` of each value, computed in vectors.
fn map<I: Isa>(values: &[f32], function: impl Fn(I::Lanes) -> I::Lanes) -> Vec<f32> {
    let mut padded = values.to_vec();
    padded.resize(values.len().next_multiple_of(16), 0.0);
    for chunk in padded.chunks_exact_mut(I::Lanes::LEN) {
        // SAFETY: `I` was detected, and the chunk is one vector.
        unsafe {
            I::run(|| function(I::Lanes::load(chunk.as_ptr())).store(chunk.as_mut_ptr()));
        }
    }
    padded.truncate(values.len());
    padded
}

fn tiles_sum_products<I: Isa>() {
    let numbers = &mut Numbers(1);
    let word_counts: &[usize] = if cfg!(miri) { &[1, 3] } else { &[1, 2, 3, 16, 48] };
    for dtype in DTYPES {
        for (rows, &words) in
            (1..=I::MAX_ROWS).flat_map(|rows| word_counts.iter().map(move |words| (rows, words)))
        {
            let case = format!("{} {dtype:?} [{rows}, {words}]", I::NAME);
            let inputs = numbers.rows(dtype, rows, words * dtype.per_word());
            let weights = numbers.rows(dtype, PANEL, words * dtype.per_word());
            let packed = in_words(dtype, I::INT8_OFFSET, &inputs);
            let panel = in_words(dtype, 0, &weights);
            let mut tile = vec![UNTOUCHED; (rows + 1) * PANEL];
            let prefetch = Prefetch { start: panel.as_ptr().cast(), step_bytes: 64 };
            // SAFETY: `I` was detected, and everything has the shape that the kernel takes.
            unsafe {
                let kernel = I::tile(dtype, rows);
                let tile = tile.as_mut_ptr().cast();
                kernel(words, packed.as_ptr(), panel.as_ptr(), prefetch, tile);
            }
            for (place, &bits) in tile.iter().enumerate() {
                let Some(input) = inputs.get(place / PANEL) else {
                    assert_eq!(bits, UNTOUCHED, "{case}");
                    continue;
                };
                let weights = &weights[place % PANEL];
                let (sum, magnitudes) = dot(input, weights);
                if dtype == Dtype::Int8 {
                    let total: f32 = weights.iter().sum();
                    let value = bits.cast_signed() - I::INT8_OFFSET * total as i32;
                    assert_eq!(value, sum as i32, "{case}");
                } else {
                    assert_close(f32::from_bits(bits), sum, 1e-5 * magnitudes, &case);
                }
            }
        }
    }
}

/// A row of each kind that packing must get right, from ordinary to not a number.
fn source_row(numbers: &mut Numbers, kind: usize, len: usize) -> Vec<f32> {
    let mut row = numbers.floats(len);
    match kind % 8 {
        1 => row.fill(0.0),
        2 => row.iter_mut().for_each(|value| *value *= 3e38),
        3 => row.iter_mut().for_each(|value| *value *= 1e-40),
        4 => row[len / 2] = f32::NAN,
        5 => row[len - 1] = f32::INFINITY,
        6 => row.iter_mut().for_each(|value| *value = (*value * 127.0).round() - 0.5),
        // What a step is worth is a number, but its inverse is not.
        7 => row.iter_mut().for_each(|value| *value *= 1e-37),
        _ => {}
    }
    row
}

fn blocks_are_packed_in_word_order<I: Isa>() {
    let numbers = &mut Numbers(2);
    let segments = if cfg!(miri) { 1..2 } else { 1..4 };
    for (dtype, rows, cut) in DTYPES
        .into_iter()
        .flat_map(|dtype| (1..=I::MAX_ROWS).map(move |rows| (dtype, rows)))
        .flat_map(|(dtype, rows)| [false, true].map(|cut| (dtype, rows, cut)))
    {
        for segments in segments.clone() {
            let case = format!("{} {dtype:?} {rows} rows, {segments} segments", I::NAME);
            let (start, num_rows) = (2, rows + 3);
            let width = segments * SEGMENT;
            let words = width / dtype.per_word();
            let sources: Vec<_> =
                (0..num_rows).map(|row| source_row(numbers, row + rows, width)).collect();
            let mut elements = vec![0.0; num_rows * width];
            let source = if cut {
                Panels::cut(elements.as_mut_ptr(), num_rows)
            } else {
                Panels::row_major(elements.as_mut_ptr(), width)
            };
            let mut packed = vec![UNTOUCHED; num_rows * words];
            let mut scales = vec![-1.0f32; num_rows];
            let rows_packed =
                PackedRows { words: packed.as_mut_ptr(), scales: scales.as_mut_ptr() };
            // SAFETY: `I` was detected; source and target have the rows.
            unsafe {
                for (row, values) in sources.iter().enumerate() {
                    for (panel, values) in values.chunks_exact(PANEL).enumerate() {
                        let target = source.at(panel, row);
                        target.copy_from_nonoverlapping(values.as_ptr(), PANEL);
                    }
                }
                let pack = || pack_block::<I>(dtype, source, start, rows, words, rows_packed);
                I::run(pack);
            }
            let block = start * words..(start + rows) * words;
            let mut expected = vec![UNTOUCHED; num_rows * words];
            if dtype == Dtype::Int8 {
                let quantized: Vec<_> =
                    sources.iter().map(|row| quantized(row)).skip(start).take(rows).collect();
                let values: Vec<_> = quantized.iter().map(|(values, _)| values.clone()).collect();
                expected[block].copy_from_slice(&in_words(dtype, I::INT8_OFFSET, &values));
                for (row, scale) in scales.iter().enumerate() {
                    let expected = match row.checked_sub(start).and_then(|row| quantized.get(row)) {
                        Some((_, scale)) => *scale,
                        None => -1.0,
                    };
                    assert!(
                        *scale == expected || scale.is_nan() && expected.is_nan(),
                        "{case}: scale {scale} should be {expected}"
                    );
                }
            } else {
                let rows = &sources[start..start + rows];
                expected[block].copy_from_slice(&in_words(dtype, 0, rows));
            }
            assert!(packed == expected, "{case}");
        }
    }
}

/// A row in 8 bits, and what one step is worth. What leaves 8 bits is 0: its scale tells.
fn quantized(row: &[f32]) -> (Vec<f32>, f32) {
    let largest = row.iter().fold(0.0f32, |largest, value| {
        if largest.is_nan() || value.abs() <= largest { largest } else { value.abs() }
    });
    let inverse = if largest > f32::MIN_POSITIVE { 127.0 / largest } else { 0.0 };
    let quantize = |value: &f32| {
        let steps = (value * inverse).round_ties_even();
        if steps.abs() <= 128.0 { steps } else { 0.0 }
    };
    (row.iter().map(quantize).collect(), largest / 127.0)
}

fn transposing_and_pairing_move_words_only<I: Isa>() {
    let numbers = &mut Numbers(3);
    for (rows, source_stride) in (1..=16).flat_map(|rows| [(rows, 16), (rows, 37)]) {
        let source: Vec<u32> = (0..15 * source_stride + 16).map(|_| numbers.bits()).collect();
        for target_stride in [rows, rows + 1, PANEL] {
            let len = 15 * target_stride + rows;
            let mut target = vec![UNTOUCHED; len + PANEL];
            let expected: Vec<u32> = (0..len + PANEL)
                .map(|place| match (place / target_stride, place % target_stride) {
                    (column, row) if column < 16 && row < rows => {
                        source[row * source_stride + column]
                    }
                    _ => UNTOUCHED,
                })
                .collect();
            let (from, to) = (source.as_ptr(), target.as_mut_ptr());
            let transpose =
                || unsafe { I::transpose(from, source_stride, rows, to, target_stride) };
            // SAFETY: `I` was detected; source and target cover the matrices.
            unsafe { I::run(transpose) };
            assert!(target == expected, "{} {rows} rows to {target_stride}", I::NAME);
        }
    }
    let halves: Vec<u16> = (0..2 * PANEL).map(|_| numbers.bits() as u16).collect();
    let mut pairs = [UNTOUCHED; PANEL + 1];
    let (even, odd) = halves.split_at(PANEL);
    let target = pairs.as_mut_ptr();
    // SAFETY: `I` was detected; all cover `PANEL` elements.
    unsafe {
        I::run(|| I::zip(even.as_ptr(), odd.as_ptr(), target));
    }
    for (column, &pair) in pairs[..PANEL].iter().enumerate() {
        assert_eq!([pair as u16, (pair >> 16) as u16], [even[column], odd[column]], "{}", I::NAME);
    }
    assert_eq!(pairs[PANEL], UNTOUCHED, "{}", I::NAME);
}

fn vectors_are_read_and_written_as_said<I: Isa>() {
    let numbers = &mut Numbers(4);
    let len = I::Lanes::LEN;
    for _ in 0..if cfg!(miri) { 2 } else { 200 } {
        let floats: Vec<f32> = (0..16).map(|_| f32::from_bits(numbers.bits())).collect();
        let edges = [f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::MAX, -f32::MAX];
        let edges = edges.into_iter().chain([1e-40, -0.0, f32::from_bits(0x3f80_8000)]);
        let ties = f32::from_bits(0x3f81_8000);
        let floats: Vec<f32> = edges.chain([ties]).chain(floats).collect();
        for values in floats.windows(len) {
            let mut halves = [0u16; 17];
            let mut back = [0.0f32; 16];
            // SAFETY: `I` was detected; all cover a vector.
            unsafe {
                I::run(|| {
                    I::Lanes::load(values.as_ptr()).store_bf16(halves.as_mut_ptr());
                    I::Lanes::load_bf16(halves.as_ptr()).store(back.as_mut_ptr());
                });
            }
            for ((value, half), back) in values.iter().zip(halves).zip(back) {
                let right = if value.is_nan() {
                    back.is_nan()
                } else {
                    half == bf16(*value) && back.to_bits() == u32::from(half) << 16
                };
                assert!(right, "{}: {value:e} became {half:#x}, {back:e}", I::NAME);
            }
            assert_eq!(halves[len..], [0; 17][len..], "{}", I::NAME);
        }
    }
    for (offset, first) in [0, 128].into_iter().flat_map(|o| (-128..127).map(move |f| (o, f))) {
        // Halves are ties: to even.
        let values: Vec<f32> = (0..len).map(|place| (first + place as i32) as f32 / 2.0).collect();
        let signed: Vec<i8> = (0..len).map(|place| (first + place as i32) as i8).collect();
        let sums: Vec<i32> = (0..len).map(|_| (numbers.float() * 1e5) as i32).collect();
        let totals: Vec<i32> = (0..len).map(|_| (numbers.float() * 1e4) as i32).collect();
        let mut bytes = [0u8; 17];
        let (mut wide, mut scaled) = ([0.0f32; 16], [0.0f32; 16]);
        // SAFETY: `I` was detected; all cover a vector.
        unsafe {
            I::run(|| {
                I::Lanes::load(values.as_ptr()).store_i8(offset, bytes.as_mut_ptr());
                I::Lanes::load_i8(signed.as_ptr()).store(wide.as_mut_ptr());
                I::Lanes::load_int8_sums(sums.as_ptr(), totals.as_ptr(), offset)
                    .store(scaled.as_mut_ptr());
            });
        }
        for place in 0..len {
            let byte = (values[place].round_ties_even() as i32 + offset) as u8;
            assert_eq!(bytes[place], byte, "{}: {} + {offset}", I::NAME, values[place]);
            assert_eq!(wide[place], f32::from(signed[place]), "{}", I::NAME);
            let sum = sums[place] - offset * totals[place];
            assert_eq!(scaled[place], sum as f32, "{}", I::NAME);
        }
        assert_eq!(bytes[len..], [0; 17][len..], "{}", I::NAME);
    }
    for count in 0..=len {
        let source = numbers.floats(count);
        let mut target = [-1.0f32; 17];
        let (mut filled, source) = ([0.0f32; 16], source.as_slice());
        // SAFETY: `I` was detected; `source` and `target` cover `count` elements.
        unsafe {
            I::run(|| {
                let vector = I::Lanes::load_first(source.as_ptr(), count, 7.0);
                vector.store(filled.as_mut_ptr());
                vector.store_first(target.as_mut_ptr(), count);
            });
        }
        assert_eq!(filled[..count], *source, "{}", I::NAME);
        assert_eq!(filled[count..len], [7.0; 16][count..len], "{}", I::NAME);
        assert_eq!(target[..count], *source, "{}", I::NAME);
        assert_eq!(target[count..], [-1.0; 17][count..], "{}", I::NAME);
    }
}

fn vectors_order_numbers_and_nan_as_said<I: Isa>() {
    let nan = f32::NAN;
    let pairs = [(1.0, 2.0), (2.0, -3.0), (-1.0, -2.0), (0.5, 0.5), (nan, 1.0), (1.0, nan)];
    let name = I::NAME;
    let same = |left: f32, right: f32| left == right || left.is_nan() && right.is_nan();
    for (left, right) in pairs {
        let apply = |function: &dyn Fn(I::Lanes, I::Lanes) -> I::Lanes| {
            // SAFETY: `I` was detected.
            map::<I>(&[left], |lanes| function(lanes, unsafe { I::Lanes::splat(right) }))[0]
        };
        let number = !left.is_nan() && !right.is_nan();
        let magnitude = if number { left.abs().max(right.abs()) } else { nan };
        // SAFETY: `I` was detected.
        unsafe {
            // Nothing is said of `other` not being a number: AArch64 gives NaN, x86-64 `self`.
            let max = if number { left.max(right) } else { left };
            let result = apply(&|x, y| x.max(y));
            assert!(right.is_nan() || same(result, max), "{name}: max({left}, {right})");
            let min = if number { left.min(right) } else { left };
            let result = apply(&|x, y| x.min(y));
            assert!(right.is_nan() || same(result, min), "{name}: min({left}, {right})");
            let result = apply(&|x, y| x.max_magnitude(y));
            assert!(same(result, magnitude), "{name}: max_magnitude({left}, {right}) = {result}");
            assert!(same(apply(&|x, y| x.add(y)), left + right), "{name}");
            assert!(same(apply(&|x, y| x.sub(y)), left - right), "{name}");
            assert!(same(apply(&|x, y| x.mul(y)), left * right), "{name}");
            assert!(same(apply(&|x, y| x.mul_add(y, x)), left * right + left), "{name}");
            assert!(same(apply(&|x, _| x.abs()), left.abs()), "{name}");
        }
    }
    let numbers = &mut Numbers(5);
    for place in 0..I::Lanes::LEN {
        let mut values = numbers.floats(I::Lanes::LEN);
        values[place] = -2.0;
        let reduce = |values: &[f32]| {
            // SAFETY: `I` was detected; the values are one vector.
            unsafe {
                I::run(|| {
                    let lanes = I::Lanes::load(values.as_ptr());
                    [lanes.sum(), lanes.largest(), lanes.largest_magnitude()]
                })
            }
        };
        let [sum, _, magnitude] = reduce(&values);
        let expected = values.iter().map(|&value| f64::from(value)).sum();
        assert_close(sum, expected, 1e-5, name);
        assert_eq!(magnitude, 2.0, "{name}");
        values[place] = 3.0;
        assert_eq!(reduce(&values)[1], 3.0, "{name}");
        values[place] = nan;
        assert!(reduce(&values)[2].is_nan(), "{name}: largest_magnitude of a NaN");
    }
    let halves = (-9..9).map(|half| half as f32 / 2.0);
    let values: Vec<f32> = halves
        .chain([0.499_999_97, 4_194_304.5, 8_388_607.5, -8_388_609.0, 3e9, -1e30, f32::INFINITY])
        .collect();
    for (value, rounded) in values.iter().zip(map::<I>(&values, |x| unsafe { x.round() })) {
        assert_eq!(rounded, value.round_ties_even(), "{name}: round({value})");
    }
    for exponent in (-126..=127).map(|exponent| exponent as f32) {
        let power =
            map::<I>(&[exponent], |x| unsafe { I::Lanes::splat(-1.5).scale_by_power(x) })[0];
        assert_eq!(f64::from(power), -1.5 * f64::from(exponent).exp2(), "{name}: {exponent}");
    }
    let values = [1.0, -3.0, 0.1, 7e9, -2e-20, 3e30];
    for (value, reciprocal) in values.iter().zip(map::<I>(&values, |x| unsafe { x.reciprocal() })) {
        let exact = 1.0 / f64::from(*value);
        assert_close(reciprocal, exact, exact.abs() / 4_194_304.0, name);
    }
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Gelu => reference::gelu(x),
        Activation::GeluTanh => reference::gelu_tanh(x),
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
    }
}

fn exponentials_and_activations_are_close<I: Isa>() {
    let name = I::NAME;
    let step = if cfg!(miri) { 97 } else { 1 };
    let values: Vec<f32> = (-12_600..=12_700).step_by(step).map(|x| x as f32 / 100.0).collect();
    for (x, power) in values.iter().zip(map::<I>(&values, |x| unsafe { lanes::exp2(x) })) {
        let exact = f64::from(*x).exp2();
        assert_close(power, exact, exact * 2.5e-7, &format!("{name}: exp2({x})"));
    }
    // Below -126 comes 0, or what `f32` still holds.
    let values = [-126.6, -127.0, -133.0, -150.5, -2e3, -1e10, -1e30, f32::MIN];
    for (x, power) in values.iter().zip(map::<I>(&values, |x| unsafe { lanes::exp2(x) })) {
        let exact = f64::from(*x).exp2();
        let right = power == 0.0 || (f64::from(power) / exact - 1.0).abs() < 0.5;
        assert!(right, "{name}: exp2({x}) = {power:e}");
        assert!(power == 0.0 || *x > -151.0, "{name}: exp2({x}) = {power:e}");
    }
    let mut values: Vec<f32> = (-3_000..=3_000).step_by(step).map(|x| x as f32 / 250.0).collect();
    values.extend([-1e20, -1e9, -1e4, -100.0, -0.0, 1e-20, 100.0, 1e4, 1e9, 1e20]);
    for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Tanh] {
        let results = map::<I>(&values, |x| unsafe {
            match activation {
                Activation::Gelu => lanes::gelu(x),
                Activation::GeluTanh => lanes::gelu_tanh(x),
                _ => lanes::tanh(x),
            }
        });
        for (x, result) in values.iter().zip(results) {
            let tolerance = match activation {
                Activation::Tanh => 1e-6,
                // 7.1.26 is good to 1.5e-7, times half of x; the rest is rounding.
                _ => 3e-7 * (1.0 + f64::from(x.abs())),
            };
            let exact = activated(activation, (*x).into());
            assert_close(result, exact, tolerance, &format!("{name}: {activation:?}({x})"));
        }
    }
    for (x, result) in values.iter().zip(map::<I>(&values, |x| unsafe { lanes::gelu_rounded(x) })) {
        let tolerance = if x.abs() <= 3.8 { 1.2e-4 } else { 5e-5 * f64::from(x.abs()) };
        let exact = activated(Activation::Gelu, (*x).into());
        assert_close(result, exact, tolerance, &format!("{name}: gelu_rounded({x})"));
    }
    let nans = [f32::NAN; 2];
    for nan in map::<I>(&nans, |x| unsafe { lanes::gelu(x).add(lanes::gelu_rounded(x)) }) {
        assert!(nan.is_nan(), "{name}: gelu(NaN) = {nan}");
    }
}

fn layer_norm_is_close_for_every_width<I: Isa>() {
    let numbers = &mut Numbers(6);
    for width in (1..=130usize).step_by(if cfg!(miri) { 43 } else { 1 }) {
        let case = format!("{} width {width}", I::NAME);
        let padded = width.next_multiple_of(PANEL);
        let (weight, bias) = (numbers.floats(width), numbers.floats(width));
        let norm = NormWeights { weight: &weight, bias: &bias, epsilon: 1e-5 };
        for index in [None, Some(2)] {
            let mut row = numbers.floats(width);
            let mut addends = vec![0.0; 4 * padded];
            let mut sums: Vec<f64> = row.iter().map(|&value| value.into()).collect();
            let addend = Panels::cut(addends.as_mut_ptr(), 4);
            for (column, sum) in sums.iter_mut().enumerate() {
                if let Some(index) = index {
                    let value = numbers.float() + 3.0;
                    // SAFETY: there are four rows.
                    unsafe { *addend.at(column / PANEL, index).add(column % PANEL) = value };
                    *sum += f64::from(value);
                }
            }
            row.resize(padded, 0.0);
            let (start, addend) = (row.as_mut_ptr(), index.map(|index| (addend, index)));
            // SAFETY: `I` was detected; the rows are padded to whole panels.
            unsafe {
                I::run(|| add_norm::<I>(start, addend, &norm));
            }
            let mean = sums.iter().sum::<f64>() / width as f64;
            let variance = sums.iter().map(|sum| (sum - mean).powi(2)).sum::<f64>() / width as f64;
            for (column, sum) in sums.iter().enumerate() {
                let normal = (sum - mean) / (variance + 1e-5).sqrt();
                let exact = normal * f64::from(weight[column]) + f64::from(bias[column]);
                assert_close(row[column], exact, 2e-5, &case);
            }
            assert!(row[width..].iter().all(|&value| value == 0.0), "{case}: padding");
        }
    }
}

fn table_rows_are_added<I: Isa>() {
    let numbers = &mut Numbers(7);
    for dtype in DTYPES {
        let width = 2 * PANEL;
        let rows = numbers.rows(dtype, 3, width);
        let words: Vec<u32> =
            rows.iter().flat_map(|row| in_words(dtype, 0, std::slice::from_ref(row))).collect();
        let scales = [0.5, 0.25, 0.125];
        let table = TableWeights {
            dtype,
            num_panels: 2,
            bytes: bytemuck::cast_slice(&words),
            scales: if dtype == Dtype::Int8 { &scales } else { &[] },
        };
        let mut row = vec![f32::NAN; width];
        let start = row.as_mut_ptr();
        // SAFETY: `I` was detected; the row is as wide as the table.
        unsafe {
            I::run(|| {
                add_table_row::<I>(&table, 2, start, true);
                add_table_row::<I>(&table, 1, start, false);
            });
        }
        let scale = |row: usize| if dtype == Dtype::Int8 { scales[row] } else { 1.0 };
        for (column, value) in row.iter().enumerate() {
            let sum = rows[2][column] * scale(2) + rows[1][column] * scale(1);
            assert_eq!(*value, sum, "{} {dtype:?}", I::NAME);
        }
    }
}

/// One head of one sequence, and what its context should be.
struct Attention {
    dtype: Dtype,
    seq_len: usize,
    head_panels: usize,
    bias: Option<Vec<f32>>,
    /// Queries, keys and values of the head in panels. All else is NaN, for nobody should read it.
    words: Vec<u32>,
    /// `[seq_len, head_panels * PANEL]`
    context: Vec<Vec<f64>>,
}

impl Attention {
    const NUM_HEADS: usize = 2;
    const HEAD: usize = 1;
    const START: usize = 3;
    const SCALE: f32 = 1.5;

    fn new(numbers: &mut Numbers, dtype: Dtype, seq_len: usize, head_panels: usize) -> Self {
        let num_tokens = Self::num_tokens(seq_len);
        let head_dim = head_panels * PANEL - 12;
        let tensors = [0, 1, 2].map(|_| {
            let mut rows = numbers.rows(dtype, seq_len, head_dim);
            rows.iter_mut().for_each(|row| row.resize(head_panels * PANEL, 0.0));
            rows
        });
        let with_bias = (seq_len + head_panels).is_multiple_of(2);
        let bias = with_bias.then(|| numbers.floats(2 * seq_len - 1));
        let mut rows = vec![vec![f32::NAN; PANEL]; 3 * Self::NUM_HEADS * head_panels * num_tokens];
        for (which, tensor) in tensors.iter().enumerate() {
            for (token, row) in tensor.iter().enumerate() {
                for (panel, values) in row.chunks_exact(PANEL).enumerate() {
                    let panel = (which * Self::NUM_HEADS + Self::HEAD) * head_panels + panel;
                    rows[panel * num_tokens + Self::START + token] = values.to_vec();
                }
            }
        }
        let words =
            rows.iter().flat_map(|row| in_words(dtype, 0, std::slice::from_ref(row))).collect();
        let [queries, keys, values] = &tensors;
        let context = queries.iter().enumerate().map(|(query, row)| {
            let score = |(key, column): (usize, &Vec<f32>)| {
                let bias = bias.as_ref().map_or(0.0, |bias| bias[seq_len - 1 + key - query]);
                dot(row, column).0 * f64::from(Self::SCALE) + f64::from(bias)
            };
            let scores: Vec<f64> = keys.iter().enumerate().map(score).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut context = vec![0.0; head_panels * PANEL];
            for (row, weight) in values.iter().zip(weights) {
                for (sum, &value) in context.iter_mut().zip(row) {
                    *sum += f64::from(value) * weight / total;
                }
            }
            context
        });
        let context = context.collect();
        Self { dtype, seq_len, head_panels, bias, words, context }
    }

    /// Tokens of the batch: others stand before and behind the sequence.
    fn num_tokens(seq_len: usize) -> usize {
        Self::START + seq_len + 2
    }

    fn check<I: Isa>(&self, scratch: &mut Scratch) {
        let Self { dtype, seq_len, head_panels, .. } = *self;
        let case = format!("{} {dtype:?} {seq_len} tokens, {head_panels} panels", I::NAME);
        let num_tokens = Self::num_tokens(seq_len);
        let row_stride = PANEL * size_of::<u32>() / dtype.per_word();
        let head = Head {
            query_key_value: Panels {
                start: self.words.as_ptr().cast_mut().cast::<u8>(),
                panel_stride: num_tokens * row_stride,
                row_stride,
            },
            dtype,
            head_panels,
            num_heads: Self::NUM_HEADS,
            head: Self::HEAD,
            start: Self::START,
            seq_len,
            scale: Self::SCALE,
            bias: self.bias.as_deref(),
        };
        let mut output = vec![-1.0f32; Self::NUM_HEADS * head_panels * num_tokens * PANEL];
        let context = Panels::cut(output.as_mut_ptr(), num_tokens);
        // SAFETY: `I` was detected; the matrices have the panels and rows.
        unsafe { I::run(|| attention::attend::<I>(&head, scratch, context)) };
        // Scores are up to 30; in bf16, weights lose 2⁻⁹ of themselves.
        let tolerance = if dtype == Dtype::F32 { 2e-5 } else { 4e-3 };
        for (place, row) in output.chunks_exact(PANEL).enumerate() {
            let (panel, token) = (place / num_tokens, place % num_tokens);
            let expected = token.checked_sub(Self::START).and_then(|query| self.context.get(query));
            let panel = panel.checked_sub(Self::HEAD * head_panels);
            let (Some(expected), Some(panel)) = (expected, panel) else {
                assert_eq!(*row, [-1.0; PANEL], "{case}: row of somebody else");
                continue;
            };
            for (&value, &exact) in row.iter().zip(&expected[panel * PANEL..]) {
                assert_close(value, exact, tolerance, &case);
            }
        }
    }
}

/// Downwards, so that each length finds in the scratch what a longer one has left.
static ATTENTION: LazyLock<Vec<Attention>> = LazyLock::new(|| {
    let numbers = &mut Numbers(8);
    let lengths =
        if cfg!(miri) { vec![33, 2, 1] } else { (1..=70).chain(127..=129).rev().collect() };
    let kinds = [(Dtype::F32, 1), (Dtype::F32, 2), (Dtype::Bf16, 1), (Dtype::Bf16, 2)];
    lengths
        .into_iter()
        .flat_map(|seq_len| kinds.map(|(dtype, panels)| (dtype, seq_len, panels)))
        .map(|(dtype, seq_len, panels)| Attention::new(numbers, dtype, seq_len, panels))
        .collect()
});

fn attention_is_softmax_of_every_length<I: Isa>() {
    let scratch = &mut Scratch::default();
    ATTENTION.iter().for_each(|attention| attention.check::<I>(scratch));
}

fn linear_layers_scale_add_and_activate<I: Isa>() {
    let activations = [
        Activation::Identity,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Tanh,
    ];
    let row_counts = if cfg!(miri) { 5..6 } else { 1..2 * I::MAX_ROWS + 2 };
    for (dtype, num_rows) in
        DTYPES.into_iter().flat_map(|dtype| row_counts.clone().map(move |rows| (dtype, rows)))
    {
        for (index, activation) in activations.into_iter().enumerate() {
            check_linear::<I>(dtype, num_rows, activation, (index + num_rows).is_multiple_of(2));
        }
    }
}

fn check_linear<I: Isa>(dtype: Dtype, num_rows: usize, activation: Activation, to_bf16: bool) {
    let case = format!("{} {dtype:?} {num_rows} rows {activation:?}", I::NAME);
    let numbers = &mut Numbers(num_rows as u64);
    let (width, outputs) = (SEGMENT, 2 * PANEL);
    let words = width / dtype.per_word();
    let inputs =
        numbers.rows(if dtype == Dtype::Bf16 { dtype } else { Dtype::F32 }, num_rows, width);
    let weights = numbers.rows(dtype, outputs, width);
    let panels: Vec<u32> =
        weights.chunks_exact(PANEL).flat_map(|rows| in_words(dtype, 0, rows)).collect();
    let bias = numbers.floats(outputs);
    let scales: Vec<f32> = numbers.floats(outputs).iter().map(|scale| scale / 50.0).collect();
    let sums: Vec<i32> = weights.iter().map(|row| row.iter().sum::<f32>() as i32).collect();
    let int8 = dtype == Dtype::Int8;
    let layer = LinearWeights {
        dtype,
        words,
        panels: &panels,
        bias: &bias,
        scales: if int8 { &scales } else { &[] },
        sums: if int8 { &sums } else { &[] },
        activation,
    };
    assert_eq!(layer.num_panels(), 2);
    let mut source = inputs.concat();
    let source = Panels::row_major(source.as_mut_ptr(), width);
    let mut packed_words = vec![0u32; num_rows * words];
    let mut packed_scales = vec![0.0f32; num_rows];
    let packed =
        PackedRows { words: packed_words.as_mut_ptr(), scales: packed_scales.as_mut_ptr() };
    let (mut floats, mut halves) =
        (vec![0.0f32; num_rows * outputs], vec![0u16; num_rows * outputs]);
    let target = if to_bf16 {
        Target::Bf16(Panels::cut(halves.as_mut_ptr(), num_rows))
    } else {
        Target::F32(Panels::cut(floats.as_mut_ptr(), num_rows))
    };
    // SAFETY: `I` was detected; all matrices have `num_rows` rows, and there are two panels.
    unsafe {
        I::run(|| {
            for block in 0..num_blocks::<I>(num_rows) {
                let (start, rows) = block_rows::<I>(num_rows, block);
                assert!((1..=I::MAX_ROWS).contains(&rows) && rows <= linear::MAX_ROWS);
                pack_block::<I>(dtype, source, start, rows, words, packed);
            }
            for panel in 0..2 {
                multiply_panel::<I>(&layer, packed, num_rows, panel, target);
            }
        });
    }
    for (row, input) in inputs.iter().enumerate() {
        let (input, step) = if int8 { quantized(input) } else { (input.clone(), 1.0) };
        for (output, weights) in weights.iter().enumerate() {
            let worth = if int8 { f64::from(step) * f64::from(scales[output]) } else { 1.0 };
            let (sum, magnitudes) = dot(&input, weights);
            let value = sum * worth + f64::from(bias[output]);
            let exact = activated(activation, value);
            let place = (output / PANEL * num_rows + row) * PANEL + output % PANEL;
            let result = if to_bf16 { widened(halves[place]) } else { floats[place] };
            let rounding = if to_bf16 { exact.abs() / 256.0 } else { 0.0 };
            let activation_error = if dtype != Dtype::F32 && activation == Activation::Gelu {
                1.2e-4 + 5e-5 * value.abs()
            } else {
                4e-7 * (2.0 + value.abs())
            };
            // Slopes of activations are at most 1.13.
            let tolerance = 1.2e-5 * magnitudes * worth.abs() + activation_error + rounding;
            assert_close(result, exact, tolerance, &case);
        }
    }
}
