//! A crate imports only crates on lower floors: never up, never sideways.
#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// The crates of the runtime and their floors; whatever lies in `functions/` is above them all.
const FLOORS: [(&str, usize); 10] = [
    ("sanderling-engine", 0),
    ("sanderling-telemetry", 0),
    ("sanderling-encoder", 1),
    ("sanderling-weights", 2),
    ("sanderling-admission", 3),
    ("sanderling-pipeline", 3),
    ("sanderling-engine-cpu", 3),
    ("sanderling-engine-gpu", 3),
    ("sanderling", 4),
    ("sanderling-cli", 5),
];
const FUNCTIONS_FLOOR: usize = 5;

/// Packages of the workspace, but for those that only serve its tests.
fn workspace() -> Vec<Package> {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let tests = metadata.workspace_root.join("tests");
    let is_shipped = |package: &Package| !package.manifest_path.starts_with(&tests);
    metadata.packages.into_iter().filter(is_shipped).collect()
}

#[test]
fn crates_import_only_lower_floors() {
    let packages = workspace();
    let mut floors = BTreeMap::from(FLOORS);
    for package in &packages {
        if package.manifest_path.as_str().contains("/functions/") {
            floors.insert(&package.name, FUNCTIONS_FLOOR);
        }
    }
    let mut edges = 0;
    for package in &packages {
        let name = package.name.as_str();
        let upper = floors.get(name).unwrap_or_else(|| panic!("{name} has no floor"));
        for import in &package.dependencies {
            let Some(lower) = floors.get(import.name.as_str()) else { continue };
            if import.kind == DependencyKind::Normal {
                assert!(lower < upper, "{name} (floor {upper}) imports {} ({lower})", import.name);
                edges += 1;
            }
        }
    }
    assert!(edges >= FLOORS.len(), "only {edges} edges seen: is the metadata complete?");
}

#[test]
fn engine_knows_nobody() {
    let packages = workspace();
    let engine = packages.iter().find(|package| package.name == "sanderling-engine").unwrap();
    let imports: Vec<&str> = engine.dependencies.iter().map(|import| &*import.name).collect();
    assert_eq!(imports, ["thiserror"]);
}
