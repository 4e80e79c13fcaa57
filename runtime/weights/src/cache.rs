//! What was fetched or packed before: folders under keys that say what is in them, shared by all
//! processes of a user.
//!
//! ```text
//! <key>           an entry, whole: it was made as `.<key>.partial` and renamed
//! <key>.lock      held shared by who uses the entry, alone by who evicts it; its time is the last
//!                 use
//! <key>.fill      held by who makes the entry
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

const USED: &str = "lock";
const FILLED: &str = "fill";

/// A folder of entries, bounded in size.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    folder: PathBuf,
    max_bytes: u64,
}

/// An entry that is whole, and stays as long as the value lives.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) folder: PathBuf,
    /// None where the cache is only read.
    _lock: Option<File>,
}

/// The right to make an entry; what was not committed is left for the next attempt.
#[derive(Debug)]
pub(crate) struct Filling {
    /// Where to make it. It may hold what an earlier attempt has left.
    pub(crate) partial: PathBuf,
    cache: Cache,
    key: String,
    _lock: File,
}

/// What [`Cache::fill`] finds.
#[derive(Debug)]
pub(crate) enum Fill {
    /// Another process made it meanwhile.
    Made(Entry),
    /// The caller makes it.
    Make(Filling),
}

impl Cache {
    pub(crate) fn new(folder: PathBuf, max_bytes: u64) -> Self {
        Self { folder, max_bytes }
    }

    /// The entry under `key`, if there is one, and this user made it.
    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        let folder = self.folder.join(key);
        if !is_ours(&folder) {
            return None;
        }
        let lock = self.lock_file(key, USED).ok();
        if let Some(lock) = &lock {
            lock.lock_shared().ok()?;
            let _ = lock.set_modified(SystemTime::now());
        }
        // It may have been evicted just before.
        folder.exists().then_some(Entry { folder, _lock: lock })
    }

    /// Waits until no other process makes the entry under `key`.
    pub(crate) fn fill(&self, key: &str) -> io::Result<Fill> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let lock = self.lock_file(key, FILLED)?;
        lock.lock()?;
        if let Some(entry) = self.get(key) {
            return Ok(Fill::Made(entry));
        }
        // Others may have written it.
        self.remove(key)?;
        let partial = self.folder.join(format!(".{key}.partial"));
        if !is_ours(&partial) {
            let _ = fs::remove_dir_all(&partial);
            fs::DirBuilder::new().mode(0o700).create(&partial)?;
        }
        Ok(Fill::Make(Filling { partial, cache: self.clone(), key: key.to_owned(), _lock: lock }))
    }

    /// Takes an entry out, if it is there. Who has it mapped keeps the files until then.
    pub(crate) fn remove(&self, key: &str) -> io::Result<()> {
        let removed = self.folder.join(format!(".{key}.{}", std::process::id()));
        match fs::rename(self.folder.join(key), &removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.and_then(|()| fs::remove_dir_all(removed)),
        }
    }

    /// A small text under `key`, if this user wrote it.
    pub(crate) fn note(&self, key: &str) -> Option<String> {
        let path = self.folder.join(key);
        if !is_ours(&path) {
            return None;
        }
        fs::read_to_string(path).ok()
    }

    pub(crate) fn write_note(&self, key: &str, text: &str) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let unfinished = self.folder.join(format!(".{key}.{}", std::process::id()));
        fs::write(&unfinished, text)?;
        fs::rename(&unfinished, self.folder.join(key))
    }

    fn lock_file(&self, key: &str, kind: &str) -> io::Result<File> {
        let path = self.folder.join(format!("{key}.{kind}"));
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Removes entries that nobody uses, the one used longest ago first, until the rest is within
    /// the limit.
    fn evict(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !path.is_dir() {
                continue;
            }
            // What was begun and not ended lies there until it is wanted again, or evicted.
            let begun = name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial"));
            let (key, kind) = begun.map_or((&*name, USED), |key| (key, FILLED));
            let lock = self.lock_file(key, kind)?;
            entries.push(Used {
                at: lock.metadata()?.modified()?,
                bytes: size(&path)?,
                lock,
                path,
            });
        }
        let mut bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        entries.sort_by_key(|entry| entry.at);
        for Used { bytes: entry_bytes, lock, path, .. } in entries {
            if bytes <= self.max_bytes {
                return Ok(());
            }
            if lock.try_lock().is_err() {
                continue;
            }
            fs::remove_dir_all(&path)?;
            bytes -= entry_bytes;
            tracing::info!(entry = %path.display(), bytes = entry_bytes, "evicted from the cache");
        }
        if bytes > self.max_bytes {
            let max_bytes = self.max_bytes;
            tracing::warn!(bytes, max_bytes, "the cache is over its limit; all of it is in use");
        }
        Ok(())
    }
}

