//! Access to memory-mapped registers.
#![expect(unsafe_code, reason = "registers are memory that only the hardware owns")]

/// A 32-bit register of a peripheral.
#[derive(Clone, Copy, Debug)]
pub struct Register(*mut u32);

impl Register {
    /// The register at `address`.
    ///
    /// # Safety
    /// `address` is a register of the machine which may be read and written at any time.
    pub const unsafe fn at(address: usize) -> Self {
        Self(core::ptr::with_exposed_provenance_mut(address))
    }

    /// Reads the register.
    pub fn read(self) -> u32 {
        // SAFETY: a register that may be read, says the caller of `at`.
        unsafe { self.0.read_volatile() }
    }

    /// Writes the register.
    pub fn write(self, value: u32) {
        // SAFETY: a register that may be written, says the caller of `at`.
        unsafe { self.0.write_volatile(value) }
    }
}

// SAFETY: the pointer is an address of hardware, the same for every context.
unsafe impl Sync for Register {}
// SAFETY: as above.
unsafe impl Send for Register {}
