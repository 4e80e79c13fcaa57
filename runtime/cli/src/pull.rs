//! `sanderling pull`: a model, from where it is published.

use std::{io::Write, path::PathBuf};

use weights::Access;

use crate::{error::CliError, progress::Bar};

/// Copies a model to a folder: a version, the latest one, or an export.
///
/// Every digest is checked, and FOLDER appears when all of it is there. If something interrupts,
/// the next pull reads the tensors that are missing: the others are in `.FOLDER.partial`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A model, as MODEL_URI takes it: a path, https://…, s3://… or hf://…, and #sha256=… behind it
    uri: String,
    /// Folder to make
    folder: PathBuf,
}

/// Copies the model, and writes its version to `report`.
pub(crate) fn run(
    Arguments { uri, folder }: &Arguments,
    access: &Access,
    report: &mut impl Write,
) -> Result<(), CliError> {
    let bar = Bar::new();
    let sha256 = weights::pull(uri, folder, access, &|progress| bar.show(progress))?;
    drop(bar);
    Ok(writeln!(report, "{sha256}")?)
}
