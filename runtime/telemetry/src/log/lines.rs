//! Lines on their way to standard output.
//!
//! ```text
//! event ──> Lines::put ──> thread "log" ──> one write for all that came within 20 ms
//! ```
//!
//! A write for each line, in the midst of a request, pushes what the engine needs next out of the
//! caches. Until [`gather_lines`] is called, and after its end, there is one for each all the same.

use std::{
    io::{self, Write},
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::METRICS;

/// How long a line waits for others.
const LINGER: Duration = Duration::from_millis(20);

/// What may wait, in bytes. From half of it on, nothing waits for others.
const MAX_WAITING: usize = 1 << 20;

/// Longest wait for whoever reads standard output. Past it, lines are dropped, until it reads on.
const PATIENCE: Duration = Duration::from_secs(1);

static STDOUT: Lines = Lines::new();

/// While it lives, lines are gathered. Its end writes those that wait.
#[derive(Debug)]
pub struct Gathering(());

/// Has a thread write the lines of all from now on, many at once. A line is written 20 ms after it was
/// logged, or sooner, those of errors before whoever logs them goes on. Call it once.
///
/// Not for a platform that freezes the process between requests.
///
/// # Errors
///
/// If there can be no thread.
pub fn gather_lines() -> io::Result<Gathering> {
    thread::Builder::new().name("log".into()).spawn(|| STDOUT.write_to(io::stdout()))?;
    STDOUT.lock().is_gathering = true;
    Ok(Gathering(()))
}

impl Drop for Gathering {
    fn drop(&mut self) {
        STDOUT.end();
    }
}

/// Standard output, behind the lines that wait for it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stdout {
    is_urgent: bool,
}

impl Write for Stdout {
    /// Takes whole lines.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        if !STDOUT.put(lines, self.is_urgent) {
            io::stdout().write_all(lines)?;
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Stdout {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }

    fn make_writer_for(&self, event: &Metadata<'_>) -> Self {
        // It may be the last thing that the process says.
        Self { is_urgent: *event.level() == Level::ERROR }
    }
}

#[derive(Debug)]
struct Lines {
    waiting: Mutex<Waiting>,
    /// Told of the first line that waits, and when none waits for others any longer.
    is_due: Condvar,
    /// Told when there is room again, and after each write.
    has_moved: Condvar,
}

#[derive(Debug)]
struct Waiting {
    is_gathering: bool,
    lines: Vec<u8>,
    /// Bytes that were ever put here, and of them those that are written.
    num_put: u64,
    num_written: u64,
    is_urgent: bool,
    /// Whether nobody has read for longer than anybody waits.
    is_stuck: bool,
}

impl Waiting {
    fn has_room_for(&self, lines: &[u8]) -> bool {
        self.lines.is_empty() || self.lines.len() + lines.len() <= MAX_WAITING
    }

    /// Whether no line waits for others any longer.
    fn is_due(&self) -> bool {
        self.is_urgent || self.lines.len() >= MAX_WAITING / 2
    }
}

