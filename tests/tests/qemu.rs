//! The firmware in QEMU, over its serial line: same bits as the device's code on the host, for both bases and all
//! adapters; refusals that change nothing; uploads that go on where they stopped.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rankpatch::cli::console::Console;
use rankpatch::client::{ClientError, Device, Options, Sampling, Tcp, Transport};
use rankpatch::sim::{self, Input, Simulator};
use rankpatch_format::adapter::{Pooling, Preview};
use rankpatch_format::base::Base;
use rankpatch_format::fixture;
use rankpatch_format::graph::Op;
use rankpatch_format::header::{self, HEADER_BYTES, Header, TRAILER_BYTES};
use rankpatch_format::layout::Layout;
use rankpatch_format::link::{self, Deframer, ErrorCode, Framed, Mode, Request, Response};
use rankpatch_format::write::AdapterData;
use rankpatch_format::{KeyId, ProductId};
use xtask::board::Board;
use xtask::firmware::{self, Reads};
use xtask::qemu::{Options as Emulation, Qemu};

use crate::{BASES, TASKS, adapter, golden_clips, image, path, signed};

/// A booted board and a client of it.
struct Running {
    device: Device<Tcp>,
    qemu: Qemu,
    simulator: Simulator,
}

/// Boots the firmware with a carried base in its partition.
fn boot(base: &str, name: &str) -> Running {
    boot_program(base, name, |board| firmware::build(board, "firmware"))
}

fn boot_program(base: &str, name: &str, build: fn(&Board) -> anyhow::Result<PathBuf>) -> Running {
    let board = Board::find("qemu-mps2-an386").unwrap();
    let elf = build(&board).unwrap();
    let image = image(base, Layout::Dsp4x4);
    let folder = path("target/tests");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{name}.rpb"));
    std::fs::write(&file, image.bytes()).unwrap();
    let images = vec![(file, board.base.origin)];
    let qemu = Qemu::boot(&board, &elf, &Emulation { images, ..Emulation::default() }).unwrap();
    let transport = Tcp::connect(&qemu.link_address().to_string()).unwrap();
    let device = Device::new(transport, Options::default()).unwrap();
    Running { device, qemu, simulator: Simulator::new(image).unwrap() }
}

