//! Objects as files: what each S3 operation does to the folder.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use http_body_util::BodyExt;
use s3s::dto::*;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use crate::body::FileBody;
use crate::log::lock;

/// In each bucket, the folder for what is not yet an object. No key begins with it.
const UNFINISHED: &str = ".unfinished";
const MAX_KEYS: i32 = 1000;
const MIN_PART_BYTES: u64 = 5 << 20;
const MAX_PARTS: i32 = 10_000;

/// A mark on a request that is answered as if it had no `Range`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IgnoreRange;

#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
    num_unfinished: Arc<AtomicU64>,
    /// Held from the check of a condition to the rename that depends on it.
    publishing: Arc<Mutex<()>>,
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, num_unfinished: Arc::default(), publishing: Arc::default() }
    }

    /// Gives the object at `/bucket/key` new content.
    pub(crate) fn replace(&self, path: &str, content: &[u8]) -> S3Result<()> {
        let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
        let target = self.locate(bucket, key)?;
        let unfinished = Unfinished { path: self.unfinished(bucket)? };
        fs::write(&unfinished.path, content).map_err(S3Error::internal_error)?;
        self.publish(unfinished, &target, None, None).map(drop)
    }

    fn bucket(&self, bucket: &str) -> S3Result<PathBuf> {
        let folder = self.root.join(bucket);
        match folder.is_dir() {
            true => Ok(folder),
            false => Err(s3_error!(NoSuchBucket, "The specified bucket does not exist")),
        }
    }

    fn locate(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        let folder = self.bucket(bucket)?;
        let path = Path::new(key);
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        // Whatever a path would simplify, as in `a//b` and `a/./b`, would make two keys one file.
        let same = path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
        match plain && same && !key.is_empty() && !key.starts_with(UNFINISHED) {
            true => Ok(folder.join(path)),
            false => Err(s3_error!(InvalidArgument, "The key cannot be the path of a file")),
        }
    }

    /// A new path for what is not yet an object of `bucket`.
    fn unfinished(&self, bucket: &str) -> S3Result<PathBuf> {
        let folder = self.bucket(bucket)?.join(UNFINISHED);
        fs::create_dir_all(&folder).map_err(S3Error::internal_error)?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let number = self.num_unfinished.fetch_add(1, Ordering::Relaxed);
        Ok(folder.join(format!("{:x}-{number:x}", since.as_nanos())))
    }

    /// Opens the object for one answer: its file, what of it to send, its metadata.
    fn open(
        &self,
        bucket: &str,
        key: &str,
        range: Option<Range>,
        if_match: Option<&ETagCondition>,
        if_none_match: Option<&ETagCondition>,
    ) -> S3Result<Opened> {
        let missing = || s3_error!(NoSuchKey, "The specified key does not exist.");
        let file = File::open(self.locate(bucket, key)?).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => missing(),
            _ => S3Error::internal_error(error),
        })?;
        let metadata = file.metadata().map_err(S3Error::internal_error)?;
        if !metadata.is_file() {
            return Err(missing());
        }
        let etag = etag(&metadata);
        if if_match.is_some_and(|condition| !meets(condition, &etag)) {
            return Err(s3_error!(PreconditionFailed, "If-Match does not hold"));
        }
        if if_none_match.is_some_and(|condition| meets(condition, &etag)) {
            let mut error = s3_error!(NotModified);
            if let Ok(value) = etag.to_http_header() {
                error.set_headers([(hyper::header::ETAG, value)].into_iter().collect());
            }
            return Err(error);
        }
        let len = metadata.len();
        let span = range.map_or(Ok(0..len), |range| range.check(len))?;
        let content_range =
            range.map(|_| format!("bytes {}-{}/{len}", span.start, span.end.saturating_sub(1)));
        let body = FileBody { file, offset: span.start, end: span.end };
        Ok(Opened { body, content_range, etag, last_modified: last_modified(&metadata) })
    }

    /// Makes `unfinished` the object at `target`, if the conditions hold, and returns its ETag.
    fn publish(
        &self,
        unfinished: Unfinished,
        target: &Path,
        if_match: Option<&ETagCondition>,
        if_none_match: Option<&ETagCondition>,
    ) -> S3Result<ETag> {
        let _publishing = lock(&self.publishing);
        let current = fs::metadata(target).ok().map(|metadata| etag(&metadata));
        match (if_match, &current) {
            (Some(_), None) => {
                return Err(s3_error!(NoSuchKey, "The specified key does not exist."));
            }
            (Some(condition), Some(current)) if !meets(condition, current) => {
                return Err(s3_error!(PreconditionFailed, "If-Match does not hold"));
            }
            _ => {}
        }
        if let (Some(condition), Some(current)) = (if_none_match, &current)
            && meets(condition, current)
        {
            return Err(s3_error!(PreconditionFailed, "If-None-Match does not hold"));
        }
        let folder = target.parent().map_or(Ok(()), fs::create_dir_all);
        folder
            .and_then(|()| fs::rename(&unfinished.path, target))
            .map_err(S3Error::internal_error)?;
        fs::metadata(target).map(|metadata| etag(&metadata)).map_err(S3Error::internal_error)
    }

    /// Writes a body to a file that is not yet an object.
    async fn receive(&self, bucket: &str, body: Option<StreamingBlob>) -> S3Result<Unfinished> {
        let unfinished = Unfinished { path: self.unfinished(bucket)? };
        let mut file = File::create_new(&unfinished.path).map_err(S3Error::internal_error)?;
        let mut body = body.map_or_else(s3s::Body::empty, s3s::Body::from);
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| S3Error::with_source(S3ErrorCode::IncompleteBody, error))?;
            if let Ok(bytes) = frame.into_data() {
                file.write_all(&bytes).map_err(S3Error::internal_error)?;
            }
        }
        Ok(unfinished)
    }

    /// The folder of an upload of `key`.
    fn upload(&self, bucket: &str, key: &str, upload_id: &str) -> S3Result<PathBuf> {
        let missing = || s3_error!(NoSuchUpload, "The specified upload does not exist.");
        if !upload_id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
            return Err(missing());
        }
        let folder = self.bucket(bucket)?.join(UNFINISHED).join(upload_id);
        match fs::read_to_string(folder.join("key")) {
            Ok(of) if of == key => Ok(folder),
            _ => Err(missing()),
        }
    }
}

