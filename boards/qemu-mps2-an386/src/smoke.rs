//! Proves the board support from end to end: partitions, flash rules, counters, log, link and faults.
//!
//! The host side is `xtask/src/smoke.rs`. Commands over the link are one byte: `e` and a count (4 bytes, little endian)
//! echo that many bytes; `b` does the same but computes for a while first, as an inference would; `c` takes them and
//! answers with one byte; `p` panics; `f` faults; `q` ends with success.
#![expect(unsafe_code, reason = "a counted loop in assembly, a deliberate fault")]

use core::arch::asm;

use crate::support::board::Machine;
use crate::support::machine::NOTHING;
use crate::support::{board, counter, fail, succeed};
use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;
use rankpatch_board::{Board, Counter, Link, NorError, Slots, Stack};

/// Instructions that the busy echo computes for.
const BUSY: u32 = 20_000_000;

#[cortex_m_rt::entry]
fn main() -> ! {
    let mut parts = board::take();
    defmt::info!("core {=str}", Machine::CORE);
    let (first, last) = (parts.base.first_chunk(), parts.base.last_chunk());
    defmt::info!(
        "base {=[u8; 4]:#04x} to {=[u8; 4]:#04x}",
        first.expect("a base partition"),
        last.expect("a base partition")
    );
    check_flash(&mut parts.slots);
    calibrate(&parts.counter);
    parts.arena.fill(0x5A);
    defmt::info!("arena {=usize} bytes, stack {=usize} bytes", parts.arena.len(), parts.stack.capacity());
    defmt::info!("peak stack {=usize} bytes", parts.stack.peak());
    defmt::info!("ready");
    serve(&mut parts.link)
}

/// Counts a loop of known length with the board's counter and with SysTick.
fn calibrate(counter: &impl Counter) {
    let mut systick = cortex_m::Peripherals::take().expect("nobody else took them").SYST;
    systick.set_clock_source(SystClkSource::Core);
    systick.set_reload(0x00FF_FFFF);
    systick.clear_current();
    systick.enable_counter();
    let empty = count(counter, 1);
    let measure = |turns| {
        let (instructions, systick) = count(counter, turns);
        (instructions - empty.0, systick - empty.1)
    };
    // A tick is a fraction of an instruction, so a difference depends on where between two ticks it begins. Short
    // loops at pseudo-random starts: none may be off by one.
    let (mut wrong, mut random) = (0, 1_u32);
    for turns in (2..=100).cycle().take(2000) {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        spin(1 + (random >> 28));
        let expected = 2 * (u64::from(turns) - 1);
        wrong += u32::from(measure(turns) != (expected, expected));
    }
    defmt::info!("{=u32} of 2000 short loops counted wrongly", wrong);
    for turns in [1001, 100_001, 1_500_001] {
        let (instructions, systick) = measure(turns);
        defmt::info!(
            "loop of {=u32} instructions: counter {=u64}, systick {=u64}",
            2 * (turns - 1),
            instructions,
            systick
        );
    }
}

/// Instructions of a loop of `turns` turns with all that is around it, by both counters. Never inlined: that would make copies
/// which differ by an instruction.
#[inline(never)]
fn count(counter: &impl Counter, turns: u32) -> (u64, u64) {
    let start = (counter.ticks(), SYST::get_current());
    spin(turns);
    let end = (counter.ticks(), SYST::get_current());
    let systick = start.1.wrapping_sub(end.1) & 0x00FF_FFFF;
    (counter::instructions(end.0 - start.0), counter::instructions(u64::from(systick)))
}

/// Executes 2 x `turns` instructions.
#[inline(never)]
fn spin(turns: u32) {
    // SAFETY: counts a register down.
    unsafe {
        asm!("1:", "subs {turns}, {turns}, #1", "bne 1b", turns = inout(reg) turns => _, options(nomem, nostack));
    }
}

/// The rules of NOR flash on the real partition, which the emulator starts as zeros.
fn check_flash(slots: &mut impl Slots<Error = NorError>) {
    let page = slots.slot_bytes() as u32;
    let written = Err(NorError::NotErased { offset: page });
    assert!(slots.write(page, &[1, 2, 3, 4]) == written, "memory that is not erased took a write");
    slots.erase(page, 2 * page).expect("a whole slot");
    slots.write(page, &[1, 2, 3, 4]).expect("an erased word");
    assert!(slots.write(page, &[1, 2, 3, 4]) == written, "a word took a second write");
    assert!(slots.bytes()[page as usize..][..6] == [1, 2, 3, 4, 0xFF, 0xFF], "the map shows something else");
    assert!(
        slots.bytes().iter().take(page as usize).all(|&byte| byte == 0),
        "the erase touched another slot"
    );
    defmt::info!("flash {=usize} bytes keeps the rules", slots.capacity());
}

fn serve(link: &mut impl Link) -> ! {
    loop {
        let mut command = [0];
        read_exact(link, &mut command);
        match command[0] {
            b'e' => echo(link, 0),
            b'c' => consume(link),
            b'b' => echo(link, BUSY / 2),
            b'p' => panic!("asked to panic"),
            // SAFETY: none. Nothing answers at this address, which is the fault that the host asked for.
            b'f' => defmt::info!("read {=u32}", unsafe {
                core::ptr::with_exposed_provenance::<u32>(NOTHING).read_volatile()
            }),
            b'q' => succeed(),
            other => {
                defmt::error!("expected a command, found {=u8:#04x}", other);
                fail();
            }
        }
    }
}

/// Sends back as many bytes as the host announces, after a busy time that begins with the announcement.
fn echo(link: &mut impl Link, busy_turns: u32) {
    let mut count = [0; 4];
    read_exact(link, &mut count);
    if busy_turns > 0 {
        spin(busy_turns);
    }
    let mut buffer = [0; 512];
    let mut left = u32::from_le_bytes(count) as usize;
    while left > 0 {
        let room = left.min(buffer.len());
        link.wait();
        let taken = link.read(&mut buffer[..room]);
        link.write(&buffer[..taken]);
        left -= taken;
    }
}

/// Takes as many bytes as the host announces and answers with one byte at the end.
fn consume(link: &mut impl Link) {
    let mut count = [0; 4];
    read_exact(link, &mut count);
    let mut buffer = [0; 512];
    let mut left = u32::from_le_bytes(count) as usize;
    while left > 0 {
        let room = left.min(buffer.len());
        link.wait();
        left -= link.read(&mut buffer[..room]);
    }
    link.write(b".");
}

fn read_exact(link: &mut impl Link, mut into: &mut [u8]) {
    while !into.is_empty() {
        link.wait();
        let taken = link.read(into);
        into = &mut into[taken..];
    }
}
