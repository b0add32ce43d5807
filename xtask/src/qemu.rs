//! Runs firmware in QEMU: the link on a TCP port, the log decoded in the background, killed when dropped.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::board::Board;
use crate::log::{Line, LogReader};
use crate::monitor::Monitor;
use crate::{NeedsSetup, output_folder};

/// With [`Options::count_instructions`] every instruction takes 2^7 ns of the device's time. That is 3.2 ticks of a 25 MHz
/// timer, so that the difference of two readings, off by less than a tick, gives the exact number of instructions.
pub const ICOUNT_SHIFT: u32 = 7;

/// What every board logs when bytes may be sent to it.
pub const LISTENING: &str = "listening";

/// How long QEMU may take to start. It takes a fraction of a second; a busy machine may need much more.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// How to run a firmware program.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Device time advances by instructions executed instead of by the host's clock, which makes counts exact.
    pub count_instructions: bool,
    /// Raw files to place in memory before reset, each with its address.
    pub images: Vec<(PathBuf, u64)>,
    /// The whole flash, from its first address, in the firmware file's place, which only says what the log means.
    pub flash: Option<PathBuf>,
    /// Whether the device's log also goes to stderr.
    pub echo_log: bool,
    /// The file behind the machine's parallel flash, on boards that have one. Created, all zero, if it is not there; without
    /// a name the file goes when the emulator does.
    pub flash_file: Option<PathBuf>,
}

/// A running emulator.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    link: SocketAddr,
    log: LogReader,
    monitor: Monitor,
    messages: Option<JoinHandle<String>>,
    /// The file behind the flash if nobody else wants it.
    scratch: Option<Scratch>,
}

/// A file that is removed when dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = fs::remove_file(&self.0);
    }
}

/// The file behind the parallel flash of `board`, as long as QEMU wants it, and what removes it.
fn flash_file(board: &Board, wanted: Option<&Path>) -> Result<(PathBuf, Option<Scratch>)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let (path, scratch) = if let Some(path) = wanted {
        (path.to_path_buf(), None)
    } else {
        let name = format!("pflash-{}-{}.bin", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = output_folder("qemu")?.join(name);
        (path.clone(), Some(Scratch(path)))
    };
    let open = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let set = open.and_then(|file| file.set_len(board.qemu.pflash_bytes));
    set.with_context(|| format!("cannot create {}", path.display()))?;
    Ok((path, scratch))
}

