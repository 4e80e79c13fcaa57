//! What happens row by row between linear layers: looking up, adding, normalizing.

use super::{
    isa::{Dtype, Isa, PANEL},
    lanes::Lanes,
    linear::Panels,
};

/// Weights of a layer normalization, `[hidden_size]` each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormWeights<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) epsilon: f32,
}

/// Rows to look up, padded with zeros to whole panels.
///
/// # Shapes
///
/// - `bytes`: `[num_rows, num_panels * PANEL]` of `dtype`
/// - `scales`: `[num_rows]`, what one step of a row is worth, only for [`Dtype::Int8`]
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableWeights<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) num_panels: usize,
    pub(crate) bytes: &'a [u8],
    pub(crate) scales: &'a [f32],
}

/// Adds row `index` of `table` to `row`, or writes it there if it is the first.
///
/// # Safety
///
/// The CPU is an `I`; `row` covers `num_panels * PANEL` elements.
///
/// # Panics
///
/// If the table has no such row.
#[inline(always)]
pub(crate) unsafe fn add_table_row<I: Isa>(
    table: &TableWeights<'_>,
    index: usize,
    row: *mut f32,
    first: bool,
) {
    let width = table.num_panels * PANEL;
    let row_bytes = width * size_of::<u32>() / table.dtype.per_word();
    let bytes = &table.bytes[index * row_bytes..(index + 1) * row_bytes];
    let scale = if table.dtype == Dtype::Int8 { table.scales[index] } else { 1.0 };
    for column in (0..width).step_by(I::Lanes::LEN) {
        // SAFETY: `bytes` and `row` both hold `width` elements, a multiple of `LEN`.
        unsafe {
            let source = bytes.as_ptr();
            let values = match table.dtype {
                Dtype::F32 => I::Lanes::load(source.cast::<f32>().add(column)),
                Dtype::Bf16 => I::Lanes::load_bf16(source.cast::<u16>().add(column)),
                Dtype::Int8 => {
                    I::Lanes::load_i8(source.cast::<i8>().add(column)).mul(I::Lanes::splat(scale))
                }
            };
            let before = if first { I::Lanes::splat(0.0) } else { I::Lanes::load(row.add(column)) };
            before.add(values).store(row.add(column));
        }
    }
}

/// `row = LayerNorm(row + addend)`, where `addend` is row `index` of a matrix, if there is one.
///
/// # Safety
///
/// The CPU is an `I`; `row` covers the weights padded to whole panels, and so does `addend`.
#[inline(always)]
pub(crate) unsafe fn add_norm<I: Isa>(
    row: *mut f32,
    addend: Option<(Panels<f32>, usize)>,
    norm: &NormWeights<'_>,
) {
    let len = I::Lanes::LEN;
    let width = norm.weight.len();
    let whole = width / len * len;
    let tail = width - whole;
    unsafe {
        let mut sum = I::Lanes::splat(0.0);
        for panel in 0..width.div_ceil(PANEL) {
            for column in (0..PANEL).step_by(len) {
                let elements = row.add(panel * PANEL + column);
                let mut values = I::Lanes::load(elements);
                if let Some((addend, index)) = addend {
                    values = values.add(I::Lanes::load(addend.at(panel, index).add(column)));
                    values.store(elements);
                }
                sum = sum.add(values);
            }
        }
        let mean = sum.sum() / width as f32;
        let means = I::Lanes::splat(mean);
        let mut squares = I::Lanes::splat(0.0);
        for column in (0..whole).step_by(len) {
            let centred = I::Lanes::load(row.add(column)).sub(means);
            squares = centred.mul_add(centred, squares);
        }
        if tail > 0 {
            let centred = I::Lanes::load_first(row.add(whole), tail, mean).sub(means);
            squares = centred.mul_add(centred, squares);
        }
        let inverse = I::Lanes::splat(1.0 / (squares.sum() / width as f32 + norm.epsilon).sqrt());
        let (weight, bias) = (norm.weight.as_ptr(), norm.bias.as_ptr());
        for column in (0..whole).step_by(len) {
            I::Lanes::load(row.add(column))
                .sub(means)
                .mul(inverse)
                .mul_add(I::Lanes::load(weight.add(column)), I::Lanes::load(bias.add(column)))
                .store(row.add(column));
        }
        if tail > 0 {
            let weight = I::Lanes::load_first(weight.add(whole), tail, 0.0);
            let bias = I::Lanes::load_first(bias.add(whole), tail, 0.0);
            I::Lanes::load_first(row.add(whole), tail, 0.0)
                .sub(means)
                .mul(inverse)
                .mul_add(weight, bias)
                .store_first(row.add(whole), tail);
        }
    }
}
