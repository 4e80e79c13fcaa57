use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use engine::{Batch, Engine, EngineError, Output};
use tokio::sync::{mpsc, oneshot};

use crate::PipelineError;

/// How much runs at once, and how much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most tokens in one forward pass. A longer sequence runs by itself.
    pub max_batch_tokens: usize,
    /// Most sequences in one forward pass.
    pub max_batch_requests: usize,
    /// Most sequences that wait for a forward pass.
    pub max_queue_requests: usize,
}

/// A bounded queue before an engine that runs on a thread of its own.
///
/// While the engine is busy, sequences gather; when it is free it takes what is there, in order,
/// up to the limits. The thread ends when the last clone is dropped and the queue is empty.
#[derive(Debug, Clone)]
pub(crate) struct Batcher {
    queue: mpsc::Sender<Job>,
}

/// A place in the queue.
#[derive(Debug)]
pub(crate) struct Place(mpsc::OwnedPermit<Job>);

#[derive(Debug)]
struct Job {
    input_ids: Vec<u32>,
    reply: oneshot::Sender<Result<Vec<f32>, PipelineError>>,
}

impl Batcher {
    pub(crate) fn start(engine: impl Engine, limits: BatchLimits) -> std::io::Result<Self> {
        let (queue, jobs) = mpsc::channel(limits.max_queue_requests);
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || serve(engine, jobs, limits))?;
        Ok(Self { queue })
    }

    /// Takes a place in the queue, without waiting.
    pub(crate) fn reserve(&self) -> Result<Place, PipelineError> {
        use mpsc::error::TrySendError;
        match self.queue.clone().try_reserve_owned() {
            Ok(permit) => Ok(Place(permit)),
            Err(TrySendError::Full(queue)) => {
                Err(PipelineError::QueueFull { max_queue_requests: queue.max_capacity() })
            }
            Err(TrySendError::Closed(_)) => Err(PipelineError::Stopped),
        }
    }
}

impl Place {
    /// Queues `input_ids`; the future gives the engine's row for them. Dropping it gives the place
    /// up.
    pub(crate) fn forward(
        self,
        input_ids: Vec<u32>,
    ) -> impl Future<Output = Result<Vec<f32>, PipelineError>> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Job { input_ids, reply });
        async { answer.await.unwrap_or(Err(PipelineError::Stopped)) }
    }
}

/// Runs batches until the queue is closed and empty.
fn serve(mut engine: impl Engine, mut queue: mpsc::Receiver<Job>, limits: BatchLimits) {
    let mut left_over = None;
    while let Some(first) = left_over.take().or_else(|| queue.blocking_recv()) {
        let (jobs, next) = gather(first, &mut queue, limits);
        left_over = next;
        run(&mut engine, jobs);
    }
}

/// `first` and what waits behind it, up to the limits; and the job that no longer fitted.
fn gather(
    first: Job,
    queue: &mut mpsc::Receiver<Job>,
    limits: BatchLimits,
) -> (Vec<Job>, Option<Job>) {
    let mut num_tokens = first.input_ids.len();
    let mut jobs = vec![first];
    while jobs.len() < limits.max_batch_requests {
        let Ok(job) = queue.try_recv() else { break };
        num_tokens += job.input_ids.len();
        if num_tokens > limits.max_batch_tokens {
            return (jobs, Some(job));
        }
        jobs.push(job);
    }
    (jobs, None)
}

