use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use telemetry::{METRICS, trace::TraceContext, trace_context};
use tokio::sync::oneshot;

use crate::{
    PipelineError, Truncation, Usage,
    tokenize::{Encoding, Text},
};

/// What is put into the queue.
#[derive(Debug)]
pub(crate) enum Input {
    /// Not tokenized yet, and what happens to it if it is too long.
    Text(Text, Truncation),
    /// May run at once; what it took to tokenize it.
    Tokens(Encoding, Duration),
}

/// Bytes of text that one tokenizer is through with before another one would have woken up.
const BYTES_PER_TOKENIZER: usize = 4096;

/// How much runs at once, and how much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most tokens in one forward pass. A longer sequence runs by itself.
    pub max_batch_tokens: usize,
    /// Most texts in one forward pass.
    pub max_batch_requests: usize,
    /// Longest that a tokenized text waits, while an engine is free, for those still being tokenized,
    /// or, where two engines run batches of one model, for the other one to be done.
    pub max_queue_wait: Duration,
    /// Most texts that wait for a forward pass.
    pub max_queue_requests: usize,
}

/// What the engine makes of one text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// `[width]`
    pub(crate) values: Vec<f32>,
    pub(crate) usage: Usage,
    /// When its text came.
    pub(crate) came: Instant,
    /// Texts in its forward pass.
    pub(crate) batch_size: usize,
    /// The span of that, if it is kept.
    pub(crate) batch: Option<TraceContext>,
}

/// Whoever waits for a row.
#[derive(Debug)]
pub(crate) struct Reply {
    sender: oneshot::Sender<Result<Row, PipelineError>>,
    /// The span of its request.
    pub(crate) trace: Option<TraceContext>,
}

impl Reply {
    /// Whether nobody waits any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// A caller that left meanwhile misses nothing.
    pub(crate) fn send(self, row: Result<Row, PipelineError>) {
        let _ = self.sender.send(row);
    }
}

/// Texts on their way to the engine, in the order in which they came.
///
/// ```text
/// submit ──> texts ──> tokenizing ──> ready ──> next_batch ──> ran
///   └─────────────────────────────────^
/// ```
///
/// A text has a place until the engine takes it, or its ticket is dropped.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    limits: BatchLimits,
    num_tokenizers: usize,
    text_came: Condvar,
    /// Of each engine.
    engine_due: Vec<Condvar>,
}

#[derive(Debug, Default)]
struct State {
    /// Those that the metric counts.
    num_published: usize,
    next_id: u64,
    texts: BTreeMap<u64, Waiting>,
    tokenizing: BTreeSet<u64>,
    ready: BTreeMap<u64, Ready>,
    /// Bytes of those that no tokenizer is through with.
    unread_bytes: usize,
    /// Tokenizers that do not wait, or have been told not to.
    awake_tokenizers: usize,
    engines: Vec<EngineThread>,
    /// When the first engine began to run, while any does.
    busy_since: Option<Instant>,
    closed: bool,
}

/// What the thread of an engine does.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum EngineThread {
    /// It looks for a batch, or has been told to.
    #[default]
    Awake,
    /// It waits for a text that is ready.
    Idle,
    /// It waits for more texts for the batch.
    Gathers,
    /// It runs a batch.
    Runs,
}

/// A text that no tokenizer has taken.
#[derive(Debug)]
struct Waiting {
    text: Text,
    truncation: Truncation,
    reply: Reply,
    came: Instant,
}

/// A text that a tokenizer has taken.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) id: u64,
    pub(crate) text: Text,
    pub(crate) truncation: Truncation,
    reply: Reply,
    came: Instant,
    since: Instant,
}

/// A text that may run.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) encoding: Encoding,
    pub(crate) reply: Reply,
    pub(crate) came: Instant,
    pub(crate) tokenize: Duration,
    since: Instant,
}

/// A text's place in the queue. Dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Ticket {
    id: u64,
    queue: Arc<Queue>,
    answer: oneshot::Receiver<Result<Row, PipelineError>>,
}

impl Ticket {
    pub(crate) async fn answer(mut self) -> Result<Row, PipelineError> {
        (&mut self.answer).await.unwrap_or(Err(PipelineError::Stopped))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Who has an answer, or a forward pass, has no place any more.
        if self.answer.is_terminated() {
            return;
        }
        self.queue.give_up(self.id);
    }
}

impl State {
    fn num_waiting(&self) -> usize {
        self.texts.len() + self.tokenizing.len() + self.ready.len()
    }

