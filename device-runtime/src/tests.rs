//! What the engine promises, on small networks with every operator: same bits for every layout and pass size, a base that
//! comes back bit for bit, refusals that change nothing.

extern crate std;
use std::vec;
use std::vec::Vec;

use rankpatch_format::adapter::{Adapter, Pooling};
use rankpatch_format::base::Base;
use rankpatch_format::digest::{Digest, XorShift32};
use rankpatch_format::fixture::{self, Aligned};
use rankpatch_format::graph::Op;
use rankpatch_format::layout::Layout;
use rankpatch_format::write::{AdapterData, Network, Tensor};

use crate::{Engine, Error, MergedType, arena_bytes, arena_layout, merged_bytes};

pub(crate) fn image(network: &Network, layout: Layout, pass_rows: u32) -> Aligned {
    Aligned::new(&network.write(layout, pass_rows).unwrap())
}

pub(crate) fn memory(bytes: usize) -> Aligned {
    Aligned::new(&vec![0xa5; bytes])
}

pub(crate) fn all_sites(network: &Network, rank: impl Fn(u16) -> usize) -> Vec<(u16, usize)> {
    (0..network.site_names.len() as u16).map(|site| (site, rank(site))).collect()
}

fn tokens() -> Vec<u16> {
    vec![1, 259, 7, 268, 33, 260, 261, 5, 265, 100, 9]
}

fn features(rows: usize) -> Vec<f32> {
    let mut random = XorShift32::new(3);
    (0..rows * 9).map(|_| random.feature() / 8.0).collect()
}

/// Digest of a run over fixed input, all rows of it for the decoder.
pub(crate) fn run(engine: &mut Engine<'_>) -> u64 {
    let mut digest = Digest::default();
    engine.reset();
    if engine.base().vocab_size() > 0 {
        engine.run_tokens_each(&tokens(), |_, output| digest.update(output)).unwrap();
    } else {
        digest.update(engine.run_features(&features(13)).unwrap());
    }
    digest.value()
}

/// The file with the digest of its self-test set by the engine itself.
fn sealed(data: &AdapterData, base: &Base<'_>) -> Vec<u8> {
    let file = data.write().unwrap();
    let adapter = Adapter::new(&file, base).unwrap();
    let mut arena = memory(arena_bytes(base, 24));
    let mut engine = Engine::new(*base, arena.bytes_mut(), 24).unwrap();
    engine.attach(adapter).unwrap();
    let mut data = data.clone();
    data.self_test.digest = engine.self_test_digest().unwrap();
    data.write().unwrap()
}

#[test]
fn layouts_and_pass_sizes_have_the_same_bits() {
    for network in [fixture::decoder(), fixture::encoder(), fixture::listener()] {
        let data =
            fixture::adapter(&network, &all_sites(&network, |site| 1 + usize::from(site) % 9), None, 0.4, 2);
        let file = data.write().unwrap();
        let mut seen: Vec<[u64; 3]> = Vec::new();
        for layout in [Layout::RowMajor, Layout::Dsp4x4] {
            for pass_rows in [1, 2, 3, 8, 24] {
                let image = image(&network, layout, pass_rows);
                let base = Base::new(image.bytes()).unwrap();
                let adapter = Adapter::new(&file, &base).unwrap();
                let mut arena = memory(arena_bytes(&base, 24));
                let mut merge = memory(merged_bytes(&base, &adapter, MergedType::Int8));
                let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
                let plain = run(&mut engine);
                engine.attach(adapter).unwrap();
                let streamed = run(&mut engine);
                engine.attach_merged(adapter, MergedType::Int8, merge.bytes_mut()).unwrap();
                let merged = run(&mut engine);
                seen.push([plain, streamed, merged]);
            }
        }
        assert!(seen.iter().all(|digests| *digests == seen[0]), "{}: {seen:x?}", network.name);
        let [plain, streamed, merged] = seen[0];
        assert!(plain != streamed && streamed != merged && plain != merged);
    }
}

