//! The time base of boards on embassy: its monotonic clock.

use embassy_time::{Instant, TICK_HZ};
use rankpatch_board::Counter;

/// embassy's clock.
#[derive(Debug)]
pub struct Clock;

impl Counter for Clock {
    fn ticks(&self) -> u64 {
        Instant::now().as_ticks()
    }

    fn ticks_per_second(&self) -> u32 {
        TICK_HZ as u32
    }
}
