use std::{error::Error, fmt};

/// An error and what caused it, down to the last cause, on one line.
///
/// Formatters of log lines show an error's own message only.
///
/// # Example
///
/// ```
/// # let error = std::io::Error::other("disk full");
/// tracing::error!(exception = %sanderling_telemetry::Causes(&error), "not written");
/// ```
#[derive(Debug)]
pub struct Causes<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read model")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_the_error() {
        let error = Outer(std::io::Error::other("disk gone"));
        assert_eq!(Causes(&error).to_string(), "cannot read model: disk gone");
    }
}
