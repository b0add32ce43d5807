//! defmt's global logger over UART1.
//!
//! Sends at once and waits for the transmitter, which the emulator empties immediately: no buffer that a crash would lose.
#![expect(unsafe_code, reason = "defmt's logger trait is unsafe")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::counter;
use crate::uart;

defmt::timestamp!(
    "{=u64:us}",
    rankpatch_board::microseconds(counter::now(), (counter::TICKS_PER_SECOND / 1_000_000) as u16)
);

#[defmt::global_logger]
struct Logger;

struct State {
    encoder: UnsafeCell<defmt::Encoder>,
    taken: AtomicBool,
    /// Whether interrupts were enabled before `acquire` masked them.
    interrupts: AtomicBool,
}

// SAFETY: the encoder is touched only between `acquire` and `release`, with interrupts masked, on a single core.
unsafe impl Sync for State {}

static STATE: State = State {
    encoder: UnsafeCell::new(defmt::Encoder::new()),
    taken: AtomicBool::new(false),
    interrupts: AtomicBool::new(false),
};

fn send(bytes: &[u8]) {
    rankpatch_board::tap::TAP.push(bytes);
    for &byte in bytes {
        uart::LOG.send(byte);
    }
}

// SAFETY: `acquire` masks interrupts until `release`, so no other context can log in between; `taken` catches a value
// that logs while it is being formatted.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        let enabled = cortex_m::register::primask::read().is_active();
        cortex_m::interrupt::disable();
        assert!(!STATE.taken.load(Ordering::Relaxed), "expected one log frame at a time, found a nested one");
        STATE.taken.store(true, Ordering::Relaxed);
        STATE.interrupts.store(enabled, Ordering::Relaxed);
        // SAFETY: exclusive until `release`.
        unsafe { (*STATE.encoder.get()).start_frame(send) };
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: exclusive since `acquire`.
        unsafe { (*STATE.encoder.get()).end_frame(send) };
        STATE.taken.store(false, Ordering::Relaxed);
        if STATE.interrupts.load(Ordering::Relaxed) {
            // SAFETY: they were enabled before `acquire`.
            unsafe { cortex_m::interrupt::enable() };
        }
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: exclusive since `acquire`.
        unsafe { (*STATE.encoder.get()).write(bytes, send) };
    }
}
