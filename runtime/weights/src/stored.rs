//! Models where they are stored: found, read and checked without being opened.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use encoder::Tensor;

use crate::{
    Access, WeightsError,
    arrive::{self, Arriving},
    bundle::Export,
    digest, download,
    manifest::{GRAPH, MANIFEST, MAX_FILE_BYTES, Manifest, TOKENIZER, WEIGHTS},
    map::Weights,
    progress::Meter,
    repository::{self, Found},
    store::{self, Stat, Store},
    uri::{self, ModelUri, Place},
};

/// A store that an address names.
pub(crate) struct Source {
    pub(crate) store: Arc<dyn Store>,
    /// Where it is, if it is one of this system.
    pub(crate) folder: Option<PathBuf>,
    /// The digest that the address pins.
    pub(crate) pinned: Option<String>,
}

impl Source {
    pub(crate) fn open(uri: &str, access: &Access) -> Result<Self, WeightsError> {
        let ModelUri { place, sha256: pinned } = uri::parse(uri)?;
        let store = store::open(&place, access)?;
        let folder = match place {
            Place::Folder(folder) => Some(folder),
            Place::Http(_) | Place::Hub { .. } | Place::S3(_) => None,
        };
        Ok(Self { store, folder, pinned })
    }

    /// A folder of this system.
    pub(crate) fn of_folder(folder: &Path) -> Self {
        let store = Arc::new(store::Folder::new(folder.to_owned()));
        Self { store, folder: Some(folder.to_owned()), pinned: None }
    }

    /// The store at `uri`, if it may be written to.
    pub(crate) fn writable(uri: &str, access: &Access) -> Result<Self, WeightsError> {
        match uri::parse(uri)?.place {
            Place::Folder(_) | Place::S3(_) => Self::open(uri, access),
            Place::Http(_) | Place::Hub { .. } => {
                let source = "web servers and the hub are only read".into();
                Err(WeightsError::Transfer { address: uri.to_owned(), source })
            }
        }
    }

    /// Whether `sha256` is the version that the address pins, if it pins one.
    pub(crate) fn check_pinned(&self, sha256: &str) -> Result<(), WeightsError> {
        digest::check_pinned(self.pinned.as_deref(), sha256)
    }
}

/// A bundle in a store.
pub(crate) struct StoredBundle {
    store: Arc<dyn Store>,
    /// Of its files: empty, or ends in a slash.
    prefix: String,
    /// The bytes of the manifest.
    pub(crate) json: Vec<u8>,
    pub(crate) manifest: Manifest,
    pub(crate) sha256: String,
}

impl StoredBundle {
    /// The bundle at `source`; `None` if there is none.
    pub(crate) fn find(source: &Source) -> Result<Option<Self>, WeightsError> {
        let Source { store, pinned, .. } = source;
        let found = download::block_on(repository::find(&**store, pinned.as_deref()))??;
        let Found::Bundle { prefix, manifest: json, sha256 } = found else { return Ok(None) };
        let address = store.address(&format!("{prefix}{MANIFEST}"));
        source.check_pinned(&sha256)?;
        let manifest = Manifest::parse(&json, &address)?;
        Ok(Some(Self { store: store.clone(), prefix, json, manifest, sha256 }))
    }

    /// The name of a file in the store.
    pub(crate) fn name(&self, file: &str) -> String {
        format!("{}{file}", self.prefix)
    }

    /// Names and digests of the files beside the manifest and the weights.
    pub(crate) fn small_files(&self) -> Result<Vec<(&'static str, &str)>, WeightsError> {
        let graph = self.manifest.files.get(GRAPH).map(|sha256| (GRAPH, sha256.as_str()));
        let tokenizer = (TOKENIZER, self.manifest.digest(TOKENIZER)?);
        Ok([tokenizer].into_iter().chain(graph).collect())
    }

