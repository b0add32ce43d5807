//! The whole firmware application: takes signed adapters over the serial line into slots, tests, activates and rolls back,
//! and answers `rankpatch device`. README.md says how to talk to it.
#![no_std]
#![no_main]

use rankpatch_board::app;

use {{crate}}::{assets, board};

#[cortex_m_rt::entry]
fn main() -> ! {
    // Two chunks in flight, of as many bytes as every request needs.
    app::run_with::<_, { app::USUAL_FRAME }>(board::parts(assets::base()), 2)
}
