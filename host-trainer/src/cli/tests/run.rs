//! `sim`, `train` and `eval`: what runs.

use rankpatch_format::adapter::Pooling;
use rankpatch_format::digest::Digest;
use rankpatch_format::fixture;
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use serde_json::Value;

use super::{Fixture, exit, f32_file};
use crate::base::Image;
use crate::sim::{Input, Sampling, Simulator};

fn simulator(fixture: &Fixture, name: &str, adapter: Option<Mode>) -> Simulator {
    let simulator = Simulator::new(Image::new(&fixture.read(&format!("{name}.rpb")))).unwrap();
    match adapter {
        Some(mode) => simulator.with_adapter(fixture.read(&format!("{name}.rpa")), mode).unwrap(),
        None => simulator,
    }
}

#[test]
fn sim_continues_a_prompt() {
    let fixture = Fixture::new();
    let patched = fixture
        .run("sim --base @decoder.rpb --adapter @decoder.rpa --prompt abc --max-tokens 9 --format json")
        .json();
    let sampling = Sampling { max_tokens: 9, temperature: 0.0, seed: 1 };
    let expected =
        simulator(&fixture, "decoder", Some(Mode::Streamed)).generate("abc", sampling, |_| {}).unwrap();
    assert_eq!(patched["ids"], serde_json::json!(expected.ids));
    assert_eq!(patched["digest"], format!("{:#018x}", expected.digest));
    assert_eq!((patched["task"].as_str(), patched["mode"].as_str()), (Some("tiny"), Some("streamed")));
    assert_eq!(patched["weight_bytes_copied"], 0);
    let plain = fixture.run("sim --base @decoder.rpb --prompt abc --max-tokens 9 --format json").json();
    assert_ne!(plain["digest"], patched["digest"], "the adapter changes nothing");
    assert_eq!(plain["task"], Value::Null);
    let merged =
        "sim --base @decoder.rpb --adapter @decoder.rpa --merged --prompt abc --max-tokens 9 --format json";
    assert!(fixture.run(merged).json()["weight_bytes_copied"].as_u64().unwrap() > 0);
    let text = fixture.run("sim --base @decoder.rpb --prompt abc --max-tokens 3").text();
    assert!(text.starts_with("abc") && text.ends_with('\n'), "{text:?}");
    let warm = |seed: u32| {
        let line = format!(
            "sim --base @decoder.rpb --prompt a --temperature 1.5 --seed {seed} --max-tokens 12 --format json"
        );
        fixture.run(&line).json()["ids"].clone()
    };
    assert_eq!(warm(3), warm(3));
    assert_ne!(warm(3), warm(4));
}

#[test]
fn sim_runs_recordings() {
    let fixture = Fixture::new();
    let network = fixture::listener();
    fixture.write("listener.rpb", &network.write(Layout::RowMajor, 1).unwrap());
    let samples: Vec<i16> = (0..300).map(|at| (at * at * 31) as i16).collect();
    let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    fixture.write("sound.pcm", &bytes);
    let found = fixture.run("sim --base @listener.rpb --audio @sound.pcm --format json").json();
    let image = Image::build(&network, Layout::RowMajor, 1).unwrap();
    let simulator = Simulator::new(image).unwrap();
    let output = simulator.outputs(&[Input::Samples(&samples)]).unwrap().remove(0);
    assert_eq!(found["digest"], format!("{:#018x}", Digest::of(&output)));
    // The same as from the rows that the trainer sees.
    let base = simulator.base().unwrap();
    let rows = crate::features::rows(&base.front_end().unwrap(), &samples);
    assert_eq!(rows.len(), 10 * 9);
    assert_eq!(simulator.outputs(&[Input::Features(&rows)]).unwrap().remove(0), output);

    let text = fixture.run("inspect @listener.rpb").text();
    assert!(text.contains("samples at 8000 Hz, 60 a frame every 25; feature rows of width 9"), "{text}");
    let none = fixture.run("sim --base @encoder.rpb --audio @sound.pcm");
    none.fails(exit::BAD_INPUT, "expected a base that reads samples, found tiny-encoder");
    fixture.write("odd.pcm", &bytes[..7]);
    let odd = fixture.run("sim --base @listener.rpb --audio @odd.pcm");
    odd.fails(exit::BAD_INPUT, "expected an even number, found 7");
}

