//! The machine, `{{machine}}` as QEMU emulates it. What another board does differently is all in this file, in memory.x and in
//! .cargo/config.toml.

use core::panic::PanicInfo;
use core::ptr::{self, NonNull};

use cortex_m_semihosting::{debug, hio, hprintln};
use rankpatch_board::{Board, Counter, Link, NorRam, PaintedStack, Parts, Register};
use static_cell::ConstStaticCell;

use crate::Aligned;

/// The partition of the base image, which nothing writes.
pub const BASE: (usize, usize) = ({{base_origin}}, {{base_length}});
/// The partition of the adapters: 7 slots and 8 pages of journal.
pub const SLOTS: (usize, usize) = ({{slots_origin}}, {{slots_length}});
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 0x1_0000;
/// Scratch memory. {{base}} needs {{arena_needed}} bytes; what is left is for inputs and outputs over the line.
pub const ARENA_BYTES: usize = {{arena_bytes}};

/// The machine, for the application of `rankpatch-board`.
pub struct Machine;

impl Board for Machine {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const CORE: &'static str = "{{core}}";
    type Link = Uart;
    type Slots = NorRam;
    type Counter = Centiseconds;
    type Stack = PaintedStack;
}

/// Everything that the application needs.
///
/// # Panics
/// At the second call, or after one of [`arena`] or [`slots`].
pub fn parts(base: &'static [u8]) -> Parts<Machine> {
    unsafe extern "C" {
        static _stack_start: u32;
        static _stack_end: u32;
    }
    // SAFETY: both symbols delimit the stack, which the start-up code painted.
    let stack = unsafe {
        PaintedStack::new(&raw const _stack_end, &raw const _stack_start, cortex_m_rt::STACK_PAINT_VALUE)
    };
    Parts { link: Uart::start(), slots: slots(), counter: Centiseconds, stack, base, arena: arena() }
}

/// Scratch memory.
///
/// # Panics
/// At the second call.
pub fn arena() -> &'static mut [u8] {
    static ARENA: ConstStaticCell<Aligned<[u8; ARENA_BYTES]>> =
        ConstStaticCell::new(Aligned([0; ARENA_BYTES]));
    &mut ARENA.take().0
}

/// The adapters' partition: RAM that is held to the rules of flash. A product has `rankpatch_board::FlashPartition` here.
///
/// # Panics
/// At the second call.
pub fn slots() -> NorRam {
    const RECORD: usize = NorRam::record_len(SLOTS.1);
    static WRITTEN: ConstStaticCell<[u32; RECORD]> = ConstStaticCell::new([0; RECORD]);
    let written = WRITTEN.take();
    let start = NonNull::new(ptr::with_exposed_provenance_mut(SLOTS.0)).expect("an address behind the base");
    // SAFETY: memory of this machine, apart from every section of the program, and given away only here, once.
    unsafe { NorRam::new(start, SLOTS.1, SLOT_BYTES, written) }
}

/// A serial port, polled.
pub struct Uart(());

// SAFETY: the data register of the UART.
const DATA: Register = unsafe { Register::at({{uart}}) };
// SAFETY: its state: bit 0 while it cannot take a byte, bit 1 while it has one.
const STATE: Register = unsafe { Register::at({{uart}} + 4) };
// SAFETY: its switches: bit 0 sends, bit 1 receives.
const CONTROL: Register = unsafe { Register::at({{uart}} + 8) };
// SAFETY: its clock divisor.
const DIVISOR: Register = unsafe { Register::at({{uart}} + 16) };

impl Uart {
    fn start() -> Self {
        DIVISOR.write({{clock}} / 115_200);
        CONTROL.write(0b11);
        Self(())
    }
}

impl Link for Uart {
    fn read(&mut self, into: &mut [u8]) -> usize {
        // The emulator holds the sender back while a byte waits. Real ports need an interrupt or DMA, and a queue.
        match into.first_mut() {
            Some(byte) if STATE.read() & 0b10 != 0 => {
                *byte = DATA.read() as u8;
                1
            }
            _ => 0,
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            while STATE.read() & 0b01 != 0 {}
            DATA.write(u32::from(byte));
        }
    }

    fn wait(&mut self) {}
}

/// The machine's counter of hundredths of a second.
pub struct Centiseconds;

// SAFETY: a register that counts by itself.
const COUNTER: Register = unsafe { Register::at({{counter}}) };

impl Counter for Centiseconds {
    fn ticks(&self) -> u64 {
        u64::from(COUNTER.read())
    }

    fn ticks_per_second(&self) -> u32 {
        100
    }
}

/// Prints bytes on the emulator's console: pieces of a text may end within a character.
pub fn print_bytes(bytes: &[u8]) {
    if let Ok(mut console) = hio::hstdout() {
        let _ = console.write_all(bytes);
    }
}

/// Ends the emulator with exit code 0.
pub fn exit() -> ! {
    loop {
        debug::exit(debug::EXIT_SUCCESS);
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hprintln!("{}", info);
    loop {
        debug::exit(debug::EXIT_FAILURE);
    }
}
