use std::fs;

use object_store::{Buckets, Options};

use crate::client::Fixture;

const PATH: &str = "/models/weights.bin";

#[test]
fn ranges_are_answered_as_s3_does() {
    struct Case {
        range: &'static str,
        status: u16,
        content_range: Option<&'static str>,
        body: std::ops::Range<usize>,
    }
    let fixture = Fixture::public("ranges");
    let partial = |range, content_range, body| Case {
        range,
        status: 206,
        content_range: Some(content_range),
        body,
    };
    for case in [
        partial("bytes=0-0", "bytes 0-0/800000", 0..1),
        partial("bytes=262143-262144", "bytes 262143-262144/800000", 262_143..262_145),
        partial("bytes=799999-900000", "bytes 799999-799999/800000", 799_999..800_000),
        partial("bytes=700000-", "bytes 700000-799999/800000", 700_000..800_000),
        partial("bytes=-3", "bytes 799997-799999/800000", 799_997..800_000),
        Case { range: "bytes=800000-", status: 416, content_range: None, body: 0..0 },
    ] {
        let answer = fixture.send("GET", PATH, &[("range", case.range)]);
        assert_eq!(answer.status, case.status, "{}", case.range);
        assert_eq!(answer.header("content-range"), case.content_range, "{}", case.range);
        if case.status == 206 {
            assert_eq!(answer.body, fixture.weights[case.body], "{}", case.range);
        }
    }
    let answer = fixture.send("HEAD", PATH, &[]);
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("800000")));
}

#[test]
fn etag_changes_with_the_content() {
    let fixture = Fixture::public("etag");
    let etag = fixture.send("HEAD", PATH, &[]).header("etag").unwrap().to_owned();
    assert_eq!(fixture.send("GET", PATH, &[("if-match", &etag)]).status, 200);
    assert_eq!(fixture.send("GET", PATH, &[("if-match", "\"other\"")]).status, 412);
    let unchanged = fixture.send("GET", PATH, &[("if-none-match", &etag)]);
    assert_eq!((unchanged.status, unchanged.header("etag")), (304, Some(&*etag)));
    fs::write(fixture.root.join("models/new"), &fixture.weights).unwrap();
    fs::rename(fixture.root.join("models/new"), fixture.root.join("models/weights.bin")).unwrap();
    assert_eq!(fixture.send("GET", PATH, &[("if-match", &etag)]).status, 412);
}

#[test]
fn only_the_right_signature_opens_a_private_bucket() {
    let fixture = Fixture::start("private", Options::default());
    let code = |secret_key, headers: &[(&str, &str)]| {
        let answer = fixture.signed(secret_key, "GET", PATH, headers, b"");
        (answer.status, answer.element("Code").to_owned())
    };
    assert_eq!(fixture.send("GET", PATH, &[]).element("Code"), "AccessDenied");
    assert_eq!(code("other-secret", &[]), (403, "SignatureDoesNotMatch".into()));
    assert_eq!(
        code("test-secret", &[("x-amz-security-token", "expired")]),
        (400, "ExpiredToken".into())
    );
    let range = [("range", "bytes=5-9")];
    let answer = fixture.signed("test-secret", "GET", PATH, &range, b"");
    assert_eq!((answer.status, &*answer.body), (206, &fixture.weights[5..10]));
    let unknown = Fixture::start("key", Options { access_key: "a".into(), ..Options::default() });
    let answer = unknown.signed("test-secret", "GET", PATH, &[], b"");
    assert_eq!((answer.status, answer.element("Code")), (403, "InvalidAccessKeyId"));
}

