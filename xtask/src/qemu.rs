//! Runs firmware in QEMU: the link on a TCP port, the log decoded in the background, killed when dropped.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::NeedsSetup;
use crate::board::Board;
use crate::log::{Line, LogReader};

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
    /// Whether the device's log also goes to stderr.
    pub echo_log: bool,
}

/// A running emulator.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    link: SocketAddr,
    log: LogReader,
    messages: Option<JoinHandle<String>>,
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

        let mut command = Command::new(&board.qemu.system);
        command
            .args(["-M", &board.qemu.machine, "-cpu", &board.qemu.cpu])
            .args(["-display", "none", "-monitor", "none"])
            // The multiplexer has a small buffer between socket and UART: five times the speed. Its escape character is
            // switched off with a value that no byte has.
            .args(["-chardev", "socket,id=link,fd=0,server=on,wait=off,mux=on", "-echr", "256"])
            .args(["-serial", "chardev:link"])
            .args([
                "-chardev",
                &format!("socket,id=log,host=127.0.0.1,port={}", log_listener.local_addr()?.port()),
            ])
            .args(["-serial", "chardev:log"])
            .args(["-semihosting-config", "enable=on,target=native"])
            .arg("-kernel")
            .arg(elf);
        for (file, address) in &options.images {
            if !file.is_file() {
                bail!("expected an image to place at {address:#x}, found no file {}", file.display());
            }
            // QEMU's option syntax doubles commas.
            let path = file.display().to_string().replace(',', ",,");
            command.args(["-device", &format!("loader,file={path},addr={address:#x},force-raw=on")]);
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

        let stream = match accept(&log_listener, &mut child) {
            Ok(stream) => stream,
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
        let qemu = Self { child, link, log, messages: Some(messages) };
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
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for QEMU to connect to the log's port.
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
