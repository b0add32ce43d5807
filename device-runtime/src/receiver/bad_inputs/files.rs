//! 21 to 34: files that are not what a device wants, however well they are signed and sent.

use super::*;
use rankpatch_format::BaseId;
use rankpatch_format::digest::XorShift32;
use rankpatch_format::header::{SIGNATURE_BYTES, TRAILER_BYTES};

/// Sends a file and expects a refusal, at the announcement or at the end; nothing may be installed.
#[track_caller]
fn refused(bench: &mut Bench, file: &[u8], code: ErrorCode) {
    let said = bench.upload(None, file);
    assert_eq!(said, Said::Refused(code));
    assert!((0..N_SLOTS).all(|slot| bench.slots().file(slot) != Ok(file)));
}

/// The same for a good file changed by `change` and then signed.
#[track_caller]
fn refused_when(bench: &mut Bench, code: ErrorCode, change: impl FnOnce(&mut AdapterData)) {
    let mut content = data(1);
    change(&mut content);
    refused(bench, &signed(&content, 1000), code);
}

/// The announcement of a good file with these bytes of its header changed.
fn announced(bench: &mut Bench, at: usize, bytes: &[u8]) -> Said {
    let mut file = good(1);
    file[at..][..bytes.len()].copy_from_slice(bytes);
    bench.begin(None, &file)
}

#[test]
fn bad_21_wrong_magic() {
    let mut bench = Bench::new();
    for magic in [b"RPB", b"rpa", b"\0\0\0", b"\xff\xff\xff"] {
        assert_eq!(announced(&mut bench, 0, magic), Said::Refused(ErrorCode::BadMagic));
    }
    bench.still_works();
}

#[test]
fn bad_22_versions_newer_and_older() {
    let mut bench = Bench::new();
    for version in [0, 2, 3, 255] {
        assert_eq!(announced(&mut bench, 3, &[version]), Said::Refused(ErrorCode::UnknownVersion));
    }
    bench.still_works();
}

#[test]
fn bad_23_reserved_bits() {
    let mut bench = Bench::new();
    for at in [6, 7, 28, 29, 30, 31] {
        for bit in 0..8 {
            assert_eq!(
                announced(&mut bench, at, &[1 << bit]),
                Said::Refused(ErrorCode::Malformed),
                "{at} {bit}"
            );
        }
    }
    for (limit, name) in [(0u32, "none"), (65_537, "too many"), (u32::MAX, "all")] {
        assert_eq!(
            announced(&mut bench, 16, &limit.to_le_bytes()),
            Said::Refused(ErrorCode::OutOfRange),
            "{name}"
        );
    }
    bench.still_works();
}

#[test]
fn bad_24_ranks_of_zero_too_high_and_overflowing() {
    let mut bench = Bench::new();
    let f16 = half::f16::from_f32(0.1);
    refused_when(&mut bench, ErrorCode::RankOutOfRange, |a| a.patches[1].scales.clear());
    refused_when(&mut bench, ErrorCode::RankOutOfRange, |a| a.patches[1].scales = vec![f16; 257]);
    refused_when(&mut bench, ErrorCode::RankOutOfRange, |a| a.patches[1].scales = vec![f16; 4000]);
    // The highest rank, without the codes that it would take.
    refused_when(&mut bench, ErrorCode::Truncated, |a| a.patches[1].scales = vec![f16; 256]);
    bench.still_works();
}

#[test]
fn bad_25_scales_that_are_no_scales() {
    let mut bench = Bench::new();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, -0.25] {
        refused_when(&mut bench, ErrorCode::BadScale, |a| {
            a.patches[2].scales[3] = half::f16::from_f32(value);
        });
        refused_when(&mut bench, ErrorCode::BadScale, |a| {
            a.head.as_mut().unwrap().scales[1] = half::f16::from_f32(value);
        });
    }
    for alpha in [f32::NAN, 0.0, -1.0, f32::INFINITY] {
        refused_when(&mut bench, ErrorCode::BadScale, |a| a.alpha = alpha);
    }
    refused_when(&mut bench, ErrorCode::NotFinite, |a| a.head.as_mut().unwrap().bias[0] = f32::NAN);
    // The smallest f16 is subnormal there and a good number as f32.
    let mut content = data(1);
    content.patches[0].scales[0] = half::f16::from_bits(1);
    assert!(matches!(bench.upload(None, &signed(&content, 1000)), Said::Installed { .. }));
    bench.still_works();
}

