//! `inspect` and `base build`: what is said about files, and which are refused.

use rankpatch_format::adapter::Adapter;
use rankpatch_format::crc32;
use serde_json::Value;

use super::{Fixture, carried, exit, rankpatch};
use crate::base::Image;

fn number(value: &Value, key: &str) -> usize {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} of {value}")) as usize
}

fn sum_of_sections(report: &Value) -> usize {
    report["sections"].as_array().unwrap().iter().map(|section| number(section, "bytes")).sum()
}

#[test]
fn a_base_is_inspected() {
    let fixture = Fixture::new();
    let report = fixture.run("inspect @decoder.rpb --format json").json();
    let image = Image::new(&fixture.read("decoder.rpb"));
    let base = image.base().unwrap();
    let id = fixture.decoder.id().to_string();
    assert_eq!((report["kind"].as_str(), report["name"].as_str()), (Some("base"), Some("tiny-decoder")));
    assert_eq!(report["identity"], serde_json::json!({ "stated": id, "computed": id, "equal": true }));
    assert_eq!(number(&report, "file_bytes"), image.bytes().len());
    assert_eq!(sum_of_sections(&report), image.bytes().len());
    assert_eq!(number(&report["arena"], "total"), rankpatch_runtime::arena_bytes(&base, 24));
    assert_eq!(report["layout"], "Dsp4x4");
    let sites = report["sites"].as_array().unwrap();
    assert_eq!(sites.len(), 15);
    let down = &sites[6];
    assert_eq!(
        (down["name"].as_str(), number(down, "out_features"), number(down, "in_features")),
        (Some("layers.0.ffn.down"), 12, 10)
    );
    let scales = base.sites().nth(6).unwrap().weight.scales;
    let (min, max) =
        scales.iter().fold((f32::MAX, 0.0f32), |(min, max), scale| (min.min(scale), max.max(scale)));
    assert_eq!(
        (down["scales"]["min"].as_f64().unwrap() as f32, down["scales"]["max"].as_f64().unwrap() as f32),
        (min, max)
    );

    let text = fixture.run("inspect @encoder.rpb").text();
    for expected in [
        "tiny-encoder, version 1",
        "(computed again: equal)",
        "RowMajor",
        "feature rows of width 9",
        "13, all in one pass",
        "labels  class 0, class 1",
        "layers.1.ffn.up     22 x 15",
        "100.00",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
}

#[test]
fn an_adapter_is_inspected_with_and_without_its_base() {
    let fixture = Fixture::new();
    let file = fixture.read("encoder.rpa");
    let image = Image::new(&fixture.read("encoder.rpb"));
    let adapter = Adapter::new(&file, &image.base().unwrap()).unwrap();
    // Site 1 is 15 x 15 at rank 2, site 8 is 15 x 15 at rank 5, and a head of 3 x 15.
    let payload = 2 * 30 + 5 * 30 + 45;
    assert_eq!(adapter.payload_bytes(), payload);

    let alone = fixture.run("inspect @encoder.rpa --format json").json();
    assert_eq!(
        (number(&alone, "payload_bytes"), number(&alone, "overhead_bytes")),
        (payload, file.len() - payload)
    );
    let percent = alone["overhead_percent"].as_f64().unwrap();
    assert!((percent - 100.0 * (file.len() - payload) as f64 / payload as f64).abs() < 1e-9);
    assert_eq!(sum_of_sections(&alone), file.len());
    assert_eq!((alone["sites"][1]["index"].as_u64(), alone["sites"][1]["rank"].as_u64()), (Some(8), Some(5)));
    assert_eq!(alone["sites"][1].get("name"), None, "only the base knows names");
    assert_eq!(
        (alone["head"]["outputs"].as_u64(), alone["head"]["pooling"].as_str()),
        (Some(3), Some("last"))
    );
    assert_eq!(alone["head"]["labels"], serde_json::json!(["0", "1", "2"]));
    assert_eq!(alone["base_id"].as_str(), Some(fixture.encoder.id().to_string().as_str()));

    let full = fixture.run("inspect @encoder.rpa --base @encoder.rpb --format json").json();
    assert_eq!(full["sites"][1]["name"], fixture.encoder.site_names[8].as_str());
    assert_eq!(number(&full["sites"][1], "payload_bytes"), 150);
    assert_eq!(number(&full["head"], "payload_bytes"), 45);
    assert_eq!(full["self_test"]["check"]["equal"], true);
    assert_eq!(full["self_test"]["digest"], format!("{:#018x}", adapter.body().self_test.digest));

    let text = fixture.run("inspect @encoder.rpa --base @encoder.rpb").text();
    for expected in [
        "tiny, version 1",
        "(tiny-encoder)",
        "digest 0x",
        "(computed again: equal)",
        "r(d+k) bytes",
        "3 outputs with bias",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    // The same adapter on the same base in another layout.
    fixture.write("other.rpb", &fixture.encoder.write(rankpatch_format::layout::Layout::Dsp4x4, 1).unwrap());
    let other = fixture.run("inspect @encoder.rpa --base @other.rpb --format json").json();
    assert_eq!(other["self_test"], full["self_test"]);
}

#[test]
fn damaged_and_foreign_files_are_refused_by_name() {
    let fixture = Fixture::new();
    let base = fixture.read("decoder.rpb");
    let adapter = fixture.read("decoder.rpa");
    let refuse = |name: &str, bytes: &[u8], expected: &str| {
        fixture.write(name, bytes);
        let ran = fixture.run(&format!("inspect @{name}"));
        assert!(ran.err.contains(name), "{}", ran.err);
        ran.fails(exit::BAD_INPUT, expected);
    };
    refuse("short.rpb", &base[..base.len() - 1], "base image is truncated: expected");
    refuse("short.rpa", &adapter[..100], "adapter file is truncated: expected");
    refuse("long.rpa", &[&adapter[..], &[0]].concat(), "trailing bytes");
    refuse("other.rpa", b"PK\x03\x04", "expected one that starts with RPB or RPA, found \"PK\\x03\"");
    refuse("empty.rpa", b"", "found \"\"");
    for (name, bytes) in [("flip.rpb", &base), ("flip.rpa", &adapter)] {
        let mut bytes = bytes.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        refuse(name, &bytes, "checksum mismatch: expected 0x");
    }
    let mut future = adapter.clone();
    future[3] = 9;
    refuse("future.rpa", &future, "unknown version: expected 1, found 9");
    let wrong = format!("expected {}, found {}", fixture.encoder.id(), fixture.decoder.id());
    fixture.run("inspect @decoder.rpa --base @encoder.rpb").fails(exit::BAD_INPUT, &wrong);
    fixture.run("inspect @decoder.rpb --base @decoder.rpb").fails(exit::USAGE, "expected an .rpa file");
}

/// An identity or a digest that somebody changed together with the checksum is found by computing it again.
#[test]
fn wrong_identities_and_digests_are_found() {
    let fixture = Fixture::new();
    let mut base = fixture.read("decoder.rpb");
    base[8] ^= 1;
    let checksum = crc32(&[&base[..28], &base[32..]].concat());
    base[28..32].copy_from_slice(&checksum.to_le_bytes());
    fixture.write("forged.rpb", &base);
    let ran = fixture.run("inspect @forged.rpb");
    assert_eq!(ran.code, exit::BAD_INPUT);
    assert!(ran.out.contains("DIFFERENT"), "{}", ran.out);
    assert!(ran.err.contains("identity does not fit the content: expected"), "{}", ran.err);

    let data = rankpatch_format::fixture::adapter(&fixture.decoder, &[(2, 2)], None, 1.0, 5);
    fixture.write("untested.rpa", &data.write().unwrap());
    let ran = fixture.run("inspect @untested.rpa --base @decoder.rpb --format json");
    assert_eq!(ran.code, exit::BAD_INPUT);
    assert!(
        ran.err.contains("self-test digest does not fit the content: expected 0x0000000000000000"),
        "{}",
        ran.err
    );
}

#[test]
fn a_published_model_becomes_a_base_image() {
    let fixture = Fixture::new();
    let from = carried("bases/stories260k");
    let build = |target: &str, name: &str| {
        let line = format!("base build --from {} --target {target} -o @{name} --format json", from.display());
        fixture.run(&line).json()
    };
    let targets = [("cortex-m4", "Dsp4x4"), ("cortex-m55", "Mve4x16"), ("cortex-m0", "RowMajor")];
    let [m4, m55, m0] = targets.map(|(target, layout)| {
        let built = build(target, &format!("{target}.rpb"));
        assert_eq!(built["layout"].as_str(), Some(layout));
        built
    });
    assert_eq!([&m55["base_id"], &m0["base_id"]], [&m4["base_id"]; 2], "one adapter serves all");
    let report = fixture.run("inspect @cortex-m4.rpb --format json").json();
    assert_eq!(
        (&report["identity"]["computed"], &report["identity"]["equal"]),
        (&m4["base_id"], &Value::Bool(true))
    );
    assert_eq!(number(&report["arena"], "total"), number(&m4, "arena_bytes"));
    let rows = rankpatch(&format!("base build --from {} --pass-rows 0 -o x.rpb", from.display()));
    rows.fails(exit::USAGE, "--pass-rows");
    fixture.run("base build --from @decoder.rpa -o @x.rpb").fails(exit::BAD_INPUT, "decoder.rpa");
}
