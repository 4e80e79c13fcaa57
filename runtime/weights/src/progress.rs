use std::sync::atomic::{AtomicU64, Ordering};

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is done: `checking`, `sending` or `fetching`.
    pub stage: &'static str,
    /// Bytes for which it is done.
    pub done_bytes: u64,
    /// Bytes for which it will be.
    pub total_bytes: u64,
}

/// Is told how far a transfer is, by several threads.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Counts the bytes of one stage.
pub(crate) struct Meter<'a> {
    stage: &'static str,
    done_bytes: AtomicU64,
    total_bytes: u64,
    on_progress: OnProgress<'a>,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(stage: &'static str, total_bytes: u64, on_progress: OnProgress<'a>) -> Self {
        let meter = Self { stage, done_bytes: AtomicU64::new(0), total_bytes, on_progress };
        meter.set(0);
        meter
    }

    pub(crate) fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.tell(self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes);
    }

    pub(crate) fn set(&self, done_bytes: u64) {
        self.done_bytes.store(done_bytes, Ordering::Relaxed);
        self.tell(done_bytes);
    }

    fn tell(&self, done_bytes: u64) {
        let Self { stage, total_bytes, .. } = *self;
        (self.on_progress)(Progress { stage, done_bytes, total_bytes });
    }
}