#[test]
fn bad_26_sites_that_overlap_do_not_ascend_or_do_not_exist() {
    let mut bench = Bench::new();
    refused_when(&mut bench, ErrorCode::DuplicateSite, |a| a.patches[1].site = 0);
    refused_when(&mut bench, ErrorCode::SitesOutOfOrder, |a| a.patches.swap(0, 1));
    refused_when(&mut bench, ErrorCode::UnknownSite, |a| a.patches[2].site = 15);
    refused_when(&mut bench, ErrorCode::UnknownSite, |a| a.patches[2].site = u16::MAX);
    let biases = || fixture::biases(&fixture::decoder(), 3);
    refused_when(&mut bench, ErrorCode::BiasesOutOfOrder, |a| {
        a.biases = biases();
        a.biases.swap(0, 1);
    });
    refused_when(&mut bench, ErrorCode::UnknownBias, |a| {
        a.biases = biases();
        a.biases[0].tensor = 0;
    });
    refused_when(&mut bench, ErrorCode::NotFinite, |a| {
        a.biases = biases();
        a.biases[1].values[2] = f32::NAN;
    });
    refused_when(&mut bench, ErrorCode::ShapeMismatch, |a| {
        a.biases = biases();
        a.biases[1].values.pop();
    });
    refused_when(&mut bench, ErrorCode::Truncated, |a| _ = a.patches[0].lora_a.pop());
    refused_when(&mut bench, ErrorCode::TrailingBytes, |a| a.patches[0].lora_a.push(1));
    refused_when(&mut bench, ErrorCode::OutOfRange, |a| a.patches[0].lora_b[0] = -128);
    refused_when(&mut bench, ErrorCode::NothingToApply, |a| {
        a.patches.clear();
        a.head = None;
    });
    refused_when(&mut bench, ErrorCode::ShapeMismatch, |a| a.head.as_mut().unwrap().labels.truncate(2));
    refused_when(&mut bench, ErrorCode::OutOfRange, |a| a.self_test.rows = 0);
    refused_when(&mut bench, ErrorCode::OutOfRange, |a| a.task.clear());
    bench.still_works();
}

#[test]
fn bad_27_another_base() {
    let mut bench = Bench::new();
    let writes = bench.flash().writes;
    refused_when(&mut bench, ErrorCode::WrongBase, |a| a.base_id = BaseId([7; 16]));
    assert_eq!(bench.flash().writes, writes, "refused before anything is erased");
    bench.still_works();
}

#[test]
fn bad_28_another_product() {
    let mut bench = Bench::new();
    for product in [ProductId::of("another"), ProductId::NONE, ProductId([0xff; 16])] {
        let mut file = good(1);
        let header = Header { product, ..header::check(&file).unwrap() };
        resign(&mut file, &header);
        refused(&mut bench, &file, ErrorCode::WrongProduct);
    }
    assert_eq!(bench.flash().erases, 0);
    bench.still_works();
}

#[test]
fn bad_29_sequence_numbers_that_are_old_or_far_ahead() {
    let mut bench = Bench::new();
    assert!(matches!(bench.upload(None, &good(500)), Said::Installed { .. }));
    for sequence in [0, 1, 499, 500] {
        refused(&mut bench, &signed(&data(sequence), 999), ErrorCode::Stale);
    }
    assert_eq!(
        bench.upload(None, &good(500)),
        Said::Installed { slot: 0, sequence: 500 },
        "the same file again"
    );
    for sequence in [1501, 70_000, u32::MAX] {
        refused(&mut bench, &signed(&data(sequence), 1000), ErrorCode::TooFar);
    }
    // The floor outlives the file that raised it, and a reset.
    bench.ask(&Request::Remove { slot: 0 });
    bench.reset();
    refused(&mut bench, &good(499), ErrorCode::Stale);
    assert!(matches!(bench.upload(None, &good(1500)), Said::Installed { .. }), "as far as it goes");
    bench.still_works();
}

