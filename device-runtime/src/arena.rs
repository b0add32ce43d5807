//! How the caller's arena is divided. Sizes follow from the base alone, so a firmware can state its arena as a constant
//! and find out at start whether it is large enough.

use bytemuck::Pod;
use rankpatch_format::MAX_RANK;
use rankpatch_format::base::{ALIGN, Base};
use rankpatch_format::graph::{HeadShape, Op};

use crate::attention::Scratch;
use crate::kernels;
use crate::merge::row_words;
use crate::{Error, Result};

/// Outputs of a task head that every arena has room for. A larger arena takes larger heads.
pub const MIN_HEAD_OUTPUTS: usize = 64;

/// Rank that every arena has room for. A base with larger matrices gets room for the smaller side of its largest one: a higher rank
/// says nothing that this one cannot.
pub const MIN_RANK: usize = 16;

/// The regions of an arena, itemised; bytes, each a multiple of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArenaLayout {
    /// Values of the graph, as the base's arena plan places them.
    pub values: usize,
    /// Activation codes and their scales.
    pub codes: usize,
    /// Integer sums and packed activations of the kernels, rank components, numbers that the image has as halves.
    pub kernels: usize,
    /// Codes, scores and weights of one attention row.
    pub scores: usize,
    /// Keys and values of the context.
    pub kv_cache: usize,
    /// The last samples of a sound that is pushed in pieces.
    pub samples: usize,
    /// Pooled features and the outputs of a task head.
    pub head: usize,
}

impl ArenaLayout {
    /// All regions together.
    pub fn total(&self) -> usize {
        [self.values, self.codes, self.kernels, self.scores, self.kv_cache, self.samples, self.head]
            .into_iter()
            .fold(0, usize::saturating_add)
    }
}

/// Element counts behind an [`ArenaLayout`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    values: usize,
    codes: usize,
    rows: usize,
    acc: usize,
    pack: usize,
    query: usize,
    totals: usize,
    keys: usize,
    kv: usize,
    samples: usize,
    pooled: usize,
    rank: usize,
    numbers: usize,
}

fn round(bytes: usize) -> usize {
    bytes.saturating_add(ALIGN - 1) / ALIGN * ALIGN
}

impl Counts {
    pub(crate) fn new(base: &Base<'_>, context: usize) -> Self {
        let manifest = base.manifest();
        let pass = manifest.pass_rows as usize;
        let mut counts = Self {
            values: manifest.values_bytes as usize / 4,
            pooled: base.value(manifest.features).width as usize,
            ..Self::default()
        };
        for (_, op) in base.ops() {
            counts.numbers = counts.numbers.max(halves(base, op));
            match op {
                Op::Linear { input, weight, .. } => {
                    let w = base.matrix(weight);
                    let rows = base.value(input).rows.count(pass);
                    counts.rows = counts.rows.max(rows);
                    counts.codes = counts.codes.max(rows.saturating_mul(stride(w.cols)));
                    // Rows go through the kernels two at a time.
                    counts.acc = counts.acc.max(rows.min(2).saturating_mul(w.rows));
                    counts.pack = counts.pack.max(kernels::pack_len(w.layout, w.cols)).max(row_words(w.cols));
                    counts.rank = counts.rank.max(w.rows.min(w.cols));
                }
                Op::Mfcc { frame, bands, .. } => {
                    let bands = base.tensor(bands).map_or(0, |info| info.rows as usize);
                    // A frame is computed while there are no codes.
                    counts.codes = counts.codes.max(kernels::front_end::scratch_len(bands).saturating_mul(4));
                    counts.samples = frame.into();
                }
                Op::Embedding { table } => counts.codes = counts.codes.max(base.matrix(table).cols),
                Op::Attention { q, k, n_heads, n_kv_heads, causal, .. } => {
                    let keys = base.value(k).rows.count(if causal { context } else { pass });
                    let head =
                        HeadShape { head_size: base.value(q).width as usize / usize::from(n_heads.max(1)) };
                    counts.query = counts.query.max(head.words().saturating_mul(n_heads.into()));
                    counts.totals = counts.totals.max(2 * head.words());
                    counts.keys = counts.keys.max(keys);
                    if causal {
                        let words = head.code_words(keys).saturating_mul(n_kv_heads.into());
                        counts.kv = counts.kv.saturating_add(words).saturating_add(2);
                    }
                }
                _ => {}
            }
        }
        // A task head is one more linear operator, on one row.
        counts.codes = counts.codes.max(stride(counts.pooled));
        counts.rows = counts.rows.max(1);
        counts.acc = counts.acc.max(1);
        counts.rank = counts.rank.clamp(MIN_RANK, MAX_RANK as usize);
        counts
    }

