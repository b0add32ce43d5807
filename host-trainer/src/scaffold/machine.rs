//! The emulated machines that a project can be made for.

use rankpatch_format::layout::Layout;

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub origin: u64,
    /// Bytes.
    pub length: u64,
}

/// A machine of QEMU, as the templates need to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// The name that the command knows it by: that of the package in `boards/`.
    pub name: &'static str,
    /// The processor core.
    pub core: &'static str,
    /// The compiler's target.
    pub target: &'static str,
    /// The machine's name in QEMU.
    pub machine: &'static str,
    /// The processor's name in QEMU.
    pub cpu: &'static str,
    /// The feature of the runtime that chooses kernels.
    pub kernels: &'static str,
    /// How weights lie in the base image.
    pub layout: Layout,
    /// Flash of the program, with base and adapters if they are embedded.
    pub flash: Region,
    /// The base's partition.
    pub base: Region,
    /// The adapters' partition.
    pub slots: Region,
    /// Memory.
    pub ram: Region,
    /// Address of the serial port.
    uart: u64,
    /// Address of a counter of hundredths of a second.
    counter: u64,
    /// Clock of the serial port.
    clock: u32,
}

/// Every machine; the first is the usual one.
pub const MACHINES: [Machine; 2] = [
    Machine {
        name: "qemu-mps2-an386",
        core: "Cortex-M4",
        target: "thumbv7em-none-eabihf",
        machine: "mps2-an386",
        cpu: "cortex-m4",
        kernels: "dsp",
        layout: Layout::Dsp4x4,
        flash: Region { origin: 0, length: 0x20_0000 },
        base: Region { origin: 0x20_0000, length: 0x18_0000 },
        slots: Region { origin: 0x38_0000, length: 0x8_0000 },
        ram: Region { origin: 0x2000_0000, length: 0x40_0000 },
        uart: 0x4000_4000,
        counter: 0x4002_8014,
        clock: 25_000_000,
    },
    Machine {
        name: "qemu-mps3-an547",
        core: "Cortex-M55",
        target: "thumbv8m.main-none-eabihf",
        machine: "mps3-an547",
        cpu: "cortex-m55",
        kernels: "helium",
        layout: Layout::Mve4x16,
        flash: Region { origin: 0x1000_0000, length: 0x8_0000 },
        base: Region { origin: 0x3800_0000, length: 0x18_0000 },
        slots: Region { origin: 0x1100_0000, length: 0x8_0000 },
        ram: Region { origin: 0x7000_0000, length: 0x100_0000 },
        uart: 0x5930_3000,
        counter: 0x5930_2014,
        clock: 25_000_000,
    },
];

impl Machine {
    /// What the machine's placeholders stand for.
    pub(super) fn values(&self) -> Vec<(&'static str, String)> {
        let hex = |value: u64| format!("{value:#010x}");
        vec![
            ("core", self.core.to_owned()),
            ("target", self.target.to_owned()),
            ("system", "qemu-system-arm".to_owned()),
            ("machine", self.machine.to_owned()),
            ("cpu", self.cpu.to_owned()),
            ("kernels", self.kernels.to_owned()),
            ("flash_origin", hex(self.flash.origin)),
            ("flash_length", hex(self.flash.length)),
            ("base_origin", hex(self.base.origin)),
            ("base_length", hex(self.base.length)),
            ("slots_origin", hex(self.slots.origin)),
            ("slots_length", hex(self.slots.length)),
            ("ram_origin", hex(self.ram.origin)),
            ("ram_length", hex(self.ram.length)),
            ("uart", hex(self.uart)),
            ("counter", hex(self.counter)),
            ("clock", self.clock.to_string()),
        ]
    }
}