#[test]
fn bad_30_signatures_that_are_none() {
    let mut bench = Bench::new();
    let file = good(1);
    let start = file.len() - SIGNATURE_BYTES;
    let genuine: [u8; 64] = file[start..].try_into().unwrap();
    let order = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut signatures = vec![[0; 64], [0xff; 64], [1; 64]];
    for s in [order, [0xff; 32], [0; 32]] {
        let mut other = genuine;
        other[32..].copy_from_slice(&s);
        signatures.push(other);
    }
    // R of small order: the neutral element, and the points of order two and four.
    let mut minus_one = [0xff; 32];
    (minus_one[0], minus_one[31]) = (0xec, 0x7f);
    let mut one = [0; 32];
    one[0] = 1;
    for r in [one, minus_one, [0; 32]] {
        let mut other = genuine;
        other[..32].copy_from_slice(&r);
        signatures.push(other);
        other[32..].fill(0);
        signatures.push(other);
    }
    for bit in 0..512 {
        let mut other = genuine;
        other[bit / 8] ^= 1 << (bit % 8);
        signatures.push(other);
    }
    let mut bad = file.clone();
    for signature in signatures {
        bad[start..].copy_from_slice(&signature);
        refused(&mut bench, &bad, ErrorCode::BadSignature);
    }
    // Another key: named as itself, and under the name of ours.
    let other = SigningKey::from_bytes(&[9; 32]);
    let (message, _) = header::split_signature(&file).unwrap();
    bad[start..].copy_from_slice(&other.sign(message).to_bytes());
    refused(&mut bench, &bad, ErrorCode::BadSignature);
    let key_id = KeyId::of(&other.verifying_key().to_bytes());
    let header = Header { key_id, ..header::check(&file).unwrap() };
    resign(&mut bad, &header);
    refused(&mut bench, &bad, ErrorCode::UnknownKey);
    refused(&mut bench, &data(1).write().unwrap(), ErrorCode::Unsigned);
    bench.still_works();
}

#[test]
fn bad_31_flipped_bits_of_the_payload() {
    let mut bench = Bench::new();
    let file = good(1);
    let mut random = XorShift32::new(31);
    let payload = 400 * 8..(file.len() - TRAILER_BYTES) * 8;
    let mut bits = vec![payload.start, payload.end - 1];
    bits.extend((0..12).map(|_| payload.start + random.next_u32() as usize % payload.len()));
    for bit in bits {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        refused(&mut bench, &bad, ErrorCode::Corrupt);
        // With the checksum made right again it is the signature's turn.
        let end = bad.len() - TRAILER_BYTES;
        let crc = rankpatch_format::crc32(&bad[..end]).to_le_bytes();
        bad[end..end + 4].copy_from_slice(&crc);
        refused(&mut bench, &bad, ErrorCode::BadSignature);
    }
    bench.still_works();
}

#[test]
fn bad_32_a_signature_of_another_file() {
    let mut bench = Bench::new();
    let (one, other) = (good(1), good(2));
    let mut spliced = one.clone();
    spliced[one.len() - 64..].copy_from_slice(&other[other.len() - 64..]);
    refused(&mut bench, &spliced, ErrorCode::BadSignature);
    // The header of one on the body of the other.
    let mut spliced = other.clone();
    spliced[..HEADER_BYTES].copy_from_slice(&one[..HEADER_BYTES]);
    refused(&mut bench, &spliced, ErrorCode::Corrupt);
    bench.still_works();
}

#[test]
fn bad_33_headers_that_claim_more_than_is_signed() {
    let mut bench = Bench::new();
    for length in [0u16, 63, 65, 128, u16::MAX] {
        assert_eq!(announced(&mut bench, 4, &length.to_le_bytes()), Said::Refused(ErrorCode::ShapeMismatch));
    }
    // A file announced as longer or shorter than its own header says, sent and finished.
    let file = good(1);
    for len in [file.len() + 4, file.len() - 4] {
        let mut sent = file.clone();
        sent.resize(len, 0);
        let mut header = header::check(&file).unwrap();
        header.file_bytes = len as u32;
        let sha256 = Announcement::of(&sent).sha256;
        let said = bench.ask(&Request::Begin { slot: None, header: &header.to_bytes(), sha256: &sha256 });
        assert!(matches!(said, Said::Progress { next: 0, .. }), "{said:?}");
        bench.send_from(0, &sent);
        let code = if len > file.len() { ErrorCode::TrailingBytes } else { ErrorCode::Truncated };
        assert_eq!(bench.ask(&Request::Finish), Said::Refused(code));
    }
    bench.still_works();
}

#[test]
fn bad_34_payloads_longer_than_said() {
    let mut bench = Bench::new();
    let file = good(1);
    bench.begin(None, &file);
    bench.send_from(0, &file);
    for extra in [1, 32, 1000] {
        let said = bench.chunk((file.len() as u32).next_multiple_of(32), &vec![7; extra]);
        assert_eq!(said, Said::Refused(ErrorCode::TrailingBytes), "{extra} more");
    }
    let last = file.len() / 32 * 32;
    let more = [&file[last..], &[1; 64]].concat();
    assert_eq!(bench.chunk(last as u32, &more), Said::Refused(ErrorCode::TrailingBytes));
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { .. }));
    bench.still_works();
}
