//! Latency: round trips by the system's `ping` (its time stamps are the kernel's), and one-byte transactions on one TCP
//! connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_netns_tests::{Namespace, run};
use serde::Serialize;
use socket2::SockRef;

/// Seconds from probe to probe. A short interval would itself be load.
const INTERVAL: f64 = 0.01;
const STALL: Duration = Duration::from_secs(5);

/// The probes of one series.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct RoundTrips {
    pub(crate) sent: usize,
    /// Those answered, in the order of sending, in milliseconds.
    pub(crate) milliseconds: Vec<f64>,
}

/// Probes for `duration`.
///
/// # Errors
///
/// No probe at all was answered.
pub(crate) fn ping(from: &Namespace, to: Ipv4Addr, duration: Duration) -> Result<RoundTrips> {
    let sent = (duration.as_secs_f64() / INTERVAL) as usize;
    let (interval, count, to) = (INTERVAL.to_string(), sent.to_string(), to.to_string());
    let text = run(from.command("ping").args(["-n", "-i", &interval, "-c", &count, "-W", "1", &to]))?;
    Ok(RoundTrips { sent, milliseconds: times(&text) })
}

/// Reads the times of `ping`'s lines.
fn times(text: &str) -> Vec<f64> {
    let time = |line: &str| line.split_once("time=")?.1.split(' ').next()?.parse().ok();
    text.lines().filter_map(time).collect()
}

/// What was exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Exchange {
    pub(crate) transactions: u64,
    pub(crate) seconds: f64,
}

/// Sends one byte and waits for one byte, again and again, on one connection without Nagle's delay.
///
/// # Errors
///
/// No connection, or no answer within five seconds.
pub(crate) fn request_response(
    from: &Namespace,
    server: &Namespace,
    to: Ipv4Addr,
    duration: Duration,
) -> Result<Exchange> {
    let listener = server.enter(|| {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // On Linux the receive timeout also bounds accept.
        SockRef::from(&listener).set_read_timeout(Some(STALL))?;
        Ok(listener)
    })?;
    let address = SocketAddr::from((to, listener.local_addr()?.port()));
    let serving = std::thread::spawn(move || answer(&listener));
    let exchange = from.enter(|| ask(address, duration));
    let served = serving.join().expect("the server does not panic");
    let exchange = exchange.context("request/response")?;
    served.context("request/response: the server")?;
    Ok(exchange)
}

fn answer(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept().context("nobody connected")?;
    prepare(&stream)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn ask(address: SocketAddr, duration: Duration) -> Result<Exchange> {
    let mut stream = TcpStream::connect_timeout(&address, STALL).context("no connection")?;
    prepare(&stream)?;
    let mut byte = [0];
    let mut transactions: u64 = 0;
    let start = Instant::now();
    while start.elapsed() < duration {
        stream.write_all(&[transactions as u8])?;
        stream.read_exact(&mut byte).context("no answer came")?;
        ensure!(byte == [transactions as u8], "another transaction's answer came");
        transactions += 1;
    }
    Ok(Exchange { transactions, seconds: start.elapsed().as_secs_f64() })
}

fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALL))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_lines_give_the_times_of_answered_probes() {
        let text = "PING 10.2.1.2 (10.2.1.2) 56(84) bytes of data.\n\
                    64 bytes from 10.2.1.2: icmp_seq=1 ttl=62 time=0.061 ms\n\
                    64 bytes from 10.2.1.2: icmp_seq=3 ttl=62 time=14 ms\n\
                    From 10.1.1.1 icmp_seq=4 Destination Net Unreachable\n\n\
                    3 packets transmitted, 2 received, 33% packet loss, time 20ms\n\
                    rtt min/avg/max/mdev = 0.061/7.0/14.0/0.005 ms\n";
        assert_eq!(times(text), [0.061, 14.0]);
    }

    #[test]
    fn transactions_are_counted_over_loopback() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || answer(&listener));
        let exchange = ask(address, Duration::from_millis(20)).unwrap();
        serving.join().unwrap().unwrap();
        assert!(exchange.transactions > 0 && exchange.seconds >= 0.02, "{exchange:?}");
    }
}
