//! A folder to serve, and an HTTP client that hides nothing: one request a connection.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use object_store::{Buckets, Options, Server};
use s3s::dto::{Timestamp, TimestampFormat};
use sha2::{Digest, Sha256};

/// A server and its folder, which holds the bucket `models` and in it `weights.bin`.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) root: PathBuf,
    pub(crate) weights: Vec<u8>,
}

impl Fixture {
    pub(crate) fn start(name: &str, options: Options) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("models")).unwrap();
        // Longer than one read of the server, and no two windows of it alike.
        let weights: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::write(root.join("models/weights.bin"), &weights).unwrap();
        Self { server: Server::start(&root, options).unwrap(), root, weights }
    }

    pub(crate) fn public(name: &str) -> Self {
        Self::start(name, Options { public: Buckets::All, ..Options::default() })
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.exchange(method, path, headers, b"")
    }

    /// Sends one request; reads until the server closes or is silent for a second.
    pub(crate) fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut stream = TcpStream::connect(self.host()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        head += &format!("host: {}\r\ncontent-length: {}\r\n", self.host(), body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let (mut received, mut buffer) = (Vec::new(), [0; 65_536]);
        let closed = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break true,
                Ok(num_bytes) => received.extend_from_slice(&buffer[..num_bytes]),
                Err(error) => break error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        };
        let end = received.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(received[..end].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body: received[end + 4..].to_vec(), closed }
    }

    /// Sends one request signed with `secret_key` for the access key `test`.
    pub(crate) fn signed(
        &self,
        secret_key: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let date = amz_date();
        let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
        let digest = hex(&Sha256::digest(body));
        let host = self.host().to_owned();
        let mut signed: Vec<(&str, &str)> = headers.to_vec();
        signed.extend([("host", &*host), ("x-amz-content-sha256", &digest), ("x-amz-date", &date)]);
        signed.sort_unstable();
        let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String =
            signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let (resource, query) = path.split_once('?').unwrap_or((path, ""));
        let canonical = format!("{method}\n{resource}\n{query}\n{lines}\n{names}\n{digest}");
        let canonical = hex(&Sha256::digest(canonical));
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
        let mut key = format!("AWS4{secret_key}").into_bytes();
        for part in scope.split('/') {
            key = mac(&key, part);
        }
        let signature = hex(&mac(&key, &to_sign));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=test/{scope}, SignedHeaders={names}, Signature={signature}"
        );
        signed.retain(|(name, _)| *name != "host");
        signed.push(("authorization", &authorization));
        self.exchange(method, path, &signed, body)
    }

    fn host(&self) -> &str {
        self.server.endpoint().strip_prefix("http://").unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    head: String,
    pub(crate) body: Vec<u8>,
    /// The server closed the connection.
    pub(crate) closed: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The text of the first XML element of this name.
    pub(crate) fn element(&self, name: &str) -> &str {
        let xml = std::str::from_utf8(&self.body).unwrap();
        let (_, rest) = xml.split_once(&format!("<{name}>")).unwrap();
        rest.split('<').next().unwrap()
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Now, as `20260131T235959Z`.
fn amz_date() -> String {
    let mut text = Vec::new();
    Timestamp::from(SystemTime::now()).format(TimestampFormat::DateTime, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap().replace(['-', ':'], "");
    format!("{}Z", &text[..15])
}
