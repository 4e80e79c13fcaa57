use std::ops::Range;

use engine::{EngineError, Precision};

use crate::{
    Activation, Description, ElementType, Head, LAYOUT, PANEL, SEGMENT, Tensor, padded,
    position_bias, unsupported,
};

/// Largest of the sizes of a description.
const MAX_SIZE: usize = 1 << 20;

/// Where the parts of an encoder lie in its weights.
///
/// Ranges are in bytes, from the start of the weights, and aligned to words of 4 bytes.
#[derive(Debug, Clone)]
pub struct Layout {
    /// `[vocab_size, stride]`
    pub word: Table,
    /// `[max_position_embeddings, stride]`
    pub position: Table,
    /// `[type_vocab_size, stride]`; of one row where every token has it, whatever its type.
    pub token_type: Option<Table>,
    /// Of the sum of the three.
    pub embedding_norm: Norm,
    /// From the width of the tables to that of the layers, where they differ.
    pub projection: Option<Linear>,
    /// One behind the other.
    pub layers: Vec<Layer>,
    /// Of the first token's hidden state, one behind the other; none, if that is not the readout.
    pub head: Vec<Linear>,
    /// `f32` `[num_buckets, num_heads]`
    position_bias: Option<Range<usize>>,
    ends: Ends,
}

/// Where the bytes end that a part of the encoder needs, those before it included.
#[derive(Debug, Clone)]
struct Ends {
    embeddings: usize,
    layers: Vec<usize>,
    head: usize,
}

/// Rows to look up.
#[derive(Debug, Clone)]
pub struct Table {
    /// Of its elements.
    pub precision: Precision,
    /// How many.
    pub num_rows: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// `[num_rows, stride]`
    pub weight: Range<usize>,
    /// `f32` `[num_rows]`: what a step of 8 bits is worth; empty in other precisions.
    pub scales: Range<usize>,
}

/// `(x - mean) / sqrt(variance + epsilon) * weight + bias`, `f32` `[width]` each.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Factors.
    pub weight: Range<usize>,
    /// Summands.
    pub bias: Range<usize>,
}

/// `activation(weight · x + bias)`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Of its weights.
    pub precision: Precision,
    /// Elements of a row that it takes, padded.
    pub in_stride: usize,
    /// Elements of a row that it gives, padded.
    pub out_stride: usize,
    /// Before padding.
    pub out_features: usize,
    /// Words of 4 bytes, `[out_stride / PANEL, words of a row, PANEL]`
    pub weight: Range<usize>,
    /// `f32` `[out_stride]`
    pub bias: Range<usize>,
    /// `f32` `[out_stride]`: what a step of 8 bits is worth; empty in other precisions.
    pub scales: Range<usize>,
    /// `i32` `[out_stride]`: of the steps of each output; empty in other precisions.
    pub sums: Range<usize>,
    /// Behind it.
    pub activation: Activation,
}

/// The weights of one block of the encoder.
#[derive(Debug, Clone)]
pub struct Layer {
    /// All heads' queries, then keys, then values; each head padded to whole panels.
    pub query_key_value: Linear,
    /// Takes all heads, padded alike.
    pub attention_output: Linear,
    /// Of its sum with what the layer was given.
    pub attention_norm: Norm,
    /// Feed-forward, with the activation.
    pub intermediate: Linear,
    /// Feed-forward, back to the width of the layers.
    pub output: Linear,
    /// Of its sum with what the feed-forward part was given.
    pub output_norm: Norm,
}

