//! Who may do what: one key pair, public buckets, denied buckets.

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

/// A set of buckets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Buckets {
    /// No bucket.
    #[default]
    None,
    /// Every bucket.
    All,
    /// The buckets of these names.
    Named(Vec<String>),
}

impl Buckets {
    fn contains(&self, bucket: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Named(names) => names.iter().any(|name| name == bucket),
        }
    }
}

/// The only key pair that signs.
#[derive(Debug)]
pub(crate) struct KeyPair {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

#[async_trait::async_trait]
impl S3Auth for KeyPair {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.access_key {
            Ok(self.secret_key.as_str().into())
        } else {
            Err(s3_error!(InvalidAccessKeyId, "The access key is not known"))
        }
    }
}

/// What a caller may do once the signature, if there is one, is known to be right.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) public: Buckets,
    pub(crate) denied: Buckets,
}

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let bucket = context.s3_path().get_bucket_name().unwrap_or_default();
        if self.denied.contains(bucket) {
            return Err(s3_error!(AccessDenied, "The bucket is denied"));
        }
        if context.credentials().is_none() {
            let reads = matches!(context.s3_op().name(), "GetObject" | "HeadObject");
            return match reads && self.public.contains(bucket) {
                true => Ok(()),
                false => Err(s3_error!(AccessDenied, "A signature is required")),
            };
        }
        let header = context.headers().get("x-amz-security-token");
        let in_header = header.is_some_and(|token| token == "expired");
        let query = context.uri().query().unwrap_or_default();
        if in_header || query.split('&').any(|pair| pair == "X-Amz-Security-Token=expired") {
            return Err(s3_error!(ExpiredToken, "The provided token has expired"));
        }
        Ok(())
    }
}
