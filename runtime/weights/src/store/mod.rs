//! Where the files of a model lie: folders, web servers, S3, the Hugging Face hub.
//!
//! A store opens, measures and writes files under their names; it neither retries nor checks what
//! is in them: `download` and `bundle` do.

mod folder;
mod http;
mod s3;

use std::{error::Error, fmt, ops::Range, path::PathBuf, pin::Pin, sync::Arc};

use bytes::Bytes;
use telemetry::METRICS;

use crate::{Access, WeightsError, uri::Place};

pub(crate) use folder::Folder;

/// What a store's methods give: the trait is used as `dyn`.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Files under names, `/` between their parts.
pub(crate) trait Store: fmt::Debug + Send + Sync {
    /// Where `name` is, for messages.
    fn address(&self, name: &str) -> String;

    /// Size and tag of a file.
    fn stat<'a>(&'a self, name: &'a str) -> Answer<'a, Stat>;

    /// Opens a file, or `range` of it; with a tag, only if it still has it.
    fn read<'a>(
        &'a self,
        name: &'a str,
        range: Option<Range<u64>>,
        tag: Option<&'a str>,
    ) -> Answer<'a, Reading>;

    /// Writes a small file at once: whoever reads it meanwhile finds the old or the new one. With
    /// `expected`, only if it has that tag, or is not there (`Expected::Missing`).
    fn write<'a>(&'a self, name: &'a str, content: Bytes, expected: Expected<'a>)
    -> Answer<'a, ()>;

    /// Writes a file of `local` in parts, several at a time; those that an earlier attempt has
    /// left are kept. `on_part` is told the bytes of each part that is there.
    fn upload<'a>(
        &'a self,
        name: &'a str,
        local: PathBuf,
        on_part: &'a (dyn Fn(u64) + Send + Sync),
    ) -> Answer<'a, ()>;
}

/// What must be there before a file is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected<'a> {
    Anything,
    Missing,
    Tag(&'a str),
}

/// What is known of a file before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    /// In bytes.
    pub(crate) len: u64,
    /// Changes when the file does; `None` if the store cannot tell.
    pub(crate) tag: Option<String>,
}

/// A file that is being read.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Of the whole file.
    pub(crate) stat: Stat,
    /// Whether the range that was asked for comes, and not the whole file.
    pub(crate) is_range: bool,
    pub(crate) body: Body,
}

/// Bytes as they arrive.
#[derive(Debug)]
pub(crate) enum Body {
    File(folder::Pieces),
    Http(Box<reqwest::Response>),
    S3(aws_sdk_s3::primitives::ByteStream),
}

impl Body {
    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, StoreError>> {
        let interrupted = |error| StoreError::Interrupted(error);
        let (store, piece) = match self {
            Self::File(pieces) => ("folder", pieces.next()?),
            Self::Http(response) => {
                let piece = response.chunk().await.transpose()?;
                ("http", piece.map_err(|error| interrupted(error.into())))
            }
            Self::S3(stream) => {
                ("s3", stream.next().await?.map_err(|error| interrupted(error.into())))
            }
        };
        if let Ok(piece) = &piece {
            METRICS.weights_fetched_bytes_total.with([store]).add(piece.len() as u64);
        }
        Some(piece)
    }
}

/// Why a store did not do what it was asked, cut by what the caller does next.
#[derive(Debug)]
pub(crate) enum StoreError {
    /// There is no such file: look elsewhere.
    Missing,
    /// Not with these credentials: give others.
    Denied(String),
    /// The file is not the one that was asked for any more: start again.
    Replaced,
    /// The connection broke, or the server asks for patience: try again.
    Interrupted(Box<dyn Error + Send + Sync>),
    /// Anything else; trying again will not help.
    Refused(Box<dyn Error + Send + Sync>),
}

impl StoreError {
    /// What an HTTP status says that is not a success.
    fn of_status(status: u16, message: impl FnOnce() -> String) -> Self {
        match status {
            404 | 410 => Self::Missing,
            401 | 403 => Self::Denied(message()),
            409 | 412 | 416 => Self::Replaced,
            408 | 429 | 500.. => Self::Interrupted(message().into()),
            _ => Self::Refused(message().into()),
        }
    }

    /// As an error about `address`.
    pub(crate) fn at(self, address: String) -> WeightsError {
        match self {
            Self::Missing => WeightsError::Missing { address },
            Self::Denied(reason) => WeightsError::Denied { address, reason },
            Self::Replaced => WeightsError::Replaced { address },
            Self::Interrupted(source) | Self::Refused(source) => {
                WeightsError::Transfer { address, source }
            }
        }
    }
}

/// Opens the store at `place`.
pub(crate) fn open(place: &Place, access: &Access) -> Result<Arc<dyn Store>, WeightsError> {
    Ok(match place {
        Place::Folder(folder) => Arc::new(Folder::new(folder.clone())),
        Place::Http(url) => Arc::new(http::Http::new(url.clone(), access)?),
        Place::Hub { repository, revision } => {
            Arc::new(http::Http::hub(repository, revision, access)?)
        }
        Place::S3(place) => Arc::new(s3::S3::new(place, access)),
    })
}
