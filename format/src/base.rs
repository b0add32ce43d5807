//! The base image (`.rpb`): one frozen, quantized network with everything that running it needs, read in place.
//!
//! [`Base::new`] checks every byte that is ever interpreted: afterwards all accessors are total. It does not know how
//! the network is computed, and it copies nothing.

use serde::{Deserialize, Serialize};

use crate::front_end::{FFT_BINS, FrontEnd};
use crate::graph::{Op, Ops, Rows, Shape, TensorId, TensorShape, ValueId};
use crate::layout::{Layout, decode_dsp_word};
use crate::numbers::Floats;
use crate::read::Reader;
use crate::tokenizer::{Tokenizer, TokenizerInfo};
use crate::{BaseId, Error, MAX_OUTPUTS, MAX_WIDTH, Result, VERSION, What};

/// First bytes of a base image.
pub const MAGIC: [u8; 3] = *b"RPB";
/// Alignment of the image in memory, and of every section in it.
pub const ALIGN: usize = 16;
/// Bytes before the manifest: magic, version, image length, identity, manifest length, CRC-32.
pub const HEADER_BYTES: usize = 32;
/// Bytes of a record of the tensor directory.
pub const TENSOR_RECORD_BYTES: usize = 16;
/// Bytes of a record of the value directory (the arena plan).
pub const VALUE_RECORD_BYTES: usize = 12;

/// Longest name of a base.
pub const MAX_NAME_BYTES: usize = 64;

/// The manifest as it is written, a postcard struct. Directories are borrowed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Manifest<'a> {
    /// Name of the base.
    pub name: &'a str,
    /// Longest sequence: the context of a streaming network, the rows of a pass of any other.
    pub max_rows: u32,
    /// Rows that one pass handles at most; the arena plan holds that many.
    pub pass_rows: u32,
    /// Bytes of the value region of the arena.
    pub values_bytes: u32,
    /// The value that is the network's output.
    pub output: ValueId,
    /// The value that a task head reads instead.
    pub features: ValueId,
    /// The operators, postcard [`Op`]s one after the other.
    #[serde(borrow)]
    pub ops: &'a [u8],
    /// Tensor directory: records of [`TENSOR_RECORD_BYTES`].
    #[serde(borrow)]
    pub tensors: &'a [u8],
    /// Value directory: records of [`VALUE_RECORD_BYTES`], one per operator.
    #[serde(borrow)]
    pub values: &'a [u8],
    /// Names of the sites in canonical order (that of the linear operators), postcard strings.
    #[serde(borrow)]
    pub sites: &'a [u8],
    /// Names of the outputs, if they have names; postcard strings.
    #[serde(borrow)]
    pub labels: &'a [u8],
    /// The tokenizer, if the network reads text.
    pub tokenizer: Option<TokenizerInfo>,
}

/// A record of the tensor directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorInfo {
    /// Where the section starts in the image; a multiple of [`ALIGN`].
    pub offset: u32,
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub cols: u32,
    /// `None`: numbers, row-major. `Some`: int8 codes in that layout, preceded by row scales padded to [`ALIGN`].
    pub layout: Option<Layout>,
    /// Whether the numbers, or the row scales, are f16 and not f32.
    pub halves: bool,
}

impl TensorInfo {
    /// The record as bytes: offset, rows, cols (u32 little-endian), kind (0 f32, 1 int8, 2 f16, 3 int8 with f16 scales), layout,
    /// two zeros.
    pub fn to_bytes(self) -> [u8; TENSOR_RECORD_BYTES] {
        let mut bytes = [0; TENSOR_RECORD_BYTES];
        let words = [self.offset, self.rows, self.cols];
        bytes.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        bytes[12] = u8::from(self.layout.is_some()) + 2 * u8::from(self.halves);
        bytes[13] = self.layout.map_or(0, |layout| layout as u8);
        bytes
    }

