//! What a text may hold: any pattern of `INPUT_DENY`, and any text.
//!
//! A seed is the pattern, a line break, and the text.

#![no_main]

use admission::InputRules;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|input: &str| -> Corpus {
    let Some((pattern, text)) = input.split_once('\n') else { return Corpus::Reject };
    let mut cleaned = text.to_owned();
    InputRules::clean(&mut cleaned);
    assert!(!cleaned.contains(char::is_control), "{cleaned:?}");
    assert_eq!(cleaned.trim(), cleaned);
    assert!(cleaned.chars().count() <= text.chars().count());
    let mut again = cleaned.clone();
    InputRules::clean(&mut again);
    assert_eq!(again, cleaned);

    // A pattern that takes more than linear time ends as a timeout.
    if let Ok(rules) = InputRules::new(Some(pattern)) {
        let _ = rules.denies(&cleaned);
    }
    Corpus::Keep
});
