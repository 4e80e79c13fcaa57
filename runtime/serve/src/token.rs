//! The function `token`: log in with a password, get a token; and the keys to check it with.
//!
//! ```text
//! POST /login                  {"username", "password"}, as JSON or as a form
//!                              ->  {"access_token", "token_type": "bearer", "expires_in", "role"}
//! GET /.well-known/jwks.json   ->  {"keys": […]}
//! ```

use std::{
    net::IpAddr,
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use admission::{Caller, Issuer, Limiter, RateLimits, Users};
use axum::{
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use pipeline::{ModelInfo, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use telemetry::Causes;
use telemetry::Secret;
use tokio::sync::Semaphore;

use crate::{
    Config,
    answer::Answer,
    config::TokenOptions,
    dialect::{self, Dialect::Native},
    error::ApiError,
    json,
    load::LoadError,
    model::Model,
    routes::{Call, Operation, Routes},
    run::{Action, begin, end, refuse, serve},
    service::Service,
};

const FUNCTION: &str = "token";

/// The role by which log-ins are counted.
pub(crate) const LOGIN: &str = "login";

/// Log-ins that wait for a core; a password takes some 20 ms of one.
const MAX_WAITING: usize = 64;

const FORM: &str = "application/x-www-form-urlencoded";

/// Runs the function `token` from the command line to the end of the process, as [`run`](crate::run)
/// does others.
pub fn run() -> ExitCode {
    let (config, action) = match begin(FUNCTION) {
        Ok(begun) => begun,
        Err(end) => return end,
    };
    let Some(options) = &config.token else { return refuse("no settings of tokens") };
    let logins = match Logins::open(options, &config) {
        Ok(logins) => logins,
        Err(error) => return refuse(&format!("bad settings: {}", Causes(&*error))),
    };
    if action == Action::Check {
        return ExitCode::SUCCESS;
    }
    let model = Model::loading();
    model.set(Ok(logins));
    end(serve(FUNCTION, config, routes(), model, |_| Ok(())))
}

/// Users, and the keys that sign for them.
#[derive(Debug, Clone)]
pub(crate) struct Logins(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    info: ModelInfo,
    users: Users,
    issuer: Issuer,
    /// Most log-ins of an address, and of a name.
    limits: RateLimits,
    attempts: OnceLock<Limiter>,
    waiting: Semaphore,
    hashing: Arc<Semaphore>,
}

impl Service for Logins {
    fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    fn is_lost(&self) -> bool {
        false
    }

    fn purpose(&self) -> Option<Task<'_>> {
        None
    }
}

impl Logins {
    pub(crate) fn open(options: &TokenOptions, config: &Config) -> Result<Self, LoadError> {
        let issuer = Issuer::new(&options.issuer)?;
        let info = ModelInfo {
            name: FUNCTION.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            digest: String::new(),
            max_input_tokens: 0,
        };
        Ok(Self(Arc::new(Shared {
            info,
            users: Users::open(&options.users_file)?,
            issuer,
            limits: options.login_limit.clone(),
            attempts: OnceLock::new(),
            waiting: Semaphore::new(MAX_WAITING),
            hashing: Arc::new(Semaphore::new(config.engine_options.num_threads)),
        })))
    }

    /// Counts a log-in of `username` from `address`: of both, whoever it is, and whether it succeeds.
    async fn count(
        &self,
        config: &Config,
        username: &str,
        address: Option<IpAddr>,
    ) -> Result<(), ApiError> {
        let attempts = self
            .0
            .attempts
            .get_or_init(|| Limiter::new(FUNCTION, self.0.limits.clone(), config.redis.clone()));
        let role = LOGIN.to_owned();
        let from = Caller { subject: None, role: role.clone(), address };
        let of = Caller { subject: Some(username.to_owned()), role, address: None };
        for caller in [from, of] {
            attempts.admit(&caller).await.map_err(ApiError::of_limit)?;
        }
        Ok(())
    }

    /// The role of `username`, if that is the password.
    async fn check(self, username: String, password: Secret) -> Result<Option<String>, ApiError> {
        let busy = |_| ApiError::overloaded("too many log-ins at once", MAX_WAITING);
        let _place = self.0.waiting.try_acquire().map_err(busy)?;
        let core = self.0.hashing.clone().acquire_owned().await;
        let core = core.map_err(|_| ApiError::internal())?;
        let logins = self.clone();
        let check = move || {
            // A caller that hangs up does not end this, and so does not make room for the next.
            let _core = core;
            logins.0.users.check(&username, &password)
        };
        tokio::task::spawn_blocking(check).await.map_err(|_| ApiError::internal())
    }
}

pub(crate) fn routes() -> Routes<Logins> {
    let example = json!({ "username": "ada", "password": "correct horse battery staple" });
    let summary = "A token for whoever knows the password.";
    let json = Operation::raw::<LoginRequest, LoginAnswer, _, _>(
        Native,
        "/login",
        summary,
        async |call: Call<Logins>| {
            let request = json::parse(&call.body)?;
            log_in(call, request).await
        },
    );
    let form = Operation::raw::<LoginForm, LoginAnswer, _, _>(
        Native,
        "/login",
        summary,
        async |call: Call<Logins>| {
            let request =
                serde_urlencoded::from_bytes::<LoginForm>(&call.body).map_err(|error| {
                    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", error)
                })?;
            let LoginForm { username, password } = request;
            log_in(call, LoginRequest { username, password }).await
        },
    );
    let keys = Operation::get::<Map<String, Value>, _, _>(
        Native,
        "/.well-known/jwks.json",
        "The public keys of tokens, as RFC 7517 has them.",
        key_set,
    );
    dialect::basic(Routes::new())
        .with(json.example("a user", example).fails(bad_credentials()))
        .with(form.takes(FORM, is_form))
        .with(keys)
}

fn is_form(headers: &HeaderMap) -> bool {
    json::content_type(headers) == FORM
}

/// Who logs in.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LoginRequest {
    /// As the file of users has it.
    username: String,
    /// In clear: only where something in front ends TLS.
    password: String,
}

/// The same as a form, as OAuth 2 sends it (RFC 6749, section 4.3.2); its other fields say nothing here.
#[derive(Deserialize, JsonSchema)]
struct LoginForm {
    username: String,
    password: String,
}

/// A token.
#[derive(Debug, Serialize, JsonSchema)]
struct LoginAnswer {
    /// Goes behind `Authorization: Bearer`.
    access_token: String,
    /// Always `bearer`.
    token_type: &'static str,
    /// How long it holds, in seconds.
    expires_in: u64,
    /// What its owner may do.
    role: String,
}

async fn log_in(call: Call<Logins>, request: LoginRequest) -> Result<Response, ApiError> {
    let LoginRequest { username, password } = request;
    let password = Secret::new(password);
    let logins = call.endpoint.service().await?;
    logins.count(&call.endpoint.config, &username, call.address).await?;
    let Some(role) = logins.clone().check(username.clone(), password).await? else {
        return Err(bad_credentials());
    };
    let issued = logins.0.issuer.issue(&username, &role);
    let answer = LoginAnswer {
        access_token: issued.token,
        token_type: "bearer",
        expires_in: issued.lifetime.as_secs(),
        role,
    };
    let mut response = Answer::of(answer).response(call.started)?;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn bad_credentials() -> ApiError {
    let message = "wrong username or password";
    ApiError::new(StatusCode::UNAUTHORIZED, "bad_credentials", message)
}

async fn key_set(call: Call<Logins>) -> Result<Response, ApiError> {
    let keys = call.endpoint.service().await?.0.issuer.jwks().to_owned();
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "public, max-age=300")];
    Ok((headers, keys).into_response())
}
