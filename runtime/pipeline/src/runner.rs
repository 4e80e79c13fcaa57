//! The threads between a text and its row: tokenizers, and one for each engine.

use std::{
    any::Any,
    iter,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use engine::{Batch, Engine, EngineError, Output};
use telemetry::{
    METRICS, note,
    trace::{self, Forward, TraceContext},
};
use weights::Bundle;

use crate::{
    Activity, BatchLimits, ModelInfo, PipelineError, Timing, TokenLimits, Truncation, Usage,
    activity::Batches,
    queue::{Input, Queue, Ready, Row},
    tokenize::{Text, Tokenizer},
};

/// Bytes of a request that are tokenized where it arrives: it takes less time than to wake a thread
/// for them.
const MAX_INLINE_BYTES: usize = 4096;

/// A model behind a queue. Its threads end when the last clone is dropped and nothing waits.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    model: Arc<Model>,
}

#[derive(Debug)]
struct Model {
    info: ModelInfo,
    width: usize,
    tokenizer: Arc<Tokenizer>,
    queue: Arc<Queue>,
    batches: Arc<Batches>,
    lost: Arc<Lost>,
}

/// Why the engine's device is lost, once it is.
type Lost = OnceLock<Arc<EngineError>>;

impl Drop for Model {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Runner {
    /// Puts `bundle`'s tokenizer before `engine`, and runs `sample` once: what cannot answer is
    /// refused before a caller meets it.
    ///
    /// `token_limits.max_input_tokens` counts only up to what the model allows.
    pub(crate) fn start(
        bundle: &Bundle,
        mut engine: impl Engine,
        batch_limits: BatchLimits,
        token_limits: TokenLimits,
        sample: &Text,
    ) -> Result<Self, PipelineError> {
        let allowed = bundle.max_position_embeddings();
        let allowed = bundle.sentence().max_seq_length.unwrap_or(allowed).min(allowed);
        let max_input_tokens = token_limits.max_input_tokens.min(allowed);
        let info = ModelInfo {
            name: bundle.name().into(),
            version: bundle.version().into(),
            digest: bundle.sha256().to_owned(),
            max_input_tokens,
        };
        let stage = telemetry::stage("tokenizer");
        let tokenizer =
            Tokenizer::new(bundle.tokenizer(), TokenLimits { max_input_tokens, ..token_limits })?;
        drop(stage);

        let stage = telemetry::stage("warm_up");
        let mut batch = Batch::new();
        let encoding = tokenizer.encode(sample, token_limits.truncation)?;
        batch.push_segments(&encoding.input_ids, &encoding.token_type_ids);
        let output = engine.forward(&batch).map_err(engine_failed)?;
        check_finite(output.row(0), &info)?;
        drop(stage);

        let another = engine.another();
        let engines: Vec<_> = iter::once(engine).chain(another).collect();
        let queue = Arc::new(Queue::new(batch_limits, num_tokenizers(), engines.len()));
        // Before the threads: they end with it, whatever happens next.
        let model = Model {
            info,
            width: output.width(),
            tokenizer: Arc::new(tokenizer),
            queue,
            batches: Arc::default(),
            lost: Arc::default(),
        };
        model.spawn(engines).map_err(PipelineError::Thread)?;
        Ok(Self { model: Arc::new(model) })
    }

    pub(crate) fn info(&self) -> &ModelInfo {
        &self.model.info
    }

    /// Numbers in a row.
    pub(crate) fn width(&self) -> usize {
        self.model.width
    }

    /// What waits, and what has run.
    pub(crate) fn activity(&self) -> Activity {
        Activity {
            num_waiting: self.model.queue.num_waiting(),
            max_queue_requests: self.model.queue.max_queue_requests(),
            batches: self.model.batches.newest(),
        }
    }

    /// Whether the engine's device has failed for good.
    pub(crate) fn is_lost(&self) -> bool {
        self.model.lost.get().is_some()
    }

    /// Text to token ids, and back.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.model.tokenizer
    }

