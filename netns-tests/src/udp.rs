//! UDP between namespaces.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;

const TIMEOUT: Duration = Duration::from_secs(2);

/// Sends one datagram of `size` bytes to `to` in `server` and has it sent back.
///
/// # Errors
///
/// The datagram or its answer did not come within two seconds, or came back changed.
pub fn echo(from: &Namespace, server: &Namespace, to: SocketAddrV4, size: usize) -> Result<()> {
    let describe = || format!("UDP of {size} bytes from {} to {to}", from.name());
    let bind = |port: u16| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        anyhow::Ok(socket)
    };
    let answering = server.enter(|| bind(to.port()))?;
    let serving = std::thread::spawn(move || -> Result<()> {
        let mut buffer = vec![0; 0x1_0000];
        let (length, peer) = answering.recv_from(&mut buffer).context("the datagram did not arrive")?;
        answering.send_to(&buffer[..length], peer).context("the server could not answer")?;
        Ok(())
    });
    let client = from.enter(|| {
        let socket = bind(0)?;
        let payload: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        socket.send_to(&payload, to).context("the client could not send")?;
        let mut answer = vec![0; 0x1_0000];
        let length = socket.recv(&mut answer).context("no answer came")?;
        ensure!(answer[..length] == payload, "the datagram came back changed");
        Ok(())
    });
    serving.join().expect("the server does not panic").with_context(describe)?;
    client.with_context(describe)
}
