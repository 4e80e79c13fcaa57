//! Compiles the kernels as C++, as they are and with each mistake of `MUTANTS`.
#![allow(clippy::disallowed_methods, reason = "cargo says where things are")]

use std::{
    env,
    error::Error,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

include!("src/mutants.rs");

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let kernels = here.join("../../runtime/engine-gpu/kernels");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for watched in [&kernels, &here.join("device"), &here.join("src/mutants.rs")] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").include(here.join("device")).define("EMULATED", None);
    build.opt_level(2).warnings(true).extra_warnings(true);
    build.flag("-fno-strict-aliasing");
    build.files(
        ["emulator.cpp", "fiber.cpp", "sm90.cpp"].map(|file| here.join("device").join(file)),
    );

    let mut variants = Variants { out, kernels, list: String::new(), calls: String::new() };
    for (index, kernel) in variants.names()?.into_iter().enumerate() {
        build.file(variants.write(&format!("plain{index}"), "", &kernel, None)?);
    }
    for (index, mutant) in MUTANTS.iter().enumerate() {
        let folder = format!("mutant{index}");
        build.file(variants.write(&folder, mutant.name, mutant.kernels, Some(mutant))?);
    }
    let list = variants.out.join("list.cpp");
    let text =
        format!("{}extern \"C\" void emulator_list() {{\n{}}}\n", variants.list, variants.calls);
    fs::write(&list, text)?;
    build.file(list).try_compile("kernels")?;
    Ok(())
}

/// Kernels as the compiler reads them.
struct Variants {
    out: PathBuf,
    kernels: PathBuf,
    /// A function of each file, so that the linker needs them all.
    list: String,
    calls: String,
}

impl Variants {
    /// Of all kernels.
    fn names(&self) -> Result<Vec<String>, Box<dyn Error>> {
        let mut names = Vec::new();
        for file in fs::read_dir(&self.kernels)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "cu") {
                names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Writes a file of kernels, with what it includes; returns the file.
    fn write(
        &mut self,
        folder: &str,
        prefix: &str,
        kernel: &str,
        mutant: Option<&Mutant>,
    ) -> Result<PathBuf, Box<dyn Error>> {
        let target = self.out.join(folder);
        fs::create_dir_all(&target)?;
        for file in fs::read_dir(&self.kernels)? {
            let path = file?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_wanted = name.ends_with(".cuh") || name == format!("{kernel}.cu");
            if is_wanted {
                let text = mutated(&path, name, mutant)?;
                fs::write(target.join(name), text)?;
            }
        }
        let file = target.join(format!("{kernel}.cpp"));
        // A namespace for each: else the linker would take the functions of one for those of all.
        let text = format!(
            "#define VARIANT \"{prefix}\"\n#include \"sm90.h\"\n\
             namespace {folder} {{\n#include \"{kernel}.cu\"\n}}\n\
             extern \"C\" void link_{folder}() {{}}\n"
        );
        fs::write(&file, text)?;
        writeln!(self.list, "extern \"C\" void link_{folder}();")?;
        writeln!(self.calls, "    link_{folder}();")?;
        Ok(file)
    }
}

fn mutated(path: &Path, name: &str, mutant: Option<&Mutant>) -> Result<String, Box<dyn Error>> {
    let text = fs::read_to_string(path)?;
    let Some(mutant) = mutant.filter(|mutant| mutant.file == name) else { return Ok(text) };
    if text.matches(mutant.from).count() != 1 {
        let Mutant { name: mutant, from, .. } = mutant;
        return Err(format!("mutant \"{mutant}\": {name} does not have \"{from}\" once").into());
    }
    Ok(text.replace(mutant.from, mutant.to))
}