impl Layout {
    /// Reads what `description` says of `weights`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unsupported`] if a tensor is missing, lies outside `weights` or does not fit
    /// the others.
    pub fn read(description: &Description, weights: &[u8]) -> Result<Self, EngineError> {
        let reader = Reader { description, weights };
        let identity = Activation::Identity;
        if description.layout != LAYOUT {
            let layout = description.layout;
            return Err(unsupported(format!(
                "weights of layout {layout}; this build reads {LAYOUT}"
            )));
        }
        let sizes = [description.num_heads, description.head_dim, description.hidden_size];
        if sizes
            .iter()
            .chain([&description.embedding_size])
            .any(|size| !(1..MAX_SIZE).contains(size))
        {
            return Err(unsupported(format!("{sizes:?} heads, elements a head, elements a token")));
        }
        let attention = description.num_heads * padded(description.head_dim, PANEL);
        let hidden_stride = padded(description.hidden_size, SEGMENT);
        let embedding_stride = padded(description.embedding_size, SEGMENT);

        let word = reader.table("embeddings.word")?;
        let position = reader.table("embeddings.position")?;
        let token_type = reader.optional("embeddings.token_type", Reader::table)?;
        let projection = reader.optional("embeddings.projection", |reader, name| {
            reader.linear(name, identity, embedding_stride, hidden_stride)
        })?;
        if projection.is_none() && embedding_stride != hidden_stride {
            return Err(unsupported("embeddings are neither as wide as the layers nor projected"));
        }
        let is_as_wide = |table: &Table| table.stride == embedding_stride;
        if ![&word, &position].into_iter().chain(&token_type).all(is_as_wide) {
            return Err(unsupported("embedding tables are not of one width"));
        }
        let position_bias = reader.position_bias()?;
        let mut layers = Vec::new();
        for index in 0..description.num_layers {
            let name = |part: &str| format!("layers.{index}.{part}");
            let joined = padded(3 * attention, SEGMENT);
            let intermediate =
                reader.linear(&name("intermediate"), description.hidden_act, hidden_stride, 0)?;
            let width = intermediate.out_stride;
            layers.push(Layer {
                query_key_value: reader.linear(
                    &name("query_key_value"),
                    identity,
                    hidden_stride,
                    joined,
                )?,
                attention_output: reader.linear(
                    &name("attention_output"),
                    identity,
                    padded(attention, SEGMENT),
                    hidden_stride,
                )?,
                attention_norm: reader.norm(&name("attention_norm"), description.hidden_size)?,
                intermediate,
                output: reader.linear(&name("output"), identity, width, hidden_stride)?,
                output_norm: reader.norm(&name("output_norm"), description.hidden_size)?,
            });
        }
        if layers.is_empty() {
            return Err(unsupported("an encoder without layers"));
        }
        let mut head: Vec<Linear> = Vec::new();
        if let Head::FirstToken(activations) = &description.readout {
            for (index, &activation) in activations.iter().enumerate() {
                let width = head.last().map_or(hidden_stride, |linear| linear.out_stride);
                head.push(reader.linear(&format!("head.{index}"), activation, width, 0)?);
            }
            if head.is_empty() {
                return Err(unsupported("a head without layers"));
            }
        }
        Ok(Self {
            ends: Ends {
                embeddings: reader
                    .end(|name| !name.starts_with("layers.") && !name.starts_with("head.")),
                layers: (0..layers.len())
                    .map(|index| reader.end(|name| name.starts_with(&format!("layers.{index}."))))
                    .collect(),
                head: reader.end(|_| true),
            },
            embedding_norm: reader.norm("embeddings.norm", description.embedding_size)?,
            word,
            position,
            token_type,
            projection,
            layers,
            head,
            position_bias,
        })
    }

    /// All linear layers.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let of_layers = self.layers.iter().flat_map(|layer| {
            [&layer.query_key_value, &layer.attention_output, &layer.intermediate, &layer.output]
        });
        of_layers.chain(&self.head).chain(&self.projection)
    }

    /// Bytes of the weights that the embeddings need.
    #[must_use]
    pub fn end_of_embeddings(&self) -> usize {
        self.ends.embeddings
    }

    /// Bytes of the weights that layer `index` needs, with those before it.
    ///
    /// # Panics
    ///
    /// If there is no such layer.
    #[must_use]
    pub fn end_of_layer(&self, index: usize) -> usize {
        self.ends.layers[index]
    }

    /// Bytes of all weights.
    #[must_use]
    pub fn end_of_head(&self) -> usize {
        self.ends.head
    }

    /// What is added to scores at each distance, `[num_heads, 2 · max_seqlen - 1]`: entry
    /// `max_seqlen - 1 + key - query`. Empty if nothing is. `description` and `weights` are those that
    /// this was read from.
    #[must_use]
    pub fn position_bias(
        &self,
        description: &Description,
        weights: &[u8],
        max_seqlen: usize,
    ) -> Vec<f32> {
        let (Some(range), Some(max_distance)) = (&self.position_bias, description.max_distance)
        else {
            return Vec::new();
        };
        let table = bytemuck::cast_slice(&weights[range.clone()]);
        position_bias::by_distance(table, description.num_heads, max_distance, max_seqlen)
    }
}

/// Finds tensors and checks that they are what they should be.
struct Reader<'a> {
    description: &'a Description,
    weights: &'a [u8],
}

