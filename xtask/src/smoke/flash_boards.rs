//! The boards whose slots are in flash behind a controller, with the shared `smoke` program.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use super::{TIMEOUT, pattern, transfer};
use crate::board::Board;
use crate::qemu::{LISTENING, Options, Qemu};
use crate::{firmware, output_folder};

const BOARDS: [&str; 2] = ["qemu-microbit", "qemu-riscv32-virt"];

fn boot(name: &str, count_instructions: bool, flash_file: Option<PathBuf>) -> (Board, Qemu) {
    let board = Board::find(name).unwrap();
    let elf = firmware::build(&board, "smoke").unwrap();
    let images = vec![(super::base_image(&board), board.base.origin)];
    let options = Options { count_instructions, images, flash_file, ..Options::default() };
    let qemu = Qemu::boot(&board, &elf, &options).unwrap();
    (board, qemu)
}

/// Sends a command without data and returns the byte that answers it.
fn ask(qemu: &Qemu, command: u8) -> u8 {
    let mut stream = qemu.connect(TIMEOUT).unwrap();
    stream.write_all(&[command]).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    answer[0]
}

#[test]
fn partitions_and_exact_instruction_counts() {
    for name in BOARDS {
        let (board, qemu) = boot(name, true, None);
        qemu.log().wait_for("ready", TIMEOUT).unwrap();
        let log = qemu.log().lines();
        let texts: Vec<_> = log.iter().map(|line| line.text.as_str()).collect();
        assert!(log.iter().all(|line| line.level == "info"), "{texts:#?}");
        assert_eq!(texts[0], format!("{name} is {LISTENING}"));
        assert_eq!(texts[1], format!("core {}", board.core));
        let image = pattern(board.base.length as usize);
        let ends = [&image[..4], &image[image.len() - 4..]].map(|word| {
            let bytes: Vec<_> = word.iter().map(|byte| format!("{byte:#04x}")).collect();
            format!("[{}]", bytes.join(", "))
        });
        assert_eq!(texts[2], format!("base {} to {}", ends[0], ends[1]));
        assert_eq!(texts[3], "0 of 2000 short loops counted wrongly", "{name}");
        for (text, instructions) in texts[4..].iter().zip([2000, 200_000, 3_000_000]) {
            assert_eq!(*text, format!("loop of {instructions} instructions: counter {instructions}"));
        }
        let sizes = format!("arena {} bytes, stack {} bytes", board.psram.length, board.stack.length);
        assert_eq!(texts[7], sizes);
        let peak: u64 = texts[8].split(' ').nth(2).unwrap().parse().unwrap();
        assert!((200..4096).contains(&peak), "{}", texts[8]);
        assert_eq!(qemu.stop(), "");
    }
}

#[test]
fn no_byte_is_lost_at_full_speed_or_behind_a_busy_device() {
    let data = pattern(50_000);
    for name in BOARDS {
        for count_instructions in [false, true] {
            let (_, qemu) = boot(name, count_instructions, None);
            assert!(transfer(&qemu, b'e', &data, data.len()) == data, "{name}");
            assert!(transfer(&qemu, b'b', &data, data.len()) == data, "{name} after a busy time");
            assert_eq!(transfer(&qemu, b'c', &data, 1), b".");
        }
    }
}

/// The rules of NOR flash, and what was written is there after a reset and, where a file backs the flash, after the
/// emulator was killed.
#[test]
fn flash_keeps_its_rules_and_its_content() {
    for name in BOARDS {
        let file = output_folder("xtask-tests").unwrap().join(format!("{name}.flash"));
        let _ = fs::remove_file(&file);
        let (board, mut qemu) = boot(name, false, Some(file.clone()));
        assert_eq!(ask(&qemu, b'k'), b'n', "{name}: an empty flash");
        assert_eq!(ask(&qemu, b'w'), b'.');
        let line = format!("flash {} bytes keeps the rules", board.slots.length);
        qemu.log().wait_for(&line, TIMEOUT).unwrap();
        assert_eq!(ask(&qemu, b'k'), b'y', "{name}: what was written");
        qemu.reset().unwrap();
        assert_eq!(ask(&qemu, b'k'), b'y', "{name}: after a reset");
        // What the machine shows is what the file or the dump holds.
        let dump = output_folder("xtask-tests").unwrap().join(format!("{name}.dump"));
        let slot = board.slots.origin + board.slot_bytes;
        qemu.monitor().save_memory(slot, 16, &dump).unwrap();
        assert_eq!(fs::read(&dump).unwrap(), [&b"rankpat\n"[..], &[0xFF; 8]].concat(), "{name}");
        qemu.stop();
        if board.qemu.pflash_bytes > 0 {
            let (_, qemu) = boot(name, false, Some(file));
            assert_eq!(ask(&qemu, b'k'), b'y', "{name}: in the next emulator");
        }
    }
}

#[test]
fn success_panic_and_fault_end_the_emulator_with_their_own_code() {
    for name in BOARDS {
        for (command, code, last) in [(b'q', 0, "ready"), (b'p', 1, "smoke.rs:"), (b'f', 1, " at pc 0x")] {
            let (_, qemu) = boot(name, false, None);
            qemu.connect(TIMEOUT).unwrap().write_all(&[command]).unwrap();
            let (status, log) = qemu.wait(TIMEOUT).unwrap();
            let line = log.last().unwrap();
            assert!(line.text.contains(last), "{name}: {line}");
            assert_eq!(status.code(), Some(code), "{name}: {line}");
        }
    }
}

#[test]
fn a_refused_command_of_the_monitor_is_reported_with_qemus_own_words() {
    let (_, mut qemu) = boot(BOARDS[0], false, None);
    let error = qemu.monitor().execute("nonesuch", &serde_json::json!({})).unwrap_err().to_string();
    assert!(error.starts_with("QEMU refuses nonesuch") && error.contains("has not been found"), "{error}");
}
