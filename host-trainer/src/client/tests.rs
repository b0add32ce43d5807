//! The client against a device in memory: every request, and uploads over a wire that loses, repeats and damages.
#![allow(clippy::print_stdout, reason = "the figures that the tests measure, shown with --nocapture")]

use rankpatch_format::digest::XorShift32;
use rankpatch_format::link::{ErrorCode, Mode};

use super::fake::{CHUNK_BYTES, FILE_BYTES, Fake, Fate, base_id, file, unsigned};
use super::lossy::{Dice, Faults};
use super::{ClientError, Device, Options, Sampling, Wire};

fn device(fake: &mut Fake) -> Device<&mut Fake> {
    Device::new(fake, Options::default()).unwrap()
}

fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (ErrorCode, String) {
    let error = result.unwrap_err();
    match &error {
        ClientError::Refused { refusal, .. } => (refusal.code, error.to_string()),
        _ => panic!("expected a refusal, found {error}"),
    }
}

#[test]
fn every_request_gets_its_answer() {
    let mut fake = Fake::new();
    let mut device = device(&mut fake);
    let info = device.info().unwrap();
    assert_eq!((info.board.as_str(), info.base_id, info.n_slots, info.active), ("fake", base_id(), 3, None));
    assert_eq!((info.arena_bytes, info.arena_bytes_needed), (4096, 1024));
    let names = file("names", 4, 9000);
    let upload = device.upload(Some(1), &names, |_| {}).unwrap();
    let chunks = (names.len() as u32).div_ceil(CHUNK_BYTES);
    assert_eq!((upload.resumed_at, upload.chunks, upload.repeated_chunks), (0, chunks, 0));
    assert_eq!((upload.installed.task.as_str(), upload.installed.sequence), ("names", 4));
    let again = device.upload(None, &names, |_| {}).unwrap();
    assert_eq!(
        (again.slot, again.resumed_at as usize, again.chunks),
        (1, names.len(), 0),
        "it is there already"
    );
    let slots = device.slots().unwrap();
    assert_eq!(slots.iter().map(|slot| slot.adapter.is_some()).collect::<Vec<_>>(), [false, true, false]);
    let activated = device.activate(1, Mode::Merged, 0).unwrap();
    assert_eq!((activated.weight_bytes_copied, activated.digest), (80, u64::MAX));
    assert_eq!(device.info().unwrap().active.unwrap().mode, Mode::Merged);
    assert_eq!(device.self_test().unwrap().ticks, 9);
    let status = device.status().unwrap();
    assert_eq!((status.trial, status.confirmed, status.floor), (Some(1), None, 4));
    for _ in 0..2 {
        let status = device.confirm(1).unwrap();
        assert_eq!((status.trial, status.confirmed), (None, Some(1)));
    }
    let status = device.roll_back(1).unwrap();
    assert_eq!((status.running, status.rolled_back), (None, Some(1)));
    assert_eq!(device.roll_back(1).unwrap(), status, "twice is once");
    for _ in 0..2 {
        device.detach().unwrap();
        device.remove(1).unwrap();
        device.abort().unwrap();
    }
    assert_eq!(device.slot(1).unwrap().adapter, None);
    assert_eq!(device.statistics().unwrap().peak_stack_bytes, 512);
    let mut heard = Vec::new();
    let sampling = Sampling { max_tokens: 7, temperature: 0.0, seed: 0 };
    let generated = device.generate("abc", sampling, |_, bytes| heard.extend_from_slice(bytes)).unwrap();
    assert_eq!(
        (heard.as_slice(), generated.text.as_slice(), generated.ids.len()),
        (&b"abcabca"[..], &b"abcabca"[..], 7)
    );
}