    /// The engine's rows for `texts`, in their order, and what they cost together. Dropping the
    /// future gives their places up. `truncation`: unless it is the function's own.
    ///
    /// # Errors
    ///
    /// [`PipelineError::QueueFull`] at once if there is no place for all of them; the first error
    /// of one of them otherwise.
    pub(crate) async fn run(
        &self,
        texts: Vec<Text>,
        truncation: Option<Truncation>,
    ) -> Result<(Vec<Vec<f32>>, Usage), PipelineError> {
        let truncation = truncation.unwrap_or(self.tokenizer().limits().truncation);
        let num_chars = texts.iter().map(Text::num_chars).sum();
        note(|facts| {
            facts.num_texts += texts.len();
            facts.text_length += num_chars;
        });
        let tickets = self.model.queue.submit(self.model.read(texts, truncation))?;
        let mut rows = Vec::with_capacity(tickets.len());
        let mut usage = Usage::default();
        for (index, ticket) in tickets.into_iter().enumerate() {
            let row = ticket.answer().await.map_err(|error| error.at(index))?;
            rows.push(row.values);
            usage = usage.and(row.usage);
            note(|facts| {
                facts.asked = Some(facts.asked.map_or(row.came, |asked| asked.min(row.came)));
                facts.batch_size = facts.batch_size.max(row.batch_size);
                facts.batch = row.batch;
            });
        }
        usage.num_chars = num_chars;
        note(|facts| {
            let ModelInfo { name, version, .. } = self.info();
            (facts.model, facts.version) = (Some(name.clone()), Some(version.clone()));
            let Timing { tokenize, queue, forward } = usage.timing;
            facts.num_tokens += usage.num_tokens;
            facts.tokenization += tokenize;
            facts.queue += queue;
            facts.forward += forward;
        });
        Ok((rows, usage))
    }
}

/// One for each CPU: they only work while texts wait.
fn num_tokenizers() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Model {
    /// Tokenizes what is quickly done; the rest is the tokenizers'.
    fn read(&self, texts: Vec<Text>, truncation: Truncation) -> Vec<Input> {
        let mut bytes_left = MAX_INLINE_BYTES;
        let read = |text: Text| {
            let Some(left) = bytes_left.checked_sub(text.len()) else {
                return Input::Text(text, truncation);
            };
            bytes_left = left;
            let started = Instant::now();
            match self.tokenizer.encode_ascii(&text) {
                Some(encoding) => Input::Tokens(encoding, started.elapsed()),
                None => Input::Text(text, truncation),
            }
        };
        texts.into_iter().map(read).collect()
    }

    fn spawn(&self, engines: Vec<impl Engine>) -> std::io::Result<()> {
        for index in 0..num_tokenizers() {
            let (queue, tokenizer) = (self.queue.clone(), self.tokenizer.clone());
            thread::Builder::new()
                .name(format!("tokenizer-{index}"))
                .spawn(move || tokenize(&queue, &tokenizer))?;
        }
        for (index, engine) in engines.into_iter().enumerate() {
            let (queue, batches) = (self.queue.clone(), self.batches.clone());
            let (model, lost) = (self.info.clone(), self.lost.clone());
            let mut engine = EngineThread { index, engine, queue, batches, model, lost };
            thread::Builder::new().name("engine".to_owned()).spawn(move || engine.run_batches())?;
        }
        Ok(())
    }
}

/// Tokenizes what comes until the queue is closed and empty.
fn tokenize(queue: &Queue, tokenizer: &Tokenizer) {
    while let Some(taken) = queue.next_text() {
        let encode = || tokenizer.encode(&taken.text, taken.truncation);
        let encoding = catch_unwind(AssertUnwindSafe(encode))
            .unwrap_or_else(|panic| Err(PipelineError::Tokenizer(reason(&*panic).into())));
        queue.tokenized(taken, encoding);
    }
}

/// An engine, and all that the thread which runs it needs.
struct EngineThread<E> {
    index: usize,
    engine: E,
    queue: Arc<Queue>,
    batches: Arc<Batches>,
    model: ModelInfo,
    lost: Arc<Lost>,
}

impl<E: Engine> EngineThread<E> {
    /// Runs batches until the queue is closed and empty, or the engine is lost: then all are refused.
    fn run_batches(&mut self) {
        while let Some(batch) = self.queue.next_batch(self.index) {
            match self.lost.get() {
                Some(error) => self.refuse(batch, || PipelineError::Lost(error.clone())),
                None => self.run(batch),
            }
        }
    }

    fn refuse(&self, texts: Vec<Ready>, error: impl Fn() -> PipelineError) {
        for text in texts {
            METRICS.predictions_total.with([&self.model.name, "error"]).add(1);
            text.reply.send(Err(error()));
        }
    }

