//! From an encoder as it was exported to the packed layout.

use encoder::{
    ALIGNMENT, Activation, Description, ElementType, LAYOUT, PANEL, SEGMENT, Tensor, padded,
};
use engine::Precision;

use crate::exported::{Encoder, Head, Layer, LayerNorm, Linear, Positions, Table};

/// Packs `encoder` for `precision`: its description, and its weights.
pub(crate) fn pack(encoder: &Encoder, precision: Precision) -> (Description, Vec<u8>) {
    let mut writer = Writer::default();
    let embeddings = &encoder.embeddings;
    writer.table("embeddings.word", &embeddings.word, precision);
    writer.table("embeddings.position", &embeddings.position, precision);
    if let Some(table) = &embeddings.token_type {
        writer.table("embeddings.token_type", table, precision);
    }
    writer.norm("embeddings.norm", &embeddings.norm);
    if let Some(linear) = &embeddings.projection {
        writer.linear("embeddings.projection", linear, precision);
    }
    if let Some(bias) = &encoder.position_bias {
        writer.values(
            "position_bias",
            &[bias.table.num_rows, bias.table.width],
            &bias.table.values,
        );
    }
    for (index, layer) in encoder.layers.iter().enumerate() {
        let name = |part: &str| format!("layers.{index}.{part}");
        let (joined, output) = pad_heads(layer, encoder.num_heads);
        writer.linear(&name("query_key_value"), &joined, precision);
        writer.linear(&name("attention_output"), &output, precision);
        writer.norm(&name("attention_norm"), &layer.attention_norm);
        writer.linear(&name("intermediate"), &layer.intermediate, precision);
        writer.linear(&name("output"), &layer.output, precision);
        writer.norm(&name("output_norm"), &layer.output_norm);
    }
    let readout = match &encoder.head {
        Head::HiddenStates => encoder::Head::HiddenStates,
        Head::Graph(_) => encoder::Head::Graph,
        Head::FirstToken(layers) => {
            // The head is small and last: what it loses is seen undiluted.
            let precision = precision.min(Precision::Bf16);
            for (index, (linear, _)) in layers.iter().enumerate() {
                writer.linear(&format!("head.{index}"), linear, precision);
            }
            encoder::Head::FirstToken(layers.iter().map(|&(_, activation)| activation).collect())
        }
    };
    let first = encoder.layers.first();
    let description = Description {
        layout: LAYOUT,
        hidden_size: first.map_or(0, |layer| layer.output.out_features),
        embedding_size: embeddings.word.width,
        num_layers: encoder.layers.len(),
        num_heads: encoder.num_heads,
        head_dim: first.map_or(0, |layer| layer.query.out_features / encoder.num_heads),
        layer_norm_eps: embeddings.norm.epsilon,
        hidden_act: first.map_or(Activation::Gelu, |layer| layer.activation),
        padding_idx: match embeddings.positions {
            Positions::FromZero => None,
            Positions::AfterPadding { padding_idx } => Some(padding_idx),
        },
        max_distance: encoder.position_bias.as_ref().map(|bias| bias.max_distance),
        readout,
        tensors: writer.tensors,
    };
    (description, writer.bytes)
}

/// Queries, keys and values as one layer, each head padded to whole panels; and the layer that
/// reads the heads, padded alike.
fn pad_heads(layer: &Layer, num_heads: usize) -> (Linear, Linear) {
    let head_dim = layer.query.out_features / num_heads;
    let width = padded(head_dim, PANEL);
    let in_features = layer.query.in_features;
    let mut joined = Linear {
        weight: Vec::new(),
        bias: Vec::new(),
        in_features,
        out_features: 3 * num_heads * width,
    };
    for part in [&layer.query, &layer.key, &layer.value] {
        for head in 0..num_heads {
            let rows = head * head_dim..(head + 1) * head_dim;
            let weight = &part.weight[rows.start * in_features..rows.end * in_features];
            joined.weight.extend_from_slice(weight);
            joined.weight.resize(joined.weight.len() + (width - head_dim) * in_features, 0.0);
            joined.bias.extend_from_slice(&part.bias[rows]);
            joined.bias.resize(joined.bias.len() + width - head_dim, 0.0);
        }
    }
    let read = &layer.attention_output;
    let mut output = Linear {
        weight: Vec::with_capacity(read.out_features * num_heads * width),
        bias: read.bias.clone(),
        in_features: num_heads * width,
        out_features: read.out_features,
    };
    for head in read.weight.chunks_exact(head_dim) {
        output.weight.extend_from_slice(head);
        output.weight.resize(output.weight.len() + width - head_dim, 0.0);
    }
    (joined, output)
}

