//! TCP between namespaces: data both ways, and the source address that the far side sees.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::SockRef;

use crate::namespace::Namespace;

const CONNECT: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(10);
/// How long a bulk transfer may stand still: an outage, and the sender's pause until it tries again.
const STALL: Duration = Duration::from_secs(30);
/// What a bulk transfer repeats, in bytes: a prime, so that what slips by a packet or a page does not look right.
const PATTERN: usize = 65_537;

/// A transfer that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The client's address as the server saw it.
    pub source: Ipv4Addr,
    /// From the first byte sent to the last one back.
    pub duration: Duration,
}

/// Sends `payload` from `from` to a server in `server` under the address `to`, and has it sent back.
///
/// The server listens on `to`'s port on all its addresses; `to` itself may be a service's address.
///
/// # Errors
///
/// No connection, a stall of ten seconds, or data that differ.
pub fn transfer(from: &Namespace, server: &Namespace, to: SocketAddrV4, payload: &[u8]) -> Result<Transfer> {
    let describe = || format!("TCP from {} to {to} in {}", from.name(), server.name());
    let listener = server.enter(|| listen(to.port()))?;
    let length = payload.len();
    let serving = std::thread::spawn(move || serve(&listener, length));
    let client = from.enter(|| request(to, payload));
    let source = serving.join().expect("the server does not panic");
    let duration = client.with_context(describe)?;
    Ok(Transfer { source: source.with_context(describe)?, duration })
}

fn listen(port: u16) -> Result<TcpListener> {
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on {port}"))?;
    // On Linux the receive timeout also bounds accept.
    SockRef::from(&listener).set_read_timeout(Some(CONNECT))?;
    Ok(listener)
}

fn serve(listener: &TcpListener, length: usize) -> Result<Ipv4Addr> {
    let (mut stream, peer) = listener.accept().context("nobody connected")?;
    set_timeouts(&stream)?;
    let mut received = vec![0; length];
    stream.read_exact(&mut received).context("the server did not get all data")?;
    stream.write_all(&received).context("the server could not answer")?;
    ipv4_of(peer)
}

fn request(to: SocketAddrV4, payload: &[u8]) -> Result<Duration> {
    let mut stream = TcpStream::connect_timeout(&to.into(), CONNECT).context("no connection")?;
    set_timeouts(&stream)?;
    let start = Instant::now();
    stream.write_all(payload).context("the client could not send")?;
    let mut answer = vec![0; payload.len()];
    stream.read_exact(&mut answer).context("the client did not get all data back")?;
    ensure!(answer == payload, "the data came back changed");
    Ok(start.elapsed())
}

fn set_timeouts(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    Ok(())
}

fn ipv4_of(address: SocketAddr) -> Result<Ipv4Addr> {
    match address {
        SocketAddr::V4(address) => Ok(*address.ip()),
        SocketAddr::V6(address) => bail!("{address} is no IPv4 address"),
    }
}

/// A connection that stays open: a flow that has to live through an outage.
pub struct Conversation {
    stream: TcpStream,
    server: JoinHandle<Result<()>>,
}

impl Conversation {
    /// Connects from `from` to a server in `server` that answers with what it hears.
    pub fn open(from: &Namespace, server: &Namespace, to: SocketAddrV4) -> Result<Self> {
        let listener = server.enter(|| listen(to.port()))?;
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().context("nobody connected")?;
            stream.set_nodelay(true)?;
            // The listener's timeout is inherited, but words may be long on their way.
            stream.set_read_timeout(None)?;
            let mut reader = stream.try_clone()?;
            std::io::copy(&mut reader, &mut stream)?;
            Ok(())
        });
        let stream = from.enter(|| TcpStream::connect_timeout(&to.into(), CONNECT).context("no connection"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, server })
    }

    /// Sends words; they may stay on their way for long.
    pub fn say(&mut self, words: &[u8]) -> Result<()> {
        self.stream.write_all(words).context("the conversation broke off")
    }

    /// Waits for the answer to words that were said.
    ///
    /// # Errors
    ///
    /// The connection broke, nothing came within `timeout`, or something else came.
    pub fn hear(&mut self, words: &[u8], timeout: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(timeout))?;
        let mut answer = vec![0; words.len()];
        self.stream.read_exact(&mut answer).context("the conversation was not answered")?;
        ensure!(answer == words, "the conversation's words came back changed");
        Ok(())
    }

    /// Ends the conversation in good order.
    pub fn close(self) -> Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        self.server.join().expect("the server does not panic")
    }
}

/// One stream as fast as it goes, one way.
pub struct Bulk {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    client: JoinHandle<Result<u64>>,
    server: JoinHandle<Result<()>>,
}

impl Bulk {
    /// Connects from `from` to a server in `server` and sends until told to finish.
    ///
    /// # Errors
    ///
    /// No connection.
    pub fn start(from: &Namespace, server: &Namespace, to: SocketAddrV4) -> Result<Self> {
        let listener = server.enter(|| listen(to.port()))?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let counted = received.clone();
        let server = std::thread::spawn(move || receive(&listener, &counted));
        let stream = from.enter(|| TcpStream::connect_timeout(&to.into(), CONNECT).context("no connection"))?;
        let stopped = stop.clone();
        let client = std::thread::spawn(move || send(stream, &stopped));
        Ok(Self { stop, received, client, server })
    }

    /// Returns how many bytes have arrived as they were sent.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends the stream in good order and returns how many bytes went over.
    ///
    /// # Errors
    ///
    /// The connection broke, stood still for half a minute, or did not carry what was sent.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.client.join().expect("the client does not panic");
        let served = self.server.join().expect("the server does not panic");
        let received = self.received.load(Ordering::Relaxed);
        served.with_context(|| format!("the server gave up after {received} bytes"))?;
        let sent = sent.with_context(|| format!("the client gave up when {received} bytes had arrived"))?;
        ensure!(sent == received, "{sent} bytes were sent, but {received} arrived");
        Ok(sent)
    }
}

fn pattern() -> Vec<u8> {
    (0..PATTERN).map(|at| u8::try_from(at % 251).expect("251 is below 256")).collect()
}

fn send(mut stream: TcpStream, stop: &AtomicBool) -> Result<u64> {
    stream.set_write_timeout(Some(STALL))?;
    let pattern = pattern();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&pattern).context("the client could not send")?;
        sent += pattern.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

fn receive(listener: &TcpListener, received: &AtomicU64) -> Result<()> {
    let (mut stream, _) = listener.accept().context("nobody connected")?;
    stream.set_read_timeout(Some(STALL))?;
    let pattern = pattern();
    let mut buffer = vec![0; PATTERN];
    let mut at = 0;
    loop {
        let length = stream.read(&mut buffer[at..]).context("the server got nothing more")?;
        if length == 0 {
            return Ok(());
        }
        ensure!(buffer[at..at + length] == pattern[at..at + length], "the data arrived changed");
        received.fetch_add(length as u64, Ordering::Relaxed);
        at = (at + length) % PATTERN;
    }
}
