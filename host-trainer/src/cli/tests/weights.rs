//! Runs that train weights: full fine-tuning beside an adapter, and a base from scratch that an adapter is then trained for.

use serde_json::Value;

use super::{Fixture, exit};
use crate::base::Image;

fn task(fixture: &Fixture) {
    let lines: Vec<String> = (0..60)
        .map(|at| format!("{},{}", ["ab", "c"][at % 2].repeat(1 + at % 3), ["many", "few"][at % 2]))
        .collect();
    fixture.write("own.csv", format!("text,label\n{}\n", lines.join("\n")).as_bytes());
    let task = "task = \"own\"\nbase = \"decoder.rpb\"\ndataset = \"csv\"\ndata = \"own.csv\"\nsteps = 30\nbatch_size = 8\ndevice = \"cpu\"\n";
    fixture.write("own.toml", task.as_bytes());
}

#[test]
fn full_fine_tuning_is_compared_with_an_adapter() {
    let fixture = Fixture::new();
    task(&fixture);
    let lora = fixture.run("train @own.toml --format json --out @lora").json();
    let full = fixture.run("train @own.toml --format json --method full --lr 2e-3 --out @full").json();
    assert_eq!((&lora["method"], &full["method"]), (&Value::from("lora"), &Value::from("full")));
    assert_eq!(lora["base_id"], full["base_id"]);
    assert!(full["trained"].as_u64().unwrap() > lora["trained"].as_u64().unwrap());
    assert!(full["metric"]["adapter_float"].as_f64().unwrap() > 0.8, "{full}");
    assert!(full.get("adapter").is_none() && full.get("peft").is_none(), "{full}");
    assert!(!fixture.path("full/own.rpa").exists() && fixture.path("lora/own.rpa").exists());
    let report = String::from_utf8(fixture.read("full/report.html")).unwrap();
    assert!(report.contains("All weights of") && report.contains("in int8 with the device"), "{report}");

    let table = fixture.run("compare @lora @full").text();
    let row = table.lines().find(|line| line.contains("/full")).unwrap();
    assert!(row.contains(" full "), "{table}");
    let runs = fixture.run("compare @lora @full --format json").json();
    assert_eq!(runs[1]["metric"], full["metric"]);

    // The head reads the mean of all rows, so the network of the run is a base with classes, which measures as the run said.
    let built = fixture
        .run("base build --from @full/model --target cortex-m0 --output @own.rpb --format json")
        .json();
    assert_eq!(built["name"], "tiny-decoder");
    let network =
        rankpatch_format::write::Network::read(&Image::new(&fixture.read("own.rpb")).base().unwrap());
    assert_eq!(network.labels, ["few", "many"]);
    assert_eq!(fixture.run("sim --base @own.rpb --text cc --format json").json()["label"], "few");

    let plan = fixture.run("train @own.toml --method full --dry-run").text();
    assert!(plan.contains("none, another base: its weights are trained"), "{plan}");
    fixture.run("train @own.toml --method half").fails(exit::USAGE, "method: expected \"lora\" or \"full\"");
}

/// Tasks of one base, some in full: those have the base for themselves.
#[test]
fn full_fine_tuning_goes_along_with_other_tasks() {
    let fixture = Fixture::new();
    task(&fixture);
    let text = String::from_utf8(fixture.read("own.toml")).unwrap();
    for (name, rest) in
        [("a", ""), ("b", "method = \"full\"\nlr = 2e-3\n"), ("c", "method = \"full\"\nlr = 1e-3\n")]
    {
        let own = text.replace("\"own\"", &format!("\"{name}\"")) + rest;
        fixture.write(&format!("{name}.toml"), own.as_bytes());
    }
    let command = "train @a.toml @b.toml @c.toml --format json --steps 5 --out @all";
    let done = fixture.run(command).json();
    let of = |at: usize, key: &str| done["tasks"][at][key].clone();
    assert_eq!([of(0, "status"), of(1, "status"), of(2, "status")], ["trained", "trained", "trained"]);
    let alone = fixture.run("train @b.toml --format json --steps 5 --out @alone").json();
    assert_eq!(of(1, "summary")["metric"], alone["metric"]);
    assert_eq!(
        fixture.read("all/b/model/network.safetensors"),
        fixture.read("alone/model/network.safetensors")
    );
    let again = fixture.run(command).json();
    assert_eq!(again["tasks"][2]["status"], "skipped");
}

/// From texts to an adapter for a base of one's own.
#[test]
fn a_base_from_scratch_takes_adapters() {
    let fixture = Fixture::new();
    let words = ["light on", "light off", "heater on", "radio off"];
    let lines: Vec<&str> = (0..80).map(|at| words[(at * at + at / 3) % 4]).collect();
    fixture.write("texts.txt", lines.join("\n").as_bytes());
    let shape = "[model]\nkind = \"decoder\"\nvocab_size = 264\ndim = 16\nhidden_dim = 24\nn_layers = 1\nn_heads = 2\ncontext = 16\n";
    let keys = "dataset = \"text\"\ndata = \"texts.txt\"\nsteps = 40\nbatch_size = 16\nlearning_rate = 1e-2\nwarmup_steps = 4\ndevice = \"cpu\"\n";
    fixture.write("base.toml", format!("name = \"mine\"\n{keys}{shape}").as_bytes());
    let made = fixture.run("pretrain @base.toml --out @mine --format json").json();
    assert_eq!((&made["base"], &made["steps"]), (&Value::from("mine"), &Value::from(40)));
    let (float, device) = (&made["metric"]["adapter_float"], &made["metric"]["adapter_device"]);
    let (float, device) = (float.as_f64().unwrap(), device.as_f64().unwrap());
    assert!((device / float - 1.0).abs() < 0.05, "{float} {device}");
    let built = fixture.run("base build --from @mine --output @mine.rpb --format json").json();
    assert_eq!(built["base_id"], made["base_id"]);
    let task = keys.replace("steps = 40", "steps = 5");
    fixture.write("task.toml", format!("task = \"t\"\nbase = \"mine.rpb\"\n{task}").as_bytes());
    let trained = fixture.run("train @task.toml --out @t --format json").json();
    assert_eq!(trained["base_id"], made["base_id"]);

    let first = fixture.read("mine/network.safetensors");
    fixture.run("pretrain @base.toml --out @again").text();
    assert!(first == fixture.read("again/network.safetensors"), "a run repeats itself");
    fixture
        .run("pretrain @base.toml --rank 4")
        .fails(exit::USAGE, "unknown key \"rank\" in the command line");
    fixture.run("pretrain @task.toml").fails(exit::USAGE, "does not set model");
}
