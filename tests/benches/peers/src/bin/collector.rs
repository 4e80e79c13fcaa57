//! A collector that reads what OTLP sends it over HTTP and keeps nothing, for as little CPU as that takes.
//!
//! Listens on the port that is its argument. Answers every GET with what came so far:
//! `{"requests": 2, "bytes": 250000}`.

use std::{
    env,
    error::Error,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = env::args().nth(1).ok_or("collector <port>")?.parse()?;
    for connection in TcpListener::bind(("127.0.0.1", port))?.incoming() {
        let connection = connection?;
        // One that breaks off has said what it had to say.
        thread::spawn(move || serve(connection));
    }
    Ok(())
}

fn serve(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(1 << 17, connection.try_clone()?);
    let mut request = String::new();
    while reader.read_line(&mut request)? > 0 {
        let size = body_size(&mut reader)?;
        io::copy(&mut reader.by_ref().take(size), &mut io::sink())?;
        let answer = if request.starts_with("GET") {
            let (requests, bytes) = (REQUESTS.load(Relaxed), BYTES.load(Relaxed));
            format!("{{\"requests\": {requests}, \"bytes\": {bytes}}}")
        } else {
            REQUESTS.fetch_add(1, Relaxed);
            BYTES.fetch_add(size, Relaxed);
            String::new()
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
        connection.write_all((head + &answer).as_bytes())?;
        request.clear();
    }
    Ok(())
}

/// Reads headers to their end.
fn body_size(reader: &mut impl BufRead) -> io::Result<u64> {
    let mut size = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(size) };
        if name.eq_ignore_ascii_case("content-length") {
            size = value.trim().parse().unwrap_or(0);
        }
    }
}