#[test]
fn halves_give_the_bits_of_the_numbers_that_they_are() {
    for network in [fixture::decoder(), fixture::encoder(), fixture::listener()].map(fixture::halved) {
        let mut data = fixture::adapter(
            &network,
            &all_sites(&network, |site| 1 + usize::from(site) % 5),
            Some(3),
            0.4,
            2,
        );
        // Every second bias comes from the adapter.
        data.biases = fixture::biases(&network, 5).into_iter().step_by(2).collect();
        let file = Aligned::new(&data.write().unwrap());
        let digests =
            [network.write(Layout::Dsp4x4, 3).unwrap(), fixture::image_in_f32(&network, Layout::Dsp4x4, 3)]
                .map(|image| {
                    let image = Aligned::new(&image);
                    let base = Base::new(image.bytes()).unwrap();
                    let adapter = Adapter::new(file.bytes(), &base).unwrap();
                    let mut arena = memory(arena_bytes(&base, 24));
                    let kinds = [MergedType::Int8, MergedType::Int8Feedback, MergedType::Int16];
                    let mut merges = kinds.map(|kind| memory(merged_bytes(&base, &adapter, kind)));
                    let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
                    let mut digests = vec![run(&mut engine)];
                    engine.attach(adapter).unwrap();
                    digests.push(run(&mut engine));
                    for (kind, memory) in kinds.into_iter().zip(&mut merges) {
                        engine.attach_merged(adapter, kind, memory.bytes_mut()).unwrap();
                        digests.push(run(&mut engine));
                    }
                    (digests, arena_layout(&base, 24).kernels)
                });
        let [(halves, room), (wide, less_room)] = digests;
        assert_eq!(halves, wide, "{}", network.name);
        assert!(room > less_room);
        assert!(halves.windows(2).all(|pair| pair[0] != pair[1]));
    }
}

#[test]
fn a_thousand_switches_leave_the_base_bit_identical() {
    for network in [fixture::decoder(), fixture::encoder(), fixture::listener()] {
        let image = image(&network, Layout::Dsp4x4, 3);
        let before = image.bytes().to_vec();
        let base = Base::new(image.bytes()).unwrap();
        let files: Vec<Vec<u8>> = (0..4u32)
            .map(|seed| {
                let sites = all_sites(&network, |site| 1 + (usize::from(site) + seed as usize) % 5);
                let head = (seed == 3).then_some(6);
                fixture::adapter(&network, &sites[seed as usize..], head, 0.5, seed + 1).write().unwrap()
            })
            .collect();
        let adapters: Vec<Adapter<'_>> =
            files.iter().map(|file| Adapter::new(file, &base).unwrap()).collect();
        let room =
            adapters.iter().map(|adapter| merged_bytes(&base, adapter, MergedType::Int8)).max().unwrap();
        let mut merge = memory(room);
        let mut arena = memory(arena_bytes(&base, 24));
        let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
        let plain = run(&mut engine);
        let mut expected: Vec<[Option<u64>; 2]> = vec![[None; 2]; adapters.len()];
        let mut free = Some(merge.bytes_mut());
        let mut random = XorShift32::new(42);
        for switch in 0..1000 {
            let choice = random.next_u32() as usize % (adapters.len() + 1);
            free = engine.detach().or(free);
            let Some(adapter) = adapters.get(choice) else {
                assert_eq!(run(&mut engine), plain, "switch {switch}");
                continue;
            };
            let merged = random.next_u32().is_multiple_of(4);
            if merged {
                engine.attach_merged(*adapter, MergedType::Int8, free.take().unwrap()).unwrap();
            } else {
                engine.attach(*adapter).unwrap();
            }
            let found = run(&mut engine);
            let expected = expected[choice][usize::from(merged)].get_or_insert(found);
            assert_eq!(found, *expected, "switch {switch} to {choice}");
            assert_ne!(found, plain);
        }
        engine.detach();
        assert_eq!(run(&mut engine), plain);
        assert!(image.bytes() == before, "the base image was written");
    }
}

