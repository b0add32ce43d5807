//! Calls to the emulator: the end of a program with an exit code and, on machines with only one serial port, the log.
//!
//! The instruction sequences are those of Arm's and RISC-V's semihosting specifications. Without an emulator or a debugger
//! they fault, so only boards that are emulated may use this module.
#![expect(unsafe_code, reason = "one instruction that the emulator answers")]

use core::arch::asm;

const SYS_WRITEC: usize = 0x03;
const SYS_EXIT: usize = 0x18;
/// The reason that becomes exit code 0; QEMU makes any other one 1.
const APPLICATION_EXIT: usize = 0x2_0026;
const INTERNAL_ERROR: usize = 0x2_0024;

/// # Safety
/// `argument` is what `operation` takes: a number, or the address of a valid argument.
unsafe fn call(operation: usize, argument: usize) -> usize {
    let result;
    #[cfg(target_arch = "arm")]
    // SAFETY: the emulator changes r0 only, and memory only as the operation says.
    unsafe {
        asm!("bkpt 0xAB", inlateout("r0") operation => result, in("r1") argument, options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "riscv32")]
    // SAFETY: as above, with a0. The three instructions must be uncompressed and within one page.
    unsafe {
        asm!(
            ".balign 16",
            ".option push",
            ".option norvc",
            "slli x0, x0, 0x1f",
            "ebreak",
            "srai x0, x0, 0x7",
            ".option pop",
            inlateout("a0") operation => result,
            in("a1") argument,
            options(nostack, preserves_flags),
        );
    }
    result
}

/// Ends the emulator: with exit code 0, or 1.
pub fn exit(success: bool) -> ! {
    loop {
        // SAFETY: both reasons are numbers.
        unsafe { call(SYS_EXIT, if success { APPLICATION_EXIT } else { INTERNAL_ERROR }) };
    }
}

/// Writes to the emulator's console.
pub fn write(bytes: &[u8]) {
    for byte in bytes {
        // SAFETY: the operation reads one byte at the address, which is a live reference.
        unsafe { call(SYS_WRITEC, core::ptr::from_ref(byte).expose_provenance()) };
    }
}
