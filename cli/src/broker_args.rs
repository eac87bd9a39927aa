//! The flags of `deploy-broker` and `recover-broker-info`: subctl's names, and those of its flags that mean nothing yet.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ArgAction;
use culvert_setup::names::BROKER_NAMESPACE;
use culvert_setup::{GlobalnetWish, https_url};
use ipnet::IpNet;

use crate::access::AccessArgs;
use crate::args::Output;
use crate::later;

/// Where the broker is.
#[derive(Debug, clap::Args)]
pub(crate) struct BrokerArgs {
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    /// Namespace of the broker.
    #[arg(long, short, alias = "broker-namespace", value_name = "NAME", default_value = BROKER_NAMESPACE)]
    pub(crate) namespace: String,
    /// Address of the API server as the members reach it [default: the kubeconfig's].
    #[arg(long, value_name = "URL", value_parser = https_url)]
    pub(crate) broker_url: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeployBroker {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// Broker file whose pre-shared key is to be used [default: that of an earlier run, else a new one].
    #[arg(long, value_name = "FILE")]
    pub(crate) ipsec_psk_from: Option<PathBuf>,
    /// How long members' tokens live, such as 30d or 12h [default: that of an earlier run, else 30d].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) token_lifetime: Option<Duration>,
    /// Whether clusters that join get global addresses, so that their own CIDRs may be the same [default: that of an earlier
    /// run, else false].
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    globalnet: Option<bool>,
    /// Range of the global addresses [default: that of an earlier run, else 242.0.0.0/8].
    #[arg(long, value_name = "CIDR")]
    globalnet_cidr_range: Option<IpNet>,
    /// How many global addresses a cluster gets, rounded up to a power of two [default: that of an earlier run, else 65536].
    #[arg(long, value_name = "COUNT")]
    globalnet_cluster_size: Option<u64>,
    /// What the clusterset is for; connectivity is all there is yet.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    components: Vec<String>,
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    later: Later,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RecoverBrokerInfo {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// Context of a joined cluster, if the broker itself does not keep the pre-shared key, as one made by subctl.
    #[arg(long, value_name = "NAME")]
    pub(crate) member_context: Option<String>,
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Output,
}

impl DeployBroker {
    /// Refuses what scripts for subctl may pass and Culvert does not do yet.
    ///
    /// # Errors
    ///
    /// Names the flag, and what to do without it.
    pub(crate) fn check(&self) -> Result<()> {
        for component in &self.components {
            match component.as_str() {
                "connectivity" => {}
                "service-discovery" => {
                    bail!("--components: service-discovery does not exist yet: pass connectivity alone")
                }
                other => bail!("--components: there is no {other:?}: pass connectivity"),
            }
        }
        self.later.check()
    }

    /// Returns what is asked for of Globalnet.
    pub(crate) fn globalnet(&self) -> GlobalnetWish {
        GlobalnetWish {
            enabled: self.globalnet,
            range: self.globalnet_cidr_range,
            cluster_size: self.globalnet_cluster_size,
        }
    }
}

/// Flags of subctl without a meaning here.
#[derive(Debug, Default, clap::Args)]
struct Later {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_clusterset_ip: Option<String>,
    #[arg(long, hide = true)]
    clusterset_ip_cidr_range: Option<String>,
    #[arg(long, hide = true)]
    custom_domains: Option<String>,
    #[arg(long, hide = true)]
    repository: Option<String>,
    #[arg(long, hide = true)]
    version: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    operator_debug: Option<String>,
    #[arg(long, hide = true)]
    http_proxy: Option<String>,
    #[arg(long, hide = true)]
    https_proxy: Option<String>,
    #[arg(long, hide = true)]
    no_proxy: Option<String>,
}

impl Later {
    fn check(&self) -> Result<()> {
        let clusterset_ip = "clusterset addresses do not exist yet: leave it out";
        let domains = "service discovery does not exist yet: leave it out";
        let images = "a broker runs nothing, so there is no image to choose: leave it out";
        let proxy = "a broker runs nothing that a proxy would serve; for this command itself set HTTPS_PROXY";
        later::refuse(&[
            ("--enable-clusterset-ip", &self.enable_clusterset_ip, clusterset_ip),
            ("--clusterset-ip-cidr-range", &self.clusterset_ip_cidr_range, clusterset_ip),
            ("--custom-domains", &self.custom_domains, domains),
            ("--repository", &self.repository, images),
            ("--version", &self.version, images),
            ("--operator-debug", &self.operator_debug, images),
            ("--http-proxy", &self.http_proxy, proxy),
            ("--https-proxy", &self.https_proxy, proxy),
            ("--no-proxy", &self.no_proxy, proxy),
        ])
    }
}

/// Reads a time such as `30d`, `12h` or `90m`; a day has 24 hours.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || format!("{text:?} is no time: write it as 30d, 12h or 90m");
    let span: jiff::Span = text.parse().with_context(wrong)?;
    let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).with_context(wrong)?;
    Duration::try_from(duration).with_context(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        deploy: DeployBroker,
    }

