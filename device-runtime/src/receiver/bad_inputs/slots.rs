//! 35 to 50: slots in use, flash that fails, resets, and senders that do not stop. Power cuts (39), corrupted journals (46, 47) and long
//! wear (50) are tested to exhaustion by the simulator in `tests/`; here they go through the receiver.

use super::*;
use crate::slots::Activation;
use rankpatch_format::digest::XorShift32;

fn activation(slot: usize) -> Activation {
    Activation { slot, flag: false }
}

#[test]
fn bad_35_all_slots_full() {
    let mut bench = Bench::new();
    for sequence in 1..=3 {
        assert!(matches!(bench.upload(None, &good(sequence)), Said::Installed { .. }));
    }
    // Full, but only two are needed: the third makes room.
    bench.slots().start_trial(activation(0)).unwrap();
    bench.slots().confirm().unwrap();
    bench.slots().start_trial(activation(1)).unwrap();
    assert!(matches!(bench.upload(None, &good(4)), Said::Installed { slot: 2, .. }));
    for slot in [0, 1] {
        assert_eq!(bench.upload(Some(slot), &good(5)), Said::Refused(ErrorCode::SlotActive));
    }
    assert_eq!(bench.upload(Some(3), &good(5)), Said::Refused(ErrorCode::NoSuchSlot));
    bench.still_works();
    // One slot, and it is active: there is no place for anything.
    let layout = Layout { n_slots: 1, ..layout() };
    let flash = Flash::of(vec![0xff; layout.partition_bytes(PAGE)]);
    let mut bench = Bench { slots: Some(Slots::mount(flash, layout).unwrap()), ..Bench::new() };
    assert!(matches!(bench.upload(None, &good(1)), Said::Installed { .. }));
    bench.slots().start_trial(activation(0)).unwrap();
    assert_eq!(bench.upload(None, &good(2)), Said::Refused(ErrorCode::NoFreeSlot));
}

#[test]
fn bad_36_the_active_slot_as_target() {
    let mut bench = Bench::new();
    assert!(matches!(bench.upload(Some(1), &good(1)), Said::Installed { .. }));
    bench.slots().start_trial(activation(1)).unwrap();
    let before = bench.flash().bytes.clone();
    assert_eq!(bench.upload(Some(1), &good(2)), Said::Refused(ErrorCode::SlotActive));
    assert_eq!(bench.ask(&Request::Remove { slot: 1 }), Said::Refused(ErrorCode::SlotActive));
    assert_eq!(bench.flash().bytes, before, "not a bit has changed");
    bench.slots().confirm().unwrap();
    assert_eq!(bench.upload(Some(1), &good(2)), Said::Refused(ErrorCode::SlotActive));
    bench.still_works();
}

/// A pinned slot is one that the flash driver refuses to write, whatever the slots' journal thinks.
#[test]
fn bad_37_a_slot_that_is_being_read() {
    let mut bench = Bench::new();
    assert!(matches!(bench.upload(Some(1), &good(1)), Said::Installed { .. }));
    let before = bench.flash().bytes.clone();
    let journal = N_SLOTS * SLOT;
    bench.flash().fault = Fault::EraseError;
    bench.flash().fault_at = 0;
    let said = bench.upload(Some(1), &good(2));
    assert_eq!(said, Said::Refused(ErrorCode::Flash));
    assert_eq!(bench.flash().bytes[..journal], before[..journal], "the file is still read as it was");
    bench.flash().fault = Fault::None;
    bench.still_works();
}

