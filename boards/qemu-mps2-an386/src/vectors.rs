//! The vectors of as many interrupts as the machine has, all to the default handler. Without them the start-up code reserves as many as the
//! architecture allows: one or two kilobytes.
#![expect(unsafe_code, reason = "a section and a symbol that the start-up code and its linker script know")]

use crate::board::N_INTERRUPTS;

unsafe extern "C" {
    fn DefaultHandler();
}

/// The table behind that of the exceptions.
// SAFETY: nothing else is in this section or has this name, and the default handler may be called for any interrupt.
#[unsafe(link_section = ".vector_table.interrupts")]
#[unsafe(no_mangle)]
pub(crate) static __INTERRUPTS: [unsafe extern "C" fn(); N_INTERRUPTS] = [DefaultHandler; N_INTERRUPTS];
