//! How threads share the work of one pass: stage after stage, chunk by chunk.

use std::{
    hint,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// Looks that a thread takes at a stage before it goes to sleep: some 20 µs.
const SPINS: usize = 1_000;

/// Stages that any number of threads walk through together.
///
/// A stage ends when all its chunks are *done*, not when all threads have come: one that the
/// system has taken off the CPU holds up the others only if it has a chunk in hand.
#[derive(Debug)]
pub(crate) struct Stages {
    stages: Vec<Stage>,
    ended: AtomicBool,
    failed: AtomicBool,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Stage {
    next: AtomicUsize,
    done: AtomicUsize,
}

impl Stages {
    pub(crate) fn new(num_stages: usize) -> Self {
        Self {
            stages: (0..num_stages).map(|_| Stage::default()).collect(),
            ended: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Runs chunks of stage `index` that no other thread has taken, and returns when all
    /// `num_chunks` are done. Each chunk runs once, in one thread; whatever was done in a stage
    /// before is visible to it.
    ///
    /// A chunk that panics counts as done too, so that nobody waits for it;
    /// [`Stages::failed`] says so afterwards.
    pub(crate) fn run(&self, index: usize, num_chunks: usize, mut chunk: impl FnMut(usize)) {
        let stage = &self.stages[index];
        loop {
            let next = stage.next.fetch_add(1, Ordering::Relaxed);
            if next >= num_chunks {
                break;
            }
            let _done = Done { stages: self, stage, num_chunks };
            chunk(next);
        }
        self.wait(stage, num_chunks);
    }

    /// Says that a thread has walked through all stages.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether a thread has, so that nothing is written any more.
    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Says that what comes out is not to be used.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Whether a thread said so, or panicked in a chunk.
    pub(crate) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn wait(&self, stage: &Stage, num_chunks: usize) {
        let ended = || stage.done.load(Ordering::SeqCst) == num_chunks;
        for _ in 0..SPINS {
            if ended() {
                return;
            }
            hint::spin_loop();
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !ended() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts a chunk as done when it goes out of scope, also by a panic.
struct Done<'a> {
    stages: &'a Stages,
    stage: &'a Stage,
    num_chunks: usize,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.stages.fail();
        }
        let done = self.stage.done.fetch_add(1, Ordering::SeqCst) + 1;
        if done == self.num_chunks && self.stages.sleepers.load(Ordering::SeqCst) > 0 {
            // Taken so that nobody is between looking and sleeping.
            drop(self.stages.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.stages.wake.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        time::Duration,
    };

    use super::*;

    #[test]
    fn each_chunk_runs_once_and_sees_the_stage_before() {
        let num_chunks = 23;
        let stages = Stages::new(50);
        let counts: Vec<AtomicUsize> = (0..num_chunks).map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            for late in 0..4 {
                let (stages, counts) = (&stages, &counts);
                scope.spawn(move || {
                    // Threads that come late find the work half done, or done.
                    thread::sleep(Duration::from_micros(100 * late));
                    for index in 0..50 {
                        stages.run(index, num_chunks, |chunk| {
                            let neighbour = &counts[(chunk + 1) % num_chunks];
                            assert!(neighbour.load(Ordering::Relaxed) >= index);
                            counts[chunk].fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 50));
        assert!(!stages.failed());
    }

    #[test]
    fn a_thread_that_sleeps_is_woken_by_the_last_chunk() {
        let stages = Stages::new(1);
        thread::scope(|scope| {
            scope.spawn(|| stages.run(0, 1, |_| thread::sleep(Duration::from_millis(50))));
            thread::sleep(Duration::from_millis(10));
            stages.run(0, 1, |_| unreachable!("the other thread has it"));
            assert_eq!(stages.sleepers.load(Ordering::SeqCst), 0);
        });
    }

    #[test]
    fn a_chunk_that_panics_leaves_nobody_waiting() {
        let stages = Stages::new(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let panicked = catch_unwind(AssertUnwindSafe(|| {
                    stages.run(0, 2, |_| panic!("a broken kernel"));
                }));
                assert!(panicked.is_err());
            });
            while stages.stages[0].next.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            stages.run(0, 2, |_| {});
        });
        assert!(stages.failed());
    }
}
