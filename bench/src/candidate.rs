//! What is measured: the ways to join two pods' networks.

use clap::ValueEnum;
use serde::Serialize;

/// A way for packets from gateway to gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Candidate {
    /// Plain forwarding: no tunnel.
    Raw,
    /// The kernel's VXLAN device, made by hand.
    Vxlan,
    /// WireGuard in user space, in Go.
    WireguardGo,
    /// WireGuard in user space by boringtun's own program.
    BoringtunCli,
    /// Culvert's daemons with a VXLAN cable.
    CulvertVxlan,
    /// Culvert's daemons with a WireGuard cable.
    CulvertWireguard,
}

impl Candidate {
    /// Returns the name in tables; `--only` takes the same.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vxlan => "vxlan",
            Self::WireguardGo => "wireguard-go",
            Self::BoringtunCli => "boringtun-cli",
            Self::CulvertVxlan => "culvert-vxlan",
            Self::CulvertWireguard => "culvert-wireguard",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_in_tables_is_that_of_the_flag_and_of_the_json() {
        for candidate in Candidate::value_variants() {
            let flag = candidate.to_possible_value().unwrap();
            assert_eq!(flag.get_name(), candidate.as_str());
            assert_eq!(serde_json::to_value(candidate).unwrap(), candidate.as_str());
        }
    }
}
