//! The `sanderling` command. This file reads its arguments; each subcommand is a module.

mod calibration;
mod pack;

use std::{io::Write, process::ExitCode};

use clap::{Parser, Subcommand};
use telemetry::{Causes, LogFormat};

/// Prepares models for Sanderling's functions.
#[derive(Debug, Parser)]
#[command(name = "sanderling", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pack(pack::Arguments),
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let mut errors = std::io::stderr();
    if let Err(error) = telemetry::init(LogFormat::for_stdout(), "warn") {
        let _ = writeln!(errors, "{error}");
        return ExitCode::FAILURE;
    }
    let outcome = match command {
        Command::Pack(arguments) => pack::run(&arguments, &mut std::io::stdout()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(errors, "error: {}", Causes(&error));
            ExitCode::FAILURE
        }
    }
}
