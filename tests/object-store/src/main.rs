//! The server as a program: prints where it listens, runs until a signal ends it.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Parser;
use object_store::{Buckets, Options, Server};
use tokio::signal::unix::{SignalKind, signal};

/// Serves a folder as S3 does, on 127.0.0.1, to the key pair `test` and `test-secret`.
#[derive(Debug, Parser)]
struct Arguments {
    /// The folder whose folders are the buckets.
    root: PathBuf,
    /// The port; 0 for any that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Rate of all answers together, in 10^6 bits a second.
    #[arg(long)]
    mbit_per_s: Option<u64>,
    /// Lets anyone read every object, without a signature.
    #[arg(long)]
    public: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let server = Server::start(
        &arguments.root,
        Options {
            port: arguments.port,
            public: if arguments.public { Buckets::All } else { Buckets::None },
            bits_per_second: arguments.mbit_per_s.map(|mbit| mbit.saturating_mul(1_000_000)),
            ..Options::default()
        },
    )?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{{\"endpoint\":\"{}\"}}", server.endpoint())?;
    stdout.flush()?;
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}
