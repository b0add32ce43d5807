//! The machine `mps2-an386` as a [`Board`]: what is where, and the one-time start of everything.
#![expect(unsafe_code, reason = "gives out what exists once")]

use core::sync::atomic::{AtomicBool, Ordering};

use cortex_m::interrupt::InterruptNumber;
use rankpatch_board::{Board, NorRam, Parts};

use crate::counter::{self, TickCounter};
use crate::memory;
use crate::stack::PaintedStack;
use crate::uart::{self, UartLink};

/// Interrupts of the machine.
pub(crate) const N_INTERRUPTS: usize = 32;

/// The interrupts in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// UART0 has received a byte.
    LinkReceive = 0,
    /// Timer 0 has wrapped.
    Timer = 8,
}

/// Handles an interrupt; false if it is none of this board's.
pub(crate) fn handle(number: i16) -> bool {
    match number {
        _ if number == Interrupt::LinkReceive as i16 => uart::on_receive(),
        _ if number == Interrupt::Timer as i16 => counter::on_wrap(),
        _ => return false,
    }
    true
}

// SAFETY: the numbers are those of the machine and never change.
unsafe impl InterruptNumber for Interrupt {
    fn number(self) -> u16 {
        self as u16
    }
}

/// The QEMU machine `mps2-an386`.
#[derive(Debug)]
pub struct Machine;

impl Board for Machine {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const CORE: &'static str = "Cortex-M4";
    type Link = UartLink;
    type Slots = NorRam;
    type Counter = TickCounter;
    type Stack = PaintedStack;
}

/// Starts the board and gives out its parts.
///
/// # Panics
/// At the second call.
pub fn take() -> Parts<Machine> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    uart::LOG.start_sending();
    assert!(!TAKEN.load(Ordering::Relaxed), "expected one call of take, found a second");
    TAKEN.store(true, Ordering::Relaxed);
    let (counter, link) = (TickCounter::start(), UartLink::start());
    // The host waits for this line before it sends anything.
    defmt::info!("{=str} is listening", Machine::NAME);
    Parts {
        counter,
        link,
        stack: PaintedStack::new(),
        base: memory::base(),
        // SAFETY: both once, says the check above; no interrupt handler calls this function.
        slots: unsafe { memory::slots() },
        // SAFETY: as above.
        arena: unsafe { memory::arena() },
    }
}
