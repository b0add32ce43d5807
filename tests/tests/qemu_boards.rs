//! The boards whose slots are in real flash, in QEMU, over their serial lines: same bits as the host, adapters that
//! survive resets and killed emulators, and resets in the middle of uploads, after which the device runs the old adapter
//! or the new one, bit for bit, and the upload goes on.

use std::cell::{Cell, RefCell};
use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rankpatch::base::Image;
use rankpatch::client::{ClientError, Device, Options, Sampling, Tcp, Transport};
use rankpatch::keys::SecretKey;
use rankpatch::sim::{self, Input, Simulator};
use rankpatch_format::ProductId;
use rankpatch_format::adapter::Adapter;
use rankpatch_format::digest::XorShift32;
use rankpatch_format::header::HEADER_BYTES;
use rankpatch_format::layout::Layout;
use rankpatch_format::link::{self, Deframer, Mode, Request, Response};
use rankpatch_runtime::slots::Announcement;
use xtask::board::Board;
use xtask::firmware;
use xtask::qemu::{Options as Emulation, Qemu};

use crate::{adapter, image_with, path};

const MICROBIT: &str = "qemu-microbit";
const RISCV: &str = "qemu-riscv32-virt";
/// What the network reads in these tests; 17 tokens at most, which is what the smallest board keeps.
const TEXT: &str = "play a song";
/// Resets while an adapter is uploaded, activated and confirmed.
const MICROBIT_RESETS: usize = 150;
const RISCV_RESETS: usize = 50;
/// Bytes that go to the device behind the last byte of a file: to finish, activate and confirm.
const LAST_BYTES: u32 = 48;

/// A board with its firmware, its base and two adapters, and what the host computes with them.
struct Bench {
    board: Board,
    elf: PathBuf,
    base: PathBuf,
    /// The file behind the flash, on boards that have one.
    flash: Option<PathBuf>,
    plain: Simulator,
    files: [Vec<u8>; 2],
    key: SecretKey,
    sequence: Cell<u32>,
}

impl Bench {
    fn new(name: &str, test: &str) -> Self {
        let board = Board::find(name).unwrap();
        let elf = firmware::build(&board, "firmware").unwrap();
        let folder = path("target/tests");
        std::fs::create_dir_all(&folder).unwrap();
        let image: Image = image_with(&board.example.model, Layout::RowMajor, board.example.pass_rows);
        let base = folder.join(format!("{name}-{test}.rpb"));
        std::fs::write(&base, image.bytes()).unwrap();
        let flash = folder.join(format!("{name}-{test}.flash"));
        let _ = std::fs::remove_file(&flash);
        Self {
            flash: (board.qemu.pflash_bytes > 0).then_some(flash),
            elf,
            base,
            plain: Simulator::new(image).unwrap(),
            files: board.example.tasks.each_ref().map(|task| adapter(task)),
            key: SecretKey::read(&path(firmware::SECRET_KEY)).unwrap(),
            sequence: Cell::new(0),
            board,
        }
    }

    fn boot(&self) -> Qemu {
        let images = vec![(self.base.clone(), self.board.base.origin)];
        let options = Emulation { images, flash_file: self.flash.clone(), ..Emulation::default() };
        Qemu::boot(&self.board, &self.elf, &options).unwrap()
    }

    /// The file of task `which`, signed with the next sequence number.
    fn signed(&self, which: usize) -> Vec<u8> {
        let mut file = self.files[which].clone();
        self.sequence.set(self.sequence.get() + 1);
        self.key.sign(&mut file, ProductId::of(firmware::PRODUCT), self.sequence.get(), 65_536).unwrap();
        file
    }

