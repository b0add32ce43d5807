//! Bases that devices do not run, DeBERTa: they train, are measured in float and leave a PEFT folder, alone and many at once;
//! what needs the device's code says why there is none.

use std::fs;

use serde_json::{Value, json};

use super::hub::folder;
use super::{Fixture, exit};

/// A DeBERTa with the tokenizer of another model, the small decoder, and tasks of two classes: `hats` and `mats` on the former,
/// `own` on the latter.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.path("model")).unwrap();
    for (family, file) in
        [("deberta-v3", "config.json"), ("deberta-v3", "model.safetensors"), ("bert", "tokenizer.json")]
    {
        fs::copy(folder(family).join(file), fixture.path("model").join(file)).unwrap();
    }
    let line =
        |i: usize| format!("{{\"text\": \"the {0} sat\", \"label\": \"{0}\"}}\n", ["cat", "hat"][i % 2]);
    let lines: String = (0..24).map(line).collect();
    fixture.write("texts.jsonl", lines.as_bytes());
    let modules = "target_modules = [\"query_proj\", \"key_proj\"]\ndropout = 0.1\n";
    for (task, base, rest) in [
        ("hats", "model", &format!("rank = 2\n{modules}")),
        ("mats", "model", &format!("rank = 3\nseed = 5\nsteps = 6\nlr = 1e-2\n{modules}")),
        ("own", "decoder.rpb", &"rank = 2\n".to_owned()),
    ] {
        let steps = if rest.contains("steps") { "" } else { "steps = 4\n" };
        let text = format!(
            "task = \"{task}\"\nbase = \"{base}\"\ndataset = \"jsonl\"\ndata = \"texts.jsonl\"\nbatch_size = 4\nalpha = 5\n\
             eval_steps = 2\nsave_steps = 2\ndevice = \"cpu\"\n{steps}{rest}"
        );
        fixture.write(&format!("{task}.toml"), text.as_bytes());
    }
    fixture
}

const REFUSED: &str = "operator 2 is a table appended to rows, expected one that devices run";

#[test]
fn it_trains_into_a_peft_folder() {
    let fixture = fixture();
    let plan = fixture.run("train @hats.toml --dry-run --format json").json();
    assert_eq!(plan["sites"].as_array().unwrap().len(), 4);
    assert!(plan["adapter_file_bytes"].is_null() && plan["payload_bytes"].is_null(), "{plan}");
    assert_eq!(plan["first_quantized_step"], plan["steps"], "nothing is rounded");
    let text = fixture.run("train @hats.toml --dry-run").text();
    assert!(text.contains("none, a PEFT folder only") && text.contains("none of them quantization-aware"));

    // What an earlier run on another base left is not this one's.
    fs::create_dir_all(fixture.path("out")).unwrap();
    fixture.write("out/hats.rpa", b"old");
    let trained = fixture.run("train @hats.toml -o @out --format json").json();
    assert_eq!((trained["sites"].as_u64(), trained["metric"]["name"].as_str()), (Some(4), Some("accuracy")));
    for (key, expected) in [("trained", &plan["trained"]), ("steps", &plan["steps"])] {
        assert_eq!(&trained[key], expected, "{key}");
    }
    assert_eq!(trained["metric"]["examples"], plan["test_examples"]);
    for key in ["adapter", "adapter_file_bytes", "payload_bytes", "self_test_digest"] {
        assert!(trained.get(key).is_none(), "{key} in {trained}");
    }
    assert!(trained["metric"].get("adapter_device").is_none());
    assert_eq!(trained["per_site"].as_array().unwrap().len(), 4);
    let written: Value = serde_json::from_slice(&fixture.read("out/summary.json")).unwrap();
    assert_eq!(written, trained);
    let folder = fs::read_dir(fixture.path("out/peft")).unwrap();
    let bytes: u64 = folder.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(trained["peft_bytes"].as_u64(), Some(bytes));
    for file in ["peft/adapter_model.safetensors", "log.jsonl", "report.html", "checkpoint.safetensors"] {
        assert!(fixture.path("out").join(file).is_file(), "{file}");
    }
    assert!(!fixture.path("out/hats.rpa").exists());
    let page = String::from_utf8(fixture.read("out/report.html")).unwrap();
    assert!(page.contains("Accuracy in float") && page.matches("<figure").count() == 4, "{page}");
    let text = fixture.run("train @hats.toml -o @out").text();
    for expected in ["none: devices do not run this base", "adapter in float", "report.html"] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
}

