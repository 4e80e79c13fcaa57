//! A packed encoder, checked once, and given out as views that the kernels read.

use std::{ops::Range, sync::Arc};

use encoder::{Description, Head, Layout, Linear, Norm, PANEL, SEGMENT, Source, padded};
use engine::{EngineError, Pooling};

use crate::simd::{Dtype, Kernels, LinearWeights, NormWeights, TableWeights};

/// A mapping, or memory.
pub(crate) type Bytes = Arc<dyn Source>;

/// An encoder, ready to run.
pub(crate) struct Model {
    bytes: Bytes,
    kernels: Kernels,
    description: Description,
    layout: Layout,
    sizes: Sizes,
    readout: Readout,
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
        let layout = Layout::read(&description, (*bytes).as_ref())?;
        let readout = match (&description.readout, layout.head.last()) {
            (Head::Graph, _) => Readout::HiddenStates,
            (Head::FirstToken(_), Some(last)) => {
                Readout::FirstToken { num_layers: layout.head.len(), width: last.out_features }
            }
            (Head::HiddenStates | Head::FirstToken(_), _) => Readout::Pooled(pooling),
        };
        let panels = |linear: &Linear| linear.out_stride / PANEL;
        let intermediate = layout.layers.iter().map(|layer| panels(&layer.intermediate));
        let sizes = Sizes {
            hidden_size: description.hidden_size,
            row_stride: layout.word.stride.max(padded(description.hidden_size, SEGMENT)),
            num_heads: description.num_heads,
            attention_panels: description.num_heads * description.head_dim.div_ceil(PANEL),
            attention_scale: 1.0 / (description.head_dim as f32).sqrt(),
            intermediate_panels: intermediate.max().unwrap_or(0),
            max_words: layout.linears().map(words).max().unwrap_or(0),
            max_head_panels: layout.head.iter().map(panels).max().unwrap_or(0),
        };
        Ok(Self { bytes, kernels, description, layout, sizes, readout })
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

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn readout(&self) -> Readout {
        self.readout
    }

    pub(crate) fn num_layers(&self) -> usize {
        self.layout.layers.len()
    }

    /// Waits for the weights of the embeddings.
    pub(crate) fn wait_for_embeddings(&self) -> Result<(), EngineError> {
        self.wait(self.layout.end_of_embeddings())
    }

    pub(crate) fn wait_for_layer(&self, index: usize) -> Result<(), EngineError> {
        self.wait(self.layout.end_of_layer(index))
    }

    /// Waits for all weights.
    pub(crate) fn wait_for_head(&self) -> Result<(), EngineError> {
        self.wait(self.layout.end_of_head())
    }

    fn wait(&self, end: usize) -> Result<(), EngineError> {
        self.bytes.wait(end).map_err(|source| EngineError::Backend { engine: "cpu", source })
    }

    /// Stages of a pass: the embeddings and their projection, nine a layer, two a layer of the
    /// head.
    pub(crate) fn num_stages(&self) -> usize {
        3 + 9 * self.layout.layers.len() + 2 * self.layout.head.len().max(1)
    }

    /// The tables of words, positions and token types.
    pub(crate) fn tables(&self) -> [Option<TableWeights<'_>>; 3] {
        let Layout { word, position, token_type, .. } = &self.layout;
        [Some(word), Some(position), token_type.as_ref()].map(|table| {
            table.map(|table| TableWeights {
                dtype: table.precision.into(),
                num_panels: table.stride / PANEL,
                bytes: &self.bytes()[table.weight.clone()],
                scales: self.view(&table.scales),
            })
        })
    }

    pub(crate) fn embedding_norm(&self) -> NormWeights<'_> {
        self.norm(&self.layout.embedding_norm)
    }

    pub(crate) fn projection(&self) -> Option<LinearWeights<'_>> {
        self.layout.projection.as_ref().map(|linear| self.linear(linear))
    }

    /// The layer that reads the embeddings.
    pub(crate) fn first_linear(&self) -> LinearWeights<'_> {
        self.projection().unwrap_or_else(|| self.layer(0).query_key_value)
    }

    pub(crate) fn layer(&self, index: usize) -> LayerWeights<'_> {
        let layer = &self.layout.layers[index];
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
        self.linear(&self.layout.head[index])
    }

    /// As [`Layout::position_bias`].
    pub(crate) fn position_bias(&self, max_seqlen: usize) -> Vec<f32> {
        self.layout.position_bias(&self.description, self.bytes(), max_seqlen)
    }

    fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// The elements in a range of the layout.
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
            dtype: linear.precision.into(),
            words: words(linear),
            panels: self.view(&linear.weight),
            bias: self.view(&linear.bias),
            scales: self.view(&linear.scales),
            sums: self.view(&linear.sums),
            activation: linear.activation,
        }
    }
}

/// Of 32 bits, in a packed row.
fn words(linear: &Linear) -> usize {
    linear.in_stride / Dtype::from(linear.precision).per_word()
}

#[cfg(test)]
mod tests {
    use encoder::Tensor;
    use engine::Precision;

    use super::*;
    use crate::{exported::Encoder, pack::pack};

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
                    damaged(&|tensor| tensor.dtype = "int32".to_owned());
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
}