/// Tensors, one behind the other.
#[derive(Default)]
struct Writer {
    tensors: Vec<Tensor>,
    bytes: Vec<u8>,
}

impl Writer {
    fn tensor(&mut self, name: &str, dtype: ElementType, shape: &[usize], bytes: &[u8]) {
        self.bytes.resize(padded(self.bytes.len(), ALIGNMENT), 0);
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dtype: dtype.as_str().to_owned(),
            shape: shape.to_vec(),
            offset: self.bytes.len(),
            length: bytes.len(),
            sha256: String::new(),
        });
        self.bytes.extend_from_slice(bytes);
    }

    fn values(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.tensor(name, ElementType::Of(Precision::F32), shape, bytemuck::cast_slice(values));
    }

    fn norm(&mut self, name: &str, norm: &LayerNorm) {
        self.values(&format!("{name}.weight"), &[norm.weight.len()], &norm.weight);
        self.values(&format!("{name}.bias"), &[norm.bias.len()], &norm.bias);
    }

    /// Rows padded to whole segments; of 8 bits, with one scale a row.
    fn table(&mut self, name: &str, table: &Table, precision: Precision) {
        let dtype = ElementType::Of(precision);
        let width = padded(table.width, SEGMENT);
        let shape = [table.num_rows, table.width];
        let mut bytes = Vec::with_capacity(table.num_rows * width * dtype.num_bytes());
        let mut scales = Vec::new();
        for row in table.values.chunks_exact(table.width) {
            let scale = step(row);
            let padding = (width - table.width) * dtype.num_bytes();
            match precision {
                Precision::F32 => bytes.extend_from_slice(bytemuck::cast_slice(row)),
                Precision::Bf16 => {
                    bytes.extend(row.iter().flat_map(|&value| bf16(value).to_le_bytes()))
                }
                Precision::Int8 => {
                    bytes.extend(row.iter().map(|&value| int8(value, scale) as u8));
                    scales.push(scale);
                }
            }
            bytes.resize(bytes.len() + padding, 0);
        }
        self.tensor(&format!("{name}.weight"), dtype, &shape, &bytes);
        if precision == Precision::Int8 {
            self.values(&format!("{name}.scales"), &[table.num_rows], &scales);
        }
    }

    /// Panels of `PANEL` output channels: words of neighbouring inputs, channel by channel.
    fn linear(&mut self, name: &str, linear: &Linear, precision: Precision) {
        let Linear { in_features, out_features, .. } = *linear;
        let out_padded = padded(out_features, SEGMENT);
        let dtype = ElementType::Of(precision);
        let per_word = size_of::<u32>() / dtype.num_bytes();
        let words = padded(in_features, SEGMENT) / per_word;
        let mut panels = vec![0u32; words * out_padded];
        let mut scales = vec![0.0f32; out_padded];
        let mut sums = vec![0i32; out_padded];
        for (channel, row) in linear.weight.chunks_exact(in_features).enumerate() {
            let scale = step(row);
            scales[channel] = scale;
            let start = channel / PANEL * words * PANEL + channel % PANEL;
            for (index, &value) in row.iter().enumerate() {
                let place = index % per_word;
                let bits = match precision {
                    Precision::F32 => value.to_bits(),
                    Precision::Bf16 => u32::from(bf16(value)) << (16 * place),
                    Precision::Int8 => {
                        let value = int8(value, scale);
                        sums[channel] += i32::from(value);
                        u32::from(value as u8) << (8 * place)
                    }
                };
                panels[start + index / per_word * PANEL] |= bits;
            }
        }
        let mut bias = linear.bias.clone();
        bias.resize(out_padded, 0.0);
        let shape = [out_features, in_features];
        self.tensor(&format!("{name}.weight"), dtype, &shape, bytemuck::cast_slice(&panels));
        self.values(&format!("{name}.bias"), &[out_features], &bias);
        if precision == Precision::Int8 {
            self.values(&format!("{name}.scales"), &[out_features], &scales);
            let bytes = bytemuck::cast_slice(&sums);
            self.tensor(&format!("{name}.sums"), ElementType::Int32, &[out_features], bytes);
        }
    }
}

/// What one step of 8 bits is worth, so that the largest magnitude of `values` is 127 steps. NaN if
/// one of them is, so that it shows in every answer.
fn step(values: &[f32]) -> f32 {
    let larger = |largest: f32, value: &f32| {
        if value.abs() > largest || value.is_nan() { value.abs() } else { largest }
    };
    values.iter().fold(0.0, larger) / 127.0
}

fn int8(value: f32, step: f32) -> i8 {
    if step > 0.0 { (value / step).round_ties_even() as i8 } else { 0 }
}

/// The nearest bf16, ties to even; NaN stays NaN.
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return 0x7fc0;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
