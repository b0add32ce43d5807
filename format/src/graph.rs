//! The only description of a network in the project: a list of operators in SSA form. Operator `i` writes value `i`
//! and reads values below `i` and named weights. The trainer and the device execute the same list.
//!
//! A value is a matrix of `f32`, `[rows, width]` row-major. Its rows are the tokens (or frames) of the sequence, or a
//! single row. This module knows shapes; it does not know how an operator is computed.

use serde::{Deserialize, Serialize};

use crate::front_end::FFT_SAMPLES;
use crate::read::Reader;
use crate::{Error, MAX_OUTPUTS, Result, What};

#[cfg(feature = "alloc")]
pub use host::HostOp;

#[cfg(feature = "alloc")]
pub(crate) mod host;

/// Index of a value, which is the index of the operator that writes it.
pub type ValueId = u16;
/// Index of a tensor in the base's directory.
pub type TensorId = u16;

/// One operator. Formulas use x for the input, y for the output, t for a row.
///
/// The order of the variants is part of the file format.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// y\[t\] = table\[id_t\]: rows of an int8 table `[vocab_size, width]`, dequantized. The first operator of a network
    /// that reads token ids.
    Embedding {
        /// The table.
        table: TensorId,
    },
    /// y\[t\] = the caller's feature row t. The first operator of a network that reads signals.
    Features {
        /// Features per row.
        width: u32,
    },
    /// y = W x + b, with the int8 matrix W `[out, in]`. Every linear operator is a **site** that an adapter may patch.
    Linear {
        /// x.
        input: ValueId,
        /// W.
        weight: TensorId,
        /// b `[out]`.
        bias: Option<TensorId>,
    },
    /// y = x / sqrt(mean(x^2) + eps) * weight, per row.
    RmsNorm {
        /// x.
        input: ValueId,
        /// weight `[width]`.
        weight: TensorId,
        /// eps.
        eps: f32,
    },
    /// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, per row, population variance.
    LayerNorm {
        /// x.
        input: ValueId,
        /// weight `[width]`.
        weight: TensorId,
        /// bias `[width]`.
        bias: TensorId,
        /// eps.
        eps: f32,
    },
    /// Rotary position: within each head the pair (2i, 2i+1) turns by the angle position * inv_freq\[i\].
    Rope {
        /// x.
        input: ValueId,
        /// inv_freq `[head_size / 2]`.
        inv_freq: TensorId,
    },
    /// y\[t\] = x\[t\] + table\[t\]: a learned position table `[positions, width]`.
    AddPosition {
        /// x.
        input: ValueId,
        /// The table.
        table: TensorId,
    },
    /// y = softmax(scale q k^T) v per head; query head h reads key head h / (n_heads / n_kv_heads).
    Attention {
        /// q `[rows, n_heads * head_size]`.
        q: ValueId,
        /// k `[rows, n_kv_heads * head_size]`.
        k: ValueId,
        /// v `[rows, n_kv_heads * head_size]`.
        v: ValueId,
        /// Query heads.
        n_heads: u16,
        /// Key and value heads.
        n_kv_heads: u16,
        /// A row sees only itself and the rows before it, keys and values of which are kept between passes.
        causal: bool,
        /// The factor before the softmax, as a rule 1 / sqrt(head_size).
        scale: f32,
    },
    /// y = x / (1 + exp(-x)).
    Silu {
        /// x.
        input: ValueId,
    },
    /// y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    Gelu {
        /// x.
        input: ValueId,
    },
    /// y = a + b.
    Add {
        /// a.
        a: ValueId,
        /// b.
        b: ValueId,
    },
    /// y = a * b, element by element.
    Mul {
        /// a.
        a: ValueId,
        /// b.
        b: ValueId,
    },
    /// y\[t, i\] = x\[t, i\] * weight\[i\].
    Scale {
        /// x.
        input: ValueId,
        /// weight `[width]`.
        weight: TensorId,
    },
    /// y = the row `token` `[width]`, then the rows of x.
    PrependToken {
        /// x.
        input: ValueId,
        /// The row.
        token: TensorId,
    },
    /// y = the row `row` of x.
    SelectRow {
        /// x.
        input: ValueId,
        /// Index of the row.
        row: u32,
    },
    /// y = the mean over the rows of x.
    MeanPool {
        /// x.
        input: ValueId,
    },
    /// y = 0.5 x (1 + erf(x / sqrt(2))), the exact form.
    GeluErf {
        /// x.
        input: ValueId,
    },
    /// y = tanh(x).
    Tanh {
        /// x.
        input: ValueId,
    },
    /// y\[t\] = the mel-frequency cepstral coefficients of frame t of the caller's samples. The first operator of a network
    /// that reads sound; what it computes is in [`crate::front_end`].
    Mfcc {
        /// Samples a second. The formula does not depend on it: callers check recordings against it.
        sample_rate: u16,
        /// Samples of a frame, at most [`FFT_SAMPLES`].
        frame: u16,
        /// Samples from one frame to the next, at most `frame`.
        hop: u16,
        /// The logarithm's argument is at least this.
        floor: f32,
        /// Window `[frame]`, which also scales the i16 samples.
        window: TensorId,
        /// Per band its first bin and the number of its bins `[bands, 2]`, whole numbers; an even number of bands.
        bands: TensorId,
        /// Weights of the bands' bins, one band after the other.
        mel: TensorId,
        /// The left half of the cosine transform `[width, bands / 2]`.
        dct: TensorId,
    },
    /// An operator that no device runs and no base image holds. The last variant: readers know those before it.
    #[cfg(feature = "alloc")]
    #[serde(skip_deserializing)]
    Host(HostOp),
}