/// A clip of features for KWT-1, a text for the story model.
enum Task {
    Clip(Vec<f32>),
    Text(&'static str),
}

fn task(base: &str) -> Task {
    if base == "kwt1" {
        let (clips, _) = golden_clips();
        Task::Clip(clips.into_iter().nth(7).unwrap())
    } else {
        Task::Text("play the newest song of the week")
    }
}

impl Running {
    /// What the device computes, and what the host does.
    fn outputs(&mut self, task: &Task, host: &Simulator) -> (Vec<u32>, Vec<u32>) {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
        match task {
            Task::Clip(clip) => {
                let found = self.device.run_features(clip, 98).unwrap();
                (bits(&found.values), bits(&host.outputs(&[Input::Features(clip)]).unwrap()[0]))
            }
            Task::Text(text) => {
                let found = self.device.run_text(text).unwrap();
                let ids = host.encode(text).unwrap();
                (bits(&found.values), bits(&host.outputs(&[Input::Tokens(&ids)]).unwrap()[0]))
            }
        }
    }
}

/// From samples to answer on the device, features included; the host's own features for the comparison.
#[test]
fn a_recording_has_the_same_bits_on_host_and_cortex_m4() {
    let mut running = boot("kwt1", "bits-recording");
    let samples = rankpatch::data::audio::samples(&path("tests/data/kwt1-golden/yes.wav"), 16_000).unwrap();
    let heard = running.device.run_samples(&samples).unwrap();
    assert_eq!(heard.argmax, 2, "yes");
    let rows = {
        let base = running.simulator.base().unwrap();
        rankpatch::features::rows(&base.front_end().unwrap(), &samples)
    };
    let host = running.simulator.outputs(&[Input::Samples(&samples)]).unwrap().remove(0);
    let given = running.device.run_features(&rows, 98).unwrap();
    assert!(heard.values == host && given.values == host, "host and device differ");
    // Half a clip behind a whole one: nothing of it is left.
    let half = running.device.run_samples(&samples[..8000]).unwrap();
    let expected = running.simulator.outputs(&[Input::Samples(&samples[..8000])]).unwrap().remove(0);
    assert!(half.values == expected && half.values != host, "a shorter clip differs");
    running.qemu.stop();
}

#[test]
fn host_and_cortex_m4_have_the_same_bits() {
    for base in BASES {
        let mut running = boot(base, &format!("bits-{base}"));
        let task = task(base);
        let plain_host = running.simulator.clone();
        let (plain, expected) = running.outputs(&task, &plain_host);
        assert!(plain == expected, "{base}: the plain base differs");
        let mut files: Vec<(String, Vec<u8>)> = TASKS
            .iter()
            .filter(|(_, its_base)| *its_base == base)
            .map(|(task, _)| ((*task).to_owned(), adapter(task)))
            .collect();
        files.push(("random".to_owned(), random_adapter(&running.simulator)));
        for (slot, (name, file)) in (0u8..).zip(&files) {
            // Each newer than the one before, whatever the carried files say.
            let file = &signed(file, u32::from(slot) + 1);
            let upload = running.device.upload(Some(slot), file, |_| {}).unwrap();
            assert_eq!(upload.installed.file_bytes as usize, file.len());
            for mode in [Mode::Streamed, Mode::Merged] {
                let activated = running.device.activate(slot, mode, 0).unwrap();
                let host = running.simulator.clone().with_adapter(file.clone(), mode).unwrap();
                assert_eq!(activated.weight_bytes_copied == 0, mode == Mode::Streamed);
                let (found, expected) = running.outputs(&task, &host);
                assert!(found == expected, "{base} with {name}, {mode:?}: host and device differ");
                assert!(found != plain, "{base} with {name}, {mode:?}: nothing has changed");
                assert_eq!(running.device.self_test().unwrap().digest, host.self_test_digest().unwrap());
            }
            running.device.detach().unwrap();
            assert!(running.outputs(&task, &plain_host).0 == plain, "{base}: not restored after {name}");
        }
        let statistics = running.device.statistics().unwrap();
        assert_eq!(statistics.failed_self_tests, 0);
        assert_eq!(statistics.bad_frames, 0);
        assert!(statistics.peak_stack_bytes < 16 * 1024, "{} bytes of stack", statistics.peak_stack_bytes);
        running.qemu.stop();
    }
}

/// Every site at another rank, factors that nothing was trained into, digest measured on the host.
fn random_adapter(simulator: &Simulator) -> Vec<u8> {
    let network = rankpatch_format::write::Network::read(&simulator.base().unwrap());
    let sites: Vec<(u16, usize)> =
        (0..network.site_names.len() as u16 - 1).map(|site| (site, 1 + usize::from(site) % 6)).collect();
    let data = fixture::adapter(&network, &sites, None, 0.05, 17);
    sealed(&data, simulator)
}

/// A head that answers after each row, with names of spans, beside factors that nothing was trained into.
fn random_tagger(simulator: &Simulator, pooling: Pooling) -> Vec<u8> {
    let network = rankpatch_format::write::Network::read(&simulator.base().unwrap());
    let mut data = fixture::adapter(&network, &[(3, 2), (9, 5)], Some(5), 0.05, 23);
    let head = data.head.as_mut().unwrap();
    head.pooling = pooling;
    head.labels = ["O", "B-person", "I-person", "B-place", "I-place"].map(String::from).to_vec();
    sealed(&data, simulator)
}

#[test]
fn spans_of_a_text_are_the_same_on_host_and_device() {
    let mut running = boot("stories260k", "spans");
    let text = "Lily's \u{e9}toile, and Tim ate 3 red-hot apples";
    for (slot, pooling) in [(0, Pooling::Every), (1, Pooling::Reread)] {
        let file = random_tagger(&running.simulator, pooling);
        running.device.upload(Some(slot), &signed(&file, u32::from(slot) + 1), |_| {}).unwrap();
        for mode in [Mode::Streamed, Mode::Merged] {
            running.device.activate(slot, mode, 0).unwrap();
            let host = running.simulator.clone().with_adapter(file.clone(), mode).unwrap();
            let found = running.device.spans(text).unwrap();
            let (expected, digest) = host.spans(text).unwrap();
            assert_eq!((&found.spans, found.digest), (&expected, digest), "{pooling:?}, {mode:?}");
            assert!(!expected.is_empty() && found.ticks > 0);
        }
        // 402 tokens, of which 512 can be kept once.
        let long = running.device.spans(&"a b ".repeat(200));
        assert_eq!(long.is_ok(), pooling == Pooling::Every);
        if pooling == Pooling::Reread {
            assert!(matches!(refusal(long), ErrorCode::SequenceTooLong));
        }
    }
    running.device.detach().unwrap();
    assert!(matches!(refusal(running.device.spans(text)), ErrorCode::WrongInput));
    running.qemu.stop();
}

pub(crate) fn sealed(data: &AdapterData, simulator: &Simulator) -> Vec<u8> {
    let file = data.write().unwrap();
    let mut data = data.clone();
    data.self_test.digest =
        simulator.clone().with_adapter(file, Mode::Streamed).unwrap().self_test_digest().unwrap();
    data.write().unwrap()
}

#[test]
fn stories_and_names_are_the_same_on_host_and_device() {
    let mut running = boot("stories260k", "stories");
    let sampling = |temperature, seed| {
        let device = Sampling { max_tokens: 40, temperature, seed };
        (device, sim::Sampling { max_tokens: 40, temperature, seed })
    };
    let mut compare = |host: &Simulator, prompt: &str, temperature: f32, seed: u32| {
        let (on_device, on_host) = sampling(temperature, seed);
        let found = running.device.generate(prompt, on_device, |_, _| {}).unwrap();
        let expected = host.generate(prompt, on_host, |_| {}).unwrap();
        assert_eq!(
            (found.digest, &found.ids),
            (expected.digest, &expected.ids),
            "{prompt:?} at {temperature}"
        );
        String::from_utf8_lossy(&found.text).into_owned()
    };
    let plain = running.simulator.clone();
    let story = compare(&plain, "", 0.0, 0);
    assert!(story.starts_with("Once upon a time, there was a little girl named Lily."), "{story}");
    compare(&plain, "The dog", 0.9, 5);
    let file = adapter("names");
    running.device.upload(Some(2), &file, |_| {}).unwrap();
    running.device.activate(2, Mode::Streamed, 0).unwrap();
    let named = plain.clone().with_adapter(file, Mode::Streamed).unwrap();
    let mut compare = |host: &Simulator, prompt: &str, temperature: f32, seed: u32| {
        let (on_device, on_host) = sampling(temperature, seed);
        let found = running.device.generate(prompt, on_device, |_, _| {}).unwrap();
        let expected = host.generate(prompt, on_host, |_| {}).unwrap();
        assert_eq!(
            (found.digest, &found.ids),
            (expected.digest, &expected.ids),
            "{prompt:?} at {temperature}"
        );
        String::from_utf8_lossy(&found.text).into_owned()
    };
    for seed in 1..6 {
        let name = compare(&named, "", 0.7, seed);
        assert!(name.len() < 20 && name.chars().all(|c| c.is_ascii_lowercase()), "no name: {name:?}");
    }
}

fn refusal(result: Result<impl std::fmt::Debug, ClientError>) -> ErrorCode {
    match result.unwrap_err() {
        ClientError::Refused { refusal, .. } => refusal.code,
        other => panic!("expected a refusal, found {other}"),
    }
}

/// The content of `file` changed by `change`, with its length and checksum right again, and signed.
fn resealed(file: &[u8], sequence: u32, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let header = header::check(file).unwrap();
    let mut file = file[..file.len() - TRAILER_BYTES].to_vec();
    change(&mut file);
    file.extend([0; TRAILER_BYTES]);
    header::set_header(&mut file, &header).unwrap();
    signed(&file, sequence)
}

#[test]
fn bad_adapters_are_refused_and_the_active_one_stays() {
    let mut running = boot("stories260k", "refusals");
    let good = adapter("names");
    running.device.upload(Some(0), &good, |_| {}).unwrap();
    running.device.activate(0, Mode::Streamed, 0).unwrap();
    running.device.confirm(0).unwrap();
    // Whatever is wrong below, it is not the sequence number.
    let good = signed(&good, 2);
    let sampling = Sampling { max_tokens: 12, temperature: 0.0, seed: 1 };
    let expected = running.device.generate("", sampling, |_, _| {}).unwrap();
    let network = rankpatch_format::write::Network::read(&running.simulator.base().unwrap());
    let data = fixture::adapter(&network, &[(0, 3), (4, 2)], None, 0.1, 3);
    let changed = |change: &dyn Fn(&mut AdapterData)| {
        let mut data = data.clone();
        change(&mut data);
        signed(&data.write().unwrap(), 2)
    };
    let mut flipped = good.clone();
    flipped[1000] ^= 4;
    let mut magic = good.clone();
    magic[0] = b'X';
    let mut version = good.clone();
    version[3] = 9;
    let bad: Vec<(ErrorCode, Vec<u8>)> = vec![
        (ErrorCode::WrongBase, adapter("speaker")),
        // Its last chunk is not the end that the header announces.
        (ErrorCode::Misaligned, good[..good.len() - 5].to_vec()),
        (ErrorCode::TrailingBytes, [&good[..], &[0]].concat()),
        (ErrorCode::Corrupt, flipped),
        (ErrorCode::BadMagic, magic),
        (ErrorCode::UnknownVersion, version),
        (ErrorCode::TrailingBytes, resealed(&good, 2, |file| file.push(1))),
        (ErrorCode::RankOutOfRange, changed(&|a| a.patches[0].scales.clear())),
        (ErrorCode::BadScale, changed(&|a| a.patches[0].scales[1] = half::f16::NAN)),
        (ErrorCode::BadScale, changed(&|a| a.patches[0].scales[1] = half::f16::ZERO)),
        (ErrorCode::UnknownSite, changed(&|a| a.patches[1].site = 36)),
        (ErrorCode::DuplicateSite, changed(&|a| a.patches[1].site = 0)),
        (ErrorCode::SitesOutOfOrder, changed(&|a| a.patches.swap(0, 1))),
        (ErrorCode::NothingToApply, changed(&|a| a.patches.clear())),
        (ErrorCode::Unsigned, data.write().unwrap()),
        (ErrorCode::Stale, signed(&data.write().unwrap(), 1)),
        (ErrorCode::TooFar, signed(&data.write().unwrap(), 70_000)),
    ];
    for (code, file) in bad {
        assert_eq!(refusal(running.device.upload(Some(1), &file, |_| {})), code);
        running.device.abort().unwrap();
        assert!(running.device.slot(1).unwrap().adapter.is_none(), "{code:?}: the file stayed");
        assert_eq!(refusal(running.device.activate(1, Mode::Streamed, 0)), ErrorCode::EmptySlot);
    }
    // Valid but with another digest than this device computes: it is installed, but not kept active.
    running.device.upload(Some(1), &changed(&|_| {}), |_| {}).unwrap();
    assert_eq!(refusal(running.device.activate(1, Mode::Streamed, 0)), ErrorCode::SelfTestFailed);
    assert_eq!(refusal(running.device.activate(1, Mode::Merged, 0)), ErrorCode::SelfTestFailed);
    assert_eq!(refusal(running.device.activate(9, Mode::Streamed, 0)), ErrorCode::NoSuchSlot);
    assert_eq!(refusal(running.device.upload(Some(0), &signed(&good, 3), |_| {})), ErrorCode::SlotActive);
    assert_eq!(refusal(running.device.remove(0)), ErrorCode::SlotActive);
    let large = resealed(&good, 3, |file| file.resize(70_000, 0));
    assert_eq!(refusal(running.device.upload(Some(1), &large, |_| {})), ErrorCode::OutOfRange);
    assert_eq!(refusal(running.device.run_features(&[0.0; 40], 1)), ErrorCode::WrongInput);
    let long = "word ".repeat(180);
    assert!(
        matches!(refusal(running.device.run_text(&long)), ErrorCode::SequenceTooLong),
        "a prompt too long"
    );
    let after = running.device.generate("", sampling, |_, _| {}).unwrap();
    assert_eq!((after.digest, after.ids), (expected.digest, expected.ids), "the active adapter has changed");
    assert_eq!(running.device.info().unwrap().active.unwrap().slot, 0);
}

/// A port that breaks after some bytes.
struct Breaking<T> {
    port: T,
    left: usize,
}

impl<T: Transport> Transport for Breaking<T> {
    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::BrokenPipe)?;
        self.port.send(bytes)
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> std::io::Result<usize> {
        self.port.receive(buffer, deadline)
    }
}

