//! The process as Linux sees it, by the names that all Prometheus clients give it.

use std::fs;

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

use super::{Definition, Kind, Sink};

pub(super) const ALL: &[Definition] =
    &[CPU_SECONDS, MAX_FDS, OPEN_FDS, RESIDENT_BYTES, START_SECONDS, THREADS, VIRTUAL_BYTES];

const fn gauge(name: &'static str, help: &'static str) -> Definition {
    Definition { name, help, kind: Kind::Gauge, labels: &[] }
}

const CPU_SECONDS: Definition = Definition {
    kind: Kind::Counter,
    ..gauge("process_cpu_seconds_total", "CPU time, in user and in system mode.")
};
const MAX_FDS: Definition = gauge("process_max_fds", "Most files that may be open.");
const OPEN_FDS: Definition = gauge("process_open_fds", "Files that are open.");
const RESIDENT_BYTES: Definition =
    gauge("process_resident_memory_bytes", "Memory that is in use, mapped files of it included.");
const START_SECONDS: Definition =
    gauge("process_start_time_seconds", "When the process began, since 1970.");
const THREADS: Definition = gauge("process_threads", "Threads that run or wait.");
const VIRTUAL_BYTES: Definition =
    gauge("process_virtual_memory_bytes", "Addresses that are taken.");

/// Reads what can be read; `/proc` may be hidden.
pub(super) fn read(sink: &mut dyn Sink) {
    let mut sample = |definition: &'static Definition, value: Option<f64>| {
        if let Some(value) = value {
            sink.begin(definition);
            sink.number(&[], value);
        }
    };
    let ticks = clock_ticks_per_second() as f64;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Of `pid (name) state …`, where the name may have any character.
    let fields: Vec<f64> = stat.rsplit_once(") ").map_or_else(Vec::new, |(_, rest)| {
        rest.split_ascii_whitespace().map(|field| field.parse().unwrap_or_default()).collect()
    });
    // As `man proc_pid_stat` numbers them, from the state, which is its third.
    let field = |number: usize| fields.get(number - 3).copied();
    let boot = boot_seconds();
    sample(&CPU_SECONDS, field(14).zip(field(15)).map(|(user, system)| (user + system) / ticks));
    sample(&MAX_FDS, getrlimit(Resource::Nofile).current.map(|most| most as f64));
    let open = fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64);
    sample(&OPEN_FDS, open);
    sample(&RESIDENT_BYTES, field(24).map(|pages| pages * page_size() as f64));
    sample(&START_SECONDS, field(22).zip(boot).map(|(start, boot)| boot + start / ticks));
    sample(&THREADS, field(20));
    sample(&VIRTUAL_BYTES, field(23));
}

/// When the system began, since 1970.
fn boot_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::{
        super::text::{TextFormat, Writer},
        *,
    };

    #[test]
    fn the_process_is_seen() {
        let mut writer = Writer::new(TextFormat::Prometheus);
        read(&mut writer);
        let page = writer.finish();
        let value = |definition: &Definition| -> f64 {
            let line = page.lines().find_map(|line| line.strip_prefix(definition.name)).unwrap();
            line.trim().parse().unwrap()
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 3600.0..now + 2.0).contains(&value(&START_SECONDS)), "{page}");
        assert!((1e6..1e12).contains(&value(&RESIDENT_BYTES)), "{page}");
        assert!(value(&VIRTUAL_BYTES) >= value(&RESIDENT_BYTES), "{page}");
        assert!(value(&OPEN_FDS) >= 3.0 && value(&MAX_FDS) >= value(&OPEN_FDS), "{page}");
        assert!(value(&THREADS) >= 1.0 && value(&CPU_SECONDS) >= 0.0, "{page}");
    }
}
