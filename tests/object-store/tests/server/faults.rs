use std::time::{Duration, Instant};

use object_store::{Effect, Fault};

use crate::client::Fixture;

const PATH: &str = "/models/weights.bin";
const LEN: usize = 800_000;

#[test]
fn cut_ends_the_connection_after_so_many_bytes() {
    let fixture = Fixture::public("cut");
    for after_bytes in [0, 1, 300_000] {
        fixture.server.fault(Fault::on("weights.bin", Effect::Cut { after_bytes }).first(1));
        let answer = fixture.send("GET", PATH, &[]);
        assert_eq!((answer.status, answer.closed), (200, true));
        assert_eq!(answer.header("content-length"), Some("800000"));
        assert_eq!(answer.body, fixture.weights[..after_bytes as usize]);
    }
    assert_eq!(fixture.send("GET", PATH, &[]).body, fixture.weights);
}

#[test]
fn refusals_come_in_xml_for_the_first_requests_only() {
    let fixture = Fixture::public("refusals");
    fixture.server.fault(Fault::on("weights.bin", Effect::SlowDown).first(2));
    fixture.server.fault(Fault::on("weights.bin", Effect::InternalError).after(2).first(1));
    let statuses: Vec<u16> = (0..4).map(|_| fixture.send("GET", PATH, &[]).status).collect();
    assert_eq!(statuses, [503, 503, 500, 200]);

    fixture.server.fault(Fault::on("weights.bin", Effect::SlowDown).method("HEAD"));
    assert_eq!(fixture.send("GET", PATH, &[]).status, 200);
    assert_eq!(fixture.send("HEAD", PATH, &[]).status, 503);
    fixture.server.clear_faults();
    assert_eq!(fixture.send("HEAD", PATH, &[]).status, 200);

    fixture.server.fault(Fault::on("weights.bin", Effect::SlowDown));
    assert_eq!(fixture.send("GET", PATH, &[]).element("Code"), "SlowDown");
    assert_eq!(fixture.send("GET", "/models/other", &[]).element("Code"), "NoSuchKey");
}

#[test]
fn drip_pauses_between_pieces() {
    let fixture = Fixture::public("drip");
    let pause = Duration::from_millis(100);
    fixture.server.fault(Fault::on("weights.bin", Effect::Drip { bytes: 200_000, pause }));
    let start = Instant::now();
    let answer = fixture.send("GET", PATH, &[]);
    assert!(start.elapsed() >= 3 * pause);
    assert_eq!(answer.body, fixture.weights);
}

#[test]
fn stall_sends_nothing_more_and_stays_connected() {
    let fixture = Fixture::public("stall");
    fixture.server.fault(Fault::on("weights.bin", Effect::Stall { after_bytes: 300_000 }));
    let answer = fixture.send("GET", PATH, &[]);
    assert_eq!(answer.body, fixture.weights[..300_000]);
    assert!(!answer.closed);
}

#[test]
fn dropping_the_server_ends_a_stalled_connection() {
    let fixture = Fixture::public("drop");
    fixture.server.fault(Fault::on("weights.bin", Effect::Stall { after_bytes: 0 }));
    let endpoint = fixture.server.endpoint().to_owned();
    let (_, port) = endpoint.rsplit_once(':').unwrap();
    let address = ("127.0.0.1", port.parse::<u16>().unwrap());
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    while fixture.server.requests().first().is_none_or(|request| request.status == 0) {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(fixture);
    let mut rest = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    std::io::Read::read_to_end(&mut stream, &mut rest).unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn shorten_lies_in_content_length() {
    let fixture = Fixture::public("shorten");
    fixture.server.fault(Fault::on("weights.bin", Effect::Shorten { by_bytes: 40 }));
    let answer = fixture.send("GET", PATH, &[("range", "bytes=100-199")]);
    assert_eq!((answer.status, answer.header("content-length")), (206, Some("60")));
    assert_eq!(answer.header("content-range"), Some("bytes 100-199/800000"));
    assert_eq!(answer.body, fixture.weights[100..160]);
}

#[test]
fn flipped_bit_is_where_the_object_has_it() {
    let fixture = Fixture::public("flip");
    fixture.server.fault(Fault::on("weights.bin", Effect::FlipBit { offset: 500_000 }).first(2));
    let mut expected = fixture.weights.clone();
    expected[500_000] ^= 1;
    let before = fixture.send("GET", PATH, &[("range", "bytes=0-499999")]);
    assert_eq!(before.body, fixture.weights[..500_000]);
    let across = fixture.send("GET", PATH, &[("range", "bytes=499990-")]);
    assert_eq!(across.body, expected[499_990..]);
    assert_eq!(fixture.send("GET", PATH, &[]).body, expected);
    assert_eq!(fixture.send("GET", PATH, &[]).body, fixture.weights);
}

#[test]
fn ignored_range_gets_the_whole_object() {
    let fixture = Fixture::public("ignore-range");
    fixture.server.fault(Fault::on("weights.bin", Effect::IgnoreRange).first(1));
    let range = [("range", "bytes=10-19")];
    let answer = fixture.send("GET", PATH, &range);
    assert_eq!((answer.status, answer.header("content-range")), (200, None));
    assert_eq!(answer.body, fixture.weights);
    assert_eq!(fixture.send("GET", PATH, &range).body, fixture.weights[10..20]);
}

#[test]
fn replaced_object_fails_if_match_from_the_next_request_on() {
    let fixture = Fixture::public("replace");
    let content = vec![7; LEN];
    let replace = Effect::Replace { content: content.clone() };
    fixture.server.fault(Fault::on("weights.bin", replace).after(1).first(1));
    let etag = fixture.send("HEAD", PATH, &[]).header("etag").unwrap().to_owned();
    let pinned = [("if-match", &*etag)];
    for _ in 0..2 {
        assert_eq!(fixture.send("GET", PATH, &pinned).body, fixture.weights);
    }
    assert_eq!(fixture.send("GET", PATH, &pinned).status, 412);
    assert_eq!(fixture.send("GET", PATH, &[]).body, content);
}

#[test]
fn redirect_names_the_other_path() {
    let fixture = Fixture::public("redirect");
    fixture.server.fault(Fault::on("old.bin", Effect::Redirect { to: PATH.into() }));
    let answer = fixture.send("GET", "/models/old.bin", &[]);
    assert_eq!((answer.status, answer.header("location")), (302, Some(PATH)));
}

#[test]
fn rate_holds_over_all_connections_together() {
    let fixture = Fixture::public("rate");
    fixture.server.set_bits_per_second(Some(12_800_000));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(fixture.send("GET", PATH, &[]).body, fixture.weights));
        }
    });
    // Two seconds of bytes at the rate; a loaded machine may add to them.
    let took = start.elapsed().as_secs_f64();
    assert!((1.98..2.5).contains(&took), "{took}");
}
