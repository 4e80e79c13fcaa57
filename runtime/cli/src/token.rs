//! `sanderling token`: users of the function that issues tokens.

use std::io::{IsTerminal, Write};

use admission::hash_password;
use telemetry::Secret;

use crate::error::CliError;

/// Prepares what the function `token` needs.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Hash(Hash),
}

/// Reads a password, from the terminal or the first line of stdin, and prints a line for USERS_FILE.
#[derive(Debug, clap::Args)]
pub(crate) struct Hash {
    /// Name to log in with
    #[arg(long, value_parser = field)]
    user: String,
    /// What its tokens say that the user may do
    #[arg(long, default_value = "user", value_parser = field)]
    role: String,
}

/// What can stand between colons.
fn field(text: &str) -> Result<String, String> {
    let is_field = !text.is_empty() && !text.starts_with('#') && text.trim() == text;
    if is_field && !text.contains([':', '\n', '\r']) {
        return Ok(text.to_owned());
    }
    Err("must not be empty, begin with # or have a colon, a line break or white space at its ends"
        .to_owned())
}

pub(crate) fn run(command: &Command, report: &mut impl Write) -> Result<(), CliError> {
    let Command::Hash(Hash { user, role }) = command;
    let password = read_password().map_err(CliError::Password)?;
    let hash = hash_password(&password).map_err(|error| CliError::Hash(error.to_string()))?;
    Ok(writeln!(report, "{user}:{role}:{hash}")?)
}

fn read_password() -> std::io::Result<Secret> {
    let stdin = std::io::stdin();
    let password = if stdin.is_terminal() {
        rpassword::prompt_password("Password: ")?
    } else {
        let mut line = String::new();
        stdin.read_line(&mut line)?;
        line.truncate(line.trim_end_matches(['\n', '\r']).len());
        line
    };
    if password.is_empty() {
        Err(std::io::Error::other("it is empty"))
    } else {
        Ok(Secret::new(password))
    }
}
