//! The fused encoder: packed tokens in, a row a sequence out, on a team of threads.

use std::{
    iter, mem,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use encoder::Tokens;
use engine::{Batch, EngineError};

use crate::{
    model::{Model, Readout},
    simd::{Pass, Stages},
    threads::{Task, Team},
};

/// Most tokens of a micro-batch: what it writes between two layers should stay in a core's cache.
const MICRO_BATCH_TOKENS: usize = 64;

/// Fewest tokens a thread should have to itself. Below, threads share a pass.
const MIN_THREAD_TOKENS: usize = 48;

/// How much longer, as a share, a batch may take because its sequences do not divide evenly among
/// the threads. Above, threads share a pass, which costs a little too, and no sequence is left over.
const MAX_IMBALANCE: f64 = 1.0 / 16.0;

/// An encoder and the threads that run it.
#[derive(Debug)]
pub(crate) struct EncoderStack {
    model: Arc<Model>,
    team: Team,
}

impl EncoderStack {
    pub(crate) fn new(model: Model, num_threads: usize) -> Result<Self, EngineError> {
        let team = Team::new(num_threads)
            .map_err(|source| EngineError::Backend { engine: "cpu", source: source.into() })?;
        Ok(Self { model: Arc::new(model), team })
    }

    /// Width of a row.
    pub(crate) fn width(&self) -> usize {
        match self.model.readout() {
            Readout::FirstToken { width, .. } => width,
            Readout::HiddenStates | Readout::Pooled(_) => self.model.sizes().hidden_size,
        }
    }

    /// One row a sequence, or a token if the readout is all hidden states, `[rows, width]`.
    pub(crate) fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        let parts = micro_batches(batch, self.team.num_threads());
        let of_part = |part: &Range<usize>| {
            Tokens::read(self.model.description(), self.model.layout(), batch, part.clone())
        };
        let mut inputs = parts.iter().map(of_part).collect::<Result<Vec<_>, _>>()?;
        self.model.wait_for_embeddings()?;
        let rows = match inputs.len() {
            0 => Some(Vec::new()),
            1 => self.forward_together(inputs.remove(0)),
            _ => self.forward_apart(inputs),
        };
        if rows.is_none() {
            // What made it fail, unless it was a panic.
            self.model.wait_for_head()?;
        }
        rows.ok_or_else(|| EngineError::Backend {
            engine: "cpu",
            source: "a thread panicked in a forward pass".into(),
        })
    }

    /// All threads work on one pass.
    fn forward_together(&mut self, tokens: Tokens) -> Option<Vec<f32>> {
        let workspace = mem::take(&mut self.team.local().workspace);
        let num_threads = self.team.num_threads();
        let pass = Arc::new(Pass::new(self.model.clone(), tokens, workspace, num_threads));
        let shared = pass.clone();
        let task: Task = Arc::new(move |local| shared.join(&mut local.scratch));
        self.team.run(&task);
        let rows = pass.rows();
        drop(task);
        // A helper that has just finished may still hold the pass, and then its memory.
        if let Ok(pass) = Arc::try_unwrap(pass) {
            self.team.local().workspace = pass.into_workspace();
        }
        rows
    }

    /// Each thread takes micro-batches and runs them alone.
    fn forward_apart(&mut self, inputs: Vec<Tokens>) -> Option<Vec<f32>> {
        let work = Arc::new(Apart {
            model: self.model.clone(),
            outputs: inputs.iter().map(|_| Mutex::new(None)).collect(),
            inputs,
            stages: Stages::new(1),
        });
        let shared = work.clone();
        let task: Task = Arc::new(move |local| {
            shared.stages.run(0, shared.inputs.len(), |index| {
                let workspace = mem::take(&mut local.workspace);
                let tokens = shared.inputs[index].clone();
                let pass = Pass::new(shared.model.clone(), tokens, workspace, 1);
                pass.join(&mut local.scratch);
                let output = &shared.outputs[index];
                *output.lock().unwrap_or_else(PoisonError::into_inner) = pass.rows();
                local.workspace = pass.into_workspace();
            });
        });
        self.team.run(&task);
        let rows: Option<Vec<Vec<f32>>> = work
            .outputs
            .iter()
            .map(|output| output.lock().unwrap_or_else(PoisonError::into_inner).take())
            .collect();
        Some(rows?.concat())
    }
}

/// Micro-batches that threads take one by one.
#[derive(Debug)]
struct Apart {
    model: Arc<Model>,
    inputs: Vec<Tokens>,
    outputs: Vec<Mutex<Option<Vec<f32>>>>,
    stages: Stages,
}

