//! One rate for the bodies of all connections together.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::log::lock;

/// Time one piece takes: what is sent at once, so how smooth the stream is.
const PIECE: Duration = Duration::from_millis(1);
/// Delay that may be made up for. Timers and threads come late; without this each late piece would
/// lower the rate. Time in which nobody wanted to send is lost but for [`CREDIT`].
const MAX_DELAY: Duration = Duration::from_millis(100);
const CREDIT: Duration = Duration::from_millis(2);
const MIN_PIECE_BYTES: usize = 256;

/// A token bucket, kept as the time at which all that was promised will have been sent.
#[derive(Debug)]
pub(crate) struct Throttle(Mutex<State>);

#[derive(Debug)]
struct State {
    bits_per_second: Option<u64>,
    free_at: Instant,
}

impl Throttle {
    pub(crate) fn new(bits_per_second: Option<u64>) -> Self {
        Self(Mutex::new(State { bits_per_second, free_at: Instant::now() }))
    }

    pub(crate) fn set(&self, bits_per_second: Option<u64>) {
        *lock(&self.0) = State { bits_per_second, free_at: Instant::now() };
    }

    /// Takes the first piece of `max_bytes`: how many bytes, and when the last of them is due.
    /// Without a rate, all of them at once. `delay` is how late the caller's last piece was.
    pub(crate) fn reserve(&self, max_bytes: usize, delay: Duration) -> (usize, Option<Instant>) {
        let mut state = lock(&self.0);
        let Some(bits_per_second) = state.bits_per_second else { return (max_bytes, None) };
        let bytes_per_second = bits_per_second.max(8) as f64 / 8.0;
        let piece = (bytes_per_second * PIECE.as_secs_f64()) as usize;
        let num_bytes = max_bytes.min(piece.max(MIN_PIECE_BYTES));
        let earliest =
            Instant::now().checked_sub(delay.clamp(CREDIT, MAX_DELAY)).unwrap_or(state.free_at);
        let takes = Duration::from_secs_f64(num_bytes as f64 / bytes_per_second);
        state.free_at = state.free_at.max(earliest) + takes;
        (num_bytes, Some(state.free_at))
    }
}
