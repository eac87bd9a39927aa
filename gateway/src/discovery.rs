//! Runs NAT discovery: the sockets of the sans-IO machine in `gateway/core`.
//!
//! Answers are given by a standby too. Datagrams carry the mark of outer packets: a peer whose address lies in one of
//! its own subnets is asked on the outside, not through the cable.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use culvert_gateway_core::nat_discovery::{NatChoice, NatChoices, NatDiscovery, OwnEndpoint, Probe};
use culvert_model::{CableName, Endpoint};
use culvert_netstate::own::OUTER_MARK;
use culvert_runtime::reconcile::Wake;
use culvert_runtime::task::{Ended, Task};
use nix::sys::socket::{setsockopt, sockopt::Mark};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;

/// Larger datagrams are none of the protocol's.
const BUFFER: usize = 2048;

/// The port of NAT discovery cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoveryError {
    #[error("NAT discovery port {port} is in use: stop what listens there (`ss -ulnp`), or set --nat-discovery-port")]
    InUse { port: u16, source: io::Error },
    #[error("NAT discovery port {port} cannot be opened")]
    Socket { port: u16, source: io::Error },
}

/// Sockets of both families on one port.
pub(crate) struct Sockets {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    port: u16,
}

impl Sockets {
    /// Opens the port on all local addresses.
    pub(crate) fn open(port: u16) -> Result<Self, DiscoveryError> {
        let error = |source: io::Error| {
            if source.kind() == io::ErrorKind::AddrInUse {
                DiscoveryError::InUse { port, source }
            } else {
                DiscoveryError::Socket { port, source }
            }
        };
        let v4 = open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into()).map_err(error)?;
        // A host without IPv6 has no IPv6 peers.
        let v6 = open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()).ok();
        Ok(Self { v4, v6, port })
    }

    async fn send(&self, datagram: &[u8], to: SocketAddr) {
        let socket = match to.ip() {
            IpAddr::V4(_) => Some(&self.v4),
            IpAddr::V6(_) => self.v6.as_ref(),
        };
        if let Some(socket) = socket
            && let Err(error) = socket.send_to(datagram, to).await
        {
            tracing::debug!(%to, %error, "NAT discovery datagram is not sent");
        }
    }

    /// Gives the next datagram. Cancel-safe.
    async fn receive(&self, buffer: &mut [u8; BUFFER]) -> io::Result<(usize, SocketAddr)> {
        match &self.v6 {
            None => self.v4.recv_from(buffer).await,
            Some(v6) => {
                let mut other = [0; BUFFER];
                tokio::select! {
                    received = self.v4.recv_from(buffer) => received,
                    received = v6.recv_from(&mut other) => {
                        *buffer = other;
                        received
                    }
                }
            }
        }
    }
}

fn open(domain: Domain, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = marked(domain)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn marked(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    setsockopt(&socket, Mark, &OUTER_MARK)?;
    Ok(socket)
}

/// Returns the address from which the kernel would send to `to`.
fn source_towards(to: SocketAddr, port: u16) -> Option<SocketAddr> {
    let socket = marked(Domain::for_address(to)).ok()?;
    socket.connect(&to.into()).ok()?;
    let mut source = socket.local_addr().ok()?.as_socket()?;
    source.set_port(port);
    Some(source)
}

/// The running machine; it ends with it.
pub(crate) struct Discovery {
    peers: watch::Sender<Vec<Endpoint>>,
    choices: watch::Receiver<NatChoices>,
    task: Task,
}

impl Discovery {
    /// Starts with what the previous run found; `wake` rings whenever a choice changes.
    pub(crate) fn start(
        own: OwnEndpoint,
        sockets: Option<Arc<Sockets>>,
        seeds: Vec<(CableName, NatChoice)>,
        first_number: u64,
        wake: Wake,
    ) -> Self {
        let mut machine = NatDiscovery::new(own, first_number, Instant::now());
        for (name, choice) in seeds {
            machine.seed(&name, choice);
        }
        let (peers, wanted) = watch::channel(Vec::new());
        let (found, choices) = watch::channel(machine.choices());
        let task = Task::spawn("NAT discovery", wake.clone(), run(machine, sockets, wanted, found, wake));
        Self { peers, choices, task }
    }

    /// Changes whose addresses are looked for.
    pub(crate) fn set_peers(&self, endpoints: Vec<Endpoint>) {
        self.peers.send_if_modified(|current| {
            let differs = *current != endpoints;
            *current = endpoints;
            differs
        });
    }

    pub(crate) fn choices(&self) -> NatChoices {
        self.choices.borrow().clone()
    }

    /// Makes sure that it still runs.
    pub(crate) fn check(&self) -> Result<(), Ended> {
        self.task.check()
    }
}

async fn run(
    mut machine: NatDiscovery,
    sockets: Option<Arc<Sockets>>,
    mut wanted: watch::Receiver<Vec<Endpoint>>,
    found: watch::Sender<NatChoices>,
    wake: Wake,
) {
    loop {
        machine.handle_timeout(Instant::now());
        while let Some(probe) = machine.poll_transmit(Instant::now()) {
            if let Some(sockets) = &sockets {
                send_probe(sockets, &probe).await;
            }
        }
        let choices = machine.choices();
        if found.send_if_modified(|current| std::mem::replace(current, choices.clone()) != choices) {
            wake.wake();
        }
        let mut buffer = [0; BUFFER];
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                machine.set_peers(wanted.borrow_and_update().iter(), Instant::now());
            }
            () = wait_until(machine.poll_timeout()) => {}
            received = receive(sockets.as_deref(), &mut buffer) => {
                if let Ok((length, from)) = received
                    && let Some(answer) = machine.handle_datagram(&buffer[..length], from, Instant::now())
                    && let Some(sockets) = &sockets
                {
                    sockets.send(&answer, from).await;
                }
            }
        }
    }
}

async fn send_probe(sockets: &Sockets, probe: &Probe) {
    match source_towards(probe.to, sockets.port) {
        Some(source) => sockets.send(&probe.datagram(source), probe.to).await,
        None => tracing::debug!(to = %probe.to, "No route for a NAT discovery request"),
    }
}

async fn receive(sockets: Option<&Sockets>, buffer: &mut [u8; BUFFER]) -> io::Result<(usize, SocketAddr)> {
    match sockets {
        Some(sockets) => sockets.receive(buffer).await,
        None => std::future::pending().await,
    }
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