/// Cuts the batch into runs of sequences, so that every thread has as many tokens to itself; into
/// one that threads share if there are too few, or they would not divide evenly.
fn micro_batches(batch: &Batch, num_threads: usize) -> Vec<Range<usize>> {
    let num_tokens = batch.num_tokens();
    let whole = iter::once(0..batch.batch_size()).filter(|part| !part.is_empty()).collect();
    if num_threads > 1 && num_tokens < num_threads * MIN_THREAD_TOKENS {
        return whole;
    }
    // As many parts as give each thread the same number of them.
    let rounds = num_tokens.div_ceil(num_threads * MICRO_BATCH_TOKENS);
    let parts = cut(batch, (rounds * num_threads).min(batch.batch_size()));
    let even = num_tokens as f64 / num_threads as f64;
    if longest(batch, &parts, num_threads) as f64 > even * (1.0 + MAX_IMBALANCE) {
        return whole;
    }
    parts
}

/// Up to `num_parts` runs of sequences with about the same number of tokens.
fn cut(batch: &Batch, num_parts: usize) -> Vec<Range<usize>> {
    let batch_size = batch.batch_size();
    let cu_seqlens = batch.cu_seqlens();
    let mut parts = Vec::with_capacity(num_parts);
    let mut start = 0;
    for part in 1..=num_parts {
        let target = batch.num_tokens() * part / num_parts;
        let mut end = start;
        while end < batch_size && (cu_seqlens[end] + cu_seqlens[end + 1]) as usize / 2 < target {
            end += 1;
        }
        let end = if part == num_parts { batch_size } else { end };
        if end > start {
            parts.push(start..end);
        }
        start = end;
    }
    parts
}

