//! The time base: timer 0, 32 bits at 16 MHz, extended to 64 bits by its interrupt. (The nRF51's core has no SysTick.)
//!
//! Under QEMU's `-icount shift=7` every instruction takes 128 ns of virtual time, which is 2.048 ticks. A difference of two
//! readings is off by less than one tick, so it gives the exact number of instructions. They are not cycles.
#![expect(unsafe_code, reason = "registers and interrupts")]

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::peripheral::NVIC;
use rankpatch_board::{Counter, Register};

use crate::board::Interrupt;

/// The timer's clock.
pub const TICKS_PER_SECOND: u32 = 16_000_000;

/// 2^7, from `-icount shift=7`.
const NANOSECONDS_PER_INSTRUCTION: u64 = 128;

const TIMER: usize = 0x4000_8000;
// SAFETY: the registers of the nRF51's timer 0.
static START: Register = unsafe { Register::at(TIMER) };
// SAFETY: as above.
static CLEAR: Register = unsafe { Register::at(TIMER + 0x00C) };
// SAFETY: as above.
static CAPTURE_1: Register = unsafe { Register::at(TIMER + 0x044) };
// SAFETY: as above.
static COMPARE_0: Register = unsafe { Register::at(TIMER + 0x140) };
// SAFETY: as above.
static INTERRUPT_SET: Register = unsafe { Register::at(TIMER + 0x304) };
// SAFETY: as above.
static BIT_MODE: Register = unsafe { Register::at(TIMER + 0x508) };
// SAFETY: as above.
static PRESCALER: Register = unsafe { Register::at(TIMER + 0x510) };
// SAFETY: as above.
static CC_0: Register = unsafe { Register::at(TIMER + 0x540) };
// SAFETY: as above.
static CC_1: Register = unsafe { Register::at(TIMER + 0x544) };
const BITS_32: u32 = 3;
const INTERRUPT_COMPARE_0: u32 = 1 << 16;

/// How often the timer has started again from zero.
static WRAPS: AtomicU32 = AtomicU32::new(0);

/// The running timer.
#[derive(Debug)]
pub struct TickCounter(());

impl TickCounter {
    /// Starts the timer. Call once.
    pub(crate) fn start() -> Self {
        BIT_MODE.write(BITS_32);
        PRESCALER.write(0);
        CLEAR.write(1);
        CC_0.write(0);
        START.write(1);
        // It has just been at zero, which is no wrap.
        while low() == 0 {}
        COMPARE_0.write(0);
        INTERRUPT_SET.write(INTERRUPT_COMPARE_0);
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
        let low = low();
        let pending = COMPARE_0.read() != 0;
        // A pending wrap belongs to `low` or not, depending on which came first: let the handler run and look again.
        if wraps == WRAPS.load(Ordering::Acquire) && !pending {
            return u64::from(wraps) << 32 | u64::from(low);
        }
        if pending {
            cortex_m::interrupt::free(|_| on_wrap());
        }
    }
}

/// The timer's own bits.
fn low() -> u32 {
    CAPTURE_1.write(1);
    CC_1.read()
}

/// The interrupt handler; also called by [`now`] where interrupts are masked.
pub(crate) fn on_wrap() {
    if COMPARE_0.read() != 0 {
        COMPARE_0.write(0);
        WRAPS.store(WRAPS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

/// Ticks as instructions, rounded to nearest: exact for the difference of two readings under `-icount shift=7`.
pub const fn instructions(ticks: u64) -> u64 {
    // A tick is 62.5 ns.
    (ticks * 125 + NANOSECONDS_PER_INSTRUCTION) / (2 * NANOSECONDS_PER_INSTRUCTION)
}

defmt::timestamp!("{=u64:us}", rankpatch_board::microseconds(now(), (TICKS_PER_SECOND / 1_000_000) as u16));
