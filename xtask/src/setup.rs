//! Installs what the other tasks need: Rust targets through rustup, QEMU through the system's package manager.
//!
//! It asks nothing. Where it may not install, it fails with the exact command to type.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use xtask::board::Board;
use xtask::machine::Machine;
use xtask::{NeedsSetup, workspace_root};

/// Checks everything, installs what is missing, and says what it found.
pub(crate) fn run() -> Result<()> {
    for target in targets()? {
        if target_is_installed(&target)? {
            eprintln!("target {target}: installed");
        } else {
            eprintln!("target {target}: installing");
            install_target(&target)?;
        }
    }
    let boards = Board::all()?.into_iter().map(|board| board.qemu);
    let machines = Machine::all()?.into_iter().map(|machine| machine.qemu);
    let mut systems: Vec<_> = boards.chain(machines).map(|qemu| qemu.system).collect();
    systems.sort();
    systems.dedup();
    for system in systems {
        let version = if let Some(version) = qemu_version(&system) {
            version
        } else {
            install_qemu(&system)?;
            qemu_version(&system).with_context(|| format!("{system} was installed but does not run"))?
        };
        eprintln!("{system}: {version}");
    }
    Ok(())
}

/// The device targets that rust-toolchain.toml lists.
pub(crate) fn targets() -> Result<Vec<String>> {
    let path = workspace_root().join("rust-toolchain.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let targets = parse_targets(&text);
    if targets.is_empty() {
        bail!("expected a list `targets` in {}, found none", path.display());
    }
    Ok(targets)
}

/// The strings of the array `targets`. The file is ours and plain, so no TOML parser is needed.
fn parse_targets(text: &str) -> Vec<String> {
    let list = text
        .split_once("targets")
        .and_then(|(_, rest)| rest.split_once('[')?.1.split_once(']'))
        .map(|(list, _)| list);
    list.unwrap_or_default().split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

fn target_is_installed(target: &str) -> Result<bool> {
    let output = Command::new("rustc")
        .current_dir(workspace_root())
        .args(["--print", "target-libdir", "--target", target])
        .output()
        .context("cannot start rustc")?;
    let folder = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && Path::new(folder.trim()).is_dir())
}

fn install_target(target: &str) -> Result<()> {
    let status =
        Command::new("rustup").current_dir(workspace_root()).args(["target", "add", target]).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!("rustup target add {target} failed: {status}"),
        Err(_) => bail!(NeedsSetup {
            message: format!(
                "expected rustup for the target {target}, found none: install Rust from https://rustup.rs"
            )
        }),
    }
}

/// The first line of `system --version`, if it runs.
fn qemu_version(system: &str) -> Option<String> {
    let output = Command::new(system).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}

/// A package manager that has a package for QEMU's system emulators.
struct Manager {
    program: &'static str,
    /// Arguments that install the package named behind them without asking.
    install: &'static [&'static str],
    /// Arguments that fetch the lists of packages, where installing does not do it.
    refresh: Option<&'static [&'static str]>,
    /// The package that holds `qemu-system-arm`.
    arm: &'static str,
    /// The package that holds `qemu-system-riscv32`.
    riscv: &'static str,
    needs_root: bool,
}

/// In the order in which they are looked for.
const MANAGERS: [Manager; 4] = [
    Manager {
        program: "apt-get",
        install: &["install", "-y", "--no-install-recommends"],
        refresh: Some(&["update"]),
        arm: "qemu-system-arm",
        riscv: "qemu-system-misc",
        needs_root: true,
    },
    Manager {
        program: "dnf",
        install: &["install", "-y"],
        refresh: None,
        arm: "qemu-system-arm-core",
        riscv: "qemu-system-riscv-core",
        needs_root: true,
    },
    Manager {
        program: "pacman",
        install: &["-S", "--noconfirm", "--needed"],
        refresh: None,
        arm: "qemu-system-arm",
        riscv: "qemu-system-riscv",
        needs_root: true,
    },
    Manager {
        program: "brew",
        install: &["install"],
        refresh: None,
        arm: "qemu",
        riscv: "qemu",
        needs_root: false,
    },
];

