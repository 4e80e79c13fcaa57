use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Access, Sentence, WeightsError, arrive,
    cache::{Cache, Entry, Fill},
    config::ModelConfig,
    digest, download,
    download::Download,
    manifest::{
        self, About, GRAPH, MANIFEST, MAX_FILE_BYTES, Manifest, Packed, TOKENIZER, Unpacked,
        WEIGHTS,
    },
    map::Weights,
    repository::{self, Found},
    sentence::SENTENCE_FILES,
    store::{self, Stat, Store},
    uri::{self, ModelUri, Place},
};

/// Hexadecimal digits of the digest that name a version.
const VERSION_DIGITS: usize = 12;

pub(crate) const CONFIG: &str = "config.json";

/// Where an export has its graph: beside the others, or as the hub lays it out.
const ONNX: [&str; 2] = ["model.onnx", "onnx/model.onnx"];

/// Longest graph of an export, in bytes: ONNX files have no more.
const MAX_ONNX_BYTES: u64 = 2 << 30;

/// How models are fetched and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where what is fetched or made of an export is kept.
    pub cache_dir: PathBuf,
    /// How much of it stays, in bytes.
    pub max_cache_bytes: u64,
    /// How stores are reached.
    pub access: Access,
}

/// One version of one model, as it was exported (`model.onnx`, `tokenizer.json`, `config.json`) or
/// packed for an engine (`manifest.json`, `weights.bin`, `tokenizer.json`).
#[derive(Debug)]
pub struct Bundle {
    name: String,
    /// Sixty-four hexadecimal digits.
    sha256: String,
    labels: Vec<String>,
    max_position_embeddings: usize,
    precision: Option<String>,
    sentence: Sentence,
    tokenizer: Vec<u8>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Where `model.onnx` is, and where what is made of it is kept.
    Exported {
        onnx: PathBuf,
        cache: Cache,
        /// What keeps the files there.
        _entry: Option<Entry>,
    },
    Packed(Packed),
}

impl Bundle {
    /// Opens the model at `model_uri`: a path, `file:///path`, `http(s)://host/path`,
    /// `s3://bucket/prefix` or `hf://organization/name@revision`, and there a bundle, an export, or
    /// the pointer `latest` to a version. With `#sha256=…` behind it, only if that is the digest of
    /// the bundle's `manifest.json`, or of an export's `model.onnx`, `tokenizer.json`, `config.json`
    /// and the files of sentence-transformers, if it has any, one after the other.
    ///
    /// Weights of a bundle may still be [arriving](Weights::wait) when this returns. Not for async
    /// code: it waits.
    ///
    /// # Errors
    ///
    /// [`WeightsError`], naming the file or the part of the address that is wrong.
    pub fn open(model_uri: &str, options: &Options) -> Result<Self, WeightsError> {
        let _stage = telemetry::stage("bundle");
        let ModelUri { place, sha256 } = uri::parse(model_uri)?;
        let pinned = sha256.as_deref();
        let cache = Cache::new(options.cache_dir.clone(), options.max_cache_bytes);
        let bundle = match &place {
            Place::Folder(folder) => Self::in_folder(folder, pinned, cache)?,
            place => {
                // A version that was fetched before needs no network.
                if let Some(sha256) = pinned
                    && let Some(entry) = cache.get(sha256)
                    && let Ok(bundle) = Self::of_entry(entry, sha256)
                {
                    return Ok(bundle);
                }
                Self::fetch(store::open(place, &options.access)?, pinned, cache)?
            }
        };
        digest::check_pinned(pinned, &bundle.sha256)?;
        Ok(bundle)
    }

