//! Runs a base, with or without an adapter, over a caller's arena.
//!
//! [`Engine`] walks the graph operator by operator and keeps what outlives a pass: the position in the sequence, keys
//! and values, pooled features. What an operator computes is in [`crate::ops`] and [`crate::linear`]. Everything that
//! bytes from outside could get wrong was checked when they became a [`Base`] or an [`Adapter`]; a run can only refuse
//! what its caller gives it.

mod samples;
mod spans;

use rankpatch_format::adapter::{Adapter, Biases, Cursor, Head, Pooling};
use rankpatch_format::base::{ALIGN, Base};
use rankpatch_format::digest::{Digest, XorShift32};
use rankpatch_format::graph::{HeadShape, Op};
use rankpatch_format::numbers::Room;

pub use spans::{Span, Spans, Word, Words};

use crate::arena::{Arena, stride};
use crate::attention::Heads;
use crate::built_in::{TEXT, check_built_in};
use crate::linear::{Codes, LinearMerged, Scratch, linear, linear_merged};
use crate::merge::{MergedCursor, MergedImage, MergedType, merge, merged_bytes};
use crate::ops;
use crate::pass::Pass;
use crate::{Error, Result, kernels};

/// What attaching did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Attachment {
    /// Sites patched.
    pub n_patches: u16,
    /// Weight bytes copied: 0 when streamed.
    pub weight_bytes_copied: usize,
}

/// An attached adapter.
struct Attached<'a> {
    adapter: Adapter<'a>,
    /// `None` streams the factors.
    merged: Option<MergedAdapter<'a>>,
}

struct MergedAdapter<'a> {
    /// Where the matrices are.
    memory: MergedMemory<'a>,
    /// [`linear_merged`], put here where an adapter is merged: a program that never does it has no code for it.
    linear: LinearMerged,
}