/// How many rows a value has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rows {
    /// The rows of the pass and `extra` prepended ones.
    Tokens {
        /// Prepended rows.
        extra: u8,
    },
    /// One row.
    One,
    /// The rows of the pass and those of a table; in no base image, see [`HostOp::AppendTable`].
    #[cfg(feature = "alloc")]
    Tabled {
        /// Rows of the table.
        table: u32,
    },
}

impl Rows {
    /// The number of rows in a pass over `tokens` tokens.
    pub fn count(self, tokens: usize) -> usize {
        match self {
            Self::Tokens { extra } => tokens + usize::from(extra),
            Self::One => 1,
            #[cfg(feature = "alloc")]
            Self::Tabled { table } => tokens + table as usize,
        }
    }
}

/// Shape of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: Rows,
    /// Elements per row.
    pub width: u32,
}

/// Shape and kind of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorShape {
    /// Rows (out_features; vocabulary; 1 for a vector).
    pub rows: u32,
    /// Columns (in_features; width).
    pub cols: u32,
    /// Whether the tensor is an int8 matrix with row scales; otherwise it is numbers.
    pub quantized: bool,
}

/// The memory of one key head of an attention operator, in words of 32 bits.
///
/// The keys, `[keys, words]` with two 16-bit codes a word, then the values, `[pairs of keys, 2 * words]`, where a word holds
/// one column of two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Columns of the head.
    pub head_size: usize,
}

impl HeadShape {
    /// Words of one key: columns are filled up to a multiple of four.
    pub fn words(self) -> usize {
        self.head_size.div_ceil(4).saturating_mul(2)
    }

    /// Words of the head for `keys` keys.
    pub fn code_words(self, keys: usize) -> usize {
        keys.saturating_add(keys.div_ceil(2).saturating_mul(2)).saturating_mul(self.words())
    }
}

impl Op {
    /// The values that this operator reads; `None` fills up.
    pub fn inputs(&self) -> [Option<ValueId>; 3] {
        match *self {
            Self::Embedding { .. } | Self::Features { .. } | Self::Mfcc { .. } => [None, None, None],
            Self::Linear { input, .. }
            | Self::RmsNorm { input, .. }
            | Self::LayerNorm { input, .. }
            | Self::Rope { input, .. }
            | Self::AddPosition { input, .. }
            | Self::Silu { input }
            | Self::Gelu { input }
            | Self::GeluErf { input }
            | Self::Tanh { input }
            | Self::Scale { input, .. }
            | Self::PrependToken { input, .. }
            | Self::SelectRow { input, .. }
            | Self::MeanPool { input } => [Some(input), None, None],
            Self::Add { a, b } | Self::Mul { a, b } => [Some(a), Some(b), None],
            Self::Attention { q, k, v, .. } => [Some(q), Some(k), Some(v)],
            #[cfg(feature = "alloc")]
            Self::Host(op) => op.inputs(),
        }
    }

