//! Files in a folder.

use std::{
    fs::{self, File},
    future::ready,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{Answer, Body, Expected, Reading, Stat, Store, StoreError};

/// How much of a file is read at a time, in bytes.
const PIECE_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    fn stat(&self, name: &str) -> Result<Stat, StoreError> {
        Ok(stat(&fs::metadata(self.0.join(name))?))
    }

    fn read(
        &self,
        name: &str,
        range: Option<Range<u64>>,
        tag: Option<&str>,
    ) -> Result<Reading, StoreError> {
        let mut file = File::open(self.0.join(name))?;
        let stat = stat(&file.metadata()?);
        if tag.is_some_and(|tag| stat.tag.as_deref() != Some(tag)) {
            return Err(StoreError::Replaced);
        }
        let is_range = range.is_some();
        let Range { start, end } = range.unwrap_or(0..stat.len);
        file.seek(SeekFrom::Start(start))?;
        let left = end.min(stat.len).saturating_sub(start);
        Ok(Reading { stat, is_range, body: Body::File(Pieces { file, left }) })
    }

    fn write(&self, name: &str, content: &[u8], expected: Expected<'_>) -> Result<(), StoreError> {
        let path = self.0.join(name);
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        // Held until the file is written, so that of two who expect the same one is refused.
        let lock = File::open(folder)?;
        if let Err(error) = lock.lock() {
            tracing::debug!(exception = %error, "the folder knows no locks");
        }
        let is_expected = match expected {
            Expected::Anything => true,
            Expected::Missing => !path.exists(),
            Expected::Tag(tag) => self.stat(name)?.tag.as_deref() == Some(tag),
        };
        if !is_expected {
            return Err(StoreError::Replaced);
        }
        replace(&path, |file| io::Write::write_all(file, content))
    }
}

/// Writes a file beside `path` and renames it into place.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = folder.join(format!(".{name}.{}", std::process::id()));
    let mut file = File::create(&unfinished)?;
    let written = write(&mut file)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    Ok(written?)
}

fn stat(metadata: &fs::Metadata) -> Stat {
    let tag = format!(
        "{}-{}-{}.{:09}",
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    Stat { len: metadata.len(), tag: Some(tag) }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Denied(error.to_string()),
            _ => Self::Refused(error.into()),
        }
    }
}

// Local files answer at once: nothing here waits.
impl Store for Folder {
    fn address(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn stat<'a>(&'a self, name: &'a str) -> Answer<'a, Stat> {
        Box::pin(ready(self.stat(name)))
    }

    fn read<'a>(
        &'a self,
        name: &'a str,
        range: Option<Range<u64>>,
        tag: Option<&'a str>,
    ) -> Answer<'a, Reading> {
        Box::pin(ready(self.read(name, range, tag)))
    }

    fn write<'a>(
        &'a self,
        name: &'a str,
        content: Bytes,
        expected: Expected<'a>,
    ) -> Answer<'a, ()> {
        Box::pin(ready(self.write(name, &content, expected)))
    }

    fn upload<'a>(
        &'a self,
        name: &'a str,
        local: PathBuf,
        on_part: &'a (dyn Fn(u64) + Send + Sync),
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut source = File::open(local)?;
            let len = source.metadata()?.len();
            replace(&self.0.join(name), |file| io::copy(&mut source, file).map(drop))?;
            on_part(len);
            Ok(())
        })
    }
}

/// The rest of a range of a file.
#[derive(Debug)]
pub(crate) struct Pieces {
    file: File,
    left: u64,
}

impl Pieces {
    pub(super) fn next(&mut self) -> Option<Result<Bytes, StoreError>> {
        if self.left == 0 {
            return None;
        }
        let mut piece = vec![0; PIECE_BYTES.min(self.left as usize)];
        Some(match self.file.read(&mut piece) {
            Ok(0) => Err(StoreError::Replaced),
            Ok(len) => {
                self.left -= len as u64;
                piece.truncate(len);
                Ok(piece.into())
            }
            Err(error) => Err(error.into()),
        })
    }
}
