//! Weights on their way: from a store into a file that is mapped already, each tensor checked
//! before anybody reads it.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io, iter,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

use encoder::Tensor;

use crate::{
    WeightsError,
    cache::Filling,
    digest, download,
    download::Download,
    manifest::WEIGHTS,
    map::Weights,
    store::{Stat, Store},
};

/// Where weights go: into the cache, or, if that takes nothing, into memory.
#[derive(Debug)]
pub(crate) struct Place {
    file: Arc<File>,
    path: PathBuf,
    /// Whether an earlier attempt has left something in it.
    is_begun: bool,
}

impl Place {
    /// A file of `bytes` in `folder`; what an earlier attempt has left in it stays.
    pub(crate) fn in_folder(folder: &Path, bytes: u64) -> io::Result<Self> {
        Self::at(folder.join(WEIGHTS), bytes)
    }

    /// The file of `bytes` at `path`.
    pub(crate) fn at(path: PathBuf, bytes: u64) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let is_begun = file.metadata()?.len() == bytes;
        if !is_begun {
            file.set_len(0)?;
        }
        // Takes the space now: a full disk would otherwise show up in the middle.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes.max(1))
            .or_else(|error| match error {
                rustix::io::Errno::OPNOTSUPP => Ok(()),
                error => Err(error),
            })?;
        file.set_len(bytes)?;
        Ok(Self { file: Arc::new(file), path, is_begun })
    }

    /// Memory of this process.
    pub(crate) fn in_memory(bytes: u64) -> io::Result<Self> {
        let file = rustix::fs::memfd_create(WEIGHTS, rustix::fs::MemfdFlags::CLOEXEC)?;
        let file = File::from(file);
        file.set_len(bytes)?;
        Ok(Self { file: Arc::new(file), path: WEIGHTS.into(), is_begun: false })
    }

    /// Starts to read the weights of `manifest`, which are `name` of `store`, to this place.
    /// Tensors that are there already are kept.
    pub(crate) fn begin(
        self,
        store: Arc<dyn Store>,
        name: String,
        stat: Stat,
        tensors: &[Tensor],
    ) -> Result<Arriving, WeightsError> {
        let Self { file, path, is_begun } = self;
        let failed = |source| WeightsError::Write { path: path.clone(), source };
        let bytes = stat.len;
        let weights = Weights::arriving(&file).map_err(failed)?;
        let missing = if is_begun {
            missing(&weights, tensors, bytes)
        } else {
            iter::once(0..bytes).collect()
        };
        let (arrived, arrivals) = mpsc::channel();
        for range in complement(&missing, bytes) {
            let _ = arrived.send(range);
        }
        let address = store.address(&name);
        let download = Arc::new(Download::new(store, name, stat, file.clone(), path));
        let download = Task(download::runtime()?.spawn(download.run(missing, arrived)));
        let covered = Covered::default();
        Ok(Arriving { weights, file, arrivals, covered, download, address })
    }
}

/// Weights that are being read.
#[derive(Debug)]
pub(crate) struct Arriving {
    pub(crate) weights: Weights,
    file: Arc<File>,
    arrivals: mpsc::Receiver<Range<u64>>,
    covered: Covered,
    download: Task,
    address: String,
}