    fn from_bytes(bytes: &[u8; TENSOR_RECORD_BYTES]) -> Option<Self> {
        let &[o0, o1, o2, o3, r0, r1, r2, r3, c0, c1, c2, c3, kind, layout, 0, 0] = bytes else {
            return None;
        };
        let layout = match (kind, layout) {
            (0 | 2, 0) => None,
            (1 | 3, number) => Some(Layout::from_u8(number)?),
            _ => return None,
        };
        Some(Self {
            offset: u32::from_le_bytes([o0, o1, o2, o3]),
            rows: u32::from_le_bytes([r0, r1, r2, r3]),
            cols: u32::from_le_bytes([c0, c1, c2, c3]),
            layout,
            halves: kind >= 2,
        })
    }

    /// Bytes of the section.
    pub fn section_bytes(self) -> u32 {
        match self.layout {
            None => self.rows.saturating_mul(self.cols).saturating_mul(self.number_bytes()),
            Some(layout) => self.scales_bytes().saturating_add(layout.bytes(self.rows, self.cols)),
        }
    }

    fn number_bytes(self) -> u32 {
        if self.halves { 2 } else { 4 }
    }

    /// Bytes of the row scales before the codes, padded to [`ALIGN`].
    fn scales_bytes(self) -> u32 {
        self.rows.saturating_mul(self.number_bytes()).saturating_add(15) & !15
    }

    fn shape(self) -> TensorShape {
        TensorShape { rows: self.rows, cols: self.cols, quantized: self.layout.is_some() }
    }
}

/// A record of the value directory: shape and place of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueInfo {
    /// Where the value lies in the arena's value region, in bytes; a multiple of [`ALIGN`].
    pub offset: u32,
    /// Elements per row.
    pub width: u32,
    /// The last operator that reads it; its own index if none does. `u16::MAX` keeps it for the caller.
    pub last_use: u16,
    /// Rows.
    pub rows: Rows,
}

impl ValueInfo {
    /// The record as bytes: offset, width (u32), last_use (u16), rows (0 tokens, 1 one), extra rows.
    pub fn to_bytes(self) -> [u8; VALUE_RECORD_BYTES] {
        let (one, extra) = match self.rows {
            Rows::Tokens { extra } => (0, extra),
            Rows::One => (1, 0),
            // Written in no image; readers refuse the number.
            #[cfg(feature = "alloc")]
            Rows::Tabled { .. } => (2, 0),
        };
        let [o0, o1, o2, o3] = self.offset.to_le_bytes();
        let [w0, w1, w2, w3] = self.width.to_le_bytes();
        let [l0, l1] = self.last_use.to_le_bytes();
        [o0, o1, o2, o3, w0, w1, w2, w3, l0, l1, one, extra]
    }

    /// The record in `bytes`, the last two of which were checked to be a number of rows.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "a dozen instructions, for each operator and value of a pass")]
    fn from_bytes(bytes: &[u8; VALUE_RECORD_BYTES]) -> Self {
        let &[o0, o1, o2, o3, w0, w1, w2, w3, l0, l1, one, extra] = bytes;
        Self {
            offset: u32::from_le_bytes([o0, o1, o2, o3]),
            width: u32::from_le_bytes([w0, w1, w2, w3]),
            last_use: u16::from_le_bytes([l0, l1]),
            rows: if one == 0 { Rows::Tokens { extra } } else { Rows::One },
        }
    }

    /// Bytes of the value in a pass over `tokens` tokens. Saturates instead of overflowing.
    #[inline(never)]
    pub fn bytes(&self, tokens: u32) -> u32 {
        let rows = match self.rows {
            Rows::Tokens { extra } => tokens.saturating_add(extra.into()),
            Rows::One => 1,
            #[cfg(feature = "alloc")]
            Rows::Tabled { table } => tokens.saturating_add(table),
        };
        rows.saturating_mul(self.width).saturating_mul(4)
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        Shape { rows: self.rows, width: self.width }
    }
}

/// The 4-byte groups of a record.
fn words<const N: usize>(bytes: &[u8]) -> Option<[[u8; 4]; N]> {
    let (groups, []) = bytes.as_chunks::<4>() else { return None };
    groups.try_into().ok()
}

/// An int8 matrix `[rows, cols]` in place: W\[o, i\] = scales\[o\] * code\[o, i\].
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// out_features.
    pub rows: usize,
    /// in_features.
    pub cols: usize,
    /// Order of the codes.
    pub layout: Layout,
    /// The codes, in `layout`, -127..=127.
    pub codes: &'a [i8],
    /// Row scales `[rows]`, positive and finite.
    pub scales: Floats<'a>,
}

