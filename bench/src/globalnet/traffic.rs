//! Connections from a remote client: how many are made and answered, how fast bytes go to and fro, and how many pass.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_netns_tests::Namespace;
use serde::Serialize;
use socket2::SockRef;

use crate::statistics::percentile;

const STALL: Duration = Duration::from_secs(5);
/// First byte of a connection whose others come back.
const ECHO: u8 = b'e';
/// The same where they are only taken.
const SINK: u8 = b's';
const CHUNK: usize = 128 << 10;

/// What a client saw of one way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// Connections made, answered once and closed per second, one after the other.
    pub(crate) connections: f64,
    /// Median time from the first packet of one to its answer, in microseconds.
    pub(crate) first_answer: f64,
    /// Requests of a byte and their answers per second, on one connection.
    pub(crate) exchanges: f64,
    /// Of one connection, in Gbit/s.
    pub(crate) gigabits: f64,
}

/// Answers on a port of all addresses that are a namespace's; ends with the process.
pub(crate) fn serve(namespace: &Namespace, port: u16) -> Result<()> {
    let listener = namespace.enter(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The client says what went wrong.
            thread::spawn(move || answer(stream).ok());
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; CHUNK];
    let mut first = [0];
    if stream.read(&mut first)? == 0 {
        return Ok(());
    }
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        if first == [ECHO] {
            stream.write_all(&buffer[..length])?;
        }
    }
}

/// Measures the way to an address, each of three phases for so long.
pub(crate) fn measure(from: &Namespace, to: SocketAddr, phase: Duration) -> Result<Figures> {
    from.enter(|| {
        let (connections, first_answer) = connections(to, phase)?;
        Ok(Figures { connections, first_answer, exchanges: exchanges(to, phase)?, gigabits: gigabits(to, phase)? })
    })
}

/// Connects, and returns when that has succeeded.
pub(crate) fn connect(from: &Namespace, to: SocketAddr) -> Result<Instant> {
    from.enter(|| {
        TcpStream::connect_timeout(&to, STALL).with_context(|| format!("no connection to {to}"))?;
        Ok(Instant::now())
    })
}

fn connections(to: SocketAddr, phase: Duration) -> Result<(f64, f64)> {
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < phase {
        let begun = Instant::now();
        let mut stream = opened(to, ECHO)?;
        stream.write_all(&[0])?;
        stream.read_exact(&mut [0]).context("no answer came")?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        // A reset leaves no port in TIME_WAIT: there are only so many.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    Ok((rate, percentile(&times, 50).context("no connection was made")?))
}

fn exchanges(to: SocketAddr, phase: Duration) -> Result<f64> {
    let mut stream = opened(to, ECHO)?;
    let mut byte = [0];
    let mut count: u64 = 0;
    let start = Instant::now();
    while start.elapsed() < phase {
        stream.write_all(&[count as u8])?;
        stream.read_exact(&mut byte).context("no answer came")?;
        ensure!(byte == [count as u8], "another answer came");
        count += 1;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn gigabits(to: SocketAddr, phase: Duration) -> Result<f64> {
    let mut stream = opened(to, SINK)?;
    let chunk = vec![0; CHUNK];
    let mut bytes = 0;
    let start = Instant::now();
    while start.elapsed() < phase {
        stream.write_all(&chunk)?;
        bytes += chunk.len();
    }
    Ok(bytes as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64())
}

fn opened(to: SocketAddr, mode: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, STALL).with_context(|| format!("no connection to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.write_all(&[mode])?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_over_loopback_has_figures() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        thread::spawn(move || {
            listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| answer(stream).ok())))
        });
        let phase = Duration::from_millis(20);
        let (rate, first_answer) = connections(to, phase).unwrap();
        assert!(rate > 0.0 && first_answer > 0.0);
        assert!(exchanges(to, phase).unwrap() > 0.0 && gigabits(to, phase).unwrap() > 0.0);
    }
}
