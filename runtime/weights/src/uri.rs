use std::path::PathBuf;

use crate::WeightsError;

/// A parsed `MODEL_URI`: a folder, and the digest it must have if the address pins one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ModelUri {
    pub(crate) folder: PathBuf,
    /// Sixty-four lower-case hexadecimal digits.
    pub(crate) sha256: Option<String>,
}

/// Reads `path[#sha256=…]` or `file://path[#sha256=…]`.
pub(crate) fn parse(uri: &str) -> Result<ModelUri, WeightsError> {
    let refuse = |reason| WeightsError::Uri { uri: uri.to_owned(), reason };
    let (location, sha256) = match uri.split_once("#sha256=") {
        None => (uri, None),
        Some((location, digest)) => {
            if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(refuse("sha256 must be 64 hexadecimal digits"));
            }
            (location, Some(digest.to_ascii_lowercase()))
        }
    };
    let folder = match location.split_once("://") {
        None => location,
        Some(("file", path)) if path.starts_with('/') => path,
        Some(("file", _)) => return Err(refuse("a file URI needs an absolute path: file:///…")),
        Some(_) => return Err(refuse("the model must be a folder: a path or file:///…")),
    };
    if folder.is_empty() {
        return Err(refuse("the path is empty"));
    }
    Ok(ModelUri { folder: folder.into(), sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_read() {
        let digest = "AB".repeat(32);
        let cases = [
            ("model".to_owned(), "model", None),
            ("/srv/model".to_owned(), "/srv/model", None),
            ("file:///srv/model".to_owned(), "/srv/model", None),
            (format!("/srv/model#sha256={digest}"), "/srv/model", Some("ab".repeat(32))),
        ];
        for (uri, folder, sha256) in cases {
            assert_eq!(parse(&uri).unwrap(), ModelUri { folder: folder.into(), sha256 }, "{uri}");
        }
    }

    #[test]
    fn other_addresses_are_refused_with_the_reason() {
        let cases = [
            ("s3://bucket/model", "the model must be a folder: a path or file:///…"),
            ("file://srv/model", "a file URI needs an absolute path: file:///…"),
            ("model#sha256=12", "sha256 must be 64 hexadecimal digits"),
            ("", "the path is empty"),
        ];
        for (uri, reason) in cases {
            let message = parse(uri).unwrap_err().to_string();
            assert_eq!(message, format!("MODEL_URI \"{uri}\": {reason}"));
        }
    }
}
