//! The ends of a program: success, failure, panic and trap. Each is logged and becomes QEMU's exit code.
#![expect(unsafe_code, reason = "defines the trap handlers")]

use core::panic::PanicInfo;

use rankpatch_board::semihosting::exit;
use riscv::register::{mcause, mepc, mtval};

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
    riscv::interrupt::disable();
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

#[unsafe(export_name = "ExceptionHandler")]
extern "C" fn exception_handler(_frame: &riscv_rt::TrapFrame) -> ! {
    defmt::error!(
        "trap at pc {=usize:#010x}: mcause {=usize:#x}, mtval {=usize:#010x}",
        mepc::read(),
        mcause::read().bits(),
        mtval::read()
    );
    fail()
}

/// No interrupt is ever enabled as a whole, so none arrives.
#[unsafe(export_name = "DefaultHandler")]
extern "C" fn default_handler() -> ! {
    defmt::error!("expected no interrupt, found mcause {=usize:#x}", mcause::read().bits());
    fail()
}
