//! `sanderling promote` and `sanderling rollback`: which version is the latest.

use std::io::{self, Write};

use weights::{Access, Moved};

use crate::error::CliError;

/// Makes a version that was pushed the latest, which functions without a pinned version load.
#[derive(Debug, clap::Args)]
pub(crate) struct Promote {
    /// Where the versions of the model are: a folder, or s3://bucket/prefix
    uri: String,
    /// The version: 64 hexadecimal digits
    #[arg(value_parser = version)]
    sha256: String,
}

/// Makes the version before the latest one the latest again.
#[derive(Debug, clap::Args)]
pub(crate) struct Rollback {
    /// Where the versions of the model are: a folder, or s3://bucket/prefix
    uri: String,
}

/// Makes a version the latest, and writes which was it before to `report`.
pub(crate) fn promote(
    Promote { uri, sha256 }: &Promote,
    access: &Access,
    report: &mut impl Write,
) -> Result<(), CliError> {
    Ok(self::report(&weights::promote(uri, sha256, access)?, report)?)
}

/// Makes the version before the latest, and writes both to `report`.
pub(crate) fn rollback(
    Rollback { uri }: &Rollback,
    access: &Access,
    report: &mut impl Write,
) -> Result<(), CliError> {
    Ok(self::report(&weights::rollback(uri, access)?, report)?)
}

/// Writes what the latest version was, and is.
pub(crate) fn report(Moved { from, to }: &Moved, report: &mut impl Write) -> io::Result<()> {
    writeln!(report, "before  {}", from.as_deref().unwrap_or("none"))?;
    writeln!(report, "latest  {to}")
}

fn version(text: &str) -> Result<String, &'static str> {
    let is_version = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_version.then(|| text.to_ascii_lowercase()).ok_or("a version is 64 hexadecimal digits")
}
