use std::{fs::File, io, path::Path};

use memmap2::Mmap;

/// A file in memory, read when it is touched, its pages shared with other processes.
#[derive(Debug)]
pub struct Mapping(Mmap);

impl Mapping {
    /// Maps the file at `path`, which must not be cut short or written to while it is mapped: what
    /// is put into a cache is written elsewhere and renamed.
    ///
    /// # Errors
    ///
    /// What the system says of the file.
    #[expect(unsafe_code, reason = "a mapping is as good as the file stays; see above")]
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: files of a bundle are never changed in place, only replaced by renaming.
        Ok(Self(unsafe { Mmap::map(&file) }?))
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
