//! Events as lines on standard output.

mod lines;

use std::{fmt, io::IsTerminal, panic};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
    util::SubscriberInitExt,
};

pub(crate) use self::lines::Stdout;
pub use self::lines::{Gathering, gather_lines};
use crate::{request::with_id, trace::TraceContext};

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line: `timestamp`, `level`, `module`, `function`, the event's fields, its
    /// `message` among them, and `request_id` and `trace_id` of the request it belongs to.
    Json,
    /// For people.
    Text,
}

impl LogFormat {
    /// Text on a terminal, else JSON.
    #[must_use]
    pub fn for_stdout() -> Self {
        if std::io::stdout().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The filter does not follow `tracing`'s syntax.
    #[error("cannot read the log filter \"{filter}\"")]
    Filter {
        /// As it was given.
        filter: String,
        /// Where it breaks the syntax.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Some other part of the process already logs.
    #[error("logging was started before")]
    AlreadyStarted,
}

/// Sends the events of `function` that pass `filter` (as in `RUST_LOG`) to standard output, and its
/// panics with them.
///
/// # Errors
///
/// [`LogError::Filter`] if `filter` cannot be read; [`LogError::AlreadyStarted`] on a second call.
pub fn init(function: &'static str, format: LogFormat, filter: &str) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|source| LogError::Filter { filter: filter.to_owned(), source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Stdout::default());
    match format {
        LogFormat::Json => builder.event_format(Json { function }).finish().try_init(),
        LogFormat::Text => {
            let ansi = std::io::stdout().is_terminal();
            builder.with_ansi(ansi).map_event_format(Text).finish().try_init()
        }
    }
    .map_err(|_| LogError::AlreadyStarted)?;
    panic::set_hook(Box::new(|panic| {
        // What a panic says may hold a part of a text, unless it says the same every time.
        let reason = panic.payload().downcast_ref::<&'static str>().copied();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(exception = reason.unwrap_or("a panic"), place, "panicked");
    }));
    Ok(())
}

/// Events as JSON, written straight into the line: a line a request is a large part of what a small
/// model leaves to be saved.
struct Json {
    function: &'static str,
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        line.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut line)?;
        line.write_str("\",\"level\":\"")?;
        line.write_str(match *metadata.level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            Level::DEBUG => "DEBUG",
            Level::TRACE => "TRACE",
        })?;
        line.write_char('"')?;
        let mut fields = Fields { line: line.by_ref(), outcome: Ok(()) };
        event.record(&mut fields);
        fields.outcome?;
        line.write_str(",\"module\":\"")?;
        line.write_str(metadata.target())?;
        line.write_str("\",\"function\":\"")?;
        line.write_str(self.function)?;
        line.write_char('"')?;
        with_id(|id, trace| -> fmt::Result {
            line.write_str(",\"request_id\":\"")?;
            fmt::Write::write_str(&mut Escaped(&mut line), id)?;
            line.write_char('"')?;
            match trace {
                Some(TraceContext { trace_id, .. }) => {
                    write!(line, ",\"trace_id\":\"{trace_id:032x}\"")
                }
                None => Ok(()),
            }
        })
        .unwrap_or(Ok(()))?;
        line.write_str("}\n")
    }
}

/// The library's lines, behind the id of the request they belong to.
struct Text<F>(F);

impl<S, N, F> FormatEvent<S, N> for Text<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        with_id(|id, _| write!(line, "{id} ")).unwrap_or(Ok(()))?;
        self.0.format_event(context, line, event)
    }
}

/// Fields as the rest of a JSON object that has some already.
struct Fields<'writer> {
    line: Writer<'writer>,
    outcome: fmt::Result,
}

impl Fields<'_> {
    fn write(&mut self, field: &Field, write: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        let named = || {
            self.line.write_str(",\"")?;
            self.line.write_str(field.name())?;
            self.line.write_str("\":")?;
            write(&mut self.line)
        };
        self.outcome = self.outcome.and_then(|()| named());
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.write(field, |line| match value.is_finite() {
            true => write!(line, "{value}"),
            false => line.write_str("null"),
        });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, |line| write!(line, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, |line| write!(line, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, |line| write!(line, "{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, |line| {
            line.write_char('"')?;
            fmt::Write::write_str(&mut Escaped(line), value)?;
            line.write_char('"')
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, |line| {
            line.write_char('"')?;
            fmt::Write::write_fmt(&mut Escaped(line), format_args!("{value:?}"))?;
            line.write_char('"')
        });
    }
}

/// What is written into a JSON string.
struct Escaped<'a, 'writer>(&'a mut Writer<'writer>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let needs_escape = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
        let mut rest = text;
        while let Some(place) = rest.bytes().position(needs_escape) {
            self.0.write_str(&rest[..place])?;
            match rest.as_bytes()[place] {
                b'\n' => self.0.write_str("\\n")?,
                byte @ (b'"' | b'\\') => write!(self.0, "\\{}", char::from(byte))?,
                byte => write!(self.0, "\\u{byte:04x}")?,
            }
            // All of those are one byte long.
            rest = &rest[place + 1..];
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use tracing::{info, subscriber::with_default, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(log: impl FnOnce()) -> Vec<serde_json::Value> {
        let lines = Lines::default();
        let written = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || written.clone())
            .event_format(Json { function: "predict" })
            .finish();
        with_default(subscriber, log);
        let bytes = lines.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_has_the_fields_of_its_event_and_its_request() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let lines = lines(|| {
            let trace = Some(TraceContext { trace_id: 10, span_id: 1, is_sampled: false });
            runtime.block_on(crate::request("r-1".into(), trace, async {
                info!(status = 200, duration_ms = 0.5, is_last = true, "request done");
            }));
            warn!(exception = %"cut off", nothing = f64::NAN, below = -1, "no {}", "model");
        });
        let line = &lines[0];
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "request done");
        assert_eq!(line["module"], module_path!());
        assert_eq!(line["function"], "predict");
        assert_eq!(line["request_id"], "r-1");
        assert_eq!(line["trace_id"], "0000000000000000000000000000000a");
        assert_eq!((&line["status"], &line["duration_ms"]), (&200.into(), &0.5.into()));
        assert_eq!(line["is_last"], true);
        assert_eq!([&lines[1]["exception"], &lines[1]["message"]], ["cut off", "no model"]);
        assert_eq!((&lines[1]["nothing"], &lines[1]["below"]), (&().into(), &(-1).into()));
        assert!(lines[1].get("request_id").or(lines[1].get("trace_id")).is_none());
    }

    #[test]
    fn no_value_breaks_a_line() {
        let value = "\"quoted\" \\ \n\r\t\u{0} \u{1f} é 日 \u{2028}";
        let lines = lines(|| info!(text = value, debug = ?value, display = %value, "m"));
        assert_eq!([&lines[0]["text"], &lines[0]["display"]], [value, value]);
        assert_eq!(lines[0]["debug"], format!("{value:?}"));
    }
}
