use std::{
    error::Error,
    fs::File,
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError},
};

use encoder::Source;
use memmap2::Mmap;

use crate::{WeightsError, cache::Entry};

/// The weights of a model in memory: mapped, so that pages are shared with other processes and read
/// when they are touched. They may still be arriving, first tensor first.
#[derive(Debug, Clone)]
pub struct Weights {
    mapping: Arc<Mmap>,
    arrival: Arc<Arrival>,
}

/// How far weights have arrived.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Bytes from the start that are there and have the right digests.
    arrived: Mutex<usize>,
    /// What ended it early.
    failure: OnceLock<Arc<WeightsError>>,
    /// All are there; looked at before the lock is taken.
    whole: OnceLock<()>,
    progress: Condvar,
    /// What keeps the file in the cache.
    entry: OnceLock<Entry>,
}

impl Weights {
    /// Maps the file at `path`, all of which is there.
    ///
    /// # Errors
    ///
    /// What the system says of the file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let weights = Self::arriving(&File::open(path)?)?;
        weights.arrival.complete();
        Ok(weights)
    }

    /// Maps `file`, which has its full size, but not yet its content.
    #[expect(unsafe_code, reason = "a mapping is as good as the file stays; see below")]
    pub(crate) fn arriving(file: &File) -> io::Result<Self> {
        // SAFETY: files of a cache or bundle are never cut short, and replaced by renaming only.
        // Bytes that are still arriving are written once, by `download`; nobody reads them before
        // `wait` has said that they are there.
        let mapping = unsafe { Mmap::map(file) }?;
        Ok(Self { mapping: Arc::new(mapping), arrival: Arc::default() })
    }

    pub(crate) fn arrival(&self) -> &Arc<Arrival> {
        &self.arrival
    }

    /// Waits until the first `end` bytes are there.
    ///
    /// The wait is bounded: what does not arrive in time is a failure of the transfer.
    ///
    /// # Errors
    ///
    /// Why they never will be.
    pub fn wait(&self, end: usize) -> Result<(), Arc<WeightsError>> {
        if self.arrival.whole.get().is_some() {
            return Ok(());
        }
        self.arrival.wait(end)
    }

    /// Whether all bytes are there.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.arrival.whole.get().is_some()
    }
}

/// All bytes; read only those that [`Weights::wait`] has waited for.
impl Source for Weights {
    fn wait(&self, end: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        Self::wait(self, end).map_err(Into::into)
    }
}

impl AsRef<[u8]> for Weights {
    fn as_ref(&self) -> &[u8] {
        &self.mapping
    }
}

impl Default for Arrival {
    fn default() -> Self {
        Self {
            arrived: Mutex::new(0),
            failure: OnceLock::new(),
            whole: OnceLock::new(),
            progress: Condvar::new(),
            entry: OnceLock::new(),
        }
    }
}

impl Arrival {
    /// Says that the first `end` bytes are there.
    pub(crate) fn reach(&self, end: usize) {
        *self.arrived.lock().unwrap_or_else(PoisonError::into_inner) = end;
        self.progress.notify_all();
    }

    pub(crate) fn complete(&self) {
        let _ = self.whole.set(());
        self.reach(usize::MAX);
    }

    /// Says that no more will come. Only the first reason counts.
    pub(crate) fn fail(&self, error: WeightsError) {
        let _ = self.failure.set(Arc::new(error));
        // Taken so that nobody is between looking and sleeping.
        drop(self.arrived.lock().unwrap_or_else(PoisonError::into_inner));
        self.progress.notify_all();
    }

    /// Keeps `entry` of the cache as long as the weights are used.
    pub(crate) fn keep(&self, entry: Option<Entry>) {
        if let Some(entry) = entry {
            let _ = self.entry.set(entry);
        }
    }

    fn wait(&self, end: usize) -> Result<(), Arc<WeightsError>> {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        while *arrived < end {
            if let Some(error) = self.failure.get() {
                return Err(error.clone());
            }
            arrived = self.progress.wait(arrived).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}
