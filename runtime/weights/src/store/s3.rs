//! Objects of a bucket, through the AWS SDK.

use std::{
    collections::BTreeMap, error::Error, fs::File, io, ops::Range, os::unix::fs::FileExt,
    path::PathBuf, sync::Arc, time::Duration,
};

use aws_config::{BehaviorVersion, Region, meta::region::RegionProviderChain};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::{
    Client,
    config::{
        RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
        retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use bytes::Bytes;
use tokio::{sync::OnceCell, task::JoinSet};

use super::{
    Answer, Body, Expected, Reading, Stat, Store, StoreError,
    http::{CONNECT_TIMEOUT, READ_TIMEOUT},
};
use crate::{Access, uri::S3Place};

/// Size of the parts of an upload, in bytes; files up to this are sent at once.
const PART_BYTES: u64 = 8 << 20;

/// Parts that are sent at the same time.
const PARALLEL_PARTS: usize = 4;

/// How long a part may take: the time until the answer begins, and so that of sending it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(crate) struct S3 {
    place: S3Place,
    access: Access,
    // Made when first used: looking for credentials may take a while.
    client: OnceCell<Client>,
}

impl S3 {
    pub(crate) fn new(place: &S3Place, access: &Access) -> Self {
        Self { place: place.clone(), access: access.clone(), client: OnceCell::new() }
    }

    fn key(&self, name: &str) -> String {
        match self.place.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }

    async fn client(&self) -> Result<&Client, StoreError> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Client, StoreError> {
        let _stage = telemetry::stage("s3_client");
        let S3Place { endpoint, region, path_style, anonymous, .. } = &self.place;
        let timeouts =
            TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
        // Whoever names an endpoint and no region does not mean AWS, whose metadata service would
        // be asked for one.
        let region = match (region, endpoint) {
            (Some(region), _) => RegionProviderChain::first_try(Region::new(region.clone())),
            (None, Some(_)) => RegionProviderChain::first_try(
                aws_config::environment::EnvironmentVariableRegionProvider::new(),
            )
            .or_else(Region::from_static("us-east-1")),
            (None, None) => RegionProviderChain::default_provider(),
        };
        // What goes wrong is tried again by `download`, which knows how far it got.
        let mut config = aws_config::defaults(BehaviorVersion::latest())
            .region(region)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts.build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        // Roots of trust are not loaded for a server that is spoken to in plain text.
        let is_plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        config = if is_plain {
            config.http_client(Builder::new().build_http())
        } else {
            let mut roots = TrustStore::default();
            if let Some(pem) = self.access.ca_bundle()? {
                roots = roots.with_pem_certificate(pem);
            }
            let tls = TlsContext::builder().with_trust_store(roots).build();
            let tls = tls.map_err(|error| StoreError::Refused(error.into()))?;
            let builder = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
            config.http_client(builder.tls_context(tls).build_https())
        };
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint);
        }
        if *anonymous {
            config = config.no_credentials();
        }
        let config = config.load().await;
        let mut config = aws_sdk_s3::config::Builder::from(&config).force_path_style(*path_style);
        if *anonymous {
            config = config.allow_no_auth();
        }
        Ok(Client::from_conf(config.build()))
    }

    async fn put(
        &self,
        name: &str,
        content: Bytes,
        expected: Expected<'_>,
    ) -> Result<(), StoreError> {
        let request = self.client().await?.put_object().bucket(&self.place.bucket);
        let request = request.key(self.key(name)).body(ByteStream::from(content));
        let request = match expected {
            Expected::Anything => request,
            Expected::Missing => request.if_none_match("*"),
            Expected::Tag(tag) => request.if_match(tag),
        };
        let request = request.customize().config_override(patient());
        request.send().await.map(drop).map_err(refusal)
    }

    /// The upload of `key` that was begun before and not ended, with the sizes and tags of its
    /// parts, by number.
    async fn unfinished(
        &self,
        key: &str,
    ) -> Result<Option<(String, BTreeMap<i32, (u64, String)>)>, StoreError> {
        let client = self.client().await?;
        let bucket = &self.place.bucket;
        let uploads = client.list_multipart_uploads().bucket(bucket).prefix(key).send().await;
        let uploads = uploads.map_err(refusal)?;
        let upload = uploads.uploads().iter().find(|upload| upload.key() == Some(key));
        let Some(id) = upload.and_then(|upload| upload.upload_id()) else { return Ok(None) };
        let mut parts = BTreeMap::new();
        let mut pages =
            client.list_parts().bucket(bucket).key(key).upload_id(id).into_paginator().send();
        while let Some(page) = pages.next().await {
            for part in page.map_err(refusal)?.parts() {
                if let (Some(number), Some(size), Some(tag)) =
                    (part.part_number(), part.size(), part.e_tag())
                {
                    parts.insert(number, (size as u64, tag.to_owned()));
                }
            }
        }
        Ok(Some((id.to_owned(), parts)))
    }

    async fn upload(
        &self,
        name: &str,
        local: PathBuf,
        on_part: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), StoreError> {
        let file = Arc::new(File::open(&local)?);
        let len = file.metadata()?.len();
        if len <= PART_BYTES {
            self.put(name, read_at(&file, 0..len)?, Expected::Anything).await?;
            on_part(len);
            return Ok(());
        }
        let (client, key) = (self.client().await?, self.key(name));
        let bucket = &self.place.bucket;
        let unfinished = match self.unfinished(&key).await {
            // Whoever may write need not be allowed to list, nor does every server list uploads.
            Err(StoreError::Denied(_) | StoreError::Refused(_)) => None,
            unfinished => unfinished?,
        };
        let (id, there) = match unfinished {
            Some(unfinished) => unfinished,
            None => {
                let upload = client.create_multipart_upload().bucket(bucket).key(&key).send();
                let upload = upload.await.map_err(refusal)?;
                let id = upload.upload_id().ok_or_else(|| {
                    StoreError::Refused("the server gave the upload no id".into())
                })?;
                (id.to_owned(), BTreeMap::new())
            }
        };
        let mut parts = BTreeMap::new();
        let mut sending: JoinSet<Result<(i32, u64, String), StoreError>> = JoinSet::new();
        for number in 1..=len.div_ceil(PART_BYTES) as i32 {
            let start = (number as u64 - 1) * PART_BYTES;
            let range = start..len.min(start + PART_BYTES);
            let size = range.end - range.start;
            if let Some((_, tag)) = there.get(&number).filter(|(there, _)| *there == size) {
                parts.insert(number, tag.clone());
                on_part(size);
                continue;
            }
            if sending.len() == PARALLEL_PARTS {
                sent(&mut sending, &mut parts, on_part).await?;
            }
            let request =
                client.upload_part().bucket(bucket).key(&key).upload_id(&id).part_number(number);
            let file = file.clone();
            sending.spawn(async move {
                let request = request.body(ByteStream::from(read_at(&file, range)?));
                let request = request.customize().config_override(patient());
                let part = request.send().await.map_err(refusal)?;
                Ok((number, size, part.e_tag().unwrap_or_default().to_owned()))
            });
        }
        while !sending.is_empty() {
            sent(&mut sending, &mut parts, on_part).await?;
        }
        let parts = parts
            .into_iter()
            .map(|(number, tag)| CompletedPart::builder().part_number(number).e_tag(tag).build());
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build();
        let complete = client.complete_multipart_upload().bucket(bucket).key(&key).upload_id(&id);
        let complete = complete.multipart_upload(parts).customize().config_override(patient());
        complete.send().await.map(drop).map_err(refusal)
    }
}

