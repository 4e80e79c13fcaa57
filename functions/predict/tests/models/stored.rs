//! A server for the models of one test, and the folder of all it leaves.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use object_store::{Buckets, Options, Request, Server};

use crate::{
    function::{Function, eventually},
    model::{Model, WEIGHTS},
};

/// A folder that goes with the value.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sanderling-{name}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server with three buckets: `models` for its key pair, `org` for anyone, `denied` for nobody.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) server: Server,
    folder: Folder,
}

impl Stored {
    /// A server with nothing in its buckets.
    pub(crate) fn nothing(test: &str) -> Self {
        let folder = Folder::new(test);
        for bucket in ["models", "org", "denied"] {
            fs::create_dir_all(folder.path().join("buckets").join(bucket)).unwrap();
        }
        let options = Options {
            public: Buckets::Named(vec!["org".to_owned()]),
            denied: Buckets::Named(vec!["denied".to_owned()]),
            ..Options::default()
        };
        Self { server: Server::start(&folder.path().join("buckets"), options).unwrap(), folder }
    }

    /// A server with `model` at `models/m`.
    pub(crate) fn with(test: &str, model: &Model) -> Self {
        let stored = Self::nothing(test);
        model.put(&stored.file("models/m"));
        stored
    }

    /// A server with versions of a model at `models/m`, of which the first is the latest.
    pub(crate) fn with_versions(test: &str, versions: &[&Model]) -> Self {
        let stored = Self::nothing(test);
        for version in versions {
            stored.add(version);
        }
        stored.promote(versions[0]);
        stored
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where the server has the object.
    pub(crate) fn file(&self, object: &str) -> PathBuf {
        self.folder.path().join("buckets").join(object)
    }

    pub(crate) fn s3(&self, place: &str) -> String {
        format!("s3://{place}?endpoint={}&path_style=true", self.server.endpoint())
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// The function with the model at `models/m`.
    pub(crate) fn function(&self) -> Function {
        self.function_at(&self.s3("models/m"))
    }

    pub(crate) fn function_at(&self, model_uri: &str) -> Function {
        Function::new(model_uri, &self.cache())
    }

    pub(crate) fn add(&self, version: &Model) {
        version.put(&self.file("models/m").join(&version.sha256));
    }

    pub(crate) fn promote(&self, version: &Model) {
        self.point_at(&version.sha256);
    }

    /// Makes `sha256` the latest version, whatever is there.
    pub(crate) fn point_at(&self, sha256: &str) {
        let unfinished = self.folder.path().join("latest");
        fs::write(&unfinished, format!(r#"{{"sha256": "{sha256}", "previous": []}}"#)).unwrap();
        fs::rename(unfinished, self.file("models/m/latest")).unwrap();
    }

    /// What was read of files whose names end in `suffix`.
    pub(crate) fn reads(&self, suffix: &str) -> Vec<Request> {
        let mut requests = self.server.requests();
        requests.retain(|request| request.method == "GET" && request.path.ends_with(suffix));
        requests
    }

    /// Bytes of weights that were sent.
    pub(crate) fn weights_sent(&self) -> u64 {
        self.reads(WEIGHTS).iter().map(|request| request.bytes_sent).sum()
    }

    /// Where the cache has `model`.
    pub(crate) fn entry(&self, model: &Model) -> PathBuf {
        self.cache().join(&model.sha256)
    }

    /// Waits until the cache has `model`, which is kept after the first answer, and asserts that it
    /// is whole.
    pub(crate) fn keeps(&self, model: &Model) {
        eventually("it is kept", || self.entry(model).exists());
        model.must_be_in(&self.entry(model));
    }

    /// Folders in the cache: its entries, and those that are not finished.
    pub(crate) fn kept(&self) -> Vec<String> {
        let Ok(files) = fs::read_dir(self.cache()) else { return Vec::new() };
        let folders = files.map(|file| file.unwrap()).filter(|file| file.path().is_dir());
        let mut names: Vec<_> =
            folders.map(|file| file.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The bytes that a request asks for.
pub(crate) fn range(request: &Request) -> Range<u64> {
    let range = request.range.as_deref().and_then(|range| range.strip_prefix("bytes="));
    let (first, last) = range.and_then(|range| range.split_once('-')).unwrap();
    first.parse().unwrap()..last.parse::<u64>().unwrap() + 1
}

/// Flips the lowest bit of a byte of the file at `path`.
pub(crate) fn damage(path: &Path, offset: usize) {
    let mut content = fs::read(path).unwrap();
    content[offset] ^= 1;
    fs::write(path, content).unwrap();
}
