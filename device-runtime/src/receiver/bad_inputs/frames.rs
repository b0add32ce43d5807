//! 1 to 20: what can be wrong with frames, messages and their order.

use super::*;
use rankpatch_format::digest::XorShift32;

#[test]
fn bad_01_empty_frames_and_lone_delimiters() {
    let mut bench = Bench::new();
    assert_eq!(bench.wire(&[0; 1000]), []);
    // COBS of nothing, and of fewer bytes than a frame has around its message.
    assert_eq!(bench.wire(&[1, 0, 1, 1, 0, 2, 9, 0, 5, 1, 2, 3, 4, 0]), []);
    assert_eq!(bench.receiver.counts().frames, 0);
    bench.still_works();
}

#[test]
fn bad_02_frames_larger_than_the_buffer() {
    let mut bench = Bench::new();
    for len in [FRAME + 1, FRAME + 2, 2 * FRAME, 100_000] {
        let mut wire = vec![7; len];
        wire.push(0);
        let before = bench.receiver.counts().bad_frames;
        assert_eq!(bench.wire(&wire), []);
        assert_eq!(bench.receiver.counts().bad_frames, before + 1, "{len}");
    }
    let data = [9; CHUNK + 64];
    assert_eq!(
        bench.wire(&frame(1, &Request::Chunk { answer: true, offset: 0, data: &data })),
        [],
        "it fits nobody"
    );
    bench.still_works();
}

#[test]
fn bad_03_frames_truncated_at_each_byte() {
    let mut bench = Bench::new();
    let file = good(1);
    let sha256 = Announcement::of(&file).sha256;
    let whole = frame(3, &Request::Begin { slot: None, header: &file[..64], sha256: &sha256 });
    for len in 0..whole.len() - 1 {
        let mut cut = whole[..len].to_vec();
        cut.push(0);
        assert_eq!(bench.wire(&cut), [], "{len} bytes");
    }
    assert!(bench.slots().upload().is_none());
    assert_eq!(bench.flash().erases, 0, "nothing was erased for them");
    bench.still_works();
}

#[test]
fn bad_04_garbage_between_frames() {
    let mut bench = Bench::new();
    let mut random = XorShift32::new(4);
    for round in 0..200 {
        let mut wire: Vec<u8> = (0..random.next_u32() % 300).map(|_| random.next_u32() as u8).collect();
        wire.push(0);
        wire.extend(frame(9, &Request::Slot { slot: 1 }));
        let said = bench.wire(&wire);
        assert_eq!(said.last(), Some(&Said::Empty { slot: 1 }), "round {round}");
    }
    bench.still_works();
}

#[test]
fn bad_05_cobs_codes_that_lead_past_the_end() {
    let mut bench = Bench::new();
    for wire in [&[5, 1, 2, 0][..], &[255, 1, 0], &[2, 1, 9, 0], &[3, 1, 1, 200, 0], &[1, 1, 1, 254, 0]] {
        assert_eq!(bench.wire(wire), [], "{wire:?}");
    }
    bench.still_works();
}

#[test]
fn bad_06_wrong_checksums_and_right_ones_on_other_messages() {
    let mut bench = Bench::new();
    let whole = frame(3, &Request::Slot { slot: 1 });
    for bit in 0..(whole.len() - 1) * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(bench.wire(&flipped), [], "bit {bit}");
    }
    // An answer of a device, sent to one: its variant is a request that has other fields.
    let mut buffer = [0; FRAME];
    let answer = encode(3, &Response::Progress { slot: 2, next: u32::MAX }, &mut buffer).unwrap();
    let said = bench.wire(answer);
    assert!(
        matches!(said[..], [Said::Refused(ErrorCode::UnknownMessage | ErrorCode::TrailingBytes)]),
        "{said:?}"
    );
    bench.still_works();
}