/// What writes are sent with.
fn patient() -> aws_sdk_s3::config::Builder {
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(WRITE_TIMEOUT);
    aws_sdk_s3::config::Builder::new().timeout_config(timeouts.build())
}

/// Waits for one of the parts under way.
async fn sent(
    sending: &mut JoinSet<Result<(i32, u64, String), StoreError>>,
    parts: &mut BTreeMap<i32, String>,
    on_part: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), StoreError> {
    let Some(outcome) = sending.join_next().await else { return Ok(()) };
    match outcome.map_err(|error| StoreError::Refused(error.into())).flatten() {
        Ok((number, size, tag)) => {
            parts.insert(number, tag);
            on_part(size);
            Ok(())
        }
        Err(error) => {
            // The others are kept, if they arrive.
            while sending.join_next().await.is_some() {}
            Err(error)
        }
    }
}

fn read_at(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let mut content = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut content, range.start)?;
    Ok(content.into())
}

/// Whether there was nothing to sign with.
fn lacks_credentials(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let credentials = error.downcast_ref::<CredentialsError>();
        if matches!(credentials, Some(CredentialsError::CredentialsNotLoaded { .. })) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What the SDK says, cut by what the caller does next.
fn refusal<E>(error: SdkError<E>) -> StoreError
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let Some(response) = error.raw_response() else {
        let is_dispatch = matches!(error, SdkError::TimeoutError(_) | SdkError::DispatchFailure(_));
        let source = error.into_source().unwrap_or_else(|_| "no answer".into());
        if lacks_credentials(&*source) {
            let nobody = "no variables, profile or role give credentials; a public bucket is read \
                          with anonymous=true";
            return StoreError::Denied(nobody.to_owned());
        }
        let connector = source.downcast_ref::<aws_sdk_s3::error::ConnectorError>();
        return if is_dispatch && !connector.is_some_and(|error| error.is_user()) {
            StoreError::Interrupted(source)
        } else {
            StoreError::Refused(source)
        };
    };
    let status = response.status().as_u16();
    let code = error.code().unwrap_or("no reason given");
    let message = match error.message() {
        Some(message) => format!("{status} {code}: {message}"),
        None => format!("{status} {code}"),
    };
    match code {
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => StoreError::Denied(message),
        // An upload that is gone was ended by somebody else: looking again tells how.
        "SlowDown" | "RequestTimeout" | "InternalError" | "NoSuchUpload" => {
            StoreError::Interrupted(message.into())
        }
        "NotImplemented" => StoreError::Refused(message.into()),
        _ => StoreError::of_status(status, || message),
    }
}

