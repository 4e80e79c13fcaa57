//! An S3 server over a folder, for tests of clients: it checks signatures, answers as S3 does, and
//! breaks where a test asks for it.
//!
//! ```text
//! connection ──> Faults::plan ──> s3s: signature, Access ──> Store ──> Outgoing ──> connection
//!                     │                                                   │
//!                     └── 503, 500, 302                                   └── cut, drip, …, rate
//! ```
//!
//! The object `key` of `bucket` is the file `<root>/<bucket>/<key>`; a bucket is a folder the test
//! makes. Addresses are path style: `<endpoint>/<bucket>/<key>`.
//!
//! # Limits
//!
//! An ETag is made of a file's time of change, length and inode, not of its content: a file that is
//! rewritten in place, at the same length, within one tick of the clock (4 ms) keeps it. Checksums
//! of uploads are not compared. Reads and writes of files block the server's threads.
//!
//! # Example
//!
//! ```
//! use object_store::{Buckets, Effect, Fault, Options, Server};
//!
//! # let root = std::env::temp_dir().join(format!("object-store-doc-{}", std::process::id()));
//! std::fs::create_dir_all(root.join("models"))?;
//! let server = Server::start(&root, Options { public: Buckets::All, ..Options::default() })?;
//! // The first two reads of any weights.bin break off after 1,000 bytes.
//! server.fault(Fault::on("weights.bin", Effect::Cut { after_bytes: 1000 }).first(2));
//! assert!(server.endpoint().starts_with("http://127.0.0.1:"));
//! assert!(server.requests().is_empty());
//! # std::fs::remove_dir_all(&root)?;
//! # Ok::<(), std::io::Error>(())
//! ```
#![forbid(unsafe_code)]

mod access;
mod body;
mod fault;
mod log;
mod server;
mod store;
mod throttle;

pub use access::Buckets;
pub use fault::{Effect, Fault};
pub use log::Request;
pub use server::{Options, Server};