/// A frame with any content and the right checksum.
fn sealed(content: &[u8]) -> Vec<u8> {
    let mut plain = content.to_vec();
    plain.extend(rankpatch_format::crc32(content).to_le_bytes());
    let mut wire = vec![0; plain.len() + plain.len() / 254 + 2];
    // COBS by hand: runs of less than 254 bytes.
    let mut at = 0;
    for run in plain.split(|byte| *byte == 0) {
        wire[at] = run.len() as u8 + 1;
        wire[at + 1..][..run.len()].copy_from_slice(run);
        at += run.len() + 1;
    }
    wire.truncate(at);
    wire.push(0);
    wire
}

#[test]
fn bad_07_unknown_message_version() {
    let mut bench = Bench::new();
    for version in (0..=255).filter(|version| *version != rankpatch_format::link::VERSION) {
        assert_eq!(bench.wire(&sealed(&[version, 1, 0])), [], "version {version}");
    }
    for variant in 23..=127 {
        let said = bench.wire(&sealed(&[rankpatch_format::link::VERSION, 1, variant]));
        assert_eq!(said, [Said::Refused(ErrorCode::UnknownMessage)], "variant {variant}");
    }
    let said = bench.wire(&sealed(&[rankpatch_format::link::VERSION, 1, 0, 77]));
    assert_eq!(said, [Said::Refused(ErrorCode::TrailingBytes)]);
    assert_eq!(
        bench.wire(&sealed(&[rankpatch_format::link::VERSION, 0, 0])),
        [],
        "the log's number is no request's"
    );
    bench.still_works();
}

/// An announcement of `file_bytes` bytes.
fn announce(bench: &mut Bench, file_bytes: u32) -> Said {
    let mut file = good(1);
    let header = Header { file_bytes, ..header::check(&file).unwrap() };
    file[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    bench.ask(&Request::Begin { slot: None, header: &file[..HEADER_BYTES], sha256: &[1; 32] })
}

#[test]
fn bad_08_lengths_of_nothing_one_too_many_and_everything() {
    let mut bench = Bench::new();
    let most = bench.slots().max_file_bytes() as u32;
    for len in [0, 1, 131] {
        assert_eq!(announce(&mut bench, len), Said::Refused(ErrorCode::Truncated), "{len}");
    }
    for len in [most + 1, most + 4, 1 << 31, u32::MAX - 3, u32::MAX] {
        assert_eq!(announce(&mut bench, len), Said::Refused(ErrorCode::OutOfRange), "{len}");
    }
    assert_eq!(bench.flash().erases, 0);
    assert!(matches!(announce(&mut bench, most), Said::Progress { next: 0, .. }));
    for data in [&[][..], &[1; CHUNK + 32][..CHUNK]] {
        let said = bench.chunk(0, data);
        assert_eq!(said == Said::Refused(ErrorCode::OutOfRange), data.is_empty(), "{said:?}");
    }
    for len in [0, 31, 33, 63, 65] {
        let header = &good(1)[..len.min(64)];
        let header = [header, &[0; 1][..len.saturating_sub(64)]].concat();
        let said = bench.ask(&Request::Begin { slot: None, header: &header, sha256: &[1; 32] });
        assert_eq!(said, Said::Refused(ErrorCode::ShapeMismatch), "a header of {len}");
    }
    for len in [0, 31, 33] {
        let said = bench.ask(&Request::Begin { slot: None, header: &good(1)[..64], sha256: &[1; 33][..len] });
        assert_eq!(said, Said::Refused(ErrorCode::ShapeMismatch), "a digest of {len}");
    }
    bench.still_works();
}

#[test]
fn bad_09_offsets_that_overflow() {
    let mut bench = Bench::new();
    let file = good(1);
    bench.begin(None, &file);
    for offset in [u32::MAX, u32::MAX - 31, u32::MAX - 1023, 1 << 31, file.len() as u32] {
        let said = bench.chunk(offset & !31, &[1; 64]);
        assert_eq!(said, Said::Refused(ErrorCode::TrailingBytes), "{offset}");
    }
    bench.send_from(0, &file);
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { sequence: 1, .. }));
    bench.still_works();
}