    /// Tells the metric, before the lock is let go, how many wait now.
    fn publish(&mut self) {
        let num_waiting = self.num_waiting();
        if num_waiting != self.num_published {
            let more = num_waiting as f64 - self.num_published as f64;
            METRICS.queue_length.with([]).add(more);
            self.num_published = num_waiting;
        }
    }

    fn is_drained(&self) -> bool {
        self.closed && self.num_waiting() == 0
    }

    /// Whether more texts could join those that are ready: such as are on their way, or will come while
    /// an engine runs.
    fn has_company(&self) -> bool {
        let runs = |engine: &EngineThread| *engine == EngineThread::Runs;
        !self.texts.is_empty() || !self.tokenizing.is_empty() || self.engines.iter().any(runs)
    }

    /// Tells an engine to go on if it waits for what is there now; the caller is to notify it.
    fn call_engine(&mut self, limits: &BatchLimits) -> Option<usize> {
        let is_due = |engine: &EngineThread| match engine {
            EngineThread::Awake | EngineThread::Runs => false,
            EngineThread::Idle => !self.ready.is_empty() || self.is_drained(),
            EngineThread::Gathers => !self.has_company() || self.fitting(limits).1,
        };
        let due = self.engines.iter().position(is_due)?;
        self.engines[due] = EngineThread::Awake;
        Some(due)
    }

    /// Notes what an engine does now, and when any of them runs.
    fn set_engine(&mut self, index: usize, does: EngineThread) {
        self.engines[index] = does;
        match self.engines.contains(&EngineThread::Runs) {
            true => _ = self.busy_since.get_or_insert_with(Instant::now),
            false => {
                if let Some(since) = self.busy_since.take() {
                    let busy = since.elapsed().as_secs_f64();
                    METRICS.inference_busy_seconds.with([]).observe(busy);
                }
            }
        }
    }

    /// How many of those that are ready make the next batch, and whether more would not fit.
    fn fitting(&self, limits: &BatchLimits) -> (usize, bool) {
        let (mut count, mut num_tokens) = (0, 0);
        for ready in self.ready.values() {
            num_tokens += ready.encoding.input_ids.len();
            if count == limits.max_batch_requests
                || (count > 0 && num_tokens > limits.max_batch_tokens)
            {
                return (count, true);
            }
            count += 1;
        }
        let full = count == limits.max_batch_requests || num_tokens >= limits.max_batch_tokens;
        (count, full)
    }
}

