//! What the route agent is told: [`Args`] as typed, [`Config`] as meant.
//!
//! Environment variables are Submariner's (chapter 7) where it has one of that meaning.

use std::time::Duration;

use clap::Parser;
use culvert_model::{Addresses, ClusterId};
use culvert_route_agent_core::Pace;
use culvert_runtime::Location;
use culvert_runtime::flags::{self, FlagError, NodeArgs, NodeIdentity};
use ipnet::IpNet;

/// Routes this node's traffic for other clusters to the cluster's gateway.
#[derive(Debug, Parser)]
#[command(name = "culvert-route-agent", version)]
pub struct Args {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Address of this node, or one of each family [default: the source of the default route].
    #[arg(long, env = "CULVERT_NODE_IP", value_delimiter = ',')]
    pub node_ip: Vec<String>,
    /// Network plugin of this cluster. With calico, its IPPools at the API server tell it of the other clusters' subnets.
    #[arg(long, env = "SUBMARINER_NETWORKPLUGIN", default_value = "generic")]
    pub network_plugin: String,
}

/// What the route agent works with, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub cluster: ClusterId,
    pub pods: Vec<IpNet>,
    pub services: Vec<IpNet>,
    /// None without Globalnet.
    pub global: Vec<IpNet>,
    pub records: Location,
    pub node: String,
    /// `None`: the sources of the default routes.
    pub address: Option<Addresses>,
    /// `None`: no health check.
    pub probe: Option<Pace>,
    /// Whether Calico is the network plugin.
    pub calico: bool,
}

impl TryFrom<Args> for Config {
    type Error = FlagError;

    fn try_from(args: Args) -> Result<Self, Self::Error> {
        let NodeIdentity { cluster, records, pods, services, global, node } = args.node.identity()?;
        let interval = Duration::from_millis(args.node.health_check_interval_ms);
        let pace = Pace::of_node(interval, args.node.health_check_max_packet_loss);
        Ok(Self {
            cluster,
            pods,
            services,
            global,
            records,
            node,
            address: flags::addresses("--node-ip", &args.node_ip)?,
            probe: args.node.health_check.then_some(pace),
            calico: args.network_plugin.trim().eq_ignore_ascii_case("calico"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(flags: &[&str]) -> Result<Config, FlagError> {
        let fixed = ["culvert-route-agent", "--cluster-id=east", "--records=/r", "--cluster-cidr=10.1.0.0/16"];
        Config::try_from(Args::try_parse_from(fixed.iter().chain(flags)).unwrap())
    }

    fn refusal(flags: &[&str]) -> String {
        parsed(flags).expect_err("bad flags").to_string()
    }

    #[test]
    fn flags_become_values() {
        let config = parsed(&[
            "--cluster-cidr=10.3.4.5/16,fd01::/48",
            "--service-cidr=100.1.0.0/16",
            "--global-cidr=242.1.0.0/16",
            "--node-name=n1",
            "--node-ip=192.168.1.10,fd00::10",
        ])
        .unwrap();

        let texts: Vec<String> = config.pods.iter().map(IpNet::to_string).collect();
        assert_eq!(texts, ["10.1.0.0/16", "10.3.0.0/16", "fd01::/48"]);
        assert_eq!((config.services.len(), config.global.len()), (1, 1));
        assert_eq!(config.node, "n1");
        assert_eq!(config.address.unwrap().iter().count(), 2);
        assert_eq!(config.probe.unwrap().answered, Duration::from_secs(12));
    }

    #[test]
    fn the_health_check_can_be_switched_off() {
        assert_eq!(parsed(&["--health-check=false"]).unwrap().probe, None);
    }

    #[test]
    fn calico_is_known_by_its_name_in_any_case() {
        for (flags, calico) in [
            (&[][..], false),
            (&["--network-plugin="], false),
            (&["--network-plugin=canal-flannel"], false),
            (&["--network-plugin=calico"], true),
            (&["--network-plugin=Calico"], true),
        ] {
            assert_eq!(parsed(flags).unwrap().calico, calico, "{flags:?}");
        }
    }

    #[test]
    fn bad_values_are_refused_by_flag_and_value() {
        for (flag, words) in [
            ("--cluster-cidr=10.1.0.0", "--cluster-cidr: \"10.1.0.0\" is no CIDR"),
            ("--service-cidr=100.1.0.0/33", "--service-cidr: \"100.1.0.0/33\" is no CIDR"),
            ("--global-cidr=242.1.0.0", "--global-cidr: \"242.1.0.0\" is no CIDR"),
            ("--global-cidr=10.1.7.0/24", "--global-cidr: 10.1.7.0/24 overlaps 10.1.0.0/16 of this cluster itself"),
            ("--service-cidr=0.0.0.0/0", "--service-cidr: 0.0.0.0/0 covers every address"),
            ("--node-ip=eth0", "--node-ip: \"eth0\" is no address"),
            ("--node-ip=127.0.0.1", "--node-ip: \"127.0.0.1\" is no address"),
            ("--node-ip=10.0.0.1,10.0.0.2", "--node-ip names two IPv4 addresses"),
            ("--node-name=../..", "--node-name: \"../..\" is no name"),
        ] {
            assert!(refusal(&[flag]).starts_with(words), "{flag}: {}", refusal(&[flag]));
        }
    }

    #[test]
    fn a_cluster_id_that_is_no_label_and_missing_pods_are_refused() {
        let args = |id: &str, pods: &str| {
            let flags = ["culvert-route-agent", "--records=/r", "--cluster-id", id, "--cluster-cidr", pods];
            Config::try_from(Args::try_parse_from(flags).unwrap()).expect_err("bad flags").to_string()
        };
        assert!(args("East", "10.1.0.0/16").contains("\"East\" is no DNS label"));
        assert!(args("east", "").contains("--cluster-cidr is empty"));
    }

    #[test]
    fn probes_may_not_be_sent_without_a_pause() {
        let flags =
            ["x", "--cluster-id=a", "--records=/r", "--cluster-cidr=10.1.0.0/16", "--health-check-interval-ms=0"];
        assert!(Args::try_parse_from(flags).is_err());
    }
}
