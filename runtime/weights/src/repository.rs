//! Versions of one model beside each other, and the pointer to the one that is served.
//!
//! ```text
//! latest             {"sha256": "…", "previous": ["…"]}
//! <sha256>/          a bundle; its name is the digest of its manifest
//! ```
//!
//! A bundle may also lie at an address itself, and so may an export.

use serde::{Deserialize, Serialize};

use crate::{
    WeightsError,
    bundle::CONFIG,
    digest, download,
    manifest::{MANIFEST, MAX_MANIFEST_BYTES},
    store::{Expected, Store, StoreError},
};

pub(crate) const LATEST: &str = "latest";

/// Versions that a pointer remembers.
const MAX_PREVIOUS: usize = 16;

const MAX_POINTER_BYTES: u64 = 64 << 10;

/// What is at an address.
#[derive(Debug)]
pub(crate) enum Found {
    /// A bundle under `prefix`, which is empty or ends in a slash.
    Bundle { prefix: String, manifest: Vec<u8>, sha256: String },
    /// Neither a bundle nor a pointer: an export, or nothing.
    Export,
}

/// Finds the bundle at `store`, the version `sha256` of it if one is named.
pub(crate) async fn find(store: &dyn Store, sha256: Option<&str>) -> Result<Found, WeightsError> {
    let version = |sha256: &str| format!("{sha256}/");
    let at = async |prefix: String| {
        let name = format!("{prefix}{MANIFEST}");
        let (manifest, _) = download::read(store, &name, MAX_MANIFEST_BYTES).await?;
        let sha256 = digest::sha256([manifest.as_slice()]);
        // A version has the name of its digest.
        if !prefix.is_empty() {
            digest::check(&store.address(&name), &manifest, prefix.trim_end_matches('/'))?;
        }
        Ok(Found::Bundle { prefix, manifest, sha256 })
    };
    // Both at once: on most stores, the way there is what takes time.
    let (itself, other) = tokio::join!(at(String::new()), async {
        match sha256 {
            Some(sha256) => at(version(sha256)).await,
            None => {
                let (pointer, _) = pointer(store).await?;
                at(version(&pointer.sha256)).await.map_err(|error| match error {
                    WeightsError::Missing { address } => WeightsError::Config {
                        address: store.address(LATEST),
                        reason: format!("there is no {address}"),
                    },
                    error => error,
                })
            }
        }
    });
    // Without permission to list, S3 denies what is not there.
    let is_absent = |error: &WeightsError| {
        matches!(error, WeightsError::Missing { .. } | WeightsError::Denied { .. })
    };
    match (itself, other) {
        // Where a bundle lies itself, it is the one that is meant.
        (Ok(found), _) => Ok(found),
        (Err(error), _) if !is_absent(&error) => Err(error),
        (Err(_), Ok(found)) => Ok(found),
        (Err(_), Err(error)) if !is_absent(&error) => Err(error),
        (Err(denied @ WeightsError::Denied { .. }), _)
        | (_, Err(denied @ WeightsError::Denied { .. })) => {
            // Only an export that is there can tell.
            let export = store.stat(CONFIG).await;
            export.map(|_| Found::Export).map_err(|_| denied)
        }
        _ => Ok(Found::Export),
    }
}

/// `latest`: the version that is served, and those before it, the last one first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pointer {
    pub(crate) sha256: String,
    #[serde(default)]
    pub(crate) previous: Vec<String>,
}

/// The pointer, and its tag.
pub(crate) async fn pointer(store: &dyn Store) -> Result<(Pointer, Option<String>), WeightsError> {
    let (json, stat) = download::read(store, LATEST, MAX_POINTER_BYTES).await?;
    let refuse = |reason: String| WeightsError::Config { address: store.address(LATEST), reason };
    let pointer: Pointer =
        serde_json::from_slice(&json).map_err(|error| refuse(error.to_string()))?;
    let mut versions = std::iter::once(&pointer.sha256).chain(&pointer.previous);
    if !versions.all(|version| digest::is_sha256(version)) {
        return Err(refuse("versions are 64 hexadecimal digits".to_owned()));
    }
    Ok((pointer, stat.tag))
}

/// What a pointer said, and what it says now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The version before; `None` if there was no pointer.
    pub from: Option<String>,
    /// The version that is the latest now.
    pub to: String,
}

/// Points at version `sha256`, which must be there. Fails if somebody else moves the pointer at the
/// same time.
pub(crate) async fn promote(store: &dyn Store, sha256: &str) -> Result<Moved, WeightsError> {
    let name = format!("{sha256}/{MANIFEST}");
    let (manifest, _) = download::read(store, &name, MAX_MANIFEST_BYTES).await?;
    digest::check(&store.address(&name), &manifest, sha256)?;
    let (pointer, tag) = match pointer(store).await {
        Ok((pointer, tag)) => (Some(pointer), tag),
        // Without permission to list, S3 denies what is not there; what is, is not written over.
        Err(WeightsError::Missing { .. } | WeightsError::Denied { .. }) => (None, None),
        Err(error) => return Err(error),
    };
    let expected = match (&pointer, &tag) {
        (None, _) => Expected::Missing,
        (Some(_), Some(tag)) => Expected::Tag(tag),
        (Some(_), None) => Expected::Anything,
    };
    let from = pointer.as_ref().map(|pointer| pointer.sha256.clone());
    if from.as_deref() != Some(sha256) {
        let before = pointer.map(|Pointer { sha256, previous }| [vec![sha256], previous].concat());
        let mut previous = before.unwrap_or_default();
        previous.retain(|version| version != sha256);
        previous.truncate(MAX_PREVIOUS);
        write(store, &Pointer { sha256: sha256.to_owned(), previous }, expected).await?;
    }
    Ok(Moved { from, to: sha256.to_owned() })
}

/// Points back at the version before, which is then the latest.
pub(crate) async fn rollback(store: &dyn Store) -> Result<Moved, WeightsError> {
    let (Pointer { sha256: from, mut previous }, tag) = pointer(store).await?;
    if previous.is_empty() {
        let reason = "there is no version before this one".to_owned();
        return Err(WeightsError::Config { address: store.address(LATEST), reason });
    }
    let to = previous.remove(0);
    let expected = tag.as_deref().map_or(Expected::Anything, Expected::Tag);
    write(store, &Pointer { sha256: to.clone(), previous }, expected).await?;
    Ok(Moved { from: Some(from), to })
}

async fn write(
    store: &dyn Store,
    pointer: &Pointer,
    expected: Expected<'_>,
) -> Result<(), WeightsError> {
    let at = |error: StoreError| error.at(store.address(LATEST));
    let json =
        serde_json::to_vec(pointer).map_err(|error| at(StoreError::Refused(error.into())))?;
    store.write(LATEST, json.into(), expected).await.map_err(at)
}
