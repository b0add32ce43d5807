//! Writers for base images and adapter files, and the identity of a base. For the host: they need a heap.
//!
//! Same input, same bytes: nothing here depends on time, addresses or the order of a map.

#![allow(clippy::indexing_slicing, reason = "a host's own data; sizes are checked before")]

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use half::f16;
use sha2::{Digest as _, Sha256};

use crate::adapter::{self, Body, HeadInfo, Method, Pooling, SelfTest};
use crate::base::{self, ALIGN, Base, Manifest, TensorInfo};
use crate::graph::{Op, Shape, TensorId, TensorShape, ValueId, host};
use crate::header::{self, Header, KeyId, ProductId};
use crate::layout::Layout;
use crate::numbers::are_halves;
use crate::plan::plan;
use crate::tokenizer::TokenizerInfo;
use crate::{BaseId, Error, Result, VERSION, What};

/// A tensor of a network on the host.
#[derive(Debug, Clone, PartialEq)]
pub enum Tensor {
    /// Numbers that stay numbers on the device: norms, biases, tables. `[rows, cols]` row-major.
    Floats {
        /// Rows; 1 for a vector.
        rows: u32,
        /// Columns.
        cols: u32,
        /// `rows * cols` numbers.
        data: Vec<f32>,
    },
    /// A float matrix that is to be quantized before it can be written.
    Matrix {
        /// out_features.
        rows: u32,
        /// in_features.
        cols: u32,
        /// `rows * cols` numbers.
        data: Vec<f32>,
    },
    /// An int8 matrix: W\[o, i\] = scales\[o\] * codes\[o, i\].
    Codes {
        /// out_features.
        rows: u32,
        /// in_features.
        cols: u32,
        /// `rows * cols` codes in -127..=127, row-major.
        codes: Vec<i8>,
        /// `rows` scales.
        scales: Vec<f32>,
    },
}

impl Tensor {
    /// Shape; a float matrix counts as quantized, since it will be.
    pub fn shape(&self) -> TensorShape {
        let (rows, cols, quantized) = match *self {
            Self::Floats { rows, cols, .. } => (rows, cols, false),
            Self::Matrix { rows, cols, .. } | Self::Codes { rows, cols, .. } => (rows, cols, true),
        };
        TensorShape { rows, cols, quantized }
    }
}

/// A vocabulary on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// Bytes and score of each piece, by id.
    pub pieces: Vec<(Vec<u8>, f32)>,
    /// Ids that encoding may produce from characters and merges, besides byte tokens.
    pub searchable: Vec<u16>,
    /// Special ids; offset and length are set on writing.
    pub info: TokenizerInfo,
}

impl Vocabulary {
    fn section(&self) -> Vec<u8> {
        let mut order = self.searchable.clone();
        order.sort_by(|a, b| self.pieces[usize::from(*a)].0.cmp(&self.pieces[usize::from(*b)].0));
        // Of equal pieces the lowest id is the one that a search finds.
        order.dedup_by(|b, a| self.pieces[usize::from(*a)].0 == self.pieces[usize::from(*b)].0);
        let mut bytes = (order.len() as u32).to_le_bytes().to_vec();
        for (_, score) in &self.pieces {
            bytes.extend(score.to_le_bytes());
        }
        let mut end = 0u32;
        for (piece, _) in &self.pieces {
            end += piece.len() as u32;
            bytes.extend(end.to_le_bytes());
        }
        order.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
        self.pieces.iter().for_each(|(piece, _)| bytes.extend(piece));
        bytes
    }
}

/// A whole network on the host: the graph, its tensors and its names.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Name of the base.
    pub name: String,
    /// Operators in SSA form.
    pub ops: Vec<Op>,
    /// Tensors, by [`crate::graph::TensorId`].
    pub tensors: Vec<Tensor>,
    /// Dotted names of the tensors (not written; for importers, trainers and messages).
    pub tensor_names: Vec<String>,
    /// Dotted names of the sites, in the order of the linear operators.
    pub site_names: Vec<String>,
    /// Names of the outputs; empty for none.
    pub labels: Vec<String>,
    /// The output.
    pub output: ValueId,
    /// What a task head reads.
    pub features: ValueId,
    /// Longest sequence.
    pub max_rows: u32,
    /// The vocabulary, if the network reads text.
    pub vocabulary: Option<Vocabulary>,
}

