//! What the gateway is told: [`Args`] as typed, [`Config`] as meant.
//!
//! Environment variables are Submariner's (chapter 4.1) where it has one of that meaning.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Parser, ValueEnum};
use culvert_gateway_core::election::{ElectionTiming, TimingError};
use culvert_gateway_core::health::HealthTiming;
use culvert_gateway_core::local_endpoint::{Ports, PortsError};
use culvert_gateway_core::public_ip::{Resolver, ResolverError, parse_resolvers};
use culvert_model::{Addresses, CableKind, ClusterId, ClusterIdError};
use culvert_runtime::flags::{self, FlagError, NodeArgs, NodeIdentity};
use culvert_runtime::{Access, Location, Server};
use ipnet::IpNet;

/// The variable with the pre-shared key itself; there is no flag for it, since others can read command lines.
const PSK_VARIABLE: &str = "CE_IPSEC_PSK";
/// The variable with the name of a mounted Secret that has the key (chapter 4.1).
const PSK_SECRET_VARIABLE: &str = "CE_IPSEC_PSKSECRET";

/// Where Submariner's operator mounts Secrets, such as the one that this variable names (chapter 3.3).
const SECRETS: &str = "/run/secrets/submariner.io";
const SECRET_VARIABLE: &str = "BROKER_K8S_SECRET";

/// Joins this cluster with the others of its set by encrypted cables.
#[derive(Debug, Parser)]
#[command(name = "culvert-gateway", version)]
pub struct Args {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Directory of the broker's records; without it and --broker-server nothing is exchanged.
    #[arg(long, env = "CULVERT_BROKER_RECORDS", value_name = "DIR")]
    pub broker_records: Option<PathBuf>,
    /// Address of the broker's API server, HOST:PORT.
    #[arg(long, env = "BROKER_K8S_APISERVER", value_name = "ADDRESS")]
    pub broker_server: Option<String>,
    /// Directory with `token`, `ca.crt` and `namespace` for the broker's API server, as a Secret is mounted
    /// [default: /run/secrets/submariner.io/ and the name in BROKER_K8S_SECRET].
    #[arg(long, env = "CULVERT_BROKER_SECRET", value_name = "DIR")]
    pub broker_secret: Option<PathBuf>,
    /// Namespace of the records at the broker [default: that of the Secret, else submariner-k8s-broker].
    #[arg(long, env = "BROKER_K8S_REMOTENAMESPACE", value_name = "NAME")]
    pub broker_namespace: Option<String>,
    /// Address of this node in its own network, or one of each family [default: the source of the default route].
    #[arg(long, env = "CULVERT_PRIVATE_IP", value_delimiter = ',')]
    pub private_ip: Vec<String>,
    /// How to find the public address: `ipv4:ADDRESS`, `dns:NAME`, `api:HOST/PATH`, or `lb:SERVICE` for the load
    /// balancer of a Service in the namespace of the records; tried in order. Nobody is asked unless named here.
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
    /// File with the pre-shared key of the clusterset, as text [default: the Secret that CE_IPSEC_PSKSECRET names, else the
    /// text in CE_IPSEC_PSK].
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
    /// Where metrics are served, `ADDRESS:PORT` or `off`. Submariner's port, 32780, is of the range from which outgoing
    /// connections of the node take theirs: one of those would keep a gateway's pod from being ready.
    #[arg(long, env = "CULVERT_METRICS_ADDRESS", default_value = "0.0.0.0:9780")]
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
    /// None without Globalnet.
    pub global: Vec<IpNet>,
    pub records: Location,
    pub broker: Option<Location>,
    /// `None`: the broker is no API server.
    pub broker_token: Option<BrokerToken>,
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

/// The token by which an API server that is the broker is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerToken {
    /// The server's address, with scheme.
    pub url: String,
    /// Where the files of the Secret are.
    pub directory: PathBuf,
    pub home: TokenHome,
}

/// Where a renewed token is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenHome {
    /// Into this Secret of the cluster's records' namespace, from which it comes to the files of all gateways.
    Secret(String),
    File,
}

/// Where the pre-shared key comes from. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub enum Psk {
    File(PathBuf),
    /// The key's bytes, as a Secret is mounted; their base64 is the text.
    Secret(PathBuf),
    Text(String),
    /// Submariner's text for a set without one (chapter 4.8).
    Default,
}