/// Garbage on the wire is passed over, and an upload that broke off goes on where it stopped.
#[test]
fn broken_uploads_go_on() {
    let running = boot("stories260k", "resume");
    let address = running.qemu.link_address().to_string();
    drop(running.device);
    let mut stream = running.qemu.connect(Duration::from_secs(10)).unwrap();
    stream.write_all(&[7, 9, 0, 0, 1, 255, 3, 0]).unwrap();
    drop(stream);
    let file = adapter("intent");
    let open = || Tcp::connect(&address).unwrap();
    let port = Breaking { port: open(), left: 20_000 };
    let broken = Device::new(port, Options::default()).unwrap().upload(Some(3), &file, |_| {});
    assert!(matches!(broken, Err(ClientError::Io { .. })), "{broken:?}");
    let mut device = Device::new(open(), Options::default()).unwrap();
    let upload = device.upload(None, &file, |_| {}).unwrap();
    assert_eq!(upload.slot, 3);
    assert!(upload.resumed_at >= 8192, "went on at {}", upload.resumed_at);
    assert!(upload.wire.sent_bytes < 40_000, "{} bytes were sent again", upload.wire.sent_bytes);
    assert_eq!(device.activate(3, Mode::Streamed, 0).unwrap().n_patches, 35);
    assert!(device.statistics().unwrap().bad_frames >= 1);
}

