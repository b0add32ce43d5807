//! The adapter file (`.rpa`): low-rank factors for some sites of one base, biases in the place of some of its own, and the
//! task's own head if it has one.
//!
//! [`Adapter::new`] checks a file against the base it is for; afterwards its accessors are total and running it cannot
//! fail. [`Preview`] reads what can be read without the base. Neither knows how factors are applied.

mod biases;

use half::f16;
use serde::{Deserialize, Serialize};

use crate::base::{Base, Names, Sites, check_scales, count_names};
use crate::graph::Rows;
use crate::header::{self, Header};
use crate::numbers::to_f32;
use crate::read::Reader;
use crate::{Error, MAX_RANK, Result, What};

pub use crate::header::{HEADER_BYTES, MAGIC, TRAILER_BYTES};
pub use biases::{BiasEntries, BiasEntry, Biases};

/// The payload starts at a multiple of this.
pub const PAYLOAD_ALIGN: usize = 16;
/// Longest task name.
pub const MAX_TASK_BYTES: usize = 32;
/// Most outputs of a task head.
pub const MAX_HEAD_OUTPUTS: u32 = 4096;
/// Most rows of a self-test.
pub const MAX_SELF_TEST_ROWS: u32 = 512;

/// How the numbers of an adapter are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method<'a> {
    /// int8 factors, one f16 scale per rank component; the row scales of B are those of the base.
    LoraInt8,
    /// The same, and biases in the place of some of the base's: their entries in ascending order of the tensors, postcard
    /// (tensor: u16, length: u32). Their numbers, f32, begin the payload.
    LoraInt8Biases(#[serde(borrow)] &'a [u8]),
}

/// How the feature rows of a sequence become the one row that a task head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pooling {
    /// The last row.
    Last,
    /// The mean over all rows.
    Mean,
    /// None: the head reads each row and answers after each.
    Every,
    /// None, at a second reading: the sequence is run twice, and the head answers after each row of the second time, when a network
    /// that sees no later rows has seen the whole sequence.
    Reread,
}

impl Pooling {
    /// Whether the head answers after each row instead of once.
    pub fn is_every_row(self) -> bool {
        matches!(self, Self::Every | Self::Reread)
    }
}

/// A task head as it is written: y = W pool(features) + b. Its codes `[n_out, width]` end the payload.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HeadInfo<'a> {
    /// Pooling.
    pub pooling: Pooling,
    /// Row scales of W, f16 little-endian; their number is the number of outputs.
    #[serde(borrow)]
    pub scales: &'a [u8],
    /// b, f32 little-endian; empty for none.
    #[serde(borrow)]
    pub bias: &'a [u8],
    /// Names of the outputs, postcard strings; empty for none.
    #[serde(borrow)]
    pub labels: &'a [u8],
}

/// What a device runs after an activation to prove that the adapter is applied and computes what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// Seed of the input ([`crate::digest::XorShift32`]): token ids or features, row by row.
    pub seed: u32,
    /// Rows of the input.
    pub rows: u16,
    /// [`crate::digest::Digest`] of the output, the adapter streamed; after every row if the network streams and the
    /// adapter has no head, or one that answers after each row.
    #[serde(with = "postcard::fixint::le")]
    pub digest: u64,
}

/// The body as it is written, a postcard struct.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Body<'a> {
    /// Name of the task.
    pub task: &'a str,
    /// Method.
    #[serde(borrow)]
    pub method: Method<'a>,
    /// LoRA's alpha, as trained. The scales already contain the scaling; this is for the way back to PEFT.
    #[doc(alias = "lora_alpha")]
    pub alpha: f32,
    /// Sites in ascending order: postcard (site: u16, rank: u16), then `rank` scales, f16 little-endian.
    #[serde(borrow)]
    pub sites: &'a [u8],
    /// The task head, if the task has its own.
    #[serde(borrow)]
    pub head: Option<HeadInfo<'a>>,
    /// Self-test.
    pub self_test: SelfTest,
}

