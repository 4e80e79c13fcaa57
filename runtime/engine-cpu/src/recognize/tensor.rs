//! Numbers out of an ONNX file, of whatever type, as `f32`.

use tract_onnx::{
    pb::{TensorProto, tensor_proto::DataLocation, tensor_proto::DataType},
    prelude::f16,
};

/// Row-major numbers with their shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// Whether ONNX's type number `data_type` is a float that `f32` stands for.
pub(super) fn is_float(data_type: i64) -> bool {
    let float = [DataType::Float, DataType::Float16, DataType::Bfloat16, DataType::Double];
    float.iter().any(|&each| each as i64 == data_type)
}

/// Whether ONNX's type number `data_type` is an integer.
pub(super) fn is_integer(data_type: i64) -> bool {
    let integer = [DataType::Int8, DataType::Uint8, DataType::Int32, DataType::Int64];
    integer.iter().any(|&each| each as i64 == data_type)
}

impl Tensor {
    /// `None` if the file does not hold the values itself, or not as many as the shape says.
    pub(super) fn decode(proto: &TensorProto) -> Option<Self> {
        if proto.data_location == Some(DataLocation::External as i32) {
            return None;
        }
        let data_type = DataType::try_from(proto.data_type).ok()?;
        let values = match proto.raw_data.as_slice() {
            [] => typed_values(proto, data_type)?,
            raw => raw_values(raw, data_type)?,
        };
        let shape: Option<Vec<_>> =
            proto.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        Self::checked(shape?, values)
    }

    pub(super) fn vector(values: Vec<f32>) -> Self {
        Self { shape: vec![values.len()], values }
    }

    /// `None` if `shape` does not hold as many numbers.
    fn checked(shape: Vec<usize>, values: Vec<f32>) -> Option<Self> {
        let len = shape.iter().try_fold(1_usize, |len, &dim| len.checked_mul(dim))?;
        (len == values.len()).then_some(Self { shape, values })
    }

    /// Lengths and indices that were read as `f32`.
    pub(super) fn integers(&self) -> Vec<i64> {
        self.values.iter().map(|&value| value as i64).collect()
    }

