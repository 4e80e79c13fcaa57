//! Ranged reads in parallel, each tried again from where it broke.

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::Sender,
    },
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    WeightsError,
    store::{Stat, Store, StoreError},
};

/// Streams at the same time.
const PARALLEL_READS: usize = 8;

/// Bytes that a stream asks for at a time: small enough that what comes first is there first.
const CHUNK_BYTES: u64 = 2 << 20;

/// Attempts in a row that bring next to nothing before a file is given up.
pub(crate) const MAX_FAILURES: u32 = 5;

/// Pause behind the first failure; each further one doubles it. Callers wait between half of it
/// and all of it, so that they do not come back together.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The least that must come within [`PATIENCE`].
const LEAST_BYTES: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `future` on the threads that transfers have to themselves. Not for async code.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, WeightsError> {
    Ok(runtime()?.block_on(future))
}

/// The threads of transfers; started by the first.
pub(crate) fn runtime() -> Result<&'static Runtime, WeightsError> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let started = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("transfer")
        .enable_all()
        .build()
        .map_err(|source| WeightsError::Transfer {
            address: "anything".to_owned(),
            source: source.into(),
        })?;
    Ok(RUNTIME.get_or_init(|| started))
}

/// Size and tag of a file.
pub(crate) async fn stat(store: &dyn Store, name: &str) -> Result<Stat, WeightsError> {
    again(store, name, || async { Pace::new().keep(store.stat(name)).await? }).await
}

/// Reads a file of at most `limit` bytes.
pub(crate) async fn read(
    store: &dyn Store,
    name: &str,
    limit: u64,
) -> Result<(Vec<u8>, Stat), WeightsError> {
    again(store, name, || read_once(store, name, limit)).await
}

/// Tries until it works, or will not.
pub(crate) async fn again<T, F: Future<Output = Result<T, StoreError>>>(
    store: &dyn Store,
    name: &str,
    attempt: impl Fn() -> F,
) -> Result<T, WeightsError> {
    let mut failures = 0;
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        failures += 1;
        if !matches!(error, StoreError::Interrupted(_)) || failures == MAX_FAILURES {
            return Err(error.at(store.address(name)));
        }
        pause(failures).await;
    }
}

async fn read_once(
    store: &dyn Store,
    name: &str,
    limit: u64,
) -> Result<(Vec<u8>, Stat), StoreError> {
    let mut pace = Pace::new();
    let mut reading = pace.keep(store.read(name, None, None)).await??;
    let stat = reading.stat;
    if stat.len > limit {
        let message = format!("it has {} bytes; {limit} at most are read", stat.len);
        return Err(StoreError::Refused(message.into()));
    }
    let mut content = Vec::with_capacity(stat.len as usize);
    while let Some(piece) = pace.keep(reading.body.next()).await? {
        let piece = piece?;
        pace.count(piece.len() as u64);
        content.extend_from_slice(&piece);
        if content.len() as u64 > stat.len {
            break;
        }
    }
    if content.len() as u64 != stat.len {
        return Err(StoreError::Interrupted("it ended early".into()));
    }
    Ok((content, stat))
}

/// A file that is copied into a local one.
#[derive(Debug)]
pub(crate) struct Download {
    store: Arc<dyn Store>,
    name: String,
    /// In bytes; a file of another size is another file.
    len: u64,
    /// So is one with another tag.
    tag: OnceLock<String>,
    file: Arc<File>,
    /// For messages.
    path: PathBuf,
}