/// The low-rank factors of one site, in place.
///
/// With the base's codes W and row scales w: delta_weight\[o, i\] = w\[o\] * sum_j b\[o, j\] * scale(j) * a\[j, i\].
#[derive(Debug, Clone, Copy)]
pub struct Patch<'a> {
    /// Index of the site.
    pub site: u16,
    /// Rank.
    #[doc(alias = "r")]
    pub rank: usize,
    /// Scales of the rank components, f16 little-endian `[rank]`, positive and finite.
    pub scales: &'a [u8],
    /// Codes of lora_a `[rank, in_features]`, row-major.
    pub lora_a: &'a [i8],
    /// Codes of lora_b `[out_features, rank]`, row-major.
    pub lora_b: &'a [i8],
}

impl Patch<'_> {
    /// The scale of each rank component.
    pub fn component_scales(&self) -> impl Iterator<Item = f32> {
        f16s(self.scales)
    }
}

/// A task head, in place.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Scales, bias, labels, pooling.
    pub info: HeadInfo<'a>,
    /// Outputs.
    pub n_out: usize,
    /// Width of the features.
    pub width: usize,
    /// Codes of W `[n_out, width]`, row-major.
    pub codes: &'a [i8],
}

impl<'a> Head<'a> {
    /// Row scales of W.
    pub fn row_scales(&self) -> impl Iterator<Item = f32> {
        f16s(self.info.scales)
    }

    /// b; empty if the head has none.
    pub fn bias(&self) -> impl Iterator<Item = f32> {
        f32s(self.info.bias)
    }

    /// Names of the outputs.
    pub fn labels(&self) -> Names<'a> {
        Names(self.info.labels)
    }
}

fn f16s(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<2>().0.iter().map(|bytes| to_f32(f16::from_le_bytes(*bytes)))
}

fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// What an adapter file says without its base: enough to list and to choose.
#[derive(Debug, Clone, Copy)]
pub struct Preview<'a> {
    /// The header. Whether its key really signed the file is for a verifier to say.
    pub header: Header,
    /// The body.
    pub body: Body<'a>,
    /// The whole file.
    pub file: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Preview<'a> {
    /// Checks header, length, checksum and the shape of the body.
    ///
    /// # Errors
    /// As [`header::check`]; [`Error::Malformed`], [`Error::OutOfRange`] for the body.
    pub fn new(file: &'a [u8]) -> Result<Self> {
        let header = header::check(file)?;
        // The length has just been checked.
        let content = file.get(..file.len() - TRAILER_BYTES).unwrap_or(&[]);
        let mut reader = Reader(content.get(HEADER_BYTES..).unwrap_or(&[]));
        let body = reader.body().ok_or(Error::Malformed { what: What::AdapterBody })?;
        let rest = reader.0;
        let end = content.len() - rest.len();
        let (zeros, payload) = rest
            .split_at_checked(end.next_multiple_of(PAYLOAD_ALIGN) - end)
            .ok_or(Error::Malformed { what: What::Padding })?;
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(Error::Malformed { what: What::Padding });
        }
        if body.task.is_empty() || body.task.len() > MAX_TASK_BYTES {
            return Err(Error::OutOfRange {
                what: What::TaskNameLength,
                found: body.task.len() as u32,
                max: MAX_TASK_BYTES as u32,
            });
        }
        Ok(Self { header, body, file, payload })
    }
}

/// A checked adapter for a base.
#[derive(Debug, Clone, Copy)]
pub struct Adapter<'a> {
    header: Header,
    body: Body<'a>,
    /// Biases first.
    payload: &'a [u8],
    head: Option<Head<'a>>,
    n_patches: u16,
    max_rank: (u16, u16),
}