/// A checked base image.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    image: &'a [u8],
    manifest: Manifest<'a>,
    id: BaseId,
    n_sites: u16,
    streaming: bool,
}

impl<'a> Base<'a> {
    /// Checks `image`, which may be longer than the base (a flash partition), and returns the base in it.
    ///
    /// Guaranteed afterwards: the checksum holds; every operator's shapes fit; every section lies inside the image and
    /// on its boundary; every scale is positive, finite and normal and every other float finite; no two live values of
    /// the arena plan overlap; the bands of a front end lie within its spectrum; names are UTF-8 and there is one per site.
    ///
    /// # Errors
    /// An [`Error`] that names the first thing found wrong.
    pub fn new(image: &'a [u8]) -> Result<Self> {
        let truncated = |expected: usize, found: usize| Error::Truncated {
            what: What::BaseImage,
            expected: expected as u32,
            found: found as u32,
        };
        let header = image.first_chunk::<HEADER_BYTES>().ok_or(truncated(HEADER_BYTES, image.len()))?;
        let [[m0, m1, m2, version], length, i0, i1, i2, i3, manifest_len, crc] =
            words::<8>(header).ok_or(Error::Malformed { what: What::BaseHeader })?;
        if [m0, m1, m2] != MAGIC {
            return Err(Error::BadMagic { expected: MAGIC, found: [m0, m1, m2] });
        }
        if version != VERSION {
            return Err(Error::UnknownVersion { expected: VERSION, found: version });
        }
        let remainder = image.as_ptr().addr() % ALIGN;
        if remainder != 0 {
            return Err(Error::Misaligned {
                what: What::ImageAddress,
                expected: ALIGN as u32,
                found: remainder as u32,
            });
        }
        let length = u32::from_le_bytes(length) as usize;
        let found = image.len();
        let image = image.get(..length).ok_or(truncated(length, found))?;
        let body = image.get(HEADER_BYTES..).ok_or(truncated(HEADER_BYTES, length))?;
        let mut digest = crate::CRC.digest();
        digest.update(header.first_chunk::<{ HEADER_BYTES - 4 }>().unwrap_or(&[0; HEADER_BYTES - 4]));
        digest.update(body);
        let (expected, found) = (u32::from_le_bytes(crc), digest.finalize());
        if expected != found {
            return Err(Error::Corrupt { expected, found });
        }
        let manifest_len = u32::from_le_bytes(manifest_len) as usize;
        let manifest = body.get(..manifest_len).ok_or(truncated(manifest_len, body.len()))?;
        let mut reader = Reader(manifest);
        let manifest = reader.manifest().ok_or(Error::Malformed { what: What::BaseManifest })?;
        let rest = reader.0;
        if !rest.is_empty() {
            return Err(Error::TrailingBytes {
                what: What::BaseManifest,
                expected: (manifest_len - rest.len()) as u32,
                found: manifest_len as u32,
            });
        }
        let id = [i0, i1, i2, i3];
        let id = BaseId(bytemuck::cast(id));
        let mut base = Self { image, manifest, id, n_sites: 0, streaming: true };
        let sections_from = HEADER_BYTES + manifest_len;
        base.check_tensors(sections_from)?;
        base.check_graph()?;
        base.check_plan()?;
        base.check_front_end()?;
        base.check_names()?;
        if let Some(info) = manifest.tokenizer {
            base.in_image(What::TokenizerSection, info.offset, info.len, sections_from)?;
            Tokenizer::check(base.section(info.offset, info.len), info)?;
            if !matches!(base.input(), Op::Embedding { .. }) || info.vocab_size != base.vocab_size() {
                return Err(Error::ShapeMismatch {
                    what: What::Vocabulary,
                    op: 0,
                    expected: base.vocab_size(),
                    found: info.vocab_size,
                });
            }
        }
        Ok(base)
    }

    fn in_image(&self, what: What, offset: u32, len: u32, from: usize) -> Result<()> {
        let found = offset % ALIGN as u32;
        if found != 0 {
            return Err(Error::Misaligned { what, expected: ALIGN as u32, found });
        }
        let max = self.image.len() as u32;
        match offset.checked_add(len) {
            Some(end) if end <= max && offset as usize >= from => Ok(()),
            end => Err(Error::OutOfRange { what, found: end.unwrap_or(u32::MAX), max }),
        }
    }

