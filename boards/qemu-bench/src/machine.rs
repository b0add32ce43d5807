//! What differs between the emulated machines: how a program starts, how it counts, and semihosting's one instruction.
#![expect(
    unsafe_code,
    reason = "start-up code, a counter and semihosting calls are instructions that Rust has no name for"
)]

#[cfg_attr(target_arch = "arm", path = "machine/cortex_m.rs")]
#[cfg_attr(target_arch = "riscv32", path = "machine/riscv.rs")]
mod core_specific;

use core::fmt;
use core::panic::PanicInfo;

pub(crate) use core_specific::{instructions_since, now, start_counter};
use core_specific::{semihosting, spin};

/// Semihosting: write a string that ends with a zero byte.
const SYS_WRITE0: usize = 0x04;
/// Semihosting: end the program with a reason and a code.
const SYS_EXIT_EXTENDED: usize = 0x20;
/// The reason of a program that ends by itself.
const APPLICATION_EXIT: usize = 0x2_0026;

/// The host's console.
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.as_bytes().chunks(63) {
            let mut buffer = [0_u8; 64];
            buffer.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            // SAFETY: the host reads a string that ends with a zero byte.
            unsafe { semihosting(SYS_WRITE0, buffer.as_ptr().addr()) };
        }
        Ok(())
    }
}

/// Writes one line to the host.
macro_rules! say {
    ($($arguments:tt)*) => {{
        use core::fmt::Write as _;
        // The console never fails.
        let _ = writeln!(crate::machine::Console, $($arguments)*);
    }};
}
pub(crate) use say;

/// Ends the emulator with an exit code.
pub(crate) fn exit(code: usize) -> ! {
    let block = [APPLICATION_EXIT, code];
    loop {
        // SAFETY: the host reads a block of two words.
        unsafe { semihosting(SYS_EXIT_EXTENDED, block.as_ptr().addr()) };
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    say!("{info}");
    exit(101)
}

/// Loops of known length that the counter gets wrong.
pub(crate) fn miscounted() -> u32 {
    let empty = spin_counted(1);
    let lengths = (2..=100).chain([1001, 500_001]);
    lengths.map(|turns| u32::from(spin_counted(turns) - empty != 2 * (turns - 1))).sum()
}

/// Never inlined: copies could differ by an instruction.
#[inline(never)]
fn spin_counted(turns: u32) -> u32 {
    let start = now();
    spin(turns);
    instructions_since(start)
}