/// A download that ends when nobody waits for it any more.
#[derive(Debug)]
struct Task(tokio::task::JoinHandle<Result<(), WeightsError>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Arriving {
    /// Checks tensors as they arrive, on a thread of its own, and then makes the folder of
    /// `filling` an entry of the cache.
    pub(crate) fn check(
        self,
        tensors: Vec<Tensor>,
        filling: Option<Filling>,
    ) -> Result<(), WeightsError> {
        let stage = telemetry::stage("weights");
        let address = self.address.clone();
        let started = thread::Builder::new().name("weights".to_owned()).spawn(move || {
            let weights = self.weights.clone();
            let checked = self.check_tensors(&tensors);
            drop(stage);
            match checked {
                Ok(()) => {
                    weights.arrival().complete();
                    match filling.map(Filling::commit).transpose() {
                        Ok(entry) => weights.arrival().keep(entry),
                        Err(error) => {
                            tracing::warn!(exception = %error, "the model is not kept in the cache")
                        }
                    }
                }
                Err(error) => {
                    if let (WeightsError::Damaged { .. }, Some(filling)) = (&error, filling) {
                        filling.abandon();
                    }
                    weights.arrival().fail(error);
                }
            }
        });
        let failed = |source: io::Error| WeightsError::Transfer { address, source: source.into() };
        started.map(drop).map_err(failed)
    }

    fn check_tensors(mut self, tensors: &[Tensor]) -> Result<(), WeightsError> {
        for tensor in tensors {
            let end = tensor.offset + tensor.length;
            self.wait(end as u64, &|_| ())?;
            check(&self.weights, tensor)?;
            self.weights.arrival().reach(end);
        }
        Ok(())
    }

    /// Waits until the first `end` bytes are there; tells `on_bytes` how many came meanwhile.
    pub(crate) fn wait(&mut self, end: u64, on_bytes: &dyn Fn(u64)) -> Result<(), WeightsError> {
        while self.covered.prefix() < end {
            match self.arrivals.recv() {
                Ok(range) => {
                    on_bytes(range.end - range.start);
                    self.covered.add(range);
                }
                // The download has ended, and not well.
                Err(_) => return Err(self.failure()),
            }
        }
        Ok(())
    }

    /// Gives back the memory of `tensor`, whose bytes are zeros from then on.
    pub(crate) fn forget(&self, tensor: &Tensor) {
        let (offset, length) = (tensor.offset as u64, tensor.length as u64);
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        // Where that cannot be done, it takes more memory.
        let _ = rustix::fs::fallocate(&self.file, hole, offset, length);
    }

    fn failure(&mut self) -> WeightsError {
        let address = self.address.clone();
        match download::block_on(&mut self.download.0) {
            Ok(Ok(Err(error))) | Err(error) => error,
            Ok(Ok(Ok(()))) => {
                let source = "not all of it came".into();
                WeightsError::Transfer { address, source }
            }
            Ok(Err(panic)) => WeightsError::Transfer { address, source: panic.into() },
        }
    }
}

/// Checks `tensor`, which is there.
pub(crate) fn check(weights: &Weights, tensor: &Tensor) -> Result<(), WeightsError> {
    let bytes = &weights.as_ref()[tensor.offset..tensor.offset + tensor.length];
    digest::check(&format!("tensor {}", tensor.name), bytes, &tensor.sha256)
}

/// Ranges of the file that hold no tensor with its digest.
fn missing(weights: &Weights, tensors: &[Tensor], bytes: u64) -> Vec<Range<u64>> {
    let mut missing: Vec<Range<u64>> = Vec::new();
    let mut end = 0;
    for tensor in tensors {
        let tensor_end = (tensor.offset + tensor.length) as u64;
        if check(weights, tensor).is_err() {
            match missing.last_mut() {
                Some(last) if last.end == end => last.end = tensor_end,
                _ => missing.push(end..tensor_end),
            }
        }
        end = tensor_end;
    }
    if end < bytes {
        missing.push(end..bytes);
    }
    missing
}

fn complement(missing: &[Range<u64>], bytes: u64) -> Vec<Range<u64>> {
    let mut there = Vec::new();
    let mut end = 0;
    for range in missing {
        if range.start > end {
            there.push(end..range.start);
        }
        end = range.end;
    }
    if end < bytes {
        there.push(end..bytes);
    }
    there
}

/// Which bytes are there.
#[derive(Debug, Default)]
struct Covered {
    prefix: u64,
    /// Ranges behind the prefix: ends by starts.
    ahead: BTreeMap<u64, u64>,
}

impl Covered {
    fn add(&mut self, range: Range<u64>) {
        self.ahead.insert(range.start, range.end);
        while let Some(first) = self.ahead.first_entry().filter(|first| *first.key() <= self.prefix)
        {
            self.prefix = self.prefix.max(first.remove());
        }
    }

    fn prefix(&self) -> u64 {
        self.prefix
    }
}