impl Download {
    /// A copy of `name` in `store`, which is as `stat` says, to `file`, which lies at `path` and
    /// has its size already.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        name: String,
        stat: Stat,
        file: Arc<File>,
        path: PathBuf,
    ) -> Self {
        let Stat { len, tag } = stat;
        Self { store, name, len, tag: tag.map_or_else(OnceLock::new, OnceLock::from), file, path }
    }

    /// Reads `missing` and says by `arrived` which bytes are in their place, in any order.
    pub(crate) async fn run(
        self: Arc<Self>,
        missing: Vec<Range<u64>>,
        arrived: Sender<Range<u64>>,
    ) -> Result<(), WeightsError> {
        let chunks: Arc<Vec<Range<u64>>> = Arc::new(missing.into_iter().flat_map(chunks).collect());
        let next = Arc::new(AtomicUsize::new(0));
        let mut readers = JoinSet::new();
        for _ in 0..PARALLEL_READS.min(chunks.len()) {
            let (this, chunks, next) = (self.clone(), chunks.clone(), next.clone());
            let arrived = arrived.clone();
            readers.spawn(async move {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(chunk) = chunks.get(index) else { return Ok(()) };
                    this.chunk(chunk.clone(), index == 0, &arrived).await?;
                }
            });
        }
        while let Some(outcome) = readers.join_next().await {
            let outcome = outcome.unwrap_or_else(|panic| {
                let source = panic.into();
                Err(WeightsError::Transfer { address: self.store.address(&self.name), source })
            });
            // The others are dropped with `readers`.
            outcome?;
        }
        Ok(())
    }

    async fn chunk(
        &self,
        chunk: Range<u64>,
        is_first: bool,
        arrived: &Sender<Range<u64>>,
    ) -> Result<(), WeightsError> {
        let mut rest = chunk;
        let mut failures = 0;
        while !rest.is_empty() {
            let begun = rest.start;
            let Err(error) = self.attempt(&mut rest, is_first, arrived).await else { continue };
            if !matches!(error, Failure::Store(StoreError::Interrupted(_))) {
                return Err(self.error(error));
            }
            failures = if rest.start - begun >= LEAST_BYTES { 1 } else { failures + 1 };
            if failures == MAX_FAILURES {
                return Err(self.error(error));
            }
            tracing::debug!(file = self.name, at = rest.start, failures, "range is read again");
            pause(failures).await;
        }
        Ok(())
    }

    /// Reads from the start of `rest`, which shrinks by what came.
    async fn attempt(
        &self,
        rest: &mut Range<u64>,
        is_first: bool,
        arrived: &Sender<Range<u64>>,
    ) -> Result<(), Failure> {
        let mut pace = Pace::new();
        let tag = self.tag.get().map(String::as_str);
        let reading = self.store.read(&self.name, Some(rest.clone()), tag);
        let mut reading = pace.keep(reading).await??;
        // The first answer says which file it is. Not every server heeds If-Match.
        let is_other =
            reading.stat.tag.is_some_and(|tag| *self.tag.get_or_init(|| tag.clone()) != tag);
        if is_other || reading.stat.len != self.len {
            return Err(StoreError::Replaced.into());
        }
        let mut at = rest.start;
        if !reading.is_range {
            // The server knows no ranges: one stream brings the whole file.
            if !is_first {
                *rest = rest.end..rest.end;
                return Ok(());
            }
            at = 0;
            rest.end = self.len;
        }
        while let Some(piece) = pace.keep(reading.body.next()).await? {
            let piece = piece?;
            pace.count(piece.len() as u64);
            let end = (at + piece.len() as u64).min(rest.end);
            if end > rest.start {
                let skipped = (rest.start - at) as usize;
                let wanted = &piece[skipped..(end - at) as usize];
                self.file.write_all_at(wanted, rest.start).map_err(Failure::Write)?;
                let _ = arrived.send(rest.start..end);
                rest.start = end;
            }
            at += piece.len() as u64;
            if rest.is_empty() {
                return Ok(());
            }
        }
        Err(StoreError::Interrupted("the answer ended early".into()).into())
    }

    fn error(&self, failure: Failure) -> WeightsError {
        match failure {
            Failure::Store(error) => error.at(self.store.address(&self.name)),
            Failure::Write(source) => WeightsError::Write { path: self.path.clone(), source },
        }
    }
}

#[derive(Debug)]
enum Failure {
    Store(StoreError),
    Write(std::io::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let starts = range.clone().step_by(CHUNK_BYTES as usize);
    starts.map(move |start| start..range.end.min(start + CHUNK_BYTES))
}

/// Waits longer after each of `failures`, which is 1 or more.
pub(crate) async fn pause(failures: u32) {
    let longest = FIRST_PAUSE * 2_u32.pow(failures - 1);
    sleep(longest.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
}

/// Sees to it that a stream brings [`LEAST_BYTES`] every [`PATIENCE`].
struct Pace {
    deadline: Instant,
    bytes: u64,
}

impl Pace {
    fn new() -> Self {
        Self { deadline: Instant::now() + PATIENCE, bytes: 0 }
    }

    fn count(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= LEAST_BYTES {
            *self = Self::new();
        }
    }

    async fn keep<T>(&self, next: impl Future<Output = T>) -> Result<T, StoreError> {
        let outcome = timeout_at(self.deadline, next).await;
        outcome.map_err(|_| StoreError::Interrupted("too slow: less than 64 KiB in 10 s".into()))
    }
}
