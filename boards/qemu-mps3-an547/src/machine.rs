//! Addresses of this machine that its memory map does not say, all of them secure aliases.

/// The UART of the link.
pub(crate) const LINK_UART: usize = 0x5930_3000;
/// The UART of the log.
pub(crate) const LOG_UART: usize = 0x5930_4000;
/// The control frame of the system counter.
pub(crate) const COUNTER_CONTROL: usize = 0x5810_0000;
/// A timer, which shows the system counter.
pub(crate) const TIMER: usize = 0x5800_0000;
/// Nothing answers here: an access is a fault.
pub const NOTHING: usize = 0x1F00_0000;