/// Tokens of the thread that has most, if threads take the parts in order.
fn longest(batch: &Batch, parts: &[Range<usize>], num_threads: usize) -> usize {
    let mut threads = vec![0; num_threads];
    for part in parts {
        let [start, end] = [part.start, part.end].map(|index| batch.cu_seqlens()[index] as usize);
        if let Some(tokens) = threads.iter_mut().min() {
            *tokens += end - start;
        }
    }
    threads.into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use encoder::Description;
    use engine::{Pooling, Precision};

    use super::*;
    use crate::{
        exported::{self, Encoder},
        model::Bytes,
        pack::pack,
        pool::pool,
        simd::Kernels,
    };

    fn stack(encoder: &Encoder, precision: Precision, num_threads: usize) -> EncoderStack {
        stack_on(Kernels::detect(), encoder, precision, num_threads)
    }

    fn stack_on(
        kernels: Kernels,
        encoder: &Encoder,
        precision: Precision,
        num_threads: usize,
    ) -> EncoderStack {
        let (description, weights) = pack(encoder, precision);
        let model = Model::new(description, Arc::new(weights), kernels, Pooling::Mean).unwrap();
        EncoderStack::new(model, num_threads).unwrap()
    }

    fn batch(sequences: &[&[u32]]) -> Batch {
        let mut batch = Batch::new();
        sequences.iter().for_each(|input_ids| batch.push(input_ids));
        batch
    }

    #[test]
    fn ids_without_a_row_are_refused_by_name() {
        let mut stack = stack(&Encoder::made_up(), Precision::Int8, 2);
        let mut typed = Batch::new();
        typed.push_segments(&[1, 2], &[0, 2]);
        let cases = [
            (batch(&[&[1], &[29, 30]]), "token id 30, the vocabulary has 30"),
            (batch(&[&[1], &[]]), "sequence 1 has no tokens"),
            (batch(&[&[1; 65]]), "65 tokens need position 64 of 64"),
            (typed, "token type 2, the model has 2"),
        ];
        for (batch, reason) in cases {
            assert_eq!(stack.forward(&batch).unwrap_err().to_string(), reason);
        }
        assert_eq!(stack.forward(&batch(&[&[1; 64]])).unwrap().len(), 3, "and goes on");
    }

    #[test]
    fn every_instruction_set_gives_the_same_logits() {
        let encoder = Encoder::made_up();
        let long: Vec<u32> = (0..61).map(|token| token % 30).collect();
        let batch = batch(&[&[3], &long, &[7, 8, 9], &long[20..40]]);
        for precision in Precision::ALL {
            let mut best = stack(&encoder, precision, 1);
            let expected = best.forward(&batch).unwrap();
            for kernels in Kernels::available() {
                for num_threads in [1, 3] {
                    let mut stack = stack_on(kernels, &encoder, precision, num_threads);
                    let logits = stack.forward(&batch).unwrap();
                    let apart = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                    let worst = apart.fold(0.0, f32::max);
                    // Sums in another order; and sets without bf16 products attend in f32.
                    let tolerance = if precision == Precision::F32 { 1e-5 } else { 0.03 };
                    let name = kernels.name();
                    assert!(worst <= tolerance, "{name} is off by {worst} in {precision}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so_in_every_precision() {
        type Place = fn(&mut Encoder) -> &mut f32;
        let places: [(&str, Place); 4] = [
            ("bias", |encoder| &mut encoder.layers[0].output.bias[5]),
            ("weight", |encoder| &mut encoder.layers[0].output.weight[7]),
            ("query", |encoder| &mut encoder.layers[1].query.weight[3]),
            ("embedding", |encoder| &mut encoder.embeddings.word.values[45]),
        ];
        for (place, number) in places {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut encoder = Encoder::made_up();
                *number(&mut encoder) = value;
                for precision in Precision::ALL {
                    let mut stack = stack(&encoder, precision, 1);
                    let logits = stack.forward(&batch(&[&[1, 2, 3]])).unwrap();
                    let honest = logits.iter().all(|logit| logit.is_nan());
                    assert!(honest, "{value} in a {place}, {precision}: {logits:?}");
                }
            }
        }
    }

    #[test]
    fn rows_of_zeros_are_numbers() {
        let mut encoder = Encoder::made_up();
        encoder.embeddings.word.values.fill(0.0);
        encoder.embeddings.position.values.fill(0.0);
        encoder.embeddings.token_type = None;
        for precision in Precision::ALL {
            let logits = stack(&encoder, precision, 1).forward(&batch(&[&[1, 2, 3]])).unwrap();
            assert!(logits.iter().all(|logit| logit.is_finite()), "{precision}: {logits:?}");
        }
    }

    #[test]
    fn hidden_states_are_pooled_as_asked() {
        let mut encoder = Encoder::made_up();
        encoder.head = exported::Head::HiddenStates;
        let (mut description, weights) = pack(&encoder, Precision::F32);
        let width = description.hidden_size;
        let weights: Bytes = Arc::new(weights);
        let stack = |description: &Description, pooling| {
            let (description, weights) = (description.clone(), weights.clone());
            let model = Model::new(description, weights, Kernels::detect(), pooling).unwrap();
            EncoderStack::new(model, 1).unwrap()
        };
        let batch = batch(&[&[3], &[1, 2, 3, 4, 5], &[9, 8]]);
        let pooled =
            Pooling::ALL.map(|pooling| stack(&description, pooling).forward(&batch).unwrap());
        description.readout = encoder::Head::Graph;
        let hidden_states = stack(&description, Pooling::Mean).forward(&batch).unwrap();
        for (rows, pooling) in pooled.iter().zip(Pooling::ALL) {
            for index in 0..batch.batch_size() {
                let [start, end] = [0, 1].map(|next| batch.cu_seqlens()[index + next] as usize);
                let tokens = hidden_states[start * width..end * width].to_vec();
                let expected = pool(tokens, &[1, end - start, width], pooling);
                let row = &rows[index * width..(index + 1) * width];
                assert_eq!(row, expected, "{pooling} of sequence {index}");
            }
        }
    }

    #[test]
    fn micro_batches_hold_every_sequence_once_and_in_order() {
        let mut lengths = (1..=70).collect::<Vec<usize>>();
        lengths.extend([512, 1, 1, 300, 2]);
        for num_threads in [1, 2, 3, 16] {
            for take in [1, 2, 3, 10, 75] {
                let mut batch = Batch::new();
                lengths.iter().rev().take(take).for_each(|&len| batch.push(&vec![1; len]));
                let parts = micro_batches(&batch, num_threads);
                let order: Vec<usize> = parts.iter().cloned().flatten().collect();
                assert_eq!(order, (0..take).collect::<Vec<_>>(), "{num_threads} {take}");
                assert!(parts.iter().all(|part| !part.is_empty()));
            }
        }
        assert!(micro_batches(&Batch::new(), 2).is_empty());
    }

    #[test]
    fn what_does_not_divide_evenly_is_shared() {
        let num_parts = |num_sequences: usize, num_threads| {
            let mut batch = Batch::new();
            (0..num_sequences).for_each(|_| batch.push(&[1; 32]));
            micro_batches(&batch, num_threads).len()
        };
        assert_eq!(num_parts(8, 2), 4, "four sequences a thread, in two rounds");
        assert_eq!(num_parts(7, 2), 1, "one thread would wait for the other");
        assert_eq!(num_parts(2, 2), 1, "too few tokens");
        assert_eq!(num_parts(1, 1), 1);
        assert!(num_parts(65, 2) > 32, "one left over of many does not matter");
    }
}