    /// Whether the output may lie exactly on `input`, when nothing reads that value later.
    pub fn in_place(&self, input: ValueId) -> bool {
        match *self {
            Self::RmsNorm { input: x, .. }
            | Self::LayerNorm { input: x, .. }
            | Self::Rope { input: x, .. }
            | Self::AddPosition { input: x, .. }
            | Self::Silu { input: x }
            | Self::Gelu { input: x }
            | Self::GeluErf { input: x }
            | Self::Tanh { input: x }
            | Self::Scale { input: x, .. } => x == input,
            // An operator that reads the same value twice gets a place of its own: there is nothing to gain.
            Self::Add { a, b } | Self::Mul { a, b } => a == input && b != input,
            _ => false,
        }
    }

    /// The value that this operator destroys, and the bytes that it needs at the place of its output if these are more
    /// than the output has: attention in both directions keeps one key head's codes there, and writes its rows over the
    /// queries before it moves them. `value` gives shapes; `tokens` is the length of a pass.
    pub fn scratch(&self, tokens: u32, value: impl Fn(ValueId) -> Shape) -> Option<(ValueId, u32)> {
        let Self::Attention { q, k, n_heads, causal: false, .. } = *self else { return None };
        let head = HeadShape { head_size: value(q).width as usize / usize::from(n_heads.max(1)) };
        let words = head.code_words(value(k).rows.count(tokens as usize));
        Some((q, u32::try_from(words.saturating_mul(4)).unwrap_or(u32::MAX)))
    }

    /// The vector that this operator adds to each row of its output, if there is one: what PEFT and PyTorch call `bias`.
    pub fn bias(&self) -> Option<TensorId> {
        match *self {
            Self::Linear { bias, .. } => bias,
            Self::LayerNorm { bias, .. } => Some(bias),
            #[cfg(feature = "alloc")]
            Self::Host(HostOp::Convolution { bias, .. }) => Some(bias),
            #[cfg(feature = "alloc")]
            Self::Host(HostOp::AppendTable { bias, .. }) => bias,
            _ => None,
        }
    }

    /// The tensors of numbers that this operator reads where they are, so that an image has them as f32; `None` fills up.
    pub fn read_in_place(&self) -> [Option<TensorId>; 4] {
        match *self {
            Self::Rope { inv_freq, .. } => [Some(inv_freq), None, None, None],
            Self::Mfcc { window, bands, mel, dct, .. } => [window, bands, mel, dct].map(Some),
            _ => [None; 4],
        }
    }

    /// Whether this operator works in a network that reads its sequence in pieces, keeping keys and values: each row
    /// may depend on earlier rows only.
    pub fn streams(&self) -> bool {
        match *self {
            Self::Attention { causal, .. } => causal,
            Self::PrependToken { .. } | Self::SelectRow { .. } | Self::MeanPool { .. } => false,
            #[cfg(feature = "alloc")]
            Self::Host(_) => false,
            _ => true,
        }
    }