fn strings(names: &[String]) -> Vec<u8> {
    names.iter().flat_map(|name| postcard::to_allocvec(name.as_str()).unwrap_or_default()).collect()
}

fn ops_bytes(ops: &[Op]) -> Vec<u8> {
    ops.iter().flat_map(|op| postcard::to_allocvec(op).unwrap_or_default()).collect()
}

impl Network {
    /// The shape of each value.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::OutOfRange`] for the first operator that does not fit.
    pub fn shapes(&self) -> Result<Vec<Shape>> {
        let mut shapes: Vec<Shape> = Vec::with_capacity(self.ops.len());
        for (index, op) in (0u16..).zip(&self.ops) {
            let out_of_range = |what, found: u16, len: usize| Error::OutOfRange {
                what,
                found: found.into(),
                max: len.saturating_sub(1) as u32,
            };
            let shape = op.infer(
                index,
                |id| {
                    let tensor = self.tensors.get(usize::from(id));
                    tensor.map(Tensor::shape).ok_or(out_of_range(What::TensorIndex, id, self.tensors.len()))
                },
                |id| {
                    shapes.get(usize::from(id)).copied().ok_or(out_of_range(
                        What::ValueIndex,
                        id,
                        shapes.len(),
                    ))
                },
            )?;
            shapes.push(shape);
        }
        Ok(shapes)
    }

    /// Checks that devices run every operator of the network.
    ///
    /// # Errors
    /// [`Error::HostOperator`] with the first one that they do not run.
    pub fn check_operators(&self) -> Result<()> {
        match host::first(&self.ops) {
            Some((op, host)) => Err(Error::HostOperator { op, name: host.name() }),
            None => Ok(()),
        }
    }

    /// Whether the network reads its sequence in pieces.
    pub fn streaming(&self) -> bool {
        self.ops.iter().all(Op::streams)
    }

    /// By tensor, whether its numbers, or its row scales, may be halves in an image: all but what an operator reads where it is.
    pub fn halvable(&self) -> Vec<bool> {
        let mut halvable = vec![true; self.tensors.len()];
        for id in self.ops.iter().flat_map(Op::read_in_place).flatten() {
            if let Some(halvable) = halvable.get_mut(usize::from(id)) {
                *halvable = false;
            }
        }
        halvable
    }

    /// The sites: name and weight tensor, in canonical order.
    pub fn sites(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let weights = self.ops.iter().filter_map(|op| match op {
            Op::Linear { weight, .. } => self.tensors.get(usize::from(*weight)),
            _ => None,
        });
        self.site_names.iter().map(String::as_str).zip(weights)
    }