#[test]
fn outputs_longer_than_a_message_are_put_together_and_checked() {
    let mut fake = Fake::new();
    let mut device = device(&mut fake);
    let features: Vec<f32> = (0..98 * 40).map(|at| at as f32 * 0.25).collect();
    let output = device.run_features(&features, 98).unwrap();
    let expected: Vec<f32> = features.iter().map(|value| value * 2.0).collect();
    assert_eq!((output.values, output.argmax), (expected, 98 * 40 - 1));
    let samples: Vec<i16> = (0..1300).map(|at| at * 20 - 9000).collect();
    let expected: Vec<f32> = samples.iter().map(|sample| f32::from(*sample) * 2.0).collect();
    assert_eq!(device.run_samples(&samples).unwrap().values, expected);
    let text = "x".repeat(1000);
    assert_eq!(device.run_text(&text).unwrap().values, vec![120.0; 1000]);
    let error = device.run_text(&"x".repeat(1025)).unwrap_err();
    assert_eq!(error.to_string(), "text is too long: expected at most 1024 bytes, found 1025");
    let error = device.run_features(&[1.0; 7], 2).unwrap_err();
    assert_eq!(error.to_string(), "features do not fit: expected a multiple of 2 rows, found 7 numbers");
}

#[test]
fn refusals_say_what_was_expected_and_found() {
    let mut fake = Fake::new();
    let mut device = device(&mut fake);
    let (code, message) = refused(device.slot(9));
    assert_eq!(code, ErrorCode::NoSuchSlot);
    assert_eq!(message, "device refused slot: no such slot (error 25 NoSuchSlot): expected 3, found 9");
    assert_eq!(refused(device.self_test()).0, ErrorCode::NothingActive);
    assert_eq!(refused(device.confirm(0)).0, ErrorCode::NothingActive);
    assert_eq!(refused(device.activate(0, Mode::Streamed, 0)).0, ErrorCode::EmptySlot);
    let (code, message) = refused(device.upload(Some(0), &file("names", 4, FILE_BYTES as usize), |_| {}));
    assert_eq!(code, ErrorCode::OutOfRange, "{message}");
    assert_eq!(refused(device.upload(None, &[7; 100], |_| {})).0, ErrorCode::BadMagic);
    assert_eq!(refused(device.upload(None, b"no adapter", |_| {})).0, ErrorCode::ShapeMismatch);
    assert_eq!(refused(device.upload(None, &unsigned("names", 40), |_| {})).0, ErrorCode::Unsigned);
    device.upload(Some(0), &file("names", 4, 40), |_| {}).unwrap();
    assert_eq!(refused(device.upload(None, &file("names", 4, 60), |_| {})).0, ErrorCode::Stale);
    assert_eq!(refused(device.upload(None, &file("names", 1005, 60), |_| {})).0, ErrorCode::TooFar);
    device.activate(0, Mode::Streamed, 0).unwrap();
    assert_eq!(refused(device.upload(Some(0), &file("names", 5, 41), |_| {})).0, ErrorCode::SlotActive);
    assert_eq!(refused(device.remove(0)).0, ErrorCode::SlotActive);
    drop(device);
    fake.bad_flash = true;
    let mut device = Device::new(&mut fake, Options::default()).unwrap();
    assert_eq!(refused(device.upload(Some(1), &file("names", 5, 3000), |_| {})).0, ErrorCode::Corrupt);
}

#[test]
fn uploads_survive_loss_repetition_and_damage() {
    let file = file("names", 4, 50_000);
    for seed in 1..=60 {
        let mut random = XorShift32::new(seed);
        let fates = move |_: bool, _: u32| match random.next_u32() % 16 {
            0 | 1 => Fate::IsLost,
            2 => Fate::IsDamaged,
            3 | 4 => Fate::ArrivesTwice,
            5 => Fate::IsLate,
            6 => Fate::Stalls,
            _ => Fate::Arrives,
        };
        let mut fake = Fake::with(Box::new(fates));
        let options =
            Options { window: 1 + seed as usize % 6, chunk_bytes: 320, retries: 10, ..Options::default() };
        let mut device = Device::new(&mut fake, options).unwrap();
        let mut last = 0;
        let upload = device.upload(Some(2), &file, |next| last = next).unwrap();
        assert_eq!(last as usize, file.len(), "seed {seed}");
        assert!(upload.repeated_chunks > 0, "seed {seed}");
        drop(device);
        assert_eq!(fake.file(2), Some(&file[..]), "seed {seed}");
    }
}