#[test]
fn bad_38_flash_that_fails_or_lies() {
    let file = good(1);
    for fault in
        [Fault::WriteError, Fault::EraseError, Fault::SilentWrite, Fault::SilentErase, Fault::FlippedBit]
    {
        for fault_at in 0..60 {
            // Old content in every page, so that an erase that did not happen shows.
            let mut flash = Flash::of(vec![0x00; layout().partition_bytes(PAGE)]);
            (flash.fault, flash.fault_at) = (fault, fault_at);
            let mut bench = Bench::on(flash);
            let said = (0..2).map(|_| match bench.begin(None, &file) {
                Said::Progress { next, .. } => {
                    let mut at = next as usize;
                    while at < file.len() {
                        let end = file.len().min(at + CHUNK);
                        match bench.chunk(at as u32, &file[at..end]) {
                            Said::Progress { next, .. } if next as usize == end => at = end,
                            other => return other,
                        }
                    }
                    bench.ask(&Request::Finish)
                }
                other => other,
            });
            let said = said.last().unwrap();
            if let Said::Installed { slot, .. } = said {
                let stored = bench.slots().verified(slot.into()).map(<[u8]>::to_vec);
                assert_eq!(stored.as_deref(), Ok(&file[..]), "{fault:?} {fault_at}: said to be there");
            } else {
                assert!(matches!(said, Said::Refused(_)), "{fault:?} {fault_at}: {said:?}");
            }
            // A flash that works again works again. What it lied about is found by the hash of an upload that goes on after it,
            // which is then begun anew.
            bench.flash().fault = Fault::None;
            bench.reset();
            let next = good(bench.slots().state().floor + 1);
            let said = bench.upload(None, &next);
            assert!(
                matches!(said, Said::Installed { .. } | Said::Refused(ErrorCode::Corrupt)),
                "{fault:?} {fault_at}: {said:?}"
            );
            bench.still_works();
        }
    }
}

/// A cut after every operation of an upload through the receiver: afterwards the upload goes on, and the older adapter was
/// there all the time.
#[test]
fn bad_39_power_cuts_at_every_operation() {
    let (old, new) = (good(1), good(2));
    let mut operations = 0;
    loop {
        let mut bench = Bench::new();
        assert!(matches!(bench.upload(Some(0), &old), Said::Installed { .. }));
        bench.slots().start_trial(activation(0)).unwrap();
        bench.slots().confirm().unwrap();
        let flash = bench.flash();
        (flash.fault, flash.fault_at) = (Fault::WriteError, flash.erases + flash.writes + operations);
        let cut = match bench.begin(Some(1), &new) {
            Said::Progress { next, .. } => {
                let mut at = next as usize;
                while at < new.len() {
                    let end = new.len().min(at + CHUNK);
                    if !matches!(bench.chunk(at as u32, &new[at..end]), Said::Progress { .. }) {
                        break;
                    }
                    at = end;
                }
                at < new.len() || !matches!(bench.ask(&Request::Finish), Said::Installed { .. })
            }
            _ => true,
        };
        bench.flash().fault = Fault::None;
        bench.reset();
        assert_eq!(bench.slots().state().active(), Some(activation(0)), "cut after {operations}");
        assert_eq!(bench.slots().verified(0), Ok(&old[..]));
        assert!(
            matches!(bench.upload(Some(1), &new), Said::Installed { sequence: 2, .. }),
            "cut after {operations}"
        );
        if !cut {
            break;
        }
        operations += 1;
    }
    assert!(operations > 20, "only {operations} cuts");
}

#[test]
fn bad_40_a_trial_that_crashes_again_and_again() {
    let mut bench = Bench::new();
    for sequence in 1..=2 {
        assert!(matches!(bench.upload(None, &good(sequence)), Said::Installed { .. }));
    }
    bench.slots().start_trial(activation(0)).unwrap();
    bench.slots().confirm().unwrap();
    for crash in 0..20 {
        bench.slots().start_trial(activation(1)).unwrap();
        bench.reset();
        assert_eq!(bench.slots().state().active(), Some(activation(0)), "after crash {crash}");
        assert_eq!(bench.slots().state().rolled_back, Some(1));
    }
    bench.still_works();
}