/// Payload bytes over all bytes on the wire, both directions, for the carried adapters.
#[test]
fn little_but_the_payload_is_on_the_wire() {
    let mut running = boot("stories260k", "wire");
    for task in ["names", "intent"] {
        let file = adapter(task);
        let payload = rankpatch::cli::payload_bytes(&Preview::new(&file).unwrap());
        let wire = running.device.upload(None, &file, |_| {}).unwrap().wire.total_bytes();
        let share = payload as f64 / wire as f64;
        println!("{task}: payload {payload}, file {}, wire {wire}: {share:.4}", file.len());
        assert!(share >= 0.968, "{task}: {share}");
    }
}

/// A trial that nobody confirms ends by itself, and what was confirmed before runs again; the log tells of it over the link.
#[test]
fn trials_end_and_are_logged() {
    let mut running = boot("stories260k", "trial");
    let device = &mut running.device;
    for (slot, task) in [(0, "names"), (1, "intent")] {
        device.upload(Some(slot), &adapter(task), |_| {}).unwrap();
    }
    device.activate(0, Mode::Merged, 0).unwrap();
    let status = device.confirm(0).unwrap();
    assert_eq!((status.confirmed, status.trial, status.sequence, status.floor), (Some(0), None, 1, 2));
    device.set_log(true).unwrap();
    device.activate(1, Mode::Streamed, 2).unwrap();
    assert_eq!(device.status().unwrap().trial, Some(1));
    let deadline = Instant::now() + Duration::from_mins(1);
    let status = loop {
        let status = device.status().unwrap();
        if status.trial.is_none() {
            break status;
        }
        assert!(Instant::now() < deadline, "the trial goes on for ever");
        std::thread::sleep(Duration::from_millis(100));
    };
    let active = status.running.unwrap();
    assert_eq!((active.slot, active.mode, status.rolled_back), (0, Mode::Merged, Some(1)));
    assert_eq!(device.statistics().unwrap().rollbacks, 1);
    let (log, lost) = device.log(Instant::now() + Duration::from_secs(1)).unwrap();
    assert!(log.len() > 10 && lost == 0, "{} bytes of the log, {lost} lost", log.len());
    device.set_log(false).unwrap();
    // Back further, to the base, and there it stays.
    assert_eq!(device.roll_back(0).unwrap().running, None);
    assert_eq!(device.status().unwrap().confirmed, None);
    // The command shows the same as text, decoded with the tables of the firmware.
    // Built before the trial begins: it ends while a build waits for another.
    let elf = firmware::build(&Board::find("qemu-mps2-an386").unwrap(), "firmware").unwrap();
    device.activate(1, Mode::Streamed, 3).unwrap();
    let port = format!("tcp:{}", running.qemu.link_address());
    drop(running.device);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut console = Console { out: &mut out, err: &mut err, interactive: false };
    let arguments =
        ["rankpatch", "device", "--port", &port, "log", "--elf", elf.to_str().unwrap(), "--seconds", "10"];
    assert_eq!(rankpatch::cli::run(arguments, &mut console), 0, "{}", String::from_utf8_lossy(&err));
    let log = String::from_utf8(out).unwrap();
    let line = log.lines().find(|line| line.ends_with("nobody confirmed slot 1 in time"));
    let words = line.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    let &[seconds, "info"] = words.as_deref().unwrap_or_else(|| panic!("log: {log:?}")) else {
        panic!("{line:?}");
    };
    assert!(seconds.parse::<f64>().unwrap() > 3.0, "{line:?}");
}

