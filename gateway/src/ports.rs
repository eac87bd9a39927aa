//! Keeps the cables' UDP ports for this gateway, from its start on and while it stands by.
//!
//! A gateway that cannot have its ports must not win the lease while another could: they are bound before the election,
//! and given up only to what uses them, the data plane and the kernel's VXLAN device.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use culvert_gateway_core::local_endpoint::Ports;
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// Ports from the configured one on that WireGuard may have where VXLAN has the configured one.
const CHOICE: u16 = 16;

/// What a host without IPv6 says; it has no IPv6 peers.
const NO_IPV6: [Errno; 2] = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL];

/// Why a port cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error(
        "UDP port {port} is in use, so {cables} cables cannot have it: stop what listens there (`ss -ulnp`), \
         or set --natt-port"
    )]
    InUse { port: u16, cables: &'static str },
    #[error("UDP port {port} cannot be opened for {cables} cables")]
    Open { port: u16, cables: &'static str, source: io::Error },
}

/// The ports, and the sockets that keep those which nothing uses yet; they hear nobody.
#[derive(Debug)]
pub(crate) struct HeldPorts {
    ports: Ports,
    wireguard: Vec<Socket>,
    vxlan: Vec<Socket>,
}

impl HeldPorts {
    /// Takes the ports; `has_device` tells that a VXLAN device of ours is there, which may have its port already.
    ///
    /// VXLAN must have the configured port. WireGuard's is published, so beside VXLAN it may be another: of sixteen, the
    /// first that is free.
    ///
    /// # Errors
    ///
    /// [`PortError`] names the port that somebody else has.
    pub(crate) fn take(wanted: Ports, has_device: bool) -> Result<Self, PortError> {
        let mut held = Self { ports: wanted, wireguard: Vec::new(), vxlan: Vec::new() };
        if wanted.vxlan.is_some() {
            let last = wanted.wireguard.saturating_add(CHOICE - 1);
            let is_free = |port: &u16| hold(*port).is_ok();
            held.ports.wireguard = (wanted.wireguard..=last).find(is_free).unwrap_or(wanted.wireguard);
        }
        held.retake(has_device)?;
        Ok(held)
    }

    pub(crate) fn ports(&self) -> Ports {
        self.ports
    }

    /// Takes what was given up and is used no more.
    pub(crate) fn retake(&mut self, has_device: bool) -> Result<(), PortError> {
        if self.wireguard.is_empty() {
            self.wireguard = keep(self.ports.wireguard, "wireguard")?;
        }
        self.retake_vxlan(has_device)
    }

    fn retake_vxlan(&mut self, has_device: bool) -> Result<(), PortError> {
        let Some(port) = self.ports.vxlan.filter(|_| self.vxlan.is_empty()) else { return Ok(()) };
        match keep(port, "vxlan") {
            Ok(sockets) => self.vxlan = sockets,
            Err(PortError::InUse { .. }) if has_device => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Gives WireGuard's port to the data plane, which is about to start.
    pub(crate) fn give_up_wireguard(&mut self) {
        self.wireguard.clear();
    }

    /// Gives VXLAN's port to the device, which is about to be made.
    ///
    /// # Errors
    ///
    /// [`PortError`] if somebody else has taken it since the device went.
    pub(crate) fn give_up_vxlan(&mut self, has_device: bool) -> Result<(), PortError> {
        let free = self.retake_vxlan(has_device);
        self.vxlan.clear();
        free
    }
}

fn keep(port: u16, cables: &'static str) -> Result<Vec<Socket>, PortError> {
    hold(port).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            PortError::InUse { port, cables }
        } else {
            PortError::Open { port, cables, source }
        }
    })
}

/// Binds a port of all local addresses of both families.
fn hold(port: u16) -> io::Result<Vec<Socket>> {
    let mut sockets = vec![bound(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())?];
    match bound(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()) {
        Ok(socket) => sockets.push(socket),
        Err(error) if NO_IPV6.contains(&Errno::from_raw(error.raw_os_error().unwrap_or(0))) => {}
        Err(error) => return Err(error),
    }
    Ok(sockets)
}

fn bound(domain: Domain, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// Returns a socket that has a port of its own.
    fn stranger() -> (UdpSocket, u16) {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    fn is_free(port: u16) -> bool {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
    }

    #[test]
    fn a_port_is_kept_until_it_is_given_up() {
        let (socket, port) = stranger();
        drop(socket);
        let mut held = HeldPorts::take(Ports { wireguard: port, vxlan: None }, false).unwrap();
        assert!(!is_free(port));
        held.give_up_wireguard();
        assert!(is_free(port));
        held.retake(false).unwrap();
        assert!(!is_free(port));
    }

    #[test]
    fn a_port_of_somebody_else_is_named_and_the_other_is_not_kept() {
        let (_socket, port) = stranger();
        for wanted in [Ports { wireguard: port, vxlan: None }, Ports { wireguard: 0, vxlan: Some(port) }] {
            let error = HeldPorts::take(wanted, false).unwrap_err().to_string();
            assert!(error.contains(&format!("UDP port {port} is in use")) && error.contains("--natt-port"), "{error}");
        }
    }

    #[test]
    fn the_port_of_our_own_device_is_no_error() {
        let (socket, port) = stranger();
        let wanted = Ports { wireguard: 0, vxlan: Some(port) };
        let mut held = HeldPorts::take(wanted, true).unwrap();
        assert!(held.give_up_vxlan(true).is_ok());
        assert!(held.give_up_vxlan(false).is_err());
        drop(socket);
        held.retake(false).unwrap();
        assert!(!is_free(port));
        assert!(held.give_up_vxlan(false).is_ok());
        assert!(is_free(port));
    }

    #[test]
    fn beside_vxlan_wireguard_passes_over_a_port_that_is_taken() {
        let (_socket, taken) = stranger();
        let held = HeldPorts::take(Ports { wireguard: taken, vxlan: Some(0) }, false).unwrap();
        assert_ne!(held.ports().wireguard, taken);
    }
}
