//! What runs together: sequences padded to one length.

/// What a network reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Token ids `[sequences * rows]`.
    Tokens(Vec<u32>),
    /// Feature rows `[sequences * rows, width]`, row-major.
    Features(Vec<f32>),
}

/// Sequences that run together. All are padded at the end to the same number of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The padded input. Padding may hold anything that the network can read: id 0, zeros.
    pub input: Input,
    /// Number of sequences.
    pub sequences: usize,
    /// Rows of each sequence, padding included.
    pub rows: usize,
    /// Rows of each sequence that count, 1 to `rows`; `[sequences]`.
    pub lengths: Vec<usize>,
}

impl Batch {
    /// Token sequences, padded with id 0 to the longest.
    pub fn tokens<T: Copy + Into<u32>>(sequences: &[impl AsRef<[T]>]) -> Self {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.as_ref().len()).collect();
        let rows = lengths.iter().copied().max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows * sequences.len());
        for sequence in sequences {
            ids.extend(sequence.as_ref().iter().map(|id| (*id).into()));
            ids.resize(ids.len().next_multiple_of(rows.max(1)), 0);
        }
        Self { input: Input::Tokens(ids), sequences: sequences.len(), rows, lengths }
    }

    /// Feature sequences, each `[rows, width]` row-major, padded with zeros to the longest.
    pub fn features(sequences: &[impl AsRef<[f32]>], width: usize) -> Self {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.as_ref().len() / width.max(1)).collect();
        let rows = lengths.iter().copied().max().unwrap_or(0);
        let mut values = Vec::with_capacity(rows * width * sequences.len());
        for (index, sequence) in sequences.iter().enumerate() {
            values.extend_from_slice(sequence.as_ref());
            values.resize((index + 1) * rows * width, 0.0);
        }
        Self { input: Input::Features(values), sequences: sequences.len(), rows, lengths }
    }

    /// The token ids; none if it has features.
    pub(super) fn ids(&self) -> &[u32] {
        match &self.input {
            Input::Tokens(ids) => ids,
            Input::Features(_) => &[],
        }
    }

    /// The features; none if it has token ids.
    pub(super) fn values(&self) -> &[f32] {
        match &self.input {
            Input::Tokens(_) => &[],
            Input::Features(values) => values,
        }
    }
}