    /// One forward pass for those who still wait. If it fails, each gets one by itself, so that who made
    /// it fail is alone with the error.
    fn run(&mut self, mut texts: Vec<Ready>) {
        texts.retain(|text| !text.reply.is_closed());
        if texts.is_empty() {
            return;
        }
        let mut batch = Batch::new();
        for Ready { encoding, .. } in &texts {
            batch.push_segments(&encoding.input_ids, &encoding.token_type_ids);
        }
        let started = Instant::now();
        let outcome = forward(&mut self.engine, &batch);
        let forward = started.elapsed();
        self.queue.ran(self.index);
        let model = &self.model;
        let span = Forward {
            model: &model.name,
            version: &model.version,
            batch_size: batch.batch_size(),
            num_tokens: batch.num_tokens(),
            started,
            duration: forward,
            failed: outcome.is_err(),
        };
        let span = trace::batch(span, texts.iter().filter_map(|text| text.reply.trace));
        match outcome {
            Ok(output) => {
                self.batches.ran(batch.batch_size(), batch.num_tokens(), forward);
                METRICS.inference_forward_seconds.with([]).observe(forward.as_secs_f64());
                METRICS.inference_batch_requests.with([]).observe(batch.batch_size() as f64);
                METRICS.inference_batch_tokens.with([]).observe(batch.num_tokens() as f64);
                let pass = Pass { model, started, forward, batch_size: batch.batch_size(), span };
                for (index, text) in texts.into_iter().enumerate() {
                    answer(text, output.row(index), &pass);
                }
            }
            Err(error @ EngineError::Lost { .. }) => {
                let error = self.lost.get_or_init(|| Arc::new(error));
                self.refuse(texts, || PipelineError::Lost(error.clone()));
            }
            Err(_) if texts.len() > 1 => texts.into_iter().for_each(|text| self.run(vec![text])),
            Err(error) => {
                let error = Arc::new(error);
                self.refuse(texts, || PipelineError::Engine(error.clone()));
            }
        }
    }
}

/// A forward pass that has ended.
struct Pass<'a> {
    model: &'a ModelInfo,
    started: Instant,
    forward: Duration,
    batch_size: usize,
    span: Option<TraceContext>,
}

/// Sends a text the row that `pass` gave it.
fn answer(text: Ready, row: &[f32], pass: &Pass<'_>) {
    let Ready { encoding, reply, came, tokenize, .. } = text;
    let Pass { model, started, forward, batch_size, span } = *pass;
    let trace_id = reply.trace.filter(|trace| trace.is_sampled).map(|trace| trace.trace_id);
    let queue = started.saturating_duration_since(came).saturating_sub(tokenize);
    METRICS.inference_tokenization_seconds.with([]).observe(tokenize.as_secs_f64());
    METRICS.inference_queue_wait_seconds.with([]).observe(queue.as_secs_f64());
    let latency = came.elapsed().as_secs_f64();
    METRICS.prediction_latency_seconds.with([&model.name]).observe_traced(latency, trace_id);
    if encoding.truncated {
        METRICS.inference_truncated_total.with([]).add(1);
    }
    let row = check_finite(row, model).map(|()| Row {
        values: row.to_vec(),
        usage: Usage {
            num_tokens: encoding.input_ids.len(),
            num_chars: 0,
            truncated: encoding.truncated,
            timing: Timing { tokenize, queue, forward },
        },
        came,
        batch_size,
        batch: span,
    });
    let status = if row.is_ok() { "success" } else { "error" };
    METRICS.predictions_total.with([&model.name, status]).add(1);
    reply.send(row);
}

/// [`Engine::forward`], with a panic and a wrong number of rows as errors.
fn forward(engine: &mut impl Engine, batch: &Batch) -> Result<Output, EngineError> {
    let panicked = |panic: Box<dyn Any + Send>| EngineError::Backend {
        engine: "any",
        source: reason(&*panic).into(),
    };
    let output = catch_unwind(AssertUnwindSafe(|| engine.forward(batch))).map_err(panicked)??;
    if output.batch_size() != batch.batch_size() {
        return Err(EngineError::ShapeMismatch {
            tensor: "output rows",
            expected: vec![batch.batch_size()],
            actual_len: output.batch_size(),
        });
    }
    Ok(output)
}

fn engine_failed(error: EngineError) -> PipelineError {
    PipelineError::Engine(Arc::new(error))
}

/// What a panic says.
fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("it panicked: {}", text.unwrap_or_default())
}