    /// What the host computes with a file, or without one.
    fn expected(&self, file: Option<&[u8]>) -> Vec<u32> {
        let host = match file {
            None => self.plain.clone(),
            Some(file) => self.plain.clone().with_adapter(file.to_vec(), Mode::Streamed).unwrap(),
        };
        let ids = host.encode(TEXT).unwrap();
        bits(&host.outputs(&[Input::Tokens(&ids)]).unwrap()[0])
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn connect(qemu: &Qemu) -> Device<Tcp> {
    Device::new(Tcp::connect(&qemu.link_address().to_string()).unwrap(), Options::default()).unwrap()
}

fn output<T: Transport>(device: &mut Device<T>) -> Vec<u32> {
    bits(&device.run_text(TEXT).unwrap().values)
}

#[test]
fn the_base_of_the_smallest_board_fits_its_flash_and_its_ram() {
    let board = Board::find(MICROBIT).unwrap();
    assert!(board.slots.origin + board.slots.length <= 256 << 10, "the chip has 256 KiB of flash");
    assert!(board.psram.origin + board.psram.length <= 0x2000_0000 + (16 << 10), "and 16 KiB of RAM");
    let elf = firmware::build(&board, "firmware").unwrap();
    let sections = xtask::sections::read(&board, &elf).unwrap();
    let flash: u64 = sections.iter().map(|section| section.flash_bytes).sum();
    assert!(flash <= board.flash.length, "{flash} bytes of firmware");
    let image = image_with(&board.example.model, Layout::RowMajor, board.example.pass_rows);
    assert!(image.bytes().len() as u64 <= board.base.length, "{} bytes of base", image.bytes().len());
    for task in &board.example.tasks {
        let file = adapter(task);
        assert!(file.len() as u64 <= board.slot_bytes - 64, "{task}: {} bytes", file.len());
        Adapter::new(&file, &image.base().unwrap()).unwrap();
    }
}

/// Upload, activation, bits, and the way back, on both boards; then what was confirmed runs again after a reset or a
/// killed emulator.
#[test]
fn both_boards_have_the_hosts_bits_and_keep_what_was_confirmed() {
    for name in [MICROBIT, RISCV] {
        let bench = Bench::new(name, "bits");
        let mut qemu = bench.boot();
        let mut device = connect(&qemu);
        let plain = output(&mut device);
        assert!(plain == bench.expected(None), "{name}: the plain base differs");
        let mut last = None;
        for which in 0..2 {
            let file = bench.signed(which);
            let upload = device.upload(None, &file, |_| {}).unwrap();
            assert_eq!(upload.installed.file_bytes as usize, file.len());
            let activated = device.activate(upload.slot, Mode::Streamed, 0).unwrap();
            assert_eq!(activated.weight_bytes_copied, 0);
            let found = output(&mut device);
            assert!(found == bench.expected(Some(&file)), "{name}: adapter {which} differs from the host");
            assert!(found != plain, "{name}: adapter {which} changes nothing");
            if which == 0 {
                let host = bench.plain.clone().with_adapter(file.clone(), Mode::Streamed).unwrap();
                let device_sampling = Sampling { max_tokens: 12, temperature: 0.7, seed: 3 };
                let host_sampling = sim::Sampling { max_tokens: 12, temperature: 0.7, seed: 3 };
                let said = device.generate("", device_sampling, |_, _| {}).unwrap();
                let expected = host.generate("", host_sampling, |_| {}).unwrap();
                assert_eq!((said.digest, said.ids), (expected.digest, expected.ids), "{name}");
            }
            device.detach().unwrap();
            assert!(output(&mut device) == plain, "{name}: the plain base is not back");
            device.activate(upload.slot, Mode::Streamed, 0).unwrap();
            device.confirm(upload.slot).unwrap();
            last = Some((upload.slot, file));
        }
        let (slot, file) = last.unwrap();
        let statistics = device.statistics().unwrap();
        assert!(
            u64::from(statistics.peak_stack_bytes) < bench.board.stack.length,
            "{name}: the stack is used up"
        );
        println!("{name}: peak stack {} of {} bytes", statistics.peak_stack_bytes, bench.board.stack.length);
        drop(device);
        if bench.flash.is_some() {
            qemu.stop();
            qemu = bench.boot();
        } else {
            qemu.reset().unwrap();
        }
        let mut device = connect(&qemu);
        let status = device.status().unwrap();
        assert_eq!(status.confirmed, Some(slot), "{name}");
        assert_eq!(status.running.map(|active| active.slot), Some(slot), "{name}");
        assert!(
            output(&mut device) == bench.expected(Some(&file)),
            "{name}: another adapter after the start"
        );
    }
}

/// A port behind which the device is reset, or its emulator killed, after so many bytes and a moment.
struct Cutting<'a> {
    port: Tcp,
    left: &'a Cell<usize>,
    moment: Duration,
    cut: Option<Box<dyn FnOnce() + 'a>>,
}

impl Cutting<'_> {
    fn lost() -> Error {
        Error::new(ErrorKind::BrokenPipe, "the device was reset")
    }
}