impl Queue {
    /// `num_tokenizers` threads will ask for texts, and `num_engines` for batches.
    pub(crate) fn new(limits: BatchLimits, num_tokenizers: usize, num_engines: usize) -> Self {
        let engines = vec![EngineThread::default(); num_engines];
        let state = State { awake_tokenizers: num_tokenizers, engines, ..State::default() };
        METRICS.queue_length.with([]).add(0.0);
        METRICS.inference_max_batch_tokens.with([]).set(limits.max_batch_tokens as f64);
        Self {
            state: Mutex::new(state),
            limits,
            num_tokenizers,
            text_came: Condvar::new(),
            engine_due: iter::repeat_with(Condvar::new).take(num_engines).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for each of `inputs`, or none: without waiting.
    pub(crate) fn submit(
        self: &Arc<Self>,
        inputs: Vec<Input>,
    ) -> Result<Vec<Ticket>, PipelineError> {
        let max_queue_requests = self.limits.max_queue_requests;
        let mut tickets = Vec::with_capacity(inputs.len());
        let (came, trace) = (Instant::now(), trace_context());
        let mut state = self.lock();
        if state.num_waiting() + inputs.len() > max_queue_requests {
            return Err(PipelineError::QueueFull { max_queue_requests });
        }
        for input in inputs {
            let (sender, answer) = oneshot::channel();
            let reply = Reply { sender, trace };
            let id = state.next_id;
            state.next_id += 1;
            match input {
                Input::Text(text, truncation) => {
                    state.unread_bytes += text.len();
                    state.texts.insert(id, Waiting { text, truncation, reply, came });
                }
                Input::Tokens(encoding, tokenize) => {
                    let before = came.checked_sub(tokenize).unwrap_or(came);
                    let ready = Ready { encoding, reply, came: before, tokenize, since: came };
                    state.ready.insert(id, ready);
                }
            }
            tickets.push(Ticket { id, queue: self.clone(), answer });
        }
        // Waking a thread takes longer than a short text.
        let wanted = state.texts.len().min(1 + state.unread_bytes / BYTES_PER_TOKENIZER);
        let wake = wanted.min(self.num_tokenizers).saturating_sub(state.awake_tokenizers);
        state.awake_tokenizers += wake;
        let due = state.call_engine(&self.limits);
        state.publish();
        drop(state);
        for _ in 0..wake {
            self.text_came.notify_one();
        }
        self.wake(due);
        Ok(tickets)
    }

    fn give_up(&self, id: u64) {
        let mut state = self.lock();
        let text = state.texts.remove(&id);
        state.unread_bytes -= text.as_ref().map_or(0, |waiting| waiting.text.len());
        let ready = state.ready.remove(&id);
        state.tokenizing.remove(&id);
        let due = state.call_engine(&self.limits);
        state.publish();
        drop(state);
        self.wake(due);
        // What they hold is freed behind the lock.
        drop((text, ready));
    }

    /// The text that has waited longest for a tokenizer; `None` when the queue is closed and empty.
    pub(crate) fn next_text(&self) -> Option<Taken> {
        let mut state = self.lock();
        loop {
            if let Some((id, Waiting { text, truncation, reply, came })) = state.texts.pop_first() {
                state.tokenizing.insert(id);
                return Some(Taken { id, text, truncation, reply, came, since: Instant::now() });
            }
            if state.closed {
                return None;
            }
            state.awake_tokenizers = state.awake_tokenizers.saturating_sub(1);
            state = self.text_came.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts a text that was taken among those that are ready, unless its caller has left; answers
    /// one that has no encoding.
    pub(crate) fn tokenized(&self, taken: Taken, encoding: Result<Encoding, PipelineError>) {
        let Taken { id, text, reply, came, .. } = taken;
        let now = Instant::now();
        let tokenize = now - taken.since;
        let mut state = self.lock();
        state.unread_bytes -= text.len();
        let is_wanted = state.tokenizing.remove(&id);
        let error = match encoding {
            Ok(encoding) if is_wanted => {
                state.ready.insert(id, Ready { encoding, reply, came, tokenize, since: now });
                None
            }
            Ok(_) => None,
            Err(error) => Some((error, reply)),
        };
        let due = state.call_engine(&self.limits);
        state.publish();
        drop(state);
        self.wake(due);
        if let Some((error, reply)) = error {
            reply.send(Err(error));
        }
    }

    /// Wakes an engine that was told to go on.
    fn wake(&self, due: Option<usize>) {
        if let Some(engine_due) = due.and_then(|engine| self.engine_due.get(engine)) {
            engine_due.notify_one();
        }
    }

    /// The next batch, for the thread of engine number `engine`; `None` when the queue is closed and
    /// empty.
    ///
    /// What is ready goes at once, unless texts that fit the batch are on their way through a tokenizer,
    /// or may come while another engine runs: for these the first one waits up to `max_queue_wait`.
    pub(crate) fn next_batch(&self, engine: usize) -> Option<Vec<Ready>> {
        let engine_due = &self.engine_due[engine];
        let mut state = self.lock();
        state.set_engine(engine, EngineThread::Awake);
        loop {
            let (count, full) = state.fitting(&self.limits);
            let Some(first) = state.ready.values().next() else {
                if state.is_drained() {
                    return None;
                }
                state.engines[engine] = EngineThread::Idle;
                state = engine_due.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.engines[engine] = EngineThread::Awake;
                continue;
            };
            let waited = first.since.elapsed();
            if full || !state.has_company() || waited >= self.limits.max_queue_wait {
                let batch = (0..count).filter_map(|_| state.ready.pop_first());
                let batch = batch.map(|(_, ready)| ready).collect();
                state.publish();
                state.set_engine(engine, EngineThread::Runs);
                // Another one may gather what is left.
                let due = state.call_engine(&self.limits);
                drop(state);
                self.wake(due);
                return Some(batch);
            }
            state.engines[engine] = EngineThread::Gathers;
            let rest = self.limits.max_queue_wait - waited;
            let woken = engine_due.wait_timeout(state, rest);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
            state.engines[engine] = EngineThread::Awake;
        }
    }

    /// Engine number `engine` has run its batch, though not everybody has an answer yet.
    pub(crate) fn ran(&self, engine: usize) {
        let mut state = self.lock();
        state.set_engine(engine, EngineThread::Awake);
        let due = state.call_engine(&self.limits);
        drop(state);
        self.wake(due);
    }

    /// Texts that have a place.
    pub(crate) fn num_waiting(&self) -> usize {
        self.lock().num_waiting()
    }

    /// Places there are.
    pub(crate) fn max_queue_requests(&self) -> usize {
        self.limits.max_queue_requests
    }

    #[cfg(test)]
    pub(crate) fn num_ready(&self) -> usize {
        self.lock().ready.len()
    }

    /// From now on the threads end when nothing waits.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        drop(state);
        self.text_came.notify_all();
        self.engine_due.iter().for_each(Condvar::notify_all);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    const LIMITS: BatchLimits = BatchLimits {
        max_batch_tokens: 16,
        max_batch_requests: 4,
        max_queue_wait: Duration::from_secs(60),
        max_queue_requests: 1000,
    };

    fn queue(limits: BatchLimits) -> Arc<Queue> {
        Arc::new(Queue::new(limits, 1, 1))
    }

    fn texts(count: usize) -> Vec<Input> {
        let text = |text: usize| Input::Text(Text::One(text.to_string()), Truncation::Right);
        (0..count).map(text).collect()
    }

    /// Does what a tokenizer does, for the text that has waited longest.
    fn tokenize(queue: &Queue, num_tokens: usize) {
        let taken = queue.next_text().unwrap();
        let input_ids = vec![taken.id as u32; num_tokens];
        let token_type_ids = vec![0; num_tokens];
        queue.tokenized(taken, Ok(Encoding { input_ids, token_type_ids, truncated: false }));
    }

    fn ids(batch: &[Ready]) -> Vec<u32> {
        batch.iter().map(|ready| ready.encoding.input_ids[0]).collect()
    }

    #[test]
    fn no_text_is_lost_no_limit_passed_and_the_order_kept() {
        let mut state = 1u64;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % bound) as usize
        };
        for _ in 0..300 {
            let limits = BatchLimits {
                max_batch_tokens: 1 + below(64),
                max_batch_requests: 1 + below(9),
                ..LIMITS
            };
            let queue = queue(limits);
            let count = 1 + below(60);
            let mut tickets = queue.submit(texts(count)).unwrap();
            let lens: Vec<usize> = (0..count).map(|_| 1 + below(40)).collect();
            lens.iter().for_each(|&len| tokenize(&queue, len));
            let gone = below(count as u64);
            drop(tickets.remove(gone));
            let expected: Vec<u32> = (0..count as u32).filter(|&id| id as usize != gone).collect();
            let mut seen = Vec::new();
            while seen.len() < expected.len() {
                let batch = queue.next_batch(0).unwrap();
                let num_tokens: usize =
                    batch.iter().map(|ready| ready.encoding.input_ids.len()).sum();
                assert!(batch.len() <= limits.max_batch_requests);
                assert!(num_tokens <= limits.max_batch_tokens || batch.len() == 1);
                // The next one would not have fitted.
                if let Some(&next) = expected.get(seen.len() + batch.len()) {
                    assert!(
                        batch.len() == limits.max_batch_requests
                            || num_tokens + lens[next as usize] > limits.max_batch_tokens
                    );
                }
                seen.extend(ids(&batch));
            }
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_request_has_places_for_all_its_texts_or_none() {
        let queue = queue(BatchLimits { max_queue_requests: 3, ..LIMITS });
        let two = queue.submit(texts(2)).unwrap();
        assert_eq!(queue.submit(texts(2)).unwrap_err().to_string(), "3 requests wait already");
        let one = queue.submit(texts(1)).unwrap();
        tokenize(&queue, 1);
        assert!(queue.submit(texts(1)).is_err(), "one that is tokenized still waits");
        drop(two);
        drop(one);
        queue.submit(texts(3)).unwrap();
    }

    #[test]
    fn what_the_engine_took_has_no_place_any_more() {
        let queue = queue(BatchLimits { max_queue_requests: 1, ..LIMITS });
        let _running = queue.submit(texts(1)).unwrap();
        tokenize(&queue, 1);
        queue.next_batch(0).unwrap();
        queue.submit(texts(1)).unwrap();
    }

    #[test]
    fn a_free_engine_runs_what_is_ready_at_once() {
        let queue = queue(LIMITS);
        let _ticket = queue.submit(texts(1)).unwrap();
        tokenize(&queue, 1);
        assert_eq!(ids(&queue.next_batch(0).unwrap()), [0]);
    }

    #[test]
    fn tokens_keep_their_place_among_texts() {
        let queue = queue(LIMITS);
        let tokens =
            |id| Encoding { input_ids: vec![id], token_type_ids: vec![0], truncated: false };
        let mut inputs = vec![Input::Tokens(tokens(7), Duration::ZERO)];
        inputs.extend(texts(1));
        inputs.push(Input::Tokens(tokens(8), Duration::ZERO));
        let _tickets = queue.submit(inputs).unwrap();
        let engine = queue.clone();
        let batch = thread::spawn(move || ids(&engine.next_batch(0).unwrap()));
        tokenize(&queue, 1);
        assert_eq!(batch.join().unwrap(), [7, 1, 8], "the text, too, was waited for");
    }

    #[test]
    fn a_free_engine_waits_for_texts_that_are_being_tokenized() {
        let queue = queue(LIMITS);
        let _tickets = queue.submit(texts(3)).unwrap();
        tokenize(&queue, 1);
        let (sender, batches) = mpsc::channel();
        let engine = queue.clone();
        thread::spawn(move || sender.send(ids(&engine.next_batch(0).unwrap())).unwrap());
        tokenize(&queue, 1);
        assert!(batches.recv_timeout(Duration::from_millis(50)).is_err(), "one is still missing");
        tokenize(&queue, 1);
        assert_eq!(batches.recv_timeout(Duration::from_secs(30)).unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_free_engine_waits_no_longer_than_it_may() {
        for max_queue_wait in [Duration::ZERO, Duration::from_millis(20)] {
            let queue = queue(BatchLimits { max_queue_wait, ..LIMITS });
            let _tickets = queue.submit(texts(2)).unwrap();
            tokenize(&queue, 1);
            let started = Instant::now();
            assert_eq!(ids(&queue.next_batch(0).unwrap()), [0]);
            assert!(started.elapsed() >= max_queue_wait / 2);
        }
    }

    #[test]
    fn a_full_batch_waits_for_nobody() {
        let queue = queue(LIMITS);
        let _tickets = queue.submit(texts(5)).unwrap();
        (0..4).for_each(|_| tokenize(&queue, 1));
        assert_eq!(ids(&queue.next_batch(0).unwrap()), [0, 1, 2, 3]);
        let _tickets = queue.submit(texts(2)).unwrap();
        tokenize(&queue, 16);
        assert_eq!(ids(&queue.next_batch(0).unwrap()), [4]);
    }

    #[test]
    fn beside_another_engine_a_batch_waits_until_that_is_done_or_it_is_full() {
        for is_filled in [false, true] {
            let queue = Arc::new(Queue::new(LIMITS, 1, 2));
            let mut tickets = queue.submit(texts(1)).unwrap();
            tokenize(&queue, 1);
            assert_eq!(ids(&queue.next_batch(0).unwrap()), [0]);
            let (sender, batches) = mpsc::channel();
            let engine = queue.clone();
            thread::spawn(move || sender.send(ids(&engine.next_batch(1).unwrap())).unwrap());
            tickets.extend(queue.submit(texts(1)).unwrap());
            tokenize(&queue, 1);
            assert!(batches.recv_timeout(Duration::from_millis(50)).is_err(), "more may come");
            if is_filled {
                tickets.extend(queue.submit(texts(3)).unwrap());
                (0..3).for_each(|_| tokenize(&queue, 1));
            } else {
                queue.ran(0);
            }
            let expected: &[u32] = if is_filled { &[1, 2, 3, 4] } else { &[1] };
            assert_eq!(batches.recv_timeout(Duration::from_secs(30)).unwrap(), expected);
        }
    }

    #[test]
    fn a_closed_queue_ends_all_engines() {
        let queue = Arc::new(Queue::new(LIMITS, 1, 2));
        let _tickets = queue.submit(texts(1)).unwrap();
        let (first, second) = (queue.clone(), queue.clone());
        let ends = [
            thread::spawn(move || iter::from_fn(|| first.next_batch(0)).count()),
            thread::spawn(move || iter::from_fn(|| second.next_batch(1)).count()),
        ];
        queue.close();
        tokenize(&queue, 1);
        assert_eq!(ends.map(|engine| engine.join().unwrap()).iter().sum::<usize>(), 1);
    }

    #[test]
    fn a_text_that_fails_is_waited_for_no_longer() {
        let queue = queue(LIMITS);
        let _tickets = queue.submit(texts(2)).unwrap();
        tokenize(&queue, 1);
        let failed = queue.next_text().unwrap();
        let engine = queue.clone();
        let batch = thread::spawn(move || ids(&engine.next_batch(0).unwrap()));
        queue.tokenized(failed, Err(PipelineError::Stopped));
        assert_eq!(batch.join().unwrap(), [0]);
    }

    #[test]
    fn a_closed_queue_ends_its_threads_when_nothing_waits() {
        let queue = queue(LIMITS);
        let tickets = queue.submit(texts(2)).unwrap();
        tokenize(&queue, 1);
        let engine = queue.clone();
        queue.close();
        tokenize(&queue, 1);
        assert!(queue.next_text().is_none());
        assert_eq!(queue.next_batch(0).unwrap().len(), 2);
        let ends = thread::spawn(move || engine.next_batch(0).is_none());
        drop(tickets);
        assert!(ends.join().unwrap());
    }
}