#[test]
fn one_lost_chunk_costs_one_round_and_no_time_out() {
    let file = file("names", 4, 50_000);
    // Frames towards the device: Info, Begin, then chunks; the fourth chunk is lost.
    let mut fake =
        Fake::with(Box::new(|towards, at| if towards && at == 5 { Fate::IsLost } else { Fate::Arrives }));
    let options = Options { retries: 0, ..Options::default() };
    let upload = Device::new(&mut fake, options).unwrap().upload(Some(0), &file, |_| {}).unwrap();
    assert_eq!(upload.chunks, (file.len() as u32).div_ceil(CHUNK_BYTES) + upload.repeated_chunks);
    assert!((1..=4).contains(&upload.repeated_chunks), "{}", upload.repeated_chunks);
}

#[test]
fn an_interrupted_upload_goes_on_where_it_stopped() {
    let file = file("names", 4, 50_000);
    // Info, Begin, seven chunks, then the wire is cut.
    let mut fake =
        Fake::with(Box::new(|towards, at| if towards && at == 9 { Fate::Cuts } else { Fate::Arrives }));
    let error =
        Device::new(&mut fake, Options::default()).unwrap().upload(Some(0), &file, |_| {}).unwrap_err();
    assert!(matches!(error, ClientError::Io { .. }), "{error}");
    assert_eq!(fake.file(0), None);
    let status = |fake: &Fake| fake.slots.as_ref().unwrap().upload().map(|(.., progress)| progress.next());
    let stored = status(&fake).unwrap();
    assert!(stored >= 2 * CHUNK_BYTES, "{stored}");
    fake.mend();
    // Not even a reset makes it begin again.
    fake.reboot();
    let mut device = Device::new(&mut fake, Options::default()).unwrap();
    let upload = device.upload(None, &file, |_| {}).unwrap();
    assert_eq!((upload.slot, upload.resumed_at), (0, stored), "at the exact offset");
    assert_eq!(upload.chunks, (file.len() as u32 - stored).div_ceil(CHUNK_BYTES));
    drop(device);
    assert_eq!(fake.file(0), Some(&file[..]));
}

#[test]
fn a_device_that_restarts_is_asked_where_it_is() {
    let file = file("names", 4, 50_000);
    let mut fake =
        Fake::with(Box::new(|towards, at| if towards && at == 7 { Fate::Reboots } else { Fate::Arrives }));
    let upload = Device::new(&mut fake, Options::default()).unwrap().upload(Some(0), &file, |_| {}).unwrap();
    assert_eq!(upload.resumed_at, 0);
    assert_eq!(fake.file(0), Some(&file[..]));
}

#[test]
fn lost_answers_do_not_turn_done_work_into_errors() {
    let file = file("names", 4, 100);
    // The answers in order: Info, Progress (begin), Progress (chunk), Slot (finish).
    for lost in 0..4 {
        let mut fake =
            Fake::with(Box::new(
                move |towards, at| if !towards && at == lost { Fate::IsLost } else { Fate::Arrives },
            ));
        let upload =
            Device::new(&mut fake, Options::default()).unwrap().upload(Some(0), &file, |_| {}).unwrap();
        assert_eq!(upload.installed.file_bytes as usize, file.len(), "answer {lost}");
    }
}

/// Payload bytes over all bytes on the wire, on a clean link, for an adapter of 46 KB.
#[test]
fn little_but_the_payload_is_sent() {
    let file = file("names", 4, 46_240);
    let mut fake = Fake::new();
    let upload = Device::new(&mut fake, Options::default()).unwrap().upload(None, &file, |_| {}).unwrap();
    let preview = rankpatch_format::adapter::Preview::new(&file).unwrap();
    let payload = crate::cli::payload_bytes(&preview);
    // This small network has far more scales per factor than a real one: they count as payload here. The real adapters are measured in
    // `tests/tests/qemu.rs`.
    let share = file.len() as f64 / upload.wire.total_bytes() as f64;
    println!(
        "payload {payload}, file {}, wire {} = {} sent + {} received: {share:.4} of the file",
        file.len(),
        upload.wire.total_bytes(),
        upload.wire.sent_bytes,
        upload.wire.received_bytes,
    );
    assert!(share >= 0.985, "{share}");
}

