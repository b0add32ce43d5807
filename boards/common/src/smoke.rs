//! A program that proves a board's support from end to end: partitions, flash rules, counter, stack, log and link.
//!
//! The host side is `xtask/src/smoke.rs`. Commands over the link are one byte: `e` and a count (4 bytes, little endian)
//! echo that many bytes; `b` does the same but computes for a while first, as an inference would; `c` takes them and
//! answers with one byte; `k` says whether the flash still holds what `w` wrote; `p` panics; `f` faults; `q` ends with
//! success.
#![expect(unsafe_code, reason = "a counted loop in assembly, a deliberate fault")]

use core::arch::asm;

use crate::semihosting::exit;
use crate::{Board, Counter, Link, NorError, Parts, Slots, Stack};

/// Instructions that the busy echo computes for.
const BUSY: u32 = 20_000_000;
/// What `w` writes and `k` looks for.
const KEPT: [u8; 8] = *b"rankpat\n";

/// Runs the program. `instructions` makes instructions of ticks.
pub fn run<B: Board>(parts: Parts<B>, instructions: fn(u64) -> u64) -> !
where
    B::Slots: Slots<Error = NorError>,
{
    let Parts { mut link, mut slots, counter, stack, base, arena } = parts;
    defmt::info!("core {=str}", B::CORE);
    let (first, last) = (base.first_chunk(), base.last_chunk());
    defmt::info!(
        "base {=[u8; 4]:#04x} to {=[u8; 4]:#04x}",
        first.expect("a base partition"),
        last.expect("a base partition")
    );
    calibrate(&counter, instructions);
    arena.fill(0x5A);
    defmt::info!("arena {=usize} bytes, stack {=usize} bytes", arena.len(), stack.capacity());
    defmt::info!("peak stack {=usize} bytes", stack.peak());
    defmt::info!("ready");
    loop {
        let mut command = [0];
        read_exact(&mut link, &mut command);
        match command[0] {
            b'e' => echo(&mut link, 0),
            b'c' => consume(&mut link),
            b'b' => echo(&mut link, BUSY / 2),
            b'w' => {
                check_flash(&mut slots);
                link.write(b".");
            }
            b'k' => {
                let kept = slots.bytes()[slots.slot_bytes()..].starts_with(&KEPT);
                link.write(if kept { b"y" } else { b"n" });
            }
            b'p' => panic!("asked to panic"),
            // SAFETY: none. Nothing answers at this address, which is the fault that the host asked for.
            b'f' => defmt::info!("read {=u32}", unsafe {
                core::ptr::with_exposed_provenance::<u32>(0x0080_0000).read_volatile()
            }),
            b'q' => exit(true),
            other => {
                defmt::error!("expected a command, found {=u8:#04x}", other);
                exit(false);
            }
        }
    }
}

/// Counts loops of known length.
fn calibrate(counter: &impl Counter, instructions: fn(u64) -> u64) {
    let empty = count(counter, instructions, 1);
    let measure = |turns| count(counter, instructions, turns) - empty;
    // A tick may be a fraction of an instruction, so a difference depends on where between two ticks it begins. Short loops
    // at pseudo-random starts: none may be off by one.
    let (mut wrong, mut random) = (0, 1_u32);
    for turns in (2..=100).cycle().take(2000) {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        spin(1 + (random >> 28));
        wrong += u32::from(measure(turns) != 2 * (u64::from(turns) - 1));
    }
    defmt::info!("{=u32} of 2000 short loops counted wrongly", wrong);
    for turns in [1001, 100_001, 1_500_001] {
        defmt::info!("loop of {=u32} instructions: counter {=u64}", 2 * (turns - 1), measure(turns));
    }
}

/// Instructions of a loop of `turns` turns with all that is around it. Never inlined: that would make copies which differ by
/// an instruction.
#[inline(never)]
fn count(counter: &impl Counter, instructions: fn(u64) -> u64, turns: u32) -> u64 {
    let start = counter.ticks();
    spin(turns);
    instructions(counter.ticks() - start)
}

/// Executes 2 x `turns` instructions.
#[inline(never)]
fn spin(turns: u32) {
    #[cfg(target_arch = "arm")]
    // SAFETY: counts a register down.
    unsafe {
        asm!("1:", "subs {turns}, {turns}, #1", "bne 1b", turns = inout(reg) turns => _, options(nomem, nostack));
    }
    #[cfg(target_arch = "riscv32")]
    // SAFETY: counts a register down.
    unsafe {
        asm!("1:", "addi {turns}, {turns}, -1", "bnez {turns}, 1b", turns = inout(reg) turns => _, options(nomem, nostack));
    }
}

/// The rules of NOR flash on the real partition. Leaves [`KEPT`] at the start of slot 1.
fn check_flash<S: Slots<Error = NorError>>(slots: &mut S) {
    let (slot, word) = (slots.slot_bytes() as u32, S::WRITE_SIZE as u32);
    let at = slot as usize;
    slots.erase(0, 2 * slot).expect("two slots");
    assert!(slots.bytes()[..2 * at].iter().all(|&byte| byte == 0xFF), "an erase left something");
    slots.write(slot - word, &[0; 32][..word as usize]).expect("an erased word");
    assert!(
        slots.write(slot - word, &[1; 32][..word as usize])
            == Err(NorError::NotErased { offset: slot - word }),
        "a word took a second write"
    );
    slots.write(slot, &KEPT).expect("erased words");
    assert!(
        slots.bytes()[at..].starts_with(&KEPT) && slots.bytes()[at + KEPT.len()] == 0xFF,
        "the map shows something else"
    );
    assert!(slots.write(slot + 2, &KEPT).is_err(), "a word that is not aligned was written");
    slots.erase(0, slot).expect("one slot");
    assert!(slots.bytes()[..at].iter().all(|&byte| byte == 0xFF), "an erase left something");
    assert!(slots.bytes()[at..].starts_with(&KEPT), "the erase touched another slot");
    assert!(slots.pin(1).is_some(), "a slot could not be pinned");
    assert!(slots.erase(slot, 2 * slot) == Err(NorError::Pinned { slot: 1 }), "a pinned slot was erased");
    // SAFETY: what `pin` returned was dropped at once.
    unsafe { slots.unpin(1) };
    defmt::info!("flash {=usize} bytes keeps the rules", slots.capacity());
}

/// Sends back as many bytes as the host announces, after a busy time that begins with the announcement.
fn echo(link: &mut impl Link, busy_turns: u32) {
    let mut count = [0; 4];
    read_exact(link, &mut count);
    if busy_turns > 0 {
        spin(busy_turns);
    }
    transfer(link, u32::from_le_bytes(count) as usize, Link::write);
}

/// Takes as many bytes as the host announces and answers with one byte at the end.
fn consume(link: &mut impl Link) {
    let mut count = [0; 4];
    read_exact(link, &mut count);
    transfer(link, u32::from_le_bytes(count) as usize, |_, _| {});
    link.write(b".");
}

fn transfer<L: Link>(link: &mut L, mut left: usize, mut each: impl FnMut(&mut L, &[u8])) {
    let mut buffer = [0; 512];
    while left > 0 {
        let room = left.min(buffer.len());
        link.wait();
        let taken = link.read(&mut buffer[..room]);
        each(link, &buffer[..taken]);
        left -= taken;
    }
}

fn read_exact(link: &mut impl Link, mut into: &mut [u8]) {
    while !into.is_empty() {
        link.wait();
        let taken = link.read(into);
        into = &mut into[taken..];
    }
}