    /// The identity: the first 16 bytes of a SHA-256 over the canonical content (see `SPEC.md`), which is the same for
    /// every weight layout and arena plan.
    pub fn id(&self) -> BaseId {
        let mut hash = Sha256::new();
        hash.update(b"rankpatch base 1\0");
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u32).to_le_bytes());
            hash.update(bytes);
        };
        part(&ops_bytes(&self.ops));
        part(&strings(&self.site_names));
        for number in [u32::from(self.output), u32::from(self.features), self.max_rows] {
            part(&number.to_le_bytes());
        }
        for tensor in &self.tensors {
            let shape = tensor.shape();
            part(&[shape.quantized.into()]);
            part(&shape.rows.to_le_bytes());
            part(&shape.cols.to_le_bytes());
            match tensor {
                Tensor::Floats { data, .. } | Tensor::Matrix { data, .. } => part(bytemuck::cast_slice(data)),
                Tensor::Codes { codes, scales, .. } => {
                    part(bytemuck::cast_slice(scales));
                    part(bytemuck::cast_slice(codes));
                }
            }
        }
        if let Some(vocabulary) = &self.vocabulary {
            let info = TokenizerInfo { offset: 0, len: 0, ..vocabulary.info };
            part(&postcard::to_allocvec(&info).unwrap_or_default());
            part(&vocabulary.section());
        }
        let hash = hash.finalize();
        BaseId(core::array::from_fn(|i| hash[i]))
    }

    /// Writes the base image with its weights in `layout`, planned for passes of at most `pass_rows` rows. A network
    /// that does not stream is planned for its longest sequence whatever `pass_rows` says. Tensors whose numbers are all halves
    /// are written as halves, which loses nothing.
    ///
    /// # Errors
    /// What [`Network::shapes`] and [`Base::new`] refuse; [`Error::Malformed`] if a matrix is not quantized yet;
    /// [`Error::HostOperator`] if a device could not run the network.
    pub fn write(&self, layout: Layout, pass_rows: u32) -> Result<Vec<u8>> {
        self.write_halves(layout, pass_rows, &self.halvable())
    }

    /// The same with halves in those tensors only that `halvable` allows.
    pub(crate) fn write_halves(&self, layout: Layout, pass_rows: u32, halvable: &[bool]) -> Result<Vec<u8>> {
        let shapes = self.shapes()?;
        self.check_operators()?;
        let pass_rows = if self.streaming() { pass_rows.clamp(1, self.max_rows) } else { self.max_rows };
        let (values, values_bytes) = plan(&self.ops, &shapes, pass_rows, &[self.output, self.features]);
        let values: Vec<u8> = values.iter().flat_map(|value| value.to_bytes()).collect();
        let (ops, sites, labels) = (ops_bytes(&self.ops), strings(&self.site_names), strings(&self.labels));
        let vocabulary = self.vocabulary.as_ref().map(|vocabulary| (vocabulary.info, vocabulary.section()));

        // Section offsets are varints nowhere but in the tokenizer's record, so two rounds settle the manifest's length.
        let mut tokenizer = vocabulary.as_ref().map(|(info, section)| TokenizerInfo {
            offset: u32::MAX,
            len: section.len() as u32,
            vocab_size: self.vocabulary.as_ref().map_or(0, |v| v.pieces.len() as u32),
            ..*info
        });
        let mut manifest_room = 0;
        let mut image;
        loop {
            let mut infos = Vec::new();
            image = vec![0; (base::HEADER_BYTES + manifest_room).next_multiple_of(ALIGN)];
            for (tensor, halvable) in self.tensors.iter().zip(halvable) {
                infos.extend(append(&mut image, tensor, layout, *halvable)?.to_bytes());
            }
            if let (Some(info), Some((_, section))) = (&mut tokenizer, &vocabulary) {
                info.offset = image.len() as u32;
                image.extend(section);
                image.resize(image.len().next_multiple_of(ALIGN), 0);
            }
            let manifest = Manifest {
                name: &self.name,
                max_rows: self.max_rows,
                pass_rows,
                values_bytes,
                output: self.output,
                features: self.features,
                ops: &ops,
                tensors: &infos,
                values: &values,
                sites: &sites,
                labels: &labels,
                tokenizer,
            };
            let manifest = postcard::to_allocvec(&manifest)
                .map_err(|_| Error::Malformed { what: What::BaseManifest })?;
            if manifest.len() > manifest_room {
                manifest_room = manifest.len();
                continue;
            }
            image[base::HEADER_BYTES..][..manifest.len()].copy_from_slice(&manifest);
            let length = image.len() as u32;
            image[..3].copy_from_slice(&base::MAGIC);
            image[3] = VERSION;
            image[4..8].copy_from_slice(&length.to_le_bytes());
            image[8..24].copy_from_slice(&self.id().0);
            image[24..28].copy_from_slice(&(manifest.len() as u32).to_le_bytes());
            let mut crc = crate::CRC.digest();
            crc.update(&image[..base::HEADER_BYTES - 4]);
            crc.update(&image[base::HEADER_BYTES..]);
            let crc = crc.finalize().to_le_bytes();
            image[base::HEADER_BYTES - 4..base::HEADER_BYTES].copy_from_slice(&crc);
            return Ok(image);
        }
    }

    /// The network in a base image, with its codes in canonical order. Tensors get names by number, except those of
    /// sites.
    pub fn read(base: &Base<'_>) -> Self {
        let manifest = base.manifest();
        let ops: Vec<Op> = base.ops().map(|(_, op)| op).collect();
        let tensors = (0..base.n_tensors() as u16)
            .filter_map(|id| Some((id, base.tensor(id).ok()?)))
            .map(|(id, info)| {
                let (rows, cols) = (info.rows, info.cols);
                if info.layout.is_none() {
                    return Tensor::Floats { rows, cols, data: base.floats(id).iter().collect() };
                }
                let matrix = base.matrix(id);
                let mut codes = vec![0; matrix.rows * matrix.cols];
                for (row, codes) in codes.chunks_exact_mut(matrix.cols).enumerate() {
                    matrix.layout.read_row(matrix.codes, matrix.cols, row, codes);
                }
                Tensor::Codes { rows, cols, codes, scales: matrix.scales.iter().collect() }
            })
            .collect::<Vec<_>>();
        let mut tensor_names: Vec<String> =
            (0..tensors.len()).map(|id| alloc::format!("tensor.{id}")).collect();
        let weights = ops.iter().filter_map(|op| match op {
            Op::Linear { weight, .. } => Some(*weight),
            _ => None,
        });
        for (site, weight) in base.sites().zip(weights) {
            tensor_names[usize::from(weight)] = alloc::format!("{}.weight", site.name);
        }
        let vocabulary = base.tokenizer().map(|tokenizer| Vocabulary {
            pieces: (0..tokenizer.info().vocab_size as u16)
                .map(|id| (tokenizer.piece(id).to_vec(), tokenizer.score(id)))
                .collect(),
            searchable: tokenizer.searchable().to_vec(),
            info: tokenizer.info(),
        });
        Self {
            name: manifest.name.into(),
            ops,
            tensors,
            tensor_names,
            site_names: base.sites().map(|site| site.name.into()).collect(),
            labels: base.labels().map(String::from).collect(),
            output: manifest.output,
            features: manifest.features,
            max_rows: manifest.max_rows,
            vocabulary,
        }
    }
}