#[test]
fn sim_tells_spans() {
    let fixture = Fixture::new();
    let mut data = fixture::adapter(&fixture.decoder, &[(0, 3)], Some(3), 1.0, 5);
    let head = data.head.as_mut().unwrap();
    (head.pooling, head.labels) = (Pooling::Every, ["B-x", "I-x", "B-y"].map(String::from).to_vec());
    fixture.write("spans.rpa", &data.write().unwrap());
    let text = "ab,cd";
    let line = format!("sim --base @decoder.rpb --adapter @spans.rpa --text {text} --format json");
    let found = fixture.run(&line).json();
    let simulator = Simulator::new(Image::new(&fixture.read("decoder.rpb"))).unwrap();
    let simulator = simulator.with_adapter(fixture.read("spans.rpa"), Mode::Streamed).unwrap();
    let (spans, digest) = simulator.spans(text).unwrap();
    assert_eq!(found["digest"], format!("{digest:#018x}"));
    let told: Vec<&str> =
        found["spans"].as_array().unwrap().iter().map(|span| span["text"].as_str().unwrap()).collect();
    assert_eq!(told, spans.iter().map(|span| &text[span.start..span.end]).collect::<Vec<_>>());
    assert!(!told.is_empty());
    let table = fixture.run(&line.replace("--format json", "")).text();
    assert!(table.starts_with("span") && table.contains(&spans[0].kind), "{table}");
    let inspected = fixture.run("inspect @spans.rpa").text();
    assert!(inspected.contains("every"), "{inspected}");
}

#[test]
fn sim_runs_texts_and_features() {
    let fixture = Fixture::new();
    let rows: Vec<f32> = (0..4 * 9).map(|at| (at as f32 * 0.7).sin() * 3.0).collect();
    fixture.write("rows.f32", &f32_file(&rows));
    let found = fixture.run("sim --base @encoder.rpb --features @rows.f32 --format json").json();
    let output = simulator(&fixture, "encoder", None).outputs(&[Input::Features(&rows)]).unwrap().remove(0);
    assert_eq!(found["digest"], format!("{:#018x}", Digest::of(&output)));
    let argmax = found["argmax"].as_u64().unwrap();
    assert_eq!(found["label"], format!("class {argmax}"));
    assert!(output.iter().all(|value| *value <= output[argmax as usize]));

    let headed = fixture
        .run("sim --base @encoder.rpb --adapter @encoder.rpa --features @rows.f32 --format json")
        .json();
    assert_eq!(headed["values"].as_array().unwrap().len(), 3, "the head's outputs");
    let text = fixture.run("sim --base @encoder.rpb --features @rows.f32").text();
    assert!(text.starts_with("label    output") && text.contains("class 4"), "{text}");
    let text = fixture.run("sim --base @decoder.rpb --text abcab").text();
    assert!(text.starts_with("output") && text.contains("digest  0x") && text.contains("more"), "{text}");

    let tensor = safetensors::tensor::TensorView::new(
        safetensors::Dtype::F32,
        vec![2, 2, 9],
        &fixture.read("rows.f32"),
    )
    .map(|view| safetensors::serialize([("clips", view)], None).unwrap());
    fixture.write("clips.safetensors", &tensor.unwrap());
    let second =
        fixture.run("sim --base @encoder.rpb --features @clips.safetensors --index 1 --format json").json();
    let output =
        simulator(&fixture, "encoder", None).outputs(&[Input::Features(&rows[18..])]).unwrap().remove(0);
    assert_eq!(second["digest"], format!("{:#018x}", Digest::of(&output)));

    let run = |rest: &str| fixture.run(&format!("sim --base @{rest}"));
    run("encoder.rpb --features @clips.safetensors --index 2")
        .fails(exit::BAD_INPUT, "expected --index below 2, found 2");
    run("encoder.rpb --features @rows.f32 --rows 5")
        .fails(exit::BAD_INPUT, "rows.f32: expected 5 rows of 9 numbers, 45 in all, found 36");
    run("encoder.rpb --text abc").fails(exit::BAD_INPUT, "has no tokenizer");
    run("decoder.rpb --features @rows.f32").fails(exit::BAD_INPUT, "expected tokens, found 36 features");
    run("encoder.rpb --features @decoder.rpa").fails(exit::BAD_INPUT, "decoder.rpa: expected f32 numbers");
    run("decoder.rpb --adapter @encoder.rpa --text a").fails(exit::BAD_INPUT, "adapter is for another base");
    run(&format!("decoder.rpb --text {}", "x".repeat(40)))
        .fails(exit::BAD_INPUT, "expected 1..=24 rows, found");
    fixture.write("nan.f32", &f32_file(&[1.0, f32::NAN]));
    run("encoder.rpb --features @nan.f32")
        .fails(exit::BAD_INPUT, "number 1: expected a finite one, found NaN");
}

