//! Whole command lines, run in this process on small random networks: results, messages and exit codes.

mod bad_input;
mod bundle;
mod device;
mod files;
mod host_only;
mod hub;
mod keys;
mod new;
mod report;
mod run;
mod weights;

use std::path::{Path, PathBuf};

use rankpatch_format::fixture;
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use rankpatch_format::write::{AdapterData, Network};
use serde_json::Value;
use tempfile::TempDir;

use super::console::Console;
use super::{exit, run};
use crate::base::Image;
use crate::sim::Simulator;

/// What a command left behind.
struct Ran {
    code: u8,
    out: String,
    err: String,
}

/// Runs a command line, words between spaces.
fn rankpatch(line: &str) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut console = Console { out: &mut out, err: &mut err, interactive: false };
    let code = run(std::iter::once("rankpatch").chain(line.split_whitespace()), &mut console);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code, out: text(out), err: text(err) }
}

impl Ran {
    /// The result as text.
    #[track_caller]
    fn text(self) -> String {
        assert_eq!(self.code, exit::SUCCESS, "{}", self.err);
        self.out
    }

    /// The result as JSON.
    #[track_caller]
    fn json(self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// Checks that the command failed with this code and one message, after whatever it logged, that contains `expected`.
    #[track_caller]
    fn fails(self, code: u8, expected: &str) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{}", self.err);
        let messages = self.err.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(messages, 1, "{}", self.err);
        assert!(self.err.contains(expected), "expected {expected:?}, found {:?}", self.err);
    }
}

/// A folder with a decoder, an encoder and an adapter for each.
struct Fixture {
    folder: TempDir,
    decoder: Network,
    encoder: Network,
}

impl Fixture {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let (decoder, encoder) = (fixture::decoder(), fixture::encoder());
        let fixture = Self { folder, decoder, encoder };
        fixture.write("decoder.rpb", &fixture.decoder.write(Layout::Dsp4x4, 4).unwrap());
        fixture.write("encoder.rpb", &fixture.encoder.write(Layout::RowMajor, 1).unwrap());
        fixture.write("decoder.rpa", &tested(&fixture.decoder, &[(0, 3), (4, 2), (13, 1)], None));
        fixture.write("encoder.rpa", &tested(&fixture.encoder, &[(1, 2), (8, 5)], Some(3)));
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Runs a command line in which `@name` is a file of the folder.
    fn run(&self, line: &str) -> Ran {
        let folder = format!("{}{}", self.folder.path().display(), std::path::MAIN_SEPARATOR);
        rankpatch(&line.replace('@', &folder))
    }
}

/// An adapter file with the digest that its self-test has.
fn tested(network: &Network, sites: &[(u16, usize)], head: Option<usize>) -> Vec<u8> {
    let data = fixture::adapter(network, sites, head, 1.0, 3);
    let image = Image::build(network, Layout::RowMajor, 1).unwrap();
    let simulator =
        Simulator::new(image).unwrap().with_adapter(data.write().unwrap(), Mode::Streamed).unwrap();
    let mut data: AdapterData = data;
    data.self_test.digest = simulator.self_test_digest().unwrap();
    data.write().unwrap()
}

/// Feature rows in a file.
fn f32_file(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn help_and_version_are_results() {
    let help = rankpatch("--help").text();
    for expected in
        ["base", "train", "eval", "inspect", "sim", "device", "Exit codes:", "4  the device refused"]
    {
        assert!(help.contains(expected), "{expected} is not in {help}");
    }
    assert_eq!(rankpatch("--version").text(), format!("rankpatch {}\n", env!("CARGO_PKG_VERSION")));
    let help = rankpatch("train --help").text();
    assert!(help.contains("--target-modules <VALUE>") && help.contains("a list of names, globs"), "{help}");
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    rankpatch("").fails(exit::USAGE, "Usage: rankpatch");
    rankpatch("trian").fails(exit::USAGE, "'train'");
    rankpatch("inspect").fails(exit::USAGE, "<FILE>");
    rankpatch("inspect a.rpa --format xml").fails(exit::USAGE, "[possible values: text, json]");
    rankpatch("train task.toml --learning-rat 1").fails(exit::USAGE, "'--learning-rate'");
    rankpatch("sim --base b.rpb").fails(exit::USAGE, "--prompt <PROMPT>|--text <TEXT>|--features <FILE>");
    rankpatch("sim --base b.rpb --prompt x --temperature -1").fails(exit::USAGE, "--temperature");
    rankpatch("sim --base b.rpb --prompt x --text y").fails(exit::USAGE, "cannot be used with");
    rankpatch("device info").fails(exit::USAGE, "--port is missing: expected tcp:HOST:PORT or PATH[@BAUD]");
    rankpatch("device info --port tcp:nowhere").fails(exit::USAGE, "expected tcp:HOST:PORT or PATH[@BAUD]");
    rankpatch("eval --task t.toml --adapter a.rpa --on float --merged")
        .fails(exit::USAGE, "--on device-code");
}

#[test]
fn missing_files_are_bad_input() {
    for line in [
        "inspect nowhere.rpb",
        "sim --base nowhere.rpb --text x",
        "train nowhere.toml",
        "eval --task nowhere.toml",
        "base build --from nowhere -o b.rpb",
        "device push nowhere.rpa --port tcp:127.0.0.1:1",
    ] {
        rankpatch(line).fails(exit::BAD_INPUT, "nowhere");
    }
}

/// The path of a file that the repository carries.
fn carried(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(path)
}
