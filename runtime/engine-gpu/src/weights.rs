//! The weights of an encoder, in the memory of a device.

use std::ops::Range;

use encoder::{Description, Layout, Source};
use engine::{EngineError, Precision};

use crate::{
    device::Device,
    failed,
    kernel::{self, Address, Dtype, Order, Packed, Unpack},
};

/// Bytes of a bundle that are on the device at a time, before they are unpacked; more only if a panel is
/// more.
const STAGING_BYTES: usize = 16 << 20;

/// Where the weights of an encoder are.
#[derive(Debug)]
pub(crate) struct Weights<D> {
    pub(crate) dtype: Dtype,
    pub(crate) word: Address,
    pub(crate) position: Address,
    /// [`Address::NONE`] without a table of types.
    pub(crate) token_type: Address,
    pub(crate) embedding_norm: kernel::Norm,
    pub(crate) projection: Option<Linear>,
    /// `f32` `[num_heads, 2 * max_seqlen - 1]`, or none
    pub(crate) position_bias: Address,
    pub(crate) layers: Vec<Layer>,
    pub(crate) head: Vec<Linear>,
    /// Whose memory they are in.
    _device: D,
}

/// Of one block of the encoder.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) query_key_value: Linear,
    pub(crate) attention_output: Linear,
    pub(crate) attention_norm: kernel::Norm,
    pub(crate) intermediate: Linear,
    pub(crate) output: Linear,
    pub(crate) output_norm: kernel::Norm,
}

/// Of a linear layer.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Address,
    pub(crate) bias: Address,
    pub(crate) in_stride: usize,
    pub(crate) out_stride: usize,
    pub(crate) out_features: usize,
    pub(crate) activation: kernel::Activation,
}

impl<D: Device> Weights<D> {
    /// Copies `source` to `device`, as numbers of `dtype`, part by part as they arrive, and waits until all
    /// is there.
    pub(crate) fn load(
        mut device: D,
        description: &Description,
        layout: &Layout,
        source: &dyn Source,
        dtype: Dtype,
    ) -> Result<Self, EngineError> {
        wait(source, layout.end_of_embeddings())?;
        let bytes = source.as_ref();
        // Freed when all is unpacked.
        let mut staging_device = device.another().map_err(failed)?;
        let staging_bytes = STAGING_BYTES.max(max_panel_bytes(layout));
        let staging = staging_device.allocate(staging_bytes).map_err(failed)?;
        let scales_bytes = max_rows(layout) * size_of::<f32>();
        let scales = staging_device.allocate(scales_bytes).map_err(failed)?;
        let mut loader = Loader {
            device: &mut device,
            description,
            bytes,
            staging,
            staging_bytes,
            scales,
            dtype,
        };
        let bias = layout.position_bias(description, bytes, layout.position.num_rows);
        let word = loader.table(&layout.word)?;
        let position = loader.table(&layout.position)?;
        let token_type = match &layout.token_type {
            Some(table) => loader.table(table)?,
            None => Address::NONE,
        };
        let stride = layout.word.stride;
        let embedding_norm =
            loader.norm(&layout.embedding_norm, stride, description.embedding_size)?;
        let projection = layout.projection.as_ref().map(|linear| loader.linear(linear));
        let projection = projection.transpose()?;
        let position_bias = match bias.is_empty() {
            true => Address::NONE,
            false => loader.place(bytemuck::cast_slice(&bias))?,
        };
        let mut layers = Vec::with_capacity(layout.layers.len());
        for (index, layer) in layout.layers.iter().enumerate() {
            wait(source, layout.end_of_layer(index))?;
            layers.push(loader.layer(layer)?);
        }
        wait(source, layout.end_of_head())?;
        let head = layout.head.iter().map(|linear| loader.linear(linear));
        let head = head.collect::<Result<_, _>>()?;
        device.read(word, &mut [0]).map_err(failed)?;
        Ok(Self {
            dtype,
            word,
            position,
            token_type,
            embedding_norm,
            projection,
            position_bias,
            layers,
            head,
            _device: device,
        })
    }
}

fn wait(source: &dyn Source, end: usize) -> Result<(), EngineError> {
    source.wait(end).map_err(failed)
}

/// Of the matrices and tables.
fn max_rows(layout: &Layout) -> usize {
    let tables = [&layout.word, &layout.position].into_iter().chain(&layout.token_type);
    let rows = tables.map(|table| table.num_rows);
    rows.chain(layout.linears().map(|linear| linear.out_stride)).max().unwrap_or(0)
}

/// Of the matrices, and of as many rows of the tables.
fn max_panel_bytes(layout: &Layout) -> usize {
    let strides = layout.linears().map(|linear| linear.in_stride).chain([layout.word.stride]);
    strides.max().unwrap_or(0) * encoder::PANEL * size_of::<f32>()
}

