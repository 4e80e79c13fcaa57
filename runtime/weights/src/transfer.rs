//! Models on their way between folders and stores, for those who publish them.
//!
//! ```text
//! push      folder ──> <address>/<sha256>/…   the manifest last: a version is whole, or not there
//! promote   <address>/latest ──> <sha256>     rollback: the one before
//! pull      <address> ──> .folder.partial ──> folder
//! ```

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use crate::{
    Access, Moved, OnProgress, WeightsError, arrive,
    bundle::Export,
    download,
    manifest::{MANIFEST, MAX_MANIFEST_BYTES, WEIGHTS},
    progress::Meter,
    repository,
    store::{Expected, Store, StoreError},
    stored::{Source, StoredBundle},
};

/// What [`push`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The version, in hexadecimal.
    pub sha256: String,
    /// False if it was there already.
    pub is_new: bool,
}

/// Writes the bundle in `folder` to `uri`, under its digest. Its files are checked before, and
/// those that an earlier attempt has sent, or parts of them, are not sent again.
///
/// Not for async code: it waits, as all functions of this module do.
///
/// # Errors
///
/// [`WeightsError`], among others if `folder` holds no bundle, or `uri` is only read.
pub fn push(
    folder: &Path,
    uri: &str,
    access: &Access,
    on_progress: OnProgress<'_>,
) -> Result<Pushed, WeightsError> {
    let target = Source::writable(uri, access)?;
    let store = &*target.store;
    let source = Source::of_folder(folder);
    let bundle = StoredBundle::find(&source)?.ok_or_else(|| WeightsError::Missing {
        address: format!("{}: only packed models are pushed", source.store.address(MANIFEST)),
    })?;
    let sha256 = bundle.sha256.clone();
    target.check_pinned(&sha256)?;

    let manifest = format!("{sha256}/{MANIFEST}");
    match download::block_on(download::read(store, &manifest, MAX_MANIFEST_BYTES))? {
        Ok((json, _)) if json == bundle.json => return Ok(Pushed { sha256, is_new: false }),
        // Without permission to list, S3 denies what is not there.
        Ok(_) | Err(WeightsError::Missing { .. } | WeightsError::Denied { .. }) => {}
        Err(error) => return Err(error),
    }
    let meter = Meter::new("checking", bundle.manifest.weights_bytes, on_progress);
    bundle.verify(Some(folder), &meter)?;

    // The small ones first: whoever may not write is told at once.
    let names = bundle.small_files()?.into_iter().map(|(name, _)| name).chain([WEIGHTS]);
    let files = names.map(|name| Ok((name, bundle.len(name)?)));
    let files = files.collect::<Result<Vec<_>, WeightsError>>()?;
    let meter = Meter::new("sending", files.iter().map(|(_, len)| len).sum(), on_progress);
    download::block_on(async {
        for (name, len) in files {
            let local = folder.join(bundle.name(name));
            send(store, &format!("{sha256}/{name}"), &local, len, &meter).await?;
        }
        let json = || bundle.json.clone().into();
        download::again(store, &manifest, || store.write(&manifest, json(), Expected::Anything))
            .await
    })??;
    Ok(Pushed { sha256, is_new: true })
}

/// Writes the file `local`, of `len` bytes, as `name`, unless it is there: the digest in its name
/// says that it is the same.
async fn send(
    store: &dyn Store,
    name: &str,
    local: &Path,
    len: u64,
    meter: &Meter<'_>,
) -> Result<(), WeightsError> {
    let begun = meter.done_bytes();
    let (mut most, mut failures) = (0, 0);
    loop {
        if store.stat(name).await.is_ok_and(|stat| stat.len == len) {
            meter.set(begun + len);
            return Ok(());
        }
        meter.set(begun);
        let error = match store.upload(name, local.to_owned(), &|bytes| meter.add(bytes)).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let sent = meter.done_bytes() - begun;
        failures = if sent > most { 1 } else { failures + 1 };
        most = most.max(sent);
        match error {
            StoreError::Interrupted(_) if failures < download::MAX_FAILURES => {
                download::pause(failures).await;
            }
            StoreError::Missing => {
                let address = format!("bucket for {}", store.address(name));
                return Err(WeightsError::Missing { address });
            }
            error => return Err(error.at(store.address(name))),
        }
    }
}

