//! `POST /login` and `GET /.well-known/jwks.json`. There is no engine to join with: `serve::token` is all
//! of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    serve::token()
}