#[test]
fn missing_and_denied_are_told_apart() {
    let denied = Buckets::Named(vec!["denied".into()]);
    let public = Buckets::Named(vec!["models".into(), "missing".into()]);
    let fixture = Fixture::start("missing", Options { denied, public, ..Options::default() });
    for (path, status, code) in [
        ("/models/other.bin", 404, "NoSuchKey"),
        ("/models/weights.bin/inside", 404, "NoSuchKey"),
        ("/missing/weights.bin", 404, "NoSuchBucket"),
        ("/denied/weights.bin", 403, "AccessDenied"),
        ("/private/weights.bin", 403, "AccessDenied"),
        ("/models/../secret", 400, "InvalidArgument"),
    ] {
        let answer = fixture.send("GET", path, &[]);
        assert_eq!((answer.status, answer.element("Code")), (status, code), "{path}");
    }
    let answer = fixture.signed("test-secret", "GET", "/denied/weights.bin", &[], b"");
    assert_eq!((answer.status, answer.element("Code")), (403, "AccessDenied"));
    assert_eq!(fixture.send("PUT", PATH, &[]).status, 403);
}

#[test]
fn keys_may_have_slashes_and_escapes() {
    let fixture = Fixture::public("keys");
    let path = "/models/v1.0/caf%C3%A9%20%2B/a%25b.bin";
    assert_eq!(fixture.signed("test-secret", "PUT", path, &[], b"content").status, 200);
    assert_eq!(fs::read(fixture.root.join("models/v1.0/café +/a%b.bin")).unwrap(), b"content");
    assert_eq!(fixture.send("GET", path, &[]).body, b"content");
}

#[test]
fn writes_hold_to_their_conditions() {
    let fixture = Fixture::public("writes");
    let put = |path, headers: &[(&str, &str)]| {
        fixture.signed("test-secret", "PUT", path, headers, b"new").status
    };
    let etag = fixture.send("HEAD", PATH, &[]).header("etag").unwrap().to_owned();
    assert_eq!(put(PATH, &[("if-none-match", "*")]), 412);
    assert_eq!(put("/models/new", &[("if-none-match", "*")]), 200);
    assert_eq!(put("/models/none", &[("if-match", &etag)]), 404);
    assert_eq!(fixture.send("GET", PATH, &[]).body, fixture.weights);
    assert_eq!(put(PATH, &[("if-match", &etag)]), 200);
    assert_eq!(put(PATH, &[("if-match", &etag)]), 412);
    assert_eq!(fixture.send("GET", PATH, &[]).body, b"new");
}

