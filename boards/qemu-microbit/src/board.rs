//! The machine `microbit` as a [`Board`]: what is where, and the one-time start of everything.
#![expect(unsafe_code, reason = "gives out what exists once")]

use core::sync::atomic::{AtomicBool, Ordering};

use cortex_m::interrupt::InterruptNumber;
use rankpatch_board::{Board, FlashPartition, PaintedStack, Parts};

use crate::counter::TickCounter;
use crate::memory;
use crate::nvmc::Nvmc;
use crate::uart::UartLink;

/// The interrupts in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// The UART has received a byte.
    Uart = 2,
    /// Timer 0 has wrapped.
    Timer = 8,
}

impl Interrupt {
    pub(crate) fn from_number(number: i16) -> Option<Self> {
        [Self::Uart, Self::Timer].into_iter().find(|&interrupt| interrupt as i16 == number)
    }
}

// SAFETY: the numbers are those of the chip and never change.
unsafe impl InterruptNumber for Interrupt {
    fn number(self) -> u16 {
        self as u16
    }
}

/// The QEMU machine `microbit`.
#[derive(Debug)]
pub struct Microbit;

impl Board for Microbit {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const CORE: &'static str = "Cortex-M0";
    const HEAD_OUTPUTS: usize = 64;
    const CONTEXT: usize = 17;
    type Link = UartLink;
    type Slots = FlashPartition<Nvmc>;
    type Counter = TickCounter;
    type Stack = PaintedStack;
}

/// Starts the board and gives out its parts.
///
/// # Panics
/// At the second call.
pub fn take() -> Parts<Microbit> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    assert!(!TAKEN.load(Ordering::Relaxed), "expected one call of take, found a second");
    TAKEN.store(true, Ordering::Relaxed);
    let (counter, link) = (TickCounter::start(), UartLink::start());
    // The host waits for this line before it sends anything.
    defmt::info!("{=str} is listening", Microbit::NAME);
    Parts {
        counter,
        link,
        stack: memory::stack(),
        base: memory::base(),
        // SAFETY: both once, says the check above; no interrupt handler calls this function.
        slots: unsafe { memory::slots() },
        // SAFETY: as above.
        arena: unsafe { memory::arena() },
    }
}
