//! The worker side of `tests/bench`: a model behind a protocol of lines on stdin and stdout.
//!
//! ```text
//! <worker> <model file> <threads> [precision]
//! ready                               once loaded, or one line that says what failed
//! > time 2 5 16,16;32                 2 passes unmeasured, then 5 measured, over a batch of two
//! < 812.4 809.9 811.0 815.2 808.7     sequences and one of one; microseconds of each pass
//! > logits 16,16;32
//! < 0.1 -0.7 …                        every logit of one pass
//! ```
//!
//! Token ids come from a generator with a fixed seed, the same in `workload.py`, so all workers
//! run the same texts. What does not belong to a forward pass (making tensors out of ids) is done
//! before the clock starts.
#![forbid(unsafe_code)]

use std::{
    env,
    error::Error,
    io::{self, BufRead, Write},
    time::Instant,
};

/// Any failure; the driver shows its text.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What a worker is told on its command line.
#[derive(Debug)]
pub struct Arguments {
    /// File to load.
    pub model: String,
    /// Threads that the engine may keep busy.
    pub num_threads: usize,
    /// For engines with more than one: `f32`, `bf16` or `int8`.
    pub precision: Option<String>,
}

/// A loaded model of some engine.
pub trait Model {
    /// A batch as the engine takes it.
    type Input;

    /// Brings a batch of token ids, one list a sequence, into the engine's form.
    ///
    /// # Errors
    ///
    /// Whatever the engine reports.
    fn prepare(&self, sequences: &[Vec<u32>]) -> Result<Self::Input, Failure>;

    /// Logits `[batch_size, num_labels]`, one row behind the other.
    ///
    /// # Errors
    ///
    /// Whatever the engine reports.
    fn forward(&mut self, input: &Self::Input) -> Result<Vec<f32>, Failure>;
}

/// One of our engines.
#[cfg(feature = "engine")]
#[derive(Debug)]
pub struct Ours<E>(pub E);

#[cfg(feature = "engine")]
impl<E: engine::Engine> Model for Ours<E> {
    type Input = engine::Batch;

    fn prepare(&self, sequences: &[Vec<u32>]) -> Result<engine::Batch, Failure> {
        let mut batch = engine::Batch::new();
        for input_ids in sequences {
            batch.push(input_ids);
        }
        Ok(batch)
    }

    fn forward(&mut self, batch: &engine::Batch) -> Result<Vec<f32>, Failure> {
        let output = self.0.forward(batch)?;
        Ok((0..batch.batch_size()).flat_map(|index| output.row(index).to_vec()).collect())
    }
}

/// Loads the model and answers requests until stdin ends.
///
/// # Errors
///
/// Whatever fails first, after it was also written as the answer.
pub fn serve<M: Model>(load: impl FnOnce(&Arguments) -> Result<M, Failure>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let mut answer = |line: Result<String, Failure>| -> Result<(), Failure> {
        match &line {
            Ok(line) => writeln!(stdout, "{line}")?,
            Err(error) => writeln!(stdout, "failed: {}", error.to_string().replace('\n', " "))?,
        }
        stdout.flush()?;
        line.map(drop)
    };
    let mut model = match arguments().and_then(|arguments| load(&arguments)) {
        Ok(model) => model,
        Err(error) => return answer(Err(error)),
    };
    answer(Ok("ready".to_owned()))?;
    for request in io::stdin().lock().lines() {
        answer(respond(&mut model, &request?))?;
    }
    Ok(())
}

fn arguments() -> Result<Arguments, Failure> {
    let mut words = env::args().skip(1);
    let (Some(model), Some(num_threads)) = (words.next(), words.next()) else {
        return Err("usage: <worker> <model file> <threads> [precision]".into());
    };
    Ok(Arguments { model, num_threads: num_threads.parse()?, precision: words.next() })
}

fn respond<M: Model>(model: &mut M, request: &str) -> Result<String, Failure> {
    match request.split_whitespace().collect::<Vec<_>>()[..] {
        ["time", warmups, passes, workload] => {
            let inputs = prepare(model, workload)?;
            for _ in 0..warmups.parse()? {
                pass(model, &inputs)?;
            }
            let times = (0..passes.parse()?).map(|_| {
                let started = Instant::now();
                pass(model, &inputs)?;
                Ok(started.elapsed().as_secs_f64() * 1e6)
            });
            Ok(join(times.collect::<Result<Vec<f64>, Failure>>()?))
        }
        ["logits", workload] => {
            let inputs = prepare(model, workload)?;
            Ok(join(pass(model, &inputs)?))
        }
        _ => Err(format!("unknown request {request:?}").into()),
    }
}

fn prepare<M: Model>(model: &M, workload: &str) -> Result<Vec<M::Input>, Failure> {
    batches(workload)?.iter().map(|sequences| model.prepare(sequences)).collect()
}

fn pass<M: Model>(model: &mut M, inputs: &[M::Input]) -> Result<Vec<f32>, Failure> {
    let mut logits = Vec::new();
    for input in inputs {
        logits.extend(model.forward(input)?);
    }
    Ok(logits)
}

fn join<T: ToString>(numbers: Vec<T>) -> String {
    numbers.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

/// Token ids of a workload: batches between semicolons, lengths of their sequences between commas.
fn batches(workload: &str) -> Result<Vec<Vec<Vec<u32>>>, Failure> {
    const FIRST_WORD: u64 = 1000;
    const NUM_WORDS: u64 = 28_000;
    let mut state: u64 = 12_345;
    let mut next_id = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (FIRST_WORD + (state >> 33) % NUM_WORDS) as u32
    };
    let mut sequence = |len: &str| -> Result<Vec<u32>, Failure> {
        Ok((0..len.parse::<usize>()?).map(|_| next_id()).collect())
    };
    workload.split(';').map(|batch| batch.split(',').map(&mut sequence).collect()).collect()
}

/// A batch for engines that want a rectangle: padded on the right to its longest sequence.
#[derive(Debug)]
pub struct Padded {
    /// Number of sequences.
    pub batch_size: usize,
    /// Length of the longest.
    pub seq_len: usize,
    /// `[batch_size, seq_len]`, 0 where padded.
    pub input_ids: Vec<i64>,
    /// `[batch_size, seq_len]`, 1 = keep.
    pub attention_mask: Vec<i64>,
}

impl Padded {
    /// Pads `sequences`.
    #[must_use]
    pub fn new(sequences: &[Vec<u32>]) -> Self {
        let seq_len = sequences.iter().map(Vec::len).max().unwrap_or(0);
        let cells = || sequences.iter().flat_map(|ids| (0..seq_len).map(|place| ids.get(place)));
        Self {
            batch_size: sequences.len(),
            seq_len,
            input_ids: cells().map(|id| id.map_or(0, |&id| i64::from(id))).collect(),
            attention_mask: cells().map(|id| i64::from(id.is_some())).collect(),
        }
    }

    /// Whether nothing is padded.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.attention_mask.iter().all(|&keep| keep == 1)
    }

    /// `[batch_size, seq_len]` of the graph input `name`.
    ///
    /// # Errors
    ///
    /// If no encoder has an input of this name.
    pub fn feed(&self, name: &str) -> Result<Vec<i64>, Failure> {
        match name {
            "input_ids" => Ok(self.input_ids.clone()),
            "attention_mask" => Ok(self.attention_mask.clone()),
            "token_type_ids" => Ok(vec![0; self.input_ids.len()]),
            _ => Err(format!("unknown input {name:?}").into()),
        }
    }
}
