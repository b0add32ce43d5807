//! The NS16550 as the link to the host.
//!
//! Its queue of 16 bytes is all there is: when it is full the emulator holds back the sender, so nothing is lost, however
//! long an inference takes. A byte that arrives wakes the core through the interrupt controller; no handler ever runs.
#![expect(unsafe_code, reason = "registers")]

use core::ptr;

use rankpatch_board::{Link, Register};

const UART: usize = 0x1000_0000;
const DATA: usize = 0;
const INTERRUPT_ENABLE: usize = 1;
const FIFO_CONTROL: usize = 2;
const LINE_CONTROL: usize = 3;
const MODEM_CONTROL: usize = 4;
const LINE_STATUS: usize = 5;

const INTERRUPT_RECEIVED: u8 = 1 << 0;
const FIFO_ON_AND_CLEARED: u8 = 0x07;
const EIGHT_BITS: u8 = 3;
/// DTR, RTS, and the queue of both decides over RTS.
const AUTOMATIC_FLOW_CONTROL: u8 = 0x23;
const STATUS_RECEIVED: u8 = 1 << 0;
const STATUS_SEND_EMPTY: u8 = 1 << 5;

const PLIC: usize = 0x0C00_0000;
/// The UART's number at the interrupt controller.
const SOURCE: usize = 10;
// SAFETY: the machine's interrupt controller. Context 0 is machine mode of hart 0.
static PRIORITY: Register = unsafe { Register::at(PLIC + 4 * SOURCE) };
// SAFETY: as above.
static ENABLE: Register = unsafe { Register::at(PLIC + 0x2000) };
// SAFETY: as above.
static THRESHOLD: Register = unsafe { Register::at(PLIC + 0x20_0000) };
// SAFETY: as above.
static CLAIM: Register = unsafe { Register::at(PLIC + 0x20_0004) };

fn read(register: usize) -> u8 {
    // SAFETY: a byte-wide register of the UART, which may be read at any time.
    unsafe { ptr::with_exposed_provenance::<u8>(UART + register).read_volatile() }
}

fn write(register: usize, value: u8) {
    // SAFETY: a byte-wide register of the UART, which may be written at any time.
    unsafe { ptr::with_exposed_provenance_mut::<u8>(UART + register).write_volatile(value) }
}

/// The link on the UART.
#[derive(Debug)]
pub struct UartLink(());

impl UartLink {
    /// Starts the UART. Call once.
    pub(crate) fn start() -> Self {
        write(LINE_CONTROL, EIGHT_BITS);
        write(FIFO_CONTROL, FIFO_ON_AND_CLEARED);
        write(MODEM_CONTROL, AUTOMATIC_FLOW_CONTROL);
        write(INTERRUPT_ENABLE, INTERRUPT_RECEIVED);
        PRIORITY.write(1);
        THRESHOLD.write(0);
        ENABLE.write(1 << SOURCE);
        // SAFETY: interrupts stay off as a whole, so this only lets a pending one end the sleep.
        unsafe { riscv::register::mie::set_mext() };
        Self(())
    }
}

impl Link for UartLink {
    fn read(&mut self, into: &mut [u8]) -> usize {
        let mut count = 0;
        for byte in into {
            if read(LINE_STATUS) & STATUS_RECEIVED == 0 {
                break;
            }
            *byte = read(DATA);
            count += 1;
        }
        count
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            while read(LINE_STATUS) & STATUS_SEND_EMPTY == 0 {}
            write(DATA, byte);
        }
    }

    fn wait(&mut self) {
        // An interrupt that comes between the look and the sleep is pending then, and ends the sleep at once.
        if read(LINE_STATUS) & STATUS_RECEIVED == 0 {
            riscv::asm::wfi();
        }
        // The interrupt has done its work. Claimed and completed, so that the next one is a new one.
        let claimed = CLAIM.read();
        if claimed != 0 {
            CLAIM.write(claimed);
        }
    }
}