    /// What [`Bundle::open`] would open now, as a text that changes when that does: to find out
    /// whether there is a new version, without reading it.
    ///
    /// # Errors
    ///
    /// As [`Bundle::open`].
    pub fn revision(model_uri: &str, options: &Options) -> Result<String, WeightsError> {
        let ModelUri { place, sha256 } = uri::parse(model_uri)?;
        if let Place::Folder(graph) = &place
            && of_graph(graph).is_some()
        {
            let store = store::Folder::new(PathBuf::new());
            let stat = download::block_on(download::stat(&store, &graph.to_string_lossy()))??;
            return Ok(stat.tag.unwrap_or_default());
        }
        let store = store::open(&place, &options.access)?;
        download::block_on(async {
            match repository::find(&*store, sha256.as_deref()).await? {
                Found::Bundle { sha256, .. } => Ok(sha256),
                Found::Export => Ok(Export::find(&*store).await?.key(&*store)),
            }
        })?
    }

    fn in_folder(folder: &Path, pinned: Option<&str>, cache: Cache) -> Result<Self, WeightsError> {
        let version = pinned.map(|sha256| folder.join(sha256)).filter(|folder| folder.exists());
        if folder.join(MANIFEST).exists() {
            Self::of_packed(folder, None, pinned.is_some())
        } else if let Some(version) = version {
            Self::of_packed(&version, None, true)
        } else if folder.join(repository::LATEST).exists() {
            let store = store::Folder::new(folder.to_owned());
            let (pointer, _) = download::block_on(repository::pointer(&store))??;
            let version = folder.join(&pointer.sha256);
            Self::of_packed(&version, None, false)?.checked(&version, &pointer.sha256)
        } else {
            Self::of_export(folder, cache, None)
        }
    }

    /// A bundle in the cache, if it is the one that was put there: its tensors were checked when
    /// they arrived.
    fn of_entry(entry: Entry, sha256: &str) -> Result<Self, WeightsError> {
        let folder = entry.folder.clone();
        Self::of_packed(&folder, Some(entry), false)?.checked(&folder, sha256)
    }

    /// The bundle of `folder`, if it is version `sha256`.
    fn checked(self, folder: &Path, sha256: &str) -> Result<Self, WeightsError> {
        if self.sha256 == sha256 {
            return Ok(self);
        }
        let part = folder.join(MANIFEST).display().to_string();
        Err(WeightsError::Damaged { part, expected: sha256.to_owned(), actual: self.sha256 })
    }

    /// A bundle in a folder.
    fn of_packed(
        folder: &Path,
        entry: Option<Entry>,
        check_weights: bool,
    ) -> Result<Self, WeightsError> {
        let json = read(&folder.join(MANIFEST))?;
        let manifest = Manifest::parse(&json, &folder.join(MANIFEST).display().to_string())?;
        let tokenizer = read(&folder.join(TOKENIZER))?;
        digest::check(TOKENIZER, &tokenizer, manifest.digest(TOKENIZER)?)?;
        let graph = match manifest.files.get(GRAPH) {
            None => None,
            Some(sha256) => {
                let graph = read(&folder.join(GRAPH))?;
                digest::check(GRAPH, &graph, sha256)?;
                Some(graph)
            }
        };
        let path = folder.join(WEIGHTS);
        let weights = Weights::open(&path)
            .map_err(|source| WeightsError::Read { path: path.clone(), source })?;
        let bytes = weights.as_ref().len() as u64;
        if bytes != manifest.weights_bytes {
            let reason = format!("{bytes} bytes; the manifest says {}", manifest.weights_bytes);
            return Err(WeightsError::Config { address: path.display().to_string(), reason });
        }
        if check_weights {
            manifest.tensors.iter().try_for_each(|tensor| arrive::check(&weights, tensor))?;
        }
        weights.arrival().keep(entry);
        Ok(Self::new(manifest, digest::sha256([json.as_slice()]), tokenizer, weights, graph))
    }

    fn new(
        manifest: Manifest,
        sha256: String,
        tokenizer: Vec<u8>,
        weights: Weights,
        graph: Option<Vec<u8>>,
    ) -> Self {
        Self {
            name: manifest.name,
            sha256,
            labels: manifest.labels,
            max_position_embeddings: manifest.max_position_embeddings,
            precision: Some(manifest.precision),
            sentence: manifest.sentence,
            tokenizer,
            content: Content::Packed(Packed {
                description: manifest.encoder.get().to_owned(),
                tensors: manifest.tensors,
                weights,
                graph,
            }),
        }
    }

