//! The place of a span in its trace, as callers send it: <https://www.w3.org/TR/trace-context/>.

use std::fmt;

/// Which span of which trace, and whether that trace is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Not 0.
    pub trace_id: u128,
    /// Not 0.
    pub span_id: u64,
    /// Whether whoever began the trace keeps it.
    pub is_sampled: bool,
}

impl TraceContext {
    /// What a `traceparent` says; `None` if it cannot be read, which begins a trace anew.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.splitn(5, '-');
        let version = hex(parts.next()?, 2)?;
        let trace_id = hex(parts.next()?, 32)?;
        let span_id = u64::try_from(hex(parts.next()?, 16)?).ok()?;
        let flags = hex(parts.next()?, 2)?;
        // Later versions may say more behind it.
        let has_more = parts.next().is_some();
        let is_valid = version != 0xff && !(version == 0 && has_more);
        (is_valid && trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            is_sampled: flags & 1 == 1,
        })
    }
}

/// As a `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, span_id, is_sampled } = self;
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{:02x}", u8::from(*is_sampled))
    }
}

/// Exactly `len` digits, which are never capital letters.
fn hex(digits: &str, len: usize) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_hex = digits.len() == len && digits.bytes().all(is_digit);
    is_hex.then(|| u128::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_read_is_written_again() {
        let context = TraceContext::parse(TRACE).unwrap();
        assert_eq!(context.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(context.span_id, 0xb7ad_6b71_6920_3331);
        assert!(context.is_sampled);
        assert_eq!(context.to_string(), TRACE);
        let not_sampled = TraceContext { is_sampled: false, ..context };
        assert_eq!(TraceContext::parse(&not_sampled.to_string()), Some(not_sampled));
    }

    #[test]
    fn later_versions_and_flags_are_read_as_far_as_they_are_known() {
        let context = TraceContext::parse(TRACE);
        assert_eq!(TraceContext::parse(&format!("cc{}-what-ever", &TRACE[2..])), context);
        assert_eq!(TraceContext::parse(&TRACE.replace("-01", "-ff")), context);
    }

    #[test]
    fn what_breaks_the_rules_is_not_read() {
        let broken = [
            String::new(),
            "00".to_owned(),
            TRACE[..54].to_owned(),
            format!("{TRACE}-"),
            format!("{TRACE}0"),
            format!(" {TRACE}"),
            format!("ff{}", &TRACE[2..]),
            format!("0g{}", &TRACE[2..]),
            TRACE.to_uppercase(),
            TRACE.replace("0af7", "+af7"),
            TRACE.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            TRACE.replace("b7ad6b7169203331", &"0".repeat(16)),
            TRACE.replace('-', "_"),
        ];
        for traceparent in broken {
            assert_eq!(TraceContext::parse(&traceparent), None, "{traceparent}");
        }
    }
}