/// An adapter's biases are the base's with other numbers: a base that has them gives the same bits, streamed and merged, and the
/// base that does not comes back.
#[test]
fn biases_are_replaced_and_come_back() {
    for network in [fixture::decoder(), fixture::encoder()] {
        let sites = all_sites(&network, |site| 1 + usize::from(site) % 3);
        let data = fixture::adapter(&network, &sites[1..], Some(4), 0.4, 9);
        let biases = fixture::biases(&network, 10);
        let mut other = network.clone();
        for bias in &biases {
            let Tensor::Floats { data, .. } = &mut other.tensors[usize::from(bias.tensor)] else { panic!() };
            data.clone_from(&bias.values);
        }
        let plain = AdapterData { base_id: other.id(), ..data.clone() };
        let alone = AdapterData { patches: Vec::new(), head: None, biases, ..data };
        let with_biases =
            AdapterData { patches: plain.patches.clone(), head: plain.head.clone(), ..alone.clone() };
        let digests = |network: &Network, data: Option<&AdapterData>| {
            let image = image(network, Layout::Dsp4x4, 3);
            let base = Base::new(image.bytes()).unwrap();
            let file = data.map(|data| Aligned::new(&data.write().unwrap()));
            let mut arena = memory(arena_bytes(&base, 24));
            let mut merge = memory(1 << 16);
            let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
            let before = run(&mut engine);
            let Some(file) = &file else { return [before; 3] };
            let adapter = Adapter::new(file.bytes(), &base).unwrap();
            let attachment = engine.attach(adapter).unwrap();
            assert_eq!(attachment.weight_bytes_copied, 0);
            let streamed = run(&mut engine);
            let test = engine.self_test_digest().unwrap();
            engine.attach_merged(adapter, MergedType::Int16, merge.bytes_mut()).unwrap();
            let merged = run(&mut engine);
            assert_eq!(engine.self_test_digest().unwrap(), test);
            engine.detach();
            assert_eq!(run(&mut engine), before, "the base is not back");
            [streamed, merged, test]
        };
        let found = digests(&network, Some(&with_biases));
        assert_eq!(found, digests(&other, Some(&plain)));
        let own = AdapterData { base_id: network.id(), ..plain };
        assert!(found.iter().zip(digests(&network, Some(&own))).all(|(found, own)| *found != own));
        let [streamed, merged, _] = digests(&network, Some(&alone));
        assert_eq!([streamed, merged], [digests(&other, None)[0]; 2]);
        assert_ne!(streamed, digests(&network, None)[0]);
    }
}

