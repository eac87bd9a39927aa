//! The flags of `join`: subctl's names, and those of its flags that mean nothing yet.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{ArgAction, ValueEnum};
use culvert_gateway_core::local_endpoint::Ports;
use culvert_gateway_core::public_ip::{Resolver, parse_resolvers};
use culvert_model::{CableKind, ClusterId};
use culvert_setup::{BrokerFileError, BrokerInfo, https_url, read};
use ipnet::IpNet;

use crate::access::AccessArgs;
use crate::args::Output;
use crate::globalnet_args::{Choice, GlobalnetArgs};
use crate::later;
use crate::proxy_args::ProxyArgs;

/// UDP port of NAT discovery (Submariner chapter 4.4).
const NAT_DISCOVERY: u16 = 4490;

/// Where a site without Kubernetes has its records if nobody says so.
pub(crate) const SITE_RECORDS: &str = "/var/lib/culvert/records";

#[derive(Debug, clap::Args)]
pub(crate) struct Join {
    /// The file that deploy-broker wrote.
    broker_info: PathBuf,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    /// Join a site without Kubernetes, such as a virtual machine: run this on its gateway.
    #[arg(long, conflicts_with_all = ["kubeconfig", "context", "cluster", "user", "image"])]
    pub(crate) standalone: bool,
    /// Directory of the records of such a site; beside it is made what its daemons need to start.
    #[arg(long, value_name = "DIR", requires = "standalone", default_value = SITE_RECORDS)]
    pub(crate) records: PathBuf,
    /// Id of this cluster in its clusterset: a DNS label [default: the one it joined by before; else it is asked for].
    #[arg(long, value_name = "ID")]
    pub(crate) clusterid: Option<ClusterId>,
    /// CIDRs of this cluster's pods, separated by commas [default: found out].
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub(crate) clustercidr: Vec<IpNet>,
    /// CIDRs of this cluster's services, separated by commas [default: found out].
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub(crate) servicecidr: Vec<IpNet>,
    /// How cables are made.
    #[arg(long, value_enum, default_value_t = CableDriver::Wireguard)]
    cable_driver: CableDriver,
    /// Clusters with which the link is trusted, so that VXLAN cables to them need no encryption; separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    allow_vxlan: Vec<ClusterId>,
    /// UDP port of the cables on the gateways.
    #[arg(long, value_name = "PORT", default_value_t = 4500, value_parser = clap::value_parser!(u16).range(1..))]
    nattport: u16,
    /// Whether gateways are reached by their public addresses.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    natt: bool,
    /// How gateways find their public addresses: ipv4:ADDRESS, dns:NAME, api:HOST/PATH, or lb:SERVICE for the load
    /// balancer of a Service in namespace submariner-operator; tried in order [default: nobody is asked].
    #[arg(long, value_name = "RESOLVERS")]
    public_ip: Option<String>,
    /// Whether a node is made a gateway if none has the label for it.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) label_gateway: bool,
    /// Whether the other clusters' gateways are probed.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    health_check: bool,
    /// Seconds between two probes [default: the gateway's own, a fifth of a second].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=60))]
    health_check_interval: Option<u64>,
    /// Probes in a row that may be lost [default: the gateway's own, 4].
    #[arg(long, value_name = "COUNT")]
    health_check_max_packet_loss_count: Option<u32>,
    /// Address of the broker's API server [default: the broker file's].
    #[arg(long, value_name = "URL", value_parser = https_url)]
    broker_url: Option<String>,
    /// Image of the daemons, also as culvert=IMAGE [default: that of this release].
    #[arg(long, alias = "image-override", value_name = "IMAGE")]
    image: Option<String>,
    /// Log more.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL")]
    pod_debug: bool,
    #[command(flatten)]
    globalnet: GlobalnetArgs,
    #[command(flatten)]
    proxy: ProxyArgs,
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    later: Later,
}

/// Cable drivers by Submariner's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CableDriver {
    Wireguard,
    Vxlan,
    Libreswan,
}

