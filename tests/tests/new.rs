//! Projects of `rankpatch new`, built and booted as their READMEs say: what they print is what they were made to state, and what
//! the host's `sim` answers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rankpatch::cli::console::Console;
use serde_json::Value;

/// Runs the command `rankpatch` in this process and returns what it prints.
fn rankpatch(arguments: &[&str]) -> String {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut console = Console { out: &mut out, err: &mut err, interactive: false };
    let code =
        rankpatch::cli::run(std::iter::once("rankpatch").chain(arguments.iter().copied()), &mut console);
    assert_eq!(code, 0, "{}", String::from_utf8_lossy(&err));
    String::from_utf8(out).expect("a text")
}

/// A folder for a project that is not there.
fn folder(name: &str) -> PathBuf {
    let path = xtask::output_folder("new").expect("a folder for output").join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).expect("an old project");
    }
    path
}

/// Builds and boots a project with the command that its README names, and returns what it prints.
fn cargo_run(project: &Path) -> String {
    let output = Command::new("cargo")
        .args(["run", "--release", "--quiet"])
        .current_dir(project)
        // The dependencies of all projects are compiled once, and kept.
        .env("CARGO_TARGET_DIR", project.with_file_name("target"))
        .env_remove("RUSTFLAGS")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8(output.stdout).expect("a text")
}

#[test]
fn a_project_without_options_prints_what_sim_answers() {
    let project = folder("usual-lamp");
    let path = project.to_str().expect("a path in UTF-8");
    let made: Value =
        serde_json::from_str(&rankpatch(&["new", path, "--format", "json"])).expect("a JSON object");
    let printed = cargo_run(&project);
    assert_eq!(printed, made["expected"].as_str().expect("a text"));
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, lines[2]), "the base is back, bit for bit");

    let (base, adapter) = (project.join("assets/base.rpb"), project.join("assets/small-intent.rpa"));
    let [base, adapter] = [&base, &adapter].map(|path| path.to_str().expect("a path in UTF-8"));
    let sim = |arguments: &[&str]| -> Value {
        let all: Vec<_> =
            ["sim", "--format", "json", "--base", base].iter().chain(arguments).copied().collect();
        serde_json::from_str(&rankpatch(&all)).expect("a JSON object")
    };
    let digest = |answer: &Value| answer["digest"].as_str().expect("a digest").replace("0x", "");
    let prompt = rankpatch::scaffold::USUAL_PROMPT;
    let plain = sim(&["--prompt", prompt, "--max-tokens", "16"]);
    let text = plain["text"].as_str().expect("a text");
    assert_eq!(lines[0], format!("the base: {prompt}{text} ({})", digest(&plain)));
    let adapted = sim(&["--adapter", adapter, "--text", prompt]);
    let label = adapted["label"].as_str().expect("a label");
    assert_eq!(lines[1], format!("small-intent: {prompt} -> {label} ({})", digest(&adapted)));
}

/// The other machine, a base that reads features, and partitions.
#[test]
fn a_project_with_partitions_prints_what_it_states() {
    let project = folder("spoken-lamp");
    let path = project.to_str().expect("a path in UTF-8");
    let [model, adapter, clips] = [
        "tests/data/bases/kwt1",
        "tests/data/adapters/speaker.rpa",
        "tests/data/kwt1-golden/clips.safetensors",
    ]
    .map(|name| crate::path(name).to_str().expect("a path in UTF-8").to_owned());
    let arguments =
        ["new", path, "--board", "qemu-mps3-an547", "--partitions", "--from", &model, "--adapter"];
    let more = [adapter.as_str(), "--features", &clips, "--index", "3", "--format", "json"];
    let made = rankpatch(&arguments.iter().chain(&more).copied().collect::<Vec<_>>());
    let made: Value = serde_json::from_str(&made).expect("a JSON object");
    assert_eq!(cargo_run(&project), made["expected"].as_str().expect("a text"));
}
