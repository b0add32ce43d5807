//! The real command, killed and interrupted while it trains: what it leaves is whole, and `--resume` ends with the same bytes
//! as a run that nothing stopped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rankpatch_format::fixture;
use rankpatch_format::layout::Layout;
use tempfile::TempDir;

/// The files that must have the same bytes.
const OUTPUTS: [&str; 4] =
    ["rpa", "peft/adapter_config.json", "peft/adapter_model.safetensors", "peft/rankpatch.json"];

/// A folder with a small base, names to learn, and two tasks of which every step writes a checkpoint.
struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("decoder.rpb", &fixture::decoder().write(Layout::RowMajor, 4).unwrap());
        let letters = ["a", "b", "c", "ab", "bc", "ca"];
        let names: Vec<String> =
            (0..1100).map(|at| [letters[at % 6], letters[at / 6 % 6]].concat()).collect();
        write("names.txt", names.join("\n").as_bytes());
        for (name, rank, steps) in [("one", 3, 60), ("two", 2, 45)] {
            let task = format!(
                "task = \"{name}\"\nbase = \"decoder.rpb\"\ndataset = \"names\"\ndata = \"names.txt\"\nsteps = {steps}\n\
                 rank = {rank}\nalpha = 5\ndropout = 0.1\nbatch_size = 8\nsave_steps = 1\ndevice = \"cpu\"\n"
            );
            write(&format!("{name}.toml"), task.as_bytes());
        }
        write("both.toml", b"tasks = [\"one.toml\", \"two.toml\"]\n");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rankpatch"));
        command.arg("train").args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn outputs(&self, out: &str, task: &str) -> Vec<Vec<u8>> {
        let file = |name: &&str| if *name == "rpa" { format!("{task}.rpa") } else { (*name).to_owned() };
        OUTPUTS.iter().map(|name| std::fs::read(self.path(out).join(file(name))).unwrap()).collect()
    }
}

/// Waits until `there` or until the process has ended.
fn wait(child: &mut Child, there: impl Fn() -> bool) {
    let start = Instant::now();
    while !there() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_mins(2), "the process does nothing");
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Whether a checkpoint is being written in a folder, or its new file lies there.
fn is_writing(folder: &Path) -> bool {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".checkpoint"))
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let fixture = Fixture::new();
    fixture.done(&["one.toml", "--out", "whole"]);
    let whole = fixture.outputs("whole", "one");
    // Killed after a first checkpoint, in the middle of writing one, and at whatever it does 15 ms after one.
    let (folder, checkpoint) = (fixture.path("killed"), fixture.path("killed/checkpoint.safetensors"));
    for kill in 0..6 {
        let arguments = ["one.toml", "--out", "killed", "--resume"];
        let arguments = if checkpoint.exists() { &arguments[..] } else { &arguments[..3] };
        let before = std::fs::read(&checkpoint).ok();
        let mut child = fixture.start(arguments);
        wait(&mut child, || checkpoint.exists() && std::fs::read(&checkpoint).ok() != before);
        if kill % 3 == 1 {
            wait(&mut child, || is_writing(&folder));
        } else if kill % 3 == 2 {
            std::thread::sleep(Duration::from_millis(15));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let bytes = std::fs::read(&checkpoint).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).expect("a checkpoint is whole");
    }
    fixture.done(&["one.toml", "--out", "killed", "--resume"]);
    assert!(
        fixture.outputs("killed", "one") == whole,
        "other bytes than those of a run that nothing stopped"
    );
}

#[test]
fn killed_tasks_go_on_together_and_finished_ones_are_skipped() {
    let fixture = Fixture::new();
    for task in ["one", "two"] {
        fixture.done(&[&format!("{task}.toml"), "--out", &format!("alone/{task}")]);
    }
    for _ in 0..3 {
        let checkpoint = fixture.path("all/two/checkpoint.safetensors");
        let before = std::fs::read(&checkpoint).ok();
        let mut child = fixture.start(&["both.toml", "--out", "all", "--resume"]);
        wait(&mut child, || checkpoint.exists() && std::fs::read(&checkpoint).ok() != before);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let results = |output: &Output| -> serde_json::Value { serde_json::from_slice(&output.stdout).unwrap() };
    let arguments = ["both.toml", "--out", "all", "--resume", "--format", "json"];
    let first = fixture.run(&arguments);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let status = |results: &serde_json::Value| -> Vec<String> {
        let tasks = results["tasks"].as_array().unwrap().iter();
        tasks
            .map(|task| format!("{} {}", task["task"].as_str().unwrap(), task["status"].as_str().unwrap()))
            .collect()
    };
    assert_eq!(status(&results(&first)), ["one trained", "two trained"]);
    for task in ["one", "two"] {
        assert!(
            fixture.outputs(&format!("all/{task}"), task) == fixture.outputs(&format!("alone/{task}"), task)
        );
    }
    assert_eq!(status(&results(&fixture.run(&arguments))), ["one skipped", "two skipped"]);
    // Other data or another key make another run; a task that is wrong takes no other with it.
    let task = std::fs::read_to_string(fixture.path("one.toml")).unwrap();
    std::fs::write(fixture.path("one.toml"), task.replace("rank = 3", "rank = 4")).unwrap();
    std::fs::write(fixture.path("bad.toml"), "task = \"bad\"\nrank = 0\n").unwrap();
    let last =
        fixture.run(&["one.toml", "bad.toml", "two.toml", "--out", "all", "--resume", "--format", "json"]);
    assert_eq!(status(&results(&last)), ["one trained", "bad.toml failed", "two skipped"]);
    assert_eq!(last.status.code(), Some(1), "{}", String::from_utf8_lossy(&last.stderr));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_step_and_says_how_to_go_on() {
    let fixture = Fixture::new();
    fixture.done(&["one.toml", "--out", "whole"]);
    let checkpoint = fixture.path("stopped/checkpoint.safetensors");
    let mut child = fixture.command(&["one.toml", "--out", "stopped", "--steps", "60"]).spawn().unwrap();
    wait(&mut child, || checkpoint.exists());
    let interrupted = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("stopped after step") && said.contains("with --resume goes on"), "{said}");
    assert!(!fixture.path("stopped/one.rpa").exists());
    fixture.done(&["one.toml", "--out", "stopped", "--resume"]);
    assert!(fixture.outputs("stopped", "one") == fixture.outputs("whole", "one"));
}