/// Appends a tensor's section and returns its record. Numbers that are halves become halves if they may.
fn append(image: &mut Vec<u8>, tensor: &Tensor, layout: Layout, halvable: bool) -> Result<TensorInfo> {
    let offset = image.len() as u32;
    let shape = tensor.shape();
    let mut info = TensorInfo { offset, rows: shape.rows, cols: shape.cols, layout: None, halves: false };
    let len = (shape.rows as usize) * (shape.cols as usize);
    match tensor {
        Tensor::Floats { data, .. } if data.len() == len => info.halves = extend(image, data, halvable),
        Tensor::Codes { codes, scales, .. } if codes.len() == len && scales.len() == shape.rows as usize => {
            info.layout = Some(layout);
            info.halves = extend(image, scales, halvable);
            image.resize(image.len().next_multiple_of(ALIGN), 0);
            let start = image.len();
            image.resize(start + layout.bytes(shape.rows, shape.cols) as usize, 0);
            let section = bytemuck::cast_slice_mut(&mut image[start..]);
            for (row, codes) in codes.chunks_exact(shape.cols as usize).enumerate() {
                layout.write_row(section, shape.cols as usize, row, codes);
            }
        }
        Tensor::Matrix { .. } => {
            return Err(Error::Malformed { what: What::Unquantized });
        }
        _ => return Err(Error::Malformed { what: What::TensorData }),
    }
    image.resize(image.len().next_multiple_of(ALIGN), 0);
    Ok(info)
}

/// Appends numbers, as halves where these say the same and may be there; whether they do.
fn extend(image: &mut Vec<u8>, data: &[f32], halvable: bool) -> bool {
    let halves = halvable && are_halves(data);
    if halves {
        data.iter().for_each(|number| image.extend(f16::from_f32(*number).to_le_bytes()));
    } else {
        image.extend_from_slice(bytemuck::cast_slice(data));
    }
    halves
}

/// Factors of one site on the host, as they are written.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchData {
    /// Index of the site.
    pub site: u16,
    /// Scales of the rank components; their number is the rank.
    pub scales: Vec<f16>,
    /// Codes `[rank, in_features]`.
    pub lora_a: Vec<i8>,
    /// Codes `[out_features, rank]`.
    pub lora_b: Vec<i8>,
}

/// A task head on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadData {
    /// Pooling.
    pub pooling: Pooling,
    /// Codes `[n_out, width]`.
    pub codes: Vec<i8>,
    /// Row scales `[n_out]`.
    pub scales: Vec<f16>,
    /// Bias `[n_out]`, or empty.
    pub bias: Vec<f32>,
    /// Names of the outputs, or empty.
    pub labels: Vec<String>,
}

/// A bias on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct BiasData {
    /// The tensor of the base that it is there instead of.
    pub tensor: TensorId,
    /// Its numbers.
    pub values: Vec<f32>,
}

