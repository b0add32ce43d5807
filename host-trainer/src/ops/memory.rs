//! Keeps the C library from giving the memory of one training step back to the system before the next step.

#![allow(unsafe_code, reason = "one call into the C library; see SAFETY")]

/// Lets freed memory stay with the process, once for all.
///
/// A step frees all of its activations and the next one needs them again. glibc returns the top of its heap as soon as a
/// few megabytes of it are free, and every page then costs a fault: a tenth of a step or more. Other C libraries are left
/// as they are.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn keep_freed_pages() {
    use std::ffi::c_int;
    use std::sync::Once;

    /// `M_TRIM_THRESHOLD` of malloc.h: free bytes at the top of the heap above which they are returned.
    const TRIM_THRESHOLD: c_int = -1;
    /// `M_MMAP_THRESHOLD` of malloc.h: size from which an allocation is a mapping of its own, returned when it is freed.
    const MMAP_THRESHOLD: c_int = -3;

    unsafe extern "C" {
        fn mallopt(param: c_int, value: c_int) -> c_int;
    }

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `mallopt` is declared as in glibc's malloc.h and may be called at any time from any thread; it reads no
        // pointer. 32 MiB is the largest value that it takes for the mapping threshold; where it refuses a value it
        // changes nothing, which only costs time.
        unsafe {
            mallopt(TRIM_THRESHOLD, c_int::MAX);
            mallopt(MMAP_THRESHOLD, 32 << 20);
        }
    });
}

/// Nothing to do for this C library.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn keep_freed_pages() {}
