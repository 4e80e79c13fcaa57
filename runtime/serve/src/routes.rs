//! What a function answers: its operations, each with its path, its dialect, the types of its JSON
//! and its handler. The router and the OpenAPI document are both made of them.

use std::{collections::BTreeMap, fmt, net::IpAddr, pin::Pin, sync::Arc, time::Instant};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{RawPathParams, Request, rejection::RawPathParamsRejection},
    http::{HeaderMap, Method, Uri, request::Parts},
    response::Response,
    routing::{MethodFilter, MethodRouter, get, on},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    admit::{self, Gate},
    answer::Answer,
    dialect::Dialect,
    endpoint::Endpoint,
    error::ApiError,
    json, metrics, openapi,
    service::Service,
};

/// Stands behind the model in a path: `/v1/models/{model}:predict`.
const PREDICT: &str = ":predict";

/// The only version in a path: a process has one model.
pub(crate) const VERSION: &str = "1";

/// What a function answers, as far as it has been said.
#[derive(Debug)]
pub struct Routes<P> {
    operations: Vec<Operation<P>>,
}

impl<P: Service> Routes<P> {
    pub(crate) fn new() -> Self {
        Self { operations: Vec::new() }
    }

    /// And `POST path`, whose JSON `handler` answers with JSON.
    ///
    /// The OpenAPI document has `summary`, and what the types say of themselves. Errors are answered
    /// as `{"error": {"code", "message"}}`.
    #[must_use]
    pub fn post<Req, T, F, Fut>(self, path: &'static str, summary: &'static str, handler: F) -> Self
    where
        Req: DeserializeOwned + JsonSchema + Send + 'static,
        T: Serialize + JsonSchema + Send + 'static,
        F: Fn(Endpoint<P>, Req) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Answer<T>, ApiError>> + Send + 'static,
    {
        self.with(Operation::post(Dialect::Native, path, summary, handler))
    }

    /// And `operation`. Of several at one path, the first that takes a request answers it.
    pub(crate) fn with(mut self, operation: Operation<P>) -> Self {
        self.operations.push(operation);
        self
    }

    /// All of it, and the document that says so.
    pub(crate) fn into_router(self, endpoint: &Endpoint<P>, gate: &Gate) -> Router {
        let abouts = self.operations.iter().map(|operation| operation.about.clone());
        let abouts: Arc<[About]> = abouts.chain([openapi::about(), metrics::about()]).collect();
        let mut paths: BTreeMap<&str, BTreeMap<&str, Vec<Operation<P>>>> = BTreeMap::new();
        for operation in self.operations {
            let About { path, method, .. } = operation.about;
            let path = path.strip_suffix(PREDICT).unwrap_or(path);
            paths.entry(path).or_default().entry(method).or_default().push(operation);
        }
        let document = {
            let endpoint = endpoint.clone();
            get(async move || openapi::document(&endpoint, &abouts))
        };
        let mut router = Router::new().route(openapi::PATH, document);
        if endpoint.config.metrics_port.is_none() {
            router = router.merge(metrics::router());
        }
        for (path, methods) in paths {
            let mut route = MethodRouter::new();
            if methods.values().flatten().any(|operation| operation.has_action(true)) {
                route = route.fallback(async |uri: Uri| wrong_method(uri.path()));
            }
            for (method, operations) in methods {
                let filter = if method == "get" { MethodFilter::GET } else { MethodFilter::POST };
                let is_open = method == "get" && admit::is_open(path);
                let (endpoint, gate) = (endpoint.clone(), gate.clone());
                let site = Arc::new(Site { endpoint, gate, is_open, operations });
                let answer = move |parameters, request| site.clone().answer(parameters, request);
                route = route.merge(on(filter, answer));
            }
            router = router.route(path, route);
        }
        router
    }
}