    pub(super) fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        self.values.iter_mut().for_each(|value| *value = f(*value));
        self
    }

    /// As `Reshape`: 0 keeps a length, -1 is the rest.
    pub(super) fn reshaped(self, target: &[i64]) -> Option<Self> {
        let mut shape = Vec::with_capacity(target.len());
        for (index, &dim) in target.iter().enumerate() {
            shape.push(match dim {
                0 => *self.shape.get(index)?,
                -1 => 1,
                dim => usize::try_from(dim).ok()?,
            });
        }
        if let Some(rest) = target.iter().position(|&dim| dim == -1) {
            let others = shape.iter().try_fold(1_usize, |len, &dim| len.checked_mul(dim))?;
            shape[rest] = self.values.len().checked_div(others)?;
        }
        Self::checked(shape, self.values)
    }

    /// Without `axes`, or without all axes of length 1.
    pub(super) fn squeezed(mut self, axes: Option<&[i64]>) -> Option<Self> {
        let mut keep: Vec<_> = self.shape.iter().map(|&dim| axes.is_some() || dim != 1).collect();
        for &axis in axes.unwrap_or_default() {
            keep[wrapped(axis, self.shape.len())?] = false;
        }
        let mut kept = keep.iter();
        self.shape.retain(|_| *kept.next().unwrap_or(&true));
        Self::checked(self.shape, self.values)
    }

    pub(super) fn unsqueezed(mut self, axes: &[i64]) -> Option<Self> {
        let rank = self.shape.len() + axes.len();
        let mut axes: Vec<_> =
            axes.iter().map(|&axis| wrapped(axis, rank)).collect::<Option<_>>()?;
        axes.sort_unstable();
        for axis in axes {
            (axis <= self.shape.len()).then(|| self.shape.insert(axis, 1))?;
        }
        Some(self)
    }

    /// With its axes in the order of `perm`; `None` beyond two of them that are longer than 1.
    pub(super) fn transposed(self, perm: &[i64]) -> Option<Self> {
        let order: Vec<_> =
            perm.iter().map(|&axis| wrapped(axis, self.shape.len())).collect::<Option<_>>()?;
        let shape = order.iter().map(|&axis| self.shape[axis]).collect();
        let long: Vec<_> = order.into_iter().filter(|&axis| self.shape[axis] != 1).collect();
        let values = match long[..] {
            [a, b] if a > b => transpose(&self.values, self.shape[b]),
            _ if long.is_sorted() => self.values,
            _ => return None,
        };
        Self::checked(shape, values)
    }

    /// Element by element with `other`, where one of the two has the shape of the result.
    pub(super) fn zip(&self, other: &Self, f: impl Fn(f32, f32) -> f32) -> Option<Self> {
        let rank = self.shape.len().max(other.shape.len());
        let aligned = |shape: &[usize]| [vec![1; rank - shape.len()], shape.to_vec()].concat();
        let (a_shape, b_shape) = (aligned(&self.shape), aligned(&other.shape));
        let shape: Vec<_> = a_shape.iter().zip(&b_shape).map(|(&a, &b)| a.max(b)).collect();
        if (shape != a_shape && shape != b_shape)
            || shape
                .iter()
                .zip(a_shape.iter().zip(&b_shape))
                .any(|(&dim, (&a, &b))| (a != dim && a != 1) || (b != dim && b != 1))
        {
            return None;
        }
        // The index of an element in an operand: an axis of length 1 does not move it.
        let index_in = |operand: &[usize], mut index: usize| {
            let (mut found, mut stride) = (0, 1);
            for (&dim, &own) in shape.iter().zip(operand).rev() {
                found += if own == 1 { 0 } else { index % dim * stride };
                (index, stride) = (index / dim, stride * own);
            }
            found
        };
        let row_len = shape.last().copied().unwrap_or(1).max(1);
        let step = |operand: &[usize]| usize::from(operand.last().is_some_and(|&dim| dim != 1));
        let (a_step, b_step) = (step(&a_shape), step(&b_shape));
        let len = self.values.len().max(other.values.len());
        let mut values = Vec::with_capacity(len);
        for first in (0..len).step_by(row_len) {
            let a = &self.values[index_in(&a_shape, first)..];
            let b = &other.values[index_in(&b_shape, first)..];
            values.extend((0..row_len).map(|i| f(a[i * a_step], b[i * b_step])));
        }
        Self::checked(shape, values)
    }

    /// The elements of a vector at `indices`.
    pub(super) fn gathered(&self, indices: Self) -> Option<Self> {
        let [len] = self.shape[..] else { return None };
        let values = indices
            .integers()
            .into_iter()
            .map(|index| Some(self.values[wrapped(index, len)?]))
            .collect::<Option<_>>()?;
        Self::checked(indices.shape, values)
    }

    /// The elements of a vector from `start` to `end`.
    pub(super) fn sliced(&self, start: i64, end: i64) -> Option<Self> {
        let [len] = self.shape[..] else { return None };
        let bound = |index: i64| match usize::try_from(index) {
            Ok(index) => index.min(len),
            Err(_) => wrapped(index, len).unwrap_or(0),
        };
        Some(Self::vector(self.values.get(bound(start)..bound(end))?.to_vec()))
    }

    /// `(self - zero_point) * scale`, one of each for everything or for each index of `axis`.
    pub(super) fn dequantized(
        self,
        scale: Self,
        zero_point: Option<Self>,
        axis: i64,
    ) -> Option<Self> {
        let rank = self.shape.len();
        let axis = wrapped(axis, rank);
        let along_axis = |tensor: Self| match tensor.values.len() {
            1 => tensor.reshaped(&[]),
            len => {
                let mut shape = vec![1; rank - axis?];
                *shape.first_mut()? = i64::try_from(len).ok()?;
                (tensor.shape.len() == 1).then(|| tensor.reshaped(&shape))?
            }
        };
        let scale = along_axis(scale)?;
        let centered = match zero_point {
            Some(zero_point) => self.zip(&along_axis(zero_point)?, |value, zero| value - zero)?,
            None => self,
        };
        centered.zip(&scale, |value, scale| value * scale)
    }
}

