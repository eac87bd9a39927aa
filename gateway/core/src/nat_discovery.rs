//! Decides under which address a remote gateway is reached: Submariner's NAT discovery (chapter 4.4).
//!
//! Every gateway asks the others, at their private and at their public address, and answers whoever asks. Releases up to
//! 0.20 name endpoints by cable name, later ones by the cable name of a family, and refuse the other form; both are
//! answered and both are sent until the peer has answered to one.

mod machine;
mod peer;
mod wire;

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_model::{Addresses, CableName, ClusterId, Endpoint, IpFamily};

pub use machine::{NatDiscovery, Probe};
pub use wire::respond;

/// What is known, by cable and family.
pub type NatChoices = BTreeMap<(CableName, IpFamily), NatChoice>;

/// The address of a remote gateway in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatChoice {
    pub address: IpAddr,
    /// Whether there is NAT on the way.
    pub nat: bool,
    pub source: NatSource,
}

/// Why an address was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatSource {
    /// The peer answered at its private address.
    Private,
    /// The peer answered to a request to its public address.
    Public,
    /// The peer has not answered: the rule from before NAT discovery.
    Fallback,
}

/// This gateway, as it names itself in requests and answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnEndpoint {
    pub cluster: ClusterId,
    pub cable_name: CableName,
    pub private: Addresses,
    /// Where NAT discovery is answered; `None` when it is off.
    pub port: Option<u16>,
}

impl From<&Endpoint> for OwnEndpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            cluster: endpoint.cluster.clone(),
            cable_name: endpoint.cable_name.clone(),
            private: endpoint.private,
            port: endpoint.nat_discovery_port,
        }
    }
}

/// How a message names an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum IdForm {
    /// The cable name: releases up to 0.20.
    Bare,
    /// The cable name of a family: later ones.
    Family,
}

impl IdForm {
    const ALL: [Self; 2] = [Self::Family, Self::Bare];

    fn id(self, cable_name: &str, family: IpFamily) -> String {
        match self {
            Self::Bare => cable_name.to_owned(),
            Self::Family => format!("{cable_name}-v{family}"),
        }
    }
}