#[test]
fn parts_become_one_object() {
    let fixture = Fixture::public("parts");
    let signed =
        |method, path: &str, body: &[u8]| fixture.signed("test-secret", method, path, &[], body);
    let created = signed("POST", "/models/whole.bin?uploads=", b"");
    let upload = format!("uploadId={}", created.element("UploadId"));
    let parts = [vec![1; 5 << 20], vec![2; 10]];
    let mut complete = String::from("<CompleteMultipartUpload>");
    for (number, part) in (1..).zip(&parts) {
        let path = format!("/models/whole.bin?partNumber={number}&{upload}");
        let answer = signed("PUT", &path, part);
        let etag = answer.header("etag").unwrap();
        complete += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    complete += "</CompleteMultipartUpload>";
    let path = format!("/models/whole.bin?{upload}");
    assert_eq!(signed("GET", &path, b"").element("PartNumber"), "1");
    assert_eq!(fixture.send("GET", "/models/whole.bin", &[]).status, 404);
    let answer = signed("POST", &path, complete.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(fixture.send("GET", "/models/whole.bin", &[]).body, parts.concat());
    assert_eq!(signed("POST", &path, complete.as_bytes()).element("Code"), "NoSuchUpload");

    let created = signed("POST", "/models/whole.bin?uploads=", b"");
    let path = format!("/models/whole.bin?uploadId={}", created.element("UploadId"));
    assert_eq!(signed("DELETE", &path, b"").status, 204);
    assert_eq!(signed("GET", &path, b"").element("Code"), "NoSuchUpload");
}

#[test]
fn unfinished_uploads_are_listed_by_key_and_age() {
    let fixture = Fixture::public("uploads");
    let signed = |method, path: &str| fixture.signed("test-secret", method, path, &[], b"");
    let list = |query: &str| {
        let answer = signed("GET", &format!("/models?{query}uploads="));
        assert_eq!(answer.status, 200, "{answer:?}");
        let xml = String::from_utf8(answer.body).unwrap();
        let elements = |name: &str| {
            let open = format!("<{name}>");
            let parts = xml.split(&open).skip(1);
            parts.map(|rest| rest.split('<').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        (elements("Key"), elements("UploadId"), elements("IsTruncated"), xml)
    };
    assert!(list("").0.is_empty());

    let begin = |key: &str| {
        let created = signed("POST", &format!("/models/{key}?uploads="));
        created.element("UploadId").to_owned()
    };
    let ids = [begin("a/2"), begin("a/1"), begin("a/2"), begin("b")];
    let (keys, listed, truncated, xml) = list("prefix=a%2F&");
    assert_eq!(keys, ["a/1", "a/2", "a/2"]);
    assert_eq!(listed, [&*ids[1], &*ids[0], &*ids[2]]);
    assert_eq!(truncated, ["false"]);
    assert!(xml.contains("<Initiated>"), "{xml}");

    let (keys, listed, truncated, xml) = list("max-uploads=2&prefix=a%2F&");
    assert_eq!((keys, &*listed[1]), (vec!["a/1".into(), "a/2".into()], &*ids[0]));
    assert_eq!(truncated, ["true"]);
    assert!(xml.contains("<NextKeyMarker>a/2<"), "{xml}");
    assert!(xml.contains(&format!("<NextUploadIdMarker>{}<", ids[0])), "{xml}");
    let rest = list(&format!("key-marker=a%2F2&prefix=a%2F&upload-id-marker={}&", ids[0]));
    assert_eq!(rest.1, [&*ids[2]]);
    assert_eq!(list("key-marker=a%2F2&").0, ["b"]);

    assert_eq!(signed("DELETE", &format!("/models/b?uploadId={}", ids[3])).status, 204);
    assert!(list("prefix=b&").0.is_empty());
    assert_eq!(fixture.send("GET", "/models?uploads=", &[]).status, 403);
}

#[test]
fn listing_has_the_keys_with_the_prefix() {
    let fixture = Fixture::public("listing");
    for key in ["a/3", "a/1", "a/2", "b"] {
        let path = fixture.root.join("models").join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, key).unwrap();
    }
    let list = |query: &str| {
        let answer = fixture.signed("test-secret", "GET", &format!("/models?{query}"), &[], b"");
        let xml = String::from_utf8(answer.body).unwrap();
        let keys =
            xml.split("<Key>").skip(1).map(|rest| rest.split('<').next().unwrap().to_owned());
        (keys.collect::<Vec<_>>(), xml.contains("<IsTruncated>true"))
    };
    assert_eq!(list("list-type=2").0, ["a/1", "a/2", "a/3", "b", "weights.bin"]);
    let (keys, truncated) = list("list-type=2&max-keys=2&prefix=a%2F");
    assert_eq!((keys, truncated), (vec!["a/1".into(), "a/2".into()], true));
    let (keys, truncated) = list("continuation-token=a%2F2&list-type=2&prefix=a%2F");
    assert_eq!((keys, truncated), (vec!["a/3".into()], false));
    assert_eq!(fixture.send("GET", "/models?list-type=2", &[]).status, 403);
}

#[test]
fn requests_are_logged() {
    let fixture = Fixture::public("log");
    fixture.send("HEAD", PATH, &[]);
    fixture.send("GET", PATH, &[("range", "bytes=0-9"), ("if-match", "*")]);
    fixture.send("GET", "/models/other%20one?x=y", &[]);
    let log = fixture.server.requests();
    let lines: Vec<_> = log
        .iter()
        .map(|request| (request.connection, &*request.method, &*request.path, request.status))
        .collect();
    assert_eq!(
        lines,
        [(0, "HEAD", PATH, 200), (1, "GET", PATH, 206), (2, "GET", "/models/other%20one", 404)]
    );
    assert_eq!(
        (log[1].range.as_deref(), log[1].if_match.as_deref()),
        (Some("bytes=0-9"), Some("*"))
    );
    assert_eq!((log[0].bytes_sent, log[1].bytes_sent, &*log[2].query), (0, 10, "x=y"));
    assert!(log[1].end.unwrap() >= log[1].start && log[1].start >= log[0].start);
    fixture.server.clear_requests();
    assert!(fixture.server.requests().is_empty());
}
