//! `sanderling inspect`: what a model says of itself, and whether it is true.

use std::io::{self, Write};

use weights::{Access, Contents, ModelFile, Tensor};

use crate::{error::CliError, progress::Bar};

/// Digits that tell one tensor from another.
const SHORT_DIGITS: usize = 12;

/// Shows what a model is: its name, version, labels, files and tensors.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A model, as MODEL_URI takes it: a path, https://…, s3://… or hf://…, and #sha256=… behind it
    uri: String,
    /// Read all of it, and check every digest
    #[arg(long)]
    verify: bool,
}

/// Writes what the model at `uri` is to `report`.
pub(crate) fn run(
    Arguments { uri, verify }: &Arguments,
    access: &Access,
    report: &mut impl Write,
) -> Result<(), CliError> {
    let bar = Bar::new();
    let contents = weights::inspect(uri, *verify, access, &|progress| bar.show(progress))?;
    drop(bar);
    describe(&contents, report)?;
    if *verify {
        let verified = match (contents.tensors.len(), uri.contains("#sha256=")) {
            (0, false) => "nothing to verify: an export names no digests".to_owned(),
            (0, true) => "verified: its version is the one that is pinned".to_owned(),
            (tensors, _) => {
                let files = contents.files.iter().filter(|file| file.sha256.is_some()).count();
                format!("verified: {files} files and {tensors} tensors have their digests")
            }
        };
        writeln!(report, "\n{verified}")?;
    }
    Ok(())
}

fn describe(contents: &Contents, report: &mut impl Write) -> io::Result<()> {
    let unread = "unknown until it is read: --verify does";
    let max_positions = contents.max_position_embeddings.to_string();
    let labels = contents.labels.join(", ");
    let lines = [
        ("name", contents.name.as_deref()),
        ("version", Some(contents.sha256.as_deref().unwrap_or(unread))),
        ("precision", contents.precision.as_deref()),
        ("labels", Some(labels.as_str()).filter(|labels| !labels.is_empty())),
        ("max positions", Some(&max_positions)),
        ("made of", contents.source_sha256.as_deref()),
    ];
    for (name, value) in lines {
        if let Some(value) = value {
            writeln!(report, "{name:<13}  {value}")?;
        }
    }
    writeln!(report)?;
    files(&contents.files, report)?;
    if contents.tensors.is_empty() {
        return Ok(());
    }
    writeln!(report)?;
    tensors(&contents.tensors, report)
}

/// A table of files.
pub(crate) fn files(files: &[ModelFile], report: &mut impl Write) -> io::Result<()> {
    let rows = files.iter().map(|ModelFile { name, bytes, sha256 }| {
        [name.clone(), bytes.to_string(), sha256.clone().unwrap_or_default()]
    });
    table(["file", "bytes", "sha256"], &[1], rows, report)
}

fn tensors(tensors: &[Tensor], report: &mut impl Write) -> io::Result<()> {
    let rows = tensors.iter().map(|Tensor { name, dtype, shape, offset, length, sha256 }| {
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let digits = sha256.chars().take(SHORT_DIGITS).collect();
        [name.clone(), dtype.clone(), shape, offset.to_string(), length.to_string(), digits]
    });
    table(["tensor", "dtype", "shape", "offset", "bytes", "sha256"], &[3, 4], rows, report)
}

/// Writes rows below their headings, in columns of one width; those of `numbers` end together.
fn table<const N: usize>(
    headings: [&str; N],
    numbers: &[usize],
    rows: impl Iterator<Item = [String; N]>,
    report: &mut impl Write,
) -> io::Result<()> {
    let rows: Vec<_> = std::iter::once(headings.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    for row in &rows {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if numbers.contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        writeln!(report, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut report = Vec::new();
        let rows = [["a", "5"], ["names", "12345"]].map(|row| row.map(str::to_owned));
        table(["name", "size"], &[1], rows.into_iter(), &mut report).unwrap();
        let expected = "name    size\na          5\nnames  12345\n";
        assert_eq!(String::from_utf8(report).unwrap(), expected);
    }
}