    /// The shape of the output of operator `index`, from the shapes of what it reads.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::OutOfRange`] when the parts do not fit; whatever the two look-ups return.
    pub fn infer(
        &self,
        index: u16,
        tensor: impl Fn(TensorId) -> Result<TensorShape>,
        value: impl Fn(ValueId) -> Result<Shape>,
    ) -> Result<Shape> {
        let read = |id: ValueId| {
            if id < index {
                value(id)
            } else {
                Err(Error::OutOfRange {
                    what: What::ValueRead,
                    found: id.into(),
                    max: index.saturating_sub(1).into(),
                })
            }
        };
        let vector = |id: TensorId, width: u32| {
            let t = tensor(id)?;
            if t.quantized || t.rows != 1 {
                return mismatch(index, What::VectorKind, 1, t.rows);
            }
            if t.cols == width { Ok(()) } else { mismatch(index, What::VectorLength, width, t.cols) }
        };
        let matrix = |id: TensorId| {
            let t = tensor(id)?;
            if t.quantized { Ok(t) } else { mismatch(index, What::WeightKind, 1, 0) }
        };
        let input = matches!(self, Self::Embedding { .. } | Self::Features { .. } | Self::Mfcc { .. });
        if input != (index == 0) {
            return Err(Error::Malformed { what: What::InputOperator });
        }
        let positive = |what, eps| positive(index, what, eps);
        let shape = match *self {
            Self::Embedding { table } => {
                Shape { rows: Rows::Tokens { extra: 0 }, width: matrix(table)?.cols }
            }
            Self::Features { width } => Shape { rows: Rows::Tokens { extra: 0 }, width },
            Self::Mfcc { frame, hop, floor, window, bands, dct, .. } => {
                let (frame, hop) = (u32::from(frame), u32::from(hop));
                for (what, found, max) in
                    [(What::FrameSamples, frame, FFT_SAMPLES as u32), (What::HopSamples, hop, frame)]
                {
                    if found == 0 || found > max {
                        return Err(Error::OutOfRange { what, found, max });
                    }
                }
                positive(What::MelFloor, floor)?;
                vector(window, frame)?;
                let (bands, dct) = (tensor(bands)?, tensor(dct)?);
                if bands.quantized || bands.cols != 2 || !bands.rows.is_multiple_of(2) {
                    return mismatch(index, What::MelBands, 2, bands.cols);
                }
                if dct.quantized || dct.cols != bands.rows / 2 {
                    return mismatch(index, What::DctColumns, bands.rows / 2, dct.cols);
                }
                Shape { rows: Rows::Tokens { extra: 0 }, width: dct.rows }
            }
            Self::Linear { input, weight, bias } => {
                let (x, w) = (read(input)?, matrix(weight)?);
                if w.cols != x.width {
                    return mismatch(index, What::InFeatures, x.width, w.cols);
                }
                bias.map_or(Ok(()), |bias| vector(bias, w.rows))?;
                Shape { rows: x.rows, width: w.rows }
            }
            Self::RmsNorm { input, weight, eps } => {
                let x = read(input)?;
                vector(weight, x.width)?;
                positive(What::Eps, eps)?;
                x
            }
            Self::LayerNorm { input, weight, bias, eps } => {
                let x = read(input)?;
                vector(weight, x.width)?;
                vector(bias, x.width)?;
                positive(What::Eps, eps)?;
                x
            }
            Self::Rope { input, inv_freq } => {
                let (x, freq) = (read(input)?, tensor(inv_freq)?);
                vector(inv_freq, freq.cols)?;
                let head_size = freq.cols.saturating_mul(2);
                if x.width.checked_rem(head_size) != Some(0) {
                    return mismatch(index, What::RopeWidth, head_size, x.width);
                }
                x
            }
            Self::AddPosition { input, table } => {
                let (x, t) = (read(input)?, tensor(table)?);
                if t.quantized || t.cols != x.width {
                    return mismatch(index, What::PositionTableWidth, x.width, t.cols);
                }
                x
            }
            Self::Attention { q, k, v, n_heads, n_kv_heads, scale, .. } => {
                let (q, k, v) = (read(q)?, read(k)?, read(v)?);
                let (n_heads, n_kv_heads) = (u32::from(n_heads), u32::from(n_kv_heads));
                if n_heads.checked_rem(n_kv_heads) != Some(0) || q.width.checked_rem(n_heads) != Some(0) {
                    return mismatch(index, What::Heads, n_kv_heads, n_heads);
                }
                let expected = q.width / n_heads * n_kv_heads;
                for (what, x) in [(What::KeyWidth, k), (What::ValueHeadWidth, v)] {
                    if x.width != expected {
                        return mismatch(index, what, expected, x.width);
                    }
                    if x.rows != q.rows {
                        return mismatch(index, What::AttentionRows, 0, 1);
                    }
                }
                positive(What::AttentionScale, scale)?;
                q
            }
            Self::Silu { input } | Self::Gelu { input } | Self::GeluErf { input } | Self::Tanh { input } => {
                read(input)?
            }
            Self::Add { a, b } | Self::Mul { a, b } => {
                let (a, b) = (read(a)?, read(b)?);
                if a.width != b.width || a.rows != b.rows {
                    return mismatch(index, What::OperandShape, a.width, b.width);
                }
                a
            }
            Self::Scale { input, weight } => {
                let x = read(input)?;
                vector(weight, x.width)?;
                x
            }
            Self::PrependToken { input, token } => {
                let x = read(input)?;
                vector(token, x.width)?;
                match x.rows {
                    Rows::Tokens { extra } if extra < u8::MAX => {
                        Shape { rows: Rows::Tokens { extra: extra + 1 }, width: x.width }
                    }
                    _ => return mismatch(index, What::PrependedRows, 0, 1),
                }
            }
            Self::SelectRow { input, row } => {
                let x = read(input)?;
                // Only rows that exist in every pass can be selected: prepended ones, and the first token.
                let max = match x.rows {
                    Rows::Tokens { extra } => extra.into(),
                    Rows::One => 0,
                    #[cfg(feature = "alloc")]
                    Rows::Tabled { .. } => return mismatch(index, What::TokenRows, 0, 1),
                };
                if row > max {
                    return Err(Error::OutOfRange { what: What::SelectedRow, found: row, max });
                }
                Shape { rows: Rows::One, width: x.width }
            }
            Self::MeanPool { input } => Shape { rows: Rows::One, width: read(input)?.width },
            #[cfg(feature = "alloc")]
            Self::Host(op) => op.infer(index, tensor, read)?,
        };
        if shape.width == 0 || shape.width > MAX_OUTPUTS {
            return Err(Error::OutOfRange { what: What::ValueWidth, found: shape.width, max: MAX_OUTPUTS });
        }
        Ok(shape)
    }
}

