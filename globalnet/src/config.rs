//! What Globalnet is told: [`Args`] as typed, [`Config`] as meant.

use std::net::{IpAddr, SocketAddr};

use clap::Parser;
use culvert_model::ClusterId;
use culvert_runtime::Location;
use culvert_runtime::flags::{FlagError, NodeArgs, NodeIdentity};
use ipnet::IpNet;

/// Gives services global addresses and translates what passes a gateway's cables.
#[derive(Debug, Parser)]
#[command(name = "culvert-globalnet", version)]
pub struct Args {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Only say which pods stand behind a global address of this cluster, or an address and port, as long as their flows
    /// live. To be asked on the active gateway's node.
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = seen_address)]
    pub who_called: Option<Seen>,
}

/// What another cluster's server sees of a client: the port is `None` for all ports.
pub type Seen = (IpAddr, Option<u16>);

fn seen_address(text: &str) -> Result<Seen, String> {
    let with_port = text.parse::<SocketAddr>().map(|both| (both.ip(), Some(both.port())));
    let alone = || text.parse::<IpAddr>().map(|address| (address, None));
    with_port
        .or_else(|_| alone())
        .map_err(|_| format!("{text:?} is no address: give one such as 242.0.0.1 or 242.0.0.1:40000"))
}

/// What Globalnet works with, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub cluster: ClusterId,
    /// Pod and service CIDRs of this cluster.
    pub local: Vec<IpNet>,
    /// Empty: the cluster is reached by its own addresses.
    pub global: Vec<IpNet>,
    pub records: Location,
    pub node: String,
}

impl TryFrom<Args> for Config {
    type Error = FlagError;

    fn try_from(args: Args) -> Result<Self, Self::Error> {
        let NodeIdentity { cluster, records, node, global, pods, services } = args.node.identity()?;
        Ok(Self { cluster, local: [pods, services].concat(), global, records, node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_called_takes_an_address_with_or_without_a_port() {
        let seen = |text: &str| {
            let flags =
                ["culvert-globalnet", "--cluster-id=a", "--cluster-cidr=10.1.0.0/16", "--records=/r", "--who-called"];
            Args::try_parse_from(flags.iter().copied().chain([text])).map(|args| args.who_called.unwrap())
        };
        assert_eq!(seen("242.0.0.1:40000").unwrap(), ("242.0.0.1".parse().unwrap(), Some(40_000)));
        assert_eq!(seen("fd00::1").unwrap(), ("fd00::1".parse().unwrap(), None));
        assert!(seen("web").unwrap_err().to_string().contains("\"web\" is no address"));
    }
}