struct Loader<'a, D> {
    device: &'a mut D,
    description: &'a Description,
    bytes: &'a [u8],
    staging: Address,
    staging_bytes: usize,
    /// Of the rows of one matrix.
    scales: Address,
    dtype: Dtype,
}

impl<D: Device> Loader<'_, D> {
    fn layer(&mut self, layer: &encoder::Layer) -> Result<Layer, EngineError> {
        let hidden_size = self.description.hidden_size;
        Ok(Layer {
            query_key_value: self.linear(&layer.query_key_value)?,
            attention_output: self.linear(&layer.attention_output)?,
            attention_norm: self.norm(
                &layer.attention_norm,
                layer.attention_output.out_stride,
                hidden_size,
            )?,
            intermediate: self.linear(&layer.intermediate)?,
            output: self.linear(&layer.output)?,
            output_norm: self.norm(&layer.output_norm, layer.output.out_stride, hidden_size)?,
        })
    }

    fn linear(&mut self, linear: &encoder::Linear) -> Result<Linear, EngineError> {
        let matrix = Matrix {
            packed: linear.weight.clone(),
            scales: linear.scales.clone(),
            precision: linear.precision,
            num_rows: linear.out_stride,
            stride: linear.in_stride,
            order: Order::Panels,
        };
        Ok(Linear {
            weight: self.matrix(&matrix)?,
            bias: self.place(&self.bytes[linear.bias.clone()])?,
            in_stride: linear.in_stride,
            out_stride: linear.out_stride,
            out_features: linear.out_features,
            activation: linear.activation.into(),
        })
    }

    fn table(&mut self, table: &encoder::Table) -> Result<Address, EngineError> {
        self.matrix(&Matrix {
            packed: table.weight.clone(),
            scales: table.scales.clone(),
            precision: table.precision,
            num_rows: table.num_rows,
            stride: table.stride,
            order: Order::Rows,
        })
    }

    fn norm(
        &mut self,
        norm: &encoder::Norm,
        stride: usize,
        hidden_size: usize,
    ) -> Result<kernel::Norm, EngineError> {
        let mut place = |range: &Range<usize>| {
            let mut values = self.bytes[range.clone()].to_vec();
            values.resize(stride * size_of::<f32>(), 0);
            self.place(&values)
        };
        Ok(kernel::Norm {
            weight: place(&norm.weight)?,
            bias: place(&norm.bias)?,
            stride: stride as i64,
            hidden_size: hidden_size as i32,
            epsilon: self.description.layer_norm_eps,
        })
    }

    /// Unpacks as many rows at a time as there is room for.
    fn matrix(&mut self, matrix: &Matrix) -> Result<Address, EngineError> {
        let Matrix { packed, scales, num_rows, stride, .. } = matrix;
        let row_bytes = packed.len() / num_rows;
        let output_row_bytes = stride * self.dtype.num_bytes();
        let output = self.device.allocate(num_rows * output_row_bytes).map_err(failed)?;
        self.device.write(self.scales, &self.bytes[scales.clone()]).map_err(failed)?;
        let at_once = self.staging_bytes / row_bytes / encoder::PANEL * encoder::PANEL;
        for first in (0..*num_rows).step_by(at_once) {
            let last = (first + at_once).min(*num_rows);
            let rows = packed.start + first * row_bytes..packed.start + last * row_bytes;
            self.device.write(self.staging, &self.bytes[rows]).map_err(failed)?;
            let unpack = Unpack {
                packed: self.staging,
                scales: self.scales.behind(first * size_of::<f32>()),
                output: output.behind(first * output_row_bytes),
                num_rows: (last - first) as i64,
                stride: *stride as i64,
                dtype: matrix.precision.into(),
                order: matrix.order,
            };
            self.device.launch(&unpack.launch(self.dtype)).map_err(failed)?;
        }
        Ok(output)
    }

    fn place(&mut self, bytes: &[u8]) -> Result<Address, EngineError> {
        let place = self.device.allocate(bytes.len()).map_err(failed)?;
        self.device.write(place, bytes).map_err(failed)?;
        Ok(place)
    }
}

/// Rows of numbers in a bundle.
struct Matrix {
    packed: Range<usize>,
    scales: Range<usize>,
    precision: Precision,
    num_rows: usize,
    stride: usize,
    order: Order,
}

impl From<Precision> for Packed {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::Int8 => Self::Int8,
        }
    }
}

impl From<encoder::Activation> for kernel::Activation {
    fn from(activation: encoder::Activation) -> Self {
        match activation {
            encoder::Activation::Identity => Self::Identity,
            encoder::Activation::Gelu => Self::Gelu,
            encoder::Activation::GeluTanh => Self::GeluTanh,
            encoder::Activation::Relu => Self::Relu,
            encoder::Activation::Tanh => Self::Tanh,
        }
    }
}