    fn fetch(
        store: Arc<dyn Store>,
        pinned: Option<&str>,
        cache: Cache,
    ) -> Result<Self, WeightsError> {
        let found = {
            let _stage = telemetry::stage("manifest");
            download::block_on(repository::find(&*store, pinned))??
        };
        let Found::Bundle { prefix, manifest: json, sha256 } = found else {
            return Self::fetch_export(store, cache);
        };
        digest::check_pinned(pinned, &sha256)?;
        if let Some(entry) = cache.get(&sha256) {
            match Self::of_entry(entry, &sha256) {
                Ok(bundle) => return Ok(bundle),
                Err(error) => {
                    tracing::warn!(exception = %error, "the kept model is damaged; it is fetched again");
                    let _ = cache.remove(&sha256);
                }
            }
        }
        let filling = match cache.fill(&sha256) {
            Ok(Fill::Made(entry)) => return Self::of_entry(entry, &sha256),
            Ok(Fill::Make(filling)) => Some(filling),
            Err(error) => {
                tracing::warn!(exception = %error, "the cache takes nothing; the model stays in memory");
                None
            }
        };
        let manifest = Manifest::parse(&json, &store.address(&format!("{prefix}{MANIFEST}")))?;
        let bytes = manifest.weights_bytes;
        let name = format!("{prefix}{WEIGHTS}");
        let (place, filling) = match filling {
            None => (None, None),
            Some(filling) => match arrive::Place::in_folder(&filling.partial, bytes) {
                Ok(place) => (Some(place), Some(filling)),
                Err(error) => {
                    tracing::warn!(exception = %error, "the cache takes no more; the model stays in memory");
                    filling.abandon();
                    (None, None)
                }
            },
        };
        let in_memory = |source| WeightsError::Write { path: WEIGHTS.into(), source };
        let place = match place {
            Some(place) => place,
            None => arrive::Place::in_memory(bytes).map_err(in_memory)?,
        };
        let stat = Stat { len: bytes, tag: None };
        let arriving = place.begin(store.clone(), name, stat, &manifest.tensors)?;
        let weights = arriving.weights.clone();

        // The small files come while the first tensors do.
        let small = async |name: &str, sha256: &str| {
            let (content, _) =
                download::read(&*store, &format!("{prefix}{name}"), MAX_FILE_BYTES).await?;
            digest::check(&store.address(&format!("{prefix}{name}")), &content, sha256)?;
            Ok::<_, WeightsError>(content)
        };
        let (tokenizer, graph) = download::block_on(async {
            tokio::try_join!(small(TOKENIZER, manifest.digest(TOKENIZER)?), async {
                match manifest.files.get(GRAPH) {
                    Some(sha256) => small(GRAPH, sha256).await.map(Some),
                    None => Ok(None),
                }
            })
        })??;
        let filling = filling.filter(|filling| {
            let folder = &filling.partial;
            let written = fs::write(folder.join(TOKENIZER), &tokenizer)
                .and_then(|()| {
                    graph.as_ref().map_or(Ok(()), |graph| fs::write(folder.join(GRAPH), graph))
                })
                .and_then(|()| fs::write(folder.join(MANIFEST), &json));
            if let Err(error) = &written {
                tracing::warn!(exception = %error, "the model is not kept in the cache");
            }
            written.is_ok()
        });
        arriving.check(manifest.tensors.clone(), filling)?;
        Ok(Self::new(manifest, sha256, tokenizer, weights, graph))
    }

