//! The answers of a device for people.

use super::super::console::{Table, fields, grouped};
use crate::client::{Info, Slot, Statistics, Status, mode_name};

pub(super) fn info_text(info: &Info) -> String {
    let active = info.active.map_or("the plain base".into(), |active| {
        format!("slot {}, {}", active.slot, mode_name(active.mode))
    });
    fields(&[
        ("board", info.board.clone()),
        ("firmware", info.firmware.clone()),
        ("base", format!("{} ({} sites)", info.base, info.n_sites)),
        ("id", info.base_id.to_string()),
        ("slots", format!("{} of {} bytes", info.n_slots, grouped(info.slot_bytes))),
        ("chunks", format!("{} bytes, {} in flight", grouped(info.chunk_bytes), info.window)),
        ("product", info.product.to_string()),
        (
            "trusts",
            match (info.keys.as_slice(), info.insecure) {
                ([], false) => "no key: every adapter is refused".into(),
                ([], true) => "UNSIGNED adapters".into(),
                (keys, false) => keys.join(", "),
                (keys, true) => format!("{}, and UNSIGNED adapters", keys.join(", ")),
            },
        ),
        (
            "arena",
            format!("{} bytes, {} needed", grouped(info.arena_bytes), grouped(info.arena_bytes_needed)),
        ),
        ("applied", active),
    ])
}

pub(super) fn slots_text(slots: &[Slot]) -> String {
    let mut table = Table::new(2, &["slot", "task", "sequence", "sites", "head", "bytes", "erased"]);
    for slot in slots {
        match &slot.adapter {
            None => table.row(&[&slot.slot, &"-", &"", &"", &"", &"", &slot.wear]),
            Some(adapter) => table.row(&[
                &slot.slot,
                &adapter.task,
                &adapter.sequence,
                &adapter.n_patches,
                &adapter.head_outputs,
                &grouped(adapter.file_bytes),
                &slot.wear,
            ]),
        }
    }
    table.to_string()
}

pub(super) fn status_text(status: &Status) -> String {
    let slot = |slot: Option<u8>| slot.map_or_else(|| "-".into(), |slot| format!("slot {slot}"));
    let running = status.running.map_or("the plain base".into(), |active| {
        format!("slot {}, {}, sequence {}", active.slot, mode_name(active.mode), status.sequence)
    });
    let upload = status.upload.map_or("-".into(), |(slot, next, len)| {
        format!("slot {slot}, {} of {} bytes", grouped(next), grouped(len))
    });
    fields(&[
        ("runs", running),
        ("on trial", slot(status.trial)),
        ("confirmed", slot(status.confirmed)),
        ("before", slot(status.previous)),
        ("rolled back", slot(status.rolled_back)),
        ("floor", status.floor.to_string()),
        ("upload", upload),
    ])
}

pub(super) fn statistics_text(statistics: &Statistics) -> String {
    fields(&[
        (
            "frames",
            format!("{} accepted, {} refused", grouped(statistics.frames), grouped(statistics.bad_frames)),
        ),
        ("rows run", format!("{} in {} ticks", grouped(statistics.rows), grouped(statistics.run_ticks))),
        ("installed", grouped(statistics.installs)),
        ("activated", grouped(statistics.activations)),
        ("detached", grouped(statistics.detaches)),
        ("rolled back", grouped(statistics.rollbacks)),
        ("failed self-tests", grouped(statistics.failed_self_tests)),
        ("peak stack", format!("{} bytes", grouped(statistics.peak_stack_bytes))),
    ])
}
