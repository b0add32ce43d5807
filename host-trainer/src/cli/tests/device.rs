//! `device` over TCP, against the device in memory.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Fixture, Ran, exit, f32_file};
use crate::client::Transport as _;
use crate::client::fake::{CHUNK_BYTES, FILE_BYTES, Fake, Fate, Fates, base_id, file, unsigned};

/// A device in memory behind a port of this machine, for sessions one after the other.
struct Server {
    address: String,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(fates: Fates) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut fake = Fake::with(fates);
            while let Ok((mut stream, _)) = listener.accept() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                serve(&mut fake, &mut stream);
                if fake.is_cut() {
                    fake.mend();
                }
            }
        });
        Self { address, over, thread: Some(thread) }
    }

    fn working() -> Self {
        Self::new(Box::new(|_, _| Fate::Arrives))
    }

    fn run(&self, fixture: &Fixture, line: &str) -> Ran {
        fixture.run(&format!("device {line} --port tcp:{}", self.address))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the thread; if it is gone already, nobody listens.
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the device in memory failed");
        }
    }
}

fn serve(fake: &mut Fake, stream: &mut TcpStream) {
    // A whole chunk with its frame, so that frames are counted as they were sent.
    let mut buffer = [0; 8192];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        if fake.send(&buffer[..len]).is_err() {
            return;
        }
        loop {
            // What the device does takes simulated time, which passes at once.
            match fake.receive(&mut buffer, fake.now() + Duration::from_secs(20)) {
                Ok(0) => break,
                Ok(len) => stream.write_all(&buffer[..len]).unwrap(),
                Err(_) => return,
            }
        }
    }
}

#[test]
fn a_device_is_switched_and_switched_back() {
    let fixture = Fixture::new();
    fixture.write("names.rpa", &file("names", 1, 9000));
    fixture.write("intent.rpa", &file("intent", 2, 500));
    fixture.write("newer.rpa", &file("intent", 3, 700));
    let server = Server::working();
    let device = |line: &str| server.run(&fixture, line);
    let info = device("info --format json").json();
    assert_eq!((info["board"].as_str(), info["active"].is_null()), (Some("fake"), true));
    assert_eq!(info["base_id"], base_id().to_string());
    assert_eq!((info["keys"].as_array().unwrap().len(), info["insecure"].as_bool()), (1, Some(false)));

    let pushed = device("push @names.rpa --format json").json();
    let bytes = fixture.read("names.rpa").len() as u64;
    assert_eq!((pushed["slot"].as_u64(), pushed["file_bytes"].as_u64()), (Some(0), Some(bytes)));
    let wire = |key: &str| pushed["wire"][key].as_u64().unwrap();
    assert_eq!(pushed["wire_bytes"].as_u64(), Some(wire("sent_bytes") + wire("received_bytes")));
    // The announcement and a few chunks: a frame costs 15 bytes and one more per 254.
    assert!((bytes..bytes + 400).contains(&wire("sent_bytes")), "{pushed}");
    let text = device("push @intent.rpa --activate --mode merged").text();
    assert!(text.contains("slot 1 is applied, merged, on trial"), "{text}");
    assert_eq!(
        device("info --format json").json()["active"],
        serde_json::json!({ "slot": 1, "mode": "merged" })
    );
    let status = device("confirm").text();
    assert!(
        status.contains("runs         slot 1, merged") && status.contains("confirmed    slot 1"),
        "{status}"
    );
    assert_eq!(device("push @newer.rpa --format json").json()["slot"], 2, "an empty slot");
    let list = device("list").text();
    let tasks: Vec<&str> = list.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(tasks, ["names", "intent", "intent"]);
    device("remove 7").fails(exit::REFUSED, "no such slot (error 25 NoSuchSlot): expected 3, found 7");
    device("activate nothing")
        .fails(exit::USAGE, "no slot holds task \"nothing\": found names, intent, intent");
    let activated = device("activate names --confirm --format json").json();
    assert_eq!((activated["slot"].as_u64(), activated["mode"].as_str()), (Some(0), Some("streamed")));
    assert_eq!(
        (activated["confirmed"].as_bool(), activated["digest"].as_str()),
        (Some(true), Some("0xffffffffffffffff"))
    );
    assert!(device("selftest").text().contains("self-test passed"));
    let status = device("rollback --format json").json();
    assert_eq!((status["running"]["slot"].as_u64(), status["rolled_back"].as_u64()), (Some(1), Some(0)));
    assert_eq!(device("detach").text(), "the plain base is back\n");
    assert_eq!(device("detach").text(), "the plain base is back\n", "twice is once");
    device("rollback").fails(exit::REFUSED, "no adapter runs");
    device("selftest").fails(exit::REFUSED, "no adapter is active");
    assert_eq!(device("status --format json").json()["floor"], 3);
    assert_eq!(device("remove names").text(), "slot 0 is empty\n");
    assert_eq!(device("abort").text(), "no upload is under way\n");
    assert!(device("stats").text().contains("peak stack         512 bytes"));
}