impl<'a> Adapter<'a> {
    /// Checks `file` against `base`.
    ///
    /// Guaranteed afterwards: it is for this base; its sites exist, ascend and have ranks in 1..=256; every scale is
    /// positive, finite and normal as f32; its biases are such of the graph, ascend, have their lengths, are finite and lie
    /// on a boundary of 4; the rest of the payload is exactly r (in + out) bytes per site and `n_out * width` for the head;
    /// the self-test fits the base.
    ///
    /// # Errors
    /// An [`Error`] that names the first thing found wrong.
    pub fn new(file: &'a [u8], base: &Base<'_>) -> Result<Self> {
        let Preview { header, body, payload: whole, .. } = Preview::new(file)?;
        if header.base_id != base.id() {
            return Err(Error::WrongBase { expected: base.id(), found: header.base_id });
        }
        if !body.alpha.is_finite() || body.alpha <= 0.0 {
            return Err(Error::BadScale { what: What::Alpha, owner: 0, index: 0, value: body.alpha });
        }
        let mut entries = Entries(body.sites);
        let mut sites = base.sites();
        let mut previous: Option<u16> = None;
        let mut expected = 0u32;
        let mut n_patches = 0u16;
        let mut max_rank = (0, 0);
        while let Some(entry) = entries.try_next()? {
            let Entry { site: found, rank, scales } = entry;
            match previous {
                Some(before) if before == found => return Err(Error::DuplicateSite { site: found }),
                Some(before) if before > found => {
                    return Err(Error::SitesOutOfOrder { previous: before, found });
                }
                _ => previous = Some(found),
            }
            let site = sites
                .find(|site| site.index == found)
                .ok_or(Error::UnknownSite { site: found, n_sites: base.n_sites() })?;
            if rank == 0 || u32::from(rank) > MAX_RANK {
                return Err(Error::RankOutOfRange { site: found, rank: rank.into(), max: MAX_RANK });
            }
            check_scales(What::Component, found, f16s(scales))?;
            expected =
                expected.saturating_add(u32::from(rank) * (site.weight.rows + site.weight.cols) as u32);
            n_patches += 1;
            max_rank = max_rank.max((rank, found));
        }
        let (biases, payload) = Biases::check(body.method, whole, base)?;
        let features = base.value(base.manifest().features);
        let width = features.width as usize;
        let head_bytes = match body.head {
            None => 0,
            Some(head) => {
                let n_out = check_head(&head, features.rows, base.streaming())?;
                n_out.saturating_mul(features.width)
            }
        };
        if n_patches == 0 && body.head.is_none() && biases.is_empty() {
            return Err(Error::NothingToApply);
        }
        let expected = expected.saturating_add(head_bytes);
        let found = payload.len() as u32;
        if found < expected {
            return Err(Error::Truncated { what: What::AdapterPayload, expected, found });
        }
        if found > expected {
            return Err(Error::TrailingBytes { what: What::AdapterPayload, expected, found });
        }
        if let Some(at) = payload.iter().position(|code| *code == 0x80) {
            return Err(Error::OutOfRange { what: What::CodeAt, found: at as u32, max: 0 });
        }
        let (rows, max) = (u32::from(body.self_test.rows), base.manifest().max_rows.min(MAX_SELF_TEST_ROWS));
        if rows == 0 || rows > max {
            return Err(Error::OutOfRange { what: What::SelfTestRows, found: rows, max });
        }
        let head = body.head.map(|info| Head {
            info,
            n_out: info.scales.len() / 2,
            width,
            codes: bytemuck::cast_slice(
                payload.get(payload.len().saturating_sub(head_bytes as usize)..).unwrap_or(&[]),
            ),
        });
        Ok(Self { header, body, payload: whole, head, n_patches, max_rank })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The body.
    pub fn body(&self) -> &Body<'a> {
        &self.body
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> usize {
        self.header.file_bytes as usize
    }

    /// The payload without biases: A and B of each patched site in order, then the head's codes.
    pub fn payload(&self) -> &'a [u8] {
        self.payload.get(BiasEntries::of(self.body.method).payload_bytes()..).unwrap_or(&[])
    }

    /// Bytes of that: r (in + out) per site, and the codes of the head.
    pub fn payload_bytes(&self) -> usize {
        self.payload().len()
    }

    /// The biases in the place of some of the base's.
    pub fn biases(&self) -> Biases<'a> {
        Biases::of_payload(BiasEntries::of(self.body.method), self.payload)
    }

    /// Number of sites patched.
    pub fn n_patches(&self) -> u16 {
        self.n_patches
    }

    /// The highest rank and a site that has it; zeros if no site is patched.
    pub fn max_rank(&self) -> (u16, u16) {
        self.max_rank
    }

    /// The task head.
    pub fn head(&self) -> Option<&Head<'a>> {
        self.head.as_ref()
    }

    /// A cursor before the first patch.
    pub fn cursor(&self) -> Cursor<'a> {
        Cursor { entries: Entries(self.body.sites), payload: bytemuck::cast_slice(self.payload()) }
    }

    /// The patches in canonical order. `base` must be the base that the adapter was checked against; with another,
    /// the iterator ends early.
    pub fn patches<'b>(&self, base: &Base<'b>) -> Patches<'a, 'b> {
        Patches { cursor: self.cursor(), sites: base.sites() }
    }
}

