//! Who may call, how much, and with what text: everything between a request's head and its handler.
//!
//! ```text
//! Authorization ──> Verifier ──> Caller ──> Limiter ──> Standing
//!                      │                      │
//!                      └─> AuthError          └─> LimitError
//! text ──> InputRules ──> clean text
//! username, password ──> Users ──> Issuer ──> token            (the function `token`)
//! ```
//!
//! # Invariants
//!
//! - Knows neither HTTP's status codes nor which function asks.
//! - A key is used with one algorithm only, which the key decides and never the token.
//! - Whether a caller is within its limits is decided by one clock, in one step: that of Redis, or of
//!   this process.
//! - Nothing here waits without a limit, and no log line or error has a secret in it.
#![forbid(unsafe_code)]

mod address;
mod auth;
mod input;
mod issue;
mod limit;

pub use address::{Proxies, ProxiesError};
pub use auth::{ANONYMOUS, AuthError, AuthOptions, Caller, Verifier};
pub use input::{DEFAULT_DENY, InputRules, RulesError};
pub use issue::{
    Issued, Issuer, IssuerError, IssuerOptions, User, Users, UsersError, hash_password,
};
pub use limit::{
    LimitError, Limiter, RateLimits, RatesError, RedisError, RedisFailure, RedisOptions, Standing,
    Unit,
};