impl Join {
    /// Refuses what scripts for subctl may pass and Culvert does not do, or not yet.
    ///
    /// # Errors
    ///
    /// Names the flag, and what to do without it.
    pub(crate) fn check(&self) -> Result<()> {
        match self.cable_driver {
            CableDriver::Libreswan => bail!("--cable-driver: IPsec cables do not exist yet: pass wireguard"),
            CableDriver::Vxlan if self.allow_vxlan.is_empty() => bail!(
                "--cable-driver: VXLAN cables are not encrypted: name the clusters with which that may be with \
                 --allow-vxlan, or pass wireguard"
            ),
            CableDriver::Vxlan | CableDriver::Wireguard => {}
        }
        if let Some(cidr) = self.clustercidr.iter().chain(&self.servicecidr).find(|cidr| cidr.prefix_len() == 0) {
            bail!("{cidr} covers every address: give the ranges that this cluster uses");
        }
        if let Some((name, _)) = self.image.as_deref().and_then(|image| image.split_once('='))
            && name != "culvert"
        {
            bail!("--image: there is no image {name:?}: pass an image, or culvert=IMAGE");
        }
        let resolvers = parse_resolvers(self.public_ip.as_deref().unwrap_or_default()).context("--public-ip")?;
        let is_balanced = |resolver: &&Resolver| matches!(resolver, Resolver::LoadBalancer(_));
        if let Some(resolver) = resolvers.iter().find(is_balanced)
            && self.standalone
        {
            bail!("--public-ip: {resolver} asks for a Service, which only Kubernetes has: use ipv4:, dns: or api:");
        }
        let backend = if self.cable_driver == CableDriver::Vxlan { CableKind::Vxlan } else { CableKind::WireGuard };
        let ports = Ports::assign(self.nattport, backend, !self.allow_vxlan.is_empty()).context("--nattport")?;
        if ports.wireguard == NAT_DISCOVERY || ports.vxlan == Some(NAT_DISCOVERY) {
            bail!(
                "--nattport {}: a cable would have port {NAT_DISCOVERY}, on which gateways look for NAT: choose another",
                self.nattport
            );
        }
        self.proxy.check()?;
        self.globalnet.choice()?;
        self.later.check()
    }

    /// Returns what is asked for of Globalnet.
    ///
    /// # Errors
    ///
    /// The flags contradict one another.
    pub(crate) fn globalnet(&self) -> Result<Choice> {
        self.globalnet.choice()
    }

    /// Reads the broker's file; an address that is given stands for the file's.
    ///
    /// # Errors
    ///
    /// [`culvert_setup::BrokerFileError`].
    pub(crate) fn broker(&self) -> Result<BrokerInfo, BrokerFileError> {
        let info = read(&self.broker_info)?;
        Ok(match &self.broker_url {
            Some(url) => BrokerInfo { url: url.clone(), ..info },
            None => info,
        })
    }

    /// Returns the image that was chosen.
    pub(crate) fn image(&self) -> Option<&str> {
        self.image.as_deref().map(|image| image.strip_prefix("culvert=").unwrap_or(image))
    }

    /// Returns the variables of the daemons that stand for flags.
    pub(crate) fn variables(&self) -> BTreeMap<&'static str, String> {
        let driver = if self.cable_driver == CableDriver::Vxlan { "vxlan" } else { "wireguard" };
        let mut variables = BTreeMap::from([
            ("SUBMARINER_CABLEDRIVER", driver.to_owned()),
            ("SUBMARINER_NATENABLED", self.natt.to_string()),
            ("SUBMARINER_HEALTHCHECKENABLED", self.health_check.to_string()),
            ("CE_IPSEC_NATTPORT", self.nattport.to_string()),
        ]);
        let clusters: Vec<&str> = self.allow_vxlan.iter().map(ClusterId::as_str).collect();
        let optional = [
            ("CULVERT_ALLOW_VXLAN", (!clusters.is_empty()).then(|| clusters.join(","))),
            ("SUBMARINER_PUBLICIP", self.public_ip.clone()),
            ("CULVERT_HEALTHCHECK_INTERVAL_MS", self.health_check_interval.map(|seconds| (seconds * 1000).to_string())),
            (
                "CULVERT_HEALTHCHECK_MAX_PACKET_LOSS",
                self.health_check_max_packet_loss_count.map(|count| count.to_string()),
            ),
            ("CULVERT_LOG", self.pod_debug.then(|| "debug,boringtun=off".to_owned())),
        ];
        variables.extend(
            optional.into_iter().chain(self.proxy.variables()).filter_map(|(name, value)| Some((name, value?))),
        );
        variables
    }
}

/// Flags of subctl without a meaning here.
#[derive(Debug, Default, clap::Args)]
struct Later {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_clusterset_ip: Option<String>,
    #[arg(long, hide = true)]
    clusterset_ip_cidr: Option<String>,
    #[arg(long, hide = true)]
    custom_domains: Option<String>,
    #[arg(long, hide = true)]
    coredns_custom_configmap: Option<String>,
    #[arg(long, hide = true)]
    repository: Option<String>,
    #[arg(long, hide = true)]
    version: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    preferred_server: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    force_udp_encaps: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipsec_debug: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    operator_debug: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ignore_requirements: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    check_broker_certificate: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    load_balancer: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    air_gapped: Option<String>,
}

