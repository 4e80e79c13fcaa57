//! Threads that wait for work: a task is run by the caller and by every helper that is free.

use std::{
    hint, io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::simd::Local;

/// Looks that a helper takes at the board before it goes to sleep: some 50 µs, so that one pass
/// after the other finds it awake.
const SPINS: usize = 2_000;

/// Work that any number of threads may do together; each brings what it keeps between tasks.
pub(crate) type Task = Arc<dyn Fn(&mut Local) + Send + Sync>;

/// The calling thread and its helpers, which end with it.
#[derive(Debug)]
pub(crate) struct Team {
    board: Arc<Board>,
    local: Local,
    num_threads: usize,
}

/// Where tasks are put up.
#[derive(Default)]
struct Board {
    /// Counts tasks; helpers look at it without the lock.
    epoch: AtomicUsize,
    post: Mutex<Post>,
    wake: Condvar,
}

#[derive(Default)]
struct Post {
    task: Option<Task>,
    sleepers: usize,
    closed: bool,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Board").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Team {
    /// A team of `num_threads`, the caller's included.
    ///
    /// # Errors
    ///
    /// What the system says if it gives no more threads.
    pub(crate) fn new(num_threads: usize) -> io::Result<Self> {
        let board = Arc::new(Board::default());
        let team = Self { board: board.clone(), local: Local::default(), num_threads };
        for index in 1..num_threads {
            let board = board.clone();
            thread::Builder::new().name(format!("engine-{index}")).spawn(move || help(&board))?;
        }
        Ok(team)
    }

    pub(crate) fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// What the calling thread keeps between tasks.
    pub(crate) fn local(&mut self) -> &mut Local {
        &mut self.local
    }

    /// Runs `task` here and offers it to the helpers. Returns when it returns here; whether it is
    /// done then is for the task to see to.
    pub(crate) fn run(&mut self, task: &Task) {
        if self.num_threads > 1 {
            self.board.offer(Some(task.clone()));
        }
        task(&mut self.local);
        if self.num_threads > 1 {
            self.board.lock().task = None;
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.board.offer(None);
    }
}

impl Board {
    fn lock(&self) -> std::sync::MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts up a task, or closes the board.
    fn offer(&self, task: Option<Task>) {
        let mut post = self.lock();
        post.closed = task.is_none();
        post.task = task;
        self.epoch.fetch_add(1, Ordering::Release);
        if post.sleepers > 0 {
            self.wake.notify_all();
        }
    }

    /// The next task after that of `seen`, or `None` once the board is closed.
    fn next(&self, seen: &mut usize) -> Option<Task> {
        loop {
            for _ in 0..SPINS {
                if self.epoch.load(Ordering::Acquire) != *seen {
                    break;
                }
                hint::spin_loop();
            }
            let mut post = self.lock();
            while self.epoch.load(Ordering::Acquire) == *seen {
                post.sleepers += 1;
                post = self.wake.wait(post).unwrap_or_else(PoisonError::into_inner);
                post.sleepers -= 1;
            }
            *seen = self.epoch.load(Ordering::Acquire);
            if post.closed {
                return None;
            }
            // A task that is over already is no longer there.
            if let Some(task) = &post.task {
                return Some(task.clone());
            }
        }
    }
}

fn help(board: &Board) {
    let mut local = Local::default();
    let mut seen = 0;
    while let Some(task) = board.next(&mut seen) {
        task(&mut local);
    }
}