    fn check_tensors(&self, sections_from: usize) -> Result<()> {
        let (records, rest) = self.manifest.tensors.as_chunks::<TENSOR_RECORD_BYTES>();
        if !rest.is_empty() {
            return Err(Error::Malformed { what: What::TensorDirectory });
        }
        let (found, max) = (records.len() as u32, u32::from(u16::MAX));
        if found > max {
            return Err(Error::OutOfRange { what: What::TensorCount, found, max });
        }
        for (index, record) in records.iter().enumerate() {
            let info = TensorInfo::from_bytes(record).ok_or(Error::Malformed { what: What::TensorRecord })?;
            // A vector may be as long as a matrix has rows: it is a bias then.
            let max_cols = if info.layout.is_some() { MAX_WIDTH } else { MAX_OUTPUTS };
            for (what, found, max) in
                [(What::TensorRows, info.rows, MAX_OUTPUTS), (What::TensorColumns, info.cols, max_cols)]
            {
                if found == 0 || found > max {
                    return Err(Error::OutOfRange { what, found, max });
                }
            }
            self.in_image(What::TensorSection, info.offset, info.section_bytes(), sections_from)?;
            let owner = index as u16;
            if info.layout.is_some() {
                check_scales(What::Row, owner, self.matrix(owner).scales.iter())?;
                let codes = self.matrix(owner).codes;
                // Two loops of their own: `contains` would be a function, and called for every word.
                let is_forbidden = |code: &i8| *code == i8::MIN;
                let forbidden = match info.layout {
                    Some(Layout::Dsp4x4) => {
                        codes.as_chunks().0.iter().any(|word| decode_dsp_word(*word).iter().any(is_forbidden))
                    }
                    _ => codes.iter().any(is_forbidden),
                };
                if forbidden {
                    return Err(Error::Malformed { what: What::Code });
                }
            } else if let Some(at) = self.floats(owner).iter().position(|x| !x.is_finite()) {
                return Err(Error::NotFinite { what: What::Weight, index: at as u32 });
            }
        }
        Ok(())
    }

    fn check_graph(&mut self) -> Result<()> {
        let manifest = self.manifest;
        let (records, rest) = manifest.values.as_chunks::<VALUE_RECORD_BYTES>();
        if !rest.is_empty() {
            return Err(Error::Malformed { what: What::ValueDirectory });
        }
        for (what, found, max) in [
            (What::PassRows, manifest.pass_rows, manifest.max_rows),
            (What::MaxRows, manifest.max_rows, MAX_WIDTH),
        ] {
            if found == 0 || found > max {
                return Err(Error::OutOfRange { what, found, max });
            }
        }
        let mut ops = Ops::new(manifest.ops);
        let mut n_ops = 0;
        while let Some((index, op)) = ops.try_next()? {
            n_ops = index + 1;
            let record = records.get(usize::from(index)).ok_or(Error::Truncated {
                what: What::ValueDirectory,
                expected: n_ops.into(),
                found: records.len() as u32,
            })?;
            if !matches!(record, [.., 0, _] | [.., 1, 0]) {
                return Err(Error::Malformed { what: What::ValueRecord });
            }
            let info = ValueInfo::from_bytes(record);
            let shape = op.infer(
                index,
                |id| self.tensor(id).map(TensorInfo::shape),
                |id| {
                    let info = self.value(id);
                    if info.last_use < index {
                        return Err(Error::PlanOverlap { first: id, second: index });
                    }
                    Ok(info.shape())
                },
            )?;
            if shape != info.shape() {
                return Err(Error::ShapeMismatch {
                    what: What::PlannedShape,
                    op: index,
                    expected: shape.width,
                    found: info.width,
                });
            }
            let halves = |id| self.tensor_info(id).is_some_and(|info| info.halves);
            if op.read_in_place().into_iter().flatten().any(halves) {
                return Err(Error::Malformed { what: What::TensorRecord });
            }
            if let Op::AddPosition { table, .. } = op {
                let expected = shape.rows.count(manifest.max_rows as usize) as u32;
                let found = self.tensor(table)?.rows;
                if found < expected {
                    return Err(Error::ShapeMismatch { what: What::Positions, op: index, expected, found });
                }
            }
            self.streaming &= op.streams();
            self.n_sites += u16::from(matches!(op, Op::Linear { .. }));
        }
        if usize::from(n_ops) != records.len() {
            return Err(Error::TrailingBytes {
                what: What::ValueDirectory,
                expected: n_ops.into(),
                found: records.len() as u32,
            });
        }
        for (what, id) in [(What::Output, manifest.output), (What::Features, manifest.features)] {
            if id >= n_ops {
                return Err(Error::OutOfRange {
                    what,
                    found: id.into(),
                    max: n_ops.saturating_sub(1).into(),
                });
            }
            if self.value(id).last_use != u16::MAX {
                return Err(Error::PlanOverlap { first: id, second: id });
            }
        }
        if manifest.features > manifest.output {
            return Err(Error::OutOfRange {
                what: What::FeaturesOrder,
                found: manifest.features.into(),
                max: manifest.output.into(),
            });
        }
        if !self.streaming && manifest.pass_rows != manifest.max_rows {
            return Err(Error::ShapeMismatch {
                what: What::WholePass,
                op: 0,
                expected: manifest.max_rows,
                found: manifest.pass_rows,
            });
        }
        Ok(())
    }

