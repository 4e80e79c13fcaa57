//! A packed encoder, checked once, and given out as views that the kernels read.

use std::{error::Error, ops::Range, sync::Arc};

use engine::{EngineError, Pooling};

use crate::{
    encoder::Activation,
    layout::{Description, ElementType, Head, LAYOUT, Tensor, padded},
    simd::{Dtype, Kernels, LinearWeights, NormWeights, PANEL, SEGMENT, TableWeights},
};

/// Weights that stay where they are: a mapping, or memory.
pub(crate) type Bytes = Arc<dyn Source>;

/// Bytes that may still be arriving, the first ones first.
pub(crate) trait Source: AsRef<[u8]> + Send + Sync {
    /// Waits until the first `end` bytes are there; fails if they never will be.
    fn wait(&self, end: usize) -> Result<(), Box<dyn Error + Send + Sync>>;
}

impl Source for Vec<u8> {
    fn wait(&self, _: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

/// An encoder, ready to run.
pub(crate) struct Model {
    bytes: Bytes,
    kernels: Kernels,
    description: Description,
    sizes: Sizes,
    tables: [Option<Table>; 3],
    embedding_norm: Norm,
    projection: Option<Linear>,
    position_bias: Option<Range<usize>>,
    layers: Vec<Layer>,
    head: Vec<Linear>,
    readout: Readout,
    ends: Ends,
}

/// Where the bytes end that a part of the encoder needs, those before it included.
#[derive(Debug)]
struct Ends {
    embeddings: usize,
    layers: Vec<usize>,
    head: usize,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Model").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

/// Widths of what a pass writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) hidden_size: usize,
    /// Of the hidden states, in elements: whole segments.
    pub(crate) row_stride: usize,
    pub(crate) num_heads: usize,
    /// Panels of all heads' queries, or keys, or values.
    pub(crate) attention_panels: usize,
    pub(crate) attention_scale: f32,
    pub(crate) intermediate_panels: usize,
    /// Of a packed row.
    pub(crate) max_words: usize,
    pub(crate) max_head_panels: usize,
}

/// What a pass gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readout {
    /// A row a token.
    HiddenStates,
    /// One row of each sequence's hidden states.
    Pooled(Pooling),
    /// The first token's hidden state of each sequence, through the layers of the head.
    FirstToken { num_layers: usize, width: usize },
}

#[derive(Debug)]
struct Table {
    dtype: Dtype,
    num_panels: usize,
    bytes: Range<usize>,
    scales: Range<usize>,
}

#[derive(Debug)]
struct Norm {
    weight: Range<usize>,
    bias: Range<usize>,
}

#[derive(Debug)]
struct Linear {
    dtype: Dtype,
    words: usize,
    num_panels: usize,
    panels: Range<usize>,
    bias: Range<usize>,
    scales: Range<usize>,
    sums: Range<usize>,
    activation: Activation,
}

#[derive(Debug)]
struct Layer {
    query_key_value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

/// The weights of one block of the encoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerWeights<'a> {
    pub(crate) query_key_value: LinearWeights<'a>,
    pub(crate) attention_output: LinearWeights<'a>,
    pub(crate) attention_norm: NormWeights<'a>,
    pub(crate) intermediate: LinearWeights<'a>,
    pub(crate) output: LinearWeights<'a>,
    pub(crate) output_norm: NormWeights<'a>,
}

impl Model {
    /// Reads what `description` says of `bytes`. `pooling` is for a model
    /// without a head.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unsupported`] if a tensor is missing, lies outside `bytes` or does not fit
    /// the others.
    pub(crate) fn new(
        description: Description,
        bytes: Bytes,
        kernels: Kernels,
        pooling: Pooling,
    ) -> Result<Self, EngineError> {
        let reader = Reader { description: &description, bytes: (*bytes).as_ref() };
        let activation = description.hidden_act;
        let identity = Activation::Identity;
        if description.layout != LAYOUT {
            let layout = description.layout;
            return Err(unsupported(format!(
                "weights of layout {layout}; this build reads {LAYOUT}"
            )));
        }
        const LARGEST: usize = 1 << 20;
        let sizes = [description.num_heads, description.head_dim, description.hidden_size];
        if sizes
            .iter()
            .chain([&description.embedding_size])
            .any(|size| !(1..LARGEST).contains(size))
        {
            return Err(unsupported(format!("{sizes:?} heads, elements a head, elements a token")));
        }
        let attention_panels = description.num_heads * description.head_dim.div_ceil(PANEL);
        let hidden_stride = padded(description.hidden_size, SEGMENT);
        let embedding_stride = padded(description.embedding_size, SEGMENT);
        let attention = attention_panels * PANEL;

        let word = reader.table("embeddings.word")?;
        let position = reader.table("embeddings.position")?;
        let token_type = reader.optional("embeddings.token_type", Reader::table)?;
        let projection = reader.optional("embeddings.projection", |reader, name| {
            reader.linear(name, identity, embedding_stride, hidden_stride)
        })?;
        if projection.is_none() && embedding_stride != hidden_stride {
            return Err(unsupported("embeddings are neither as wide as the layers nor projected"));
        }
        for table in [&word, &position].into_iter().chain(&token_type) {
            if table.num_panels * PANEL != embedding_stride {
                return Err(unsupported("embedding tables are not of one width"));
            }
        }
        let position_bias = reader.position_bias()?;
        let mut layers = Vec::new();
        let mut intermediate_panels = 0;
        for index in 0..description.num_layers {
            let name = |part: &str| format!("layers.{index}.{part}");
            let intermediate =
                reader.linear(&name("intermediate"), activation, hidden_stride, 0)?;
            let width = intermediate.num_panels * PANEL;
            intermediate_panels = intermediate_panels.max(intermediate.num_panels);
            let joined = padded(3 * attention, SEGMENT);
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
        let mut head = Vec::new();
        let readout = match &description.readout {
            Head::HiddenStates => Readout::Pooled(pooling),
            Head::Graph => Readout::HiddenStates,
            Head::FirstToken(activations) => {
                let mut width = hidden_stride;
                for (index, &activation) in activations.iter().enumerate() {
                    let linear = reader.linear(&format!("head.{index}"), activation, width, 0)?;
                    width = linear.num_panels * PANEL;
                    head.push(linear);
                }
                let last = activations.len().checked_sub(1);
                let last = last.ok_or_else(|| unsupported("a head without layers"))?;
                let [width, _] = reader.shape(&format!("head.{last}.weight"))?;
                Readout::FirstToken { num_layers: head.len(), width }
            }
        };
        let linears = layers.iter().flat_map(|layer| {
            [&layer.query_key_value, &layer.attention_output, &layer.intermediate, &layer.output]
        });
        let words = linears.chain(&head).chain(&projection).map(|linear| linear.words).max();
        let sizes = Sizes {
            hidden_size: description.hidden_size,
            row_stride: hidden_stride.max(embedding_stride),
            num_heads: description.num_heads,
            attention_panels,
            attention_scale: 1.0 / (description.head_dim as f32).sqrt(),
            intermediate_panels,
            max_words: words.unwrap_or(0),
            max_head_panels: head.iter().map(|linear| linear.num_panels).max().unwrap_or(0),
        };
        let embedding_norm = reader.norm("embeddings.norm", description.embedding_size)?;
        let ends = Ends {
            embeddings: reader
                .end(|name| !name.starts_with("layers.") && !name.starts_with("head.")),
            layers: (0..layers.len())
                .map(|index| reader.end(|name| name.starts_with(&format!("layers.{index}."))))
                .collect(),
            head: reader.end(|_| true),
        };
        Ok(Self {
            ends,
            tables: [Some(word), Some(position), token_type],
            embedding_norm,
            projection,
            position_bias,
            layers,
            head,
            readout,
            sizes,
            kernels,
            description,
            bytes,
        })
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    pub(crate) fn readout(&self) -> Readout {
        self.readout
    }

    pub(crate) fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Waits for the weights of the embeddings.
    pub(crate) fn wait_for_embeddings(&self) -> Result<(), EngineError> {
        self.wait(self.ends.embeddings)
    }

    pub(crate) fn wait_for_layer(&self, index: usize) -> Result<(), EngineError> {
        self.wait(self.ends.layers[index])
    }

    /// Waits for all weights.
    pub(crate) fn wait_for_head(&self) -> Result<(), EngineError> {
        self.wait(self.ends.head)
    }

    fn wait(&self, end: usize) -> Result<(), EngineError> {
        self.bytes.wait(end).map_err(|source| EngineError::Backend { engine: "cpu", source })
    }

    /// Stages of a pass: the embeddings and their projection, nine a layer, two a layer of the
    /// head.
    pub(crate) fn num_stages(&self) -> usize {
        3 + 9 * self.layers.len() + 2 * self.head.len().max(1)
    }

    /// The tables of words, positions and token types.
    pub(crate) fn tables(&self) -> [Option<TableWeights<'_>>; 3] {
        [0, 1, 2].map(|index| {
            self.tables[index].as_ref().map(|table| TableWeights {
                dtype: table.dtype,
                num_panels: table.num_panels,
                bytes: &self.bytes()[table.bytes.clone()],
                scales: self.view(&table.scales),
            })
        })
    }

    pub(crate) fn embedding_norm(&self) -> NormWeights<'_> {
        self.norm(&self.embedding_norm)
    }

    pub(crate) fn projection(&self) -> Option<LinearWeights<'_>> {
        self.projection.as_ref().map(|linear| self.linear(linear))
    }