/// A task on the small decoder: names of three letters.
fn names_task(fixture: &Fixture) {
    let letters = ["a", "b", "c", "ab", "bc", "ca"];
    let names: Vec<String> = (0..1100).map(|at| [letters[at % 6], letters[at / 6 % 6]].concat()).collect();
    fixture.write("names.txt", names.join("\n").as_bytes());
    let task = "task = \"names\"\nbase = \"decoder.rpb\"\ndataset = \"names\"\ndata = \"names.txt\"\nsteps = 60\nbatch_size = 8\n";
    fixture.write("names.toml", task.as_bytes());
}

#[test]
fn a_task_is_trained_exported_and_measured() {
    let fixture = Fixture::new();
    names_task(&fixture);
    let ran = fixture.run("train @names.toml --out @out --rank 2 --lora_alpha 6 --learning-rate 2e-2 --device cpu --format json");
    assert!(
        ran.err.contains("training names on tiny-decoder") && ran.err.contains("step 60/60"),
        "{}",
        ran.err
    );
    let summary = ran.json();
    let metric = &summary["metric"];
    let value = |key: &str| metric[key].as_f64().unwrap();
    assert_eq!(
        (metric["name"].as_str(), metric["examples"].as_u64()),
        (Some("bits_per_character"), Some(1000))
    );
    assert!(value("adapter_device") < 0.7 * value("base"), "{metric}");
    assert!((value("adapter_device") / value("adapter_float") - 1.0).abs() < 0.05, "{metric}");
    assert_eq!((summary["rank"].as_u64(), summary["alpha"].as_f64()), (Some(2), Some(6.0)));
    for file in [
        "names.rpa",
        "summary.json",
        "log.jsonl",
        "report.html",
        "peft/adapter_config.json",
        "peft/adapter_model.safetensors",
    ] {
        assert!(fixture.path("out").join(file).is_file(), "{file} is missing");
    }
    let report = fixture.run("inspect @out/names.rpa --base @decoder.rpb --format json").json();
    assert_eq!(report["payload_bytes"], summary["payload_bytes"]);
    assert_eq!(report["self_test"]["digest"], summary["self_test_digest"]);

    let eval = |rest: &str| fixture.run(&format!("eval --task @names.toml {rest} --format json")).json();
    let device = eval("--adapter @out/names.rpa");
    assert_eq!(device["metric"]["value"], metric["adapter_device"]);
    assert_eq!((device["on"].as_str(), device["mode"].as_str()), (Some("device-code"), Some("streamed")));
    assert_eq!(eval("")["metric"]["value"], metric["base"]);
    let float = eval("--adapter @out/peft --on float")["metric"]["value"].as_f64().unwrap();
    assert!((float / value("adapter_float") - 1.0).abs() < 1e-3, "{float}");
    let merged = eval("--adapter @out/names.rpa --merged")["metric"]["value"].as_f64().unwrap();
    assert!((merged / value("adapter_device") - 1.0).abs() < 0.1, "{merged}");
    let folder = eval("--adapter @out/peft");
    assert_eq!(folder["metric"]["value"], metric["adapter_device"], "a PEFT folder exports to the same file");
}

