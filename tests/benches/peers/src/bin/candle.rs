//! candle: a post-LayerNorm encoder out of its layers, with its fused softmax and LayerNorm.
//!
//! candle reads no ONNX graphs: it gets the same weights as safetensors, under the names that
//! `encoders.py` gives them.

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Result, Tensor, safetensors};
use candle_nn::{LayerNorm, Linear, Module, ops::softmax_last_dim};
use sanderling_bench_peers::{Arguments, Failure, Model, Padded, serve};

const NUM_HEADS: usize = 12;
const EPSILON: f64 = 1e-12;

struct Weights(HashMap<String, Tensor>);

impl Weights {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let missing = || candle_core::Error::Msg(format!("no tensor {name:?}"));
        self.0.get(name).cloned().ok_or_else(missing)
    }

    fn linear(&self, name: &str) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        Ok(Linear::new(weight, Some(self.tensor(&format!("{name}.bias"))?)))
    }

    fn norm(&self, name: &str) -> Result<LayerNorm> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        Ok(LayerNorm::new(weight, self.tensor(&format!("{name}.bias"))?, EPSILON))
    }
}

struct Encoder {
    words: Tensor,
    positions: Tensor,
    /// The row of segment 0, where there are segments.
    token_type: Option<Tensor>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    /// The layer before the classifier, with tanh (BERT) or ReLU (DistilBERT) behind it.
    pooler: Linear,
    pools_with_tanh: bool,
    classifier: Linear,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

impl Encoder {
    fn new(weights: &Weights) -> Result<Self> {
        let token_type = weights.tensor("embeddings.token_types").ok();
        let num_layers = (0..)
            .take_while(|index| weights.0.contains_key(&format!("layers.{index}.query.weight")))
            .count();
        Ok(Self {
            words: weights.tensor("embeddings.words")?,
            positions: weights.tensor("embeddings.positions")?,
            pools_with_tanh: token_type.is_some(),
            token_type: token_type.map(|table| table.i(0)).transpose()?,
            norm: weights.norm("embeddings.norm")?,
            layers: (0..num_layers)
                .map(|index| Layer::new(weights, &format!("layers.{index}")))
                .collect::<Result<_>>()?,
            pooler: weights.linear("pooler")?,
            classifier: weights.linear("classifier")?,
        })
    }

    /// Logits `[batch_size, num_labels]` of `input_ids` `[batch_size, seq_len]`; `mask` is added to
    /// the attention scores.
    fn forward(&self, input_ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (batch_size, seq_len) = input_ids.dims2()?;
        let words = self.words.index_select(&input_ids.flatten_all()?, 0)?;
        let words = words.reshape((batch_size, seq_len, ()))?;
        let mut embeddings = words.broadcast_add(&self.positions.narrow(0, 0, seq_len)?)?;
        if let Some(token_type) = &self.token_type {
            embeddings = embeddings.broadcast_add(token_type)?;
        }
        let mut hidden_states = self.norm.forward(&embeddings)?;
        for layer in &self.layers {
            hidden_states = layer.forward(&hidden_states, mask)?;
        }
        let first = hidden_states.i((.., 0))?.contiguous()?;
        let pooled = self.pooler.forward(&first)?;
        let pooled = if self.pools_with_tanh { pooled.tanh()? } else { pooled.relu()? };
        self.classifier.forward(&pooled)
    }
}

impl Layer {
    fn new(weights: &Weights, name: &str) -> Result<Self> {
        let linear = |part: &str| weights.linear(&format!("{name}.{part}"));
        let norm = |part: &str| weights.norm(&format!("{name}.{part}"));
        Ok(Self {
            query: linear("query")?,
            key: linear("key")?,
            value: linear("value")?,
            attention_output: linear("attention_output")?,
            attention_norm: norm("attention_norm")?,
            intermediate: linear("intermediate")?,
            output: linear("output")?,
            output_norm: norm("output_norm")?,
        })
    }

    fn forward(&self, hidden_states: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let attended = self.attention(hidden_states, mask)?;
        let attended = self.attention_output.forward(&attended)?;
        let hidden_states = self.attention_norm.forward(&(attended + hidden_states)?)?;
        let activated = self.intermediate.forward(&hidden_states)?.gelu_erf()?;
        let output = self.output.forward(&activated)?;
        self.output_norm.forward(&(output + hidden_states)?)
    }

    fn attention(&self, hidden_states: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (batch_size, seq_len, hidden_size) = hidden_states.dims3()?;
        let heads = |linear: &Linear| {
            let shape = (batch_size, seq_len, NUM_HEADS, hidden_size / NUM_HEADS);
            linear.forward(hidden_states)?.reshape(shape)?.transpose(1, 2)?.contiguous()
        };
        let scale = ((hidden_size / NUM_HEADS) as f64).sqrt().recip();
        let query = (heads(&self.query)? * scale)?;
        let mut scores = query.matmul(&heads(&self.key)?.t()?)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        let attended = softmax_last_dim(&scores)?.matmul(&heads(&self.value)?)?;
        attended.transpose(1, 2)?.reshape((batch_size, seq_len, hidden_size))
    }
}

struct Candle(Encoder);

fn load(arguments: &Arguments) -> std::result::Result<Candle, Failure> {
    let weights = Weights(safetensors::load(&arguments.model, &Device::Cpu)?);
    Ok(Candle(Encoder::new(&weights)?))
}

impl Model for Candle {
    type Input = (Tensor, Option<Tensor>);

    fn prepare(&self, sequences: &[Vec<u32>]) -> std::result::Result<Self::Input, Failure> {
        let batch = Padded::new(sequences);
        let shape = (batch.batch_size, batch.seq_len);
        let input_ids = Tensor::from_slice(&batch.input_ids, shape, &Device::Cpu)?;
        let input_ids = input_ids.to_dtype(DType::U32)?;
        if batch.is_full() {
            return Ok((input_ids, None));
        }
        let hidden: Vec<f32> = batch
            .attention_mask
            .iter()
            .map(|&keep| if keep == 1 { 0.0 } else { f32::MIN })
            .collect();
        let shape = (batch.batch_size, 1, 1, batch.seq_len);
        Ok((input_ids, Some(Tensor::from_vec(hidden, shape, &Device::Cpu)?)))
    }

    fn forward(&mut self, (ids, mask): &Self::Input) -> std::result::Result<Vec<f32>, Failure> {
        Ok(self.0.forward(ids, mask.as_ref())?.flatten_all()?.to_vec1()?)
    }
}

fn main() -> std::result::Result<(), Failure> {
    serve(load)
}