    fn parsed(words: &str) -> DeployBroker {
        Line::try_parse_from(std::iter::once("culvert").chain(words.split_whitespace())).unwrap().deploy
    }

    #[test]
    fn what_subctl_scripts_pass_is_refused_with_the_way_out() {
        for (words, flag) in [
            ("--enable-clusterset-ip=true", "--enable-clusterset-ip"),
            ("--custom-domains a.b", "--custom-domains"),
            ("--version 0.20.0", "--version"),
            ("--components service-discovery,connectivity", "--components"),
            ("--components dns", "--components"),
        ] {
            let error = parsed(words).check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{flag}: ")), "{error}");
        }
    }

    #[test]
    fn what_is_switched_off_or_there_is_no_error() {
        parsed("--globalnet=false --operator-debug=false --components connectivity").check().unwrap();
        assert_eq!(parsed("--broker-namespace b").broker.namespace, "b");
        assert_eq!(parsed("").broker.namespace, "submariner-k8s-broker");
    }

    #[test]
    fn what_is_not_given_of_globalnet_stays() {
        assert_eq!(parsed("").globalnet(), GlobalnetWish::default());
        let wish = parsed("--globalnet --globalnet-cidr-range 242.0.0.0/9 --globalnet-cluster-size 512").globalnet();
        let range = "242.0.0.0/9".parse().ok();
        assert_eq!(wish, GlobalnetWish { enabled: Some(true), range, cluster_size: Some(512) });
        assert_eq!(parsed("--globalnet=false").globalnet().enabled, Some(false));
        assert!(Line::try_parse_from(["culvert", "--globalnet-cidr-range", "242"]).is_err());
    }

    #[test]
    fn an_address_to_which_a_token_would_go_in_the_clear_is_refused() {
        for url in ["http://192.0.2.1:6443", "192.0.2.1:6443"] {
            let error = Line::try_parse_from(["culvert", "--broker-url", url]).unwrap_err().to_string();
            assert!(error.contains("write it as https://"), "{error}");
        }
        let url = "https://r.example.org/k8s/clusters/c-1";
        assert_eq!(parsed(&format!("--broker-url {url}")).broker.broker_url.as_deref(), Some(url));
    }

    #[test]
    fn times_are_read_in_days_and_hours() {
        assert_eq!(parsed("--token-lifetime 30d").token_lifetime, Some(Duration::from_secs(30 * 86400)));
        assert_eq!(parsed("--token-lifetime 90m").token_lifetime, Some(Duration::from_secs(5400)));
        for wrong in ["30", "-1d", "soon", "1mo"] {
            assert!(duration(wrong).unwrap_err().to_string().contains("write it as 30d"), "{wrong}");
        }
    }
}