impl std::fmt::Debug for Psk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) | Self::Secret(path) => write!(f, "file {}", path.display()),
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
    #[error("--broker-records names a directory, --broker-server an API server: give one of them")]
    TwoBrokers,
    #[error("--broker-server {server} needs a token: give the directory of its Secret with --broker-secret")]
    NoBrokerSecret { server: String },
    #[error("--allow-vxlan: {0}")]
    AllowVxlan(#[source] ClusterIdError),
    #[error("--public-ip: {0}")]
    Resolver(#[from] ResolverError),
    #[error(
        "--public-ip: {resolver} asks for a Service, which a directory of records has not: use ipv4:, dns: or api:"
    )]
    NoServices { resolver: Resolver },
    #[error(transparent)]
    Ports(#[from] PortsError),
    #[error("lease: {0}")]
    Timing(#[from] TimingError),
    #[error("--nat-discovery-port {port} is a cable's port too: choose another")]
    PortTwice { port: u16 },
    #[error("--metrics-address: {value:?} is neither ADDRESS:PORT, as in 127.0.0.1:9780, nor off")]
    Metrics { value: String },
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, Self::Error> {
        let NodeIdentity { cluster, records, pods, services, global, node } = args.node.identity()?;
        let secret = std::env::var_os(SECRET_VARIABLE).map(PathBuf::from);
        let broker = broker(&args, secret.clone())?;
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
        let resolvers = resolvers(&args.public_ip, &records)?;
        Ok(Self {
            cluster,
            pods,
            services,
            global,
            broker_token: broker_token(broker.as_ref(), &records, secret),
            records,
            broker,
            node,
            private: flags::addresses("--private-ip", &args.private_ip)?,
            resolvers,
            nat_enabled: args.nat_enabled,
            backend,
            allow_vxlan,
            ports,
            nat_discovery_port,
            psk: psk(
                args.psk_file,
                std::env::var_os(PSK_SECRET_VARIABLE).map(PathBuf::from),
                std::env::var(PSK_VARIABLE).ok(),
            ),
            key_file: args.key_file,
            election: timing.check()?,
            health: args.node.health_check.then_some(health),
            metrics: metrics_address(args.metrics_address)?,
        })
    }
}

fn resolvers(list: &str, records: &Location) -> Result<Vec<Resolver>, ConfigError> {
    let resolvers = parse_resolvers(list)?;
    let service = resolvers.iter().find(|resolver| matches!(resolver, Resolver::LoadBalancer(_)));
    match (service, records) {
        (Some(resolver), Location::Directory(_)) => Err(ConfigError::NoServices { resolver: resolver.clone() }),
        (_, Location::Directory(_) | Location::Server(_)) => Ok(resolvers),
    }
}

/// `name` is that of a Secret which is mounted where Submariner's operator mounts it.
fn broker(args: &Args, name: Option<PathBuf>) -> Result<Option<Location>, ConfigError> {
    let path = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    match (path(&args.broker_records), text(&args.broker_server)) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(ConfigError::TwoBrokers),
        (Some(root), None) => Ok(Some(Location::Directory(root))),
        (None, Some(address)) => {
            let mounted = path(&name).map(|name| Path::new(SECRETS).join(name));
            let Some(directory) = path(&args.broker_secret).or(mounted) else {
                return Err(ConfigError::NoBrokerSecret { server: address });
            };
            let access = Access::Secret { address, directory };
            Ok(Some(Location::Server(Server { access, namespace: text(&args.broker_namespace) })))
        }
    }
}

/// `name` is that of the Secret from which the files are.
fn broker_token(broker: Option<&Location>, records: &Location, name: Option<PathBuf>) -> Option<BrokerToken> {
    let Location::Server(Server { access: Access::Secret { address, directory }, .. }) = broker? else { return None };
    let url = if address.contains("://") { address.clone() } else { format!("https://{address}") };
    let name = name.and_then(|name| name.into_os_string().into_string().ok()).filter(|name| !name.is_empty());
    let home = match (records, name) {
        (Location::Server(_), Some(name)) => TokenHome::Secret(name),
        (Location::Server(_) | Location::Directory(_), _) => TokenHome::File,
    };
    Some(BrokerToken { url, directory: directory.clone(), home })
}