#[test]
fn it_resumes_from_its_checkpoint() {
    let fixture = fixture();
    fixture.run("train @hats.toml -o @whole").text();
    fixture.run("train @hats.toml -o @out").text();
    fs::remove_dir_all(fixture.path("out/peft")).unwrap();
    fixture.run("train @hats.toml -o @out --resume").text();
    let tensors = |run: &str| fixture.read(&format!("{run}/peft/adapter_model.safetensors"));
    assert!(tensors("out") == tensors("whole"));
}

#[test]
fn it_is_compared_with_any_run() {
    let fixture = fixture();
    let host = fixture.run("train @hats.toml -o @hats --format json").json();
    let device = fixture.run("train @own.toml -o @own --format json").json();
    let compared = fixture.run("compare @hats @own --format json").json();
    for (row, (summary, folder)) in
        compared.as_array().unwrap().iter().zip([(&host, "hats"), (&device, "own")])
    {
        let (mut row, mut summary) = (row.clone(), summary.clone());
        let run = row.as_object_mut().unwrap().remove("run").unwrap();
        // Their singular values are read back from text, which costs last digits.
        for fields in [&mut row, &mut summary] {
            assert_eq!(fields["per_site"].as_array_mut().map(|sites| sites.drain(..).len() > 3), Some(true));
        }
        assert_eq!((run.as_str(), row), (fixture.path(folder).to_str(), summary));
    }
    let table = fixture.run("compare @hats @own").text();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.iter().all(|row| row.len() == 12), "{table}");
    assert_eq!(rows[1][6..8], ["-", "-"], "{table}");
    assert_eq!((rows[1][9], rows[1][10]), ("-", "4"), "{table}");
    let float = host["metric"]["adapter_float"].as_f64().unwrap();
    assert_eq!(rows[1][8], format!("{float:.4}"));
    assert_ne!(rows[2][9], "-", "{table}");
}

#[test]
fn it_is_measured_in_float() {
    let fixture = fixture();
    let trained = fixture.run("train @mats.toml -o @out --format json").json();
    let expected = &trained["metric"]["adapter_float"];
    for rest in ["--on float --adapter @out/peft", "--on float --adapter @out", "--adapter @out"] {
        let found = fixture.run(&format!("eval --task @mats.toml {rest} --format json")).json();
        assert_eq!(&found["metric"]["value"], expected, "{rest}");
        assert_eq!((&found["on"], &found["mode"]), (&json!("float"), &Value::Null));
    }
    let eval = |rest: &str| fixture.run(&format!("eval --task @mats.toml {rest}"));
    for rest in
        ["--on device --adapter @out", "--on device-code --adapter @out/peft", "--merged --adapter @out"]
    {
        let ran = eval(rest);
        assert!(ran.err.contains("hint: --on float"), "{}", ran.err);
        ran.fails(exit::BAD_INPUT, REFUSED);
    }
    eval("").fails(exit::BAD_INPUT, "expected 2 classes, found 0");
    eval("--adapter @decoder.rpa").fails(exit::BAD_INPUT, "expected a PEFT folder");
    eval("--adapter @nowhere").fails(exit::BAD_INPUT, "nowhere: expected a PEFT folder");
    eval("--adapter @model").fails(exit::BAD_INPUT, "adapter_config.json");
    fixture.run("base build --from @model -o @model.rpb").fails(exit::BAD_INPUT, REFUSED);
    fixture.run("export --from @out --base @model -o @x.rpa").fails(exit::BAD_INPUT, REFUSED);
    // The output folder of a run serves for bases that devices run, too.
    let trained = fixture.run("train @own.toml -o @own --format json").json();
    let found = fixture.run("eval --task @own.toml --adapter @own --format json").json();
    assert_eq!(found["metric"]["value"], trained["metric"]["adapter_device"]);
}