    fn fetch_export(store: Arc<dyn Store>, cache: Cache) -> Result<Self, WeightsError> {
        let _stage = telemetry::stage("export");
        let export = download::block_on(Export::find(&*store))??;
        let key = export.key(&*store);
        if let Some(entry) = cache.get(&key) {
            return Self::of_export(&entry.folder.clone(), cache, Some(entry));
        }
        let failed =
            |source| WeightsError::Write { path: format!("the cache's {key}").into(), source };
        let filling = match cache.fill(&key).map_err(failed)? {
            Fill::Made(entry) => {
                return Self::of_export(&entry.folder.clone(), cache, Some(entry));
            }
            Fill::Make(filling) => filling,
        };
        for (name, stat) in &export.files {
            let path = filling.partial.join(Export::local(name));
            let failed = |source| WeightsError::Write { path: path.clone(), source };
            path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
            let file = fs::File::create(&path).map_err(failed)?;
            file.set_len(stat.len).map_err(failed)?;
            let (arrived, _) = std::sync::mpsc::channel();
            let (name, file) = ((*name).to_owned(), Arc::new(file));
            let download =
                Arc::new(Download::new(store.clone(), name, stat.clone(), file, path.clone()));
            let whole = std::iter::once(0..stat.len).collect();
            download::block_on(download.run(whole, arrived))??;
        }
        let entry = filling.commit().map_err(failed)?;
        Self::of_export(&entry.folder.clone(), cache, Some(entry))
    }

    fn of_export(folder: &Path, cache: Cache, entry: Option<Entry>) -> Result<Self, WeightsError> {
        let (folder, onnx) = match of_graph(folder) {
            Some(folder_of) => (folder_of, folder.to_owned()),
            None => {
                let onnx = ONNX.map(|name| folder.join(name));
                let onnx = onnx.iter().find(|path| path.exists()).unwrap_or(&onnx[0]).clone();
                (folder, onnx)
            }
        };
        let path = folder.join(CONFIG);
        let config_json = read(&path)?;
        let tokenizer = read(&folder.join(TOKENIZER))?;
        let refuse = |reason| WeightsError::Config { address: path.display().to_string(), reason };
        let config = ModelConfig::parse(&config_json).map_err(refuse)?;
        let mut sentence_files = [None, None, None];
        for (content, name) in sentence_files.iter_mut().zip(SENTENCE_FILES) {
            *content = read_if_there(&folder.join(name))?;
        }
        let sentence = Sentence::parse(&sentence_files).map_err(|(name, reason)| {
            WeightsError::Config { address: folder.join(name).display().to_string(), reason }
        })?;
        let small = [&tokenizer, &config_json].into_iter().chain(sentence_files.iter().flatten());
        let small: Vec<&[u8]> = small.map(Vec::as_slice).collect();
        Ok(Self {
            labels: config.labels().map_err(refuse)?,
            sha256: export_sha256(&onnx, &small, &cache)?,
            sentence,
            name: config.name.unwrap_or_else(|| folder_name(folder)),
            max_position_embeddings: config.max_position_embeddings,
            precision: config.precision,
            tokenizer,
            content: Content::Exported { onnx, cache, _entry: entry },
        })
    }

