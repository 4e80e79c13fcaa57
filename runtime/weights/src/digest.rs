use sha2::{Digest, Sha256};

use crate::WeightsError;

/// The SHA-256 of `parts`, one behind the other, in hexadecimal.
pub(crate) fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `content` is what the manifest says; `part` names it in the error.
pub(crate) fn check(part: &str, content: &[u8], expected: &str) -> Result<(), WeightsError> {
    let actual = sha256([content]);
    if actual == expected {
        return Ok(());
    }
    Err(WeightsError::Damaged { part: part.to_owned(), expected: expected.to_owned(), actual })
}
