use std::error::Error;

/// The weights of an encoder: bytes that stay where they are, and may still be arriving, the first ones
/// first.
pub trait Source: AsRef<[u8]> + Send + Sync {
    /// Waits until the first `end` bytes are there.
    ///
    /// # Errors
    ///
    /// If they never will be.
    fn wait(&self, end: usize) -> Result<(), Box<dyn Error + Send + Sync>>;
}

impl Source for Vec<u8> {
    fn wait(&self, _: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}