#[test]
fn several_devices_are_served_at_once() {
    let fixture = Fixture::new();
    fixture.write("names.rpa", &file("names", 1, 9000));
    let servers = [Server::working(), Server::working(), Server::working()];
    let ports: Vec<String> = servers.iter().map(|server| format!("--port tcp:{}", server.address)).collect();
    let pushed = fixture.run(&format!("device push @names.rpa --format json {}", ports.join(" "))).json();
    let slots: Vec<_> = pushed.as_array().unwrap().iter().map(|one| one["slot"].as_u64()).collect();
    assert_eq!(slots, [Some(0); 3]);
    for server in &servers {
        assert!(server.run(&fixture, "list").text().contains("names"));
    }
    // One that cannot be reached does not keep the others from theirs.
    fixture.write("newer.rpa", &file("names", 2, 900));
    let line = format!("device push @newer.rpa {} --port tcp:127.0.0.1:1", ports[..2].join(" "));
    let ran = fixture.run(&line);
    assert_eq!(ran.code, exit::LINK_LOST, "{}", ran.err);
    assert_eq!(ran.out.matches("sequence 2").count(), 2, "{}", ran.out);
    assert!(ran.err.contains("tcp:127.0.0.1:1"), "{}", ran.err);
    fixture
        .run(&format!("device info {}", ports[..2].join(" ")))
        .fails(exit::USAGE, "expected one --port, found 2");
}

#[test]
fn a_bad_line_delays_a_push_and_does_not_break_it() {
    let fixture = Fixture::new();
    fixture.write("names.rpa", &file("names", 1, 30_000));
    let server = Server::working();
    let faults = "drop=0.1,duplicate=0.05,reorder=0.05,corrupt=0.05,stall=0.02,seed=4";
    let line = format!("push @names.rpa --timeout 0.3 --retries 9 --lossy {faults} --format json");
    let pushed = server.run(&fixture, &line).json();
    assert!(pushed["repeated_chunks"].as_u64().unwrap() > 0, "{pushed}");
    server.run(&fixture, "info --lossy drop=2").fails(exit::USAGE, "expected a number from 0 to 1");
}

