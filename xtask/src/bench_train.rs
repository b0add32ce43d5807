//! Step times and memory of the trainer, each configuration in a process of its own, in turns with PEFT on PyTorch if a Python
//! that has it is named.
//!
//! What is run is the trainer's example `bench_train`; this file only starts it, counts and prints. Times are medians: other
//! programs on the machine disturb single steps.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::{cargo, output_folder, workspace_root};

const PEFT: &str = "xtask/src/bench_train/with_peft.py";
/// Turns of each program, and steps of a turn.
const ROUNDS: usize = 7;
const STEPS: usize = 4;

/// What to measure.
#[derive(Debug, Default)]
pub(crate) struct Options {
    json: bool,
    /// A Python with torch, transformers and peft.
    peft: Option<PathBuf>,
    /// Number of the CUDA device; `None` measures the CPU.
    cuda: Option<usize>,
}

impl Options {
    /// Understands the arguments after `bench-train`.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match *argument {
                "--json" => options.json = true,
                "--peft" => options.peft = Some(rest.next()?.into()),
                "--device" => {
                    let device = *rest.next()?;
                    options.cuda = match device {
                        "cpu" => None,
                        _ => Some(device.strip_prefix("cuda:")?.parse().ok()?),
                    };
                }
                _ => return None,
            }
        }
        Some(options)
    }

    fn device(&self) -> String {
        self.cuda.map_or_else(|| "cpu".to_owned(), |number| format!("cuda:{number}"))
    }
}

/// A model in numbers, as both programs take it.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    family: &'static str,
    dim: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
}

const STORIES: Shape = Shape {
    name: "stories260K",
    family: "llama",
    dim: 64,
    hidden: 172,
    layers: 5,
    heads: 8,
    kv_heads: 4,
    vocab: 512,
};

const GPT2: Shape = Shape {
    name: "GPT-2 small",
    family: "gpt2",
    dim: 768,
    hidden: 3072,
    layers: 12,
    heads: 12,
    kv_heads: 12,
    vocab: 50_257,
};

/// One row of the result.
#[derive(Clone, Copy)]
struct Case {
    shape: Shape,
    /// 0 is full fine-tuning.
    rank: usize,
    /// Tasks at once.
    tasks: usize,
    batch: usize,
    seq: usize,
    bf16: bool,
    /// Whether PEFT runs it too.
    compared: bool,
    /// Otherwise only memory is of interest, and two steps are enough.
    timed: bool,
}

impl Case {
    fn title(&self) -> String {
        let Self { shape, rank, tasks, batch, seq, bf16, .. } = self;
        let how = match (rank, tasks) {
            (0, _) => "every weight".to_owned(),
            (_, 1) => format!("rank {rank}"),
            _ => format!("rank {rank}, {tasks} tasks"),
        };
        format!("{}, {how}, {batch}x{seq}, {}", shape.name, if *bf16 { "bf16" } else { "f32" })
    }

    fn json(&self, device: &str) -> Value {
        let Self { shape, rank, tasks, batch, seq, bf16, .. } = self;
        json!({
            "family": shape.family, "dim": shape.dim, "hidden": shape.hidden, "layers": shape.layers,
            "heads": shape.heads, "kv_heads": shape.kv_heads, "vocab": shape.vocab,
            "rank": rank, "tasks": tasks, "batch": batch, "seq": seq, "bf16": bf16, "device": device,
        })
    }
}

fn cases(cuda: bool) -> Vec<Case> {
    let stories = Case {
        shape: STORIES,
        rank: 8,
        tasks: 1,
        batch: 16,
        seq: 256,
        bf16: false,
        compared: true,
        timed: true,
    };
    let gpt2 = Case { shape: GPT2, rank: 8, batch: 8, seq: 512, bf16: true, ..stories };
    // Weights are what counts here, as in a model that hardly fits.
    let memory = Case { batch: 1, seq: 64, bf16: false, compared: false, timed: false, ..gpt2 };
    let mut cases = vec![stories, Case { rank: 0, compared: false, ..stories }];
    if cuda {
        cases.extend([Case { tasks: 16, compared: false, ..stories }, gpt2]);
    }
    cases.extend([memory, Case { rank: 0, ..memory }]);
    cases
}

/// Measures everything and writes `target/bench/train.json`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let ours = build(options.cuda.is_some())?;
    let device = options.device();
    let mut rows = Vec::new();
    for case in cases(options.cuda.is_some()) {
        eprintln!("measuring {}", case.title());
        rows.push((case, measure(&ours, &case, options, &device)?));
    }
    let all: Vec<&Value> = rows.iter().map(|(_, row)| row).collect();
    let text = serde_json::to_string_pretty(&all)?;
    fs::write(output_folder("bench")?.join("train.json"), format!("{text}\n"))?;
    if options.json {
        println!("{text}");
    } else {
        print_table(&rows);
    }
    Ok(())
}

/// Builds the example and returns its file.
fn build(cuda: bool) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", "rankpatch", "--example", "bench_train"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    if cuda {
        command.args(["--features", "cuda"]);
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "building the benchmark failed: {}", output.status);
    let messages = String::from_utf8(output.stdout)?;
    let found =
        messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| {
            let ours = line["target"]["name"] == "bench_train";
            line["executable"].as_str().filter(|_| ours).map(PathBuf::from)
        });
    found.context("cargo names no executable for the benchmark")
}

