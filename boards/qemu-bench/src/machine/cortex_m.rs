//! Cortex-M: SysTick counts. Under `-icount` an instruction takes 2^shift ns of virtual time, two ticks or more.

use core::arch::asm;

use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;

/// Instructions per tick of the machine's clock at the machine's `-icount`, as a fraction.
const INSTRUCTIONS_PER_TICK: (u64, u64) = if cfg!(feature = "m0") {
    // 16 MHz, shift 7.
    (125, 256)
} else if cfg!(feature = "m33") {
    // 20 MHz, shift 7.
    (25, 64)
} else if cfg!(feature = "m55") {
    // 32 MHz, shift 7.
    (125, 512)
} else {
    // 25 MHz and shift 7, or 12.5 MHz and shift 8.
    (5, 16)
};

const RELOAD: u32 = 0x00ff_ffff;

pub(crate) fn start_counter() {
    // SAFETY: nothing else in this program uses SysTick.
    let mut systick = unsafe { cortex_m::Peripherals::steal() }.SYST;
    systick.set_clock_source(SystClkSource::Core);
    systick.set_reload(RELOAD);
    systick.clear_current();
    systick.enable_counter();
}

/// The counter, which falls and wraps at 24 bits.
#[inline(always)]
pub(crate) fn now() -> u32 {
    SYST::get_current()
}

/// Instructions since `start`; wrong after more than one wrap of the counter, two million instructions or more.
#[inline(always)]
pub(crate) fn instructions_since(start: u32) -> u32 {
    let ticks = u64::from(start.wrapping_sub(now()) & RELOAD);
    let (numerator, denominator) = INSTRUCTIONS_PER_TICK;
    ((ticks * numerator + denominator / 2) / denominator) as u32
}

/// Executes 2 x `turns` instructions and a few more.
#[inline(never)]
pub(super) fn spin(turns: u32) {
    // SAFETY: counts a register down.
    unsafe {
        asm!("1:", "subs {turns}, #1", "bne 1b", turns = inout(reg) turns => _, options(nomem, nostack));
    }
}

/// # Safety
/// `argument` is what the operation expects.
pub(super) unsafe fn semihosting(operation: usize, argument: usize) {
    // SAFETY: the emulator handles this instruction and writes its result to r0; the rest is the caller's promise.
    unsafe { asm!("bkpt #0xab", inout("r0") operation => _, in("r1") argument, options(nostack)) };
}

#[cortex_m_rt::entry]
fn main() -> ! {
    crate::kernels::run()
}
