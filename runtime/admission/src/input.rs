//! What a text may hold, whoever sends it.

use std::fmt;

use regex::{Regex, RegexBuilder};

/// What is refused unless a setting says otherwise: markup that would run where an answer is shown
/// with the text that it is about.
pub const DEFAULT_DENY: &str = "<script|javascript:|onerror=";

/// Most bytes that a compiled pattern may take.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// Cleans texts, and refuses some.
#[derive(Clone, Default)]
pub struct InputRules {
    deny: Option<Regex>,
}

/// A pattern that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// It is no regular expression, or one that does not match in linear time.
    #[error("not a regular expression: {0}")]
    Syntax(String),
    /// It is too large.
    #[error("the compiled pattern is over {0} bytes")]
    TooLarge(usize),
}

impl InputRules {
    /// Refuses texts in which `deny` is found, in upper or lower case; `None`: none.
    ///
    /// Matching takes time in proportion to the text, whatever the pattern: there are no references
    /// back and no looking around, which are an error.
    ///
    /// # Errors
    ///
    /// [`RulesError`].
    pub fn new(deny: Option<&str>) -> Result<Self, RulesError> {
        let compile = |pattern: &str| {
            let mut builder = RegexBuilder::new(pattern);
            builder.case_insensitive(true).size_limit(MAX_PATTERN_BYTES).build()
        };
        match deny.map(compile).transpose() {
            Ok(deny) => Ok(Self { deny }),
            Err(regex::Error::CompiledTooBig(max_bytes)) => Err(RulesError::TooLarge(max_bytes)),
            Err(error) => {
                // The library draws the pattern over several lines; the last one says what is wrong.
                let message = error.to_string();
                let last = message.lines().last().unwrap_or_default();
                Err(RulesError::Syntax(last.trim_start_matches("error: ").to_owned()))
            }
        }
    }

    /// Whether `text` must be refused.
    ///
    /// ```
    /// let rules = sanderling_admission::InputRules::new(Some("<script"))?;
    /// assert!(rules.denies("hello <SCRIPT>"));
    /// assert!(!rules.denies("a script"));
    /// # Ok::<(), sanderling_admission::RulesError>(())
    /// ```
    #[must_use]
    pub fn denies(&self, text: &str) -> bool {
        self.deny.as_ref().is_some_and(|deny| deny.is_match(text))
    }

    /// Makes spaces of tabs and line breaks, takes the other control characters (U+0000 to U+001F,
    /// U+007F to U+009F) out, and white space off both ends.
    ///
    /// ```
    /// let mut text = "\u{feff} two\tword\u{0}s \r\n".to_owned();
    /// sanderling_admission::InputRules::clean(&mut text);
    /// assert_eq!(text, "\u{feff} two words");
    /// ```
    pub fn clean(text: &mut String) {
        if text.contains(char::is_control) {
            *text = text.chars().filter_map(cleaned).collect();
        }
        text.truncate(text.trim_end().len());
        let start = text.len() - text.trim_start().len();
        text.drain(..start);
    }
}

fn cleaned(char: char) -> Option<char> {
    match char {
        '\t' | '\n' | '\r' => Some(' '),
        _ => (!char.is_control()).then_some(char),
    }
}

impl fmt::Debug for InputRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InputRules").field(&self.deny.as_ref().map(Regex::as_str)).finish()
    }
}

impl PartialEq for InputRules {
    fn eq(&self, other: &Self) -> bool {
        let pattern = |rules: &Self| rules.deny.as_ref().map(|deny| deny.as_str().to_owned());
        pattern(self) == pattern(other)
    }
}

impl Eq for InputRules {}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn control_characters_go_and_white_space_is_evened_out() {
        let cases = [
            ("plain", "plain"),
            ("", ""),
            (" \t\r\n ", ""),
            ("\u{0}\u{7f}\u{85}\u{9f}", ""),
            ("a\tb\nc\rd", "a b c d"),
            ("java\u{0}script", "javascript"),
            ("\u{3000}ideographic space\u{3000}", "ideographic space"),
            ("ünï\u{a0}cödé", "ünï\u{a0}cödé"),
            ("\u{1f}x\u{20}", "x"),
        ];
        for (given, expected) in cases {
            let mut text = given.to_owned();
            InputRules::clean(&mut text);
            assert_eq!(text, expected, "{given:?}");
        }
    }

    #[test]
    fn markup_is_denied_in_any_case() {
        let rules = InputRules::new(Some(DEFAULT_DENY)).unwrap();
        for text in ["<script>", "x <ScRiPt src=…", "JAVASCRIPT:alert(1)", "<img OnError=x>"] {
            assert!(rules.denies(text), "{text}");
        }
        for text in ["a script", "java script:", "on error = 1", "< script", ""] {
            assert!(!rules.denies(text), "{text}");
        }
        assert!(!InputRules::new(None).unwrap().denies("<script>"));
    }

    #[test]
    fn a_pattern_that_cannot_be_linear_is_refused() {
        for pattern in [r"(a)\1", "(?=a)", "(?<!a)b", "("] {
            assert!(
                matches!(InputRules::new(Some(pattern)), Err(RulesError::Syntax(_))),
                "{pattern}"
            );
        }
        let huge = InputRules::new(Some("(?:[a-z]{1000}){1000}"));
        assert_eq!(huge, Err(RulesError::TooLarge(MAX_PATTERN_BYTES)));
    }

    #[test]
    fn patterns_that_hang_others_take_linear_time() {
        let rules = InputRules::new(Some(r"^(a+)+$|(x*)*y|(.*)*=end")).unwrap();
        let text = "a".repeat(1 << 20) + "!";
        let started = Instant::now();
        assert!(!rules.denies(&text));
        // Backtracking would outlast the universe; a megabyte takes some milliseconds.
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