#[async_trait::async_trait]
impl S3 for Store {
    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let range = match request.extensions.get::<IgnoreRange>() {
            Some(_) => None,
            None => input.range,
        };
        let (if_match, if_none_match) = (input.if_match.as_ref(), input.if_none_match.as_ref());
        let object = self.open(&input.bucket, &input.key, range, if_match, if_none_match)?;
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: Some(object.len()),
            content_range: object.content_range,
            content_type: content_type(),
            e_tag: Some(object.etag),
            last_modified: object.last_modified,
            body: Some(s3s::Body::http_body(object.body).into()),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let (if_match, if_none_match) = (input.if_match.as_ref(), input.if_none_match.as_ref());
        let object = self.open(&input.bucket, &input.key, input.range, if_match, if_none_match)?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: Some(object.len()),
            content_range: object.content_range,
            content_type: content_type(),
            e_tag: Some(object.etag),
            last_modified: object.last_modified,
            ..HeadObjectOutput::default()
        }))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let target = self.locate(&input.bucket, &input.key)?;
        let unfinished = self.receive(&input.bucket, input.body).await?;
        let (if_match, if_none_match) = (input.if_match.as_ref(), input.if_none_match.as_ref());
        let etag = self.publish(unfinished, &target, if_match, if_none_match)?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(etag), ..PutObjectOutput::default() }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        self.locate(&input.bucket, &input.key)?;
        let folder = self.unfinished(&input.bucket)?;
        let made = fs::create_dir(&folder).and_then(|()| fs::write(folder.join("key"), &input.key));
        made.map_err(S3Error::internal_error)?;
        let upload_id = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id,
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let folder = self.upload(&input.bucket, &input.key, &input.upload_id)?;
        if !(1..=MAX_PARTS).contains(&input.part_number) {
            return Err(s3_error!(InvalidArgument, "Part numbers are 1 to 10000"));
        }
        let unfinished = self.receive(&input.bucket, input.body).await?;
        let part = folder.join(input.part_number.to_string());
        let etag = self.publish(unfinished, &part, None, None)?;
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(etag), ..UploadPartOutput::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let target = self.locate(&input.bucket, &input.key)?;
        let folder = self.upload(&input.bucket, &input.key, &input.upload_id)?;
        let parts = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        if parts.is_empty() || !parts.is_sorted_by(|a, b| a.part_number < b.part_number) {
            return Err(s3_error!(InvalidPartOrder, "Parts must be in ascending order"));
        }
        let unfinished = Unfinished { path: self.unfinished(&input.bucket)? };
        let mut whole = File::create_new(&unfinished.path).map_err(S3Error::internal_error)?;
        for (index, part) in parts.iter().enumerate() {
            let invalid = || s3_error!(InvalidPart, "A part was not uploaded or has another ETag");
            let number = part.part_number.unwrap_or_default().to_string();
            let mut file = File::open(folder.join(number)).map_err(|_| invalid())?;
            let metadata = file.metadata().map_err(S3Error::internal_error)?;
            if part.e_tag.as_ref() != Some(&etag(&metadata)) {
                return Err(invalid());
            }
            if index + 1 < parts.len() && metadata.len() < MIN_PART_BYTES {
                return Err(s3_error!(EntityTooSmall, "A part is smaller than 5 MiB"));
            }
            io::copy(&mut file, &mut whole).map_err(S3Error::internal_error)?;
        }
        let (if_match, if_none_match) = (input.if_match.as_ref(), input.if_none_match.as_ref());
        let etag = self.publish(unfinished, &target, if_match, if_none_match)?;
        fs::remove_dir_all(folder).map_err(S3Error::internal_error)?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        let folder = self.upload(&input.bucket, &input.key, &input.upload_id)?;
        fs::remove_dir_all(folder).map_err(S3Error::internal_error)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(
        &self,
        request: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        let input = request.input;
        let folder = self.upload(&input.bucket, &input.key, &input.upload_id)?;
        let mut parts = Vec::new();
        for number in 1..=MAX_PARTS {
            let Ok(metadata) = fs::metadata(folder.join(number.to_string())) else { continue };
            parts.push(Part {
                e_tag: Some(etag(&metadata)),
                last_modified: last_modified(&metadata),
                part_number: Some(number),
                size: Some(metadata.len() as i64),
                ..Part::default()
            });
        }
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            is_truncated: Some(false),
            parts: Some(parts),
            ..ListPartsOutput::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented, "Delimiters are not implemented"));
        }
        let prefix = input.prefix.as_deref().unwrap_or_default();
        let mut uploads = uploads(&self.bucket(&input.bucket)?.join(UNFINISHED))
            .map_err(S3Error::internal_error)?;
        uploads.retain(|(key, id, _)| {
            key.starts_with(prefix)
                && input.key_marker.as_ref().is_none_or(|marker| {
                    // Of the key itself only what comes behind an upload that is named, too.
                    let id_marker = input.upload_id_marker.as_ref();
                    key > marker || key == marker && id_marker.is_some_and(|marker| id > marker)
                })
        });
        // An identifier begins with the time: of one key, the oldest upload comes first.
        uploads.sort_unstable_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        let max_uploads = input.max_uploads.unwrap_or(MAX_KEYS).clamp(0, MAX_KEYS);
        let is_truncated = uploads.len() > max_uploads as usize;
        uploads.truncate(max_uploads as usize);
        let last = uploads.last().filter(|_| is_truncated);
        let (next_key_marker, next_upload_id_marker) =
            last.map(|(key, id, _)| (key.clone(), id.clone())).unzip();
        let uploads = uploads.into_iter().map(|(key, id, initiated)| MultipartUpload {
            initiated,
            key: Some(key),
            upload_id: Some(id),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: input.prefix,
            key_marker: input.key_marker,
            upload_id_marker: input.upload_id_marker,
            max_uploads: Some(max_uploads),
            is_truncated: Some(is_truncated),
            next_key_marker,
            next_upload_id_marker,
            uploads: Some(uploads.collect()),
            ..ListMultipartUploadsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented, "Delimiters are not implemented"));
        }
        let folder = self.bucket(&input.bucket)?;
        let prefix = input.prefix.as_deref().unwrap_or_default();
        let after = input.continuation_token.as_deref().or(input.start_after.as_deref());
        let mut objects = Vec::new();
        list(&folder, "", &mut objects).map_err(S3Error::internal_error)?;
        objects.retain(|(key, _)| key.starts_with(prefix) && Some(key.as_str()) > after);
        objects.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let max_keys = input.max_keys.unwrap_or(MAX_KEYS).clamp(0, MAX_KEYS);
        let is_truncated = objects.len() > max_keys as usize;
        objects.truncate(max_keys as usize);
        let last = objects.last().map(|(key, _)| key.clone());
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            max_keys: Some(max_keys),
            key_count: Some(objects.len() as i32),
            continuation_token: input.continuation_token,
            is_truncated: Some(is_truncated),
            next_continuation_token: last.filter(|_| is_truncated),
            contents: Some(
                objects.into_iter().map(|(key, metadata)| entry(key, &metadata)).collect(),
            ),
            ..ListObjectsV2Output::default()
        }))
    }
}