/// Bytes of the file per second of simulated time.
fn goodput(file: &[u8], drop: f32, seed: u32) -> f64 {
    let faults = Faults { drop, seed, ..Faults::default() };
    let mut dice = [Dice::new(faults, 0), Dice::new(faults, 1)];
    let fates = move |towards: bool, _: u32| dice[usize::from(towards)].roll().into();
    let mut fake = Fake::with(Box::new(fates));
    let options = Options { retries: 20, ..Options::default() };
    Device::new(&mut fake, options).unwrap().upload(None, file, |_| {}).unwrap();
    file.len() as f64 / fake.elapsed().as_secs_f64()
}

/// 115,200 bit/s, 5 ms one way, the flash of an nRF52840; frames are lost in both directions.
#[test]
fn a_tenth_of_the_frames_lost_costs_less_than_two_fifths_of_the_speed() {
    let file = file("names", 4, 46_240);
    let clean = goodput(&file, 0.0, 1);
    let seeds = 200;
    let lossy: Vec<f64> = (1..=seeds).map(|seed| goodput(&file, 0.1, seed)).collect();
    // All files over all of the time.
    let mean = f64::from(seeds) / lossy.iter().map(|speed| 1.0 / speed).sum::<f64>();
    let worst = lossy.iter().copied().fold(f64::INFINITY, f64::min);
    println!(
        "clean {clean:.0} B/s of 11520; a tenth lost {mean:.0} B/s, {:.3} of it; worst of {seeds} {:.3}",
        mean / clean,
        worst / clean
    );
    assert!(mean / clean >= 0.6, "{}", mean / clean);
}

#[test]
fn a_late_answer_is_not_taken_for_the_next_one() {
    let mut fake = Fake::with(Box::new(|_, _| Fate::ArrivesTwice));
    let mut device = device(&mut fake);
    for slot in [0, 1, 2, 1, 0] {
        assert_eq!(device.slot(slot).unwrap().slot, slot);
    }
    assert_eq!(device.run_text("abc").unwrap().values, [97.0, 98.0, 99.0]);
}

#[test]
fn silence_and_lost_tokens_are_errors() {
    let mut fake = Fake::with(Box::new(|_, _| Fate::IsLost));
    let options = Options { retries: 2, ..Options::default() };
    let error = Device::new(&mut fake, options).unwrap().info().unwrap_err();
    assert_eq!(error.to_string(), "no answer to info: expected one within 7.5 s, found none in 5 attempts");
    let mut fake =
        Fake::with(Box::new(
            |towards, at| if !towards && (3..5).contains(&at) { Fate::IsLost } else { Fate::Arrives },
        ));
    let sampling = Sampling { max_tokens: 9, temperature: 1.0, seed: 3 };
    let error = device(&mut fake).generate("ab", sampling, |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "generated text is incomplete: expected 9 tokens, found 7");
}

#[test]
fn spans_are_asked_for_again_where_some_are_lost() {
    let text = "play,the,newest,song,";
    let mut fake =
        Fake::with(Box::new(|towards, at| if !towards && at == 1 { Fate::IsLost } else { Fate::Arrives }));
    let mut device = device(&mut fake);
    let found = device.spans(text).unwrap();
    let words: Vec<&str> = found.spans.iter().map(|span| &text[span.start..span.end]).collect();
    assert_eq!(words, ["play", "the", "newest", "song"]);
    assert_eq!((found.spans[0].kind.as_str(), found.digest, found.ticks), ("part", 5, 12));
    let mut fake = Fake::with(Box::new(
        |towards, at| if !towards && at % 5 == 1 { Fate::IsLost } else { Fate::Arrives },
    ));
    let error = Device::new(&mut fake, Options::default()).unwrap().spans(text).unwrap_err();
    assert_eq!(error.to_string(), "spans of the text are incomplete: expected 4, found 3");
}

#[test]
fn wire_bytes_count_frames_both_ways() {
    let mut fake = Fake::new();
    let mut device = device(&mut fake);
    assert_eq!(device.wire(), Wire { sent_bytes: 1, received_bytes: 0 });
    device.self_test().unwrap_err();
    // Request: version, number, variant, CRC-32, COBS byte, delimiter; answer: code, expected and found as well.
    assert_eq!(device.wire(), Wire { sent_bytes: 1 + 9, received_bytes: 12 });
}