    /// The layer that reads the embeddings.
    pub(crate) fn first_linear(&self) -> LinearWeights<'_> {
        self.projection().unwrap_or_else(|| self.layer(0).query_key_value)
    }

    pub(crate) fn layer(&self, index: usize) -> LayerWeights<'_> {
        let layer = &self.layers[index];
        LayerWeights {
            query_key_value: self.linear(&layer.query_key_value),
            attention_output: self.linear(&layer.attention_output),
            attention_norm: self.norm(&layer.attention_norm),
            intermediate: self.linear(&layer.intermediate),
            output: self.linear(&layer.output),
            output_norm: self.norm(&layer.output_norm),
        }
    }

    pub(crate) fn head_layer(&self, index: usize) -> LinearWeights<'_> {
        self.linear(&self.head[index])
    }

    /// What is added to scores at each distance, `[num_heads, 2 · max_seqlen - 1]`: entry
    /// `max_seqlen - 1 + key - query`. Empty if nothing is.
    ///
    /// # Source
    ///
    /// Raffel et al. 2020, *Exploring the Limits of Transfer Learning*, §2.1, bidirectional.
    pub(crate) fn position_bias(&self, max_seqlen: usize) -> Vec<f32> {
        let (Some(range), Some(max_distance)) =
            (&self.position_bias, self.description.max_distance)
        else {
            return Vec::new();
        };
        let table = self.view::<f32>(range);
        let num_heads = self.sizes.num_heads;
        let num_buckets = table.len() / num_heads;
        let last = max_seqlen.max(1) as i64 - 1;
        let buckets: Vec<usize> =
            (-last..=last).map(|distance| bucket(distance, num_buckets, max_distance)).collect();
        let heads = 0..num_heads;
        heads.flat_map(|head| buckets.iter().map(move |b| table[b * num_heads + head])).collect()
    }

    fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// The elements in `range`, which [`Reader::range`] has checked.
    fn view<T: bytemuck::AnyBitPattern>(&self, range: &Range<usize>) -> &[T] {
        bytemuck::cast_slice(&self.bytes()[range.clone()])
    }

    fn norm(&self, norm: &Norm) -> NormWeights<'_> {
        NormWeights {
            weight: self.view(&norm.weight),
            bias: self.view(&norm.bias),
            epsilon: self.description.layer_norm_eps,
        }
    }

    fn linear(&self, linear: &Linear) -> LinearWeights<'_> {
        LinearWeights {
            dtype: linear.dtype,
            words: linear.words,
            panels: self.view(&linear.panels),
            bias: self.view(&linear.bias),
            scales: self.view(&linear.scales),
            sums: self.view(&linear.sums),
            activation: linear.activation,
        }
    }
}