/// Refuses a factor or an eps that is not positive and finite.
fn positive(op: u16, what: What, value: f32) -> Result<()> {
    // By its bits: those of positive numbers ascend as the numbers do.
    if (1..f32::INFINITY.to_bits()).contains(&value.to_bits()) {
        Ok(())
    } else {
        Err(Error::BadScale { what, owner: op, index: 0, value })
    }
}

fn mismatch<T>(op: u16, what: What, expected: u32, found: u32) -> Result<T> {
    Err(Error::ShapeMismatch { what, op, expected, found })
}

/// Decodes operators one after the other from their postcard bytes, so that a device needs no memory for them.
#[derive(Debug, Clone)]
pub struct Ops<'a> {
    bytes: &'a [u8],
    index: u16,
}

impl<'a> Ops<'a> {
    /// The operators in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, index: 0 }
    }

    /// The next operator with its index, or `None` at the end.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the bytes are no operator.
    pub fn try_next(&mut self) -> Result<Option<(u16, Op)>> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let mut reader = Reader(self.bytes);
        let op = reader.op().ok_or(Error::Malformed { what: What::Operator })?;
        let index = self.index;
        self.bytes = reader.0;
        self.index = index.checked_add(1).ok_or(Error::OutOfRange {
            what: What::OperatorCount,
            found: u16::MAX.into(),
            max: u32::from(u16::MAX) - 1,
        })?;
        Ok(Some((index, op)))
    }
}

/// Ends early on malformed bytes; those of a checked [`crate::base::Base`] are not.
impl Iterator for Ops<'_> {
    type Item = (u16, Op);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = Reader(self.bytes);
        let op = reader.op()?;
        self.bytes = reader.0;
        let index = self.index;
        self.index = index.wrapping_add(1);
        Some((index, op))
    }
}
