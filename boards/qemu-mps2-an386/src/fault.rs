//! The ends of a program: success, failure, panic and hard fault. Each is logged and becomes QEMU's exit code.
#![expect(unsafe_code, reason = "defines exception handlers")]

use core::panic::PanicInfo;

use cortex_m_rt::{ExceptionFrame, exception};
use cortex_m_semihosting::debug;

use crate::board;

/// Ends the emulator with exit code 0.
pub fn succeed() -> ! {
    end(debug::EXIT_SUCCESS)
}

/// Ends the emulator with exit code 1.
pub fn fail() -> ! {
    end(debug::EXIT_FAILURE)
}

fn end(status: debug::ExitStatus) -> ! {
    loop {
        debug::exit(status);
    }
}

/// Logs a panic and ends the emulator: for [`crate::log_panics`].
#[inline(always)]
#[expect(clippy::inline_always, reason = "what it does not read of its argument is then not in the firmware")]
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    cortex_m::interrupt::disable();
    // Where is enough to find out what. The message may need formatting, which costs kilobytes of flash.
    if let Some(at) = info.location().filter(|_| cfg!(feature = "panic-location")) {
        defmt::error!("panicked at {=str}:{=u32}", at.file(), at.line());
    } else {
        defmt::error!("panicked");
    }
    fail()
}

/// defmt's own panics, which have logged their message already.
#[defmt::panic_handler]
fn defmt_panic() -> ! {
    fail()
}

#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    // SAFETY: the fault status registers may always be read.
    let (configurable, hard, address) = unsafe {
        let scb = &*cortex_m::peripheral::SCB::PTR;
        (scb.cfsr.read(), scb.hfsr.read(), scb.bfar.read())
    };
    defmt::error!(
        "hard fault at pc {=u32:#010x}, lr {=u32:#010x}: cfsr {=u32:#010x}, hfsr {=u32:#010x}, bfar {=u32:#010x}",
        frame.pc(),
        frame.lr(),
        configurable,
        hard,
        address
    );
    fail()
}

/// Every interrupt arrives here.
#[exception]
unsafe fn DefaultHandler(number: i16) {
    assert!(board::handle(number), "expected an interrupt of this board, found exception {number}");
}