    /// Reads one of them, and checks it.
    pub(crate) fn read(&self, file: &str, sha256: &str) -> Result<Vec<u8>, WeightsError> {
        let name = self.name(file);
        let read = download::read(&*self.store, &name, MAX_FILE_BYTES);
        let (content, _) = download::block_on(read)??;
        digest::check(&self.store.address(&name), &content, sha256)?;
        Ok(content)
    }

    /// The size of a file.
    pub(crate) fn len(&self, file: &str) -> Result<u64, WeightsError> {
        let name = self.name(file);
        let len = download::block_on(download::stat(&*self.store, &name))??.len;
        let said = self.manifest.weights_bytes;
        if file == WEIGHTS && len != said {
            let reason = format!("{len} bytes; the manifest says {said}");
            return Err(WeightsError::Config { address: self.store.address(&name), reason });
        }
        Ok(len)
    }

    /// Reads the weights to `place`, but for tensors that are there, and checks them. `checked` is
    /// told of each tensor.
    pub(crate) fn read_weights(
        &self,
        place: io::Result<arrive::Place>,
        meter: &Meter<'_>,
        checked: impl Fn(&Arriving, &Tensor),
    ) -> Result<(), WeightsError> {
        let name = self.name(WEIGHTS);
        let tensors = &self.manifest.tensors;
        let stat = Stat { len: self.manifest.weights_bytes, tag: None };
        let len = stat.len;
        let place = place.map_err(|source| WeightsError::Write { path: WEIGHTS.into(), source })?;
        let mut arriving = place.begin(self.store.clone(), name, stat, tensors)?;
        for tensor in tensors {
            arriving.wait((tensor.offset + tensor.length) as u64, &|bytes| meter.add(bytes))?;
            arrive::check(&arriving.weights, tensor)?;
            checked(&arriving, tensor);
        }
        arriving.wait(len, &|bytes| meter.add(bytes))
    }

    /// Checks every digest. `folder` is where the store is, if it is one of this system.
    pub(crate) fn verify(
        &self,
        folder: Option<&Path>,
        meter: &Meter<'_>,
    ) -> Result<(), WeightsError> {
        for (file, sha256) in self.small_files()? {
            self.read(file, sha256)?;
        }
        let bytes = self.len(WEIGHTS)?;
        let Some(folder) = folder else {
            // A model may be larger than the memory.
            return self.read_weights(arrive::Place::in_memory(bytes), meter, Arriving::forget);
        };
        let path = folder.join(self.name(WEIGHTS));
        let weights = Weights::open(&path).map_err(|source| WeightsError::Read { path, source })?;
        for tensor in &self.manifest.tensors {
            arrive::check(&weights, tensor)?;
            meter.set((tensor.offset + tensor.length) as u64);
        }
        meter.set(bytes);
        Ok(())
    }
}

impl Export {
    /// Reads the files to where `place` says, given a name and a size, and returns the digest.
    pub(crate) fn read(
        &self,
        store: &Arc<dyn Store>,
        place: impl Fn(&str, u64) -> io::Result<arrive::Place>,
        meter: &Meter<'_>,
    ) -> Result<String, WeightsError> {
        let mut parts = Vec::new();
        for (name, stat) in &self.files {
            let local = Self::local(name);
            let failed = |source| WeightsError::Write { path: local.into(), source };
            let place = place(local, stat.len).map_err(failed)?;
            let mut part = place.begin(store.clone(), (*name).to_owned(), stat.clone(), &[])?;
            part.wait(stat.len, &|bytes| meter.add(bytes))?;
            parts.push(part.weights);
        }
        Ok(digest::sha256(parts.iter().map(AsRef::as_ref)))
    }

    /// The digest of the export in `folder`.
    pub(crate) fn sha256(&self, folder: &Path) -> Result<String, WeightsError> {
        let parts = self.files.iter().map(|(name, _)| {
            let path = folder.join(name);
            Weights::open(&path).map_err(|source| WeightsError::Read { path, source })
        });
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        Ok(digest::sha256(parts.iter().map(AsRef::as_ref)))
    }

    /// Of all files, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.files.iter().map(|(_, stat)| stat.len).sum()
    }
}
