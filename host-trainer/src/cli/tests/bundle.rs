//! `bundle`: what is built is what a device's slots read.

use super::{Fixture, exit};

const SMALL: &str = "--slots 3 --slot-bytes 8192 --page-bytes 1024 --word-bytes 8 --journal-pages 3";

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.run("key new -o @lamp.key").text();
    for (name, sequence) in [("decoder", 3), ("encoder", 2)] {
        fixture.run(&format!("sign @{name}.rpa --key @lamp.key --product lamp --sequence {sequence}")).text();
    }
    fixture
}

#[test]
fn bundles_are_built_and_read_back() {
    let fixture = fixture();
    let build = format!("bundle @decoder.rpa @encoder.rpa {SMALL} --key @lamp.pub");
    let built = fixture.run(&format!("{build} --active tiny -o @tasks.rpk --format json")).json();
    assert_eq!(fixture.read("tasks.rpk").len(), 3 * 8192 + 3 * 1024);
    assert_eq!((built["floor"].as_u64(), built["slots"][0]["sequence"].as_u64()), (Some(3), Some(2)));
    fixture.run(&format!("{build} --active tiny -o @again.rpk")).text();
    assert_eq!(fixture.read("tasks.rpk"), fixture.read("again.rpk"), "same inputs, same bytes");
    let text = fixture.run(&format!("bundle --read @tasks.rpk --extract @out {SMALL}")).text();
    assert!(text.contains("confirmed") && text.contains("empty") && text.contains("floor 3"), "{text}");
    assert_eq!(fixture.read("out/tiny-3.rpa"), fixture.read("decoder.rpa"));
    assert_eq!(fixture.read("out/tiny-2.rpa"), fixture.read("encoder.rpa"));
    // Another geometry is noticed, and so is a damaged file.
    fixture
        .run("bundle --read @tasks.rpk --slots 2 --slot-bytes 8192 --page-bytes 1024 --journal-pages 3")
        .text();
    let mut damaged = fixture.read("tasks.rpk");
    damaged[500] ^= 1;
    fixture.write("damaged.rpk", &damaged);
    let text = fixture.run(&format!("bundle --read @damaged.rpk {SMALL}")).text();
    assert_eq!(text.matches("tiny").count(), 1, "{text}");
}

#[test]
fn bad_bundles_are_refused() {
    let fixture = fixture();
    let run = |line: &str| fixture.run(&format!("bundle {line} {SMALL}"));
    run("@decoder.rpa").fails(exit::USAGE, "--output");
    run("@decoder.rpa @decoder.rpa -o @x.rpk").fails(exit::BAD_INPUT, "expected at least 4, found 3");
    run("@decoder.rpa --active nothing -o @x.rpk")
        .fails(exit::BAD_INPUT, "expected one of tiny, found nothing");
    fixture.run("key new -o @other.key").text();
    run("@decoder.rpa --key @other.pub -o @x.rpk").fails(exit::BAD_INPUT, "unknown key");
    let many = "@decoder.rpa ".repeat(4);
    run(&format!("{many} -o @x.rpk")).fails(exit::BAD_INPUT, "at most 3, one a slot");
    fixture
        .run("bundle @decoder.rpa -o @x.rpk --word-bytes 3")
        .fails(exit::BAD_INPUT, "bytes per word: expected 1, 2, 4, 8, 16, 32, found 3");
    assert!(!fixture.path("x.rpk").exists());
}

#[test]
fn flash_is_planned() {
    let fixture = fixture();
    let line =
        "bundle @decoder.rpa --plan 262144 --firmware-bytes 100000 --base @decoder.rpb --page-bytes 1024";
    let plan = fixture.run(&format!("{line} --format json")).json();
    let number = |key: &str| plan[key].as_u64().unwrap() as usize;
    let base = fixture.read("decoder.rpb").len().next_multiple_of(1024);
    let slot = (fixture.read("decoder.rpa").len() + 64).next_multiple_of(1024);
    assert_eq!((number("firmware_bytes"), number("base_bytes"), number("slot_bytes")), (100_352, base, slot));
    assert_eq!(number("slots"), ((262_144 - 100_352 - base - 3072) / slot).min(32));
    let used = number("slots") * slot + 100_352 + base + 3072;
    assert_eq!(number("free_bytes"), 262_144 - used);
    fixture.run("bundle @decoder.rpa --plan 65536").fails(exit::BAD_INPUT, "for firmware, base and journal");
    fixture.run("bundle --plan 65536").fails(exit::USAGE, "expected an adapter file");
}
