//! The nRF51's UART as the link to the host, with hardware flow control.
//!
//! The UART keeps six bytes. When they are full it drops RTS, and the emulator holds back the sender likewise: nothing is
//! lost, however long an inference takes, and no queue in RAM is needed.
#![expect(unsafe_code, reason = "registers and interrupts")]

use cortex_m::peripheral::NVIC;
use rankpatch_board::{Link, Register};

use crate::board::Interrupt;

const UART: usize = 0x4000_2000;

/// # Safety
/// `offset` is that of a register of the nRF51's UART.
const unsafe fn register(offset: usize) -> Register {
    // SAFETY: a register of the UART, says the caller.
    unsafe { Register::at(UART + offset) }
}

// SAFETY: the register map of the nRF51's UART.
static START_RX: Register = unsafe { register(0x000) };
// SAFETY: as above.
static START_TX: Register = unsafe { register(0x008) };
// SAFETY: as above.
static RX_READY: Register = unsafe { register(0x108) };
// SAFETY: as above.
static TX_READY: Register = unsafe { register(0x11C) };
// SAFETY: as above.
static INTERRUPT_SET: Register = unsafe { register(0x304) };
// SAFETY: as above.
static INTERRUPT_CLEAR: Register = unsafe { register(0x308) };
// SAFETY: as above.
static ENABLE: Register = unsafe { register(0x500) };
// SAFETY: as above.
static PIN_TX: Register = unsafe { register(0x50C) };
// SAFETY: as above.
static PIN_RX: Register = unsafe { register(0x514) };
// SAFETY: as above.
static RX: Register = unsafe { register(0x518) };
// SAFETY: as above.
static TX: Register = unsafe { register(0x51C) };
// SAFETY: as above.
static BAUD_RATE: Register = unsafe { register(0x524) };
// SAFETY: as above.
static CONFIG: Register = unsafe { register(0x56C) };

const ENABLED: u32 = 4;
const INTERRUPT_RX_READY: u32 = 1 << 2;
const BAUD_115200: u32 = 0x01D7_E000;
const FLOW_CONTROL: u32 = 1;
/// The micro:bit's wires to its USB bridge.
const MICROBIT_PINS: (u32, u32) = (24, 25);

/// The link on the UART.
#[derive(Debug)]
pub struct UartLink(());

impl UartLink {
    /// Starts the UART. Call once.
    pub(crate) fn start() -> Self {
        PIN_TX.write(MICROBIT_PINS.0);
        PIN_RX.write(MICROBIT_PINS.1);
        BAUD_RATE.write(BAUD_115200);
        CONFIG.write(FLOW_CONTROL);
        ENABLE.write(ENABLED);
        START_TX.write(1);
        START_RX.write(1);
        // SAFETY: the handler touches one register; no critical section depends on this mask.
        unsafe { NVIC::unmask(Interrupt::Uart) };
        Self(())
    }
}

/// The interrupt handler: a byte has come, which ends the sleep; it is fetched by [`Link::read`].
pub(crate) fn on_receive() {
    INTERRUPT_CLEAR.write(INTERRUPT_RX_READY);
}

impl Link for UartLink {
    fn read(&mut self, into: &mut [u8]) -> usize {
        let mut count = 0;
        for byte in into {
            if RX_READY.read() == 0 {
                break;
            }
            // Cleared first: reading raises it again if another byte waits.
            RX_READY.write(0);
            *byte = RX.read() as u8;
            count += 1;
        }
        count
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            TX_READY.write(0);
            TX.write(u32::from(byte));
            while TX_READY.read() == 0 {}
        }
    }

    fn wait(&mut self) {
        INTERRUPT_SET.write(INTERRUPT_RX_READY);
        // With interrupts masked none can slip in between the look and the sleep; a pending one still ends the sleep.
        cortex_m::interrupt::free(|_| {
            if RX_READY.read() == 0 {
                cortex_m::asm::wfi();
            }
        });
    }
}
