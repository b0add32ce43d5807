//! The Pico 2 as a [`Board`], and the one-time start of everything.
#![expect(unsafe_code, reason = "an interrupt runs an executor; gives out what exists once")]

use defmt_rtt as _;
use embassy_executor::InterruptExecutor;
use embassy_rp::flash::Flash;
use embassy_rp::interrupt;
use embassy_rp::interrupt::{InterruptExt as _, Priority};
use rankpatch_board::{Board, FlashPartition, PaintedStack, Parts};

use crate::clock::Clock;
use crate::pipes::PipeLink;
use crate::{Qspi, memory, usb};

/// Runs the port's task above the application.
static EXECUTOR: InterruptExecutor = InterruptExecutor::new();

#[interrupt]
unsafe fn SWI_IRQ_1() {
    // SAFETY: the handler of the interrupt that the executor was started with.
    unsafe { EXECUTOR.on_interrupt() };
}

/// The Raspberry Pi Pico 2.
#[derive(Debug)]
pub struct Machine;

impl Board for Machine {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const CORE: &'static str = "Cortex-M33";
    type Link = PipeLink;
    type Slots = FlashPartition<Qspi>;
    type Counter = Clock;
    type Stack = PaintedStack;
}

/// Starts the board and gives out its parts.
///
/// # Panics
/// At the second call.
pub fn take() -> Parts<Machine> {
    let chip = embassy_rp::init(embassy_rp::config::Config::default());
    interrupt::SWI_IRQ_1.set_priority(Priority::P3);
    let spawner = EXECUTOR.start(interrupt::SWI_IRQ_1);
    spawner.spawn(usb::run(chip.USB).expect("its only task"));
    defmt::info!("{=str} is listening", Machine::NAME);
    Parts {
        link: PipeLink::new(),
        // SAFETY: once, because `init` panics at a second call.
        slots: unsafe { memory::slots(Qspi(Flash::new_blocking(chip.FLASH))) },
        counter: Clock,
        stack: memory::stack(),
        base: memory::base(),
        arena: memory::arena(),
    }
}