enum MergedMemory<'a> {
    Ram(MergedType, &'a mut [u8]),
    /// A [`MergedImage`], one word smaller.
    Image(MergedType, &'a [u8]),
}

/// Rows that go into a pass. Token ids have 16 bits on a device; a host also runs vocabularies that need more.
enum Input<'i, T> {
    Tokens(&'i [T]),
    Features(&'i [f32]),
    /// Those of a self-test.
    Generated(&'i mut XorShift32),
    /// Feature rows that lie where the input operator puts them.
    Made,
}

/// A base over an arena.
pub struct Engine<'a> {
    base: Base<'a>,
    arena: Arena<'a>,
    context: usize,
    attached: Option<Attached<'a>>,
    /// Rows of the sequence so far.
    position: usize,
    /// What the front end holds.
    heard: samples::Heard,
    /// Where the last output lies.
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    None,
    /// Row of the base's output value.
    Base(usize),
    /// Outputs of the task head.
    Head(usize),
}

impl<'a> Engine<'a> {
    /// An engine for `base` over `arena`, for sequences of at most `context` rows (less if the base takes less).
    ///
    /// `arena` has at least [`crate::arena_bytes`] bytes and lies on a boundary of 16.
    ///
    /// # Errors
    /// [`Error::NotBuiltIn`], [`Error::ArenaTooSmall`], [`Error::Misaligned`], or [`Error::SequenceTooLong`] for a context of 0.
    pub fn new(base: Base<'a>, arena: &'a mut [u8], context: usize) -> Result<Self> {
        check_built_in(&base)?;
        let context = context.min(base.manifest().max_rows as usize);
        if context == 0 {
            return Err(Error::SequenceTooLong { expected: base.manifest().max_rows as usize, found: 0 });
        }
        let arena = Arena::new(&base, arena, context)?;
        Ok(Self {
            base,
            arena,
            context,
            attached: None,
            position: 0,
            heard: samples::Heard::default(),
            output: Output::None,
        })
    }

    /// The base.
    pub fn base(&self) -> &Base<'a> {
        &self.base
    }

    /// The adapter that is applied.
    pub fn adapter(&self) -> Option<&Adapter<'a>> {
        self.attached.as_ref().map(|attached| &attached.adapter)
    }

    /// Whether the applied adapter is merged.
    pub fn merged(&self) -> bool {
        self.attached.as_ref().is_some_and(|attached| attached.merged.is_some())
    }

    /// Longest sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Rows of the sequence so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether `adapter` can be attached: it is for this base, and there is room for its rank and its head's outputs.
    ///
    /// # Errors
    /// [`rankpatch_format::Error::WrongBase`], [`rankpatch_format::Error::RankOutOfRange`], [`Error::HeadTooLarge`].
    pub fn check(&self, adapter: &Adapter<'_>) -> Result<()> {
        let (expected, found) = (self.base.id(), adapter.header().base_id);
        if expected != found {
            return Err(rankpatch_format::Error::WrongBase { expected, found }.into());
        }
        let (expected, found) = (self.arena.head_out.len(), adapter.head().map_or(0, |head| head.n_out));
        if found > expected {
            return Err(Error::HeadTooLarge { expected, found });
        }
        let (max, (rank, site)) = (self.arena.v.len() as u32, adapter.max_rank());
        if u32::from(rank) > max {
            return Err(rankpatch_format::Error::RankOutOfRange { site, rank: rank.into(), max }.into());
        }
        Ok(())
    }

    /// Applies `adapter` streamed, y = W0 x + s B (A x): binds it, copies nothing. The adapter before is let go, the
    /// sequence starts again.
    ///
    /// # Errors
    /// [`rankpatch_format::Error::WrongBase`], [`Error::HeadTooLarge`]; the adapter before stays applied.
    pub fn attach(&mut self, adapter: Adapter<'a>) -> Result<Attachment> {
        self.check(&adapter)?;
        let attachment = Attachment { n_patches: adapter.n_patches(), weight_bytes_copied: 0 };
        self.attached = Some(Attached { adapter, merged: None });
        self.reset();
        #[cfg(feature = "defmt")]
        defmt::debug!("streamed: {}", attachment);
        Ok(attachment)
    }

    /// Applies `adapter` merged, W' = W0 + s B A, in `memory`, which has at least [`merged_bytes`] bytes and lies on a boundary
    /// of 16. It is given back by [`Engine::detach`].
    ///
    /// # Errors
    /// [`Error::MergeBufferTooSmall`], [`Error::Misaligned`], and those of [`Engine::attach`]; the adapter before stays
    /// applied.
    pub fn attach_merged(
        &mut self,
        adapter: Adapter<'a>,
        kind: MergedType,
        memory: &'a mut [u8],
    ) -> Result<Attachment> {
        self.check(&adapter)?;
        let (expected, found) = (merged_bytes(&self.base, &adapter, kind), memory.len());
        if found < expected {
            return Err(Error::MergeBufferTooSmall { expected, found });
        }
        let remainder = memory.as_ptr().addr() % ALIGN;
        if remainder != 0 {
            return Err(Error::Misaligned { expected: ALIGN, found: remainder });
        }
        let weight_bytes_copied = merge(&self.base, &adapter, kind, memory);
        Ok(self.attach_memory(&adapter, MergedMemory::Ram(kind, memory), weight_bytes_copied))
    }

    /// Applies `adapter` merged, from what [`crate::merge::merge_into_flash`] wrote.
    ///
    /// # Errors
    /// Those of [`Engine::attach`], and of [`MergedImage::new`] for an image of another adapter or base.
    pub fn attach_image(&mut self, adapter: Adapter<'a>, region: &'a [u8]) -> Result<Attachment> {
        self.check(&adapter)?;
        let image = MergedImage::new(&self.base, &adapter, region)?;
        Ok(self.attach_memory(&adapter, MergedMemory::Image(image.kind, image.matrices), 0))
    }

    fn attach_memory(
        &mut self,
        adapter: &Adapter<'a>,
        memory: MergedMemory<'a>,
        weight_bytes_copied: usize,
    ) -> Attachment {
        let attachment = Attachment { n_patches: adapter.n_patches(), weight_bytes_copied };
        let merged = Some(MergedAdapter { memory, linear: linear_merged });
        self.attached = Some(Attached { adapter: *adapter, merged });
        self.reset();
        #[cfg(feature = "defmt")]
        defmt::debug!("merged: {}", attachment);
        attachment
    }

    /// Goes back to the plain base, which was never written, and starts the sequence again. Returns the memory of a
    /// merged adapter.
    pub fn detach(&mut self) -> Option<&'a mut [u8]> {
        self.reset();
        #[cfg(feature = "defmt")]
        defmt::debug!("detached");
        match self.attached.take()?.merged?.memory {
            MergedMemory::Ram(_, memory) => Some(memory),
            MergedMemory::Image(..) => None,
        }
    }

    /// Starts a new sequence: forgets keys, values, pooled features and samples.
    pub fn reset(&mut self) {
        self.position = 0;
        self.heard = samples::Heard::default();
        self.output = Output::None;
        self.arena.pooled.fill(0.0);
    }

    /// The output of the last run: of its last row, or of the task head over the whole sequence. Empty before a run.
    pub fn output(&self) -> &[f32] {
        match self.output {
            Output::None => &[],
            Output::Base(row) => {
                let value = self.base.value(self.base.manifest().output);
                let (start, width) = (value.offset as usize / 4, value.width as usize);
                self.arena.values.get(start + row * width..start + (row + 1) * width).unwrap_or(&[])
            }
            Output::Head(len) => self.arena.head_out.get(..len).unwrap_or(&[]),
        }
    }

    /// Appends `tokens` to the sequence and returns the output after the last of them.
    ///
    /// # Errors
    /// [`Error::WrongInput`], [`Error::UnknownToken`], [`Error::SequenceTooLong`]; nothing has been run then.
    pub fn run_tokens<T: Copy + Into<u32>>(&mut self, tokens: &[T]) -> Result<&[f32]> {
        self.check_tokens(tokens)?;
        let pass_rows = self.pass_rows();
        for part in tokens.chunks(pass_rows.max(1)) {
            self.pass(Input::Tokens(part), part.len());
        }
        Ok(self.output())
    }

    /// Appends `tokens` and hands the output after each of them to `each`, with the token's index: the base's, or that of a task
    /// head that answers after each row. There is one output, after the last, with any other task head, and with the base's of a
    /// network that does not stream.
    ///
    /// # Errors
    /// As [`Engine::run_tokens`].
    pub fn run_tokens_each<T: Copy + Into<u32>>(
        &mut self,
        tokens: &[T],
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.check_tokens(tokens)?;
        let pass_rows = self.pass_rows();
        for (at, part) in tokens.chunks(pass_rows.max(1)).enumerate() {
            self.pass(Input::Tokens(part), part.len());
            if self.answers_every_row() {
                for row in 0..part.len() {
                    self.answer_row(row);
                    each(at * pass_rows + row, self.output());
                }
            } else if let Output::Base(last) = self.output {
                // A network that does not stream says nothing about a row before the last.
                let first = if self.base.streaming() { 0 } else { last };
                for row in first..=last {
                    self.output = Output::Base(row);
                    let index = if self.base.streaming() { at * pass_rows + row } else { tokens.len() - 1 };
                    each(index, self.output());
                }
            }
        }
        if matches!(self.output, Output::Head(_)) && !self.answers_every_row() {
            each(tokens.len() - 1, self.output());
        }
        Ok(())
    }

    fn check_tokens<T: Copy + Into<u32>>(&mut self, tokens: &[T]) -> Result<()> {
        let expected = self.base.feature_width();
        if !TEXT || expected != 0 {
            return Err(Error::WrongInput { expected, found: tokens.len() });
        }
        let vocab_size = self.base.vocab_size();
        if let Some(found) = tokens.iter().map(|id| (*id).into()).find(|id| *id >= vocab_size) {
            return Err(Error::UnknownToken { expected: vocab_size, found });
        }
        self.check_rows(tokens.len())
    }

    fn check_rows(&mut self, found: usize) -> Result<()> {
        let restarts = !self.base.streaming();
        let expected = self.context - if restarts { 0 } else { self.position };
        if found == 0 || found > expected {
            return Err(Error::SequenceTooLong { expected, found });
        }
        if restarts {
            self.reset();
        }
        Ok(())
    }

    fn pass_rows(&self) -> usize {
        self.base.manifest().pass_rows as usize
    }

    /// Appends feature rows, `[rows, width]`, to the sequence and returns the output after the last of them. A network
    /// that does not stream starts again with each call. A network that reads samples also takes rows that were made elsewhere.
    ///
    /// # Errors
    /// [`Error::WrongInput`], [`Error::SequenceTooLong`]; nothing has been run then.
    pub fn run_features(&mut self, features: &[f32]) -> Result<&[f32]> {
        let width = self.base.feature_width();
        if features.len().checked_rem(width) != Some(0) {
            return Err(Error::WrongInput { expected: width, found: features.len() });
        }
        self.check_rows(features.len() / width)?;
        let pass_rows = self.pass_rows();
        for part in features.chunks((pass_rows * width).max(1)) {
            self.pass::<u16>(Input::Features(part), part.len() / width);
        }
        Ok(self.output())
    }

    /// Runs the attached adapter's self-test and starts the sequence again. The test always streams, also when the
    /// adapter is merged: its digest is that of the streamed sum.
    ///
    /// # Errors
    /// [`Error::NothingActive`]; [`Error::SelfTestFailed`] if the digest differs; [`Error::SequenceTooLong`] if the
    /// context is shorter than the test.
    pub fn self_test(&mut self) -> Result<u64> {
        let attached = self.attached.as_ref().ok_or(Error::NothingActive)?;
        let expected = attached.adapter.body().self_test.digest;
        let found = self.self_test_digest()?;
        if expected == found { Ok(found) } else { Err(Error::SelfTestFailed { expected, found }) }
    }

    /// The digest that the self-test of the attached adapter has here, which its writer states in the file. Starts the
    /// sequence again.
    ///
    /// # Errors
    /// As [`Engine::self_test`], but for the comparison.
    pub fn self_test_digest(&mut self) -> Result<u64> {
        let attached = self.attached.as_mut().ok_or(Error::NothingActive)?;
        let test = attached.adapter.body().self_test;
        let rows = usize::from(test.rows);
        if rows > self.context {
            return Err(Error::SequenceTooLong { expected: self.context, found: rows });
        }
        let memory = attached.merged.take();
        self.reset();
        let digest = self.run_self_test(test.seed, rows);
        self.reset();
        if let Some(attached) = &mut self.attached {
            attached.merged = memory;
        }
        Ok(digest)
    }

    fn run_self_test(&mut self, seed: u32, rows: usize) -> u64 {
        let mut random = XorShift32::new(seed);
        let mut digest = Digest::default();
        if self.base.streaming() {
            let once = matches!(self.head(), Some(head) if !head.info.pooling.is_every_row());
            for _ in 0..rows {
                self.pass::<u16>(Input::Generated(&mut random), 1);
                if !once {
                    digest.update(self.output());
                }
            }
            if once {
                digest.update(self.output());
            }
        } else {
            self.pass::<u16>(Input::Generated(&mut random), rows);
            digest.update(self.output());
        }
        digest.value()
    }

    /// Runs the graph over `rows` rows of input at the current position.
    fn pass<T: Copy + Into<u32>>(&mut self, input: Input<'_, T>, rows: usize) {
        let base = self.base;
        let value = base.value(0);
        let (start, len) = (value.offset as usize / 4, rows * value.width as usize);
        let Some(target) = self.arena.values.get_mut(start..start + len) else { return };
        let table = match base.input() {
            Op::Embedding { table } if TEXT => Some(base.matrix(table)),
            _ => None,
        };
        match (input, table) {
            (Input::Made, _) | (Input::Tokens(_), None) => {}
            (Input::Features(features), _) => {
                target.iter_mut().zip(features).for_each(|(to, from)| *to = *from);
            }
            (Input::Generated(random), None) => target.iter_mut().for_each(|x| *x = random.feature()),
            (mut input, Some(table)) => {
                for (t, row) in target.chunks_exact_mut(table.cols.max(1)).enumerate() {
                    let id = match &mut input {
                        Input::Generated(random) => random.token(base.vocab_size()),
                        Input::Tokens(ids) => ids.get(t).map_or(0, |id| (*id).into()),
                        _ => 0,
                    };
                    ops::embed(&table, id as usize, self.arena.codes, row);
                }
            }
        }
        self.run_graph(rows);
    }

    /// Runs every operator after the input that the output needs, then the task head, and moves on by `rows`.
    fn run_graph(&mut self, rows: usize) {
        let base = self.base;
        let manifest = base.manifest();
        let head = self.head();
        let last = if head.is_some() { manifest.features } else { manifest.output };
        let mut patches = match &self.attached {
            None => MergedCursor { patches: Cursor::EMPTY, kind: MergedType::Int8, memory: &[] },
            Some(Attached { adapter, merged }) => {
                let (kind, memory) = match merged.as_ref().map(|merged| &merged.memory) {
                    None => (MergedType::Int8, &[][..]),
                    Some(MergedMemory::Ram(kind, memory)) => (*kind, &**memory),
                    Some(MergedMemory::Image(kind, memory)) => (*kind, *memory),
                };
                MergedCursor { patches: adapter.cursor(), kind, memory }
            }
        };
        let merged = self.attached.as_ref().and_then(|attached| Some(attached.merged.as_ref()?.linear));
        let mut pass = Pass {
            base: &base,
            biases: self.adapter().map_or(Biases::EMPTY, Adapter::biases),
            values: &mut *self.arena.values,
            rows,
            position: self.position,
            quantized: None,
        };
        let mut site = 0;
        let mut kv = &mut *self.arena.kv;
        let mut ops = base.ops();
        // The input operator has been run.
        ops.next();
        for (index, op) in ops {
            if index > last {
                break;
            }
            if let Op::Linear { input, weight, bias } = op {
                let w = base.matrix(weight);
                let mut room = Room(self.arena.numbers);
                let bias = bias.map_or(&[][..], |bias| pass.bias(bias, &mut room));
                let n = pass.quantize(input, self.arena.codes, self.arena.scales);
                let codes = Codes {
                    codes: self.arena.codes.get(..n * stride(w.cols)).unwrap_or(&[]),
                    scales: self.arena.scales.get(..n).unwrap_or(&[]),
                    stride: stride(w.cols),
                };
                // One row if a pass has only one.
                let acc = self.arena.acc.len().min(2 * w.rows);
                let mut scratch = Scratch {
                    acc: self.arena.acc.get_mut(..acc).unwrap_or(&mut []),
                    pack: self.arena.pack,
                    z: self.arena.z,
                    v: self.arena.v,
                };
                let y = pass.value_mut(index);
                let done =
                    merged.is_some_and(|linear| linear(&mut patches, site, &w, bias, codes, y, &mut scratch));
                if !done {
                    // What is merged has no patch left.
                    let patch =
                        if merged.is_some() { None } else { patches.patches.take(site, w.rows, w.cols) };
                    linear(&w, room.read(w.scales), bias, patch.as_ref(), codes, y, &mut scratch);
                }
                site += 1;
            } else if let Op::Attention { q, k, v, n_heads, n_kv_heads, causal, scale } = op {
                let n_heads = usize::from(n_heads);
                let heads = Heads {
                    n_heads,
                    n_kv_heads: n_kv_heads.into(),
                    shape: HeadShape { head_size: pass.width(q) / n_heads.max(1) },
                    scale,
                };
                let scratch = &mut self.arena.attention;
                if TEXT && causal {
                    let room = base.value(k).rows.count(self.context);
                    let len = 2 + heads.n_kv_heads * heads.shape.code_words(room);
                    let (cache, rest) =
                        core::mem::take(&mut kv).split_at_mut_checked(len).unwrap_or_default();
                    kv = rest;
                    pass.causal_attention(index, [q, k, v], heads, room, cache, scratch);
                } else {
                    pass.attention(index, [q, k, v], heads, scratch);
                }
            } else {
                pass.elementwise(index, &op, Room(self.arena.numbers));
            }
        }
        let features = base.value(manifest.features);
        let (width, count) = (features.width as usize, features.rows.count(rows));
        let from = features.offset as usize / 4;
        self.position += rows;
        self.output = match head {
            None => Output::Base(base.value(manifest.output).rows.count(rows).saturating_sub(1)),
            Some(head) => {
                let rows = self.arena.values.get(from..from + count * width).unwrap_or(&[]);
                match head.info.pooling {
                    Pooling::Mean => ops::accumulate(rows, self.arena.pooled),
                    Pooling::Last | Pooling::Every | Pooling::Reread => {
                        let last = rows.chunks_exact(width.max(1)).next_back().unwrap_or(&[]);
                        self.arena.pooled.iter_mut().zip(last).for_each(|(to, from)| *to = *from);
                    }
                }
                self.run_head(&head);
                Output::Head(head.n_out)
            }
        };
    }

    /// The task head of the attached adapter.
    fn head(&self) -> Option<Head<'a>> {
        self.attached.as_ref().and_then(|attached| attached.adapter.head().copied())
    }

    fn answers_every_row(&self) -> bool {
        self.head().is_some_and(|head| head.info.pooling.is_every_row())
    }

    /// Makes the head's answer after row `row` of the last pass the output.
    fn answer_row(&mut self, row: usize) {
        let Some(head) = self.head() else { return };
        let features = self.base.value(self.base.manifest().features);
        let (from, width) = (features.offset as usize / 4, features.width as usize);
        let from = from + row * width;
        let row = self.arena.values.get(from..from + width).unwrap_or(&[]);
        self.arena.pooled.iter_mut().zip(row).for_each(|(to, from)| *to = *from);
        self.run_head(&head);
    }

    /// The task head over the pooled features: a linear operator on one row.
    fn run_head(&mut self, head: &Head<'_>) {
        let Arena { pooled, codes, acc, pack, head_out, .. } = &mut self.arena;
        let Some(codes) = codes.get_mut(..head.width) else { return };
        // The mean is taken here, so that the sums can go on growing: scaling a vector does not change its codes.
        let mut scale = kernels::quantize(pooled, codes);
        if head.info.pooling == Pooling::Mean {
            let features = self.base.value(self.base.manifest().features);
            scale /= features.rows.count(self.position) as f32;
        }
        let (mut rows, mut bias) = (head.codes.chunks_exact(head.width.max(1)), head.bias());
        // Row by row, so that heads may have more outputs than the base has anywhere.
        for (row_scale, y) in head.row_scales().zip(head_out.iter_mut()) {
            let Some(row) = rows.next() else { return };
            let Some(acc) = acc.get_mut(..1) else { return };
            kernels::gemv(kernels::Layout::RowMajor, row, 1, head.width, codes, acc, pack);
            let value = acc.first().copied().unwrap_or(0) as f32 * (scale * row_scale);
            *y = bias.next().map_or(value, |bias| value + bias);
        }
    }
}
