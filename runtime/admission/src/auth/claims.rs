//! What a token says, and whether it holds here and now. Source: RFC 7519, section 4.1.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{AuthError, invalid};

/// Longest subject and role, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// What a token says.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Claims {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sub: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_id: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) iss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) aud: Option<Audience>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) iat: Option<serde_json::Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nbf: Option<serde_json::Number>,
    pub(crate) exp: serde_json::Number,
}

/// A subject, which some issuers write as a number.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum Name {
    Text(String),
    Number(i64),
}

/// One audience or several.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum Audience {
    One(String),
    Many(Vec<String>),
}

/// What has to hold of claims.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) issuer: Option<String>,
    pub(super) audience: Option<String>,
    pub(super) leeway: Duration,
}

impl Rules {
    /// Subject and role, if `claims` hold at `now`, since 1970.
    pub(super) fn check(
        &self,
        claims: Claims,
        now: Duration,
    ) -> Result<(String, String), AuthError> {
        let (now, leeway) = (now.as_secs_f64(), self.leeway.as_secs_f64());
        let secs = |number: &serde_json::Number| number.as_f64().unwrap_or_default();
        let begins = claims.nbf.as_ref().map_or(f64::NEG_INFINITY, secs);
        if begins > now + leeway {
            return Err(invalid("not valid yet"));
        }
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err(invalid("of another issuer"));
        }
        let is_for_us = match (&claims.aud, &self.audience) {
            (None, None) => true,
            (Some(Audience::One(audience)), Some(ours)) => audience == ours,
            (Some(Audience::Many(audiences)), Some(ours)) => audiences.contains(ours),
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !is_for_us {
            return Err(invalid("for another audience"));
        }
        let subject = match claims.sub.or(claims.user_id) {
            Some(Name::Text(text)) => text,
            Some(Name::Number(number)) => number.to_string(),
            None => return Err(invalid("without a subject")),
        };
        let role = claims.role.unwrap_or_default();
        if subject.is_empty() || subject.len() > MAX_NAME_BYTES || role.len() > MAX_NAME_BYTES {
            return Err(invalid("its subject or role is empty or too long"));
        }
        if now >= secs(&claims.exp) + leeway {
            return Err(AuthError::Expired);
        }
        Ok((subject, role))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_000_000;

    fn check(rules: &Rules, claims: Value) -> Option<Result<(String, String), AuthError>> {
        let claims = serde_json::from_value(claims).ok()?;
        Some(rules.check(claims, Duration::from_secs(NOW)))
    }

    fn rules(issuer: Option<&str>, audience: Option<&str>) -> Rules {
        let leeway = Duration::from_secs(5);
        Rules { issuer: issuer.map(Into::into), audience: audience.map(Into::into), leeway }
    }

    #[test]
    fn a_token_holds_for_its_time_and_the_leeway() {
        let cases = [
            (json!({ "sub": "a", "exp": NOW + 1 }), None),
            (json!({ "sub": "a", "exp": NOW - 4 }), None),
            (json!({ "sub": "a", "exp": NOW as f64 - 4.5 }), None),
            (json!({ "sub": "a", "exp": NOW - 5 }), Some(AuthError::Expired)),
            (json!({ "sub": "a", "exp": NOW - 6 }), Some(AuthError::Expired)),
            (json!({ "sub": "a", "exp": -1 }), Some(AuthError::Expired)),
            (json!({ "sub": "a", "exp": NOW + 9, "nbf": NOW + 5 }), None),
            (json!({ "sub": "a", "exp": NOW + 9, "nbf": NOW + 6 }), Some(invalid("not valid yet"))),
        ];
        for (claims, expected) in cases {
            let outcome = check(&rules(None, None), claims.clone()).unwrap();
            assert_eq!(outcome.err(), expected, "{claims}");
        }
    }

    #[test]
    fn a_time_that_is_no_number_is_unreadable() {
        for exp in [json!("1000001"), json!(null), json!([1_000_001]), json!(true), json!({})] {
            assert!(
                check(&rules(None, None), json!({ "sub": "a", "exp": exp })).is_none(),
                "{exp}"
            );
        }
        assert!(check(&rules(None, None), json!({ "sub": "a" })).is_none(), "no exp");
    }

    #[test]
    fn issuer_and_audience_are_ours() {
        let claims = |iss: Value, aud: Value| {
            let mut claims = json!({ "sub": "a", "exp": NOW + 9 });
            let given =
                [("iss", iss), ("aud", aud)].into_iter().filter(|(_, value)| !value.is_null());
            given.for_each(|(name, value)| claims[name] = value);
            claims
        };
        let ours = rules(Some("us"), Some("here"));
        assert!(check(&ours, claims(json!("us"), json!("here"))).unwrap().is_ok());
        assert!(check(&ours, claims(json!("us"), json!(["there", "here"]))).unwrap().is_ok());
        for (iss, aud) in [
            (json!("them"), json!("here")),
            (json!(null), json!("here")),
            (json!("us"), json!("there")),
            (json!("us"), json!(["there"])),
            (json!("us"), json!([])),
            (json!("us"), json!(null)),
        ] {
            let outcome = check(&ours, claims(iss.clone(), aud.clone())).unwrap();
            assert!(matches!(outcome, Err(AuthError::Invalid { .. })), "{iss} {aud}");
        }
        let for_somebody = check(&rules(None, None), claims(json!("us"), json!("here"))).unwrap();
        assert_eq!(for_somebody, Err(invalid("for another audience")));
    }

    #[test]
    fn a_subject_is_a_text_or_a_number() {
        let subject = |claims| check(&rules(None, None), claims).map(|outcome| outcome.ok());
        let named = |name: &str, role: &str| Some(Some((name.to_owned(), role.to_owned())));
        assert_eq!(subject(json!({ "sub": "a", "user_id": "b", "exp": NOW })), named("a", ""));
        assert_eq!(subject(json!({ "user_id": 7, "role": "r", "exp": NOW })), named("7", "r"));
        assert_eq!(subject(json!({ "sub": "", "exp": NOW })), Some(None));
        assert_eq!(subject(json!({ "exp": NOW })), Some(None));
        assert_eq!(subject(json!({ "sub": 1.5, "exp": NOW })), None);
        assert_eq!(subject(json!({ "sub": "a".repeat(257), "exp": NOW })), Some(None));
    }
}