/// delta_weight by its definition in double precision, against what a site computes: streamed within the rounding of the
/// activations, merged within that of the merged rows.
#[test]
fn streamed_and_merged_follow_the_definition() {
    let network = fixture::decoder();
    let image = image(&network, Layout::RowMajor, 8);
    let base = Base::new(image.bytes()).unwrap();
    let sites = all_sites(&network, |site| 2 + usize::from(site) % 7);
    let file = fixture::adapter(&network, &sites, None, 0.3, 8).write().unwrap();
    let adapter = Adapter::new(&file, &base).unwrap();
    let (mut arena, mut merge) =
        (memory(arena_bytes(&base, 24)), memory(merged_bytes(&base, &adapter, MergedType::Int8)));
    let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
    let mut outputs = Vec::new();
    engine.attach(adapter).unwrap();
    outputs.push(engine.run_tokens(&tokens()).unwrap().to_vec());
    engine.attach_merged(adapter, MergedType::Int8, merge.bytes_mut()).unwrap();
    outputs.push(engine.run_tokens(&tokens()).unwrap().to_vec());
    engine.detach();
    outputs.push(engine.run_tokens(&tokens()).unwrap().to_vec());
    // A network whose weights are W0 + delta_weight as nearly as int8 rows can hold them.
    let mut dense = network.clone();
    for (patch, site) in adapter.patches(&base).zip(base.sites()) {
        let c: Vec<f64> = patch.component_scales().map(f64::from).collect();
        let mut codes = vec![0i8; site.weight.rows * site.weight.cols];
        let mut scales = Vec::new();
        for (o, codes) in codes.chunks_exact_mut(site.weight.cols).enumerate() {
            let row: Vec<f64> = (0..site.weight.cols)
                .map(|i| {
                    let update: f64 = (0..patch.rank)
                        .map(|j| {
                            f64::from(patch.lora_b[o * patch.rank + j])
                                * c[j]
                                * f64::from(patch.lora_a[j * site.weight.cols + i])
                        })
                        .sum();
                    f64::from(site.weight.scales.get(o).unwrap())
                        * (f64::from(site.weight.codes[o * site.weight.cols + i]) + update)
                })
                .collect();
            let scale = row.iter().fold(0.0f64, |max, x| max.max(x.abs())) / 127.0;
            codes.iter_mut().zip(&row).for_each(|(code, x)| *code = (x / scale).round_ties_even() as i8);
            scales.push(scale as f32);
        }
        let tensor = dense.ops.iter().filter_map(|op| match op {
            Op::Linear { weight, .. } => Some(*weight),
            _ => None,
        });
        let id = tensor.clone().nth(usize::from(patch.site)).unwrap();
        // The tied table keeps its embedding role: only the classifier is patched, so it gets a tensor of its own.
        dense.tensors.push(Tensor::Codes {
            rows: site.weight.rows as u32,
            cols: site.weight.cols as u32,
            codes,
            scales,
        });
        dense.tensor_names.push("dense".into());
        let new = dense.tensors.len() as u16 - 1;
        let mut linear = dense.ops.iter_mut().filter_map(|op| match op {
            Op::Linear { weight, .. } => Some(weight),
            _ => None,
        });
        let weight = linear.nth(usize::from(patch.site)).unwrap();
        assert_eq!(*weight, id);
        *weight = new;
    }
    let dense_image = self::image(&dense, Layout::RowMajor, 8);
    let dense_base = Base::new(dense_image.bytes()).unwrap();
    let mut dense_arena = memory(arena_bytes(&dense_base, 24));
    let mut dense_engine = Engine::new(dense_base, dense_arena.bytes_mut(), 24).unwrap();
    let reference = dense_engine.run_tokens(&tokens()).unwrap().to_vec();
    let distance = |a: &[f32], b: &[f32]| {
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
        norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
    };
    let [streamed, merged, plain] = [0, 1, 2].map(|i| distance(&outputs[i], &reference));
    assert!(streamed < 0.05, "streamed is off by {streamed}");
    assert!(merged < 0.01, "merged is off by {merged}");
    assert!(plain > 0.3, "the adapter hardly changes anything: {plain}");
}

#[test]
fn self_tests_pass_only_with_the_right_numbers() {
    for network in [fixture::decoder(), fixture::encoder(), fixture::listener()] {
        for head in [None, Some(6)] {
            let image = image(&network, Layout::Dsp4x4, 4);
            let base = Base::new(image.bytes()).unwrap();
            let sites = all_sites(&network, |_| 3);
            let data = fixture::adapter(&network, &sites[..4], head, 0.4, 5);
            let file = sealed(&data, &base);
            let adapter = Adapter::new(&file, &base).unwrap();
            let (mut arena, mut merge) =
                (memory(arena_bytes(&base, 24)), memory(merged_bytes(&base, &adapter, MergedType::Int8)));
            let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
            assert_eq!(engine.self_test(), Err(Error::NothingActive));
            engine.attach(adapter).unwrap();
            assert_eq!(engine.self_test(), Ok(adapter.body().self_test.digest));
            // A merged adapter is tested streamed, and stays merged.
            engine.attach_merged(adapter, MergedType::Int8, merge.bytes_mut()).unwrap();
            let merged = run(&mut engine);
            assert_eq!(engine.self_test(), Ok(adapter.body().self_test.digest));
            assert!(engine.merged());
            assert_eq!(run(&mut engine), merged);
            // One code off in one factor.
            let mut other = data.clone();
            other.self_test.digest = adapter.body().self_test.digest;
            other.patches[1].lora_b[0] ^= 0x10;
            let file = other.write().unwrap();
            let adapter = Adapter::new(&file, &base).unwrap();
            engine.attach(adapter).unwrap();
            assert!(matches!(engine.self_test(), Err(Error::SelfTestFailed { .. })));
        }
    }
}

