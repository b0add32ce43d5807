//! defmt's global logger over semihosting, for emulated machines whose only serial port is the link.
//!
//! Every byte goes out at once: no buffer that a crash would lose.
#![expect(unsafe_code, reason = "defmt's logger trait is unsafe")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use critical_section::RestoreState;

use crate::{semihosting, tap};

#[defmt::global_logger]
struct Logger;

struct State {
    encoder: UnsafeCell<defmt::Encoder>,
    /// The critical section that `acquire` entered.
    restore: UnsafeCell<RestoreState>,
    taken: AtomicBool,
}

// SAFETY: the cells are touched only between `acquire` and `release`, in a critical section.
unsafe impl Sync for State {}

fn write(bytes: &[u8]) {
    semihosting::write(bytes);
    tap::TAP.push(bytes);
}

static STATE: State = State {
    encoder: UnsafeCell::new(defmt::Encoder::new()),
    restore: UnsafeCell::new(RestoreState::invalid()),
    taken: AtomicBool::new(false),
};

// SAFETY: the critical section lasts from `acquire` to `release`, so no other context can log in between; `taken` catches a
// value that logs while it is being formatted.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        // SAFETY: released in `release`, which defmt calls once for each `acquire`.
        let restore = unsafe { critical_section::acquire() };
        assert!(!STATE.taken.load(Ordering::Relaxed), "expected one log frame at a time, found a nested one");
        STATE.taken.store(true, Ordering::Relaxed);
        // SAFETY: exclusive until `release`.
        unsafe {
            *STATE.restore.get() = restore;
            (*STATE.encoder.get()).start_frame(write);
        }
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: exclusive since `acquire`, whose critical section ends here.
        unsafe {
            (*STATE.encoder.get()).end_frame(write);
            STATE.taken.store(false, Ordering::Relaxed);
            critical_section::release(*STATE.restore.get());
        }
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: exclusive since `acquire`.
        unsafe { (*STATE.encoder.get()).write(bytes, write) };
    }
}