/// Users' own files: prompts and completions, classes, texts in windows, feature arrays.
#[test]
fn own_data_are_trained_on() {
    let fixture = Fixture::new();
    let task = |name: &str, rest: &str| {
        let base = if name == "arrays" { "encoder" } else { "decoder" };
        let text = format!(
            "task = \"{name}\"\nbase = \"{base}.rpb\"\nsteps = 40\nbatch_size = 8\nlr = 2e-2\ndevice = \"cpu\"\n{rest}"
        );
        fixture.write(&format!("{name}.toml"), text.as_bytes());
        fixture.run(&format!("train @{name}.toml --out @{name} --format json")).json()
    };
    let lines = |line: &dyn Fn(usize) -> String| (0..60).map(|at| line(at) + "\n").collect::<String>();
    let letter = |at: usize| ["a", "b", "c"][at % 3];
    let pairs = lines(&|at| {
        format!("{{\"prompt\": \"{}\", \"completion\": \"{}\"}}", letter(at).repeat(2), letter(at + 1))
    });
    fixture.write("pairs.jsonl", pairs.as_bytes());
    let pairs = task("pairs", "dataset = \"jsonl\"\ndata = \"pairs.jsonl\"\n");
    assert_eq!(pairs["metric"]["examples"], 6);
    let found = pairs["metric"]["adapter_device"].as_f64().unwrap();
    assert!(found < 0.5 * pairs["metric"]["base"].as_f64().unwrap(), "{pairs}");
    let said =
        fixture.run("sim --base @decoder.rpb --adapter @pairs/pairs.rpa --prompt bb --max-tokens 2").text();
    assert!(said.starts_with("bb c"), "{said:?}");

    let classes = lines(&|at| {
        format!("{},{}", letter(at).repeat(1 + at % 4), if at % 3 == 1 { "beta" } else { "other" })
    });
    fixture.write("classes.csv", format!("text,label\n{classes}").as_bytes());
    let classes = task("classes", "dataset = \"csv\"\ndata = \"classes.csv\"\ntest_fraction = 0.25\n");
    assert_eq!(
        (classes["metric"]["name"].as_str(), classes["metric"]["examples"].as_u64()),
        (Some("accuracy"), Some(15))
    );
    assert_eq!(classes["metric"]["adapter_device"], 1.0);

    fixture.write("text.txt", lines(&|at| ["abcabc", "cab"][at % 2].into()).as_bytes());
    let text = task("text", "dataset = \"text\"\ndata = \"text.txt\"\npacking = true\nmax_length = 12\n");
    let found = text["metric"]["adapter_device"].as_f64().unwrap();
    assert!(found < 0.8 * text["metric"]["base"].as_f64().unwrap(), "{text}");

    let rows: Vec<f32> =
        (0..40).flat_map(|at| (0..18).map(move |i| if at % 2 == i % 2 { 1.5 } else { -0.5 })).collect();
    let labels: Vec<u8> = (0..40).map(|at| at % 2).collect();
    let bytes = f32_file(&rows);
    let views = [
        (
            "features",
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![40, 2, 9], &bytes).unwrap(),
        ),
        ("labels", safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![40], &labels).unwrap()),
    ];
    fixture.write("arrays.safetensors", &safetensors::serialize(views, None).unwrap());
    let arrays = task("arrays", "dataset = \"features\"\ndata = \"arrays.safetensors\"\n");
    assert_eq!(arrays["metric"]["adapter_device"], 1.0, "{arrays}");
}