impl Store for S3 {
    fn address(&self, name: &str) -> String {
        format!("s3://{}/{}", self.place.bucket, self.key(name))
    }

    fn stat<'a>(&'a self, name: &'a str) -> Answer<'a, Stat> {
        Box::pin(async move {
            let request = self.client().await?.head_object().bucket(&self.place.bucket);
            let head = request.key(self.key(name)).send().await.map_err(refusal)?;
            Ok(Stat {
                len: head.content_length().unwrap_or_default().max(0) as u64,
                tag: head.e_tag().map(str::to_owned),
            })
        })
    }

    fn read<'a>(
        &'a self,
        name: &'a str,
        range: Option<Range<u64>>,
        tag: Option<&'a str>,
    ) -> Answer<'a, Reading> {
        Box::pin(async move {
            let request = self.client().await?.get_object().bucket(&self.place.bucket);
            let bytes = range.map(|Range { start, end }| format!("bytes={start}-{}", end - 1));
            let request =
                request.key(self.key(name)).set_range(bytes).set_if_match(tag.map(str::to_owned));
            let object = request.send().await.map_err(refusal)?;
            let whole = object.content_range().and_then(|range| range.rsplit_once('/'));
            let len = whole.and_then(|(_, len)| len.parse().ok());
            let sent = object.content_length().unwrap_or_default().max(0) as u64;
            Ok(Reading {
                stat: Stat { len: len.unwrap_or(sent), tag: object.e_tag().map(str::to_owned) },
                is_range: object.content_range().is_some(),
                body: Body::S3(object.body),
            })
        })
    }

    fn write<'a>(
        &'a self,
        name: &'a str,
        content: Bytes,
        expected: Expected<'a>,
    ) -> Answer<'a, ()> {
        Box::pin(self.put(name, content, expected))
    }

    fn upload<'a>(
        &'a self,
        name: &'a str,
        local: PathBuf,
        on_part: &'a (dyn Fn(u64) + Send + Sync),
    ) -> Answer<'a, ()> {
        Box::pin(self.upload(name, local, on_part))
    }
}