#[test]
fn bad_10_chunks_before_any_announcement() {
    let mut bench = Bench::new();
    for offset in [0, 32, 1024] {
        assert_eq!(bench.chunk(offset, &[1; 64]), Said::Refused(ErrorCode::NoUpload));
    }
    assert_eq!(bench.flash().writes, 0);
    bench.still_works();
}

#[test]
fn bad_11_chunks_that_come_twice() {
    let mut bench = Bench::new();
    let file = good(1);
    bench.begin(None, &file);
    assert_eq!(bench.chunk(0, &file[..CHUNK]), Said::Progress { slot: 0, next: CHUNK as u32 });
    let writes = bench.flash().writes;
    for _ in 0..5 {
        assert_eq!(bench.chunk(0, &file[..CHUNK]), Said::Progress { slot: 0, next: CHUNK as u32 });
        assert_eq!(bench.chunk(32, &file[32..96]), Said::Progress { slot: 0, next: CHUNK as u32 });
    }
    assert_eq!(bench.flash().writes, writes, "accepted, and not written again");
    bench.send_from(CHUNK as u32, &file);
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { .. }));
    bench.still_works();
}

#[test]
fn bad_12_chunks_that_come_again_with_other_bytes() {
    let mut bench = Bench::new();
    let file = good(1);
    bench.begin(None, &file);
    bench.chunk(0, &file[..CHUNK]);
    let mut other = file[..CHUNK].to_vec();
    other[CHUNK - 1] ^= 1;
    assert_eq!(bench.chunk(0, &other), Said::Refused(ErrorCode::OtherBytes));
    bench.send_from(CHUNK as u32, &file);
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { .. }), "what was stored stays");
    bench.still_works();
}

#[test]
fn bad_13_gaps() {
    let mut bench = Bench::new();
    let file = good(1);
    bench.begin(None, &file);
    let writes = bench.flash().writes;
    assert_eq!(bench.chunk(1024, &file[1024..1088]), Said::Progress { slot: 0, next: 0 });
    assert_eq!(bench.flash().writes, writes, "stores nothing");
    bench.send_from(0, &file);
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { .. }));
    bench.still_works();
}

#[test]
fn bad_14_overlaps() {
    let mut bench = Bench::new();
    let file = good(1);
    bench.begin(None, &file);
    bench.chunk(0, &file[..512]);
    assert_eq!(
        bench.chunk(256, &file[256..768]),
        Said::Progress { slot: 0, next: 768 },
        "the new part is stored"
    );
    let mut other = file[512..1024].to_vec();
    other[0] ^= 1;
    assert_eq!(bench.chunk(512, &other), Said::Refused(ErrorCode::OtherBytes), "an overlap that differs");
    bench.send_from(768, &file);
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { .. }));
    bench.still_works();
}

#[test]
fn bad_15_chunks_out_of_order() {
    let mut bench = Bench::new();
    let file = good(1);
    bench.begin(None, &file);
    let pieces: Vec<usize> = (0..file.len()).step_by(256).collect();
    let mut random = XorShift32::new(15);
    for _ in 0..2000 {
        let at = pieces[random.next_u32() as usize % pieces.len()];
        let said = bench.chunk(at as u32, &file[at..file.len().min(at + 256)]);
        assert!(matches!(said, Said::Progress { .. }), "{said:?}");
    }
    assert!(
        matches!(bench.ask(&Request::Finish), Said::Installed { .. }),
        "each piece came in its turn once"
    );
    // All at once, in order: the receiver takes them one by one.
    let file = good(2);
    bench.begin(None, &file);
    let mut wire = Vec::new();
    for at in (0..file.len()).step_by(256) {
        let data = &file[at..file.len().min(at + 256)];
        wire.extend(frame(5, &Request::Chunk { answer: at + 256 >= file.len(), offset: at as u32, data }));
    }
    assert_eq!(bench.wire(&wire), [Said::Progress { slot: 1, next: file.len() as u32 }]);
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { .. }));
    bench.still_works();
}

