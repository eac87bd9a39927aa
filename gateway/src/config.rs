//! What the gateway is told: [`Args`] as typed, [`Config`] as meant.
//!
//! Environment variables are Submariner's (chapter 4.1) where it has one of that meaning.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Parser, ValueEnum};
use culvert_gateway_core::election::{ElectionTiming, TimingError};
use culvert_gateway_core::health::HealthTiming;
use culvert_gateway_core::local_endpoint::{Ports, PortsError};
use culvert_gateway_core::public_ip::{Resolver, ResolverError, parse_resolvers};
use culvert_model::{Addresses, CableKind, ClusterId, ClusterIdError};
use culvert_runtime::flags::{self, FlagError, NodeArgs, NodeIdentity};
use ipnet::IpNet;

/// The variable with the pre-shared key itself; there is no flag for it, since others can read command lines.
const PSK_VARIABLE: &str = "CE_IPSEC_PSK";

/// Joins this cluster with the others of its set by encrypted cables.
#[derive(Debug, Parser)]
#[command(name = "culvert-gateway", version)]
pub struct Args {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Directory of the broker's records; without it nothing is exchanged.
    #[arg(long, env = "CULVERT_BROKER_RECORDS")]
    pub broker_records: Option<PathBuf>,
    /// Address of this node in its own network, or one of each family [default: the source of the default route].
    #[arg(long, env = "CULVERT_PRIVATE_IP", value_delimiter = ',')]
    pub private_ip: Vec<String>,
    /// How to find the public address: `ipv4:ADDRESS`, `dns:NAME`, `api:HOST/PATH`, tried in order. Nobody is asked
    /// unless named here.
    #[arg(long, env = "SUBMARINER_PUBLICIP", default_value = "")]
    pub public_ip: String,
    /// Whether this gateway sits behind NAT, as the other clusters are told.
    #[arg(long, env = "SUBMARINER_NATENABLED", action = ArgAction::Set, default_value = "false", value_parser = BoolishValueParser::new())]
    pub nat_enabled: bool,
    /// How cables are made where both sides can do either.
    #[arg(long, env = "SUBMARINER_CABLEDRIVER", value_enum, default_value_t = CableDriver::Wireguard)]
    pub cable_driver: CableDriver,
    /// Clusters with which the link is trusted, so that cables to them need not be encrypted; separated by commas.
    #[arg(long, env = "CULVERT_ALLOW_VXLAN", value_delimiter = ',')]
    pub allow_vxlan: Vec<String>,
    /// UDP port of the cables; with VXLAN, which keeps it, WireGuard has the next one.
    #[arg(long, env = "CE_IPSEC_NATTPORT", default_value_t = 4500, value_parser = clap::value_parser!(u16).range(1..))]
    pub natt_port: u16,
    /// UDP port of NAT discovery; 0 switches it off.
    #[arg(long, env = "CULVERT_NAT_DISCOVERY_PORT", default_value_t = 4490)]
    pub nat_discovery_port: u16,
    /// File with the pre-shared key of the clusterset, as text [default: the variable CE_IPSEC_PSK].
    #[arg(long, env = "CULVERT_PSK_FILE")]
    pub psk_file: Option<PathBuf>,
    /// File of the WireGuard key, made if missing; on a file system in memory, so that it never outlives the node.
    #[arg(long, env = "CULVERT_KEY_FILE", default_value = "/run/culvert/wireguard.key")]
    pub key_file: PathBuf,
    /// Seconds after which a lease that is not renewed may be taken.
    #[arg(long, env = "LEADERSHIP_LEASEDURATION", default_value_t = 15)]
    pub lease_duration: u64,
    /// Seconds without renewal after which the active gateway steps down.
    #[arg(long, env = "LEADERSHIP_RENEWDEADLINE", default_value_t = 10)]
    pub renew_deadline: u64,
    /// Seconds between looks at the lease.
    #[arg(long, env = "LEADERSHIP_RETRYPERIOD", default_value_t = 2)]
    pub retry_period: u64,
    /// Where metrics are served, `ADDRESS:PORT` or `off`.
    #[arg(long, env = "CULVERT_METRICS_ADDRESS", default_value = "0.0.0.0:32780")]
    pub metrics_address: String,
}

/// Cable drivers by Submariner's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CableDriver {
    Wireguard,
    Vxlan,
}

/// What the gateway works with, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub cluster: ClusterId,
    pub pods: Vec<IpNet>,
    pub services: Vec<IpNet>,
    pub records: PathBuf,
    pub broker: Option<PathBuf>,
    pub node: String,
    /// `None`: the sources of the default routes.
    pub private: Option<Addresses>,
    pub resolvers: Vec<Resolver>,
    pub nat_enabled: bool,
    pub backend: CableKind,
    pub allow_vxlan: BTreeSet<ClusterId>,
    pub ports: Ports,
    pub nat_discovery_port: Option<u16>,
    pub psk: Psk,
    pub key_file: PathBuf,
    pub election: ElectionTiming,
    /// `None`: no health check.
    pub health: Option<HealthTiming>,
    pub metrics: Option<SocketAddr>,
}

/// Where the pre-shared key comes from. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub enum Psk {
    File(PathBuf),
    Text(String),
    /// Submariner's text for a set without one (chapter 4.8).
    Default,
}