#[test]
fn unfit_data_end_with_one_message() {
    let fixture = Fixture::new();
    let train = |data: &[u8], rest: &str, code: u8, expected: &str| {
        fixture.write("own.jsonl", data);
        fixture.write(
            "own.toml",
            b"task = \"own\"\nbase = \"decoder.rpb\"\ndataset = \"jsonl\"\ndata = \"own.jsonl\"\nsteps = 2\n",
        );
        fixture.run(&format!("train @own.toml --out @out {rest}")).fails(code, expected);
        assert!(!fixture.path("out/own.rpa").exists(), "a run that failed leaves no adapter");
        assert!(!fixture.path("out/log.jsonl").exists(), "only a run that starts leaves a log");
    };
    let long = format!("{{\"text\": \"{}\"}}\n", "abc".repeat(40)).repeat(3);
    train(b"", "", exit::BAD_INPUT, "expected at least one example for training, found none");
    train(b"{\"text\": \"a\"}\n", "", exit::BAD_INPUT, "expected at least one test example, found none");
    train(
        b"{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"b\", \"label\": \"x\"}\n",
        "",
        exit::BAD_INPUT,
        "found only \"x\"",
    );
    train(long.as_bytes(), "", exit::BAD_INPUT, "rows of input (max_length cuts texts), found");
    let pairs = b"{\"prompt\": \"abcabcabc\", \"completion\": \"a\"}\n".repeat(3);
    train(&pairs, "--max-length 2", exit::BAD_INPUT, "expected something to learn within max_length = 2");
    train(
        &pairs,
        "--max-length 4 --packing true",
        exit::BAD_INPUT,
        "expected texts without prompts, for packing",
    );
    train(&pairs, "--device cuda:63", exit::FAILURE, "found \"cuda:63\"");
    let unseen = b"{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"b\", \"label\": \"y\"}\n";
    fixture.write("test.jsonl", b"{\"text\": \"a\", \"label\": \"z\"}\n");
    train(
        unseen,
        "--test-data @test.jsonl",
        exit::BAD_INPUT,
        "expected one of the training part: x, y, found z",
    );
    fixture.write("own.jsonl", long.as_bytes());
    let ran = fixture.run("train @own.toml --out @out --max-length 9 --learning-rate 1e30 --steps 50");
    assert_eq!((ran.code, ran.out.as_str()), (exit::FAILURE, ""), "{}", ran.err);
    assert!(ran.err.contains("\nerror: the training has diverged"), "{}", ran.err);
    assert!(!fixture.path("out/own.rpa").exists() && fixture.path("out/log.jsonl").exists());
}

#[test]
fn a_dry_run_says_what_would_be_trained() {
    let fixture = Fixture::new();
    names_task(&fixture);
    let plan = fixture.run("train @names.toml --out @out --rank 3 --dry-run --format json").json();
    assert!(!fixture.path("out").exists(), "a dry run writes nothing");
    let numbers = |site: &Value| {
        site["rank"].as_u64().unwrap()
            * (site["in_features"].as_u64().unwrap() + site["out_features"].as_u64().unwrap())
    };
    let sum: u64 = plan["sites"].as_array().unwrap().iter().map(numbers).sum();
    assert_eq!(
        (plan["trained"].as_u64(), plan["steps"].as_u64(), plan["first_quantized_step"].as_u64()),
        (Some(sum), Some(60), Some(48))
    );
    assert_eq!(plan["memory"]["trained_bytes"].as_u64(), Some(16 * sum));
    let summary = fixture.run("train @names.toml --out @out --rank 3 --format json").json();
    for key in ["payload_bytes", "adapter_file_bytes"] {
        assert_eq!(plan[key], summary[key], "{key}");
    }
    let text = fixture.run("train @names.toml --rank 3 --dry-run").text();
    assert!(
        text.contains("60 of 8 examples, quantization-aware from step 48") && text.contains("layers.0"),
        "{text}"
    );
    let trimmed = fixture.run("train @names.toml --rank 3 --explained-variance 0.9 --dry-run").text();
    let bytes =
        |text: &str| text.lines().find(|line| line.starts_with("file ")).unwrap()[4..].trim().to_owned();
    assert_eq!(bytes(&trimmed), format!("at most {}", bytes(&text)));

    // A head alone is an adapter too.
    let lines = ["{\"text\":\"abc\",\"label\":0}\n", "{\"text\":\"cab\",\"label\":1}\n"].concat().repeat(10);
    fixture.write("own.jsonl", lines.as_bytes());
    let line = "train @names.toml --out @head --dataset jsonl --data @own.jsonl --target-modules []";
    let plan = fixture.run(&format!("{line} --dry-run --format json")).json();
    let text = fixture.run(&format!("{line} --dry-run")).text();
    let summary = fixture.run(&format!("{line} --format json")).json();
    assert_eq!(plan["adapter_file_bytes"], summary["adapter_file_bytes"]);
    let bytes = summary["adapter_file_bytes"].as_u64().unwrap();
    assert!(text.contains(&format!("{bytes} bytes, payload ")), "{text}");
}