impl Qemu {
    /// Starts `elf` on `board`'s machine. Returns when the device has logged [`LISTENING`]; the program may still be
    /// starting, but bytes sent to it wait until it takes them.
    ///
    /// # Errors
    /// [`NeedsSetup`] if QEMU is not installed; otherwise if a file is missing, QEMU refuses its arguments, or the firmware
    /// does not get as far as listening.
    pub fn boot(board: &Board, elf: &Path, options: &Options) -> Result<Self> {
        let image = fs::read(elf).with_context(|| format!("cannot read the firmware {}", elf.display()))?;
        // The listening socket of the link is opened here and inherited as standard input: its port is known at once, it
        // cannot be taken by another process, and a client may connect before QEMU is ready.
        let link_listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot open a port for the link")?;
        let link = link_listener.local_addr()?;
        let log_listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot open a port for the log")?;

        let monitor_listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot open a port for the monitor")?;

        let mut command = Command::new(&board.qemu.system);
        command
            .args(["-M", &board.qemu.machine, "-cpu", &board.qemu.cpu])
            .args(["-display", "none", "-monitor", "none"])
            // The multiplexer has a small buffer between socket and UART: five times the speed. Its escape character is
            // switched off with a value that no byte has.
            .args(["-chardev", "socket,id=link,fd=0,server=on,wait=off,mux=on", "-echr", "256"])
            .args(["-serial", "chardev:link"])
            .args(["-chardev", &socket("log", &log_listener)?])
            .args(["-chardev", &socket("monitor", &monitor_listener)?])
            .args(["-mon", "chardev=monitor,mode=control"]);
        let semihosting = "enable=on,target=native";
        if board.qemu.log_by_semihosting {
            command.args(["-semihosting-config", &format!("{semihosting},chardev=log")]);
        } else {
            command.args(["-serial", "chardev:log", "-semihosting-config", semihosting]);
        }
        let mut scratch = None;
        if board.qemu.pflash_bytes > 0 {
            let (file, remover) = flash_file(board, options.flash_file.as_deref())?;
            scratch = remover;
            command.args(["-drive", &format!("if=pflash,unit=1,format=raw,file={}", escaped(&file))]);
        }
        command.arg(&board.qemu.load).arg(options.flash.as_deref().unwrap_or(elf));
        for (file, address) in &options.images {
            if !file.is_file() {
                bail!("expected an image to place at {address:#x}, found no file {}", file.display());
            }
            let loader = format!("loader,file={},addr={address:#x},force-raw=on", escaped(file));
            command.args(["-device", &loader]);
        }
        if options.count_instructions {
            command.args(["-icount", &format!("shift={ICOUNT_SHIFT}")]);
        }
        command.stdin(Stdio::from(OwnedFd::from(link_listener))).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow!(NeedsSetup {
                message: format!(
                    "expected {} in the search path, found none: run `cargo xtask setup`",
                    board.qemu.system
                )
            }),
            _ => anyhow!(error).context(format!("cannot start {}", board.qemu.system)),
        })?;
        let mut stderr = child.stderr.take().expect("stderr is piped");
        let messages = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });

        let connected = accept(&monitor_listener, &mut child)
            .and_then(Monitor::new)
            .and_then(|monitor| Ok((monitor, accept(&log_listener, &mut child)?)));
        let (monitor, stream) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                // Ending it also ends its messages.
                let _ = child.kill();
                let _ = child.wait();
                let text = messages.join().unwrap_or_default();
                return Err(error.context(format!("{} did not start: {}", board.qemu.system, text.trim())));
            }
        };
        let log = LogReader::start(stream, &image, options.echo_log).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        let qemu = Self { child, link, log, monitor, messages: Some(messages), scratch };
        // A byte that reaches the multiplexer before the UART is on would wait there for the next one.
        match qemu.log.wait_for(LISTENING, START_TIMEOUT) {
            Ok(_) => Ok(qemu),
            Err(error) => {
                Err(error.context(format!("{} did not start: {}", elf.display(), qemu.stop().trim())))
            }
        }
    }

    /// Where the link listens, as `127.0.0.1:PORT`. One client at a time; the next may connect when it has gone.
    pub fn link_address(&self) -> SocketAddr {
        self.link
    }

    /// Connects to the link, without delaying small packets and with `timeout` for each read and write.
    ///
    /// # Errors
    /// If QEMU has ended.
    pub fn connect(&self, timeout: Duration) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.link).context("cannot connect to the link: has QEMU ended?")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(stream)
    }

    /// The device's log.
    pub fn log(&self) -> &LogReader {
        &self.log
    }

    /// The emulator's own controls.
    pub fn monitor(&mut self) -> &mut Monitor {
        &mut self.monitor
    }

    /// Resets the machine and returns when the device is listening again. Flash behind a controller stays as it was, whatever
    /// was being written.
    ///
    /// # Errors
    /// If QEMU has ended or the firmware does not get as far as listening.
    pub fn reset(&mut self) -> Result<()> {
        let before = self.log.count(LISTENING);
        self.monitor.system_reset()?;
        self.log.wait_for_nth(LISTENING, before + 1, START_TIMEOUT).map(drop)
    }

    /// Waits for the program to end by itself and returns QEMU's exit status and the whole log.
    ///
    /// # Errors
    /// If it has not ended after `timeout`; it is killed then.
    pub fn wait(mut self, timeout: Duration) -> Result<(ExitStatus, Vec<Line>)> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.log.join();
                return Ok((status, self.log.lines()));
            }
            if Instant::now() >= deadline {
                bail!("expected the firmware to end within {timeout:?}, found it running");
            }
            thread::sleep(POLL);
        }
    }

    /// Ends the emulator and returns what QEMU itself had to say on stderr, which is nothing in a good run.
    pub fn stop(mut self) -> String {
        self.kill();
        self.messages.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }

    fn kill(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.scratch = None;
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A path in QEMU's option syntax, which doubles commas.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The description of a character device that connects to a port of ours.
fn socket(name: &str, listener: &TcpListener) -> Result<String> {
    Ok(format!("socket,id={name},host=127.0.0.1,port={}", listener.local_addr()?.port()))
}

/// Waits for QEMU to connect to one of our ports.
fn accept(listener: &TcpListener, child: &mut Child) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status}");
        }
        if Instant::now() >= deadline {
            bail!("it was not ready after {START_TIMEOUT:?}");
        }
        thread::sleep(POLL);
    }
}