fn psk(file: Option<PathBuf>, secret: Option<PathBuf>, text: Option<String>) -> Psk {
    let path = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
    match (path(file), path(secret), text.filter(|text| !text.is_empty())) {
        (Some(path), _, _) => Psk::File(path),
        (None, Some(name), _) => Psk::Secret(Path::new(SECRETS).join(name).join("psk")),
        (None, None, Some(text)) => Psk::Text(text),
        (None, None, None) => Psk::Default,
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

    fn broker_of(flags: &[&str], secret: Option<&str>) -> Result<Option<Location>, ConfigError> {
        let fixed = ["culvert-gateway", "--cluster-id=east", "--records=/r", "--cluster-cidr=10.1.0.0/16"];
        let args = Args::try_parse_from(fixed.iter().chain(flags)).expect("flags that clap takes");
        broker(&args, secret.map(PathBuf::from))
    }

    #[test]
    fn the_broker_is_a_directory_or_an_api_server() {
        assert_eq!(broker_of(&[], Some("s")).expect("no broker"), None);
        let directory = broker_of(&["--broker-records=/b"], None).expect("a broker");
        assert_eq!(directory, Some(Location::from("/b")));
        let server = |directory: &str, namespace: Option<&str>| {
            let access = Access::Secret { address: "api:6443".to_owned(), directory: directory.into() };
            Some(Location::Server(Server { access, namespace: namespace.map(str::to_owned) }))
        };
        let flags = ["--broker-server=api:6443", "--broker-secret=/s", "--broker-namespace=n"];
        assert_eq!(broker_of(&flags, Some("other")).expect("a broker"), server("/s", Some("n")));
        let mounted = broker_of(&["--broker-server=api:6443"], Some("s")).expect("a broker");
        assert_eq!(mounted, server("/run/secrets/submariner.io/s", None));
    }

    #[test]
    fn a_token_is_renewed_in_the_secret_that_is_mounted_or_in_its_file() {
        let broker = broker_of(&["--broker-server=api:6443", "--broker-secret=/s"], None).expect("a broker");
        let server = Location::Server(Server { access: Access::Pod, namespace: None });
        let directory = Location::from("/r");
        let home = |records: &Location, name: Option<&str>| {
            let token = broker_token(broker.as_ref(), records, name.map(PathBuf::from)).expect("a token");
            assert_eq!((token.url.as_str(), token.directory.to_str()), ("https://api:6443", Some("/s")));
            token.home
        };
        assert_eq!(home(&server, Some("name")), TokenHome::Secret("name".to_owned()));
        assert_eq!(home(&server, None), TokenHome::File);
        assert_eq!(home(&directory, Some("name")), TokenHome::File);
        assert_eq!(broker_token(Some(&directory), &server, Some("name".into())), None);
        assert_eq!(broker_token(None, &server, Some("name".into())), None);
    }

    #[test]
    fn two_brokers_and_a_broker_without_a_secret_are_refused() {
        let two = broker_of(&["--broker-records=/b", "--broker-server=api"], None);
        assert!(matches!(two, Err(ConfigError::TwoBrokers)));
        let none = broker_of(&["--broker-server=api"], None);
        assert!(matches!(none, Err(ConfigError::NoBrokerSecret { server }) if server == "api"));
    }

    #[test]
    fn only_an_api_server_has_services() {
        let list = "ipv4:198.51.100.7,lb:gateways";
        let server = Location::Server(Server { access: Access::Pod, namespace: None });
        assert_eq!(resolvers(list, &server).expect("resolvers").len(), 2);
        let error = resolvers(list, &Location::from("/r")).expect_err("a directory").to_string();
        assert!(error.contains("lb:gateways") && error.ends_with("use ipv4:, dns: or api:"), "{error}");
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
            ("--metrics-address=9780", "9780"),
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
    fn a_file_comes_before_a_secret_and_that_before_a_text() {
        let (file, secret, text) = (Some("/f".into()), Some("s".into()), Some("t".to_owned()));
        assert_eq!(psk(file, secret.clone(), text.clone()), Psk::File("/f".into()));
        assert_eq!(psk(None, secret, text.clone()), Psk::Secret("/run/secrets/submariner.io/s/psk".into()));
        assert_eq!(psk(Some("".into()), Some("".into()), text), Psk::Text("t".to_owned()));
        assert_eq!(psk(None, None, None), Psk::Default);
    }

    #[test]
    fn a_configuration_shows_no_key() {
        let mut config = parsed(&[]).expect("a configuration");
        config.psk = Psk::Text("geheim".to_owned());
        assert!(!format!("{config:?}").contains("geheim"));
    }
}
