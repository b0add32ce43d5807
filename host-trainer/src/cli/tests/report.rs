//! What a run leaves for people and programs: its log, `compare`, shell completions.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{Fixture, Ran, exit, rankpatch};

/// A task on the small decoder: requests with one of two intents.
fn task(fixture: &Fixture) {
    let lines: Vec<String> = (0..60)
        .map(|at| format!("{},{}", ["ab", "c"][at % 2].repeat(1 + at % 3), ["many", "few"][at % 2]))
        .collect();
    fixture.write("own.csv", format!("text,label\n{}\n", lines.join("\n")).as_bytes());
    let task = "task = \"own\"\nbase = \"decoder.rpb\"\ndataset = \"csv\"\ndata = \"own.csv\"\nsteps = 12\nbatch_size = 8\neval_steps = 5\nsave_steps = 4\ndevice = \"cpu\"\n";
    fixture.write("own.toml", task.as_bytes());
}

fn train(fixture: &Fixture, rest: &str) -> Ran {
    fixture.run(&format!("train @own.toml --format json {rest}"))
}

fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An event without what depends on the clock, and without the mean of the last losses, which is that of a part of a run.
fn timeless(mut event: Value) -> Value {
    let fields = event.as_object_mut().unwrap();
    fields.remove("seconds");
    fields.remove("tokens_per_second");
    if fields["event"] == "finished" {
        fields.remove("loss");
    }
    event
}

#[test]
fn a_log_has_every_event_once() {
    let fixture = Fixture::new();
    task(&fixture);
    let ran = train(&fixture, "--out @whole --progress json");
    let shown: Vec<Value> = ran.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let whole = events(&fixture.path("whole/log.jsonl"));
    assert_eq!(whole, shown, "the log has what --progress json prints");
    let names: Vec<&str> = whole.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| **name == "step").count(), 12);

    // The same run, killed after step 11 with a checkpoint of step 8, then resumed.
    std::fs::create_dir(fixture.path("cut")).unwrap();
    let at = whole.iter().position(|event| event["event"] == "step" && event["step"] == 11).unwrap();
    let cut: Vec<String> = whole[..=at].iter().map(Value::to_string).collect();
    fixture.write("cut/log.jsonl", (cut.join("\n") + "\n{\"event\":\"st").as_bytes());
    // A run of 8 steps would have another learning rate, so the checkpoint is that of a run that stops itself.
    let checkpoint = checkpoint_of_step(&fixture, 8);
    fixture.write("cut/checkpoint.safetensors", &checkpoint);
    let summary = train(&fixture, "--out @cut --resume").json();
    let resumed = events(&fixture.path("cut/log.jsonl"));
    let again = resumed.iter().position(|event| event["first_step"] == 8).unwrap();
    let without: Vec<Value> = resumed
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != again)
        .map(|(_, event)| timeless(event.clone()))
        .collect();
    assert_eq!(without, whole.into_iter().map(timeless).collect::<Vec<_>>());
    assert_eq!(summary["steps"], 12);

    // A new run starts a new log.
    train(&fixture, "--out @cut --steps 2 --eval-steps 0").json();
    assert_eq!(events(&fixture.path("cut/log.jsonl")).len(), 1 + 2 + 1 + 1);
}

/// The checkpoint that the run of [`task`] writes at `step`.
fn checkpoint_of_step(fixture: &Fixture, step: u64) -> Vec<u8> {
    use crate::train::{Event, Reporter, TaskData, TrainConfig, Trainer};

    struct Copy<'a>(&'a Path, u64, Vec<u8>);
    impl Reporter for Copy<'_> {
        fn event(&mut self, event: &Event<'_>) {
            if *event == (Event::Saved { step: self.1 }) {
                self.2 = std::fs::read(self.0).unwrap();
            }
        }
    }
    let config = TrainConfig::load(&fixture.path("own.toml"), &[]).unwrap();
    let image = crate::base::Image::new(&fixture.read("decoder.rpb"));
    let base = image.base().unwrap();
    let data = TaskData::load(&config, &base).unwrap();
    let network = rankpatch_format::write::Network::read(&base);
    let path = fixture.path("copied.safetensors");
    let mut copy = Copy(&path, step, Vec::new());
    Trainer::new(config, &network, data).unwrap().run(&mut copy, Some(&path)).unwrap();
    copy.2
}