/// Firmware that takes unsigned adapters says so at every start and to every host; the usual firmware refuses them.
#[test]
fn insecure_firmware_says_so_at_every_start() {
    let mut file = adapter("names");
    let found = header::check(&file).unwrap();
    let header = Header { key_id: KeyId::UNSIGNED, product: ProductId::NONE, sequence: 1, ..found };
    header::set_header(&mut file, &header).unwrap();
    let mut usual = boot("stories260k", "secure");
    assert!(!usual.device.info().unwrap().insecure);
    assert_eq!(refusal(usual.device.upload(None, &file, |_| {})), ErrorCode::Unsigned);
    assert_eq!(usual.qemu.log().count("INSECURE"), 0);
    let mut insecure = boot_program("stories260k", "insecure", firmware::build_insecure);
    insecure.device.upload(None, &file, |_| {}).unwrap();
    drop(insecure.device);
    for start in 1..=3 {
        let line = insecure.qemu.log().wait_for_nth("INSECURE", start, Duration::from_secs(10)).unwrap();
        assert_eq!((line.level.as_str(), insecure.qemu.log().count("INSECURE")), ("warn", start));
        let transport = Tcp::connect(&insecure.qemu.link_address().to_string()).unwrap();
        assert!(Device::new(transport, Options::default()).unwrap().info().unwrap().insecure);
        insecure.qemu.reset().unwrap();
    }
}