/// Copies the model at `uri` into `folder`, which appears when all of it is there and checked, and
/// returns its version. Of a bundle, another attempt keeps the tensors that an earlier one brought.
///
/// # Errors
///
/// [`WeightsError`], among others if `folder` is there already.
pub fn pull(
    uri: &str,
    folder: &Path,
    access: &Access,
    on_progress: OnProgress<'_>,
) -> Result<String, WeightsError> {
    if folder.exists() {
        let source = io::ErrorKind::AlreadyExists.into();
        return Err(WeightsError::Write { path: folder.to_owned(), source });
    }
    let source = Source::open(uri, access)?;
    let found = match StoredBundle::find(&source)? {
        Some(bundle) => Ok(bundle),
        None => Err(download::block_on(Export::find(&*source.store))??),
    };
    let path = Partial::path(folder);
    let failed = |source| WeightsError::Write { path: path.clone(), source };
    let (partial, sha256) = match found {
        Ok(bundle) => {
            let partial = Partial::begin(&path, WEIGHTS).map_err(failed)?;
            pull_bundle(&bundle, &path, on_progress)?;
            (partial, bundle.sha256)
        }
        Err(export) => {
            let partial = Partial::begin(&path, "").map_err(failed)?;
            let meter = Meter::new("fetching", export.len(), on_progress);
            let place = |name: &str, bytes| {
                let path = path.join(name);
                path.parent().map_or(Ok(()), fs::create_dir_all)?;
                arrive::Place::at(path, bytes)
            };
            let sha256 = export.read(&source.store, place, &meter)?;
            source.check_pinned(&sha256)?;
            (partial, sha256)
        }
    };
    partial.commit(folder).map_err(failed)?;
    Ok(sha256)
}

fn pull_bundle(
    bundle: &StoredBundle,
    folder: &Path,
    on_progress: OnProgress<'_>,
) -> Result<(), WeightsError> {
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, content).map_err(|source| WeightsError::Write { path, source })
    };
    for (name, sha256) in bundle.small_files()? {
        write(name, &bundle.read(name, sha256)?)?;
    }
    let bytes = bundle.len(WEIGHTS)?;
    let meter = Meter::new("fetching", bytes, on_progress);
    bundle.read_weights(arrive::Place::in_folder(folder, bytes), &meter, |_, _| ())?;
    write(MANIFEST, &bundle.json)
}

/// A folder that is being filled, beside the one that it becomes; by one process at a time. What is
/// not committed stays for the next attempt.
struct Partial {
    path: PathBuf,
    _lock: File,
}

impl Partial {
    fn path(folder: &Path) -> PathBuf {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        folder.with_file_name(format!(".{name}.partial"))
    }

    /// Begins with the file `kept`, and nothing else, of what an earlier attempt has left.
    fn begin(path: &Path, kept: &str) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let lock = File::open(path)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process is at it"));
            }
            // Not every file system knows locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        for file in fs::read_dir(path)? {
            let file = file?;
            if file.file_name() != kept {
                fs::remove_file(file.path())?;
            }
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Makes it `folder`, which survives a power failure from then on.
    fn commit(self, folder: &Path) -> io::Result<()> {
        for file in fs::read_dir(&self.path)? {
            File::open(file?.path())?.sync_all()?;
        }
        fs::rename(&self.path, folder)?;
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// Makes the version `sha256` at `uri` the latest.
///
/// # Errors
///
/// [`WeightsError`], among others [`WeightsError::Replaced`] if somebody else moves the pointer at
/// the same time.
pub fn promote(uri: &str, sha256: &str, access: &Access) -> Result<Moved, WeightsError> {
    let store = Source::writable(uri, access)?.store;
    download::block_on(repository::promote(&*store, sha256))?
}

/// Makes the version at `uri` that was the latest before this one the latest again.
///
/// # Errors
///
/// As [`promote`], and if there is none.
pub fn rollback(uri: &str, access: &Access) -> Result<Moved, WeightsError> {
    let store = Source::writable(uri, access)?.store;
    download::block_on(repository::rollback(&*store))?
}