fn check_finite(row: &[f32], model: &ModelInfo) -> Result<(), PipelineError> {
    if row.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(PipelineError::NotFinite { model: model.name.to_string() })
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;
    use crate::tokenize::tests::tokenizer;

    const LIMITS: BatchLimits = BatchLimits {
        max_batch_tokens: 100,
        max_batch_requests: 8,
        max_queue_wait: Duration::from_millis(2),
        max_queue_requests: 100,
    };

    /// Gives each sequence the sum of its ids; says how many it was given, and waits for leave to go
    /// on. Some ids make it fail.
    #[derive(Clone)]
    struct Gated {
        seen: mpsc::Sender<usize>,
        leave: Arc<Mutex<mpsc::Receiver<()>>>,
    }

    const PANICS: u32 = 5;
    const FAILS: u32 = 6;
    /// One behind the other.
    const LOSES: [u32; 2] = [FAILS, FAILS];
    const NOT_A_NUMBER: u32 = 0;

    impl Engine for Gated {
        fn forward(&mut self, batch: &Batch) -> Result<Output, EngineError> {
            self.seen.send(batch.batch_size()).unwrap();
            self.leave.lock().unwrap().recv().unwrap();
            assert!(!batch.input_ids().contains(&PANICS), "unlucky");
            if batch.input_ids().windows(2).any(|pair| pair == LOSES) {
                let source = "fell off the bus".into();
                return Err(EngineError::Lost { engine: "gated", source });
            }
            if batch.input_ids().contains(&FAILS) {
                return Err(EngineError::Input { reason: "no such id".to_owned() });
            }
            let sums = (0..batch.batch_size()).map(|index| match batch.sequence(index) {
                ids if ids.contains(&NOT_A_NUMBER) => f32::NAN,
                ids => ids.iter().sum::<u32>() as f32,
            });
            Output::new(sums.collect(), batch.batch_size())
        }
    }

    type Asked = tokio::task::JoinHandle<Result<Vec<f32>, PipelineError>>;

    struct Rig {
        runner: Runner,
        seen: mpsc::Receiver<usize>,
        leave: mpsc::Sender<()>,
    }

    fn rig(limits: BatchLimits) -> Rig {
        rig_of(1, limits)
    }

    fn rig_of(num_engines: usize, limits: BatchLimits) -> Rig {
        let (saw, seen) = mpsc::channel();
        let (leave, may_leave) = mpsc::channel();
        let info = ModelInfo {
            name: "tiny".into(),
            version: "0".into(),
            digest: "00".to_owned(),
            max_input_tokens: 16,
        };
        let tokenizer = Arc::new(tokenizer(16, Truncation::Right));
        let queue = Arc::new(Queue::new(limits, num_tokenizers(), num_engines));
        let model = Model {
            info,
            width: 1,
            tokenizer,
            queue,
            batches: Arc::default(),
            lost: Arc::default(),
        };
        let engine = Gated { seen: saw, leave: Arc::new(Mutex::new(may_leave)) };
        model.spawn(vec![engine; num_engines]).unwrap();
        Rig { runner: Runner { model: Arc::new(model) }, seen, leave }
    }

    impl Rig {
        fn ask(&self, text: &str) -> Asked {
            let (runner, text) = (self.runner.clone(), Text::One(text.to_owned()));
            tokio::spawn(async move { Ok(runner.run(vec![text], None).await?.0.remove(0)) })
        }

        /// Holds the engine in a pass of its own, so that what comes next gathers.
        async fn hold(&self) -> Asked {
            let held = self.ask("a");
            until(|| self.seen.try_recv() == Ok(1)).await;
            held
        }
    }

    async fn until(mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < deadline, "nothing came of it");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_text_that_fails_fails_alone() {
        let rig = rig(LIMITS);
        let held = rig.hold().await;
        // c panics, d fails, an unknown word gives NaN.
        let asked = ["a", "c", "a b", "d", "e", "b b"].map(|text| rig.ask(text));
        until(|| rig.runner.model.queue.num_ready() == 6).await;
        (0..20).for_each(|_| rig.leave.send(()).unwrap());
        assert_eq!(held.await.unwrap().unwrap(), [6.0]);
        let mut answers = Vec::new();
        for asked in asked {
            answers.push(match asked.await.unwrap() {
                Ok(row) => row[0].to_string(),
                Err(error) => error.to_string(),
            });
        }
        let not_finite = "model tiny gave a number that is not finite";
        assert_eq!(answers, ["6", "engine failed", "10", "engine failed", not_finite, "11"]);
        let seen: Vec<usize> = rig.seen.try_iter().collect();
        assert_eq!(seen, [6, 1, 1, 1, 1, 1, 1], "together, then each by itself");
        assert_eq!(rig.ask("a").await.unwrap().unwrap(), [6.0], "and goes on");
    }

    #[tokio::test]
    async fn after_a_lost_device_all_are_refused_and_none_waits() {
        let rig = rig(LIMITS);
        let held = rig.hold().await;
        let together = ["a", "d d", "b"].map(|text| rig.ask(text));
        until(|| rig.runner.model.queue.num_ready() == 3).await;
        rig.leave.send(()).unwrap();
        assert_eq!(held.await.unwrap().unwrap(), [6.0]);
        assert!(!rig.runner.is_lost());
        rig.leave.send(()).unwrap();
        for asked in together {
            assert!(matches!(asked.await.unwrap(), Err(PipelineError::Lost(_))));
        }
        assert!(rig.runner.is_lost());
        // It is not asked again.
        assert!(matches!(rig.ask("a").await.unwrap(), Err(PipelineError::Lost(_))));
        assert_eq!(rig.seen.try_iter().collect::<Vec<_>>(), [3]);
    }

    #[tokio::test]
    async fn a_full_batch_runs_beside_another_one() {
        let max_queue_wait = Duration::from_secs(60);
        let rig = rig_of(2, BatchLimits { max_batch_requests: 2, max_queue_wait, ..LIMITS });
        let held = rig.hold().await;
        let asked = ["a", "b"].map(|text| rig.ask(text));
        until(|| rig.seen.try_recv() == Ok(2)).await;
        (0..2).for_each(|_| rig.leave.send(()).unwrap());
        assert_eq!(held.await.unwrap().unwrap(), [6.0]);
        for (asked, expected) in asked.into_iter().zip([6.0, 7.0]) {
            assert_eq!(asked.await.unwrap().unwrap(), [expected]);
        }
    }

    #[tokio::test]
    async fn callers_that_left_cost_no_forward_pass() {
        let rig = rig(LIMITS);
        let held = rig.hold().await;
        let left = [rig.ask("a"), rig.ask("b")];
        until(|| rig.runner.model.queue.num_ready() == 2).await;
        left.iter().for_each(|asked| asked.abort());
        until(|| rig.runner.model.queue.num_ready() == 0).await;
        let stayed = rig.ask("b");
        (0..2).for_each(|_| rig.leave.send(()).unwrap());
        held.await.unwrap().unwrap();
        assert_eq!(stayed.await.unwrap().unwrap(), [7.0]);
        assert_eq!(rig.seen.try_iter().collect::<Vec<_>>(), [1]);
    }

    #[tokio::test]
    async fn rows_of_many_texts_come_in_their_order() {
        let rig = rig(LIMITS);
        (0..20).for_each(|_| rig.leave.send(()).unwrap());
        let texts = ["a", "a b", "b b b", "a", "b"].map(|text| Text::One(text.to_owned()));
        let (rows, usage) = rig.runner.run(texts.to_vec(), None).await.unwrap();
        assert_eq!(rows.concat(), [6.0, 10.0, 15.0, 6.0, 7.0]);
        assert_eq!((usage.num_tokens, usage.truncated), (3 + 4 + 5 + 3 + 3, false));
    }

    #[tokio::test]
    async fn what_happens_to_long_texts_is_chosen_by_the_request() {
        let rig = rig(LIMITS);
        (0..20).for_each(|_| rig.leave.send(()).unwrap());
        let texts = || vec![Text::One("b ".repeat(14)), Text::One("a ".repeat(40) + "b")];
        let run = |truncation| rig.runner.run(texts(), truncation);
        let (rows, usage) = run(None).await.unwrap();
        assert_eq!((rows[1][0], usage.truncated), (1.0 + 14.0 * 3.0 + 2.0, true));
        let (rows, _) = run(Some(Truncation::Left)).await.unwrap();
        assert_eq!(rows[1][0], 1.0 + 13.0 * 3.0 + 4.0 + 2.0);
        let error = run(Some(Truncation::Off)).await.unwrap_err();
        assert!(matches!(error, PipelineError::TooManyTokens { index: 1, max_input_tokens: 16 }));
    }

    #[tokio::test]
    async fn the_threads_end_with_the_last_clone() {
        let rig = rig(LIMITS);
        (0..20).for_each(|_| rig.leave.send(()).unwrap());
        rig.ask("a").await.unwrap().unwrap();
        assert_eq!(rig.seen.recv(), Ok(1));
        drop(rig.runner);
        assert!(rig.seen.recv_timeout(Duration::from_secs(30)).is_err());
    }
}