impl Filling {
    /// Makes what is in `partial` the entry. It survives a power failure from then on.
    pub(crate) fn commit(self) -> io::Result<Entry> {
        let Self { partial, cache, key, .. } = &self;
        for file in fs::read_dir(partial)? {
            File::open(file?.path())?.sync_all()?;
        }
        fs::rename(partial, cache.folder.join(key))?;
        File::open(&cache.folder)?.sync_all()?;
        // Held from before the cache is tidied up.
        let entry = cache.get(key).ok_or(io::ErrorKind::NotFound)?;
        if let Err(error) = cache.evict() {
            tracing::warn!(exception = %error, "the cache is not tidied up");
        }
        Ok(entry)
    }

    /// Removes what was made so far.
    pub(crate) fn abandon(self) {
        let _ = fs::remove_dir_all(&self.partial);
    }
}

/// A folder of the cache, and who may be using it.
#[derive(Debug)]
struct Used {
    /// Last.
    at: SystemTime,
    bytes: u64,
    lock: File,
    path: PathBuf,
}

fn size(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for file in fs::read_dir(folder)? {
        // Blocks, not length: a file that is arriving is not all there.
        bytes += file?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

/// Whether only this user can have written `path`: a cache may lie where others write too, and
/// weights decide what is answered.
fn is_ours(path: &Path) -> bool {
    let (Ok(path), Ok(process)) = (fs::symlink_metadata(path), fs::metadata("/proc/self")) else {
        return false;
    };
    path.uid() == process.uid() && path.mode() & 0o002 == 0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A cache in a folder that goes with the value.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let name = format!("sanderling-cache-{test}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn cache(&self, max_bytes: u64) -> Cache {
            Cache::new(self.0.clone(), max_bytes)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn make(cache: &Cache, key: &str) -> Entry {
        let Fill::Make(filling) = cache.fill(key).unwrap() else { panic!("{key} is there") };
        fs::write(filling.partial.join("file"), [1; 40 << 10]).unwrap();
        filling.commit().unwrap()
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_is_in_use_stays() {
        let folder = Folder::new("evict");
        let cache = folder.cache(100 << 10);
        let long_ago = |key: &str| {
            let lock = cache.lock_file(key, USED).unwrap();
            lock.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        };
        drop(make(&cache, "a"));
        let b = make(&cache, "b");
        long_ago("b");
        drop(make(&cache, "c"));
        assert!(cache.get("a").is_none(), "a is older than c and not in use");
        assert!(cache.get("b").is_some() && cache.get("c").is_some());
        drop(b);
        long_ago("b");
        drop(make(&cache, "d"));
        assert!(cache.get("b").is_none(), "nobody uses b any more");
        assert!(cache.get("c").is_some() && cache.get("d").is_some());
    }

    #[test]
    fn one_makes_an_entry_and_the_others_wait_for_it() {
        let folder = Folder::new("wait");
        let cache = folder.cache(u64::MAX);
        let Fill::Make(filling) = cache.fill("key").unwrap() else { panic!("it is there") };
        let other = cache.clone();
        let waiting = std::thread::spawn(move || other.fill("key").unwrap());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        fs::write(filling.partial.join("file"), "content").unwrap();
        assert!(cache.get("key").is_none(), "it is not whole");
        let entry = filling.commit().unwrap();
        let Fill::Made(same) = waiting.join().unwrap() else { panic!("it is made twice") };
        assert_eq!(same.folder, entry.folder);
    }

    #[test]
    fn who_makes_an_entry_anew_does_not_wait_for_who_uses_the_old_one() {
        let folder = Folder::new("anew");
        let cache = folder.cache(u64::MAX);
        let _used = make(&cache, "key");
        cache.remove("key").unwrap();
        make(&cache, "key");
    }

    #[test]
    fn what_an_attempt_has_left_is_found_by_the_next() {
        let folder = Folder::new("left");
        let cache = folder.cache(u64::MAX);
        for attempt in 0..2 {
            let Fill::Make(filling) = cache.fill("key").unwrap() else { panic!("it is there") };
            let part = filling.partial.join("part");
            assert_eq!(part.exists(), attempt == 1);
            fs::write(part, "half").unwrap();
        }
        let Fill::Make(filling) = cache.fill("key").unwrap() else { panic!("it is there") };
        filling.abandon();
        let Fill::Make(filling) = cache.fill("key").unwrap() else { panic!("it is there") };
        assert!(!filling.partial.join("part").exists());
    }
}