fn check_head(head: &HeadInfo<'_>, rows: Rows, streaming: bool) -> Result<u32> {
    let n_out = (head.scales.len() / 2) as u32;
    if !head.scales.len().is_multiple_of(2) || n_out == 0 || n_out > MAX_HEAD_OUTPUTS {
        return Err(Error::OutOfRange { what: What::HeadOutputs, found: n_out, max: MAX_HEAD_OUTPUTS });
    }
    check_scales(What::HeadRow, 0, f16s(head.scales))?;
    let bias = head.bias.len() as u32;
    if bias != 0 && bias != n_out * 4 {
        return Err(Error::ShapeMismatch {
            what: What::HeadBiasBytes,
            op: 0,
            expected: n_out * 4,
            found: bias,
        });
    }
    if let Some(at) = f32s(head.bias).position(|value| !value.is_finite()) {
        return Err(Error::NotFinite { what: What::HeadBias, index: at as u32 });
    }
    let labels = count_names(head.labels).ok_or(Error::Malformed { what: What::HeadLabels })?;
    if labels != 0 && labels != n_out {
        return Err(Error::ShapeMismatch {
            what: What::HeadLabelCount,
            op: 0,
            expected: n_out,
            found: labels,
        });
    }
    let fits = match head.pooling {
        Pooling::Last => true,
        Pooling::Mean => rows != Rows::One,
        Pooling::Every => rows == Rows::Tokens { extra: 0 },
        Pooling::Reread => rows == Rows::Tokens { extra: 0 } && streaming,
    };
    if !fits {
        return Err(Error::Malformed { what: What::Pooling });
    }
    Ok(n_out)
}

/// A site entry as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Index of the site.
    pub site: u16,
    /// Rank.
    pub rank: u16,
    /// f16 little-endian `[rank]`.
    pub scales: &'a [u8],
}

/// Decodes site entries one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Entries<'a>(pub &'a [u8]);

impl<'a> Entries<'a> {
    /// The next entry, or `None` at the end.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the bytes are no entry.
    pub fn try_next(&mut self) -> Result<Option<Entry<'a>>> {
        const MALFORMED: Error = Error::Malformed { what: What::SiteEntry };
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut reader = Reader(self.0);
        let (Some(site), Some(rank)) = (reader.u16(), reader.u16()) else { return Err(MALFORMED) };
        let (scales, rest) = reader.0.split_at_checked(usize::from(rank) * 2).ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(Some(Entry { site, rank, scales }))
    }
}

/// Walks over the patches while the caller walks over the sites: it needs no look-up and no memory.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    entries: Entries<'a>,
    payload: &'a [i8],
}

impl<'a> Cursor<'a> {
    /// A cursor over nothing.
    pub const EMPTY: Self = Self { entries: Entries(&[]), payload: &[] };

    /// The patch of `site`, whose weight is `[rows, cols]`, if it is the next one. Sites must be asked for in ascending
    /// order.
    pub fn take(&mut self, site: u16, rows: usize, cols: usize) -> Option<Patch<'a>> {
        let mut entries = self.entries;
        let entry = entries.try_next().ok()??;
        if entry.site != site {
            return None;
        }
        let rank = usize::from(entry.rank);
        let (lora_a, rest) = self.payload.split_at_checked(rank * cols)?;
        let (lora_b, rest) = rest.split_at_checked(rank * rows)?;
        *self = Self { entries, payload: rest };
        Some(Patch { site, rank, scales: entry.scales, lora_a, lora_b })
    }
}

/// The patches of an adapter in canonical order.
#[derive(Debug, Clone)]
pub struct Patches<'a, 'b> {
    cursor: Cursor<'a>,
    sites: Sites<'b>,
}

impl<'a> Iterator for Patches<'a, '_> {
    type Item = Patch<'a>;

    fn next(&mut self) -> Option<Patch<'a>> {
        self.sites.find_map(|site| self.cursor.take(site.index, site.weight.rows, site.weight.cols))
    }
}
