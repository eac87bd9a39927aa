//! Reads what daemons are given as flags: CIDRs, addresses, the node's name.
//!
//! Every flag has an environment variable, and one that is set to nothing counts as not given.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::ArgAction;
use clap::builder::{BoolishValueParser, FalseyValueParser};
use culvert_api::object_name;
use culvert_model::{Addresses, ClusterId, ClusterIdError, IpFamily, SubnetError, overlaps};
use ipnet::IpNet;

use crate::logging::LogFormat;
use crate::{Access, Choice, Location, Server};

/// The flags that all daemons on nodes have; variables are Submariner's (chapters 4.1 and 7) where it has one.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Id of this cluster: a DNS label.
    #[arg(long, env = "SUBMARINER_CLUSTERID")]
    pub cluster_id: String,
    /// Pod CIDRs of this cluster, separated by commas.
    #[arg(long, env = "SUBMARINER_CLUSTERCIDR", value_delimiter = ',', required = true)]
    pub cluster_cidr: Vec<String>,
    /// Service CIDRs of this cluster, separated by commas.
    #[arg(long, env = "SUBMARINER_SERVICECIDR", value_delimiter = ',')]
    pub service_cidr: Vec<String>,
    /// Global CIDRs of this cluster, separated by commas: other clusters reach it by these alone. None without Globalnet.
    #[arg(long, env = "SUBMARINER_GLOBALCIDR", value_delimiter = ',')]
    pub global_cidr: Vec<String>,
    #[command(flatten)]
    pub records: RecordsArgs,
    /// Name of this node [default: the host name].
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Whether to probe the other clusters' gateways.
    #[arg(
        long,
        env = "SUBMARINER_HEALTHCHECKENABLED",
        action = ArgAction::Set,
        default_value = "true",
        value_parser = BoolishValueParser::new()
    )]
    pub health_check: bool,
    /// Milliseconds between the probes of a gateway; other nodes probe 60 times more seldom.
    #[arg(
        long,
        env = "CULVERT_HEALTHCHECK_INTERVAL_MS",
        default_value_t = 200,
        value_parser = clap::value_parser!(u64).range(10..=60_000)
    )]
    pub health_check_interval_ms: u64,
    /// Probes in a row that may be lost.
    #[arg(long, env = "CULVERT_HEALTHCHECK_MAX_PACKET_LOSS", default_value_t = 4)]
    pub health_check_max_packet_loss: u32,
    /// Remove all that is this daemon's from the node, and its records, and exit.
    #[arg(long, env = "SUBMARINER_UNINSTALL", value_parser = FalseyValueParser::new())]
    pub uninstall: bool,
    /// off, error, warn, info, debug, trace, or directives such as info,culvert_kernel=debug.
    #[arg(long, env = "CULVERT_LOG", default_value = "info,boringtun=off,kube_client=off,kube_runtime=off")]
    pub log_level: String,
    /// How log lines look.
    #[arg(long, env = "CULVERT_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// The flags that say where a cluster's records are. In a pod none is needed.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RecordsArgs {
    /// Directory of this cluster's records, for clusters without an API server.
    #[arg(long, env = "CULVERT_RECORDS", value_name = "DIR")]
    pub records: Option<PathBuf>,
    /// Kubeconfig of the API server that has this cluster's records [default: a pod's own account, else $KUBECONFIG].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one].
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace of the records at the API server [default: a pod's own, else submariner-operator].
    #[arg(long, env = "SUBMARINER_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
}

/// Where a process finds an API server when no flag names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surroundings {
    Pod,
    /// `KUBECONFIG` names a file, or a person has `~/.kube/config`.
    Kubeconfig,
    Neither,
}

impl Surroundings {
    /// Looks at the environment of a command that a person types: as `kubectl` does, it finds `~/.kube/config`.
    pub fn of_person() -> Self {
        let has_default = || std::env::home_dir().is_some_and(|home| home.join(".kube/config").exists());
        match Self::of_daemon() {
            Self::Neither if has_default() => Self::Kubeconfig,
            found @ (Self::Pod | Self::Kubeconfig | Self::Neither) => found,
        }
    }

    /// Looks at the environment of a daemon, which must not write to whichever cluster somebody looked at last.
    pub fn of_daemon() -> Self {
        if Access::in_pod() {
            Self::Pod
        } else if std::env::var_os("KUBECONFIG").is_some_and(|files| !files.is_empty()) {
            Self::Kubeconfig
        } else {
            Self::Neither
        }
    }
}

impl RecordsArgs {
    /// Returns where the records are.
    ///
    /// # Errors
    ///
    /// [`FlagError`] if two places are given, or none.
    pub fn location(&self, surroundings: Surroundings) -> Result<Location, FlagError> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let file = self.kubeconfig.clone().filter(|file| !file.as_os_str().is_empty());
        let context = given(&self.context);
        let records = self.records.clone().filter(|root| !root.as_os_str().is_empty());
        let access = match (records, file.is_some() || context.is_some(), surroundings) {
            (Some(_), true, _) => return Err(FlagError::TwoStores),
            (Some(root), false, _) => return Ok(Location::Directory(root)),
            (None, true, _) | (None, false, Surroundings::Kubeconfig) => {
                Access::Kubeconfig { file, choice: Choice { context, ..Choice::default() } }
            }
            (None, false, Surroundings::Pod) => Access::Pod,
            (None, false, Surroundings::Neither) => return Err(FlagError::NoStore),
        };
        Ok(Location::Server(Server { access, namespace: given(&self.namespace) }))
    }
}

