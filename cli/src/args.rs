//! The command line as it is typed.

use clap::{Parser, Subcommand, ValueEnum};

use crate::broker_args::{DeployBroker, RecoverBrokerInfo};
use crate::contexts::Places;
use crate::join_args::Join;
use crate::uninstall::Uninstall;

/// Joins the networks of clusters, and shows what joins them.
#[derive(Debug, Parser)]
#[command(name = "culvert", disable_version_flag = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows connections, endpoints, gateways, networks, versions, brokers or global addresses.
    Show(Show),
    /// Looks for what is wrong and says the cause and the way out; exit status 1 if something is.
    Diagnose(Diagnose),
    /// Makes the broker of a clusterset, or repairs it, and writes broker-info.subm into this directory.
    DeployBroker(Box<DeployBroker>),
    /// Writes the broker-info.subm of a broker that is there.
    RecoverBrokerInfo(RecoverBrokerInfo),
    /// Makes this cluster a member of a clusterset, or repairs what an earlier join made.
    Join(Box<Join>),
    /// Takes this cluster out of its clusterset, and everything of Culvert off its nodes.
    Uninstall(Uninstall),
    /// Waits until it is told to end, in pods that are done.
    #[command(hide = true)]
    Pause,
    /// Prints a script that completes this command's words in a shell.
    Completion { shell: clap_complete::Shell },
    /// Prints the version.
    Version,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    pub(crate) what: What,
    #[command(flatten)]
    pub(crate) places: Places,
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Cables to other clusters, and how they are.
    Connections,
    /// Gateways of all clusters as they announce themselves.
    Endpoints,
    /// Gateway nodes of this cluster.
    Gateways,
    /// CIDRs of this cluster: what it says itself, and what other clusters are told.
    Networks,
    /// Versions of the daemons, as configured and as running.
    Versions,
    /// The broker of this cluster's clusterset.
    Brokers,
    /// Global addresses of this cluster, and who holds them.
    #[value(name = "global-ips")]
    GlobalIps,
    /// All of these.
    All,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Diagnose {
    pub(crate) what: Diagnosis,
    #[command(flatten)]
    pub(crate) places: Places,
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Diagnosis {
    /// Whether each other cluster is connected, and if not, why.
    Connections,
    /// Whether everything runs that a member needs; for clusters of Kubernetes.
    Deployment,
    /// Both.
    All,
}

impl What {
    /// Tells whether `part` was asked for.
    pub(crate) fn includes(self, part: Self) -> bool {
        self == part || self == Self::All
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    #[default]
    Table,
    Json,
    Yaml,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn show_takes_a_part_a_store_and_a_format() {
        let args =
            Args::try_parse_from(["culvert", "show", "connections", "--records", "/r", "--output", "json"]).unwrap();
        let Command::Show(show) = args.command else { panic!("not show: {args:?}") };
        assert_eq!((show.what, show.output), (What::Connections, Output::Json));
        assert_eq!(show.places.records.records, Some("/r".into()));
    }

    #[test]
    fn an_unknown_part_is_answered_with_those_there_are() {
        let error = Args::try_parse_from(["culvert", "show", "cables", "--records", "/r"]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("connections, endpoints, gateways, networks, versions, brokers, global-ips, all"),
            "{error}"
        );
    }
}