#[test]
fn biases_pass_through_every_command() {
    let fixture = Fixture::new();
    names_task(&fixture);
    let train =
        "train @names.toml --out @out --rank 2 --bias all --steps 40 --learning-rate 2e-2 --device cpu";
    let plan = fixture.run(&format!("{train} --dry-run --format json")).json();
    assert_eq!(plan["biases"], serde_json::json!([3, 30]));
    let text = fixture.run(&format!("{train} --dry-run")).text();
    assert!(text.contains("sites and 3 biases (30 numbers), beside"), "{text}");
    let summary = fixture.run(&format!("{train} --format json")).json();
    assert_eq!(plan["adapter_file_bytes"], summary["adapter_file_bytes"]);

    let inspect = "inspect @out/names.rpa --base @decoder.rpb";
    let found = fixture.run(&format!("{inspect} --format json")).json();
    assert_eq!(found["method"], "LoraInt8Biases");
    let lengths: Vec<u64> =
        found["biases"].as_array().unwrap().iter().map(|bias| bias["length"].as_u64().unwrap()).collect();
    assert_eq!(lengths, [12, 6, 12]);
    assert_eq!(found["self_test"]["check"]["equal"], true);
    let section = found["sections"].as_array().unwrap().iter().find(|section| section["name"] == "biases");
    // 30 numbers in 128 bytes, and three entries of two bytes.
    assert_eq!(section.unwrap()["bytes"], 134);
    assert!(fixture.run(inspect).text().contains("3 of the base, 30 numbers"));

    // Through the PEFT folder, and through the folder of what is in the file: the same biases.
    let sim = |file: &str| {
        let line =
            format!("sim --base @decoder.rpb --adapter @{file} --prompt a --max-tokens 9 --format json");
        fixture.run(&line).json()["digest"].clone()
    };
    fixture.run("export --from @out/peft --base @decoder.rpb -o @again.rpa --sequence 1").text();
    assert!(fixture.read("again.rpa") == fixture.read("out/names.rpa"));
    fixture.run("export --from @again.rpa --base @decoder.rpb -o @folder").text();
    let config: Value = serde_json::from_slice(&fixture.read("folder/adapter_config.json")).unwrap();
    // A file does not say what was asked for: all of these are biases of adapted sites.
    assert_eq!(config["bias"], "lora_only");
    let tensors = fixture.read("folder/adapter_model.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&tensors).unwrap();
    let own = fixture.read("out/peft/adapter_model.safetensors");
    let own = safetensors::SafeTensors::deserialize(&own).unwrap();
    let name = "base_model.model.model.layers.1.mlp.down_proj.base_layer.bias";
    assert_eq!(tensors.tensor(name).unwrap().data(), own.tensor(name).unwrap().data());
    let plain = fixture.run("sim --base @decoder.rpb --prompt a --max-tokens 9 --format json").json();
    assert!(sim("again.rpa") == sim("out/names.rpa") && sim("again.rpa") != plain["digest"]);
}

#[test]
fn progress_is_json_on_request() {
    let fixture = Fixture::new();
    names_task(&fixture);
    let ran = fixture.run("train @names.toml --out @out --steps 4 --device cpu --progress json");
    let events: Vec<Value> = ran.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!((names[0], names.iter().filter(|name| **name == "step").count()), ("started", 4));
    assert_eq!(names.last(), Some(&"finished"));
    assert!(ran.text().contains("bits_per_character"));
}

#[test]
fn wrong_tasks_are_refused_with_their_own_codes() {
    let fixture = Fixture::new();
    names_task(&fixture);
    let train = |rest: &str| fixture.run(&format!("train @names.toml --out @out {rest}"));
    train("--rank 0").fails(exit::USAGE, "rank: expected a whole number, 1 or more, found");
    train("--target-modules nothing").fails(exit::USAGE, "target_modules binds to nothing");
    train("--data @nowhere.txt").fails(exit::BAD_INPUT, "nowhere.txt");
    train("--base @encoder.rpb").fails(exit::BAD_INPUT, "expected a base that reads text");
    train("--base @decoder.rpa").fails(exit::BAD_INPUT, "decoder.rpa");
    train("--resume").fails(exit::BAD_INPUT, "checkpoint.safetensors");
    fixture.write("typo.toml", b"task = \"x\"\nlearning_rat = 1\n");
    fixture.run("train @typo.toml").fails(exit::USAGE, "expected learning_rate");
    assert!(!fixture.path("out").exists(), "a run that did not start leaves nothing");
    fixture
        .run("eval --task @names.toml --adapter @encoder.rpa")
        .fails(exit::BAD_INPUT, "adapter is for another base");
}
