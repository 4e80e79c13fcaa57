//! Models in stores, as the function meets them: what breaks on the way, what is kept, what is
//! shared, what is replaced.
//!
//! Each test has a server and a folder of its own, and starts the function as processes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod function;
mod model;
mod stored;

mod cache;
mod faults;
mod loading;
mod places;
mod refusals;
mod reload;