#[test]
fn bad_41_a_watchdog_during_erasing() {
    let mut bench = Bench::new();
    // As firmware does at its start.
    bench.slots().prepare().unwrap();
    let file = good(1);
    bench.begin(None, &file);
    assert!(bench.flash().erases >= 4, "a few pages");
    assert_eq!(bench.most_erases, 1, "one at a time, with time for others between them");
    // Other requests are answered while pages are erased.
    bench.ask(&Request::Abort);
    let announcement = Announcement::of(&file);
    let begin = Request::Begin { slot: Some(1), header: &file[..64], sha256: &announcement.sha256 };
    let wire = [frame(1, &begin), frame(2, &Request::Slot { slot: 2 }), frame(3, &Request::Info)].concat();
    let said = bench.wire(&wire);
    let expected = [Said::Empty { slot: 2 }, Said::Application, Said::Progress { slot: 1, next: 0 }];
    assert_eq!(said, expected);
    bench.still_works();
}

#[test]
fn bad_42_a_confirmation_that_never_comes() {
    let mut bench = Bench::new();
    assert!(matches!(bench.upload(None, &good(1)), Said::Installed { .. }));
    bench.slots().start_trial(activation(0)).unwrap();
    bench.reset();
    assert_eq!(bench.slots().state().active(), None, "the plain base is what was confirmed before");
    bench.still_works();
}

#[test]
fn bad_43_rolling_back_while_uploading() {
    let mut bench = Bench::new();
    assert!(matches!(bench.upload(Some(0), &good(1)), Said::Installed { .. }));
    bench.slots().start_trial(activation(0)).unwrap();
    let file = good(2);
    bench.begin(Some(1), &file);
    bench.send_from(0, &file[..1024]);
    assert_eq!(bench.slots().roll_back(0), Ok(None));
    bench.send_from(1024, &file);
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { slot: 1, sequence: 2 }));
    assert_eq!(bench.slots().state().rolled_back, Some(0));
    bench.still_works();
}

/// Two hosts, frames of one between the frames of the other, with the same numbers.
#[test]
fn bad_44_two_senders_at_once() {
    let mut bench = Bench::new();
    let (one, other) = (good(1), good(2));
    bench.begin(None, &one);
    assert_eq!(bench.begin(None, &other), Said::Refused(ErrorCode::UploadUnderWay));
    // The same file from both: each chunk is stored once and accepted twice.
    for at in (0..one.len()).step_by(256) {
        let data = &one[at..one.len().min(at + 256)];
        let next = (at + data.len()) as u32;
        for _ in 0..2 {
            assert_eq!(bench.chunk(at as u32, data), Said::Progress { slot: 0, next });
        }
    }
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { .. }));
    assert!(matches!(bench.ask(&Request::Finish), Said::Installed { .. }));
    bench.still_works();
}

/// The header has no expiry, since devices have no clock; a file that carries one, in a reserved field, is refused and not accepted
/// for ever.
#[test]
fn bad_45_an_expiry_without_a_clock() {
    let mut bench = Bench::new();
    let mut file = good(1);
    file[28..32].copy_from_slice(&1_900_000_000u32.to_le_bytes());
    assert_eq!(bench.begin(None, &file), Said::Refused(ErrorCode::Malformed));
    bench.still_works();
}

#[test]
fn bad_46_a_journal_that_is_wholly_corrupted() {
    let mut random = XorShift32::new(46);
    for round in 0..40 {
        let mut bench = Bench::new();
        assert!(matches!(bench.upload(None, &good(1)), Said::Installed { .. }));
        bench.slots().start_trial(activation(0)).unwrap();
        bench.slots().confirm().unwrap();
        let mut bytes = bench.slots.take().unwrap().into_flash().bytes;
        for byte in &mut bytes[N_SLOTS * SLOT..] {
            *byte = if round == 0 { 0 } else { random.next_u32() as u8 };
        }
        let mut bench = Bench::on(Flash::of(bytes));
        assert_eq!(bench.slots().state().active(), None, "round {round}: the base runs alone");
        bench.still_works();
    }
}