#[test]
fn a_head_reads_the_mean_over_the_whole_sequence() {
    let network = fixture::decoder();
    let data = fixture::adapter(&network, &[(3, 2)], Some(6), 0.4, 6);
    let file = data.write().unwrap();
    let mut seen = Vec::new();
    for pass_rows in [1, 4, 24] {
        let image = image(&network, Layout::RowMajor, pass_rows);
        let base = Base::new(image.bytes()).unwrap();
        let mut arena = memory(arena_bytes(&base, 24));
        let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
        engine.attach(Adapter::new(&file, &base).unwrap()).unwrap();
        // In two pieces, then again in one.
        engine.run_tokens(&tokens()[..4]).unwrap();
        let pieces = engine.run_tokens(&tokens()[4..]).unwrap().to_vec();
        engine.reset();
        assert_eq!(engine.run_tokens(&tokens()).unwrap(), pieces);
        assert_eq!(pieces.len(), 6);
        seen.push(pieces);
    }
    assert!(seen.iter().all(|output| *output == seen[0]));
}

#[test]
fn refusals_change_nothing() {
    let network = fixture::decoder();
    let other = fixture::encoder();
    let (image, other_image) =
        (image(&network, Layout::RowMajor, 4), self::image(&other, Layout::RowMajor, 4));
    let (base, other_base) = (Base::new(image.bytes()).unwrap(), Base::new(other_image.bytes()).unwrap());
    let file = fixture::adapter(&network, &[(1, 2)], None, 0.4, 6).write().unwrap();
    let other_file = fixture::adapter(&other, &[(1, 2)], None, 0.4, 6).write().unwrap();
    let large_file = fixture::adapter(&network, &[], Some(65), 0.4, 6).write().unwrap();
    let adapter = Adapter::new(&file, &base).unwrap();
    assert!(matches!(
        Adapter::new(&other_file, &base),
        Err(rankpatch_format::Error::WrongBase { expected, found }) if expected == base.id() && found == other_base.id()
    ));
    let mut arena = memory(arena_bytes(&base, 24));
    let mut merge = memory(merged_bytes(&base, &adapter, MergedType::Int8));
    let mut small = memory(merged_bytes(&base, &adapter, MergedType::Int8) - 1);
    let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
    engine.attach(adapter).unwrap();
    let expected = run(&mut engine);
    let foreign = Adapter::new(&other_file, &other_base).unwrap();
    assert!(matches!(engine.attach(foreign), Err(Error::Format(rankpatch_format::Error::WrongBase { .. }))));
    let large = Adapter::new(&large_file, &base).unwrap();
    assert_eq!(engine.attach(large), Err(Error::HeadTooLarge { expected: 64, found: 65 }));
    assert!(matches!(
        engine.attach_merged(adapter, MergedType::Int8, small.bytes_mut()),
        Err(Error::MergeBufferTooSmall { expected, found }) if expected == found + 1
    ));
    assert_eq!(
        engine.attach_merged(adapter, MergedType::Int8, &mut merge.bytes_mut()[4..]).err(),
        Some(Error::MergeBufferTooSmall {
            expected: merged_bytes(&base, &adapter, MergedType::Int8),
            found: merged_bytes(&base, &adapter, MergedType::Int8) - 4
        })
    );
    assert_eq!(engine.run_tokens(&[300u16]).err(), Some(Error::UnknownToken { expected: 270, found: 300 }));
    assert_eq!(engine.run_tokens::<u16>(&[]).err(), Some(Error::SequenceTooLong { expected: 13, found: 0 }));
    assert_eq!(
        engine.run_tokens(&[1u16; 14]).err(),
        Some(Error::SequenceTooLong { expected: 13, found: 14 })
    );
    assert_eq!(engine.run_features(&[0.0; 9]).err(), Some(Error::WrongInput { expected: 0, found: 9 }));
    assert_eq!(engine.position(), 11);
    assert_eq!(run(&mut engine), expected);

    let mut arena = memory(arena_bytes(&other_base, 24));
    let mut engine = Engine::new(other_base, arena.bytes_mut(), 24).unwrap();
    assert_eq!(engine.run_tokens(&[1u16]).err(), Some(Error::WrongInput { expected: 9, found: 1 }));
    assert_eq!(engine.run_features(&[0.0; 10]).err(), Some(Error::WrongInput { expected: 9, found: 10 }));
    assert_eq!(
        engine.run_features(&[0.0; 126]).err(),
        Some(Error::SequenceTooLong { expected: 13, found: 14 })
    );
}