struct Opened {
    body: FileBody,
    content_range: Option<String>,
    etag: ETag,
    last_modified: Option<Timestamp>,
}

impl Opened {
    fn len(&self) -> i64 {
        (self.body.end - self.body.offset) as i64
    }
}

/// A file that is not an object; dropping it removes what is still there.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Once it became an object nothing is left to remove.
        let _ = fs::remove_file(&self.path);
    }
}

fn list(folder: &Path, prefix: &str, objects: &mut Vec<(String, Metadata)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let key = format!("{prefix}{name}");
        // Gone since the folder was read, or a broken link.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if metadata.is_file() {
            objects.push((key, metadata));
        } else if key != UNFINISHED {
            list(&entry.path(), &format!("{key}/"), objects)?;
        }
    }
    Ok(())
}

/// Key, identifier and beginning of each upload that has not ended.
fn uploads(unfinished: &Path) -> io::Result<Vec<(String, String, Option<Timestamp>)>> {
    let folder = match fs::read_dir(unfinished) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folder => folder?,
    };
    let mut uploads = Vec::new();
    for upload in folder {
        let upload = upload?;
        let path = upload.path().join("key");
        // What is no folder is a body that is being received; what is gone has ended.
        let (Ok(key), Ok(metadata)) = (fs::read_to_string(&path), fs::metadata(&path)) else {
            continue;
        };
        let id = upload.file_name().to_string_lossy().into_owned();
        uploads.push((key, id, last_modified(&metadata)));
    }
    Ok(uploads)
}

fn entry(key: String, metadata: &Metadata) -> Object {
    Object {
        e_tag: Some(etag(metadata)),
        key: Some(key),
        last_modified: last_modified(metadata),
        size: Some(metadata.len() as i64),
        ..Object::default()
    }
}

fn meets(condition: &ETagCondition, etag: &ETag) -> bool {
    condition.as_etag().is_none_or(|wanted| wanted.strong_cmp(etag))
}

fn etag(metadata: &Metadata) -> ETag {
    let changed = metadata.mtime_nsec() + metadata.mtime() * 1_000_000_000;
    ETag::Strong(format!("{changed:x}-{:x}-{:x}", metadata.len(), metadata.ino()))
}

fn last_modified(metadata: &Metadata) -> Option<Timestamp> {
    metadata.modified().ok().map(Timestamp::from)
}

fn content_type() -> Option<ContentType> {
    Some("binary/octet-stream".into())
}
