use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line: `timestamp`, `level`, `target`, `message`, fields, `spans`.
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

/// Sends the events of this process that pass `filter` (as in `RUST_LOG`) to standard output.
///
/// # Errors
///
/// [`LogError::Filter`] if `filter` cannot be read; [`LogError::AlreadyStarted`] on a second call.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|source| LogError::Filter { filter: filter.to_owned(), source })?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stdout);
    match format {
        LogFormat::Json => {
            builder.json().flatten_event(true).with_current_span(false).finish().try_init()
        }
        LogFormat::Text => builder.with_ansi(std::io::stdout().is_terminal()).finish().try_init(),
    }
    .map_err(|_| LogError::AlreadyStarted)
}