/// An axis or index as ONNX writes it: from the end if negative.
fn wrapped(index: i64, len: usize) -> Option<usize> {
    let from_start = if index < 0 { index.checked_add(i64::try_from(len).ok()?)? } else { index };
    usize::try_from(from_start).ok().filter(|&index| index < len)
}

/// Rows to columns, in squares that stay in the cache.
fn transpose(values: &[f32], num_rows: usize) -> Vec<f32> {
    const SIDE: usize = 32;
    let num_columns = values.len() / num_rows.max(1);
    let mut transposed = vec![0.0; values.len()];
    for first_row in (0..num_rows).step_by(SIDE) {
        for first_column in (0..num_columns).step_by(SIDE) {
            for row in first_row..num_rows.min(first_row + SIDE) {
                for column in first_column..num_columns.min(first_column + SIDE) {
                    transposed[column * num_rows + row] = values[row * num_columns + column];
                }
            }
        }
    }
    transposed
}

fn raw_values(raw: &[u8], data_type: DataType) -> Option<Vec<f32>> {
    fn read<const N: usize>(raw: &[u8], decode: impl Fn([u8; N]) -> f32) -> Option<Vec<f32>> {
        let (elements, rest) = raw.as_chunks::<N>();
        rest.is_empty().then(|| elements.iter().map(|&bytes| decode(bytes)).collect())
    }
    match data_type {
        DataType::Float => read(raw, f32::from_le_bytes),
        DataType::Double => read(raw, |bytes| f64::from_le_bytes(bytes) as f32),
        DataType::Float16 => read(raw, |bytes| f16_to_f32(u16::from_le_bytes(bytes))),
        DataType::Bfloat16 => read(raw, |bytes| bf16_to_f32(u16::from_le_bytes(bytes))),
        DataType::Int64 => read(raw, |bytes| i64::from_le_bytes(bytes) as f32),
        DataType::Int32 => read(raw, |bytes| i32::from_le_bytes(bytes) as f32),
        DataType::Int8 => read(raw, |bytes| f32::from(i8::from_le_bytes(bytes))),
        DataType::Uint8 | DataType::Bool => read(raw, |[byte]| f32::from(byte)),
        _ => None,
    }
}

fn typed_values(proto: &TensorProto, data_type: DataType) -> Option<Vec<f32>> {
    let small = || proto.int32_data.iter();
    Some(match data_type {
        DataType::Float => proto.float_data.clone(),
        DataType::Double => proto.double_data.iter().map(|&value| value as f32).collect(),
        DataType::Float16 => small().map(|&bits| f16_to_f32(bits as u16)).collect(),
        DataType::Bfloat16 => small().map(|&bits| bf16_to_f32(bits as u16)).collect(),
        DataType::Int64 => proto.int64_data.iter().map(|&value| value as f32).collect(),
        DataType::Int32 | DataType::Int8 | DataType::Uint8 | DataType::Bool => {
            small().map(|&value| value as f32).collect()
        }
        _ => return None,
    })
}

