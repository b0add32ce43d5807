//! Addresses of this machine that its memory map does not say.

/// The UART of the link.
pub(crate) const LINK_UART: usize = 0x4000_4000;
/// The UART of the log.
pub(crate) const LOG_UART: usize = 0x4000_5000;
/// Nothing answers here: an access is a fault.
pub const NOTHING: usize = 0xA000_0000;
