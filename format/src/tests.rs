//! Round trips, golden files, and everything that readers must refuse.
#![allow(clippy::indexing_slicing, reason = "test data of known sizes")]

extern crate std;
use std::path::PathBuf;
use std::string::ToString as _;
use std::sync::LazyLock;
use std::vec;
use std::vec::Vec;

use sha2::{Digest as _, Sha256};

use crate::adapter::{Adapter, BiasEntries, Biases, HEADER_BYTES, Method, Preview, TRAILER_BYTES};
use crate::base::{self, Base};
use crate::digest::XorShift32;
use crate::fixture::{self, Aligned};
use crate::graph::Op;
use crate::header::{self, Header, MAX_STEP_LIMIT, SIGNATURE_BYTES};
use crate::layout::Layout;
use crate::link::tests::frame;
use crate::link::{Request, Response};
use crate::write::{AdapterData, BiasData, Network, Tensor};
use crate::{BaseId, Error, KeyId, ProductId, What};

fn image(network: &Network, layout: Layout) -> Aligned {
    Aligned::new(&network.write(layout, 4).unwrap())
}

/// Sets the checksum of a changed base image, so that later checks are reached.
fn seal_base(image: &mut Aligned) {
    let bytes = image.bytes_mut();
    let mut crc = crate::CRC.digest();
    crc.update(&bytes[..base::HEADER_BYTES - 4]);
    crc.update(&bytes[base::HEADER_BYTES..]);
    let crc = crc.finalize().to_le_bytes();
    bytes[base::HEADER_BYTES - 4..base::HEADER_BYTES].copy_from_slice(&crc);
}

fn seal_adapter(file: &mut [u8]) {
    let end = file.len() - TRAILER_BYTES;
    let crc = crate::crc32(&file[..end]).to_le_bytes();
    file[end..end + 4].copy_from_slice(&crc);
}

fn some_adapter(network: &Network) -> AdapterData {
    fixture::adapter(network, &[(0, 3), (2, 1), (5, 8)], Some(7), 0.3, 1)
}

/// The same with every bias of the network in another value.
fn biased_adapter(network: &Network) -> AdapterData {
    AdapterData { biases: fixture::biases(network, 8), ..some_adapter(network) }
}

#[test]
fn networks_come_back_from_their_image() {
    for (first, network) in
        [fixture::decoder(), fixture::encoder(), fixture::listener()].into_iter().enumerate()
    {
        // Under Miri each network has a layout of its own.
        let layouts = if cfg!(miri) { &Layout::ALL[first..=first] } else { &Layout::ALL };
        for &layout in layouts {
            let image = image(&network, layout);
            let base = Base::new(image.bytes()).unwrap();
            assert_eq!(base.id(), network.id());
            let back = Network::read(&base);
            assert_eq!(back.id(), network.id(), "identity does not depend on the layout");
            assert_eq!(back.ops, network.ops);
            assert_eq!(back.tensors, network.tensors);
            assert_eq!(back.site_names, network.site_names);
            assert_eq!(back.labels, network.labels);
            assert_eq!(base.streaming(), network.streaming());
            assert_eq!(usize::from(base.n_sites()), network.site_names.len());
            // Writing what was read gives the same bytes.
            let again = back.write(layout, 4).unwrap();
            assert!(again == image.bytes(), "the image is not stable");
        }
    }
}

#[test]
fn numbers_that_are_halves_take_half_the_bytes() {
    for network in [fixture::decoder(), fixture::encoder(), fixture::listener()].map(fixture::halved) {
        let image = image(&network, Layout::Dsp4x4);
        let wide = Aligned::new(&fixture::image_in_f32(&network, Layout::Dsp4x4, 4));
        assert!(image.bytes().len() < wide.bytes().len());
        let (base, wide) = (Base::new(image.bytes()).unwrap(), Base::new(wide.bytes()).unwrap());
        assert_eq!(
            (base.id(), wide.id()),
            (network.id(), network.id()),
            "identity does not depend on how numbers lie"
        );
        assert_eq!(Network::read(&base).tensors, network.tensors);
        assert_eq!(Network::read(&wide).tensors, network.tensors);
        for (id, halvable) in network.halvable().into_iter().enumerate() {
            let id = id as u16;
            assert_eq!(base.tensor(id).unwrap().halves, halvable);
            assert!(!wide.tensor(id).unwrap().halves);
        }
    }
}