impl Lines {
    const fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                is_gathering: false,
                lines: Vec::new(),
                num_put: 0,
                num_written: 0,
                is_urgent: false,
                is_stuck: false,
            }),
            is_due: Condvar::new(),
            has_moved: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes whole lines, if they are gathered, and returns when they are written if that is urgent.
    fn put(&self, lines: &[u8], is_urgent: bool) -> bool {
        let waiting = self.lock();
        if !waiting.is_gathering {
            return false;
        }
        let mut waiting = self.wait_while(waiting, |waiting| !waiting.has_room_for(lines));
        if !waiting.has_room_for(lines) {
            METRICS.log_lines_dropped_total.with([]).add(1);
            return true;
        }
        let are_first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(lines);
        waiting.num_put += lines.len() as u64;
        waiting.is_urgent |= is_urgent;
        if are_first || waiting.is_due() {
            self.is_due.notify_one();
        }
        if is_urgent {
            let num_put = waiting.num_put;
            drop(self.wait_while(waiting, |waiting| waiting.num_written < num_put));
        }
        true
    }

    /// Waits while there is `something` to wait for, but not for anybody who reads nothing.
    fn wait_while<'a>(
        &'a self,
        waiting: MutexGuard<'a, Waiting>,
        something: impl Fn(&Waiting) -> bool,
    ) -> MutexGuard<'a, Waiting> {
        let (mut waiting, waited) = self
            .has_moved
            .wait_timeout_while(waiting, PATIENCE, |waiting| {
                something(waiting) && !waiting.is_stuck
            })
            .unwrap_or_else(PoisonError::into_inner);
        waiting.is_stuck |= waited.timed_out();
        waiting
    }

    /// Writes to `sink` what comes.
    fn write_to(&self, mut sink: impl Write) {
        let mut lines = Vec::new();
        loop {
            let waiting = self.lock();
            let waiting = self
                .is_due
                .wait_while(waiting, |waiting| waiting.lines.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            let (mut waiting, _) = self
                .is_due
                .wait_timeout_while(waiting, LINGER, |waiting| !waiting.is_due())
                .unwrap_or_else(PoisonError::into_inner);
            waiting.is_urgent = false;
            mem::swap(&mut lines, &mut waiting.lines);
            drop(waiting);
            self.has_moved.notify_all();
            // Whoever closed the pipe does not want them.
            let _ = sink.write_all(&lines);
            let mut waiting = self.lock();
            waiting.num_written += lines.len() as u64;
            waiting.is_stuck = false;
            drop(waiting);
            self.has_moved.notify_all();
            lines.clear();
        }
    }

    /// Returns when all is written. From then on nothing is gathered, unless nobody reads.
    fn end(&self) {
        let mut waiting = self.lock();
        waiting.is_urgent = true;
        // Whoever reads nothing is given another chance.
        waiting.is_stuck = false;
        self.is_due.notify_one();
        let is_unwritten = |waiting: &Waiting| waiting.num_written < waiting.num_put;
        let mut waiting = self.wait_while(waiting, is_unwritten);
        waiting.is_gathering = is_unwritten(&waiting);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        time::Instant,
    };

    use super::*;

    /// Keeps each write, and takes none while it is held.
    #[derive(Debug, Clone, Default)]
    struct Reader(Arc<Mutex<Vec<String>>>);

    impl Reader {
        fn hold(&self) -> MutexGuard<'_, Vec<String>> {
            self.0.lock().unwrap()
        }
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.hold().push(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gathered() -> (&'static Lines, Reader) {
        let lines: &'static Lines = Box::leak(Box::new(Lines::new()));
        let reader = Reader::default();
        let sink = reader.clone();
        thread::spawn(|| lines.write_to(sink));
        lines.lock().is_gathering = true;
        (lines, reader)
    }

    #[test]
    fn what_waits_is_one_write_and_the_end_waits_for_it() {
        let (lines, reader) = gathered();
        let said: Vec<String> = (0..100).map(|number| format!("line {number}\n")).collect();
        let written = reader.hold();
        assert!(said.iter().all(|line| lines.put(line.as_bytes(), false)));
        let (done, ended) = mpsc::channel();
        thread::spawn(move || {
            lines.end();
            done.send(()).unwrap();
        });
        assert!(ended.recv_timeout(LINGER * 2).is_err());
        drop(written);
        ended.recv().unwrap();
        let written = reader.hold();
        assert_eq!(written.concat(), said.concat());
        // What came while the first lines were on their way is the second write.
        assert!(written.len() <= 2, "{}", written.len());
        assert!(!lines.put(b"after the end\n", false));
    }

    #[test]
    fn an_urgent_line_is_written_when_it_is_put() {
        let (lines, reader) = gathered();
        assert!(lines.put(b"first\n", false) && lines.put(b"second\n", true));
        assert_eq!(reader.hold().concat(), "first\nsecond\n");
    }

    #[test]
    fn whoever_reads_nothing_is_waited_for_once_and_gets_what_there_was_room_for() {
        let (lines, reader) = gathered();
        let dropped = METRICS.log_lines_dropped_total.with([]);
        let before = dropped.value();
        let half = "x".repeat(MAX_WAITING / 2 - 1) + "\n";
        let held = reader.hold();
        let began = Instant::now();
        for _ in 0..20 {
            assert!(lines.put(half.as_bytes(), false));
        }
        assert!(lines.put(b"urgent\n", true));
        assert!((PATIENCE..PATIENCE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        let num_dropped = dropped.value() - before;
        drop(held);
        lines.end();
        let written = reader.hold().concat();
        let num_written = written.matches(&half).count() as u64;
        // Two wait; the one or two before them were on their way.
        assert!((3..=4).contains(&num_written), "{num_written}");
        assert_eq!(num_written + num_dropped, 21);
        assert_eq!(written.len() as u64, num_written * half.len() as u64);
    }
}