#[test]
fn arenas_are_exactly_as_large_as_stated() {
    for network in [fixture::decoder(), fixture::encoder(), fixture::listener()] {
        let image = image(&network, Layout::Dsp4x4, 4);
        let base = Base::new(image.bytes()).unwrap();
        let bytes = arena_bytes(&base, 20);
        assert_eq!(arena_layout(&base, 20).total(), bytes);
        let mut arena = memory(bytes + 16);
        assert!(Engine::new(base, &mut arena.bytes_mut()[..bytes], 20).is_ok());
        let error = Engine::new(base, &mut arena.bytes_mut()[..bytes - 1], 20).err();
        assert_eq!(error, Some(Error::ArenaTooSmall { expected: bytes, found: bytes - 1 }));
        let error = Engine::new(base, &mut arena.bytes_mut()[4..], 20).err();
        assert_eq!(error, Some(Error::Misaligned { expected: 16, found: 4 }));
        assert!(matches!(
            Engine::new(base, arena.bytes_mut(), 0).err(),
            Some(Error::SequenceTooLong { found: 0, .. })
        ));
    }
}

/// Activations that overflow, or are not numbers, neither panic nor spoil later runs.
#[test]
fn absurd_inputs_saturate() {
    let network = fixture::encoder();
    let image = image(&network, Layout::RowMajor, 4);
    let base = Base::new(image.bytes()).unwrap();
    let mut data = fixture::adapter(&network, &all_sites(&network, |_| 4), None, 0.4, 5);
    data.patches.iter_mut().for_each(|patch| patch.scales.fill(half::f16::MAX));
    let file = data.write().unwrap();
    let mut arena = memory(arena_bytes(&base, 24));
    let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
    let plain = run(&mut engine);
    for value in [f32::MAX, f32::INFINITY, f32::NAN, 1e-40, -0.0] {
        engine.run_features(&[value; 27]).unwrap();
    }
    assert_eq!(run(&mut engine), plain);
    engine.attach(Adapter::new(&file, &base).unwrap()).unwrap();
    let absurd = run(&mut engine);
    assert_eq!(run(&mut engine), absurd);
}

/// A network of a few operators: floats named by number, the last operator is output and features.
fn small(ops: Vec<Op>, tensors: Vec<Tensor>, max_rows: u32) -> Network {
    let last = ops.len() as u16 - 1;
    let sites = ops.iter().filter(|op| matches!(op, Op::Linear { .. })).count();
    Network {
        name: "small".into(),
        tensor_names: (0..tensors.len()).map(|i| std::format!("tensor.{i}")).collect(),
        ops,
        tensors,
        site_names: (0..sites).map(|i| std::format!("site.{i}")).collect(),
        labels: Vec::new(),
        output: last,
        features: last,
        max_rows,
        vocabulary: None,
    }
}

/// Found in review: q, k and v may be the same value.
#[test]
fn attention_reads_one_value_three_times() {
    for causal in [true, false] {
        let attention = Op::Attention { q: 0, k: 0, v: 0, n_heads: 2, n_kv_heads: 2, causal, scale: 0.5 };
        let network = small(vec![Op::Features { width: 2 }, attention], Vec::new(), 3);
        let image = image(&network, Layout::RowMajor, 3);
        let base = Base::new(image.bytes()).unwrap();
        let mut arena = memory(arena_bytes(&base, 3));
        let mut engine = Engine::new(base, arena.bytes_mut(), 3).unwrap();
        // One row attends to itself alone.
        let y = engine.run_features(&[-4.5, 3.25]).unwrap();
        assert!((y[0] + 4.5).abs() < 2e-3 && (y[1] - 3.25).abs() < 2e-3, "{y:?}");
    }
}

