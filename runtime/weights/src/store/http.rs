//! Files of a web server, and of the Hugging Face hub. Read only.

use std::{ops::Range, path::PathBuf, time::Duration};

use bytes::Bytes;
use reqwest::{
    Certificate, Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH, RANGE},
};
use telemetry::Secret;

use super::{Answer, Body, Expected, Reading, Stat, Store, StoreError};
use crate::{Access, WeightsError};

/// How long a connection may take to be there.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a server may send nothing.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Http {
    client: Client,
    base: Url,
    token: Option<Secret>,
}

impl Http {
    pub(crate) fn new(base: Url, access: &Access) -> Result<Self, WeightsError> {
        let refuse = |source: Box<dyn std::error::Error + Send + Sync>| WeightsError::Transfer {
            address: base.to_string(),
            source,
        };
        // One provider of cryptography for the process; a second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client =
            Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
        if let Some(pem) = access.ca_bundle().map_err(|source| refuse(source.into()))? {
            let certificates = Certificate::from_pem_bundle(&pem);
            client = client.tls_certs_merge(certificates.map_err(|error| refuse(error.into()))?);
        }
        let client = client.build().map_err(|error| refuse(error.into()))?;
        Ok(Self { client, base, token: None })
    }

    /// `revision` of a model of the hub.
    pub(crate) fn hub(
        repository: &str,
        revision: &str,
        access: &Access,
    ) -> Result<Self, WeightsError> {
        let endpoint = access.hf_endpoint.trim_end_matches('/');
        let base = format!("{endpoint}/{repository}/resolve/{revision}");
        let url = Url::parse(&base)
            .map_err(|error| WeightsError::Transfer { address: base, source: error.into() })?;
        Ok(Self { token: access.hf_token.clone(), ..Self::new(url, access)? })
    }

    fn request(&self, method: Method, name: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(name.split('/'));
        }
        let request = self.client.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }
}

/// The answer, if it is a success.
async fn send(request: RequestBuilder) -> Result<Response, StoreError> {
    let response = request.send().await.map_err(|error| {
        if error.is_redirect() || error.is_builder() {
            StoreError::Refused(error.into())
        } else {
            StoreError::Interrupted(error.into())
        }
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    Err(StoreError::of_status(status.as_u16(), || status.to_string()))
}

/// The entity tag, if it stands for the very bytes.
fn tag(response: &Response) -> Option<String> {
    let tag = response.headers().get(ETAG)?.to_str().ok()?;
    (!tag.starts_with("W/")).then(|| tag.to_owned())
}

/// The size of the whole file.
fn len(response: &Response) -> Option<u64> {
    let headers = response.headers();
    match headers.get(CONTENT_RANGE) {
        Some(range) => range.to_str().ok()?.rsplit_once('/')?.1.parse().ok(),
        None => headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok(),
    }
}

fn stat(response: &Response) -> Result<Stat, StoreError> {
    let len = len(response);
    let len = len.ok_or_else(|| StoreError::Refused("the answer has no length".into()))?;
    Ok(Stat { len, tag: tag(response) })
}

fn read_only<'a>() -> Answer<'a, ()> {
    Box::pin(async { Err(StoreError::Refused("web servers and the hub are only read".into())) })
}

impl Store for Http {
    fn address(&self, name: &str) -> String {
        format!("{}/{name}", self.base.as_str().trim_end_matches('/'))
    }

    fn stat<'a>(&'a self, name: &'a str) -> Answer<'a, Stat> {
        Box::pin(async move { stat(&send(self.request(Method::HEAD, name)).await?) })
    }

    fn read<'a>(
        &'a self,
        name: &'a str,
        range: Option<Range<u64>>,
        tag: Option<&'a str>,
    ) -> Answer<'a, Reading> {
        Box::pin(async move {
            let mut request = self.request(Method::GET, name);
            if let Some(Range { start, end }) = range {
                request = request.header(RANGE, format!("bytes={start}-{}", end - 1));
            }
            if let Some(tag) = tag {
                request = request.header(IF_MATCH, tag);
            }
            let response = send(request).await?;
            Ok(Reading {
                stat: stat(&response)?,
                is_range: response.status() == StatusCode::PARTIAL_CONTENT,
                body: Body::Http(Box::new(response)),
            })
        })
    }

    fn write<'a>(&'a self, _: &'a str, _: Bytes, _: Expected<'a>) -> Answer<'a, ()> {
        read_only()
    }

    fn upload<'a>(
        &'a self,
        _: &'a str,
        _: PathBuf,
        _: &'a (dyn Fn(u64) + Send + Sync),
    ) -> Answer<'a, ()> {
        read_only()
    }
}