/// Bucket of a key that is `distance` tokens behind the query: half of them for either side, the
/// nearer half of those one a distance, the others ever wider.
fn bucket(distance: i64, num_buckets: usize, max_distance: usize) -> usize {
    let side = num_buckets / 2;
    let exact = side / 2;
    let magnitude = distance.unsigned_abs() as usize;
    let within = if magnitude < exact {
        magnitude
    } else {
        let ratio =
            (magnitude as f32 / exact as f32).ln() / (max_distance as f32 / exact as f32).ln();
        (exact + (ratio * (side - exact) as f32) as usize).min(side - 1)
    };
    within + if distance > 0 { side } else { 0 }
}

/// Finds tensors and checks that they are what they should be.
struct Reader<'a> {
    description: &'a Description,
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn tensor(&self, name: &str) -> Result<&Tensor, EngineError> {
        let tensor = self.description.tensors.iter().find(|tensor| tensor.name == name);
        tensor.ok_or_else(|| unsupported(format!("no tensor {name}")))
    }

    /// Where the last of the tensors ends whose names `are_meant`.
    fn end(&self, are_meant: impl Fn(&str) -> bool) -> usize {
        let tensors = self.description.tensors.iter().filter(|tensor| are_meant(&tensor.name));
        tensors.map(|tensor| tensor.offset + tensor.length).max().unwrap_or(0)
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
        let element_bytes = match dtype {
            ElementType::F32 | ElementType::Int32 => 4,
            ElementType::Bf16 => 2,
            ElementType::Int8 => 1,
        };
        let end = tensor.offset.checked_add(tensor.length);
        let bytes = end.and_then(|end| self.bytes.get(tensor.offset..end));
        let fits = bytes.is_some_and(|bytes| {
            bytes.len() == len * element_bytes
                && bytes.as_ptr().addr().is_multiple_of(align_of::<u32>())
        });
        if tensor.dtype == dtype && fits {
            return Ok(tensor.offset..tensor.offset + tensor.length);
        }
        Err(unsupported(format!(
            "{name} should be {len} elements of {dtype:?} inside the weights; it is {} bytes of \
             {:?} at {}",
            tensor.length, tensor.dtype, tensor.offset
        )))
    }

    fn dtype(&self, name: &str) -> Result<Dtype, EngineError> {
        match self.tensor(name)?.dtype {
            ElementType::F32 => Ok(Dtype::F32),
            ElementType::Bf16 => Ok(Dtype::Bf16),
            ElementType::Int8 => Ok(Dtype::Int8),
            ElementType::Int32 => Err(unsupported(format!("{name} is of 32-bit integers"))),
        }
    }

    fn table(&self, name: &str) -> Result<Table, EngineError> {
        let weight = format!("{name}.weight");
        let dtype = self.dtype(&weight)?;
        let [num_rows, width] = self.shape(&weight)?;
        let width = padded(width, SEGMENT);
        let scales = if dtype == Dtype::Int8 {
            self.range(&format!("{name}.scales"), ElementType::F32, num_rows)?
        } else {
            0..0
        };
        let bytes = self.range(&weight, dtype.into(), num_rows * width)?;
        Ok(Table { dtype, num_panels: width / PANEL, bytes, scales })
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm, EngineError> {
        Ok(Norm {
            weight: self.range(&format!("{name}.weight"), ElementType::F32, width)?,
            bias: self.range(&format!("{name}.bias"), ElementType::F32, width)?,
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
        let dtype = self.dtype(&weight)?;
        let [out_features, in_features] =
            self.shape(&weight)?.map(|features| padded(features, SEGMENT));
        if in_features != inputs || (outputs > 0 && out_features != outputs) {
            return Err(unsupported(format!(
                "{name} takes {in_features} and gives {out_features}, not {inputs} and {outputs}"
            )));
        }
        let (mut scales, mut sums) = (0..0, 0..0);
        if dtype == Dtype::Int8 {
            scales = self.range(&format!("{name}.scales"), ElementType::F32, out_features)?;
            sums = self.range(&format!("{name}.sums"), ElementType::Int32, out_features)?;
        }
        Ok(Linear {
            dtype,
            words: in_features / dtype.per_word(),
            num_panels: out_features / PANEL,
            panels: self.range(&weight, dtype.into(), in_features * out_features)?,
            bias: self.range(&format!("{name}.bias"), ElementType::F32, out_features)?,
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
        self.range("position_bias", ElementType::F32, num_buckets * num_heads).map(Some)
    }
}

fn unsupported(reason: impl Into<String>) -> EngineError {
    EngineError::Unsupported { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use engine::Precision;

    use super::*;
    use crate::{encoder::Encoder, pack::pack};

    fn load(description: Description, weights: Vec<u8>) -> Result<Model, EngineError> {
        Model::new(description, Arc::new(weights), Kernels::detect(), Pooling::Mean)
    }

    /// What is wrong with the model, however it was damaged.
    fn refusal(description: &Description, weights: &[u8]) -> Option<String> {
        load(description.clone(), weights.to_vec()).err().map(|error| error.to_string())
    }

    #[test]
    fn a_tensor_that_is_missing_moved_or_of_another_type_is_refused() {
        for precision in Precision::ALL {
            let (description, weights) = pack(&Encoder::made_up(), precision);
            assert_eq!(refusal(&description, &weights), None);
            let kind_of = |name: &str| name.ends_with(".weight") || name.ends_with(".bias");
            for (index, tensor) in description.tensors.iter().enumerate() {
                let damaged = |damage: &dyn Fn(&mut Tensor)| {
                    let mut description = description.clone();
                    damage(&mut description.tensors[index]);
                    refusal(&description, &weights).unwrap_or_else(|| panic!("{}", tensor.name))
                };
                // A model may do without token types.
                if !tensor.name.starts_with("embeddings.token_type") {
                    damaged(&|tensor| tensor.name.push('x'));
                }
                damaged(&|tensor| tensor.offset = usize::MAX);
                damaged(&|tensor| tensor.offset += 1);
                damaged(&|tensor| tensor.length -= 1);
                damaged(&|tensor| tensor.length = usize::MAX);
                if kind_of(&tensor.name) && tensor.shape.len() == 2 {
                    damaged(&|tensor| tensor.shape[0] += SEGMENT);
                    damaged(&|tensor| tensor.shape[1] += SEGMENT);
                    damaged(&|tensor| tensor.shape[1] = usize::MAX);
                    damaged(&|tensor| tensor.shape.truncate(1));
                    damaged(&|tensor| tensor.dtype = ElementType::Int32);
                }
            }
            for len in [0, 1, weights.len() / 2, weights.len() - 1] {
                assert!(refusal(&description, &weights[..len]).is_some(), "{len} bytes");
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_the_tensors_are_refused() {
        let (description, weights) = pack(&Encoder::made_up(), Precision::F32);
        let damages: [fn(&mut Description); 10] = [
            |description| description.layout += 1,
            |description| description.hidden_size += SEGMENT,
            |description| description.hidden_size = 0,
            |description| description.embedding_size += SEGMENT,
            |description| description.num_layers = 0,
            |description| description.num_layers += 1,
            |description| description.num_heads = 0,
            |description| description.num_heads = usize::MAX,
            |description| description.head_dim = usize::MAX,
            |description| description.max_distance = Some(128),
        ];
        for (index, damage) in damages.into_iter().enumerate() {
            let mut description = description.clone();
            damage(&mut description);
            assert!(refusal(&description, &weights).is_some(), "damage {index}");
        }
    }

    #[test]
    fn buckets_are_those_of_t5() {
        let of = |distance| bucket(distance, 32, 128);
        assert_eq!([0, -1, -7, -8, -127, -1000].map(of), [0, 1, 7, 8, 15, 15]);
        assert_eq!([1, 7, 8, 16, 1000].map(of), [17, 23, 24, 26, 31]);
    }
}