/// What [`NodeArgs`] say of the node and its cluster, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    pub cluster: ClusterId,
    pub records: Location,
    pub pods: Vec<IpNet>,
    pub services: Vec<IpNet>,
    pub global: Vec<IpNet>,
    pub node: String,
}

impl NodeArgs {
    /// Checks who this node is.
    ///
    /// # Errors
    ///
    /// [`FlagError`] names the flag and the value.
    pub fn identity(&self) -> Result<NodeIdentity, FlagError> {
        let pods = subnets("--cluster-cidr", &self.cluster_cidr)?;
        if pods.is_empty() {
            return Err(FlagError::NoCidr { flag: "--cluster-cidr" });
        }
        let services = subnets("--service-cidr", &self.service_cidr)?;
        let global = subnets("--global-cidr", &self.global_cidr)?;
        check_global(&global, pods.iter().chain(&services))?;
        Ok(NodeIdentity {
            cluster: self.cluster_id.parse()?,
            records: self.records.location(Surroundings::of_daemon())?,
            pods,
            services,
            global,
            node: node_name(self.node_name.clone())?,
        })
    }
}

/// Why a flag cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    #[error("--cluster-id: {0}")]
    ClusterId(#[from] ClusterIdError),
    #[error("{flag}: {value:?} is no CIDR: write it as `10.1.0.0/16` or `fd00:1::/48`")]
    Cidr { flag: &'static str, value: String },
    #[error("{flag}: {value} covers every address: give the range that this cluster uses")]
    Everything { flag: &'static str, value: IpNet },
    #[error(
        "--global-cidr: {global} overlaps {local} of this cluster itself: run `culvert join` with another --globalnet-cidr"
    )]
    GlobalOverlaps { global: IpNet, local: IpNet },
    #[error("--global-cidr: {0}")]
    Global(#[from] SubnetError),
    #[error("{flag} is empty: give the CIDRs of this cluster")]
    NoCidr { flag: &'static str },
    #[error("{flag}: {value:?} is no address that a node can have: write it as `192.168.1.10`")]
    Address { flag: &'static str, value: String },
    #[error("{flag} names two IPv{family} addresses: give one of each family at most")]
    TwoAddresses { flag: &'static str, family: IpFamily },
    #[error("--node-name: {value:?} is no name for a record: use letters, digits, '-' and '.'")]
    NodeName { value: String },
    #[error("--records names a directory, --kubeconfig or --context an API server: give one of them")]
    TwoStores,
    #[error(
        "nothing says where this cluster's records are: give --records DIR, or --kubeconfig FILE for those of an API \
         server (a pod needs neither)"
    )]
    NoStore,
    #[error("the host name cannot be read: give this node's name with --node-name")]
    HostName(#[source] std::io::Error),
}

/// Returns the texts of a list that are not empty.
pub fn given(texts: &[String]) -> impl Iterator<Item = &str> {
    texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty())
}

/// Reads CIDRs; host bits are cut off.
///
/// # Errors
///
/// [`FlagError`] names the flag and the value; `0.0.0.0/0` is refused like any other text that is no cluster's range.
fn subnets(flag: &'static str, texts: &[String]) -> Result<Vec<IpNet>, FlagError> {
    let parse = |text: &str| match text.parse::<IpNet>() {
        Ok(value) if value.prefix_len() == 0 => Err(FlagError::Everything { flag, value }),
        Ok(subnet) => Ok(subnet.trunc()),
        Err(_) => Err(FlagError::Cidr { flag, value: text.to_owned() }),
    };
    given(texts).map(parse).collect()
}

/// Checks that global CIDRs can be told from what the cluster has otherwise, and are any cluster's at all.
fn check_global<'a>(global: &[IpNet], local: impl Iterator<Item = &'a IpNet> + Clone) -> Result<(), FlagError> {
    for &global in global {
        culvert_model::check_global(global)?;
        if let Some(&local) = local.clone().find(|local| overlaps(local, &global)) {
            return Err(FlagError::GlobalOverlaps { global, local });
        }
    }
    Ok(())
}

/// Reads addresses, at most one of each family; `None` if there is none.
///
/// # Errors
///
/// [`FlagError`] names the flag and the value.
pub fn addresses(flag: &'static str, texts: &[String]) -> Result<Option<Addresses>, FlagError> {
    let mut addresses = Addresses::default();
    for text in given(texts) {
        let parsed = text.parse::<IpAddr>().ok();
        let usable =
            parsed.filter(|address| !(address.is_unspecified() || address.is_loopback() || address.is_multicast()));
        let address = usable.ok_or_else(|| FlagError::Address { flag, value: text.to_owned() })?;
        let family = IpFamily::of(address);
        if addresses.of(family).is_some() {
            return Err(FlagError::TwoAddresses { flag, family });
        }
        addresses.set(address);
    }
    Ok((addresses != Addresses::default()).then_some(addresses))
}

/// Returns the node's name: the one given, or the host name.
///
/// # Errors
///
/// [`FlagError`] if there is none that can name a record.
fn node_name(given: Option<String>) -> Result<String, FlagError> {
    let name = match given.filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(FlagError::HostName)?.trim().to_owned(),
    };
    if object_name(&name).is_empty() { Err(FlagError::NodeName { value: name }) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|&value| value.to_owned()).collect()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn empty_texts_are_not_given() {
        assert_eq!(subnets("--cluster-cidr", &texts(&["", " "])).unwrap(), []);
        assert_eq!(addresses("--node-ip", &texts(&[""])).unwrap(), None);
    }

    #[test]
    fn host_bits_are_cut_off() {
        let subnets = subnets("--cluster-cidr", &texts(&["10.3.4.5/16"])).unwrap();
        assert_eq!(subnets[0].to_string(), "10.3.0.0/16");
    }

    #[test]
    fn errors_name_the_flag_and_the_value() {
        for value in ["10.1.0.0", "10.1.0.0/33", "ten", "0.0.0.0/0", "::/0"] {
            let error = subnets("--cluster-cidr", &texts(&[value])).expect_err("no CIDR").to_string();
            assert!(error.contains("--cluster-cidr") && error.contains(value), "{error}");
        }
        for value in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "gw1"] {
            let error = addresses("--node-ip", &texts(&[value])).expect_err("no address").to_string();
            assert!(error.contains("--node-ip") && error.contains(value), "{error}");
        }
        assert!(addresses("--node-ip", &texts(&["10.0.0.1", "10.0.0.2"])).is_err());
    }

    #[test]
    fn a_global_cidr_is_none_of_the_clusters_own_and_no_reserved_one() {
        let pods = [net("10.1.0.0/16")];
        let refusal = |global: &str| check_global(&[net(global)], pods.iter()).err().map(|error| error.to_string());
        assert_eq!(refusal("242.1.0.0/16"), None);
        assert!(refusal("10.0.0.0/8").unwrap().contains("10.0.0.0/8 overlaps 10.1.0.0/16 of this cluster itself"));
        assert!(refusal("169.254.1.0/24").unwrap().starts_with("--global-cidr: subnet 169.254.1.0/24 overlaps"));
        assert!(
            refusal("241.1.0.0/16").unwrap().starts_with("--global-cidr: subnet 241.1.0.0/16 overlaps 241.0.0.0/8")
        );
    }

    #[test]
    fn records_are_in_a_directory_or_at_an_api_server() {
        let records = RecordsArgs { records: Some("/r".into()), ..RecordsArgs::default() };
        let kubeconfig = RecordsArgs { kubeconfig: Some("/k".into()), ..RecordsArgs::default() };
        let context = RecordsArgs { context: Some("east".to_owned()), ..RecordsArgs::default() };
        let namespace = RecordsArgs { namespace: Some("n".to_owned()), ..RecordsArgs::default() };
        let server = |file: Option<&str>, context: Option<&str>| {
            let choice = Choice { context: context.map(str::to_owned), ..Choice::default() };
            let access = Access::Kubeconfig { file: file.map(PathBuf::from), choice };
            Location::Server(Server { access, namespace: None })
        };
        for surroundings in [Surroundings::Pod, Surroundings::Kubeconfig, Surroundings::Neither] {
            assert_eq!(records.location(surroundings).unwrap(), Location::from("/r"));
            assert_eq!(kubeconfig.location(surroundings).unwrap(), server(Some("/k"), None));
            assert_eq!(context.location(surroundings).unwrap(), server(None, Some("east")));
        }
        let pod = Location::Server(Server { access: Access::Pod, namespace: Some("n".to_owned()) });
        assert_eq!(namespace.location(Surroundings::Pod).unwrap(), pod);
        assert_eq!(RecordsArgs::default().location(Surroundings::Kubeconfig).unwrap(), server(None, None));
    }

    #[test]
    fn no_place_and_two_places_are_refused() {
        let none = RecordsArgs { records: Some(PathBuf::new()), ..RecordsArgs::default() };
        assert!(none.location(Surroundings::Neither).unwrap_err().to_string().contains("--records DIR"));
        let two = RecordsArgs { records: Some("/r".into()), kubeconfig: Some("/k".into()), ..RecordsArgs::default() };
        assert!(matches!(two.location(Surroundings::Pod), Err(FlagError::TwoStores)));
    }

    #[test]
    fn the_node_name_is_the_host_name_unless_given() {
        assert!(!node_name(Some(String::new())).unwrap().is_empty());
        assert_eq!(node_name(Some("n1".to_owned())).unwrap(), "n1");
        assert!(node_name(Some("***".to_owned())).is_err());
    }
}
