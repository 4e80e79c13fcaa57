//! Settings of who may call, how much, and with what text.

use std::time::Duration;

use admission::{
    AuthOptions, DEFAULT_DENY, InputRules, IssuerOptions, Proxies, RateLimits, RedisFailure,
    RedisOptions,
};

use telemetry::Secret;

use super::{
    TokenOptions,
    reader::Reader,
    settings::{Setting, setting},
};
use crate::token::LOGIN;

/// Shortest secret, in bytes: as long as what HS256 makes of it.
const MIN_SECRET_BYTES: usize = 32;

const AUTH: Setting = setting(
    "AUTH",
    "",
    "jwt: callers need a token; none (default: none, if no key of tokens is set)",
);
const ALLOWED_ROLES: Setting = setting(
    "ALLOWED_ROLES",
    "",
    "roles that may call, between commas; anonymous needs no token (default: any with a token)",
);
const JWT_SECRET: Setting =
    setting("JWT_SECRET", "", "secret of HS256 tokens, as it is, 32 bytes or more");
const JWT_SECRET_FILE: Setting = setting("JWT_SECRET_FILE", "", "file of that secret");
const JWT_PREVIOUS_SECRET: Setting =
    setting("JWT_PREVIOUS_SECRET", "", "the secret before, whose tokens still hold");
const JWT_PREVIOUS_SECRET_FILE: Setting =
    setting("JWT_PREVIOUS_SECRET_FILE", "", "file of that secret");
const JWT_JWKS_URL: Setting =
    setting("JWT_JWKS_URL", "", "where the keys of RS256, ES256 and EdDSA tokens are published");
const JWT_ISSUER: Setting = setting("JWT_ISSUER", "", "what iss of a token has to be");
const JWT_AUDIENCE: Setting = setting("JWT_AUDIENCE", "", "what has to be in aud of a token");
const JWT_LEEWAY_SECS: Setting =
    setting("JWT_LEEWAY_SECS", "5", "how far clocks may be apart, in seconds");
const RATE_LIMITS: Setting = setting(
    "RATE_LIMITS",
    "",
    "like anonymous=10/min,user=100/2s,user=5000 tokens/min; others get the lowest (default: none)",
);
const REDIS_URL: Setting = setting(
    "REDIS_URL",
    "",
    "redis:// or rediss://, where processes share their limits (default: each has its own)",
);
const REDIS_URL_FILE: Setting = setting("REDIS_URL_FILE", "", "file of that URL");
const REDIS_TIMEOUT_MS: Setting =
    setting("REDIS_TIMEOUT_MS", "4", "longest a request waits for Redis, in milliseconds");
const REDIS_FAILURE: Setting = setting(
    "REDIS_FAILURE",
    "local",
    "callers while Redis is away: local counts here, allow lets all in, deny nobody",
);
const TRUSTED_PROXIES: Setting = setting(
    "TRUSTED_PROXIES",
    "",
    "addresses and networks whose X-Forwarded-For is believed, between commas (default: none)",
);
const INPUT_DENY: Setting = setting(
    "INPUT_DENY",
    DEFAULT_DENY,
    "regular expression, in any case, of what no text may hold; off allows all",
);

pub(super) const SETTINGS: [Setting; 17] = [
    AUTH,
    ALLOWED_ROLES,
    JWT_SECRET,
    JWT_SECRET_FILE,
    JWT_PREVIOUS_SECRET,
    JWT_PREVIOUS_SECRET_FILE,
    JWT_JWKS_URL,
    JWT_ISSUER,
    JWT_AUDIENCE,
    JWT_LEEWAY_SECS,
    RATE_LIMITS,
    REDIS_URL,
    REDIS_URL_FILE,
    REDIS_TIMEOUT_MS,
    REDIS_FAILURE,
    TRUSTED_PROXIES,
    INPUT_DENY,
];

const USERS_FILE: Setting = setting(
    "USERS_FILE",
    "",
    "who may log in: lines of username:role:hash, as sanderling token hash makes them",
);
const JWT_PRIVATE_KEY: Setting = setting(
    "JWT_PRIVATE_KEY",
    "",
    "PEM of keys, Ed25519 or RSA, in the place of a secret; the first signs, all are published",
);
const JWT_PRIVATE_KEY_FILE: Setting = setting("JWT_PRIVATE_KEY_FILE", "", "file of these keys");
const TOKEN_LIFETIME_SECS: Setting =
    setting("TOKEN_LIFETIME_SECS", "86400", "how long a token holds, in seconds");
const LOGIN_LIMIT: Setting = setting(
    "LOGIN_LIMIT",
    "10/min",
    "most log-ins from an address, and of a name; off: as many as come",
);