    /// No operator may write over a value that a later one reads, save in place where it is safe.
    fn check_plan(&self) -> Result<()> {
        let tokens = self.manifest.pass_rows;
        for (index, op) in self.ops() {
            let info = self.value(index);
            let mut bytes = info.bytes(tokens);
            if let Some((destroyed, scratch)) = op.scratch(tokens, |id| self.value(id).shape()) {
                bytes = bytes.max(scratch);
                if self.value(destroyed).last_use != index {
                    return Err(Error::PlanOverlap { first: destroyed, second: index });
                }
            }
            self.check_place(&info, bytes)?;
            for other in 0..index {
                let before = self.value(other);
                let disjoint = info.offset.saturating_add(bytes) <= before.offset
                    || before.offset.saturating_add(before.bytes(tokens)) <= info.offset;
                let in_place = before.last_use == index && op.in_place(other) && before.offset == info.offset;
                if before.last_use >= index && !disjoint && !in_place {
                    return Err(Error::PlanOverlap { first: other, second: index });
                }
            }
        }
        Ok(())
    }

    /// What the shapes of a front end's tables do not say: whole numbers that stay within the spectrum, a weight for each.
    fn check_front_end(&self) -> Result<()> {
        let Some(front_end) = self.front_end() else { return Ok(()) };
        let mut expected = 0;
        for band in front_end.bands {
            let [first, count] = band.map(|number| number as u32);
            let end = first.saturating_add(count);
            if [first, count].map(|number| number as f32) != *band || end > FFT_BINS as u32 {
                return Err(Error::OutOfRange { what: What::MelBand, found: end, max: FFT_BINS as u32 });
            }
            expected += count;
        }
        let found = front_end.mel.len() as u32;
        if found != expected {
            return Err(Error::ShapeMismatch { what: What::MelWeights, op: 0, expected, found });
        }
        Ok(())
    }

    fn check_place(&self, info: &ValueInfo, bytes: u32) -> Result<()> {
        let found = info.offset % ALIGN as u32;
        if found != 0 {
            return Err(Error::Misaligned { what: What::Value, expected: ALIGN as u32, found });
        }
        let (end, max) = (info.offset.saturating_add(bytes), self.manifest.values_bytes);
        if end > max {
            return Err(Error::OutOfRange { what: What::ValueEnd, found: end, max });
        }
        Ok(())
    }

    fn check_names(&self) -> Result<()> {
        let (found, max) = (self.manifest.name.len() as u32, MAX_NAME_BYTES as u32);
        if found > max {
            return Err(Error::OutOfRange { what: What::BaseNameLength, found, max });
        }
        let sites = count_names(self.manifest.sites).ok_or(Error::Malformed { what: What::SiteNames })?;
        if sites != u32::from(self.n_sites) {
            return Err(Error::ShapeMismatch {
                what: What::SiteNameCount,
                op: 0,
                expected: self.n_sites.into(),
                found: sites,
            });
        }
        let labels = count_names(self.manifest.labels).ok_or(Error::Malformed { what: What::Labels })?;
        let expected = self.value(self.manifest.output).width;
        if labels != 0 && labels != expected {
            return Err(Error::ShapeMismatch { what: What::LabelCount, op: 0, expected, found: labels });
        }
        Ok(())
    }