#[test]
fn many_get_what_each_gets_alone() {
    let fixture = fixture();
    for task in ["hats", "mats"] {
        fixture.run(&format!("train @{task}.toml -o @alone/{task}")).text();
    }
    let status = |results: &Value| -> Vec<String> {
        let tasks = results["tasks"].as_array().unwrap().iter();
        tasks
            .map(|task| format!("{} {}", task["task"].as_str().unwrap(), task["status"].as_str().unwrap()))
            .collect()
    };
    let done = |results: &Value| -> Vec<bool> {
        results["tasks"].as_array().unwrap().iter().map(|task| task["done"].as_bool().unwrap()).collect()
    };
    fixture.write("all.toml", b"tasks = [\"mats.toml\", \"own.toml\", \"hats.toml\"]\n");
    let plan = fixture.run("train @all.toml -o @many --dry-run --format json").json();
    assert_eq!(status(&plan), ["mats planned", "own planned", "hats planned"]);
    assert_eq!(done(&plan), [false; 3]);
    assert!(!fixture.path("many").exists(), "a dry run writes nothing");

    let results = fixture.run("train @all.toml -o @many --format json").json();
    assert_eq!(status(&results), ["mats trained", "own trained", "hats trained"]);
    for (task, planned) in [("hats", &plan["tasks"][2]["plan"]), ("mats", &plan["tasks"][0]["plan"])] {
        for file in ["peft/adapter_model.safetensors", "peft/adapter_config.json", "run.sha256"] {
            let of = |folder: &str| fixture.read(&format!("{folder}/{task}/{file}"));
            assert!(of("many") == of("alone"), "{task}: {file}");
        }
        let summary: Value =
            serde_json::from_slice(&fixture.read(&format!("many/{task}/summary.json"))).unwrap();
        assert_eq!(summary["trained"], planned["trained"]);
        let log = String::from_utf8(fixture.read(&format!("many/{task}/log.jsonl"))).unwrap();
        let steps = log.lines().filter(|line| line.contains("\"event\":\"step\"")).count();
        assert_eq!(Some(steps as u64), summary["steps"].as_u64(), "{log}");
    }

    // What is there is kept; a base that is only trained on hosts has no file whose absence would tell.
    let again = fixture.run("train @all.toml -o @many --format json").json();
    assert_eq!(status(&again), ["mats skipped", "own skipped", "hats skipped"]);
    fs::remove_dir_all(fixture.path("many/mats/peft")).unwrap();
    let table = fixture.run("train @all.toml -o @many --dry-run").text();
    let was_done: Vec<bool> = table.lines().skip(1).map(|line| line.ends_with("was done")).collect();
    assert_eq!(was_done, [false, true, true], "{table}");
    let again = fixture.run("train @all.toml -o @many --format json").json();
    assert_eq!(status(&again), ["mats trained", "own skipped", "hats skipped"]);

    // Shards, of files and of manifests.
    let mut parts = Vec::new();
    for shard in ["1/2", "2/2"] {
        let line = format!("train @mats.toml @hats.toml -o @parts --shard {shard} --format json");
        parts.extend(status(&fixture.run(&line).json()));
    }
    parts.sort();
    assert_eq!(parts, ["hats trained", "mats trained"]);
    let tensors = |run: &str| fixture.read(&format!("{run}/hats/peft/adapter_model.safetensors"));
    assert!(tensors("parts") == tensors("alone"));
    let text = fixture.run("train @mats.toml @hats.toml -o @parts").text();
    assert!(text.contains("hats: was done, accuracy") && text.contains("in float, "), "{text}");
    assert!(text.lines().all(|line| line.ends_with("peft")), "{text}");
}

#[test]
fn a_plan_of_many_tells_what_cannot_be_trained() {
    let fixture = fixture();
    let text = String::from_utf8(fixture.read("hats.toml")).unwrap().replace("hats", "hit");
    fixture.write("hit.toml", text.replace("query_proj", "nothing").replace("key_proj", "none").as_bytes());
    let ran = fixture.run("train @hats.toml @hit.toml --dry-run -o @out");
    assert_eq!(ran.code, exit::FAILURE, "{}", ran.err);
    assert!(ran.err.contains("1 of 2 tasks failed, the others can be trained"), "{}", ran.err);
    let rows: Vec<&str> = ran.out.lines().collect();
    assert!(
        rows.len() == 3 && rows[1].starts_with("hats") && rows[2].starts_with("hit: failed: "),
        "{}",
        ran.out
    );
    assert!(!fixture.path("out").exists());
}
