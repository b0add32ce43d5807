//! The time base: the system counter, 64 bits at 32 MHz.
//!
//! Under QEMU's `-icount shift=7` every instruction takes 128 ns of virtual time, which is 4.096 ticks. A difference of two
//! readings is off by less than one tick, so it gives the exact number of instructions. They are instructions, not cycles.
#![expect(unsafe_code, reason = "registers")]

use rankpatch_board::Counter;

use crate::machine::{COUNTER_CONTROL, TIMER};
use crate::register::Register;

/// The machine's system clock.
pub const TICKS_PER_SECOND: u32 = 32_000_000;

// SAFETY: registers of the system counter and of a timer that shows it.
static CONTROL: Register = unsafe { Register::at(COUNTER_CONTROL) };
// SAFETY: as above.
static LOW: Register = unsafe { Register::at(TIMER) };
// SAFETY: as above.
static HIGH: Register = unsafe { Register::at(TIMER + 4) };
const CONTROL_ENABLE: u32 = 1 << 0;

/// The running counter.
#[derive(Debug)]
pub struct TickCounter(());

impl TickCounter {
    /// Starts the counter. Call once.
    pub(crate) fn start() -> Self {
        CONTROL.write(CONTROL_ENABLE);
        Self(())
    }
}

impl Counter for TickCounter {
    fn ticks(&self) -> u64 {
        now()
    }

    fn ticks_per_second(&self) -> u32 {
        TICKS_PER_SECOND
    }
}

/// Ticks since the start. Takes the same number of instructions every time, unless the lower half wraps meanwhile.
pub(crate) fn now() -> u64 {
    loop {
        let (high, low) = (HIGH.read(), LOW.read());
        if high == HIGH.read() {
            return u64::from(high) << 32 | u64::from(low);
        }
    }
}

/// Ticks as instructions, rounded to nearest: exact for the difference of two readings under `-icount shift=7`.
pub const fn instructions(ticks: u64) -> u64 {
    // 31.25 ns a tick and 128 ns an instruction.
    (ticks * 125 + 256) / 512
}