/// Found in review: a head on a base without linear operators, over prepended rows, which count for the mean.
#[test]
fn heads_need_no_linear_operator_and_count_prepended_rows() {
    let token = Tensor::Floats { rows: 1, cols: 2, data: vec![2.0, -4.0] };
    let ops = vec![Op::Features { width: 2 }, Op::PrependToken { input: 0, token: 0 }];
    let network = small(ops, vec![token], 3);
    let mut data = fixture::adapter(&network, &[], Some(1), 0.4, 6);
    let head = data.head.as_mut().unwrap();
    head.pooling = Pooling::Mean;
    head.codes = vec![100, 50];
    head.scales = vec![half::f16::from_f32(0.0625)];
    head.bias = vec![];
    data.self_test.rows = 2;
    let file = data.write().unwrap();
    let image = image(&network, Layout::RowMajor, 3);
    let base = Base::new(image.bytes()).unwrap();
    let mut arena = memory(arena_bytes(&base, 3));
    let mut engine = Engine::new(base, arena.bytes_mut(), 3).unwrap();
    engine.attach(Adapter::new(&file, &base).unwrap()).unwrap();
    // The mean of (2, -4) and (6, 8) is (4, 2).
    let output = engine.run_features(&[6.0, 8.0]).unwrap();
    assert!((output[0] - (100.0 * 4.0 + 50.0 * 2.0) * 0.0625).abs() < 0.1, "{output:?}");
}

/// Found in review: causal attention in a network that does not stream, with as many rows as there may be.
#[test]
fn causal_attention_after_a_prepended_token_sees_every_row() {
    let token = Tensor::Floats { rows: 1, cols: 2, data: vec![1.0, 1.0] };
    let ops = vec![
        Op::Features { width: 2 },
        Op::PrependToken { input: 0, token: 0 },
        Op::Attention { q: 1, k: 1, v: 1, n_heads: 1, n_kv_heads: 1, causal: true, scale: 1e-6 },
    ];
    let image = image(&small(ops, vec![token], 3), Layout::RowMajor, 3);
    let base = Base::new(image.bytes()).unwrap();
    let mut arena = memory(arena_bytes(&base, 3));
    let mut engine = Engine::new(base, arena.bytes_mut(), 3).unwrap();
    // With so small a scale the last row is the mean of all four.
    let output = engine.run_features(&[3.0, 5.0, 5.0, 1.0, 7.0, 9.0]).unwrap();
    assert!((output[0] - 4.0).abs() < 1e-3 && (output[1] - 4.0).abs() < 1e-3, "{output:?}");
}

/// The arena has room for the ranks that make sense for its base, and an adapter with a higher one is refused.
#[test]
fn a_rank_beyond_the_arena_is_refused() {
    let network = fixture::decoder();
    let image = image(&network, Layout::RowMajor, 2);
    let base = Base::new(image.bytes()).unwrap();
    let sides = base.sites().map(|site| site.weight.rows.min(site.weight.cols));
    let highest = sides.max().unwrap().max(crate::MIN_RANK);
    let file = |rank| fixture::adapter(&network, &[(0, 2), (1, rank)], None, 0.1, 3).write().unwrap();
    let mut arena = memory(arena_bytes(&base, 24));
    let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
    let fits = file(highest);
    let adapter = Adapter::new(&fits, &base).unwrap();
    assert_eq!(adapter.max_rank(), (highest as u16, 1));
    engine.attach(adapter).unwrap();
    let too_high = file(highest + 1);
    let (rank, max) = (highest as u32 + 1, highest as u32);
    let expected = rankpatch_format::Error::RankOutOfRange { site: 1, rank, max };
    let refused = engine.attach(Adapter::new(&too_high, &base).unwrap());
    assert_eq!(refused.unwrap_err(), crate::Error::Format(expected));
    assert_eq!(engine.adapter().unwrap().max_rank(), (highest as u16, 1), "the adapter before stays");
}