    pub(crate) fn layout(&self) -> ArenaLayout {
        let words = |count: usize| round(count.saturating_mul(4));
        let rank = self.rank;
        ArenaLayout {
            values: words(self.values),
            codes: round(self.codes) + words(self.rows),
            kernels: words(self.acc)
                + words(self.pack)
                + words(2 * rank)
                + round(rank * 2)
                + words(self.numbers),
            scores: words(self.query) + words(self.totals) + words(self.keys) + words(self.keys.div_ceil(2)),
            kv_cache: words(self.kv),
            samples: round(self.samples.saturating_mul(2)),
            head: words(self.pooled) + words(MIN_HEAD_OUTPUTS),
        }
    }
}

/// Numbers that an operator turns from halves into f32 at once.
fn halves(base: &Base<'_>, op: Op) -> usize {
    let halves = |id| base.floats(id).halves();
    match op {
        Op::Linear { weight, bias, .. } => base.matrix(weight).scales.halves() + bias.map_or(0, halves),
        Op::LayerNorm { weight, bias, .. } => halves(weight) + halves(bias),
        Op::RmsNorm { weight, .. } | Op::Scale { weight, .. } => halves(weight),
        Op::PrependToken { token, .. } => halves(token),
        Op::AddPosition { table, .. } if halves(table) > 0 => {
            base.tensor(table).map_or(0, |info| info.cols as usize)
        }
        _ => 0,
    }
}

/// Bytes from one row of codes to the next.
pub(crate) fn stride(cols: usize) -> usize {
    cols.next_multiple_of(4)
}

/// The itemised arena of `base` for sequences of at most `context` rows.
pub fn arena_layout(base: &Base<'_>, context: usize) -> ArenaLayout {
    Counts::new(base, context).layout()
}

/// Bytes of arena that [`crate::Engine::new`] needs for `base` and sequences of at most `context` rows.
pub fn arena_bytes(base: &Base<'_>, context: usize) -> usize {
    arena_layout(base, context).total()
}

/// The arena, divided.
pub(crate) struct Arena<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) codes: &'a mut [i8],
    pub(crate) scales: &'a mut [f32],
    pub(crate) acc: &'a mut [i32],
    pub(crate) pack: &'a mut [i32],
    pub(crate) z: &'a mut [i32],
    pub(crate) v: &'a mut [i16],
    /// Numbers of one operator that the image has as halves.
    pub(crate) numbers: &'a mut [f32],
    pub(crate) attention: Scratch<'a>,
    pub(crate) kv: &'a mut [u32],
    /// `[frame]`.
    pub(crate) samples: &'a mut [i16],
    pub(crate) pooled: &'a mut [f32],
    pub(crate) head_out: &'a mut [f32],
}

impl<'a> Arena<'a> {
    pub(crate) fn new(base: &Base<'_>, memory: &'a mut [u8], context: usize) -> Result<Self> {
        let remainder = memory.as_ptr().addr() % ALIGN;
        if remainder != 0 {
            return Err(Error::Misaligned { expected: ALIGN, found: remainder });
        }
        let counts = Counts::new(base, context);
        let found = memory.len();
        // What is left goes to the outputs of task heads.
        let memory = memory.get_mut(..found / ALIGN * ALIGN).unwrap_or(&mut []);
        Self::divided(&counts, Cutter(memory))
            .filter(|arena| arena.head_out.len() >= MIN_HEAD_OUTPUTS)
            .ok_or_else(|| Error::ArenaTooSmall { expected: counts.layout().total(), found })
    }

    /// `None` if there is too little.
    fn divided(counts: &Counts, mut cutter: Cutter<'a>) -> Option<Self> {
        Some(Self {
            values: cutter.cut(counts.values)?,
            codes: cutter.cut(counts.codes)?,
            scales: cutter.cut(counts.rows)?,
            acc: cutter.cut(counts.acc)?,
            pack: cutter.cut(counts.pack)?,
            z: cutter.cut(2 * counts.rank)?,
            v: cutter.cut(counts.rank)?,
            numbers: cutter.cut(counts.numbers)?,
            attention: Scratch {
                query: cutter.cut(counts.query)?,
                totals: cutter.cut(counts.totals)?,
                scores: cutter.cut(counts.keys)?,
                weights: cutter.cut(counts.keys.div_ceil(2))?,
            },
            kv: cutter.cut(counts.kv)?,
            samples: cutter.cut(counts.samples)?,
            pooled: cutter.cut(counts.pooled)?,
            head_out: bytemuck::try_cast_slice_mut(cutter.0).ok()?,
        })
    }
}

struct Cutter<'a>(&'a mut [u8]);

impl<'a> Cutter<'a> {
    /// The next `count` elements, in a region as [`Counts::layout`] says.
    fn cut<T: Pod>(&mut self, count: usize) -> Option<&'a mut [T]> {
        bytemuck::try_cast_slice_mut(self.region(count, size_of::<T>())?).ok()
    }

    /// So many bytes for each of `count` elements.
    // One copy for elements of all types.
    #[inline(never)]
    fn region(&mut self, count: usize, size: usize) -> Option<&'a mut [u8]> {
        let bytes = count.saturating_mul(size);
        let (region, rest) = core::mem::take(&mut self.0).split_at_mut_checked(round(bytes))?;
        self.0 = rest;
        region.get_mut(..bytes)
    }
}
