//! The bytes of a connection: tells when a request begins to arrive, and closes so that the caller
//! can read its last answer.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::{Activity, Phase};

/// What an h2 connection begins with; whatever else comes is HTTP/1.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Most that is read and thrown away after the last answer.
const MAX_LEFT_BYTES: usize = 16 << 20;

/// A stream whose steps an [`Activity`] is told.
#[derive(Debug)]
pub(super) struct Stream<S> {
    inner: S,
    activity: Arc<Activity>,
    protocol: Protocol,
    closed: Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// So many bytes came, all of the preface.
    Unknown(usize),
    Http1,
    Http2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    No,
    /// The side that writes; so many bytes were read since.
    Write(usize),
}

impl<S> Stream<S> {
    pub(super) fn new(inner: S, activity: Arc<Activity>) -> Self {
        Self { inner, activity, protocol: Protocol::Unknown(0), closed: Closed::No }
    }

    /// Takes note of `bytes` that came.
    fn came(&mut self, bytes: &[u8]) {
        if let Protocol::Unknown(matched) = self.protocol {
            let expected = &PREFACE[matched..];
            let len = bytes.len().min(expected.len());
            self.protocol = if bytes[..len] != expected[..len] {
                Protocol::Http1
            } else if len == expected.len() {
                Protocol::Http2
            } else {
                Protocol::Unknown(matched + len)
            };
        }
        // What h2 sends between requests is not the head of one.
        let is_head = self.protocol != Protocol::Http2;
        if is_head && !bytes.is_empty() && self.activity.phase() == Phase::Idle {
            self.activity.head();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.came(&buf.filled()[start..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Closes the side that writes, and reads what a caller still sends that has not seen its answer
    /// yet. A socket closed with something unread is reset, and the answer may be lost with it.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed == Closed::No {
            ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
            self.activity.close();
            self.closed = Closed::Write(0);
        }
        while let Closed::Write(num_bytes) = self.closed {
            let mut left = [MaybeUninit::uninit(); 8192];
            let mut left = ReadBuf::uninit(&mut left);
            match Pin::new(&mut self.inner).poll_read(cx, &mut left) {
                Poll::Ready(Ok(())) if !left.filled().is_empty() && num_bytes < MAX_LEFT_BYTES => {
                    self.closed = Closed::Write(num_bytes + left.filled().len());
                }
                Poll::Pending if num_bytes > 0 || self.activity.is_unread() => {
                    return Poll::Pending;
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
