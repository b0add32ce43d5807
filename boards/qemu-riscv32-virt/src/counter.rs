//! The time base: `mcycle`.
//!
//! Under QEMU's `-icount shift=7` every instruction takes 128 ns of virtual time, and QEMU's `mcycle` counts those
//! nanoseconds: a difference of two readings divided by 128 is the exact number of instructions. They are not cycles.
//! Without `-icount` QEMU's `mcycle` shows the host's own counter.

use rankpatch_board::Counter;

/// Nanoseconds of virtual time.
pub const TICKS_PER_SECOND: u32 = 1_000_000_000;

/// 2^7, from `-icount shift=7`.
const TICKS_PER_INSTRUCTION: u64 = 128;

/// The counter, which runs from reset on.
#[derive(Debug)]
pub struct TickCounter(());

impl TickCounter {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

impl Counter for TickCounter {
    fn ticks(&self) -> u64 {
        riscv::register::mcycle::read64()
    }

    fn ticks_per_second(&self) -> u32 {
        TICKS_PER_SECOND
    }
}

/// Ticks as instructions: exact for the difference of two readings under `-icount shift=7`.
pub const fn instructions(ticks: u64) -> u64 {
    (ticks + TICKS_PER_INSTRUCTION / 2) / TICKS_PER_INSTRUCTION
}

defmt::timestamp!(
    "{=u64:us}",
    rankpatch_board::microseconds(riscv::register::mcycle::read64(), (TICKS_PER_SECOND / 1_000_000) as u16)
);
