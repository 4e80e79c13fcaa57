//! The `sanderling` command. This file reads its arguments; each subcommand is a module.

mod access;
mod calibration;
mod error;
mod inspect;
mod new;
mod pack;
mod progress;
mod promote;
mod pull;
mod push;
mod token;

use std::{
    io::{ErrorKind, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use telemetry::{Causes, LogFormat};

use crate::error::CliError;

/// Writes Sanderling's functions, prepares and publishes their models, makes their users.
#[derive(Debug, Parser)]
#[command(name = "sanderling", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten, next_help_heading = "Stores")]
    access: access::Arguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pack(pack::Arguments),
    Inspect(inspect::Arguments),
    Push(push::Arguments),
    Pull(pull::Arguments),
    Promote(promote::Promote),
    Rollback(promote::Rollback),
    New(new::Arguments),
    #[command(subcommand)]
    Token(token::Command),
}

fn main() -> ExitCode {
    let Arguments { command, access } = Arguments::parse();
    let access = access.into();
    let (mut report, mut errors) = (std::io::stdout(), std::io::stderr());
    if let Err(error) = telemetry::init("sanderling", LogFormat::for_stdout(), "error") {
        let _ = writeln!(errors, "{error}");
        return ExitCode::FAILURE;
    }
    let outcome = match command {
        Command::Pack(arguments) => pack::run(&arguments, &access, &mut report),
        Command::Inspect(arguments) => inspect::run(&arguments, &access, &mut report),
        Command::Push(arguments) => push::run(&arguments, &access, &mut report),
        Command::Pull(arguments) => pull::run(&arguments, &access, &mut report),
        Command::Promote(arguments) => promote::promote(&arguments, &access, &mut report),
        Command::Rollback(arguments) => promote::rollback(&arguments, &access, &mut report),
        Command::New(arguments) => new::run(&arguments, &mut report),
        Command::Token(command) => token::run(&command, &mut report),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads the report has seen enough of it.
        Err(CliError::Report(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(errors, "error: {}", Causes(&error));
            ExitCode::FAILURE
        }
    }
}