impl Reader<'_> {
    fn tensor(&self, name: &str) -> Result<&Tensor, EngineError> {
        let tensor = self.description.tensors.iter().find(|tensor| tensor.name == name);
        tensor.ok_or_else(|| unsupported(format!("no tensor {name}")))
    }

    /// Where the last of the tensors ends whose names `are_meant`.
    fn end(&self, are_meant: impl Fn(&str) -> bool) -> usize {
        let tensors = self.description.tensors.iter().filter(|tensor| are_meant(&tensor.name));
        tensors.map(|tensor| tensor.offset.saturating_add(tensor.length)).max().unwrap_or(0)
    }

    fn optional<T>(
        &self,
        name: &str,
        read: impl Fn(&Self, &str) -> Result<T, EngineError>,
    ) -> Result<Option<T>, EngineError> {
        let weight = format!("{name}.weight");
        let there = self.description.tensors.iter().any(|tensor| tensor.name == weight);
        there.then(|| read(self, name)).transpose()
    }

    fn shape(&self, name: &str) -> Result<[usize; 2], EngineError> {
        let shape = &self.tensor(name)?.shape;
        <[usize; 2]>::try_from(shape.as_slice())
            .ok()
            .filter(|shape| shape.iter().all(|size| (1..1 << 31).contains(size)))
            .ok_or_else(|| unsupported(format!("{name} has the shape {shape:?}")))
    }

    /// Where the `len` elements of a tensor lie.
    fn range(
        &self,
        name: &str,
        dtype: ElementType,
        len: usize,
    ) -> Result<Range<usize>, EngineError> {
        let tensor = self.tensor(name)?;
        let end = tensor.offset.checked_add(tensor.length);
        let bytes = end.and_then(|end| self.weights.get(tensor.offset..end));
        let fits = bytes.is_some_and(|bytes| {
            bytes.len() == len * dtype.num_bytes()
                && bytes.as_ptr().addr().is_multiple_of(align_of::<u32>())
        });
        if tensor.dtype == dtype.as_str() && fits {
            return Ok(tensor.offset..tensor.offset + tensor.length);
        }
        Err(unsupported(format!(
            "{name} should be {len} elements of {} inside the weights; it is {} bytes of {} at {}",
            dtype.as_str(),
            tensor.length,
            tensor.dtype,
            tensor.offset
        )))
    }

    fn f32s(&self, name: &str, len: usize) -> Result<Range<usize>, EngineError> {
        self.range(name, ElementType::Of(Precision::F32), len)
    }

    fn precision(&self, name: &str) -> Result<Precision, EngineError> {
        let dtype = &self.tensor(name)?.dtype;
        let refuse =
            |_| unsupported(format!("{name} is of {dtype}, which this build does not know"));
        dtype.parse().map_err(refuse)
    }

    fn table(&self, name: &str) -> Result<Table, EngineError> {
        let weight = format!("{name}.weight");
        let precision = self.precision(&weight)?;
        let [num_rows, width] = self.shape(&weight)?;
        let stride = padded(width, SEGMENT);
        let scales = match precision {
            Precision::Int8 => self.f32s(&format!("{name}.scales"), num_rows)?,
            Precision::F32 | Precision::Bf16 => 0..0,
        };
        let weight = self.range(&weight, ElementType::Of(precision), num_rows * stride)?;
        Ok(Table { precision, num_rows, stride, weight, scales })
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm, EngineError> {
        Ok(Norm {
            weight: self.f32s(&format!("{name}.weight"), width)?,
            bias: self.f32s(&format!("{name}.bias"), width)?,
        })
    }

    /// A layer that takes `inputs` and gives `outputs` elements, padded; any number if that is 0.
    fn linear(
        &self,
        name: &str,
        activation: Activation,
        inputs: usize,
        outputs: usize,
    ) -> Result<Linear, EngineError> {
        let weight = format!("{name}.weight");
        let precision = self.precision(&weight)?;
        let [out_features, in_features] = self.shape(&weight)?;
        let [out_stride, in_stride] =
            [out_features, in_features].map(|features| padded(features, SEGMENT));
        if in_stride != inputs || (outputs > 0 && out_stride != outputs) {
            return Err(unsupported(format!(
                "{name} takes {in_stride} and gives {out_stride}, not {inputs} and {outputs}"
            )));
        }
        let (mut scales, mut sums) = (0..0, 0..0);
        if precision == Precision::Int8 {
            scales = self.f32s(&format!("{name}.scales"), out_stride)?;
            sums = self.range(&format!("{name}.sums"), ElementType::Int32, out_stride)?;
        }
        Ok(Linear {
            precision,
            in_stride,
            out_stride,
            out_features,
            weight: self.range(&weight, ElementType::Of(precision), in_stride * out_stride)?,
            bias: self.f32s(&format!("{name}.bias"), out_stride)?,
            scales,
            sums,
            activation,
        })
    }

    fn position_bias(&self) -> Result<Option<Range<usize>>, EngineError> {
        if self.description.max_distance.is_none() {
            return Ok(None);
        }
        let [num_buckets, num_heads] = self.shape("position_bias")?;
        if num_buckets < 4 || num_heads != self.description.num_heads {
            return Err(unsupported("position_bias does not fit the heads"));
        }
        self.f32s("position_bias", num_buckets * num_heads).map(Some)
    }
}