#[test]
fn bad_16_misaligned_offsets_and_lengths() {
    let mut bench = Bench::new();
    let file = good(1);
    bench.begin(None, &file);
    for (offset, len) in [(1, 31), (0, 33), (4, 32), (0, 1), (31, 1), (16, 16)] {
        let said = bench.chunk(offset as u32, &file[offset..offset + len]);
        assert_eq!(said, Said::Refused(ErrorCode::Misaligned), "{offset} {len}");
    }
    bench.send_from(0, &file);
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { .. }));
    bench.still_works();
}

#[test]
fn bad_17_a_second_announcement() {
    let mut bench = Bench::new();
    let (file, other) = (good(1), good(2));
    bench.begin(None, &file);
    bench.chunk(0, &file[..CHUNK]);
    let erases = bench.flash().erases;
    for slot in [None, Some(0)] {
        let said = bench.begin(slot, &file);
        assert_eq!(said, Said::Progress { slot: 0, next: CHUNK as u32 }, "the same one goes on");
    }
    assert_eq!(bench.flash().erases, erases, "and erases nothing");
    assert_eq!(bench.begin(None, &other), Said::Refused(ErrorCode::UploadUnderWay));
    assert_eq!(bench.begin(Some(1), &file), Said::Refused(ErrorCode::UploadUnderWay), "into another slot");
    assert_eq!(bench.ask(&Request::Abort), Said::Done);
    assert!(matches!(bench.begin(None, &other), Said::Progress { next: 0, .. }));
    bench.still_works();
}

#[test]
fn bad_18_finishing_early_and_twice() {
    let mut bench = Bench::new();
    let file = good(1);
    assert_eq!(bench.ask(&Request::Finish), Said::Refused(ErrorCode::NoUpload));
    bench.begin(None, &file);
    assert_eq!(bench.ask(&Request::Finish), Said::Refused(ErrorCode::Incomplete));
    bench.send_from(0, &file[..1024]);
    assert_eq!(bench.ask(&Request::Finish), Said::Refused(ErrorCode::Incomplete), "and the upload stays");
    bench.send_from(1024, &file);
    for _ in 0..3 {
        assert_eq!(bench.ask(&Request::Finish), Said::Installed { slot: 0, sequence: 1 });
    }
    assert_eq!(bench.begin(None, &file), Said::Progress { slot: 0, next: file.len() as u32 }, "it is there");
    assert_eq!(bench.ask(&Request::Finish), Said::Installed { slot: 0, sequence: 1 });
    bench.still_works();
}

#[test]
fn bad_19_aborting_at_any_point() {
    let file = good(1);
    for chunks in 0..=file.len().div_ceil(CHUNK) {
        let mut bench = Bench::new();
        bench.begin(None, &file);
        bench.send_from(0, &file[..file.len().min(chunks * CHUNK)]);
        for _ in 0..2 {
            assert_eq!(bench.ask(&Request::Abort), Said::Done);
        }
        assert_eq!(bench.chunk(0, &file[..64]), Said::Refused(ErrorCode::NoUpload));
        assert_eq!(bench.ask(&Request::Finish), Said::Refused(ErrorCode::NoUpload));
        bench.reset();
        assert!(matches!(bench.begin(None, &file), Said::Progress { next: 0, .. }), "an abort lasts");
        bench.still_works();
    }
}

#[test]
fn bad_20_senders_that_stop_in_the_middle_of_a_frame() {
    let mut bench = Bench::new();
    let file = good(1);
    bench.begin(None, &file);
    let chunk = frame(9, &Request::Chunk { answer: true, offset: 0, data: &file[..CHUNK] });
    for len in [1, 7, 300, chunk.len() - 2] {
        assert_eq!(bench.wire(&chunk[..len]), []);
        // Whoever comes next begins with a delimiter, as our client does.
        assert_eq!(bench.wire(&[0]), []);
        assert_eq!(bench.ask(&Request::Slot { slot: 2 }), Said::Empty { slot: 2 });
    }
    bench.still_works();
}
