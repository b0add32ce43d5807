//! Byte streams to a device: TCP (an emulator, a bridge) and serial ports. Knows nothing of frames.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::error::{ClientError, Result};

/// Baud rate of a serial port that names none.
pub const DEFAULT_BAUD: u32 = 115_200;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shortest wait that is asked of a port: a time-out of zero would mean "for ever" to some of them.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// A byte stream with deadlines.
pub trait Transport {
    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// If the port fails.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Waits for bytes until `deadline`, puts them into the front of `buffer` and returns how many they are; 0 says
    /// that the deadline has passed.
    ///
    /// # Errors
    /// If the port fails or the other side has closed it.
    fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize>;

    /// The time that deadlines are measured by. A simulated link has its own.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        (**self).send(bytes)
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        (**self).receive(buffer, deadline)
    }

    fn now(&self) -> Instant {
        (**self).now()
    }
}

impl<T: Transport + ?Sized> Transport for &mut T {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        (**self).send(bytes)
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        (**self).receive(buffer, deadline)
    }

    fn now(&self) -> Instant {
        (**self).now()
    }
}

/// Where a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `tcp:HOST:PORT`.
    Tcp(String),
    /// `PATH[@BAUD]`.
    Serial {
        /// The port, `/dev/ttyACM0` or `COM3`.
        path: String,
        /// Bits per second.
        baud: u32,
    },
}

impl FromStr for Address {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || ClientError::Address { found: text.to_owned() };
        if let Some(endpoint) = text.strip_prefix("tcp:") {
            let (host, port) = endpoint.rsplit_once(':').ok_or_else(bad)?;
            return match port.parse::<u16>() {
                Ok(1..) if !host.is_empty() => Ok(Self::Tcp(endpoint.to_owned())),
                _ => Err(bad()),
            };
        }
        let text = text.strip_prefix("serial:").unwrap_or(text);
        let (path, baud) = match text.rsplit_once('@') {
            None => (text, DEFAULT_BAUD),
            Some((path, baud)) => (path, baud.parse().ok().filter(|baud| *baud > 0).ok_or_else(bad)?),
        };
        if path.is_empty() { Err(bad()) } else { Ok(Self::Serial { path: path.to_owned(), baud }) }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(endpoint) => write!(f, "tcp:{endpoint}"),
            Self::Serial { path, baud } => write!(f, "{path}@{baud}"),
        }
    }
}

impl Address {
    /// Opens the port.
    ///
    /// # Errors
    /// [`ClientError::Open`].
    pub fn open(&self) -> Result<Box<dyn Transport>> {
        let failed = |source| ClientError::Open { address: self.to_string(), source };
        match self {
            Self::Tcp(endpoint) => Ok(Box::new(Tcp::connect(endpoint).map_err(failed)?)),
            Self::Serial { path, baud } => {
                let port = serialport::new(path, *baud).timeout(SHORTEST_WAIT).open();
                Ok(Box::new(Serial::new(port.map_err(|error| failed(error.into()))?)))
            }
        }
    }
}

/// A TCP connection.
#[derive(Debug)]
pub struct Tcp(TcpStream);

impl Tcp {
    /// Connects to `HOST:PORT`, trying every address of the host.
    ///
    /// # Errors
    /// The error of the last address tried.
    pub fn connect(endpoint: &str) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in endpoint.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    // Frames are small and wait for answers: do not collect them.
                    stream.set_nodelay(true)?;
                    return Ok(Self(stream));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Transport for Tcp {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        poll(deadline, |wait| {
            self.0.set_read_timeout(Some(wait))?;
            self.0.read(buffer)
        })
    }
}

/// A serial port.
pub struct Serial(Box<dyn serialport::SerialPort>);

impl Serial {
    /// Wraps an open port.
    pub fn new(port: Box<dyn serialport::SerialPort>) -> Self {
        Self(port)
    }
}

impl Transport for Serial {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // The port has one time-out for both directions; a frame at 1200 baud takes ten seconds.
        self.0.set_timeout(Duration::from_secs(30))?;
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        poll(deadline, |wait| {
            self.0.set_timeout(wait)?;
            self.0.read(buffer)
        })
    }
}

/// Reads once with a time-out until `deadline`. A read of nothing is the end of the stream.
fn poll(deadline: Instant, mut read: impl FnMut(Duration) -> io::Result<usize>) -> io::Result<usize> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(0);
        }
        match read(left.max(SHORTEST_WAIT)) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the other side closed the connection",
                ));
            }
            Ok(len) => return Ok(len),
            Err(error) => match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_shown() {
        let parse = |text: &str| text.parse::<Address>().map_err(|error| error.to_string());
        assert_eq!(parse("tcp:localhost:4000"), Ok(Address::Tcp("localhost:4000".into())));
        assert_eq!(parse("tcp:[::1]:4000"), Ok(Address::Tcp("[::1]:4000".into())));
        let serial = |path: &str, baud| Ok(Address::Serial { path: path.into(), baud });
        assert_eq!(parse("/dev/ttyACM0"), serial("/dev/ttyACM0", DEFAULT_BAUD));
        assert_eq!(parse("serial:COM3@9600"), serial("COM3", 9600));
        assert_eq!(parse("/dev/ttyUSB0@921600").unwrap().to_string(), "/dev/ttyUSB0@921600");
        for bad in [
            "",
            "tcp:",
            "tcp:host",
            "tcp::80",
            "tcp:host:0",
            "tcp:host:70000",
            "/dev/x@fast",
            "/dev/x@0",
            "@9600",
        ] {
            let message = parse(bad).unwrap_err();
            let expected = format!("bad port: expected tcp:HOST:PORT or PATH[@BAUD], found \"{bad}\"");
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn tcp_keeps_deadlines_and_notices_the_end() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address: Address = format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap();
        let mut client = address.open().unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut buffer = [0; 8];
        let soon = || Instant::now() + Duration::from_millis(20);
        assert_eq!(client.receive(&mut buffer, soon()).unwrap(), 0, "nothing has come");
        server.write_all(b"abc").unwrap();
        let later = Instant::now() + Duration::from_secs(10);
        assert_eq!(client.receive(&mut buffer, later).unwrap(), 3);
        client.send(b"xy").unwrap();
        let mut got = [0; 2];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"xy");
        drop(server);
        let error = client.receive(&mut buffer, later).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        drop(listener);
        assert!(matches!(address.open(), Err(ClientError::Open { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn a_serial_port_carries_bytes_both_ways() {
        let (host, device) = serialport::TTYPort::pair().unwrap();
        let (mut host, mut device) = (Serial::new(Box::new(host)), Serial::new(Box::new(device)));
        let bytes: Vec<u8> = (0..=255).collect();
        for (from, to) in [(0, 1), (1, 0)] {
            let ends = [&mut host, &mut device];
            ends[from].send(&bytes).unwrap();
            let (mut got, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(10));
            while got.len() < bytes.len() {
                let mut buffer = [0; 100];
                let len = ends[to].receive(&mut buffer, deadline).unwrap();
                assert_ne!(len, 0, "found only {} bytes", got.len());
                got.extend_from_slice(&buffer[..len]);
            }
            assert_eq!(got, bytes);
        }
        assert_eq!(host.receive(&mut [0; 1], Instant::now() + Duration::from_millis(5)).unwrap(), 0);
    }
}