/// What the OpenAPI document says of an operation.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) dialect: Dialect,
    /// `get` or `post`.
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) summary: &'static str,
    /// Whether it asks the model.
    pub(crate) is_call: bool,
    /// What bodies are, in the order in which they are offered.
    pub(crate) media: &'static str,
    pub(crate) request: Option<MakeSchema>,
    pub(crate) response: MakeSchema,
    /// Bodies that are answered with 200, by name.
    pub(crate) examples: Vec<(&'static str, Value)>,
    /// An error that no other operation has.
    pub(crate) error: Option<ApiError>,
}

pub(crate) type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// A request that an operation takes.
#[derive(Debug)]
pub(crate) struct Call<P> {
    pub(crate) endpoint: Endpoint<P>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Where it came from, if anybody can tell.
    pub(crate) address: Option<IpAddr>,
    pub(crate) started: Instant,
}

type Answering = Pin<Box<dyn Future<Output = Result<Response, ApiError>> + Send>>;

/// One way to ask a function, and what it answers.
pub(crate) struct Operation<P> {
    about: About,
    takes: fn(&HeaderMap) -> bool,
    fits: fn(&[u8]) -> bool,
    handler: Box<dyn Fn(Call<P>) -> Answering + Send + Sync>,
}

impl<P> fmt::Debug for Operation<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Operation").field(&self.about).finish()
    }
}

impl<P: Service> Operation<P> {
    /// Reads JSON, and asks the model.
    pub(crate) fn post<Req, T, F, Fut>(
        dialect: Dialect,
        path: &'static str,
        summary: &'static str,
        handler: F,
    ) -> Self
    where
        Req: DeserializeOwned + JsonSchema + Send + 'static,
        T: Serialize + JsonSchema + Send + 'static,
        F: Fn(Endpoint<P>, Req) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Answer<T>, ApiError>> + Send + 'static,
    {
        Self::raw::<Req, T, _, _>(dialect, path, summary, move |call: Call<P>| {
            let handler = handler.clone();
            async move {
                let request = json::parse(&call.body)?;
                handler(call.endpoint, request).await?.response(call.started)
            }
        })
    }

