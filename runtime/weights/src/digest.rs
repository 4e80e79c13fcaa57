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

/// Whether `text` is such a digest.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether version `actual` is the one that an address pins, if it pins one.
pub(crate) fn check_pinned(pinned: Option<&str>, actual: &str) -> Result<(), WeightsError> {
    match pinned {
        Some(expected) if expected != actual => {
            Err(WeightsError::Digest { expected: expected.to_owned(), actual: actual.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Whether `content` is what the manifest says; `part` names it in the error.
pub(crate) fn check(part: &str, content: &[u8], expected: &str) -> Result<(), WeightsError> {
    let actual = sha256([content]);
    if actual == expected {
        return Ok(());
    }
    Err(WeightsError::Damaged { part: part.to_owned(), expected: expected.to_owned(), actual })
}