/// Tokens come while chunks are stored.
#[test]
fn texts_are_generated_while_an_upload_runs() {
    let running = boot("stories260k", "interleaved");
    drop(running.device);
    let mut stream = running.qemu.connect(Duration::from_mins(1)).unwrap();
    let file = adapter("names");
    let sha256 = rankpatch_runtime::slots::Announcement::of(&file).sha256;
    let frame = |id: u8, request: &Request<'_>| {
        let mut frame = Vec::new();
        link::write_frame(id, request, |bytes| frame.extend_from_slice(bytes)).unwrap();
        frame
    };
    let begin = frame(1, &Request::Begin { slot: Some(0), header: &file[..HEADER_BYTES], sha256: &sha256 });
    stream.write_all(&begin).unwrap();
    // The first answer says that the slot is erased.
    let mut erased = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut erased[..11]).unwrap();
    let mut wire = Vec::new();
    wire.extend(frame(2, &Request::Generate { prompt: "", max_tokens: 60, temperature: 0.0, seed: 0 }));
    // In small pieces, so that there are many turns.
    for (at, data) in (0u32..).zip(file.chunks(512)) {
        wire.extend(frame(3, &Request::Chunk { answer: true, offset: at * 512, data }));
    }
    wire.extend(frame(4, &Request::Finish));
    let mut sender = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || sender.write_all(&wire));
    let mut deframer: Deframer = Deframer::new();
    let (mut order, mut installed, mut generated) = (String::new(), false, false);
    let mut buffer = [0; 1024];
    while !(installed && generated) {
        let len = std::io::Read::read(&mut stream, &mut buffer).unwrap();
        for byte in &buffer[..len] {
            let Framed::Message(message) = deframer.push(*byte) else { continue };
            match link::decode::<Response<'_>>(message).unwrap() {
                (2, Response::Token { .. }) => order.push('t'),
                (2, Response::Generated { .. }) => generated = true,
                (1 | 3, Response::Progress { .. }) => order.push('p'),
                (4, Response::Slot { adapter: Some(_), .. }) => installed = true,
                (id, other) => panic!("{id}: {other:?}"),
            }
        }
    }
    sending.join().unwrap().unwrap();
    println!("order of tokens and stored chunks: {order}");
    assert!(order.contains("tpt") || order.contains("ptp"), "one after the other: {order}");
}

