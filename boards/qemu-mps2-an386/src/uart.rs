//! The CMSDK APB UARTs: UART0 is the link to the host, UART1 carries the log.
//!
//! Reception is driven by the interrupt into a queue. When the queue is full the last byte stays in the UART, which makes
//! the emulator hold back the sender: nothing is ever lost, however long an inference takes.
#![expect(unsafe_code, reason = "registers and interrupts")]

use cortex_m::peripheral::NVIC;
use rankpatch_board::{ByteRing, Link};

use crate::board::Interrupt;
use crate::counter::TICKS_PER_SECOND;
use crate::machine;
use crate::register::Register;

/// Offset of the data register; the others follow in the order of [`Uart`]'s fields.
const STATE_TX_FULL: u32 = 1 << 0;
const STATE_RX_FULL: u32 = 1 << 1;
const CTRL_TX_ENABLE: u32 = 1 << 0;
const CTRL_RX_ENABLE: u32 = 1 << 1;
const CTRL_RX_INTERRUPT: u32 = 1 << 3;
const INTERRUPT_RX: u32 = 1 << 1;
/// 115,200 Bd. The emulator ignores the value as long as it is at least 16.
const BAUD_DIVISOR: u32 = TICKS_PER_SECOND / 115_200;

/// Bytes that wait while the application computes. Nearly a whole upload window fits, so that the sender hardly stops.
const QUEUE_BYTES: usize = 8192;
static QUEUE: ByteRing<QUEUE_BYTES> = ByteRing::new();

/// One UART.
pub(crate) struct Uart {
    data: Register,
    state: Register,
    ctrl: Register,
    interrupt: Register,
    baud: Register,
}

// SAFETY: the two UARTs of this machine.
static LINK: Uart = unsafe { Uart::at(machine::LINK_UART) };
// SAFETY: as above.
pub(crate) static LOG: Uart = unsafe { Uart::at(machine::LOG_UART) };

impl Uart {
    /// # Safety
    /// A CMSDK UART lies at `address`.
    const unsafe fn at(address: usize) -> Self {
        // SAFETY: the register map of the CMSDK UART; none of these registers has a forbidden value.
        unsafe {
            Self {
                data: Register::at(address),
                state: Register::at(address + 4),
                ctrl: Register::at(address + 8),
                interrupt: Register::at(address + 12),
                baud: Register::at(address + 16),
            }
        }
    }

    /// Switches the transmitter on.
    pub(crate) fn start_sending(&self) {
        self.baud.write(BAUD_DIVISOR);
        self.ctrl.write(CTRL_TX_ENABLE);
    }

    /// Sends one byte, waiting for the transmitter.
    pub(crate) fn send(&self, byte: u8) {
        while self.state.read() & STATE_TX_FULL != 0 {}
        self.data.write(u32::from(byte));
    }
}

/// The interrupt-driven link on UART0.
#[derive(Debug)]
pub struct UartLink(());

impl UartLink {
    /// Starts UART0. Call once.
    pub(crate) fn start() -> Self {
        LINK.start_sending();
        LINK.ctrl.write(CTRL_TX_ENABLE | CTRL_RX_ENABLE | CTRL_RX_INTERRUPT);
        // SAFETY: the handler and its queue are statics and ready; no critical section depends on this mask.
        unsafe { NVIC::unmask(Interrupt::LinkReceive) };
        Self(())
    }
}

/// The interrupt handler: empties the UART into the queue as far as there is room.
pub(crate) fn on_receive() {
    // Cleared first: a byte that arrives from here on raises the interrupt again.
    LINK.interrupt.write(INTERRUPT_RX);
    while LINK.state.read() & STATE_RX_FULL != 0 && !QUEUE.is_full() {
        QUEUE.push(LINK.data.read() as u8);
    }
}

impl Link for UartLink {
    fn read(&mut self, into: &mut [u8]) -> usize {
        let count = QUEUE.pop_into(into);
        // A byte that found the queue full waits in the UART, and its interrupt has gone by. Looked for after the pop: the
        // queue may have filled up at any time before it.
        if count > 0 && LINK.state.read() & STATE_RX_FULL != 0 {
            NVIC::pend(Interrupt::LinkReceive);
        }
        count
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            LINK.send(byte);
        }
    }

    fn wait(&mut self) {
        // With interrupts masked none can slip in between the look and the sleep; a pending one still ends the sleep.
        cortex_m::interrupt::free(|_| {
            if QUEUE.is_empty() {
                cortex_m::asm::wfi();
            }
        });
    }
}