fn f16_to_f32(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor { shape: shape.to_vec(), values: values.to_vec() }
    }

    #[test]
    fn every_type_is_read_raw_and_typed() {
        let raw = |data_type: DataType, raw_data: &[u8]| TensorProto {
            dims: vec![1],
            data_type: data_type as i32,
            raw_data: raw_data.to_vec(),
            ..TensorProto::default()
        };
        let bits = |data_type: DataType, bits: i32| TensorProto {
            dims: vec![1],
            data_type: data_type as i32,
            int32_data: vec![bits],
            ..TensorProto::default()
        };
        let cases = [
            ("f32", raw(DataType::Float, &1.5_f32.to_le_bytes()), 1.5),
            ("f64", raw(DataType::Double, &1.5_f64.to_le_bytes()), 1.5),
            ("f16", raw(DataType::Float16, &[0x00, 0x3e]), 1.5),
            ("f16 in int32_data", bits(DataType::Float16, 0x3e00), 1.5),
            ("bf16", raw(DataType::Bfloat16, &[0xc0, 0x3f]), 1.5),
            ("bf16 in int32_data", bits(DataType::Bfloat16, 0x3fc0), 1.5),
            ("i64", raw(DataType::Int64, &(-3_i64).to_le_bytes()), -3.0),
            ("i32", raw(DataType::Int32, &(-3_i32).to_le_bytes()), -3.0),
            ("i8", raw(DataType::Int8, &[0xfd]), -3.0),
            ("i8 in int32_data", bits(DataType::Int8, -3), -3.0),
            ("u8", raw(DataType::Uint8, &[0xfd]), 253.0),
        ];
        for (name, proto, expected) in cases {
            assert_eq!(Tensor::decode(&proto), Some(tensor(&[1], &[expected])), "{name}");
        }
    }

    #[test]
    fn a_tensor_that_is_short_or_elsewhere_is_not_read() {
        let whole = TensorProto {
            dims: vec![2],
            data_type: DataType::Float as i32,
            float_data: vec![1.0, 2.0],
            ..TensorProto::default()
        };
        let short = TensorProto { dims: vec![3], ..whole.clone() };
        let negative = TensorProto { dims: vec![-1, -2], ..whole.clone() };
        let endless = TensorProto { dims: vec![i64::MAX, i64::MAX], ..whole.clone() };
        let torn = TensorProto { float_data: vec![], raw_data: vec![0; 7], ..whole.clone() };
        let external =
            TensorProto { data_location: Some(DataLocation::External as i32), ..whole.clone() };
        assert!(Tensor::decode(&whole).is_some());
        for proto in [short, negative, endless, torn, external] {
            assert_eq!(Tensor::decode(&proto), None, "{proto:?}");
        }
    }

    #[test]
    fn transposed_turns_a_matrix_and_moves_axes_of_one() {
        let matrix = tensor(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let turned = tensor(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(matrix.clone().transposed(&[1, 0]), Some(turned.clone()));
        let wide = tensor(&[1, 2, 3], &matrix.values);
        assert_eq!(wide.transposed(&[2, 0, 1]), Some(tensor(&[3, 1, 2], &turned.values)));
        assert_eq!(matrix.transposed(&[0, 2]), None);
    }

    #[test]
    fn zip_stretches_one_side_only() {
        let matrix = tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let row = tensor(&[2], &[10.0, 20.0]);
        let column = tensor(&[2, 1], &[10.0, 20.0]);
        let sum = |a: &Tensor, b: &Tensor| a.zip(b, |a, b| a + b);
        assert_eq!(sum(&matrix, &row), Some(tensor(&[2, 2], &[11.0, 22.0, 13.0, 24.0])));
        assert_eq!(sum(&column, &matrix), Some(tensor(&[2, 2], &[11.0, 12.0, 23.0, 24.0])));
        assert_eq!(sum(&row, &column), None);
        assert_eq!(sum(&matrix, &tensor(&[3], &[0.0; 3])), None);
    }

    #[test]
    fn dequantized_scales_along_its_axis() {
        let integers = tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let scale = Tensor::vector(vec![1.0, 10.0]);
        let zero = tensor(&[], &[1.0]);
        let by_column = integers.clone().dequantized(scale.clone(), Some(zero), -1);
        assert_eq!(by_column, Some(tensor(&[2, 2], &[0.0, 10.0, 2.0, 30.0])));
        let by_row = integers.dequantized(scale, None, 0);
        assert_eq!(by_row, Some(tensor(&[2, 2], &[1.0, 2.0, 30.0, 40.0])));
    }
}
