//! The ends of a program: success, failure, panic and hard fault. Each is logged and becomes QEMU's exit code.
#![expect(unsafe_code, reason = "defines exception handlers")]

use core::panic::PanicInfo;

use cortex_m_rt::{ExceptionFrame, exception};
use rankpatch_board::semihosting::exit;

use crate::board::Interrupt;
use crate::{counter, uart};

/// Ends the emulator with exit code 0.
pub fn succeed() -> ! {
    exit(true)
}

/// Ends the emulator with exit code 1.
pub fn fail() -> ! {
    exit(false)
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
    defmt::error!("hard fault at pc {=u32:#010x}, lr {=u32:#010x}", frame.pc(), frame.lr());
    fail()
}

/// Every interrupt arrives here; the board uses two of them.
#[exception]
unsafe fn DefaultHandler(number: i16) {
    match Interrupt::from_number(number) {
        Some(Interrupt::Uart) => uart::on_receive(),
        Some(Interrupt::Timer) => counter::on_wrap(),
        None => {
            defmt::error!("expected no exception, found number {=i16}", number);
            fail()
        }
    }
}
