//! `sanderling new`: a function of one's own, with its test and what deploys it.

use std::{
    fs,
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

use crate::error::CliError;

/// Where the crates are, for a function outside of a clone of them.
const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");

/// What is written, and from what. Kept as text: these are no files of this crate.
const FILES: [(&str, &str); 6] = [
    (".gitignore", "/target\n"),
    ("Cargo.toml", include_str!("manifest.txt")),
    ("src/main.rs", include_str!("main.txt")),
    ("tests/answers.rs", include_str!("answers.txt")),
    ("knative.yaml", include_str!("knative.txt")),
    ("lambda.yaml", include_str!("lambda.txt")),
];

/// Writes a function: a crate that classifies texts, with a test over HTTP, and manifests for
/// Knative and AWS Lambda.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder to write; its last part names the function, the crate and the path
    folder: PathBuf,
    /// The model that the test runs it with: a folder, or what MODEL_URI takes
    #[arg(long)]
    model: String,
}

/// Writes the function, and how to go on to `report`.
pub(crate) fn run(
    Arguments { folder, model }: &Arguments,
    report: &mut impl Write,
) -> Result<(), CliError> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !is_name(name) {
        return Err(CliError::Name(name.to_owned()));
    }
    let written = |error: io::Error| CliError::Write { path: folder.clone(), source: error };
    // Nothing that is there already is written over.
    fs::create_dir(folder).map_err(written)?;
    let place = folder.canonicalize().map_err(written)?;
    let clone = place.ancestors().find(|folder| folder.join("runtime/serve/Cargo.toml").is_file());
    let source = |part: &str| match clone {
        Some(clone) => {
            let path = relative(&place, &clone.join("runtime").join(part));
            format!("path = {:?}", path.display().to_string())
        }
        None => format!("git = {REPOSITORY:?}"),
    };
    let model = match Path::new(model).canonicalize() {
        Ok(model) => relative(&place, &model).display().to_string(),
        Err(_) => model.clone(),
    };
    let fill = |text: &str| {
        let text = text.replace("{{name}}", name).replace("{{model}}", &model);
        ["engine-cpu", "pipeline", "serve"]
            .iter()
            .fold(text, |text, part| text.replace(&format!("{{{{{part}}}}}"), &source(part)))
    };
    for (path, text) in FILES {
        write(&folder.join(path), &fill(text)).map_err(written)?;
    }
    if let Some(clone) = clone {
        // The versions that Sanderling is tested with.
        fs::copy(clone.join("Cargo.lock"), folder.join("Cargo.lock")).map_err(written)?;
    }
    let manifest = folder.join("Cargo.toml");
    writeln!(report, "cargo test --release --manifest-path {}", manifest.display())?;
    Ok(())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text)
}

/// Whether `name` can be all of a crate, a path and a Kubernetes service.
fn is_name(name: &str) -> bool {
    let is_inner = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '-';
    name.len() <= 63
        && name.starts_with(|char: char| char.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.chars().all(is_inner)
}

/// The way from the folder `from` to `to`, both from the root.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let from: Vec<Component<'_>> = from.components().collect();
    let to: Vec<Component<'_>> = to.components().collect();
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from[shared..].iter().map(|_| Component::ParentDir);
    up.chain(to[shared..].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_crates_paths_and_services() {
        for name in ["a", "spam", "spam-2"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "2spam", "spam-", "Spam", "spam_2", "spam/2", "späm", &"a".repeat(64)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn the_way_goes_up_no_further_than_it_has_to() {
        let way = |from: &str, to: &str| relative(Path::new(from), Path::new(to));
        assert_eq!(way("/a/b/c", "/a/d"), Path::new("../../d"));
        assert_eq!(way("/a", "/a/b"), Path::new("b"));
        assert_eq!(way("/a/b", "/c"), Path::new("../../c"));
    }
}