impl Transport for Cutting<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if self.cut.is_none() {
            return Err(Self::lost());
        }
        let whole = bytes.len() <= self.left.get();
        let now = bytes.len().min(self.left.get());
        self.port.send(&bytes[..now])?;
        self.left.set(self.left.get() - now);
        if whole {
            return Ok(());
        }
        std::thread::sleep(self.moment);
        if let Some(cut) = self.cut.take() {
            cut();
        }
        Err(Self::lost())
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> Result<usize> {
        if self.cut.is_none() {
            return Err(Self::lost());
        }
        self.port.receive(buffer, deadline)
    }
}

/// What became of a round.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    resets: usize,
    uploads_resumed: usize,
    while_uploading: usize,
    while_activating: usize,
    installs: usize,
}

/// Uploads, activates and confirms one adapter after the other, with a reset after a random number of bytes of it, until
/// there were `resets` of them.
fn resets_during_uploads(name: &str, resets: usize, bytes: u32) {
    let bench = Bench::new(name, "resets");
    let mut random = XorShift32::new(2026);
    let qemu = RefCell::new(Some(bench.boot()));
    let mut which = 0;
    // What is confirmed, and what is being uploaded.
    let mut old: Option<Vec<u8>> = None;
    let mut new = bench.signed(which);
    let mut expected = [bench.expected(None), bench.expected(Some(&new))];
    let mut tally = Tally::default();
    let mut floor = 0;
    while tally.resets < resets {
        let port = Tcp::connect(&qemu.borrow().as_ref().unwrap().link_address().to_string()).unwrap();
        // Every third reset comes behind the last byte of the file: while it is verified, activated, confirmed.
        let late = random.next_u32().is_multiple_of(3);
        let (early, behind) =
            ((random.next_u32() % bytes) as usize, (random.next_u32() % LAST_BYTES) as usize);
        let left = Cell::new(if late { usize::MAX } else { early });
        let moment = if late { random.next_u32() % 300_000 } else { random.next_u32() % 15_000 };
        let moment = Duration::from_micros(u64::from(moment));
        let cut = || {
            let mut qemu = qemu.borrow_mut();
            if bench.flash.is_some() {
                // SIGKILL: nothing is flushed by the emulator itself.
                qemu.take().unwrap().stop();
            } else {
                qemu.as_mut().unwrap().reset().unwrap();
            }
        };
        let port = Cutting { port, left: &left, moment, cut: Some(Box::new(cut)) };
        let mut device =
            Device::new(port, Options::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        // How far it came: 0 uploading, 1 installed, 2 activated, 3 confirmed.
        let mut stage = 0;
        let complete = new.len() as u32;
        let progress = |bytes| {
            if late && bytes == complete {
                left.set(behind);
            }
        };
        let done = device.upload(None, &new, progress).and_then(|upload| {
            stage = 1;
            tally.uploads_resumed += usize::from(upload.resumed_at > 0);
            device.activate(upload.slot, Mode::Streamed, 0)?;
            stage = 2;
            device.confirm(upload.slot)?;
            stage = 3;
            Ok(())
        });
        let fired = !matches!(done, Ok(()));
        if let Err(error) = done {
            assert!(matches!(error, ClientError::Io { .. }), "{name}: {error}");
            tally.resets += 1;
            tally.while_uploading += usize::from(stage == 0);
            tally.while_activating += usize::from(stage > 0);
        }
        drop(device);
        if qemu.borrow().is_none() {
            *qemu.borrow_mut() = Some(bench.boot());
        }
        // What runs now?
        let mut device = connect(qemu.borrow().as_ref().unwrap());
        let status = device.status().unwrap();
        assert!(status.floor >= floor, "{name}: the floor fell from {floor} to {}", status.floor);
        floor = status.floor;
        let found = output(&mut device);
        let is_new = found == expected[1];
        let resets = tally.resets;
        assert!(
            is_new || found == expected[0],
            "{name}: neither the old nor the new adapter after reset {resets}"
        );
        let running =
            status.running.map(|active| device.slot(active.slot).unwrap().adapter.unwrap().sequence);
        assert_eq!(
            running.unwrap_or(0),
            if is_new { sequence_of(&new) } else { old.as_deref().map_or(0, sequence_of) },
            "{name}: status and network disagree"
        );
        if stage == 3 {
            assert!(is_new, "{name}: what was confirmed does not run");
        }
        if stage >= 1 {
            let slots = device.slots().unwrap();
            let kept = slots
                .iter()
                .filter_map(|slot| slot.adapter.as_ref())
                .any(|a| a.sequence == sequence_of(&new));
            assert!(kept, "{name}: what was acknowledged as installed is gone");
        }
        if is_new && status.confirmed.is_some() && (stage == 3 || fired) {
            tally.installs += 1;
            which = 1 - which;
            old = Some(std::mem::replace(&mut new, bench.signed(which)));
            let next = bench.expected(Some(&new));
            expected = [std::mem::take(&mut expected[1]), next];
        }
    }
    println!("{name}: {tally:?}");
    assert!(tally.while_uploading > resets / 2, "{name}: too few resets met an upload: {tally:?}");
    assert!(
        tally.while_activating > 0 && tally.uploads_resumed > 0 && tally.installs > 2,
        "{name}: {tally:?}"
    );
}

fn sequence_of(file: &[u8]) -> u32 {
    rankpatch_format::header::Header::new(file).unwrap().sequence
}

#[test]
fn a_microbit_reset_during_uploads_runs_the_old_or_the_new_adapter() {
    resets_during_uploads(MICROBIT, MICROBIT_RESETS, 6000);
}

#[test]
fn an_emulator_killed_during_uploads_leaves_the_old_or_the_new_adapter() {
    resets_during_uploads(RISCV, RISCV_RESETS, 40_000);
}

/// Sends a request and returns the answer to it, of which there is one.
fn ask<'a>(port: &mut Tcp, answers: &'a mut Deframer<4160>, request: &Request<'_>) -> Response<'a> {
    let mut frame = [0; 4160];
    let deadline = Instant::now() + Duration::from_secs(30);
    port.send(link::encode(1, request, &mut frame).unwrap()).unwrap();
    loop {
        let mut byte = [0];
        assert!(port.receive(&mut byte, deadline).unwrap() == 1, "no answer to {request:?}");
        if answers.extend(&byte).1 {
            break;
        }
    }
    link::decode::<Response<'_>>(answers.message().unwrap()).unwrap().1
}

/// The stack of a program that takes adapters and does nothing else, at its deepest: erasing, writing, hashing, reading back,
/// verifying the signature, and the receiver itself with its frame buffer, which lies on the stack.
#[test]
fn an_install_needs_less_than_8_kib_of_stack() {
    const PAINT: [u8; 4] = 0xCCCC_CCCC_u32.to_le_bytes();
    for name in ["qemu-mps2-an386", MICROBIT] {
        let bench = Bench {
            elf: firmware::build(&Board::find(name).unwrap(), "receive").unwrap(),
            ..Bench::new(name, "stack")
        };
        let mut qemu = bench.boot();
        let mut port = Tcp::connect(&qemu.link_address().to_string()).unwrap();
        let mut answers = Deframer::new();
        let file = bench.signed(0);
        let sha256 = Announcement::of(&file).sha256;
        let begin = Request::Begin { slot: None, header: &file[..HEADER_BYTES], sha256: &sha256 };
        let begun = ask(&mut port, &mut answers, &begin);
        assert!(matches!(begun, Response::Progress { next: 0, .. }), "{name}: {begun:?}");
        for (i, data) in file.chunks(128).enumerate() {
            let offset = 128 * i as u32;
            let stored = ask(&mut port, &mut answers, &Request::Chunk { answer: true, offset, data });
            let end = offset + data.len() as u32;
            assert!(matches!(stored, Response::Progress { next, .. } if next == end), "{name}: {stored:?}");
        }
        let installed = ask(&mut port, &mut answers, &Request::Finish);
        let Response::Slot { adapter: Some(adapter), .. } = installed else {
            panic!("{name}: {installed:?}")
        };
        assert_eq!(adapter.file_bytes as usize, file.len());

        let dump = path("target/tests").join(format!("{name}.stack"));
        let stack = bench.board.stack;
        qemu.monitor().save_memory(stack.origin, stack.length, &dump).unwrap();
        let bytes = std::fs::read(&dump).unwrap();
        let free = bytes.chunks(4).take_while(|word| **word == PAINT).count() * 4;
        let peak = bytes.len() - free;
        println!("{name}: peak stack of an install {peak} bytes");
        assert!(free > 0 && peak > 1024, "{name}: {free} bytes of the stack are still painted");
        assert!(peak <= 8 << 10, "{name}: {peak} bytes of stack");
    }
}
