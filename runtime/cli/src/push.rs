//! `sanderling push`: a packed model, to where functions fetch it from.

use std::{io::Write, path::PathBuf};

use weights::Access;

use crate::{error::CliError, progress::Bar, promote};

/// Copies a packed model to a store, under its version.
///
/// All of FOLDER is checked first. It is a version of the model at URI when all of it is there; if
/// something interrupts, the next push sends what is missing. Functions go on with the version that
/// is the latest until `promote` makes another the latest.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the packed model
    folder: PathBuf,
    /// Where the versions of the model are: a folder, or
    /// s3://bucket/prefix[?endpoint=…&region=…&path_style=true]
    uri: String,
    /// Make it the latest version, too
    #[arg(long)]
    promote: bool,
}

/// Copies the folder, and writes its version to `report`.
pub(crate) fn run(
    Arguments { folder, uri, promote }: &Arguments,
    access: &Access,
    report: &mut impl Write,
) -> Result<(), CliError> {
    let bar = Bar::new();
    let pushed = weights::push(folder, uri, access, &|progress| bar.show(progress))?;
    drop(bar);
    let sha256 = &pushed.sha256;
    writeln!(report, "{sha256}")?;
    if !pushed.is_new {
        writeln!(report, "was there already")?;
    }
    if *promote {
        promote::report(&weights::promote(uri, sha256, access)?, report)?;
    }
    Ok(())
}