#[test]
fn halves_are_refused_where_they_would_be_read_in_place() {
    for network in [fixture::decoder(), fixture::listener()] {
        let ids: Vec<usize> = (0..network.tensors.len()).filter(|id| !network.halvable()[*id]).collect();
        assert!(!ids.is_empty());
        for id in ids {
            let mut image = image(&network, Layout::RowMajor);
            let records = Base::new(image.bytes()).unwrap().manifest().tensors.as_ptr().addr();
            let kind = records - image.bytes().as_ptr().addr() + id * base::TENSOR_RECORD_BYTES + 12;
            let info = Base::new(image.bytes()).unwrap().tensor(id as u16).unwrap();
            image.bytes_mut()[kind] = 2;
            // Zeros are numbers either way.
            image.bytes_mut()[info.offset as usize..][..info.section_bytes() as usize].fill(0);
            seal_base(&mut image);
            let error = Base::new(image.bytes()).unwrap_err();
            assert_eq!(error, Error::Malformed { what: What::TensorRecord }, "{id}");
        }
    }
}

#[test]
fn halves_that_are_no_numbers_are_refused() {
    let network = fixture::halved(fixture::encoder());
    for (id, tensor) in network.tensors.iter().enumerate() {
        let mut image = image(&network, Layout::RowMajor);
        let offset = Base::new(image.bytes()).unwrap().tensor(id as u16).unwrap().offset as usize;
        image.bytes_mut()[offset..offset + 2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
        seal_base(&mut image);
        let error = Base::new(image.bytes()).unwrap_err();
        if matches!(tensor, Tensor::Codes { .. }) {
            assert!(matches!(error, Error::BadScale { what: What::Row, index: 0, .. }), "{error}");
        } else {
            assert_eq!(error, Error::NotFinite { what: What::Weight, index: 0 });
        }
    }
}

#[test]
fn any_change_of_content_changes_the_identity() {
    let network = fixture::encoder();
    let mut seen = vec![network.id()];
    let mut differs = |network: Network| {
        let id = network.id();
        assert!(!seen.contains(&id));
        seen.push(id);
    };
    let mut other = network.clone();
    other.ops.swap(1, 2);
    differs(other);
    for tensor in (0..network.tensors.len()).step_by(if cfg!(miri) { 9 } else { 1 }) {
        let mut other = network.clone();
        match &mut other.tensors[tensor] {
            Tensor::Codes { codes, .. } => codes[0] = codes[0].wrapping_add(1),
            Tensor::Floats { data, .. } | Tensor::Matrix { data, .. } => data[0] += 1.0,
        }
        differs(other);
    }
    let mut other = network.clone();
    other.site_names[0].push('x');
    differs(other);
    differs(Network { max_rows: 12, ..network });
}

#[test]
fn adapters_come_back_from_their_file() {
    for network in [fixture::decoder(), fixture::encoder(), fixture::listener()] {
        let image = image(&network, Layout::RowMajor);
        let base = Base::new(image.bytes()).unwrap();
        let data = some_adapter(&network);
        let file = data.write().unwrap();
        let adapter = Adapter::new(&file, &base).unwrap();
        assert_eq!(AdapterData::read(&adapter, &base), data);
        let expected: usize = base
            .sites()
            .filter_map(|site| {
                let rank = data.patches.iter().find(|patch| patch.site == site.index)?.scales.len();
                Some(rank * (site.weight.rows + site.weight.cols))
            })
            .sum();
        let head = data.head.as_ref().unwrap().codes.len();
        assert_eq!(adapter.payload_bytes(), expected + head, "r (d + k) bytes per matrix, and the head");
        assert_eq!(Preview::new(&file).unwrap().body.task, "tiny");
        assert!(adapter.biases().is_empty() && adapter.biases().of(0).is_none());
    }
}

#[test]
fn biases_come_back_and_move_nothing_else() {
    for network in [fixture::decoder(), fixture::encoder()] {
        let image = image(&network, Layout::RowMajor);
        let base = Base::new(image.bytes()).unwrap();
        let (plain, data) = (some_adapter(&network), biased_adapter(&network));
        let (without, file) = (plain.write().unwrap(), Aligned::new(&data.write().unwrap()));
        let (without, adapter) =
            (Adapter::new(&without, &base).unwrap(), Adapter::new(file.bytes(), &base).unwrap());
        assert_eq!(AdapterData::read(&adapter, &base), data);
        assert_eq!(adapter.payload(), without.payload());
        let values: usize = data.biases.iter().map(|bias| bias.values.len()).sum();
        let preview = Preview::new(file.bytes()).unwrap();
        let entries = BiasEntries::of(preview.body.method);
        assert_eq!(entries.payload_bytes(), (4 * values).next_multiple_of(16));
        assert_eq!(BiasEntries::of(Method::LoraInt8).payload_bytes(), 0);
        // In any order, those that are there and those that are not.
        let mut biases = adapter.biases();
        let tensors = 0..network.tensors.len() as u16;
        for tensor in tensors.clone().chain(tensors.rev()) {
            let expected = data.biases.iter().find(|bias| bias.tensor == tensor);
            assert_eq!(biases.of(tensor), expected.map(|bias| bias.values.as_slice()), "{tensor}");
        }
        // Biases alone are something to apply.
        let alone = AdapterData { patches: Vec::new(), head: None, ..data };
        let file = Aligned::new(&alone.write().unwrap());
        assert_eq!(AdapterData::read(&Adapter::new(file.bytes(), &base).unwrap(), &base), alone);
    }
}

#[test]
fn senseless_biases_are_refused_each_with_its_own_error() {
    let network = fixture::encoder();
    let image = image(&network, Layout::RowMajor);
    let base = Base::new(image.bytes()).unwrap();
    let data = biased_adapter(&network);
    let read = |data: &AdapterData| {
        let file = Aligned::new(&data.write().unwrap());
        Adapter::new(file.bytes(), &base).map(|_| ())
    };
    let error = |change: &dyn Fn(&mut Vec<BiasData>)| {
        let mut data = data.clone();
        change(&mut data.biases);
        read(&data).unwrap_err()
    };
    assert_eq!(read(&data), Ok(()));
    let [first, second] = [data.biases[0].tensor, data.biases[1].tensor];
    assert_eq!(
        error(&|biases| biases.swap(0, 1)),
        Error::BiasesOutOfOrder { previous: second, found: first }
    );
    assert_eq!(
        error(&|biases| biases[1] = biases[0].clone()),
        Error::BiasesOutOfOrder { previous: first, found: first }
    );
    // The weight of a norm, a matrix, and no tensor at all.
    for tensor in [data.biases[2].tensor - 1, 1, network.tensors.len() as u16, u16::MAX] {
        let only = vec![BiasData { tensor, values: vec![0.5; 15] }];
        assert_eq!(error(&|biases| biases.clone_from(&only)), Error::UnknownBias { tensor });
    }
    assert_eq!(
        error(&|biases| biases[1].values.push(0.5)),
        Error::ShapeMismatch { what: What::BiasLength, op: second, expected: 15, found: 16 }
    );
    for value in [f32::NAN, f32::INFINITY] {
        let change = |biases: &mut Vec<BiasData>| biases[1].values[3] = value;
        assert_eq!(error(&change), Error::NotFinite { what: What::Bias, index: 18 });
    }
    for entries in [&[][..], &[first as u8], &[0xff; 4]] {
        let error = Biases::check(Method::LoraInt8Biases(entries), &[], &base).unwrap_err();
        assert_eq!(error, Error::Malformed { what: What::BiasEntry }, "{entries:?}");
    }
    // The tiny decoder has biases whose numbers do not end on a boundary of 16.
    let network = fixture::decoder();
    let image = self::image(&network, Layout::RowMajor);
    let base = Base::new(image.bytes()).unwrap();
    let file = biased_adapter(&network).write().unwrap();
    let preview = Preview::new(&file).unwrap();
    let method = preview.body.method;
    let bytes = BiasEntries::of(method).payload_bytes();
    let payload = Aligned::new(&vec![0; bytes + 4]);
    let check = |payload: &[u8]| Biases::check(method, payload, &base).map(|(_, rest)| rest.len());
    assert_eq!(check(payload.bytes()), Ok(4));
    assert_eq!(
        check(&payload.bytes()[..bytes - 1]),
        Err(Error::Truncated { what: What::AdapterBiases, expected: bytes as u32, found: bytes as u32 - 1 })
    );
    assert_eq!(
        check(&payload.bytes()[1..]),
        Err(Error::Misaligned { what: What::AdapterFile, expected: 4, found: 1 })
    );
    let mut dirty = payload.clone();
    dirty.bytes_mut()[bytes - 1] = 1;
    assert_eq!(check(dirty.bytes()), Err(Error::Malformed { what: What::Padding }));
}

#[test]
fn truncated_bases_are_refused_at_every_byte() {
    let image = image(&fixture::encoder(), Layout::RowMajor);
    for len in (0..image.bytes().len()).step_by(if cfg!(miri) { 997 } else { 1 }) {
        let error = Base::new(&image.bytes()[..len]).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{len}: {error}");
    }
    // A partition is longer than the image in it.
    let mut partition = image.bytes().to_vec();
    partition.resize(partition.len() + 100, 0xff);
    assert!(Base::new(Aligned::new(&partition).bytes()).is_ok());
}

#[test]
fn flipped_bits_of_a_base_are_refused() {
    let network = fixture::encoder();
    let mut image = image(&network, Layout::RowMajor);
    for bit in (0..image.bytes().len() * 8).step_by(if cfg!(miri) { 9973 } else { 1 }) {
        image.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
        assert!(Base::new(image.bytes()).is_err(), "bit {bit}");
        image.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(Base::new(image.bytes()).is_ok());
}

/// With the checksum made right again a flipped bit may give a valid base or an error, but never a panic; and a base that is
/// accepted can be walked over whole.
#[test]
fn sealed_nonsense_never_panics() {
    for network in [fixture::encoder(), fixture::decoder(), fixture::listener()] {
        let original = image(&network, Layout::Dsp4x4);
        let mut random = XorShift32::new(77);
        let mut refused = 0;
        let rounds = if cfg!(miri) { 6 } else { 6000 };
        for round in 0..rounds {
            let mut image = original.clone();
            for _ in 0..=round % 3 {
                // Mostly in the manifest, where the structure is.
                let bound = if round % 4 == 0 { image.bytes().len() } else { 1500 };
                let bit = HEADER_BYTES * 8 + random.next_u32() as usize % ((bound - HEADER_BYTES) * 8);
                image.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
            }
            seal_base(&mut image);
            match Base::new(image.bytes()) {
                Ok(base) => {
                    let _ = Network::read(&base).id();
                    let mut tokens = [0; 40];
                    let _ = base
                        .tokenizer()
                        .map(|tokenizer| tokenizer.encode("abc \u{e9} ca".as_bytes(), &mut tokens));
                }
                Err(_) => refused += 1,
            }
        }
        assert!(refused > rounds / 3, "{refused}");
    }
}

#[test]
fn base_headers_say_what_is_wrong() {
    let mut image = image(&fixture::encoder(), Layout::RowMajor);
    image.bytes_mut()[0] = b'X';
    let error = Base::new(image.bytes()).unwrap_err();
    assert_eq!(error, Error::BadMagic { expected: *b"RPB", found: *b"XPB" });
    assert_eq!(
        error.to_string(),
        "wrong magic: expected \"RPB\", found \"XPB\" (is this the right kind of file?)"
    );
    image.bytes_mut()[0] = b'R';
    image.bytes_mut()[3] = 2;
    assert_eq!(Base::new(image.bytes()).unwrap_err(), Error::UnknownVersion { expected: 1, found: 2 });
    image.bytes_mut()[3] = 1;
    let mut shifted = vec![0; image.bytes().len() + 1];
    shifted[1..].copy_from_slice(image.bytes());
    let shifted = Aligned::new(&shifted);
    assert!(matches!(
        Base::new(&shifted.bytes()[1..]),
        Err(Error::Misaligned { expected: 16, found: 1, .. })
    ));
}

fn base_error(change: impl FnOnce(&mut Network)) -> Error {
    let mut network = fixture::encoder();
    change(&mut network);
    let image = match network.write(Layout::RowMajor, 4) {
        Ok(image) => Aligned::new(&image),
        Err(error) => return error,
    };
    Base::new(image.bytes()).unwrap_err()
}

#[test]
fn senseless_networks_are_refused() {
    let scale = |value: f32| {
        move |network: &mut Network| {
            let codes = network.tensors.iter_mut().find_map(|tensor| match tensor {
                Tensor::Codes { scales, .. } => Some(scales),
                _ => None,
            });
            codes.unwrap()[2] = value;
        }
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, -0.5, 1e-40] {
        let error = base_error(scale(value));
        assert!(matches!(error, Error::BadScale { what: What::Row, index: 2, .. }), "{value}: {error}");
    }
    let weight = |network: &mut Network| {
        let Tensor::Floats { data, .. } = &mut network.tensors[0] else { unreachable!() };
        data[4] = f32::NAN;
    };
    assert_eq!(base_error(weight), Error::NotFinite { what: What::Weight, index: 4 });
    assert!(matches!(base_error(|n| n.output = 999), Error::OutOfRange { what: What::Output, .. }));
    assert!(matches!(
        base_error(|n| {
            n.site_names.pop();
        }),
        Error::ShapeMismatch { what: What::SiteNameCount, .. }
    ));
    assert!(matches!(
        base_error(|n| {
            n.labels.pop();
        }),
        Error::ShapeMismatch { what: What::LabelCount, .. }
    ));
    assert!(matches!(base_error(|n| n.ops[2] = Op::Silu { input: 2 }), Error::OutOfRange { .. }));
    assert!(matches!(base_error(|n| n.ops[1] = n.ops[0]), Error::Malformed { .. }));
    assert!(matches!(base_error(|n| n.max_rows = 14), Error::ShapeMismatch { what: What::Positions, .. }));
    let narrow = |network: &mut Network| {
        let Tensor::Codes { cols, codes, .. } = &mut network.tensors[1] else { unreachable!() };
        *cols = 8;
        codes.truncate(15 * 8);
    };
    assert!(matches!(
        base_error(narrow),
        Error::ShapeMismatch { what: What::InFeatures, expected: 9, found: 8, .. }
    ));
    let float_matrix = |network: &mut Network| {
        network.tensors[1] = Tensor::Matrix { rows: 15, cols: 9, data: vec![0.0; 135] };
    };
    assert!(matches!(base_error(float_matrix), Error::Malformed { .. }));
}

/// The error that a changed network with a front end gets: `change` gets the fields of the operator and the tables.
fn front_end_error(change: impl FnOnce(&mut Op, &mut [Tensor])) -> Error {
    let mut network = fixture::listener();
    let from = network.tensors.len() - 4;
    change(&mut network.ops[0], &mut network.tensors[from..]);
    let image = match network.write(Layout::RowMajor, 4) {
        Ok(image) => Aligned::new(&image),
        Err(error) => return error,
    };
    Base::new(image.bytes()).unwrap_err()
}

#[test]
fn senseless_front_ends_are_refused() {
    let set_hop = |value| {
        move |op: &mut Op, _: &mut [Tensor]| {
            let Op::Mfcc { hop, .. } = op else { unreachable!() };
            *hop = value;
        }
    };
    for value in [0, 61] {
        let expected = Error::OutOfRange { what: What::HopSamples, found: value.into(), max: 60 };
        assert_eq!(front_end_error(set_hop(value)), expected);
    }
    for value in [0, 513] {
        let error = front_end_error(|op, _| {
            let Op::Mfcc { frame, .. } = op else { unreachable!() };
            *frame = value;
        });
        assert_eq!(error, Error::OutOfRange { what: What::FrameSamples, found: value.into(), max: 512 });
    }
    for value in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = front_end_error(|op, _| {
            let Op::Mfcc { floor, .. } = op else { unreachable!() };
            *floor = value;
        });
        assert!(matches!(error, Error::BadScale { what: What::MelFloor, .. }), "{value}: {error}");
    }
    let floats = |tables: &mut [Tensor], table: usize, rows: u32, cols: u32| {
        tables[table] = Tensor::Floats { rows, cols, data: vec![0.25; (rows * cols) as usize] };
    };
    let error = front_end_error(|_, tables| floats(tables, 0, 1, 59));
    assert!(matches!(error, Error::ShapeMismatch { what: What::VectorLength, expected: 60, found: 59, .. }));
    for (rows, cols) in [(7, 2), (8, 3)] {
        let error = front_end_error(|_, tables| floats(tables, 1, rows, cols));
        assert!(matches!(error, Error::ShapeMismatch { what: What::MelBands, .. }), "{error}");
    }
    let error = front_end_error(|_, tables| floats(tables, 3, 9, 5));
    assert!(matches!(error, Error::ShapeMismatch { what: What::DctColumns, expected: 4, found: 5, .. }));
    // First bin and number of bins of a band, whole, within the spectrum; with a weight each.
    for (at, value) in [(0, 1.5), (1, -1.0), (14, 217.0), (15, 41.0), (15, 1e9)] {
        let error = front_end_error(|_, tables| {
            let Tensor::Floats { data, .. } = &mut tables[1] else { unreachable!() };
            data[at] = value;
        });
        assert!(matches!(error, Error::OutOfRange { what: What::MelBand, .. }), "{at}, {value}: {error}");
    }
    let error = front_end_error(|_, tables| floats(tables, 2, 1, 7));
    assert!(matches!(error, Error::ShapeMismatch { what: What::MelWeights, expected: 146, found: 7, .. }));
}

#[test]
fn plans_that_overlap_are_refused() {
    let network = fixture::encoder();
    let original = image(&network, Layout::RowMajor);
    let directory = {
        let base = Base::new(original.bytes()).unwrap();
        base.manifest().values.as_ptr().addr() - original.bytes().as_ptr().addr()
    };
    let mut refused = 0;
    for value in 0..network.ops.len() {
        let mut image = original.clone();
        let at = directory + value * crate::base::VALUE_RECORD_BYTES;
        if image.bytes()[at..at + 4] == [0; 4] {
            continue;
        }
        image.bytes_mut()[at..at + 4].fill(0);
        seal_base(&mut image);
        let result = Base::new(image.bytes());
        refused += usize::from(matches!(result, Err(Error::PlanOverlap { .. })));
    }
    assert!(refused > 5, "{refused}");
}

/// The error that a changed adapter for the tiny decoder gets.
fn adapter_error(change: impl FnOnce(&mut AdapterData)) -> Error {
    static BASE: LazyLock<(Aligned, AdapterData)> = LazyLock::new(|| {
        let network = fixture::decoder();
        (image(&network, Layout::RowMajor), some_adapter(&network))
    });
    let (image, data) = &*BASE;
    let base = Base::new(image.bytes()).unwrap();
    let mut data = data.clone();
    change(&mut data);
    Adapter::new(&data.write().unwrap(), &base).unwrap_err()
}

#[test]
fn senseless_adapters_are_refused_each_with_its_own_error() {
    let f16 = half::f16::from_f32;
    let wrong = BaseId([9; 16]);
    let expected = fixture::decoder().id();
    assert_eq!(adapter_error(|a| a.base_id = wrong), Error::WrongBase { expected, found: wrong });
    assert_eq!(
        adapter_error(|a| a.patches[1].scales.clear()),
        Error::RankOutOfRange { site: 2, rank: 0, max: 256 }
    );
    assert_eq!(
        adapter_error(|a| a.patches[1].scales = vec![f16(0.1); 257]),
        Error::RankOutOfRange { site: 2, rank: 257, max: 256 }
    );
    for value in [f32::NAN, f32::INFINITY, 0.0, -0.25] {
        let error = adapter_error(|a| a.patches[2].scales[3] = f16(value));
        assert!(
            matches!(error, Error::BadScale { what: What::Component, owner: 5, index: 3, .. }),
            "{value}: {error}"
        );
    }
    assert_eq!(adapter_error(|a| a.patches[2].site = 99), Error::UnknownSite { site: 99, n_sites: 15 });
    assert_eq!(adapter_error(|a| a.patches.swap(0, 1)), Error::SitesOutOfOrder { previous: 2, found: 0 });
    assert_eq!(adapter_error(|a| a.patches[1].site = 0), Error::DuplicateSite { site: 0 });
    assert_eq!(
        adapter_error(|a| {
            a.patches.clear();
            a.head = None;
        }),
        Error::NothingToApply
    );
    assert!(matches!(
        adapter_error(|a| {
            a.patches[0].lora_a.pop();
        }),
        Error::Truncated { what: What::AdapterPayload, .. }
    ));
    assert!(matches!(
        adapter_error(|a| a.patches[0].lora_a.push(1)),
        Error::TrailingBytes { what: What::AdapterPayload, .. }
    ));
    assert!(matches!(adapter_error(|a| a.patches[0].lora_a[2] = -128), Error::OutOfRange { .. }));
    for value in [0.0, -1.0, f32::NAN] {
        assert!(matches!(adapter_error(|a| a.alpha = value), Error::BadScale { what: What::Alpha, .. }));
    }
    assert!(matches!(adapter_error(|a| a.task.clear()), Error::OutOfRange { .. }));
    assert!(matches!(adapter_error(|a| a.self_test.rows = 0), Error::OutOfRange { .. }));
    assert!(matches!(adapter_error(|a| a.self_test.rows = 25), Error::OutOfRange { found: 25, max: 24, .. }));
    let head = |change: fn(&mut crate::write::HeadData)| adapter_error(|a| change(a.head.as_mut().unwrap()));
    assert!(matches!(head(|h| h.scales[1] = half::f16::NAN), Error::BadScale { what: What::HeadRow, .. }));
    assert!(matches!(head(|h| h.bias[1] = f32::NAN), Error::NotFinite { .. }));
    assert!(matches!(head(|h| h.bias.truncate(3)), Error::ShapeMismatch { .. }));
    assert!(matches!(head(|h| h.labels.truncate(3)), Error::ShapeMismatch { .. }));
    assert!(matches!(head(|h| h.codes.truncate(3)), Error::Truncated { .. }));
}

#[test]
fn truncated_flipped_and_lengthened_adapters_are_refused() {
    let network = fixture::decoder();
    let image = image(&network, Layout::RowMajor);
    let base = Base::new(image.bytes()).unwrap();
    let mut file = some_adapter(&network).write().unwrap();
    for len in (0..file.len()).step_by(if cfg!(miri) { 97 } else { 1 }) {
        let error = Adapter::new(&file[..len], &base).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{len}: {error}");
    }
    for bit in (0..file.len() * 8).step_by(if cfg!(miri) { 997 } else { 1 }) {
        file[bit / 8] ^= 1 << (bit % 8);
        let error = Adapter::new(&file, &base).unwrap_err();
        match bit / 8 {
            0..HEADER_BYTES => {} // Refused for what was hit, or for the checksum.
            at if at < file.len() - SIGNATURE_BYTES => {
                assert!(matches!(error, Error::Corrupt { .. }), "bit {bit}: {error}");
            }
            _ => assert!(matches!(error, Error::Malformed { .. }), "bit {bit}: {error}"),
        }
        file[bit / 8] ^= 1 << (bit % 8);
    }
    file.push(0);
    assert!(matches!(Adapter::new(&file, &base), Err(Error::TrailingBytes { what: What::AdapterFile, .. })));
}

#[test]
fn headers_are_checked_field_by_field() {
    let file = some_adapter(&fixture::decoder()).write().unwrap();
    let header = header::check(&file).unwrap();
    assert_eq!((header.sequence, header.step_limit, header.is_signed()), (7, MAX_STEP_LIMIT, false));
    assert_eq!((header.base_id, header.product), (fixture::decoder().id(), ProductId::NONE));
    assert_eq!(header.file_bytes as usize, file.len());
    assert_eq!(header.to_bytes(), file[..HEADER_BYTES]);
    let error = |at: usize, value: u8| {
        let mut file = file.clone();
        file[at] = value;
        header::check(&file).unwrap_err()
    };
    assert!(matches!(error(1, b'Q'), Error::BadMagic { .. }));
    for version in [0, 2, 255] {
        assert_eq!(error(3, version), Error::UnknownVersion { expected: 1, found: version });
    }
    assert!(matches!(error(4, 63), Error::ShapeMismatch { expected: 64, found: 63, .. }));
    assert!(matches!(error(5, 1), Error::ShapeMismatch { expected: 64, found: 320, .. }));
    for reserved in [6, 7, 28, 29, 30, 31] {
        assert!(matches!(error(reserved, 1), Error::Malformed { .. }), "{reserved}");
    }
    assert!(matches!(error(18, 0), Error::OutOfRange { found: 0, .. }), "a step limit of 0");
    assert!(matches!(error(16, 1), Error::OutOfRange { found: 65_537, max: 65_536, .. }));
    assert!(matches!(error(11, 0xff), Error::Truncated { .. }));
    let mut short = file.clone();
    short[8..12].copy_from_slice(&131u32.to_le_bytes());
    assert!(matches!(header::check(&short), Err(Error::Truncated { expected: 132, found: 131, .. })));
    // A key id is not taken on faith, but its presence decides whether there may be a signature.
    let mut signed = file.clone();
    let with_key = Header { key_id: KeyId::of(&[3; 32]), product: ProductId::of("lamp"), ..header };
    header::set_header(&mut signed, &with_key).unwrap();
    assert_eq!(header::check(&signed), Ok(with_key));
    header::set_signature(&mut signed, &[9; SIGNATURE_BYTES]).unwrap();
    assert_eq!(header::check(&signed), Ok(with_key), "integrity does not need the key");
    assert_eq!(header::split_signature(&signed).unwrap().1, &[9; SIGNATURE_BYTES]);
}

#[test]
fn sealed_nonsense_in_adapters_never_panics() {
    let network = fixture::decoder();
    let image = image(&network, Layout::RowMajor);
    let base = Base::new(image.bytes()).unwrap();
    let original = some_adapter(&network).write().unwrap();
    let mut random = XorShift32::new(5);
    for _ in 0..if cfg!(miri) { 20 } else { 20_000 } {
        let mut file = original.clone();
        for _ in 0..=random.next_u32() % 3 {
            let bit = 8 * HEADER_BYTES + random.next_u32() as usize % 1500;
            file[bit / 8] ^= 1 << (bit % 8);
        }
        seal_adapter(&mut file);
        if let Ok(adapter) = Adapter::new(&file, &base) {
            assert_eq!(adapter.patches(&base).count(), usize::from(adapter.n_patches()));
        }
    }
}

#[test]
fn tokenizer_merges_the_best_pair_first_and_falls_back_to_bytes() {
    let image = image(&fixture::decoder(), Layout::RowMajor);
    let base = Base::new(image.bytes()).unwrap();
    let tokenizer = base.tokenizer().unwrap();
    let encode = |text: &str| {
        let mut tokens = [0; 64];
        let len = tokenizer.encode(text.as_bytes(), &mut tokens).unwrap();
        tokens[..len].iter().map(|id| tokenizer.piece(*id).to_vec()).skip(1).collect::<Vec<_>>()
    };
    let pieces = |pieces: &[&str]| pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect::<Vec<_>>();
    assert_eq!(encode(""), pieces(&[]));
    // "ab" (-5) goes before "bc" (-6) and " a" (-7).
    assert_eq!(encode("abc"), pieces(&[" ", "abc"]));
    assert_eq!(encode("cab"), pieces(&[" ", "cab"]));
    assert_eq!(encode("a\u{e9}"), pieces(&[" a", "\u{e9}"]));
    assert_eq!(encode("x\n"), pieces(&[" ", "x", "\n"]));
    assert_eq!(encode("\u{20ac}").len(), 4, "three byte tokens for a character without a piece");
    let mut tokens = [0; 3];
    assert!(matches!(tokenizer.encode(b"abc", &mut tokens), Err(Error::BufferTooSmall { found: 3, .. })));
    let mut tokens = [0; 8];
    let len = tokenizer.encode(b"abc", &mut tokens).unwrap();
    let mut text: Vec<u8> = Vec::new();
    for pair in tokens[..len].windows(2) {
        text.extend(tokenizer.decode(pair[0], pair[1]));
    }
    assert_eq!(text, b"abc", "the leading space is dropped");
}

/// The announcement of the golden decoder adapter.
fn begin_frame() -> Vec<u8> {
    let file = some_adapter(&fixture::decoder()).write().unwrap();
    let sha256: [u8; 32] = Sha256::digest(&file).into();
    frame(1, &Request::Begin { slot: Some(3), header: &file[..HEADER_BYTES], sha256: &sha256 })
}

/// Files under `tests/golden/` are what this version writes, byte for byte. `cargo xtask golden` writes them anew; a change
/// is reviewed as a change of the format.
#[test]
fn golden_files_are_what_is_written() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let decoder = fixture::decoder();
    let encoder = fixture::encoder();
    let bodies = [
        ("decoder-rowmajor.rpb", decoder.write(Layout::RowMajor, 4).unwrap()),
        ("decoder-dsp4x4.rpb", decoder.write(Layout::Dsp4x4, 4).unwrap()),
        ("decoder-mve4x16.rpb", decoder.write(Layout::Mve4x16, 4).unwrap()),
        ("encoder-rowmajor.rpb", encoder.write(Layout::RowMajor, 4).unwrap()),
        ("decoder.rpa", some_adapter(&decoder).write().unwrap()),
        ("encoder.rpa", some_adapter(&encoder).write().unwrap()),
        ("encoder-biases.rpa", biased_adapter(&encoder).write().unwrap()),
        ("begin.frame", begin_frame()),
        ("progress.frame", frame(1, &Response::Progress { slot: 3, next: 4096 })),
    ];
    for (name, bytes) in bodies {
        let path = folder.join(name);
        if std::env::var_os("RANKPATCH_WRITE_GOLDEN").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(golden == bytes, "{name} differs from what is written now: see `cargo xtask golden`");
    }
}

/// The examples of `SPEC.md` are the golden files.
#[test]
fn the_specification_shows_golden_bytes() {
    let hex =
        |bytes: &[u8]| bytes.iter().map(|byte| std::format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let spec = include_str!("../SPEC.md");
    let frame = include_bytes!("../../tests/golden/progress.frame");
    assert!(spec.contains(&hex(frame)));
    let adapter = include_bytes!("../../tests/golden/decoder.rpa");
    for line in 0..8 {
        let row = hex(&adapter[16 * line..][..16]);
        assert!(spec.contains(&row), "{row}");
    }
}