/// Those of the function that issues tokens.
pub(super) const TOKEN_SETTINGS: [Setting; 14] = [
    USERS_FILE,
    JWT_SECRET,
    JWT_SECRET_FILE,
    JWT_PRIVATE_KEY,
    JWT_PRIVATE_KEY_FILE,
    JWT_ISSUER,
    JWT_AUDIENCE,
    TOKEN_LIFETIME_SECS,
    LOGIN_LIMIT,
    REDIS_URL,
    REDIS_URL_FILE,
    REDIS_TIMEOUT_MS,
    REDIS_FAILURE,
    TRUSTED_PROXIES,
];

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    /// How tokens are issued.
    pub(super) fn token(&mut self) -> TokenOptions {
        let secret = self.token_secret(&JWT_SECRET, &JWT_SECRET_FILE);
        let private_keys = self.secret(&JWT_PRIVATE_KEY, &JWT_PRIVATE_KEY_FILE);
        if secret.is_some() && private_keys.is_some() {
            self.mistake(&JWT_PRIVATE_KEY, "set, and JWT_SECRET too");
        }
        let names = [JWT_SECRET, JWT_SECRET_FILE, JWT_PRIVATE_KEY, JWT_PRIVATE_KEY_FILE];
        if names.iter().all(|setting| self.optional_text(setting).is_none()) {
            self.mistake(&JWT_PRIVATE_KEY, "neither it nor JWT_SECRET is set");
        }
        let users_file = self.text(&USERS_FILE);
        if users_file.is_empty() {
            self.mistake(&USERS_FILE, "not set");
        }
        let limit = Some(self.text(&LOGIN_LIMIT)).filter(|limit| limit != "off");
        let limit = limit.map(|limit| format!("{LOGIN}={limit}")).unwrap_or_default();
        TokenOptions {
            users_file: users_file.into(),
            issuer: IssuerOptions {
                secret,
                private_keys,
                issuer: self.optional_text(&JWT_ISSUER),
                audience: self.optional_text(&JWT_AUDIENCE),
                lifetime: Duration::from_secs(
                    self.number(&TOKEN_LIFETIME_SECS, 1..=366 * 24 * 3600) as u64,
                ),
            },
            login_limit: limit.parse().unwrap_or_else(|_| {
                let text = self.text(&LOGIN_LIMIT);
                self.mistake(&LOGIN_LIMIT, format_args!("\"{text}\" is not like 10/min"));
                RateLimits::default()
            }),
        }
    }

    /// Whose tokens are taken; `None` if none is needed.
    pub(super) fn auth(&mut self) -> Option<AuthOptions> {
        let secrets = [
            self.token_secret(&JWT_SECRET, &JWT_SECRET_FILE),
            self.token_secret(&JWT_PREVIOUS_SECRET, &JWT_PREVIOUS_SECRET_FILE),
        ];
        let options = AuthOptions {
            secrets: secrets.into_iter().flatten().collect(),
            jwks_url: self.url(&JWT_JWKS_URL),
            issuer: self.optional_text(&JWT_ISSUER),
            audience: self.optional_text(&JWT_AUDIENCE),
            leeway: Duration::from_secs(self.number(&JWT_LEEWAY_SECS, 0..=3600) as u64),
            allowed_roles: self.optional_text(&ALLOWED_ROLES).map(|roles| {
                let roles = roles.split(',').map(str::trim).filter(|role| !role.is_empty());
                roles.map(str::to_owned).collect()
            }),
        };
        let has_key = self.has_keys();
        match self.optional(&AUTH, &[("none", false), ("jwt", true)]) {
            Some(true) if !has_key => {
                self.mistake(&AUTH, "jwt needs JWT_SECRET or JWT_JWKS_URL");
            }
            Some(true) => return Some(options),
            // Whoever has set keys wants no open function.
            None if has_key => self.mistake(&AUTH, "not set, though keys of tokens are"),
            None | Some(false) => {}
        }
        if options.allowed_roles.is_some() {
            self.mistake(&ALLOWED_ROLES, "needs AUTH=jwt");
        }
        None
    }

    /// Whether a key is set, even one that cannot be used.
    fn has_keys(&self) -> bool {
        let keys = [
            JWT_SECRET,
            JWT_SECRET_FILE,
            JWT_PREVIOUS_SECRET,
            JWT_PREVIOUS_SECRET_FILE,
            JWT_JWKS_URL,
        ];
        keys.iter().any(|setting| self.optional_text(setting).is_some())
    }

    pub(super) fn rate_limits(&mut self) -> RateLimits {
        match self.text(&RATE_LIMITS).parse() {
            Ok(limits) => limits,
            Err(error) => {
                self.mistake(&RATE_LIMITS, error);
                RateLimits::default()
            }
        }
    }

    pub(super) fn redis(&mut self) -> Option<RedisOptions> {
        let failures = [
            ("local", RedisFailure::Local),
            ("allow", RedisFailure::Allow),
            ("deny", RedisFailure::Deny),
        ];
        let failure = self.choice(&REDIS_FAILURE, &failures);
        let timeout = self.millis(&REDIS_TIMEOUT_MS);
        let url = self.secret(&REDIS_URL, &REDIS_URL_FILE)?;
        let options = RedisOptions::new(url, timeout, failure);
        options.map_err(|error| self.mistake(&REDIS_URL, error)).ok()
    }

    pub(super) fn trusted_proxies(&mut self) -> Proxies {
        match self.text(&TRUSTED_PROXIES).parse() {
            Ok(proxies) => proxies,
            Err(error) => {
                self.mistake(&TRUSTED_PROXIES, error);
                Proxies::default()
            }
        }
    }

    pub(super) fn input_rules(&mut self) -> InputRules {
        let pattern = self.text(&INPUT_DENY);
        match InputRules::new(Some(&*pattern).filter(|pattern| *pattern != "off")) {
            Ok(rules) => rules,
            Err(error) => {
                self.mistake(&INPUT_DENY, error);
                InputRules::default()
            }
        }
    }

    fn token_secret(&mut self, setting: &Setting, file: &Setting) -> Option<Secret> {
        let secret = self.secret(setting, file)?;
        let num_bytes = secret.expose().len();
        if num_bytes < MIN_SECRET_BYTES {
            let mistake = format!("has {num_bytes} bytes, fewer than {MIN_SECRET_BYTES}");
            self.mistake(setting, mistake);
        }
        Some(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError, tests::read};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn mistakes(vars: &[(&str, &str)]) -> String {
        read(vars).unwrap_err().to_string()
    }

    #[test]
    fn tokens_are_needed_only_if_the_setting_says() {
        assert_eq!(read(&[]).unwrap().auth, None);
        let options = read(&[("AUTH", "jwt"), ("JWT_SECRET", SECRET)]).unwrap().auth.unwrap();
        assert_eq!(options.secrets[0].expose(), SECRET);
        assert_eq!(options.allowed_roles, None);
        let open = read(&[("AUTH", "none"), ("JWT_SECRET", SECRET)]);
        assert_eq!(open.unwrap().auth, None);
    }

    #[test]
    fn a_function_is_not_open_by_mistake() {
        let cases: [(&[(&str, &str)], &str); 7] = [
            (&[("JWT_SECRET", SECRET)], "AUTH: not set, though keys of tokens are"),
            (&[("JWT_JWKS_URL", "https://x")], "AUTH: not set, though keys of tokens are"),
            (&[("AUTH", "jwt")], "AUTH: jwt needs JWT_SECRET or JWT_JWKS_URL"),
            (&[("AUTH", "yes")], "AUTH: \"yes\" is not one of none, jwt"),
            (&[("ALLOWED_ROLES", "user")], "ALLOWED_ROLES: needs AUTH=jwt"),
            (
                &[("AUTH", "jwt"), ("JWT_SECRET", "swordfish")],
                "JWT_SECRET: has 9 bytes, fewer than 32",
            ),
            (
                &[("AUTH", "jwt"), ("JWT_SECRET_FILE", "/nowhere")],
                "JWT_SECRET_FILE: No such file or directory (os error 2)",
            ),
        ];
        for (vars, mistake) in cases {
            assert_eq!(mistakes(vars), format!("bad settings: {mistake}"));
        }
    }

    #[test]
    fn no_mistake_shows_a_secret() {
        let message = mistakes(&[
            ("AUTH", "jwt"),
            ("JWT_SECRET", "swordfish"),
            ("JWT_PREVIOUS_SECRET", "codfish"),
            ("REDIS_URL", "http://:goldfish@host"),
        ]);
        assert!(!message.contains("fish"), "{message}");
        let config = read(&[("AUTH", "jwt"), ("JWT_SECRET", SECRET), ("HF_TOKEN", SECRET)]);
        let config = config.unwrap();
        assert!(!format!("{config:?}").contains(SECRET));
        let hf_token = config.model_options.access.hf_token.unwrap();
        assert_eq!(hf_token.expose(), SECRET);
    }

    #[test]
    fn a_secret_may_lie_in_a_file() {
        let path = std::env::temp_dir().join(format!("hf-token-{}", std::process::id()));
        std::fs::write(&path, "hf_swordfish\r\n").unwrap();
        let file = path.display().to_string();
        let config = read(&[("HF_TOKEN_FILE", &file)]).unwrap();
        assert_eq!(config.model_options.access.hf_token.unwrap().expose(), "hf_swordfish");
        let mistake = mistakes(&[("HF_TOKEN_FILE", &file), ("HF_TOKEN", "hf_codfish")]);
        assert_eq!(mistake, "bad settings: HF_TOKEN: set, and HF_TOKEN_FILE too");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn limits_proxies_and_patterns_are_checked() {
        let ok: Result<Config, ConfigError> = read(&[
            ("RATE_LIMITS", "user=10/min"),
            ("REDIS_URL", "redis://localhost"),
            ("REDIS_FAILURE", "deny"),
            ("TRUSTED_PROXIES", "10.0.0.0/8"),
            ("INPUT_DENY", "off"),
        ]);
        let config = ok.unwrap();
        assert!(!config.input_rules.denies("<script"));
        assert!(read(&[]).unwrap().input_rules.denies("<script"));
        let message = mistakes(&[
            ("RATE_LIMITS", "user=10"),
            ("REDIS_FAILURE", "maybe"),
            ("TRUSTED_PROXIES", "nginx"),
            ("INPUT_DENY", "("),
        ]);
        for name in ["RATE_LIMITS", "REDIS_FAILURE", "TRUSTED_PROXIES", "INPUT_DENY"] {
            assert!(message.contains(&format!("{name}: ")), "{message}");
        }
    }
}
