//! Ctrl-C: the first one asks a run to stop after its step, the second one ends the process.

use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use super::exit::INTERRUPTED;

static ASKED: AtomicBool = AtomicBool::new(false);

/// A flag that SIGINT and SIGTERM set from now on.
pub(super) fn flag() -> &'static AtomicBool {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Without a handler the signal ends the process at once, which loses only what no checkpoint holds.
        let _ = ctrlc::set_handler(|| {
            if ASKED.swap(true, Ordering::Relaxed) {
                process::exit(INTERRUPTED.into());
            }
        });
    });
    &ASKED
}
