//! Base images: refused with an error, or run without a panic.

use rankpatch_format::base::{Base, HEADER_BYTES};
use rankpatch_format::fixture::{self, Aligned};
use rankpatch_format::layout::Layout;
use rankpatch_runtime::{Engine, arena_bytes};

use super::Target;

pub(super) const TARGET: Target = Target { name: "base", run, seeds };

/// An arena larger than this is not tried: a valid base may ask for any amount.
const MAX_ARENA_BYTES: usize = 1 << 20;
/// Sequences longer than this are not run.
const MAX_ROWS: usize = 16;

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let image = |network: &rankpatch_format::write::Network, layout| {
        network.write(layout, 2).expect("a valid network")
    };
    vec![
        ("decoder", image(&fixture::decoder(), Layout::RowMajor)),
        ("decoder-dsp", image(&fixture::decoder(), Layout::Dsp4x4)),
        ("encoder", image(&fixture::encoder(), Layout::RowMajor)),
        ("listener", image(&fixture::listener(), Layout::RowMajor)),
    ]
}

fn run(data: &[u8]) {
    let mut image = Aligned::new(data);
    check(image.bytes());
    let bytes = image.bytes_mut();
    let len = bytes.len() as u32;
    if bytes.len() >= HEADER_BYTES {
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        let crc_at = HEADER_BYTES - 4;
        let covered = [&bytes[..crc_at], &bytes[HEADER_BYTES..]].concat();
        bytes[crc_at..HEADER_BYTES].copy_from_slice(&rankpatch_format::crc32(&covered).to_le_bytes());
        check(image.bytes());
    }
}

fn check(image: &[u8]) {
    let Ok(base) = Base::new(image) else { return };
    let context = (base.manifest().max_rows as usize).min(MAX_ROWS);
    let streaming = base.streaming();
    let needed = arena_bytes(&base, context);
    let too_long = !streaming && base.manifest().max_rows as usize > MAX_ROWS;
    if needed > MAX_ARENA_BYTES || too_long {
        return;
    }
    let mut arena = vec![0_u128; needed.div_ceil(16)];
    let Ok(mut engine) = Engine::new(base, bytemuck::cast_slice_mut(&mut arena), context) else { return };
    let rows = if streaming { 3.min(context) } else { context };
    let width = base.feature_width();
    if width > 0 {
        let _ = engine.run_features(&vec![0.5; rows * width]);
        if let Some(front_end) = base.front_end() {
            let samples: Vec<i16> =
                (0..=front_end.frame + front_end.hop).map(|i| (i * i * 7) as i16).collect();
            let _ = engine.push_samples(&samples[..1]);
            let _ = engine.run_samples(&samples);
        }
    } else {
        let last = base.vocab_size().saturating_sub(1).min(u32::from(u16::MAX)) as u16;
        let tokens: Vec<u16> = [0, last, last / 2].into_iter().cycle().take(rows).collect();
        let _ = engine.run_tokens(&tokens);
    }
    if let Some(tokenizer) = base.tokenizer() {
        let mut tokens = [0; 40];
        let len =
            tokenizer.encode("a cab, é\u{0}".as_bytes(), &mut tokens).expect("room for every character");
        for pair in tokens[..len].windows(2) {
            tokenizer.decode(pair[0], pair[1]);
        }
    }
}