#[test]
fn bad_47_a_first_start_on_zeros_or_noise() {
    let mut random = XorShift32::new(47);
    for fill in 0..20 {
        let len = layout().partition_bytes(PAGE);
        let bytes = match fill {
            0 => vec![0; len],
            1 => vec![0xff; len],
            _ => (0..len).map(|_| random.next_u32() as u8).collect(),
        };
        let mut bench = Bench::on(Flash::of(bytes));
        assert_eq!((bench.slots().state().active(), bench.slots().state().floor), (None, 0));
        bench.still_works();
    }
}

/// The largest codes and scales that a checked file can hold: products saturate or become infinite, and nothing panics; without
/// the adapter the base computes what it did.
#[test]
fn bad_48_numbers_that_are_absurd_but_valid() {
    let mut content = data(1);
    // Higher ranks than its matrices are no use to this base, and its arena has no room for them.
    for patch in &mut content.patches {
        let (rank, kept) = (patch.scales.len(), patch.scales.len().min(crate::MIN_RANK));
        patch.lora_a.truncate(patch.lora_a.len() / rank * kept);
        patch.lora_b.truncate(patch.lora_b.len() / rank * kept);
        patch.scales.truncate(kept);
    }
    for patch in &mut content.patches {
        patch.scales.fill(half::f16::MAX);
        patch.lora_a.fill(127);
        patch.lora_b.fill(-127);
    }
    let head = content.head.as_mut().unwrap();
    head.scales.fill(half::f16::MAX);
    head.codes.fill(127);
    let file = signed(&content, 1000);
    let mut bench = Bench::new();
    let Said::Installed { slot, .. } = bench.upload(None, &file) else { panic!("it is valid") };
    let base = base();
    let mut arena = Aligned::new(&vec![0; crate::arena_bytes(&base, 24)]);
    let mut engine = crate::Engine::new(base, arena.bytes_mut(), 24).unwrap();
    let tokens = [1u16, 50, 200, 7, 9];
    let plain = engine.run_tokens(&tokens).unwrap().to_vec();
    let stored = Aligned::new(bench.slots().file(slot.into()).unwrap());
    engine.attach(crate::Adapter::new(stored.bytes(), &base).unwrap()).unwrap();
    for _ in 0..3 {
        engine.reset();
        let _ = engine.run_tokens(&tokens).unwrap();
        assert!(
            matches!(engine.self_test(), Err(crate::Error::SelfTestFailed { .. })),
            "found out by its self-test"
        );
    }
    engine.detach();
    assert_eq!(engine.run_tokens(&tokens).unwrap(), plain);
    bench.still_works();
}

/// A sender that takes for ever holds a slot and nothing else: others are answered meanwhile, and can end it.
#[test]
fn bad_49_a_sender_that_drips() {
    let mut bench = Bench::new();
    let file = good(1);
    bench.begin(None, &file);
    let chunk = frame(9, &Request::Chunk { answer: true, offset: 0, data: &file[..64] });
    for byte in &chunk[..chunk.len() - 1] {
        assert_eq!(bench.wire(&[*byte]), [], "each byte is taken and answered by nothing");
    }
    assert_eq!(bench.wire(&[0]), [Said::Progress { slot: 0, next: 64 }]);
    assert_eq!(bench.ask(&Request::Slot { slot: 1 }), Said::Empty { slot: 1 });
    assert_eq!(bench.ask(&Request::Abort), Said::Done);
    bench.still_works();
}

/// Hundreds of installs through the receiver; ten thousand are the simulator's.
#[test]
fn bad_50_installs_without_end() {
    let mut bench = Bench::new();
    for sequence in 1..=300 {
        let said = bench.upload(None, &good(sequence));
        assert!(matches!(said, Said::Installed { sequence: found, .. } if found == sequence), "{said:?}");
    }
    let wear = bench.slots().state().wear;
    let (least, most) = (wear[..N_SLOTS].iter().min().unwrap(), wear[..N_SLOTS].iter().max().unwrap());
    assert!(most <= &(2 * least), "{:?}", &wear[..N_SLOTS]);
}