impl Later {
    fn check(&self) -> Result<()> {
        if self.check_broker_certificate.as_deref() == Some("false") {
            bail!("--check-broker-certificate: a broker that is not checked may be anybody: leave it on");
        }
        let discovery = "service discovery does not exist yet: leave it out";
        let release = "one image has all: pass it with --image";
        let ipsec = "it is about IPsec cables, which do not exist yet: leave it out";
        let operator = "there is no operator: for more of the daemons' logs pass --pod-debug";
        later::refuse(&[
            ("--enable-clusterset-ip", &self.enable_clusterset_ip, discovery),
            ("--clusterset-ip-cidr", &self.clusterset_ip_cidr, discovery),
            ("--custom-domains", &self.custom_domains, discovery),
            ("--coredns-custom-configmap", &self.coredns_custom_configmap, discovery),
            ("--repository", &self.repository, release),
            ("--version", &self.version, release),
            ("--preferred-server", &self.preferred_server, ipsec),
            ("--force-udp-encaps", &self.force_udp_encaps, ipsec),
            ("--ipsec-debug", &self.ipsec_debug, ipsec),
            ("--operator-debug", &self.operator_debug, operator),
            ("--ignore-requirements", &self.ignore_requirements, "what is required is needed: leave it out"),
            (
                "--load-balancer",
                &self.load_balancer,
                "no load balancer is made here: make a Service of that type in namespace submariner-operator, and pass \
                 --public-ip lb:SERVICE",
            ),
            ("--air-gapped", &self.air_gapped, "nobody outside is asked unless --public-ip says so: leave both out"),
        ])
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        join: Join,
    }

    fn parsed(words: &str) -> Join {
        let words = ["culvert", "b.subm"].into_iter().chain(words.split_whitespace());
        Line::try_parse_from(words).unwrap().join
    }

    #[test]
    fn what_subctl_scripts_pass_is_refused_with_the_way_out() {
        for (words, flag) in [
            ("--globalnet=false --globalnet-cidr 242.0.0.0/16", "--globalnet-cidr"),
            ("--enable-clusterset-ip", "--enable-clusterset-ip"),
            ("--cable-driver libreswan", "--cable-driver"),
            ("--cable-driver vxlan", "--cable-driver"),
            ("--check-broker-certificate=false", "--check-broker-certificate"),
            ("--image-override submariner-gateway=x", "--image"),
            ("--load-balancer", "--load-balancer"),
            ("--repository quay.io/x", "--repository"),
            ("--public-ip 203.0.113.9", "--public-ip"),
            ("--public-ip lb:Gateways", "--public-ip"),
            ("--nattport 4490", "--nattport 4490"),
            ("--nattport 4489 --allow-vxlan west", "--nattport 4489"),
            ("--https-proxy http://user:password@proxy:3128", "--https-proxy"),
        ] {
            let error = format!("{:#}", parsed(words).check().unwrap_err());
            assert!(error.starts_with(&format!("{flag}: ")), "{error}");
        }
        assert!(parsed("--clustercidr 0.0.0.0/0").check().unwrap_err().to_string().contains("0.0.0.0/0"));
    }

    #[test]
    fn what_is_switched_off_or_on_already_is_no_error() {
        parsed("--globalnet=false --check-broker-certificate --natt --health-check=false").check().unwrap();
    }

    #[test]
    fn flags_become_variables_and_those_not_given_are_the_daemons_own() {
        let variables = parsed("").variables();
        assert_eq!(variables.len(), 4);
        assert_eq!(variables["SUBMARINER_CABLEDRIVER"], "wireguard");
        let words = "--natt=false --nattport 4501 --health-check-interval 2 --pod-debug \
                     --cable-driver vxlan --allow-vxlan west,north --image culvert=r/c:2 --https-proxy proxy:3128";
        let join = parsed(words);
        join.check().unwrap();
        let variables = join.variables();
        assert_eq!(
            (variables["SUBMARINER_NATENABLED"].as_str(), variables["CE_IPSEC_NATTPORT"].as_str()),
            ("false", "4501")
        );
        assert_eq!(variables["CULVERT_HEALTHCHECK_INTERVAL_MS"], "2000");
        assert_eq!(variables["CULVERT_ALLOW_VXLAN"], "west,north");
        assert_eq!(variables["HTTPS_PROXY"], "http://proxy:3128");
        assert_eq!(join.image(), Some("r/c:2"));
    }

    #[test]
    fn a_site_without_kubernetes_has_no_kubeconfig_and_runs_no_image() {
        assert_eq!(parsed("--standalone").records, PathBuf::from(SITE_RECORDS));
        assert_eq!(parsed("--standalone --records /r").records, PathBuf::from("/r"));
        assert!(Line::try_parse_from(["culvert", "b.subm", "--records=/r"]).is_err());
        let balanced = parsed("--standalone --public-ip ipv4:192.0.2.1,lb:gateways").check().unwrap_err().to_string();
        assert!(balanced.starts_with("--public-ip: lb:gateways"), "{balanced}");
        parsed("--public-ip lb:gateways").check().unwrap();
        for words in ["--context=c", "--kubeconfig=k", "--image=i"] {
            assert!(Line::try_parse_from(["culvert", "b.subm", "--standalone", words]).is_err(), "{words}");
        }
    }

    #[test]
    fn what_is_no_cidr_or_id_is_refused_by_the_parser() {
        for word in ["--clustercidr=10.1.0.0", "--servicecidr=ten", "--clusterid=East", "--nattport=0"] {
            assert!(Line::try_parse_from(["culvert", "b.subm", word]).is_err(), "{word}");
        }
    }
}
