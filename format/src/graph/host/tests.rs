//! Shapes of the operators that only trainers run, and that no image gets one.
#![allow(clippy::indexing_slicing, reason = "test data of known sizes")]

extern crate std;
use std::string::ToString as _;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::Error;
use crate::layout::Layout;
use crate::write::{Network, Tensor};

/// A network of width 6 with a table of 4 positions: q and k read it, v does not; a convolution before and a selection behind.
fn network() -> Network {
    let floats =
        |rows: u32, cols: u32| Tensor::Floats { rows, cols, data: vec![0.5; (rows * cols) as usize] };
    let codes = |rows: u32, cols: u32| {
        let (codes, scales) = (vec![3; (rows * cols) as usize], vec![0.1; rows as usize]);
        Tensor::Codes { rows, cols, codes, scales }
    };
    let linear = |input| Op::Linear { input, weight: 2, bias: None };
    let attention =
        HostOp::RelativeAttention { q: 3, k: 4, v: 5, n_heads: 2, scale: 0.3, buckets: 2, max_distance: 8 };
    let ops = vec![
        Op::Features { width: 6 },
        Op::Host(HostOp::Convolution { input: 0, weight: 0, bias: 3, reach: 1 }),
        Op::Host(HostOp::AppendTable { input: 1, table: 1, bias: Some(3) }),
        linear(2),
        linear(2),
        linear(1),
        Op::Host(attention),
        Op::SelectRow { input: 6, row: 0 },
    ];
    let names = ["q", "k", "v"].map(Into::into).to_vec();
    Network {
        name: "relative".into(),
        ops,
        tensors: vec![codes(6, 18), floats(4, 6), codes(6, 6), floats(1, 6)],
        tensor_names: Vec::new(),
        site_names: names,
        labels: Vec::new(),
        output: 7,
        features: 7,
        max_rows: 9,
        vocabulary: None,
    }
}

fn error(change: impl FnOnce(&mut Network)) -> Error {
    let mut network = network();
    change(&mut network);
    network.shapes().unwrap_err()
}

fn set(network: &mut Network, index: usize, change: impl FnOnce(&mut HostOp)) {
    let Op::Host(op) = &mut network.ops[index] else { panic!("operator {index} is a host's") };
    change(op);
}

#[test]
fn a_table_goes_with_the_rows_as_far_as_attention() {
    let shapes = network().shapes().unwrap();
    let (tokens, tabled) = (Rows::Tokens { extra: 0 }, Rows::Tabled { table: 4 });
    let rows: Vec<Rows> = shapes.iter().map(|shape| shape.rows).collect();
    assert_eq!(rows, [tokens, tokens, tabled, tabled, tabled, tokens, tokens, Rows::One]);
    assert!(shapes.iter().all(|shape| shape.width == 6));
    assert_eq!(tabled.count(9), 13);
    assert!(!network().streaming());
}

#[test]
fn no_image_has_one() {
    let network = network();
    let error = network.write(Layout::RowMajor, 4).unwrap_err();
    assert_eq!(error, Error::HostOperator { op: 1, name: "a convolution over tokens" });
    assert!(error.to_string().contains("use the PEFT folder"));
    for op in &network.ops {
        let bytes = postcard::to_allocvec(op).unwrap();
        let read = crate::read::Reader(&bytes).op();
        assert_eq!(
            read,
            Some(*op).filter(|op| !matches!(op, Op::Host(_))),
            "a device's reader knows the others"
        );
        assert_eq!(postcard::from_bytes(&bytes).ok(), read);
    }
}

#[test]
fn every_field_is_part_of_the_identity() {
    let plain = network().id();
    for change in [0, 1, 2] {
        let mut network = network();
        set(&mut network, 6, |op| {
            let HostOp::RelativeAttention { buckets, max_distance, n_heads, .. } = op else { panic!() };
            *[buckets, max_distance, n_heads][change] += 1;
        });
        assert_ne!(network.id(), plain);
    }
    let mut network = network();
    set(&mut network, 2, |op| {
        let HostOp::AppendTable { bias, .. } = op else { panic!() };
        *bias = None;
    });
    assert_ne!(network.id(), plain);
}

#[test]
fn shapes_that_do_not_fit() {
    let refused = |error: Error, what: What, expected: u32, found: u32| {
        assert!(
            matches!(error, Error::ShapeMismatch { what: w, expected: e, found: f, .. } if (w, e, f) == (what, expected, found)),
            "{error}"
        );
    };
    let table = |rows, cols| Tensor::Floats { rows, cols, data: vec![0.5; (rows * cols) as usize] };
    refused(error(|n| n.tensors[1] = table(4, 5)), What::PositionTableWidth, 6, 5);
    refused(error(|n| n.tensors[1] = table(3, 6)), What::PositionTableRows, 4, 3);
    refused(error(|n| n.tensors[3] = table(1, 5)), What::VectorLength, 6, 5);
    let bias = |n: &mut Network| {
        set(n, 2, |op| {
            let HostOp::AppendTable { bias, .. } = op else { panic!() };
            *bias = Some(4);
        });
        n.tensors.push(table(1, 7));
    };
    refused(error(bias), What::VectorLength, 6, 7);
    let reach = |n: &mut Network| {
        set(n, 1, |op| {
            let HostOp::Convolution { reach, .. } = op else { panic!() };
            *reach = 2;
        });
    };
    refused(error(reach), What::InFeatures, 30, 18);
    // A value without the table's rows for v, one with them for q or k at least.
    refused(error(|n| n.ops[5] = Op::Linear { input: 2, weight: 2, bias: None }), What::AttentionRows, 4, 4);
    let plain = |n: &mut Network| {
        for op in [3, 4] {
            n.ops[op] = Op::Linear { input: 1, weight: 2, bias: None };
        }
    };
    refused(error(plain), What::AttentionRows, 0, 0);
    refused(error(|n| n.ops[7] = Op::SelectRow { input: 3, row: 0 }), What::TokenRows, 0, 1);
    refused(error(|n| n.ops[1] = Op::MeanPool { input: 0 }), What::TokenRows, 0, 1);
    let heads = |n: &mut Network| {
        set(n, 6, |op| {
            let HostOp::RelativeAttention { n_heads, .. } = op else { panic!() };
            *n_heads = 4;
        });
    };
    refused(error(heads), What::Heads, 6, 4);
}