impl Manager {
    fn package(&self, system: &str) -> &'static str {
        if system.contains("riscv") { self.riscv } else { self.arm }
    }

    /// The words of a command, with `sudo` in front if root is needed and this is not root.
    fn command(&self, arguments: &[&'static str], privilege: Privilege) -> Vec<&'static str> {
        let mut words = Vec::new();
        if self.needs_root {
            words.extend_from_slice(privilege.prefix());
        }
        words.push(self.program);
        words.extend_from_slice(arguments);
        words
    }

    fn install_command(&self, system: &str, privilege: Privilege) -> Vec<&'static str> {
        self.command(&[self.install, &[self.package(system)]].concat(), privilege)
    }
}

/// What this process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Privilege {
    Root,
    /// `sudo` works and needs no password now.
    Sudo,
    /// A person has to type a password.
    Person,
}

impl Privilege {
    fn find() -> Self {
        let quiet = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
        };
        if quiet("id", &["-u"]).is_some_and(|output| output.stdout.trim_ascii() == b"0") {
            Self::Root
        } else if quiet("sudo", &["-n", "true"]).is_some_and(|output| output.status.success()) {
            Self::Sudo
        } else {
            Self::Person
        }
    }

    fn prefix(self) -> &'static [&'static str] {
        match self {
            Self::Root => &[],
            Self::Sudo => &["sudo", "-n"],
            Self::Person => &["sudo"],
        }
    }
}

fn install_qemu(system: &str) -> Result<()> {
    let Some(manager) = MANAGERS.iter().find(|manager| runs(manager.program)) else {
        let known: Vec<_> = MANAGERS.iter().map(|manager| manager.program).collect();
        bail!(NeedsSetup {
            message: format!("expected {system} or one of {}, found none: install QEMU", known.join(", "))
        });
    };
    let privilege = Privilege::find();
    let words = manager.install_command(system, privilege);
    if manager.needs_root && privilege == Privilege::Person {
        bail!(NeedsSetup {
            message: format!(
                "expected {system}, found none, and may not install it: type\n\n    {}\n",
                words.join(" ")
            )
        });
    }
    eprintln!("{system}: installing with `{}`", words.join(" "));
    if execute(&words)? {
        return Ok(());
    }
    if let Some(arguments) = manager.refresh {
        let refresh = manager.command(arguments, privilege);
        eprintln!("{system}: trying again after `{}`", refresh.join(" "));
        if execute(&refresh)? && execute(&words)? {
            return Ok(());
        }
    }
    bail!(NeedsSetup { message: format!("installing {system} failed: type\n\n    {}\n", words.join(" ")) })
}

fn runs(program: &str) -> bool {
    let mut probe = Command::new(program);
    probe.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// Runs a command with its output on stderr; true if it succeeded.
fn execute(words: &[&str]) -> Result<bool> {
    let (program, arguments) = words.split_first().context("an empty command")?;
    let status = Command::new(program)
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_the_toolchain_file_is_found() {
        let text = "[toolchain]\nchannel = \"1.0\"\ncomponents = [\"clippy\"]\ntargets = [\n    \"a-b\",\n    \"c-d\",\n]\n";
        assert_eq!(parse_targets(text), ["a-b", "c-d"]);
        assert!(parse_targets("channel = \"1.0\"").is_empty());
        assert!(targets().unwrap().iter().any(|target| target == "thumbv7em-none-eabihf"));
    }

    #[test]
    fn the_commands_are_those_that_a_person_would_type() {
        let command = |program: &str, privilege, system| {
            let manager = MANAGERS.iter().find(|manager| manager.program == program).unwrap();
            manager.install_command(system, privilege).join(" ")
        };
        let apt = "apt-get install -y --no-install-recommends qemu-system-arm";
        assert_eq!(command("apt-get", Privilege::Root, "qemu-system-arm"), apt);
        assert_eq!(command("apt-get", Privilege::Person, "qemu-system-arm"), format!("sudo {apt}"));
        assert_eq!(command("apt-get", Privilege::Sudo, "qemu-system-arm"), format!("sudo -n {apt}"));
        assert!(command("apt-get", Privilege::Root, "qemu-system-riscv32").ends_with("qemu-system-misc"));
        assert_eq!(command("brew", Privilege::Person, "qemu-system-arm"), "brew install qemu");
    }
}
