//! What Globalnet is told: [`Args`] as typed, [`Config`] as meant.

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
}

/// What Globalnet works with, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub cluster: ClusterId,
    /// Empty: the cluster is reached by its own addresses.
    pub global: Vec<IpNet>,
    pub records: Location,
    pub node: String,
}

impl TryFrom<Args> for Config {
    type Error = FlagError;

    fn try_from(args: Args) -> Result<Self, Self::Error> {
        let NodeIdentity { cluster, records, node, global, .. } = args.node.identity()?;
        Ok(Self { cluster, global, records, node })
    }
}