    /// `_name_or_path` of `config.json`, else the name of the folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The digest, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The first twelve hexadecimal digits of the digest.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.sha256[..VERSION_DIGITS]
    }

    /// Name of each logit, `[num_labels]`.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Most tokens in one sequence, special tokens included.
    #[must_use]
    pub fn max_position_embeddings(&self) -> usize {
        self.max_position_embeddings
    }

    /// The bytes of `tokenizer.json`.
    #[must_use]
    pub fn tokenizer(&self) -> &[u8] {
        &self.tokenizer
    }

    /// The precision the model is packed for, or `precision` of `config.json`: what it should run
    /// in if nobody says otherwise.
    #[must_use]
    pub fn precision(&self) -> Option<&str> {
        self.precision.as_deref()
    }

    /// How the model makes embeddings.
    #[must_use]
    pub fn sentence(&self) -> &Sentence {
        &self.sentence
    }

    /// The bytes of `model.onnx`, mapped, unless the model is packed.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Read`]
    pub fn graph(&self) -> Result<Option<Weights>, WeightsError> {
        match &self.content {
            Content::Exported { onnx, .. } => Weights::open(onnx)
                .map(Some)
                .map_err(|source| WeightsError::Read { path: onnx.clone(), source }),
            Content::Packed(_) => Ok(None),
        }
    }

    /// The model as it is packed for `precision`, or as it was [kept](Bundle::keep); `None` if it
    /// was not yet.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Precision`] if it is packed for another.
    pub fn packed(&self, precision: &str) -> Result<Option<Packed>, WeightsError> {
        match &self.content {
            Content::Packed(packed) if self.precision() == Some(precision) => {
                Ok(Some(packed.clone()))
            }
            Content::Packed(_) => Err(WeightsError::Precision {
                packed: self.precision().unwrap_or_default().to_owned(),
                wanted: precision.to_owned(),
            }),
            Content::Exported { cache, .. } => {
                let Some(entry) = cache.get(&self.kept(precision)) else { return Ok(None) };
                Ok(Self::of_kept(entry).ok())
            }
        }
    }

    fn of_kept(entry: Entry) -> Result<Packed, WeightsError> {
        let folder = entry.folder.clone();
        match Self::of_packed(&folder, Some(entry), false)?.content {
            Content::Packed(packed) => Ok(packed),
            Content::Exported { .. } => unreachable!("a bundle is packed"),
        }
    }

    /// Keeps `model`, which was made of this export for `precision`, and maps it.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Write`] if the cache does not take it.
    ///
    /// # Panics
    ///
    /// If this bundle is packed itself.
    pub fn keep(&self, precision: &str, model: &Unpacked<'_>) -> Result<Packed, WeightsError> {
        let Content::Exported { cache, .. } = &self.content else {
            unreachable!("only an export is packed");
        };
        let key = self.kept(precision);
        let failed =
            |source| WeightsError::Write { path: format!("the cache's {key}").into(), source };
        // If it is there, it was not usable.
        cache.remove(&key).map_err(failed)?;
        let entry = match cache.fill(&key).map_err(failed)? {
            Fill::Made(entry) => entry,
            Fill::Make(filling) => {
                let about = self.about(precision);
                match manifest::write(&filling.partial, about, model, &self.tokenizer) {
                    Ok(()) => filling.commit().map_err(failed)?,
                    Err(error) => {
                        filling.abandon();
                        return Err(failed(error));
                    }
                }
            }
        };
        Self::of_kept(entry)
    }

    /// Writes `model`, which was made of this export for `precision`, with its tokenizer as a
    /// bundle of its own into `folder`. Equal models give equal bytes.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Write`], among others if the folder is there already.
    pub fn write(
        &self,
        folder: &Path,
        precision: &str,
        model: &Unpacked<'_>,
    ) -> Result<(), WeightsError> {
        let failed = |source| WeightsError::Write { path: folder.to_owned(), source };
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let unfinished = parent.join(format!(".{}.{}", folder_name(folder), std::process::id()));
        if folder.exists() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let written = fs::create_dir_all(&unfinished)
            .and_then(|()| {
                manifest::write(&unfinished, self.about(precision), model, &self.tokenizer)
            })
            .and_then(|()| fs::rename(&unfinished, folder));
        if written.is_err() {
            let _ = fs::remove_dir_all(&unfinished);
        }
        written.map_err(failed)
    }

    fn about<'a>(&'a self, precision: &'a str) -> About<'a> {
        About {
            name: &self.name,
            source_sha256: &self.sha256,
            precision,
            labels: &self.labels,
            max_position_embeddings: self.max_position_embeddings,
            sentence: &self.sentence,
        }
    }

    fn kept(&self, precision: &str) -> String {
        format!("{}-{precision}-{}", self.sha256, env!("CARGO_PKG_VERSION"))
    }
}

