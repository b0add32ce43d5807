//! The nRF52840 DK as a [`Board`], and the one-time start of everything.
#![expect(unsafe_code, reason = "an interrupt runs an executor; gives out what exists once")]

use defmt_rtt as _;
use embassy_executor::InterruptExecutor;
use embassy_nrf::buffered_uarte::{BufferedUarte, BufferedUarteRx, BufferedUarteTx, InterruptHandler};
use embassy_nrf::interrupt;
use embassy_nrf::interrupt::{InterruptExt as _, Priority};
use embassy_nrf::{bind_interrupts, nvmc, peripherals, uarte};
use rankpatch_board::{Board, FlashPartition, PaintedStack, Parts};
use static_cell::ConstStaticCell;

use crate::clock::Clock;
use crate::pipes::{self, PipeLink};
use crate::{Nvmc, memory};

bind_interrupts!(struct Interrupts {
    UARTE0 => InterruptHandler<peripherals::UARTE0>;
});

/// Bytes of the driver's own queues.
const QUEUE_BYTES: usize = 256;

/// Runs the port's tasks above the application.
static EXECUTOR: InterruptExecutor = InterruptExecutor::new();

#[interrupt]
unsafe fn EGU0_SWI0() {
    // SAFETY: the handler of the interrupt that the executor was started with.
    unsafe { EXECUTOR.on_interrupt() };
}

/// Nordic's nRF52840 DK.
#[derive(Debug)]
pub struct Machine;

impl Board for Machine {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const CORE: &'static str = "Cortex-M4";
    /// KWT-1 reads 98 rows.
    const CONTEXT: usize = 128;
    type Link = PipeLink;
    type Slots = FlashPartition<Nvmc>;
    type Counter = Clock;
    type Stack = PaintedStack;
}

#[embassy_executor::task]
async fn receive(port: BufferedUarteRx<'static>) -> ! {
    pipes::receive(port).await
}

#[embassy_executor::task]
async fn send(port: BufferedUarteTx<'static>) -> ! {
    pipes::send(port).await
}

/// Starts the board and gives out its parts.
///
/// # Panics
/// At the second call.
pub fn take() -> Parts<Machine> {
    static FROM_HOST: ConstStaticCell<[u8; QUEUE_BYTES]> = ConstStaticCell::new([0; QUEUE_BYTES]);
    static TO_HOST: ConstStaticCell<[u8; QUEUE_BYTES]> = ConstStaticCell::new([0; QUEUE_BYTES]);
    let chip = embassy_nrf::init(embassy_nrf::config::Config::default());
    let mut config = uarte::Config::default();
    config.baudrate = uarte::Baudrate::Baud115200;
    // The wires to the debugger: RXD, TXD, CTS, RTS. With flow control nothing is lost while a page is erased.
    let (rxd, txd, cts, rts) = (chip.P0_08, chip.P0_06, chip.P0_07, chip.P0_05);
    let (timer, ppi) = (chip.TIMER0, (chip.PPI_CH0, chip.PPI_CH1, chip.PPI_GROUP0));
    let port = BufferedUarte::new_with_rtscts(
        chip.UARTE0,
        timer,
        ppi.0,
        ppi.1,
        ppi.2,
        rxd,
        txd,
        cts,
        rts,
        Interrupts,
        config,
        FROM_HOST.take(),
        TO_HOST.take(),
    );
    let (from_host, to_host) = port.split();
    interrupt::EGU0_SWI0.set_priority(Priority::P6);
    let spawner = EXECUTOR.start(interrupt::EGU0_SWI0);
    spawner.spawn(receive(from_host).expect("its only task"));
    spawner.spawn(send(to_host).expect("its only task"));
    defmt::info!("{=str} is listening", Machine::NAME);
    Parts {
        link: PipeLink::new(),
        // SAFETY: once, because `init` panics at a second call.
        slots: unsafe { memory::slots(Nvmc(nvmc::Nvmc::new(chip.NVMC))) },
        counter: Clock,
        stack: memory::stack(),
        base: memory::base(),
        arena: memory::arena(),
    }
}
