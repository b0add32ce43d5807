//! The time base: CMSDK timer 0, 32 bits at 25 MHz, extended to 64 bits by its interrupt.
//!
//! Under QEMU's `-icount shift=7` every instruction takes 128 ns of virtual time, which is 3.2 ticks. A difference of two
//! readings is off by less than one tick, so it gives the exact number of instructions. (With shift=6, 1.6 ticks each, two
//! neighbouring counts can give the same difference.) They are instructions, not cycles.
#![expect(unsafe_code, reason = "registers and interrupts")]

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::peripheral::NVIC;
use rankpatch_board::Counter;

use crate::board::Interrupt;
use crate::register::Register;

/// The machine's system clock.
pub const TICKS_PER_SECOND: u32 = 25_000_000;

const NANOSECONDS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND as u64;
/// 2^7, from `-icount shift=7`.
const NANOSECONDS_PER_INSTRUCTION: u64 = 128;

const TIMER: usize = 0x4000_0000;
// SAFETY: the registers of CMSDK timer 0.
static CTRL: Register = unsafe { Register::at(TIMER) };
// SAFETY: as above.
static VALUE: Register = unsafe { Register::at(TIMER + 4) };
// SAFETY: as above.
static RELOAD: Register = unsafe { Register::at(TIMER + 8) };
// SAFETY: as above.
static INTERRUPT: Register = unsafe { Register::at(TIMER + 12) };
const CTRL_ENABLE: u32 = 1 << 0;
const CTRL_INTERRUPT: u32 = 1 << 3;

/// How often the timer has started again from the top.
static WRAPS: AtomicU32 = AtomicU32::new(0);

/// The running timer.
#[derive(Debug)]
pub struct TickCounter(());

impl TickCounter {
    /// Starts the timer. Call once.
    pub(crate) fn start() -> Self {
        RELOAD.write(u32::MAX);
        VALUE.write(u32::MAX);
        CTRL.write(CTRL_ENABLE | CTRL_INTERRUPT);
        // SAFETY: the handler touches one atomic; no critical section depends on this mask.
        unsafe { NVIC::unmask(Interrupt::Timer) };
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

/// Ticks since the start. Takes the same number of instructions every time, unless the timer wraps meanwhile.
pub(crate) fn now() -> u64 {
    loop {
        let wraps = WRAPS.load(Ordering::Acquire);
        let low = u32::MAX - VALUE.read();
        let pending = INTERRUPT.read() & 1 != 0;
        // A pending wrap belongs to `low` or not, depending on which came first: let the handler run and look again.
        if wraps == WRAPS.load(Ordering::Acquire) && !pending {
            return u64::from(wraps) << 32 | u64::from(low);
        }
        if pending {
            cortex_m::interrupt::free(|_| on_wrap());
        }
    }
}

/// The interrupt handler; also called by [`now`] where interrupts are masked.
pub(crate) fn on_wrap() {
    if INTERRUPT.read() & 1 != 0 {
        INTERRUPT.write(1);
        WRAPS.store(WRAPS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

/// Ticks as instructions, rounded to nearest: exact for the difference of two readings under `-icount shift=7`.
pub const fn instructions(ticks: u64) -> u64 {
    (ticks * NANOSECONDS_PER_TICK + NANOSECONDS_PER_INSTRUCTION / 2) / NANOSECONDS_PER_INSTRUCTION
}
