//! The link of boards on embassy: the application runs in thread mode and never waits for the port; embassy's tasks run above it,
//! in an interrupt, and carry bytes between the port and two pipes. This module knows no chip.

use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::pipe::Pipe;
use embedded_io_async::{Read, Write};
use rankpatch_board::Link;

/// Bytes that wait while the application computes: a window of two chunks. When they are full, the task stops reading, and the
/// port stops the sender.
const RECEIVED_BYTES: usize = 4096;
/// Bytes that wait for the port.
const SENDING_BYTES: usize = 512;
/// Bytes that are carried at once: less than a packet of USB, because a host waits for more after a full one.
const PART_BYTES: usize = 63;

static RECEIVED: Pipe<CriticalSectionRawMutex, RECEIVED_BYTES> = Pipe::new();
static SENDING: Pipe<CriticalSectionRawMutex, SENDING_BYTES> = Pipe::new();

/// The application's ends of the two pipes.
#[derive(Debug)]
pub struct PipeLink(());

impl PipeLink {
    /// The link. Call once.
    pub(crate) fn new() -> Self {
        Self(())
    }
}

impl Link for PipeLink {
    fn read(&mut self, into: &mut [u8]) -> usize {
        RECEIVED.try_read(into).unwrap_or(0)
    }

    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match SENDING.try_write(bytes) {
                Ok(taken) => bytes = bytes.get(taken..).unwrap_or(&[]),
                Err(_) => cortex_m::asm::wfe(),
            }
        }
    }

    fn wait(&mut self) {
        // The return from any interrupt is an event that is remembered, so none slips in between the look and the sleep.
        while RECEIVED.is_empty() {
            cortex_m::asm::wfe();
        }
    }
}

/// Carries what comes in, for ever. What a damaged transfer held is lost, and the protocol above asks for it again.
pub(crate) async fn receive(mut port: impl Read) -> ! {
    let mut bytes = [0; PART_BYTES];
    loop {
        match port.read(&mut bytes).await {
            Ok(len) => RECEIVED.write_all(bytes.get(..len).unwrap_or(&[])).await,
            Err(_) => embassy_time::Timer::after_millis(1).await,
        }
    }
}

/// Carries what goes out, for ever. Without a host it is thrown away: nobody has asked.
pub(crate) async fn send(mut port: impl Write) -> ! {
    let mut bytes = [0; PART_BYTES];
    loop {
        let len = SENDING.read(&mut bytes).await;
        if port.write_all(bytes.get(..len).unwrap_or(&[])).await.is_ok() {
            let _ = port.flush().await;
        }
    }
}