/// The files of an export, as a store has them.
#[derive(Debug)]
pub(crate) struct Export {
    /// The graph, the tokenizer, the configuration, and those of [`SENTENCE_FILES`] that are there.
    pub(crate) files: Vec<(&'static str, Stat)>,
}

impl Export {
    pub(crate) async fn find(store: &dyn Store) -> Result<Self, WeightsError> {
        let stat = async |name| download::stat(store, name).await;
        let onnx = async {
            match stat(ONNX[0]).await {
                Err(WeightsError::Missing { .. }) => Ok((ONNX[1], stat(ONNX[1]).await?)),
                outcome => Ok((ONNX[0], outcome?)),
            }
        };
        let optional = async |index: usize| match stat(SENTENCE_FILES[index]).await {
            Ok(stat) => Ok(Some((SENTENCE_FILES[index], stat))),
            // Without permission to list, S3 denies what is not there.
            Err(WeightsError::Missing { .. } | WeightsError::Denied { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let sentence = async { tokio::try_join!(optional(0), optional(1), optional(2)) };
        let (onnx, tokenizer, config, sentence) =
            tokio::try_join!(onnx, stat(TOKENIZER), stat(CONFIG), sentence).map_err(|error| {
                match error {
                    WeightsError::Missing { address } => WeightsError::Missing {
                        address: format!("{address}, nor {MANIFEST} or {}", repository::LATEST),
                    },
                    error => error,
                }
            })?;
        let required = [onnx, (TOKENIZER, tokenizer), (CONFIG, config)];
        let files: Vec<_> =
            required.into_iter().chain(<[_; 3]>::from(sentence).into_iter().flatten()).collect();
        for (name, stat) in &files {
            let limit = if name.ends_with(".onnx") { MAX_ONNX_BYTES } else { MAX_FILE_BYTES };
            if stat.len > limit {
                let reason = format!("{} bytes, at most {limit} are read", stat.len);
                return Err(WeightsError::Config { address: store.address(name), reason });
            }
        }
        Ok(Self { files })
    }

    /// Where the file `name` of a store lies in a folder of ours: graphs, which the hub keeps in a
    /// folder, beside the others.
    pub(crate) fn local(name: &str) -> &str {
        if ONNX.contains(&name) { ONNX[0] } else { name }
    }

    /// Where it is kept: another key when one of the files changes. A store without tags cannot
    /// tell, and what it gives is not found again.
    fn key(&self, store: &dyn Store) -> String {
        let mut parts = Vec::new();
        for (name, Stat { len, tag }) in &self.files {
            let tag = tag.clone().unwrap_or_else(|| format!("{:x}", fastrand::u128(..)));
            parts.push(format!("{} {len} {tag}\n", store.address(name)));
        }
        format!("export-{}", digest::sha256(parts.iter().map(String::as_bytes)))
    }
}

/// The digest of an export, whose files but the graph are `small`. It is remembered: reading a large graph takes longer than all the rest
/// of a start.
fn export_sha256(onnx: &Path, small: &[&[u8]], cache: &Cache) -> Result<String, WeightsError> {
    let failed = |source| WeightsError::Read { path: onnx.to_owned(), source };
    let metadata = fs::metadata(onnx).map_err(failed)?;
    // Whoever changes the file changes one of these, too.
    let identity = format!(
        "{} {} {} {} {}.{} {}.{}",
        onnx.display(),
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    );
    let key = format!("digest-{}", digest::sha256([&[identity.as_bytes()], small].concat()));
    if let Some(sha256) = cache.note(&key).filter(|text| digest::is_sha256(text)) {
        return Ok(sha256);
    }
    let graph = Weights::open(onnx).map_err(failed)?;
    let sha256 = digest::sha256([&[graph.as_ref()], small].concat());
    if let Err(error) = cache.write_note(&key, &sha256) {
        tracing::debug!(exception = %error, "the digest is not remembered");
    }
    Ok(sha256)
}

/// The folder of the export whose graph is the file `onnx`: its own, or, as the hub lays it out,
/// the one above. `None` if it is no such file.
fn of_graph(onnx: &Path) -> Option<&Path> {
    if onnx.extension()? != "onnx" || !onnx.is_file() {
        return None;
    }
    // Of `model.onnx` alone it is the empty path, which is a good one to join files to.
    let mut folders = onnx.ancestors().skip(1).take(2);
    folders.find(|folder| folder.join(TOKENIZER).exists()).or(onnx.parent())
}

fn read(path: &Path) -> Result<Vec<u8>, WeightsError> {
    fs::read(path).map_err(|source| WeightsError::Read { path: path.to_owned(), source })
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, WeightsError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(WeightsError::Read { path: path.to_owned(), source }),
    }
}

fn folder_name(folder: &Path) -> String {
    folder
        .file_name()
        .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use encoder::Tensor;

    /// A folder of three small files that goes with the value.
    struct Folder(PathBuf);

    impl Folder {
        fn with(test: &str, config_json: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("sanderling-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("config.json"), config_json).unwrap();
            fs::write(path.join("tokenizer.json"), "tokenizer").unwrap();
            fs::write(path.join("model.onnx"), "graph").unwrap();
            Self(path)
        }

        fn open(&self, fragment: &str) -> Result<Bundle, WeightsError> {
            Bundle::open(&format!("{}{fragment}", self.0.display()), &self.options())
        }

        fn options(&self) -> Options {
            options(self.0.join("cache"))
        }
    }

    fn options(cache_dir: PathBuf) -> Options {
        Options { cache_dir, max_cache_bytes: 1 << 30, access: Access::default() }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const CONFIG: &str =
        r#"{"_name_or_path":"tiny","id2label":{"0":"NO","1":"YES"},"max_position_embeddings":16}"#;

    #[test]
    fn a_folder_is_named_by_its_config_and_versioned_by_its_bytes() {
        let folder = Folder::with("named", CONFIG);
        let bundle = folder.open("").unwrap();
        assert_eq!(bundle.name(), "tiny");
        assert_eq!(bundle.labels(), ["NO", "YES"]);
        assert_eq!(bundle.version().len(), VERSION_DIGITS);
        fs::write(folder.0.join("tokenizer.json"), "tokenizes").unwrap();
        assert_ne!(folder.open("").unwrap().version(), bundle.version());
    }

    #[test]
    fn a_pinned_digest_is_enforced() {
        let folder = Folder::with("pinned", CONFIG);
        let digest = digest::sha256([b"graph".as_slice(), b"tokenizer", CONFIG.as_bytes()]);
        folder.open(&format!("#sha256={digest}")).unwrap();
        fs::write(folder.0.join("model.onnx"), "other").unwrap();
        let message = folder.open(&format!("#sha256={digest}")).unwrap_err().to_string();
        assert!(message.ends_with(&format!("MODEL_URI pins {digest}")), "{message}");
    }

    const DESCRIPTION: &str = r#"{"layers":6}"#;
    const WEIGHTS_BYTES: [u8; 100] = [7; 100];

    fn model() -> Unpacked<'static> {
        let tensor = |name: &str, offset, length| Tensor {
            name: name.to_owned(),
            dtype: "int8".to_owned(),
            shape: vec![length],
            offset,
            length,
            sha256: String::new(),
        };
        Unpacked {
            description: DESCRIPTION,
            tensors: vec![tensor("first", 0, 40), tensor("second", 64, 36)],
            weights: &WEIGHTS_BYTES,
            graph: Some(b"head"),
        }
    }

    fn check(packed: &Packed) {
        assert_eq!(packed.description, DESCRIPTION);
        assert_eq!(packed.weights.as_ref(), WEIGHTS_BYTES);
        assert_eq!(packed.graph.as_deref(), Some(b"head".as_slice()));
    }

    #[test]
    fn what_is_kept_of_an_export_is_mapped_the_next_time() {
        let folder = Folder::with("kept", CONFIG);
        let bundle = folder.open("").unwrap();
        assert!(bundle.packed("int8").unwrap().is_none());
        check(&bundle.keep("int8", &model()).unwrap());
        check(&folder.open("").unwrap().packed("int8").unwrap().unwrap());
        assert!(bundle.packed("bf16").unwrap().is_none(), "another precision");
        fs::write(folder.0.join("model.onnx"), "other").unwrap();
        assert!(folder.open("").unwrap().packed("int8").unwrap().is_none(), "another model");
    }

    #[test]
    fn what_was_cut_short_is_not_used_and_replaced() {
        let folder = Folder::with("cut", CONFIG);
        let bundle = folder.open("").unwrap();
        bundle.keep("int8", &model()).unwrap();
        let kept = folder.0.join("cache").join(bundle.kept("int8"));
        for (file, content) in [("weights.bin", "short"), ("manifest.json", "{")] {
            fs::write(kept.join(file), content).unwrap();
            assert!(bundle.packed("int8").unwrap().is_none(), "{file}");
            check(&bundle.keep("int8", &model()).unwrap());
        }
        let files = fs::read_dir(folder.0.join("cache")).unwrap().map(|file| file.unwrap().path());
        assert_eq!(files.filter(|path| path.is_dir()).count(), 1, "nothing unfinished stays");
    }

    #[test]
    fn what_others_may_have_written_is_not_used() {
        let folder = Folder::with("others", CONFIG);
        let bundle = folder.open("").unwrap();
        bundle.keep("int8", &model()).unwrap();
        let kept = folder.0.join("cache").join(bundle.kept("int8"));
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(bundle.packed("int8").unwrap().is_none());
        check(&bundle.keep("int8", &model()).unwrap());
        check(&bundle.packed("int8").unwrap().unwrap());
    }

    #[test]
    fn a_cache_that_takes_nothing_is_an_error_that_names_it() {
        let folder = Folder::with("full", CONFIG);
        fs::write(folder.0.join("cache"), "a file where a folder should be").unwrap();
        let error = folder.open("").unwrap().keep("int8", &model()).unwrap_err();
        assert!(error.to_string().starts_with("cannot write "), "{error}");
    }

    #[test]
    fn a_packed_folder_is_a_bundle() {
        let folder = Folder::with("packed", CONFIG);
        let export = folder.open("").unwrap();
        let path = folder.0.join("int8");
        export.write(&path, "int8", &model()).unwrap();
        let open = || Bundle::open(path.to_str().unwrap(), &options("/nowhere".into()));
        let bundle = open().unwrap();
        assert_eq!(bundle.name(), "tiny");
        assert_eq!(bundle.labels(), ["NO", "YES"]);
        assert_eq!(bundle.max_position_embeddings(), 16);
        assert_eq!(bundle.tokenizer(), b"tokenizer");
        assert_eq!(bundle.precision(), Some("int8"));
        assert!(bundle.graph().unwrap().is_none());
        assert_ne!(bundle.version(), export.version());
        check(&bundle.packed("int8").unwrap().unwrap());
        assert_eq!(
            bundle.packed("f32").unwrap_err().to_string(),
            "the model is packed for int8; PRECISION=f32 needs the export it was made of"
        );
        assert!(export.write(&path, "int8", &model()).is_err(), "nothing is written over");

        let another = "0".repeat(64);
        let pinned = |digest: &str| format!("{}#sha256={digest}", path.display());
        let pinned = |digest| Bundle::open(&pinned(digest), &options("/nowhere".into()));
        pinned(bundle.sha256()).unwrap();
        let message = pinned(&another).unwrap_err().to_string();
        assert!(message.contains("MODEL_URI pins 0000"), "{message}");
        fs::write(path.join("weights.bin"), [&[7; 80][..], &[8; 20]].concat()).unwrap();
        open().unwrap();
        let message = pinned(bundle.sha256()).unwrap_err().to_string();
        assert!(message.starts_with("tensor second is damaged: its sha256 is "), "{message}");

        fs::write(path.join("weights.bin"), [7; 99]).unwrap();
        let message = open().unwrap_err().to_string();
        assert!(message.ends_with("weights.bin: 99 bytes; the manifest says 100"), "{message}");
        let manifest = fs::read_to_string(path.join("manifest.json")).unwrap();
        let newer = manifest.replace(r#""format": 1"#, r#""format": 2"#);
        fs::write(path.join("manifest.json"), newer).unwrap();
        let message = open().unwrap_err().to_string();
        assert!(message.ends_with("format 2; this build reads 1"), "{message}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = Folder::with("missing", CONFIG);
        fs::remove_file(folder.0.join("tokenizer.json")).unwrap();
        let message = folder.open("").unwrap_err().to_string();
        assert_eq!(message, format!("cannot read {}/tokenizer.json", folder.0.display()));
    }
}