impl std::fmt::Debug for Psk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Text(_) => f.write_str("from the environment"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Why the flags cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Flag(#[from] FlagError),
    #[error("--allow-vxlan: {0}")]
    AllowVxlan(#[source] ClusterIdError),
    #[error("--public-ip: {0}")]
    Resolver(#[from] ResolverError),
    #[error(transparent)]
    Ports(#[from] PortsError),
    #[error("lease: {0}")]
    Timing(#[from] TimingError),
    #[error("--nat-discovery-port {port} is a cable's port too: choose another")]
    PortTwice { port: u16 },
    #[error("--metrics-address: {value:?} is neither ADDRESS:PORT, as in 127.0.0.1:32780, nor off")]
    Metrics { value: String },
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, Self::Error> {
        let NodeIdentity { cluster, pods, services, node } = args.node.identity()?;
        let allow_vxlan: BTreeSet<ClusterId> = flags::given(&args.allow_vxlan)
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(ConfigError::AllowVxlan)?;
        let backend = match args.cable_driver {
            CableDriver::Wireguard => CableKind::WireGuard,
            CableDriver::Vxlan => CableKind::Vxlan,
        };
        let ports = Ports::assign(args.natt_port, backend, !allow_vxlan.is_empty())?;
        let nat_discovery_port = (args.nat_discovery_port != 0).then_some(args.nat_discovery_port);
        if let Some(port) = nat_discovery_port
            && (port == ports.wireguard || Some(port) == ports.vxlan)
        {
            return Err(ConfigError::PortTwice { port });
        }
        let timing = ElectionTiming {
            lease_duration: Duration::from_secs(args.lease_duration),
            renew_deadline: Duration::from_secs(args.renew_deadline),
            retry_period: Duration::from_secs(args.retry_period),
        };
        let health = HealthTiming {
            interval: Duration::from_millis(args.node.health_check_interval_ms),
            max_lost: args.node.health_check_max_packet_loss,
        };
        Ok(Self {
            cluster,
            pods,
            services,
            records: args.node.records,
            broker: args.broker_records.filter(|path| !path.as_os_str().is_empty()),
            node,
            private: flags::addresses("--private-ip", &args.private_ip)?,
            resolvers: parse_resolvers(&args.public_ip)?,
            nat_enabled: args.nat_enabled,
            backend,
            allow_vxlan,
            ports,
            nat_discovery_port,
            psk: psk(args.psk_file, std::env::var(PSK_VARIABLE).ok()),
            key_file: args.key_file,
            election: timing.check()?,
            health: args.node.health_check.then_some(health),
            metrics: metrics_address(args.metrics_address)?,
        })
    }
}

fn psk(file: Option<PathBuf>, text: Option<String>) -> Psk {
    match (file.filter(|path| !path.as_os_str().is_empty()), text.filter(|text| !text.is_empty())) {
        (Some(path), _) => Psk::File(path),
        (None, Some(text)) => Psk::Text(text),
        (None, None) => Psk::Default,
    }
}

fn metrics_address(value: String) -> Result<Option<SocketAddr>, ConfigError> {
    match value.as_str() {
        "off" | "" => Ok(None),
        address => address.parse().map(Some).map_err(|_| ConfigError::Metrics { value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(flags: &[&str]) -> Result<Config, ConfigError> {
        let fixed = ["culvert-gateway", "--cluster-id=east", "--records=/r", "--cluster-cidr=10.1.0.0/16"];
        Config::try_from(Args::try_parse_from(fixed.iter().chain(flags)).expect("flags that clap takes"))
    }

    #[test]
    fn wireguard_is_the_default_and_alone() {
        let config = parsed(&[]).expect("a configuration");
        assert_eq!(config.backend, CableKind::WireGuard);
        assert_eq!(config.ports, Ports { wireguard: 4500, vxlan: None });
        assert_eq!(config.nat_discovery_port, Some(4490));
        assert!(config.resolvers.is_empty());
    }

    #[test]
    fn where_vxlan_is_allowed_it_has_the_port() {
        let config = parsed(&["--allow-vxlan=west,north"]).expect("a configuration");
        assert_eq!(config.ports, Ports { wireguard: 4501, vxlan: Some(4500) });
        assert_eq!(config.allow_vxlan.len(), 2);
    }

    #[test]
    fn bad_flags_are_named_in_the_error() {
        for (flag, named) in [
            ("--cluster-cidr=10.1.0.0/99", "10.1.0.0/99"),
            ("--service-cidr=0.0.0.0/0", "0.0.0.0/0"),
            ("--private-ip=localhost", "localhost"),
            ("--allow-vxlan=West", "West"),
            ("--public-ip=ipv4:here", "ipv4:here"),
            ("--public-ip=lb:submariner-gateway", "lb:submariner-gateway"),
            ("--renew-deadline=20", "20"),
            ("--nat-discovery-port=4500", "4500"),
            ("--metrics-address=32780", "32780"),
        ] {
            let error = format!("{:#}", anyhow::Error::from(parsed(&[flag]).expect_err(flag)));
            assert!(error.contains(named), "{flag}: {error}");
        }
    }

    #[test]
    fn impossible_ports_and_drivers_are_refused_by_the_parser() {
        for flag in ["--natt-port=0", "--natt-port=70000", "--cable-driver=libreswan", "--health-check-interval-ms=0"] {
            let fixed = ["culvert-gateway", "--cluster-id=east", "--records=/r", "--cluster-cidr=10.1.0.0/16", flag];
            assert!(Args::try_parse_from(fixed).is_err(), "{flag}");
        }
    }

    #[test]
    fn a_configuration_shows_no_key() {
        let mut config = parsed(&[]).expect("a configuration");
        config.psk = Psk::Text("geheim".to_owned());
        assert!(!format!("{config:?}").contains("geheim"));
    }
}
