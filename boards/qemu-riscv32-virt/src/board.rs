//! The machine `virt` as a [`Board`]: what is where, and the one-time start of everything.
#![expect(unsafe_code, reason = "gives out what exists once")]

use core::sync::atomic::{AtomicBool, Ordering};

use rankpatch_board::{Board, FlashPartition, PaintedStack, Parts};

use crate::cfi::CfiFlash;
use crate::counter::TickCounter;
use crate::memory;
use crate::uart::UartLink;

/// The QEMU machine `virt`, with 32 bits.
#[derive(Debug)]
pub struct Riscv32Virt;

impl Board for Riscv32Virt {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const CORE: &'static str = "RV32IMAC";
    type Link = UartLink;
    type Slots = FlashPartition<CfiFlash>;
    type Counter = TickCounter;
    type Stack = PaintedStack;
}

/// Starts the board and gives out its parts.
///
/// # Panics
/// At the second call.
pub fn take() -> Parts<Riscv32Virt> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    assert!(!TAKEN.swap(true, Ordering::Relaxed), "expected one call of take, found a second");
    // SAFETY: once, says the check above; no interrupt handler calls this function.
    let stack = unsafe { memory::stack() };
    let link = UartLink::start();
    // The host waits for this line before it sends anything.
    defmt::info!("{=str} is listening", Riscv32Virt::NAME);
    Parts {
        counter: TickCounter::new(),
        link,
        stack,
        base: memory::base(),
        // SAFETY: both once, as above.
        slots: unsafe { memory::slots() },
        // SAFETY: as above.
        arena: unsafe { memory::arena() },
    }
}
