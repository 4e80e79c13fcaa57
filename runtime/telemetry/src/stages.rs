//! How long a process took to its first answer, stage by stage.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use crate::{METRICS, trace::cold_start};

static STARTED: OnceLock<Instant> = OnceLock::new();

/// What has ended so far; `None` once it was taken.
static STAGES: Mutex<Option<Vec<Stage>>> = Mutex::new(Some(Vec::new()));

/// A part of the start. Stages may overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// What was done.
    pub name: &'static str,
    /// When it began, since [`started`].
    pub start: Duration,
    /// How long it took.
    pub duration: Duration,
}

/// Says that the process starts now. Only the first call counts.
pub fn started() {
    let _ = STARTED.set(Instant::now());
}

/// Times a stage until the value is dropped.
#[must_use]
pub fn stage(name: &'static str) -> StageTimer {
    StageTimer { name, begun: Instant::now() }
}

/// A stage that has begun.
#[derive(Debug)]
pub struct StageTimer {
    name: &'static str,
    begun: Instant,
}

impl Drop for StageTimer {
    fn drop(&mut self) {
        let process = *STARTED.get_or_init(|| self.begun);
        let stage = Stage {
            name: self.name,
            start: self.begun.saturating_duration_since(process),
            duration: self.begun.elapsed(),
        };
        let mut stages = STAGES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stages) = stages.as_mut() {
            stages.push(stage);
            let seconds = METRICS.inference_cold_start_seconds.with([stage.name]);
            seconds.set(stage.duration.as_secs_f64());
            tracing::debug!(
                stage = stage.name,
                start_ms = stage.start.as_secs_f64() * 1e3,
                duration_ms = stage.duration.as_secs_f64() * 1e3,
                "stage done"
            );
        }
    }
}

/// Says that the process can answer; the first time, its start is over.
pub fn ready() {
    static READY: OnceLock<()> = OnceLock::new();
    READY.get_or_init(|| {
        let start = STARTED.get().map(Instant::elapsed).unwrap_or_default();
        METRICS.inference_cold_start_seconds.with(["total"]).set(start.as_secs_f64());
        let stages = STAGES.lock().unwrap_or_else(PoisonError::into_inner);
        cold_start(stages.as_deref().unwrap_or_default(), start);
    });
}

/// The stages until now, for the first answer; `None` for all others. Nothing is recorded behind
/// it.
#[must_use]
pub fn take_stages() -> Option<Vec<Stage>> {
    STAGES.lock().unwrap_or_else(PoisonError::into_inner).take()
}