#[test]
fn a_device_runs_texts_features_and_prompts() {
    let fixture = Fixture::new();
    let rows: Vec<f32> = (0..600).map(|at| at as f32).collect();
    fixture.write("rows.f32", &f32_file(&rows));
    let server = Server::working();
    let device = |line: &str| server.run(&fixture, line);
    let output = device("run --features @rows.f32 --rows 3 --format json").json();
    assert_eq!((output["argmax"].as_u64(), output["values"][599].as_f64()), (Some(599), Some(1198.0)));
    let found = device("run --text ab,cd, --spans --format json").json();
    let span = |text, start: u8| serde_json::json!({ "kind": "part", "text": text, "start": start, "end": start + 2 });
    assert_eq!(found["spans"], serde_json::json!([span("ab", 0), span("cd", 3)]));
    assert_eq!((&found["digest"], &found["ticks"]), (&"0x0000000000000005".into(), &12.into()));
    assert_eq!(device("run --text ab --format json").json()["values"], serde_json::json!([97.0, 98.0]));
    let named = device("run --text abcde --labels @encoder.rpb --format json").json();
    assert_eq!((named["argmax"].as_u64(), named["label"].as_str()), (Some(4), Some("class 4")));
    let named = device("run --text abc --labels @encoder.rpa").text();
    assert!(named.starts_with("label") && named.contains("ticks   17"), "{named}");
    let ran = device("run --text ab --labels @encoder.rpa");
    ran.fails(exit::BAD_INPUT, "the names do not fit the output: expected 2, found 3");
    assert_eq!(device("generate --prompt abc --max-tokens 4").text(), "abcabca\n");
    fixture
        .run("device run --features @rows.f32 --port tcp:127.0.0.1:1")
        .fails(exit::LINK_LOST, "cannot open tcp:127.0.0.1:1");
}

#[test]
fn bad_files_are_refused_before_they_are_sent() {
    let fixture = Fixture::new();
    fixture.write("big.rpa", &file("names", 1, FILE_BYTES as usize));
    fixture.write("broken.rpa", b"RPA\x01");
    fixture.write("unsigned.rpa", &unsigned("names", 100));
    let server = Server::working();
    let device = |line: &str| server.run(&fixture, line);
    device("push @encoder.rpa").fails(exit::BAD_INPUT, "encoder.rpa: adapter is for another base: expected");
    device("push @big.rpa")
        .fails(exit::BAD_INPUT, "the file does not fit into a slot: expected at most 65472 bytes");
    fixture
        .run("device push @broken.rpa --port tcp:127.0.0.1:1")
        .fails(exit::BAD_INPUT, "broken.rpa: adapter file is truncated");
    let ran = device("push @unsigned.rpa");
    assert!(ran.err.contains("hint: sign it with `rankpatch sign`"), "{}", ran.err);
    ran.fails(exit::REFUSED, "error 35 Unsigned");
}

#[test]
fn an_interrupted_push_is_repeated_and_resumes() {
    let fixture = Fixture::new();
    fixture.write("names.rpa", &file("names", 1, 20_000));
    // Towards the device: info twice, three slots, begin, chunks.
    let server =
        Server::new(Box::new(|towards, at| if towards && at == 9 { Fate::Cuts } else { Fate::Arrives }));
    let ran = server.run(&fixture, "push @names.rpa --window 1");
    assert!(ran.err.contains("hint: an interrupted push goes on where it stopped"), "{}", ran.err);
    ran.fails(exit::LINK_LOST, "link lost during chunk");
    let status = server.run(&fixture, "status --format json").json();
    let stored = u64::from(3 * CHUNK_BYTES);
    assert_eq!(status["upload"][1].as_u64(), Some(stored));
    fixture.write("other.rpa", &file("names", 1, 500));
    let ran = server.run(&fixture, "push @other.rpa");
    assert!(ran.err.contains("device abort"), "{}", ran.err);
    ran.fails(exit::REFUSED, "another upload is under way");
    let pushed = server.run(&fixture, "push @names.rpa --format json").json();
    assert_eq!(pushed["resumed_at"].as_u64(), Some(stored));
}

#[test]
fn a_silent_device_is_a_lost_link() {
    let fixture = Fixture::new();
    let server = Server::new(Box::new(|_, _| Fate::IsLost));
    let ran = server.run(&fixture, "info --timeout 0.02 --retries 1");
    ran.fails(exit::LINK_LOST, "no answer to info: expected one within 0.055 s, found none in 4 attempts");
}
