//! Attention, matrices of 16-bit codes and loops over floats for Arm cores with the DSP extension, those with Helium
//! included: what needs no layout of its own, and what vector registers would not make the same bits of.
#![allow(
    unsafe_code,
    reason = "SMLAD has no stable intrinsic, and loops of naked assembly use every register"
)]

/// A naked function's body, for a core with the DSP extension: `thumbv8m.main` need not have it, so there the assembler is told.
#[cfg(not(armv8m_main))]
macro_rules! dsp_asm {
    ($($line:expr),+ $(,)?) => { core::arch::naked_asm!($($line),+) };
}
#[cfg(armv8m_main)]
macro_rules! dsp_asm {
    ($($line:expr),+ $(,)?) => { core::arch::naked_asm!(".cpu cortex-m33", $($line),+) };
}

pub(super) mod attention;
#[cfg(target_abi = "eabihf")]
pub(super) mod float;
#[cfg(target_abi = "eabihf")]
pub(super) mod front_end;
pub(super) mod wide;
