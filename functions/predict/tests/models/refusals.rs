//! Models that cannot be had: one error, which says what to do.

use std::net::TcpListener;

use crate::{
    model::{WEIGHTS, int8},
    stored::{Stored, damage},
};

#[test]
fn the_wrong_credentials_are_named_as_the_reason() {
    let stored = Stored::with("credentials", int8());
    let function = stored.function();
    let manifest = "s3://models/m/manifest.json";
    let error = function.clone().with("AWS_SESSION_TOKEN", "expired").check_fails();
    let expected = format!("no permission for {manifest}: 400 ExpiredToken: ");
    assert!(error.starts_with(&expected), "{error}");

    let error = function.clone().with("AWS_SECRET_ACCESS_KEY", "other").check_fails();
    let expected = format!("no permission for {manifest}: 403 SignatureDoesNotMatch");
    assert!(error.starts_with(&expected), "{error}");

    let error = function.clone().with("AWS_ACCESS_KEY_ID", "other").check_fails();
    let expected = format!("no permission for {manifest}: 403 InvalidAccessKeyId");
    assert!(error.starts_with(&expected), "{error}");

    let function = function.without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
    let error = function.check_fails();
    assert!(error.starts_with(&format!("no permission for {manifest}: ")), "{error}");
    assert!(error.contains("credentials"), "{error}");
    let anonymous = format!("{}&anonymous=true", stored.s3("models/m"));
    let error = function.with("MODEL_URI", &anonymous).check_fails();
    assert!(error.starts_with(&format!("no permission for {manifest}: 403 ")), "{error}");
}

#[test]
fn what_is_not_there_is_named() {
    let stored = Stored::with("missing", int8());
    let error = stored.function_at(&stored.s3("models/other")).check_fails();
    let named = error.starts_with("there is no s3://models/other/");
    assert!(named && error.ends_with(", nor manifest.json or latest"), "{error}");

    let error = stored.function_at(&stored.s3("nobody/m")).check_fails();
    assert!(error.starts_with("there is no s3://nobody/m/"), "{error}");

    stored.point_at(&int8().sha256);
    std::fs::remove_file(stored.file("models/m/manifest.json")).unwrap();
    let error = stored.function().check_fails();
    let manifest = format!("s3://models/m/{}/manifest.json", int8().sha256);
    assert!(error.contains(&format!("there is no {manifest}")), "{error}");
}

#[test]
fn weights_that_are_missing_are_named() {
    let stored = Stored::with("no-weights", int8());
    std::fs::remove_file(stored.file("models/m").join(WEIGHTS)).unwrap();
    let error = stored.function().start().refuses();
    assert!(error.contains("there is no s3://models/m/weights.bin"), "{error}");
}

#[test]
fn a_bucket_that_is_denied_is_named() {
    let stored = Stored::nothing("denied");
    int8().put(&stored.file("denied/m"));
    let error = stored.function_at(&stored.s3("denied/m")).check_fails();
    let expected = "no permission for s3://denied/m/manifest.json: 403 AccessDenied: ";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_an_error_that_names_the_object() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let stored = Stored::nothing("no-server");
    let s3 = format!("s3://models/m?endpoint=http://127.0.0.1:{port}&path_style=true");
    let error = stored.function_at(&s3).check_fails();
    assert!(error.starts_with("cannot transfer s3://models/m/manifest.json: "), "{error}");
    assert!(error.contains("refused"), "{error}");

    let http = format!("http://127.0.0.1:{port}/m");
    let error = stored.function_at(&http).check_fails();
    assert!(error.starts_with(&format!("cannot transfer {http}/manifest.json: ")), "{error}");
    assert!(error.contains("refused"), "{error}");
}

#[test]
fn another_model_than_the_pinned_one_is_refused() {
    let stored = Stored::with("pinned", int8());
    let (pinned, found) = ("0".repeat(64), &int8().sha256);
    let expected = format!("model has sha256 {found}, MODEL_URI pins {pinned}");
    let folder = stored.file("models/m").to_str().unwrap().to_owned();
    for place in [stored.s3("models/m"), folder] {
        let error = stored.function_at(&format!("{place}#sha256={pinned}")).check_fails();
        assert_eq!(error, expected);
    }
    assert_eq!(stored.weights_sent(), 0);
}

#[test]
fn a_damaged_folder_is_found_out_where_it_is_pinned() {
    let stored = Stored::with("damaged-folder", int8());
    let folder = stored.file("models/m");
    let pinned = format!("{}#sha256={}", folder.display(), int8().sha256);
    int8().must_answer(&stored.function_at(&pinned).start());

    damage(&folder.join(WEIGHTS), 7_000_000);
    let error = stored.function_at(&pinned).start().refuses();
    assert!(error.contains("tensor ") && error.contains(" is damaged: "), "{error}");
}

#[test]
fn a_version_by_another_name_than_its_digest_is_refused() {
    let stored = Stored::nothing("misnamed");
    let name = "0".repeat(64);
    int8().put(&stored.file("models/m").join(&name));
    stored.point_at(&name);
    let folder = stored.file("models/m").to_str().unwrap().to_owned();
    for place in [stored.s3("models/m"), folder] {
        let error = stored.function_at(&place).start().refuses();
        assert!(error.contains(&name) && error.contains(&int8().sha256), "{error}");
    }
}
