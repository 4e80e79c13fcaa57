//! The server from the outside, over a socket.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod client;
mod faults;
mod s3;