/// A partition without a base: the device answers, and says so.
#[test]
fn a_device_without_a_base_says_so() {
    let board = Board::find("qemu-mps2-an386").unwrap();
    let elf = firmware::build(&board, "firmware").unwrap();
    let qemu = Qemu::boot(&board, &elf, &Emulation::default()).unwrap();
    let transport = Tcp::connect(&qemu.link_address().to_string()).unwrap();
    let mut device = Device::new(transport, Options::default()).unwrap();
    assert_eq!(refusal(device.info()), ErrorCode::NoBase);
    let image = image("stories260k", Layout::Dsp4x4);
    assert!(Base::new(image.bytes()).is_ok());
}

/// Firmware for sound alone: it names the operator of a text's base that it was built without, and refuses texts for a base that it runs.
#[test]
fn firmware_for_sound_refuses_text() {
    let start = |base: &str| {
        boot_program(base, &format!("sound-{base}"), |board| firmware::build_for(board, Reads::Sound))
    };
    let Running { mut device, qemu, simulator } = start("stories260k");
    let Err(ClientError::Refused { refusal: found, .. }) = device.info() else { panic!("not refused") };
    assert_eq!((found.code, found.found), (ErrorCode::NotBuiltIn, 0));
    assert!(matches!(simulator.base().unwrap().input(), Op::Embedding { .. }));
    qemu.stop();
    let Running { mut device, qemu, simulator } = start("kwt1");
    assert_eq!(refusal(device.run_text("a text")), ErrorCode::WrongInput);
    assert_eq!(device.info().unwrap().n_sites, simulator.base().unwrap().n_sites());
    qemu.stop();
}
