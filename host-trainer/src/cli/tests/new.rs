//! `rankpatch new`: what it makes, and what it refuses. That a project builds and runs is tested in `tests/tests/new.rs`.

use serde_json::json;

use super::super::exit::{BAD_INPUT, USAGE};
use super::Fixture;

#[test]
fn a_project_states_what_its_program_prints() {
    let fixture = Fixture::new();
    let made = fixture.run("new @lamp --base @encoder.rpb --adapter @encoder.rpa --format json").json();
    assert_eq!((&made["name"], &made["board"]), (&json!("lamp"), &json!("qemu-mps2-an386")));
    let expected = made["expected"].as_str().unwrap();
    assert_eq!(expected.lines().count(), 3);
    let readme = String::from_utf8(fixture.read("lamp/README.md")).unwrap();
    assert!(readme.contains(expected), "{readme}");
    for file in made["files"].as_array().unwrap() {
        assert!(fixture.path("lamp").join(file.as_str().unwrap()).is_file(), "{file}");
    }
    assert_eq!(fixture.read("lamp/assets/base.rpb"), fixture.read("encoder.rpb"));
    // A text is asked of a base that reads one, and the answer is the one that `sim` gives.
    let line =
        "new @reader --base @decoder.rpb --adapter @decoder.rpa --prompt ab --partitions --format json";
    let made = fixture.run(line).json();
    let sim = fixture.run("sim --base @decoder.rpb --prompt ab --max-tokens 16 --format json").json();
    let expected = made["expected"].as_str().unwrap();
    let digest = sim["digest"].as_str().unwrap().trim_start_matches("0x");
    assert!(
        expected.starts_with("the base: ab") && expected.contains(&format!("({digest})\n")),
        "{expected} {digest}"
    );
    assert!(fixture.path("reader/assets/slots.rpk").is_file());
}

#[test]
fn what_cannot_become_a_project_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.run("new @2lamps").fails(USAGE, "expected a letter, then letters, digits, - and _");
    fixture.run("new @fn").fails(USAGE, "expected a name that is no keyword of Rust");
    fixture.run("new @lamp --board qemu-toaster").fails(USAGE, "qemu-mps3-an547");
    fixture.run("new @lamp --rankpatch @").fails(USAGE, "expected a checkout of Rankpatch");
    fixture.run("new @lamp --base @encoder.rpb --adapter @decoder.rpa").fails(BAD_INPUT, "decoder.rpa");
    fixture.run("new @lamp --base @nowhere.rpb").fails(BAD_INPUT, "nowhere.rpb");
    fixture.run("new @lamp --base @encoder.rpb --from @x").fails(USAGE, "cannot be used with");
    assert!(!fixture.path("lamp").exists());
    std::fs::create_dir(fixture.path("lamp")).unwrap();
    fixture.write("lamp/mine", b"kept");
    fixture.run("new @lamp").fails(USAGE, "expected a new or an empty folder, found one with files in it");
    assert_eq!(fixture.read("lamp/mine"), b"kept");
    fixture.run("new @encoder.rpb").fails(USAGE, "project name \"encoder.rpb\"");
}