    /// The identity that adapters name.
    pub fn id(&self) -> BaseId {
        self.id
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest<'a> {
        &self.manifest
    }

    /// Bytes of the image.
    pub fn image_bytes(&self) -> usize {
        self.image.len()
    }

    /// The operators in order.
    pub fn ops(&self) -> Ops<'a> {
        Ops::new(self.manifest.ops)
    }

    /// Number of operators.
    pub fn n_ops(&self) -> usize {
        self.manifest.values.len() / VALUE_RECORD_BYTES
    }

    /// The input operator.
    pub fn input(&self) -> Op {
        self.ops().next().map_or(Op::Features { width: 0 }, |(_, op)| op)
    }

    /// Width of the feature rows that the network reads, or makes from samples; 0 if it reads token ids.
    pub fn feature_width(&self) -> usize {
        match self.input() {
            Op::Embedding { .. } => 0,
            _ => self.value(0).width as usize,
        }
    }

    /// The front end, if the network reads samples.
    pub fn front_end(&self) -> Option<FrontEnd<'a>> {
        let Op::Mfcc { sample_rate, frame, hop, floor, window, bands, mel, dct } = self.input() else {
            return None;
        };
        Some(FrontEnd {
            sample_rate: sample_rate.into(),
            frame: frame.into(),
            hop: hop.into(),
            floor,
            window: self.f32s(window),
            bands: self.f32s(bands).as_chunks().0,
            mel: self.f32s(mel),
            dct: self.f32s(dct),
        })
    }

    /// Whether the network reads its sequence in pieces (a causal decoder).
    pub fn streaming(&self) -> bool {
        self.streaming
    }

    /// Number of sites (linear operators).
    pub fn n_sites(&self) -> u16 {
        self.n_sites
    }

    /// Token ids that the network reads; 0 if it reads features.
    pub fn vocab_size(&self) -> u32 {
        match self.input() {
            Op::Embedding { table } => self.tensor(table).map_or(0, |info| info.rows),
            _ => 0,
        }
    }

    /// The sites in canonical order: index, name, weight matrix.
    pub fn sites(&self) -> Sites<'a> {
        Sites { base: *self, ops: self.ops(), names: Names(self.manifest.sites), index: 0 }
    }

    /// Names of the outputs.
    pub fn labels(&self) -> Names<'a> {
        Names(self.manifest.labels)
    }

    /// The tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<Tokenizer<'a>> {
        self.manifest.tokenizer.map(|info| Tokenizer::new(self.section(info.offset, info.len), info))
    }

    /// The record of a tensor.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no such tensor.
    pub fn tensor(&self, id: TensorId) -> Result<TensorInfo> {
        self.tensor_info(id).ok_or(Error::OutOfRange {
            what: What::TensorIndex,
            found: id.into(),
            max: self.n_tensors().saturating_sub(1) as u32,
        })
    }

    fn tensor_info(&self, id: TensorId) -> Option<TensorInfo> {
        let (records, _) = self.manifest.tensors.as_chunks();
        TensorInfo::from_bytes(records.get(usize::from(id))?)
    }

    /// Number of tensors.
    pub fn n_tensors(&self) -> usize {
        self.manifest.tensors.len() / TENSOR_RECORD_BYTES
    }

    /// The record of a value; an empty one if there is no such value.
    // One copy for all but those who ask most.
    #[inline(never)]
    pub fn value(&self, id: ValueId) -> ValueInfo {
        self.value_inlined(id)
    }

    /// [`Base::value`], for those who ask several times an operator.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "little more than the call")]
    pub fn value_inlined(&self, id: ValueId) -> ValueInfo {
        let records = self.manifest.values.get(usize::from(id) * VALUE_RECORD_BYTES..);
        let record = records.and_then(<[u8]>::first_chunk);
        ValueInfo::from_bytes(record.unwrap_or(&[0; VALUE_RECORD_BYTES]))
    }

    fn section(&self, offset: u32, len: u32) -> &'a [u8] {
        let start = offset as usize;
        self.image.get(start..start.saturating_add(len as usize)).unwrap_or(&[])
    }

    /// An int8 matrix in place; an empty one if `id` is no such tensor.
    pub fn matrix(&self, id: TensorId) -> Matrix<'a> {
        let empty = Matrix { rows: 0, cols: 0, layout: Layout::RowMajor, codes: &[], scales: Floats::EMPTY };
        let Some(info @ TensorInfo { layout: Some(layout), .. }) = self.tensor_info(id) else { return empty };
        let section = self.section(info.offset, info.section_bytes());
        let Some((scales, codes)) = section.split_at_checked(info.scales_bytes() as usize) else {
            return empty;
        };
        let scales = scales.get(..(info.rows * info.number_bytes()) as usize).unwrap_or(&[]);
        Matrix {
            rows: info.rows as usize,
            cols: info.cols as usize,
            layout,
            codes: bytemuck::cast_slice(codes),
            scales: numbers(scales, info.halves),
        }
    }

    /// Numbers in place, row-major; none if `id` is no such tensor.
    pub fn floats(&self, id: TensorId) -> Floats<'a> {
        match self.tensor_info(id) {
            Some(info @ TensorInfo { layout: None, .. }) => {
                numbers(self.section(info.offset, info.section_bytes()), info.halves)
            }
            _ => Floats::EMPTY,
        }
    }

    /// Numbers that an operator reads where they are, as f32: a front end's tables and rotary frequencies.
    pub fn f32s(&self, id: TensorId) -> &'a [f32] {
        match self.floats(id) {
            Floats::F32(numbers) => numbers,
            Floats::F16(_) => &[],
        }
    }
}

