use std::path::PathBuf;

use reqwest::Url;

use crate::{WeightsError, digest};

/// A parsed `MODEL_URI`: a place, and the digest its model must have if the address pins one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelUri {
    pub(crate) place: Place,
    /// Sixty-four lower-case hexadecimal digits.
    pub(crate) sha256: Option<String>,
}

/// Where files of a model, or versions of one, lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// `path`, `file:///path`
    Folder(PathBuf),
    /// `http(s)://host/path`, without the slash at its end
    Http(Url),
    /// `s3://bucket/prefix?endpoint=…&region=…&path_style=true&anonymous=true`
    S3(S3Place),
    /// `hf://organization/name@revision`
    Hub {
        /// `organization/name`
        repository: String,
        /// A branch, tag or commit; `main` if the address names none.
        revision: String,
    },
}

/// A bucket and where it is served, as far as the address says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct S3Place {
    pub(crate) bucket: String,
    /// Without slashes at its ends; may be empty.
    pub(crate) prefix: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) path_style: bool,
    /// Requests are not signed.
    pub(crate) anonymous: bool,
}

/// Reads an address; `#sha256=…` may follow each of them.
pub(crate) fn parse(uri: &str) -> Result<ModelUri, WeightsError> {
    let refuse = |reason| WeightsError::Uri { uri: uri.to_owned(), reason };
    let (location, sha256) = match uri.split_once("#sha256=") {
        None => (uri, None),
        Some((location, digest)) => {
            if !digest::is_sha256(digest) {
                return Err(refuse("sha256 must be 64 hexadecimal digits"));
            }
            (location, Some(digest.to_ascii_lowercase()))
        }
    };
    if location.is_empty() {
        return Err(refuse("the path is empty"));
    }
    let place = match location.split_once("://") {
        None => Place::Folder(location.into()),
        Some(("file", path)) if path.starts_with('/') && path.len() > 1 => {
            Place::Folder(path.into())
        }
        Some(("file", _)) => return Err(refuse("a file URI needs an absolute path: file:///…")),
        Some(("http" | "https", _)) => {
            let url = Url::parse(location.trim_end_matches('/'));
            Place::Http(url.map_err(|_| refuse("not a URL"))?)
        }
        Some(("s3", _)) => Place::S3(s3(location).map_err(refuse)?),
        Some(("hf", path)) => hub(path).map_err(refuse)?,
        Some(_) => return Err(refuse("schemes are file, http, https, s3 and hf; or a path")),
    };
    Ok(ModelUri { place, sha256 })
}

fn s3(location: &str) -> Result<S3Place, &'static str> {
    let url = Url::parse(location).map_err(|_| "not s3://bucket/prefix")?;
    let bucket = url.host_str().unwrap_or_default().to_owned();
    if bucket.is_empty() {
        return Err("the bucket is missing: s3://bucket/prefix");
    }
    let prefix = url.path().trim_matches('/').to_owned();
    let mut place = S3Place { bucket, prefix, ..S3Place::default() };
    for (key, value) in url.query_pairs() {
        let yes = || match &*value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("path_style and anonymous are true or false"),
        };
        match &*key {
            "endpoint" => place.endpoint = Some(value.into_owned()),
            "region" => place.region = Some(value.into_owned()),
            "path_style" => place.path_style = yes()?,
            "anonymous" => place.anonymous = yes()?,
            _ => return Err("after ? come endpoint, region, path_style and anonymous"),
        }
    }
    Ok(place)
}

fn hub(path: &str) -> Result<Place, &'static str> {
    let (repository, revision) = path.split_once('@').unwrap_or((path, "main"));
    let is_name = |part: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(known)
    };
    let parts: Vec<&str> = repository.split('/').collect();
    if parts.len() != 2 || !parts.into_iter().all(is_name) {
        return Err("a model of the hub is hf://organization/name[@revision]");
    }
    if revision.is_empty() || !revision.split('/').all(is_name) {
        return Err("the revision is a branch, tag or commit");
    }
    Ok(Place::Hub { repository: repository.to_owned(), revision: revision.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(uri: &str) -> Place {
        parse(uri).unwrap().place
    }

    #[test]
    fn every_kind_of_address_is_read() {
        assert_eq!(place("model"), Place::Folder("model".into()));
        assert_eq!(place("file:///srv/model"), Place::Folder("/srv/model".into()));
        let url = Url::parse("https://models.example/tiny").unwrap();
        assert_eq!(place("https://models.example/tiny/"), Place::Http(url));
        let bucket = S3Place { bucket: "models".to_owned(), ..S3Place::default() };
        assert_eq!(place("s3://models"), Place::S3(bucket.clone()));
        let place_of = place(
            "s3://models/a/b/?endpoint=http://127.0.0.1:9000&region=eu-west-1&path_style=true\
             &anonymous=true",
        );
        let expected = S3Place {
            prefix: "a/b".to_owned(),
            endpoint: Some("http://127.0.0.1:9000".to_owned()),
            region: Some("eu-west-1".to_owned()),
            path_style: true,
            anonymous: true,
            ..bucket
        };
        assert_eq!(place_of, Place::S3(expected));
        let hub = |revision: &str| Place::Hub {
            repository: "org/name".to_owned(),
            revision: revision.to_owned(),
        };
        assert_eq!(place("hf://org/name"), hub("main"));
        assert_eq!(place("hf://org/name@refs/pr/1"), hub("refs/pr/1"));
    }

    #[test]
    fn a_digest_behind_an_address_pins_it() {
        let digest = "AB".repeat(32);
        for place in ["/srv/model", "s3://models/a?region=eu-west-1", "hf://org/name@v1"] {
            let uri = parse(&format!("{place}#sha256={digest}")).unwrap();
            assert_eq!(uri.sha256, Some("ab".repeat(32)), "{place}");
            assert_eq!(uri.place, parse(place).unwrap().place);
        }
    }

    #[test]
    fn other_addresses_are_refused_with_the_reason() {
        let cases = [
            ("ftp://srv/model", "schemes are file, http, https, s3 and hf; or a path"),
            ("file://srv/model", "a file URI needs an absolute path: file:///…"),
            ("model#sha256=12", "sha256 must be 64 hexadecimal digits"),
            ("", "the path is empty"),
            ("http://", "not a URL"),
            ("s3:///prefix", "the bucket is missing: s3://bucket/prefix"),
            ("s3://models?path_style=1", "path_style and anonymous are true or false"),
            ("s3://models?secret=1", "after ? come endpoint, region, path_style and anonymous"),
            ("hf://name", "a model of the hub is hf://organization/name[@revision]"),
            ("hf://org/../name", "a model of the hub is hf://organization/name[@revision]"),
            ("hf://org/name@", "the revision is a branch, tag or commit"),
            ("hf://org/name@a/../b", "the revision is a branch, tag or commit"),
        ];
        for (uri, reason) in cases {
            let message = parse(uri).unwrap_err().to_string();
            assert_eq!(message, format!("MODEL_URI \"{uri}\": {reason}"));
        }
    }
}
