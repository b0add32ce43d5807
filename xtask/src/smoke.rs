//! Tests of the board support in QEMU with the board's `smoke` program.

mod flash_boards;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::board::Board;
use crate::qemu::{LISTENING, Options, Qemu};
use crate::{firmware, output_folder, sections};

const TIMEOUT: Duration = Duration::from_mins(1);
const BOARDS: [&str; 2] = ["qemu-mps2-an386", "qemu-mps3-an547"];

/// Boots the smoke program with a base partition full of a pattern.
fn boot(board: &str, count_instructions: bool) -> (Board, Qemu) {
    let board = Board::find(board).unwrap();
    let elf = firmware::build(&board, "smoke").unwrap();
    let options = Options {
        count_instructions,
        images: vec![(base_image(&board), board.base.origin)],
        ..Options::default()
    };
    let qemu = Qemu::boot(&board, &elf, &options).unwrap();
    (board, qemu)
}

/// A file as long as the base partition: byte i is i mod 251.
fn base_image(board: &Board) -> PathBuf {
    let folder = output_folder("xtask-tests").unwrap();
    let file = folder.join(format!("base-{}-{:?}.bin", board.name, thread::current().id()));
    fs::write(&file, pattern(board.base.length as usize)).unwrap();
    file
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// Sends a command with `data` behind it and returns the first `answer` bytes that come back.
fn transfer(qemu: &Qemu, command: u8, data: &[u8], answer: usize) -> Vec<u8> {
    let mut stream = qemu.connect(TIMEOUT).unwrap();
    let mut head = vec![command];
    head.extend((data.len() as u32).to_le_bytes());
    stream.write_all(&head).unwrap();
    let mut writer: TcpStream = stream.try_clone().unwrap();
    let mut back = vec![0; answer];
    thread::scope(|scope| {
        scope.spawn(move || writer.write_all(data).unwrap());
        stream.read_exact(&mut back).unwrap();
    });
    back
}

#[test]
fn partitions_flash_rules_and_exact_instruction_counts() {
    for name in BOARDS {
        partitions_rules_and_counts(name);
    }
}

fn partitions_rules_and_counts(name: &str) {
    let (board, qemu) = boot(name, true);
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
    assert_eq!(texts[3], format!("flash {} bytes keeps the rules", board.slots.length));
    assert_eq!(texts[4], "0 of 2000 short loops counted wrongly");
    for (text, instructions) in texts[5..].iter().zip([2000, 200_000, 3_000_000]) {
        let expected =
            format!("loop of {instructions} instructions: counter {instructions}, systick {instructions}");
        assert_eq!(*text, expected);
    }
    assert_eq!(texts[8], format!("arena {} bytes, stack {} bytes", board.psram.length, board.stack.length));
    let peak: u64 = texts[9].split(' ').nth(2).unwrap().parse().unwrap();
    assert!((200..4096).contains(&peak), "{}", texts[9]);
    assert_eq!(qemu.stop(), "");
}

#[test]
fn no_byte_is_lost_at_full_speed_or_behind_a_busy_device() {
    // Several times the device's queue, so that the sender has to be held back, and not periodic in any power of two.
    let data = pattern(50_000);
    for (board, count_instructions) in BOARDS.into_iter().flat_map(|board| [(board, false), (board, true)]) {
        let (_, qemu) = boot(board, count_instructions);
        assert!(transfer(&qemu, b'e', &data, data.len()) == data);
        // A second client, and a device that does not listen for the first 20 million instructions.
        assert!(transfer(&qemu, b'b', &data, data.len()) == data);
        assert_eq!(transfer(&qemu, b'c', &data, 1), b".");
        qemu.log().wait_for("ready", TIMEOUT).unwrap();
    }
}

#[test]
fn success_panic_and_fault_end_the_emulator_with_their_own_code() {
    let endings = [(b'q', 0, "ready"), (b'p', 1, "smoke.rs:"), (b'f', 1, "hard fault at pc 0x")];
    for (board, (command, code, last)) in BOARDS.into_iter().flat_map(|board| endings.map(|end| (board, end)))
    {
        let (_, qemu) = boot(board, true);
        qemu.connect(TIMEOUT).unwrap().write_all(&[command]).unwrap();
        let (status, log) = qemu.wait(TIMEOUT).unwrap();
        let line = log.last().unwrap();
        assert!(line.text.contains(last), "{line}");
        assert_eq!(line.level, if code == 0 { "info" } else { "error" });
        assert_eq!(status.code(), Some(code));
    }
}

#[test]
fn sections_are_told_apart_by_memory_and_by_what_the_flash_stores() {
    let board = Board::find(BOARDS[0]).unwrap();
    let sections = sections::read(&board, &firmware::build(&board, "smoke").unwrap()).unwrap();
    let find = |name: &str| sections.iter().find(|section| section.name == name).unwrap();
    for (name, memory, stored) in
        [(".text", "flash", true), (".bss", "ram", false), (".psram", "psram", false)]
    {
        let section = find(name);
        assert_eq!((section.memory, section.flash_bytes), (memory, if stored { section.bytes } else { 0 }));
    }
    assert_eq!(find(".psram").bytes, board.psram.length);
    assert!(sections.iter().all(|section| !section.name.starts_with(".debug") && section.name != ".defmt"));
}

#[test]
fn a_machine_that_does_not_exist_is_reported_with_qemus_own_words() {
    let mut board = Board::find(BOARDS[0]).unwrap();
    let elf = firmware::build(&board, "smoke").unwrap();
    board.qemu.machine = "nonesuch".to_owned();
    let error = format!("{:#}", Qemu::boot(&board, &elf, &Options::default()).unwrap_err());
    assert!(error.contains("unsupported machine type"), "{error}");
    let images = vec![(PathBuf::from("no/such/base.rpb"), board.base.origin)];
    let error = Qemu::boot(&board, &elf, &Options { images, ..Options::default() }).unwrap_err().to_string();
    assert_eq!(error, "expected an image to place at 0x200000, found no file no/such/base.rpb");
    board.qemu.system = "qemu-system-nonesuch".to_owned();
    let error = Qemu::boot(&board, &elf, &Options::default()).unwrap_err();
    assert!(error.is::<crate::NeedsSetup>(), "{error}");
}
