use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Batches that are remembered.
const NUM_BATCHES: usize = 32;

/// What a pipeline does just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// Texts that wait for a forward pass.
    pub num_waiting: usize,
    /// Texts that may wait.
    pub max_queue_requests: usize,
    /// The newest batches that have run, newest first.
    pub batches: Vec<BatchRun>,
}

/// A forward pass that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRun {
    /// Counts all batches of the process, from 1.
    pub number: u64,
    /// Texts in it.
    pub num_texts: usize,
    /// Tokens in it.
    pub num_tokens: usize,
    /// How long it took.
    pub forward: Duration,
    /// When it ended.
    pub ended: Instant,
}

/// The batches of a process.
#[derive(Debug, Default)]
pub(crate) struct Batches(Mutex<VecDeque<BatchRun>>);

impl Batches {
    /// Notes a batch that has just ended.
    pub(crate) fn ran(&self, num_texts: usize, num_tokens: usize, forward: Duration) {
        let mut batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = 1 + batches.front().map_or(0, |newest| newest.number);
        batches.truncate(NUM_BATCHES - 1);
        let ended = Instant::now();
        batches.push_front(BatchRun { number, num_texts, num_tokens, forward, ended });
    }

    /// Newest first.
    pub(crate) fn newest(&self) -> Vec<BatchRun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_batches_are_remembered() {
        let batches = Batches::default();
        (1..=100).for_each(|num_texts| batches.ran(num_texts, 0, Duration::ZERO));
        let newest = batches.newest();
        assert_eq!(newest.len(), NUM_BATCHES);
        assert_eq!((newest[0].number, newest[0].num_texts), (100, 100));
        assert_eq!(newest[NUM_BATCHES - 1].number, 100 - 31);
    }
}