    /// Reads a body as it is, and asks the model. `Req` and `T` are what the document says.
    pub(crate) fn raw<Req, T, F, Fut>(
        dialect: Dialect,
        path: &'static str,
        summary: &'static str,
        handler: F,
    ) -> Self
    where
        Req: JsonSchema,
        T: JsonSchema,
        F: Fn(Call<P>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, ApiError>> + Send + 'static,
    {
        let request: MakeSchema = |generator| generator.subschema_for::<Req>();
        let mut operation = Self::get::<T, _, _>(dialect, path, summary, handler);
        operation.about.method = "post";
        operation.about.is_call = true;
        operation.about.request = Some(request);
        operation.takes = json::is_json;
        operation
    }

    /// Says what is known already. `T` is what the document says.
    pub(crate) fn get<T, F, Fut>(
        dialect: Dialect,
        path: &'static str,
        summary: &'static str,
        handler: F,
    ) -> Self
    where
        T: JsonSchema,
        F: Fn(Call<P>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, ApiError>> + Send + 'static,
    {
        let about = About {
            dialect,
            method: "get",
            path,
            summary,
            is_call: false,
            media: "application/json",
            request: None,
            response: |generator| generator.subschema_for::<T>(),
            examples: Vec::new(),
            error: None,
        };
        let handler = Box::new(move |call| Box::pin(handler(call)) as Answering);
        Self { about, takes: |_| true, fits: |_| true, handler }
    }

    /// Only with such headers; `media` is what the document says of its bodies.
    pub(crate) fn takes(mut self, media: &'static str, takes: fn(&HeaderMap) -> bool) -> Self {
        self.about.media = media;
        self.takes = takes;
        self
    }

    /// Only such bodies.
    pub(crate) fn fits(mut self, fits: fn(&[u8]) -> bool) -> Self {
        self.fits = fits;
        self
    }

    /// A body that is answered with 200.
    pub(crate) fn example(mut self, name: &'static str, body: Value) -> Self {
        self.about.examples.push((name, body));
        self
    }

    /// May end with an error that no other operation has.
    pub(crate) fn fails(mut self, error: ApiError) -> Self {
        self.about.error = Some(error);
        self
    }

    fn has_action(&self, is_predict: bool) -> bool {
        self.about.path.ends_with(PREDICT) == is_predict
    }
}

/// Of a path that takes one method with [`PREDICT`] at its end, and another without.
fn wrong_method(path: &str) -> ApiError {
    ApiError::method_not_allowed(if path.ends_with(PREDICT) { "POST" } else { "GET,HEAD" })
}

/// The operations of one method at one path.
struct Site<P> {
    endpoint: Endpoint<P>,
    gate: Gate,
    /// Whether whoever comes is let in.
    is_open: bool,
    operations: Vec<Operation<P>>,
}

impl<P: Service> Site<P> {
    /// The answer to whoever is let in.
    async fn answer(
        self: Arc<Self>,
        parameters: Result<RawPathParams, RawPathParamsRejection>,
        request: Request,
    ) -> Result<Response, ApiError> {
        let started = Instant::now();
        let About { dialect, is_call, .. } = self.operations[0].about;
        let parameters = parameters.map_err(|_| ApiError::invalid_path().in_dialect(dialect))?;
        let (parts, body) = request.into_parts();
        if self.is_open {
            return self.ask(started, &parameters, parts, body, None).await;
        }
        let admitted = self.gate.admit(&parts, is_call).await;
        let admitted = admitted.map_err(|error| error.in_dialect(dialect))?;
        let address = admitted.address();
        let outcome = self.ask(started, &parameters, parts, body, address).await;
        self.gate.settle(admitted, outcome).await
    }

    async fn ask(
        &self,
        started: Instant,
        parameters: &RawPathParams,
        Parts { method, headers, .. }: Parts,
        body: Body,
        address: Option<IpAddr>,
    ) -> Result<Response, ApiError> {
        let first = &self.operations[0];
        let in_first = |error: ApiError| error.in_dialect(first.about.dialect);

        self.check_parameters(&method, parameters).await.map_err(in_first)?;
        if !self.operations.iter().any(|operation| (operation.takes)(&headers)) {
            return Err(in_first(ApiError::unsupported_type(first.about.media)));
        }
        let body = match first.about.request {
            None => Bytes::new(),
            Some(_) => {
                let max_body_bytes = self.endpoint.config.max_body_bytes;
                json::read(&headers, body, max_body_bytes).await.map_err(in_first)?
            }
        };
        let fitting = self
            .operations
            .iter()
            .find(|operation| (operation.takes)(&headers) && (operation.fits)(&body));
        let operation = fitting.unwrap_or(first);
        let call = Call { endpoint: self.endpoint.clone(), headers, body, address, started };
        let answer = (operation.handler)(call).await;
        answer.map_err(|error| error.in_dialect(operation.about.dialect))
    }

    /// Whether the path names what there is.
    async fn check_parameters(
        &self,
        method: &Method,
        parameters: &RawPathParams,
    ) -> Result<(), ApiError> {
        for (name, value) in parameters {
            if name == "version" && value != VERSION {
                let message = format!("there is no version {value:?}, only {VERSION}");
                return Err(ApiError::not_found("version_not_found", message));
            }
            if name == "model" {
                let model = value.strip_suffix(PREDICT);
                if !self.operations[0].has_action(model.is_some()) {
                    return Err(wrong_method(value));
                }
                // Whoever asks how things are does not wait for the model.
                if method == Method::POST {
                    self.endpoint.service().await?;
                }
                self.endpoint.check_name(model.unwrap_or(value))?;
            }
        }
        Ok(())
    }
}
