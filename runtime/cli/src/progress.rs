use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use weights::Progress;

const WORK: &str = "{msg} {spinner} {elapsed}";
const TRANSFER: &str =
    "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";

/// How often what turns turns on.
const TICK: Duration = Duration::from_millis(100);

/// A line on standard error that says what is done; nothing where that is no terminal. It goes
/// with the value.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    stage: Mutex<&'static str>,
}

impl Bar {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::no_length().with_style(style(""));
        Self { bar, stage: Mutex::new("") }
    }

    /// Begins a stage whose end nobody knows.
    pub(crate) fn stage(&self, name: &'static str) {
        self.begin(name, WORK, 0);
        self.bar.enable_steady_tick(TICK);
    }

    /// Shows how far a transfer is.
    pub(crate) fn show(&self, progress: Progress) {
        let Progress { stage, done_bytes, total_bytes } = progress;
        self.begin(stage, TRANSFER, total_bytes);
        self.bar.set_position(done_bytes);
    }

    /// Makes room for lines of a report, until the next stage.
    pub(crate) fn clear(&self) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = "";
        self.bar.finish_and_clear();
    }

    /// Shows the stage `name` from its start, unless it is shown already.
    fn begin(&self, name: &'static str, template: &str, len: u64) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if *stage != name {
            *stage = name;
            self.bar.set_style(style(template));
            self.bar.set_length(len);
            self.bar.set_message(name);
            self.bar.reset();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
