//! Cables: what the gateway wants of its data plane, and what the data plane tells back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::PublicKey;

/// A cable's name within its cluster: the remote endpoint's cable name.
pub type CableName = String;

/// All WireGuard cables of a gateway. The data plane compares it with what it runs and changes only what differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CableSet {
    pub cables: BTreeMap<CableName, WireGuardCable>,
    /// Cables that packets are taken from, but nothing is sent to: one that is about to carry a cluster's traffic, or has
    /// just ceased to.
    pub receive_only: BTreeSet<CableName>,
    /// Those of them that carry traffic from the first packet on that comes by them, in place of the cable named here.
    pub successors: BTreeMap<CableName, CableName>,
    /// Subnets of this cluster: inner packets to any other destination are dropped and counted.
    pub local_subnets: Vec<IpNet>,
}

/// One WireGuard session pair with a remote gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireGuardCable {
    pub public_key: PublicKey,
    /// Where the peer may be reached, best first; handshakes go to each in turn until one is answered. Empty when only
    /// the peer can reach us. After a handshake, packets go where the peer's last authenticated packet came from.
    pub candidates: Vec<SocketAddr>,
    /// Subnets behind the peer: the only sources that its inner packets may have, and what is sent to it.
    pub subnets: Vec<IpNet>,
}

/// What a cable has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CableReport {
    /// Inner bytes received and sent, since the cable was made.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// Age of the newest completed handshake.
    pub last_handshake: Option<Duration>,
    /// Age of the newest authenticated packet.
    pub last_received: Option<Duration>,
    /// Where packets to the peer go now.
    pub remote: Option<SocketAddr>,
    /// The largest outer packet, in bytes, that the path takes, as far as known.
    pub path_mtu: Option<u16>,
    /// Inner packets dropped since their source was not the peer's.
    pub dropped_source: u64,
    /// Inner packets dropped since their destination is none of ours.
    pub dropped_destination: u64,
}
