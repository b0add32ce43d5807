//! One test body, many devices: on the CPU always, and in a build with `cuda` on the first GPU too. Such a build is for
//! machines that have one, so there a missing GPU fails the test instead of leaving it out.

use std::cell::RefCell;

use candle_core::Device;

thread_local! {
    static DEVICE: RefCell<Device> = const { RefCell::new(Device::Cpu) };
}

/// The device of the test that runs on this thread.
pub(crate) fn device() -> Device {
    DEVICE.with_borrow(Clone::clone)
}

/// Runs a test body on the first GPU.
#[cfg(feature = "cuda")]
pub(crate) fn on_gpu(body: fn()) {
    let gpu = Device::new_cuda(0).expect("a build with the feature `cuda` is tested on a machine with a GPU");
    DEVICE.set(gpu);
    body();
    DEVICE.set(Device::Cpu);
}

/// Makes tests of functions: `cpu::NAME`, and with the feature `cuda` also `cuda::NAME`.
macro_rules! on_each_device {
    ($($name:ident),* $(,)?) => {
        mod cpu {
            $(#[test] fn $name() { super::$name(); })*
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test] fn $name() { crate::devices::on_gpu(super::$name); })*
        }
    };
}
pub(crate) use on_each_device;