/// One forward pass for those who still wait.
fn run(engine: &mut impl Engine, mut jobs: Vec<Job>) {
    jobs.retain(|job| !job.reply.is_closed());
    if jobs.is_empty() {
        return;
    }
    let mut batch = Batch::new();
    for job in &jobs {
        batch.push(&job.input_ids);
    }
    match forward(engine, &batch) {
        Ok(output) => {
            for (index, job) in jobs.into_iter().enumerate() {
                // A caller that left meanwhile misses nothing.
                let _ = job.reply.send(Ok(output.row(index).to_vec()));
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            for job in jobs {
                let _ = job.reply.send(Err(PipelineError::Engine(error.clone())));
            }
        }
    }
}

/// [`Engine::forward`], with a panic and a wrong number of rows as errors.
fn forward(engine: &mut impl Engine, batch: &Batch) -> Result<Output, EngineError> {
    let panicked = |_| EngineError::Backend { engine: "any", source: "it panicked".into() };
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;

    use super::*;

    const LIMITS: BatchLimits =
        BatchLimits { max_batch_tokens: 8, max_batch_requests: 3, max_queue_requests: 6 };

    /// Gives each sequence its sum; says what it was given, and waits for leave to go on.
    struct Gated {
        seen: std_mpsc::Sender<Vec<Vec<u32>>>,
        leave: std_mpsc::Receiver<()>,
    }

    impl Engine for Gated {
        fn forward(&mut self, batch: &Batch) -> Result<Output, EngineError> {
            let sequences = (0..batch.batch_size()).map(|index| batch.sequence(index).to_vec());
            self.seen.send(sequences.collect()).unwrap();
            self.leave.recv().unwrap();
            assert!(!batch.input_ids().contains(&13), "unlucky");
            let sums = (0..batch.batch_size())
                .map(|index| batch.sequence(index).iter().sum::<u32>() as f32);
            Output::new(sums.collect(), batch.batch_size())
        }
    }

    struct Rig {
        batcher: Batcher,
        seen: std_mpsc::Receiver<Vec<Vec<u32>>>,
        leave: std_mpsc::Sender<()>,
    }

    fn rig(limits: BatchLimits) -> Rig {
        let (saw, seen) = std_mpsc::channel();
        let (leave, may_leave) = std_mpsc::channel();
        let engine = Gated { seen: saw, leave: may_leave };
        Rig { batcher: Batcher::start(engine, limits).unwrap(), seen, leave }
    }

    impl Rig {
        fn submit(
            &self,
            input_ids: &[u32],
        ) -> impl Future<Output = Result<Vec<f32>, PipelineError>> {
            self.batcher.reserve().unwrap().forward(input_ids.to_vec())
        }

        /// The next batch the engine was given; it runs on.
        fn pass(&self) -> Vec<Vec<u32>> {
            let batch = self.seen.recv().unwrap();
            self.leave.send(()).unwrap();
            batch
        }
    }

    #[tokio::test]
    async fn what_gathers_runs_together_in_order_within_the_limits() {
        let rig = rig(LIMITS);
        let first = rig.submit(&[1]);
        // The engine now holds the first, so these gather: 2 + 3 tokens fit, 4 more do not.
        let batch = rig.seen.recv().unwrap();
        assert_eq!(batch, [[1]]);
        let mut answers = vec![first];
        for ids in [&[2, 2][..], &[3, 3, 3], &[4, 4, 4, 4], &[5], &[6], &[7]] {
            answers.push(rig.submit(ids));
        }
        rig.leave.send(()).unwrap();
        assert_eq!(rig.pass(), [vec![2, 2], vec![3, 3, 3]]);
        assert_eq!(rig.pass(), [vec![4, 4, 4, 4], vec![5], vec![6]]);
        assert_eq!(rig.pass(), [[7]]);
        let mut sums = Vec::new();
        for answer in answers {
            sums.extend(answer.await.unwrap());
        }
        assert_eq!(sums, [1.0, 4.0, 9.0, 16.0, 5.0, 6.0, 7.0]);
    }

    #[tokio::test]
    async fn a_sequence_over_the_budget_runs_by_itself() {
        let rig = rig(LIMITS);
        let answer = rig.submit(&[1; 20]);
        assert_eq!(rig.pass(), [[1; 20]]);
        assert_eq!(answer.await.unwrap(), [20.0]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_with_its_limit() {
        let rig = rig(BatchLimits { max_queue_requests: 1, ..LIMITS });
        let place = rig.batcher.reserve().unwrap();
        let message = rig.batcher.reserve().unwrap_err().to_string();
        assert_eq!(message, "1 requests wait already");
        drop(place);
        rig.batcher.reserve().unwrap();
    }

    #[tokio::test]
    async fn callers_that_left_cost_no_forward_pass() {
        let rig = rig(LIMITS);
        let first = rig.submit(&[1]);
        rig.seen.recv().unwrap();
        let left = rig.submit(&[2]);
        drop(left);
        let stayed = rig.submit(&[3]);
        rig.leave.send(()).unwrap();
        assert_eq!(rig.pass(), [[3]]);
        assert_eq!(first.await.unwrap(), [1.0]);
        assert_eq!(stayed.await.unwrap(), [3.0]);
    }

    #[tokio::test]
    async fn an_engine_that_panics_fails_the_batch_and_goes_on() {
        let rig = rig(LIMITS);
        let unlucky = rig.submit(&[13]);
        rig.pass();
        let error = unlucky.await.unwrap_err();
        assert_eq!(error.to_string(), "engine failed");
        let next = rig.submit(&[1]);
        rig.pass();
        assert_eq!(next.await.unwrap(), [1.0]);
    }
}
