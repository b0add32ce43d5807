//! What the firmware application needs from a board, and the application itself, shared by every board.
//!
//! A board package owns registers, interrupts and linker symbols and hands over [`Parts`]. Nothing here may name a chip,
//! an emulator or a network.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod app;
pub mod flash;
pub mod infer;
#[cfg(all(feature = "semihosting-log", target_os = "none"))]
mod logger;
pub mod nor;
pub mod partition;
mod pins;
pub mod receive;
pub mod register;
pub mod ring;
#[cfg(all(feature = "semihosting-log", target_os = "none"))]
pub mod semihosting;
#[cfg(all(feature = "semihosting-log", target_os = "none"))]
pub mod smoke;
pub mod stack;
pub mod tap;

use embedded_storage::nor_flash::NorFlash;
use rankpatch_runtime::slots::Layout;
pub use rankpatch_runtime::slots::Resume;

pub use nor::{NorError, NorRam};
pub use partition::{Controller, ControllerFault, FlashPartition};
pub use register::Register;
pub use ring::ByteRing;
pub use stack::PaintedStack;

/// The names and the parts' types of one board.
pub trait Board {
    /// The board package's name, for example `qemu-mps2-an386`.
    const NAME: &'static str;
    /// The processor core, for example `Cortex-M4`.
    const CORE: &'static str;
    /// Outputs of a task head that there is room for at most. Each takes four bytes of the arena.
    const HEAD_OUTPUTS: usize = 256;
    /// Longest sequence that the engine keeps, if the base takes longer ones. Keys and values of each row take their part of
    /// the arena.
    const CONTEXT: usize = usize::MAX;
    /// The byte stream to the host.
    type Link: Link;
    /// The adapter partition.
    type Slots: Slots;
    /// The time base of measurements.
    type Counter: Counter;
    /// The stack's high-water mark.
    type Stack: Stack;
}

/// Everything a board gives to the application, each part exactly once, so that they can be borrowed independently.
pub struct Parts<B: Board> {
    /// The byte stream to the host.
    pub link: B::Link,
    /// The adapter partition.
    pub slots: B::Slots,
    /// The time base of measurements.
    pub counter: B::Counter,
    /// The stack's high-water mark.
    pub stack: B::Stack,
    /// The base partition, memory-mapped and never written. 16-byte aligned; what it holds is unverified.
    pub base: &'static [u8],
    /// Scratch memory for the engine. 16-byte aligned, content unspecified.
    pub arena: &'static mut [u8],
}

/// A byte stream that loses nothing: what the application has not read yet waits in the driver, then in the sender.
pub trait Link {
    /// Takes bytes that have arrived into the front of `into` and returns how many; 0 when there are none. Never blocks.
    fn read(&mut self, into: &mut [u8]) -> usize;

    /// Sends all bytes, waiting for the transmitter where it must.
    fn write(&mut self, bytes: &[u8]);

    /// Sleeps until [`read`](Link::read) probably has something to return. Returns at once when it already has.
    fn wait(&mut self);
}

/// The adapter partition: NOR flash with relative offsets, of which every byte is also memory-mapped.
///
/// Pinned slots are what makes reading in place sound: an adapter borrows its payload for as long as it is attached,
/// and the driver refuses to erase or write a slot for just as long.
pub trait Slots: NorFlash {
    /// Bytes per slot, a multiple of [`ERASE_SIZE`](NorFlash::ERASE_SIZE).
    fn slot_bytes(&self) -> usize;

    /// The whole partition as it is now.
    fn bytes(&self) -> &[u8];

    /// How slots and journal share the partition: as many slots as leave the last one's place, or less, to the journal.
    fn layout(&self) -> Layout {
        flash::usual_layout(self.capacity(), self.slot_bytes(), Self::ERASE_SIZE)
    }

    /// Protects slot `index` from erase and write, and gives its bytes out for good. Pinning twice gives the same bytes.
    /// `None` if there is no such slot.
    fn pin(&mut self, index: usize) -> Option<&'static [u8]>;

    /// Lifts the protection of slot `index`.
    ///
    /// # Safety
    /// Nothing that was borrowed through [`pin`](Slots::pin) from this slot is used after this call.
    #[expect(unsafe_code, reason = "the borrow checker cannot follow a borrow across an attach and a detach")]
    unsafe fn unpin(&mut self, index: usize);
}

/// A clock that runs freely and never goes backwards.
pub trait Counter {
    /// Ticks since the start.
    fn ticks(&self) -> u64;

    /// Ticks in a second of the device's own time.
    fn ticks_per_second(&self) -> u32;
}

/// Whole microseconds in `ticks`, for a log's timestamps, of which a microsecond has `per_microsecond`, at least one. Divides as one does on
/// paper, in digits of 16 bits: dividing any 64-bit numbers costs a kilobyte of flash.
pub const fn microseconds(ticks: u64, per_microsecond: u16) -> u64 {
    let (high, low, by) = ((ticks >> 32) as u32, ticks as u32, per_microsecond as u32);
    let middle = ((high % by) << 16) | (low >> 16);
    let last = ((middle % by) << 16) | (low & 0xffff);
    (((high / by) as u64) << 32) | (((middle / by) << 16) | (last / by)) as u64
}

/// How deep the stack has been.
pub trait Stack {
    /// Bytes set aside for the stack.
    fn capacity(&self) -> usize;

    /// The most bytes that were in use at once since the start.
    fn peak(&self) -> usize;
}

#[cfg(test)]
mod tests {
    use super::microseconds;

    #[test]
    fn digits_divide_like_whole_numbers() {
        let mut ticks = 1_u64;
        for _ in 0..2000 {
            ticks = ticks.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            for by in [1, 16, 25, 1000, u16::MAX] {
                for ticks in [ticks, ticks >> 21, ticks >> 40, u64::MAX] {
                    assert_eq!(microseconds(ticks, by), ticks / u64::from(by), "{ticks} / {by}");
                }
            }
        }
    }
}