/// The numbers of a section, which lies on a boundary of [`ALIGN`].
fn numbers(bytes: &[u8], halves: bool) -> Floats<'_> {
    if halves {
        Floats::F16(bytemuck::try_cast_slice(bytes).unwrap_or(&[]))
    } else {
        Floats::F32(bytemuck::try_cast_slice(bytes).unwrap_or(&[]))
    }
}

/// One site of a base.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// Index in canonical order.
    pub index: u16,
    /// Dotted path, as the importer names it.
    pub name: &'a str,
    /// The frozen weight.
    pub weight: Matrix<'a>,
}

/// The sites of a base in canonical order.
#[derive(Debug, Clone)]
pub struct Sites<'a> {
    base: Base<'a>,
    ops: Ops<'a>,
    names: Names<'a>,
    index: u16,
}

impl<'a> Iterator for Sites<'a> {
    type Item = Site<'a>;

    fn next(&mut self) -> Option<Site<'a>> {
        let weight = self.ops.find_map(|(_, op)| match op {
            Op::Linear { weight, .. } => Some(weight),
            _ => None,
        })?;
        let index = self.index;
        self.index += 1;
        let name = self.names.next().unwrap_or("");
        Some(Site { index, name, weight: self.base.matrix(weight) })
    }
}

/// Postcard strings, one after the other.
#[derive(Debug, Clone)]
pub struct Names<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Names<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let mut reader = Reader(self.0);
        let name = reader.str()?;
        self.0 = reader.0;
        Some(name)
    }
}

/// The number of names in `bytes`, `None` if they are malformed.
pub(crate) fn count_names(bytes: &[u8]) -> Option<u32> {
    let mut names = Names(bytes);
    let count = names.by_ref().count() as u32;
    names.0.is_empty().then_some(count)
}

/// Refuses scales that are not positive, finite, normal numbers.
pub(crate) fn check_scales(what: What, owner: u16, scales: impl Iterator<Item = f32>) -> Result<()> {
    for (index, value) in scales.enumerate() {
        // By its bits: those of positive numbers ascend as the numbers do.
        if !(f32::MIN_POSITIVE.to_bits()..f32::INFINITY.to_bits()).contains(&value.to_bits()) {
            return Err(Error::BadScale { what, owner, index: index as u32, value });
        }
    }
    Ok(())
}