/// An adapter on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterData {
    /// Name of the task.
    pub task: String,
    /// The base.
    pub base_id: BaseId,
    /// Sequence number.
    pub sequence: u32,
    /// LoRA's alpha.
    pub alpha: f32,
    /// Patches in ascending order of their sites.
    pub patches: Vec<PatchData>,
    /// Biases in ascending order of their tensors.
    pub biases: Vec<BiasData>,
    /// Task head.
    pub head: Option<HeadData>,
    /// Self-test.
    pub self_test: SelfTest,
}

impl AdapterData {
    /// Writes the adapter file, unsigned.
    ///
    /// # Errors
    /// [`Error::Malformed`] if a field cannot be encoded. What a reader would refuse is left to [`adapter::Adapter::new`].
    pub fn write(&self) -> Result<Vec<u8>> {
        let mut sites = Vec::new();
        for patch in &self.patches {
            let entry = postcard::to_allocvec(&(patch.site, patch.scales.len() as u16));
            sites.extend(entry.map_err(|_| Error::Malformed { what: What::SiteEntry })?);
            patch.scales.iter().for_each(|scale| sites.extend(scale.to_le_bytes()));
        }
        let mut biases = Vec::new();
        for BiasData { tensor, values } in &self.biases {
            let entry = postcard::to_allocvec(&(tensor, values.len() as u32));
            biases.extend(entry.map_err(|_| Error::Malformed { what: What::BiasEntry })?);
        }
        let head = self.head.as_ref().map(|head| {
            let scales: Vec<u8> = head.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            let bias: Vec<u8> = head.bias.iter().flat_map(|value| value.to_le_bytes()).collect();
            (head, scales, bias, strings(&head.labels))
        });
        let body = Body {
            task: &self.task,
            method: if biases.is_empty() { Method::LoraInt8 } else { Method::LoraInt8Biases(&biases) },
            alpha: self.alpha,
            sites: &sites,
            head: head.as_ref().map(|(head, scales, bias, labels)| HeadInfo {
                pooling: head.pooling,
                scales,
                bias,
                labels,
            }),
            self_test: self.self_test,
        };
        let mut file = vec![0; header::HEADER_BYTES];
        file.extend(postcard::to_allocvec(&body).map_err(|_| Error::Malformed { what: What::AdapterBody })?);
        file.resize(file.len().next_multiple_of(adapter::PAYLOAD_ALIGN), 0);
        for bias in &self.biases {
            bias.values.iter().for_each(|value| file.extend(value.to_le_bytes()));
        }
        file.resize(file.len().next_multiple_of(adapter::PAYLOAD_ALIGN), 0);
        for patch in &self.patches {
            file.extend_from_slice(bytemuck::cast_slice(&patch.lora_a));
            file.extend_from_slice(bytemuck::cast_slice(&patch.lora_b));
        }
        if let Some(head) = &self.head {
            file.extend_from_slice(bytemuck::cast_slice(&head.codes));
        }
        file.resize(file.len() + header::TRAILER_BYTES, 0);
        header::set_header(&mut file, &self.header())?;
        Ok(file)
    }

    /// The header of the unsigned file: for no product, with the widest step limit. Signing sets them.
    fn header(&self) -> Header {
        Header {
            file_bytes: 0,
            sequence: self.sequence,
            step_limit: header::MAX_STEP_LIMIT,
            key_id: KeyId::UNSIGNED,
            base_id: self.base_id,
            product: ProductId::NONE,
        }
    }

    /// The adapter in a checked file.
    pub fn read(adapter: &adapter::Adapter<'_>, base: &Base<'_>) -> Self {
        let body = adapter.body();
        let f16s = |bytes: &[u8]| bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
        Self {
            task: body.task.into(),
            base_id: adapter.header().base_id,
            sequence: adapter.header().sequence,
            alpha: body.alpha,
            patches: adapter
                .patches(base)
                .map(|patch| PatchData {
                    site: patch.site,
                    scales: f16s(patch.scales),
                    lora_a: patch.lora_a.to_vec(),
                    lora_b: patch.lora_b.to_vec(),
                })
                .collect(),
            biases: adapter
                .biases()
                .iter()
                .map(|(tensor, values)| BiasData { tensor, values: values.to_vec() })
                .collect(),
            head: adapter.head().map(|head| HeadData {
                pooling: head.info.pooling,
                codes: head.codes.to_vec(),
                scales: f16s(head.info.scales),
                bias: head.bias().collect(),
                labels: head.labels().map(String::from).collect(),
            }),
            self_test: body.self_test,
        }
    }
}