fn measure(ours: &Path, case: &Case, options: &Options, device: &str) -> Result<Value> {
    let argument = case.json(device).to_string();
    let mut own = Program::start(Command::new(ours).arg(&argument), "the trainer")?;
    let peft = options.peft.as_ref().filter(|_| case.compared);
    let mut peft = match peft {
        Some(python) => {
            let mut command = Command::new(python);
            let command = command.arg(workspace_root().join(PEFT)).arg(&argument);
            Some(Program::start(command, "PEFT")?)
        }
        None => None,
    };
    let (rounds, steps) = if case.timed { (ROUNDS, STEPS) } else { (1, 2) };
    for _ in 0..rounds {
        own.round(steps)?;
        if let Some(peft) = &mut peft {
            peft.round(steps)?;
        }
    }
    let tokens = (case.tasks * case.batch * case.seq) as f64;
    let own = own.finish(tokens)?;
    let peft = peft.map(|peft| peft.finish(tokens)).transpose()?;
    let ratio =
        peft.as_ref().and_then(|peft| Some(peft["step_seconds"].as_f64()? / own["step_seconds"].as_f64()?));
    Ok(json!({
        "case": case.title(), "device": device, "ours": own, "peft": peft, "times_as_fast_as_peft": ratio,
    }))
}

/// A program that takes steps when it is told to.
struct Program {
    name: &'static str,
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    seconds: Vec<f64>,
}

impl Program {
    fn start(command: &mut Command, name: &'static str) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        Ok(Self { name, child, commands, answers, seconds: Vec::new() })
    }

    fn round(&mut self, steps: usize) -> Result<()> {
        let commands = self.commands.as_mut().context("the program was told to end")?;
        writeln!(commands, "{steps}").with_context(|| format!("{} has ended", self.name))?;
        let answer = self.answer()?;
        let seconds = answer["seconds"].as_array().context("expected the times of the steps")?;
        self.seconds.extend(seconds.iter().filter_map(Value::as_f64));
        Ok(())
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("{} ended: {}", self.name, self.child.wait()?);
        }
        serde_json::from_str(&line).with_context(|| format!("{} said {line:?}", self.name))
    }

    /// What the program says of the whole run, and the median of its steps.
    fn finish(mut self, tokens: f64) -> Result<Value> {
        // The end of its input ends the program.
        self.commands = None;
        let mut report = self.answer()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} failed: {status}", self.name);
        let median = median(&mut self.seconds).context("no step was timed")?;
        report["step_seconds"] = median.into();
        report["tokens_per_second"] = (tokens / median).into();
        Ok(report)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // After an error the other program would wait for ever; one that has ended cannot be killed.
        self.commands = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn print_table(rows: &[(Case, Value)]) {
    let number = |value: &Value, factor: f64, digits: usize| {
        value.as_f64().map_or_else(|| "-".to_owned(), |value| format!("{:.digits$}", value * factor))
    };
    println!(
        "{:<42} {:>9} {:>11} {:>10} {:>14} {:>9} {:>8}",
        "", "step ms", "tokens/s", "peak MB", "grad+optim MB", "PEFT ms", "ratio"
    );
    for (case, row) in rows {
        let own = &row["ours"];
        println!(
            "{:<42} {:>9} {:>11} {:>10} {:>14} {:>9} {:>8}",
            case.title(),
            if case.timed { number(&own["step_seconds"], 1e3, 1) } else { "-".into() },
            if case.timed { number(&own["tokens_per_second"], 1.0, 0) } else { "-".into() },
            number(&own["peak_bytes"], 1e-6, 1),
            number(&own["gradient_and_optimizer_bytes"], 1e-6, 2),
            number(&row["peft"]["step_seconds"], 1e3, 1),
            number(&row["times_as_fast_as_peft"], 1.0, 2),
        );
    }
    let step = |tasks: usize| {
        let alike = |case: &Case| case.shape.name == STORIES.name && case.rank > 0 && case.tasks == tasks;
        let found = rows.iter().find(|(case, _)| alike(case));
        found.and_then(|(_, row)| row["ours"]["step_seconds"].as_f64())
    };
    if let (Some(one), Some(many)) = (step(1), step(16)) {
        println!("{}: a step of 16 tasks takes {:.2} times that of one", STORIES.name, many / one);
    }
    for pair in rows.windows(2) {
        let [(lora, lora_row), (full, full_row)] = pair else { continue };
        if lora.rank == 0 || full.rank != 0 || lora.shape.name != full.shape.name {
            continue;
        }
        for what in ["peak_bytes", "gradient_and_optimizer_bytes"] {
            let value = |row: &Value| row["ours"][what].as_f64();
            if let (Some(lora_bytes), Some(full_bytes)) = (value(lora_row), value(full_row)) {
                let title = lora.title();
                println!("{title}: {what} are {:.3} of full fine-tuning", lora_bytes / full_bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood() {
        let options = Options::parse(&["--json", "--device", "cuda:1", "--peft", "python3"]).unwrap();
        assert!(options.json);
        assert_eq!((options.device().as_str(), options.peft), ("cuda:1", Some("python3".into())));
        assert_eq!(Options::parse(&["--device", "cpu"]).unwrap().device(), "cpu");
        for wrong in [&["--device"][..], &["--device", "gpu"], &["--peft"], &["--fast"]] {
            assert!(Options::parse(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut []), None);
    }

    #[test]
    fn the_gpu_has_a_case_of_its_own() {
        let bf16 = |cuda| cases(cuda).iter().filter(|case| case.bf16).count();
        assert_eq!((bf16(false), bf16(true)), (0, 1));
        assert_eq!(cases(true)[2].title(), "stories260K, rank 8, 16 tasks, 16x256, f32");
        assert_eq!(cases(true)[3].title(), "GPT-2 small, rank 8, 8x512, bf16");
    }
}