#[test]
fn ranks_are_told_before_and_after_training() {
    let fixture = Fixture::new();
    task(&fixture);
    let pissa = "--rank 3 --alpha 5 --init-lora-weights pissa";
    let plan = train(&fixture, &format!("--out @out {pissa} --dry-run")).json();
    let summary = train(&fixture, &format!("--out @out {pissa}")).json();
    for key in ["payload_bytes", "adapter_file_bytes", "trained"] {
        assert_eq!(plan[key], summary[key], "{key}");
    }
    let ranks = |summary: &Value| -> Vec<u64> {
        let sites = summary["per_site"].as_array().unwrap().iter();
        sites.map(|site| site["rank"].as_u64().unwrap()).collect()
    };
    assert_eq!(ranks(&summary), [6; 14], "twice the rank, since the base stays whole");
    assert_eq!(plan["sites"][0]["rank"], 6);

    let trimmed = train(&fixture, &format!("--out @out {pissa} --explained-variance 0.8")).json();
    assert!(ranks(&trimmed).iter().all(|rank| *rank < 6), "{trimmed}");
    assert!(trimmed["adapter_file_bytes"].as_u64() < summary["adapter_file_bytes"].as_u64());
    let report = fixture.run("inspect @out/own.rpa --base @decoder.rpb --format json").json();
    let written = report["sites"].as_array().unwrap().iter().map(|site| site["rank"].as_u64().unwrap());
    assert_eq!(written.collect::<Vec<_>>(), ranks(&trimmed));
    for site in trimmed["per_site"].as_array().unwrap() {
        let values: Vec<f64> =
            site["singular_values"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]) && site["norm_ratio"].as_f64() > Some(0.0));
    }
    let metric = &trimmed["metric"];
    assert_eq!(metric["after_training"]["step"], 10);
    for value in [
        &metric["adapter_float_device"],
        &metric["after_training"]["float_device"],
        &metric["after_training"]["device"],
    ] {
        assert!(value.is_number(), "{metric}");
    }

    // The arena of this base has room for a rank of 16.
    let refused = fixture.run("train @own.toml --out @wide --rank 12 --init-lora-weights pissa");
    refused.fails(exit::BAD_INPUT, "rank");
    assert!(!fixture.path("wide").exists(), "nothing was trained");
}

#[test]
fn runs_are_compared_in_the_order_given() {
    let fixture = Fixture::new();
    task(&fixture);
    let first = train(&fixture, "--out @z --rank 2 --steps 6").json();
    let second = train(&fixture, "--out @a --rank 3").json();
    let compared = fixture.run("compare @z @a --format json").json();
    for (row, (summary, folder)) in compared.as_array().unwrap().iter().zip([(&first, "z"), (&second, "a")]) {
        assert_eq!(row["run"], fixture.path(folder).to_str().unwrap());
        for key in
            ["task", "base", "rank", "trained", "adapter_file_bytes", "metric", "steps", "training_seconds"]
        {
            assert!(!summary[key].is_null() && row[key] == summary[key], "{key}: {row} {summary}");
        }
    }
    assert_eq!(compared.as_array().unwrap().len(), 2);
    let table = fixture.run("compare @z @a").text();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows.len(), rows[0].len()), (3, 12), "{table}");
    for (row, (rank, steps)) in rows[1..].iter().zip([("2", "6"), ("3", "12")]) {
        assert_eq!(
            (row[1], row[2], row[3], row[4], row[10]),
            ("own", "tiny-decoder", "accuracy", rank, steps),
            "{table}"
        );
        assert_eq!(row[7], "-", "the base has no head");
    }

    fixture.write("a/summary.json", b"{\"task\": \"own\"}");
    fixture
        .run("compare @z @a")
        .fails(exit::BAD_INPUT, "a/summary.json: content: expected the summary of a run");
    std::fs::remove_file(fixture.path("a/summary.json")).unwrap();
    let expected = "a: expected the output folder of a finished run, found a folder without summary.json";
    fixture.run("compare @z @a").fails(exit::BAD_INPUT, expected);
    fixture.run("compare @z @nowhere").fails(exit::BAD_INPUT, "nowhere: expected the output folder");
    fixture
        .run("compare @own.toml")
        .fails(exit::BAD_INPUT, "own.toml: expected the output folder of a finished run, found a file");
    rankpatch("compare").fails(exit::USAGE, "<RUN>...");
}

#[test]
fn shells_can_read_their_completions() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = rankpatch(&format!("completions {shell}")).text();
        for word in ["compare", "learning-rate"] {
            assert!(script.contains(word), "{shell}: {word} is missing");
        }
        std::fs::write(folder.path().join(shell), script).unwrap();
    }
    let script = folder.path().join("bash");
    assert!(Command::new("bash").arg("-n").arg(&script).status().unwrap().success());
    let sourced = Command::new("bash")
        .args(["--norc", "-c", "source \"$1\" && complete -p rankpatch", "bash"])
        .arg(&script)
        .output()
        .unwrap();
    let found = String::from_utf8_lossy(&sourced.stdout).into_owned();
    assert!(sourced.status.success() && found.trim_end().ends_with("rankpatch"), "{found}");
    rankpatch("completions tcsh")
        .fails(exit::USAGE, "[possible values: bash, elvish, fish, powershell, zsh]");
}
