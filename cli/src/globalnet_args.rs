//! The flags of `join` that are about Globalnet, by subctl's names, and what they ask for.

use anyhow::{Result, bail};
use clap::ArgAction;
use culvert_setup::Wish;
use ipnet::IpNet;

#[derive(Debug, Default, clap::Args)]
pub(crate) struct GlobalnetArgs {
    /// Whether other clusters reach this one by global addresses, so that its own CIDRs may be theirs too [default: if the
    /// broker has Globalnet; for a site without Kubernetes, if it has had them before].
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    globalnet: Option<bool>,
    /// Global CIDRs of this cluster, separated by commas, one of a family at most [default: the broker chooses].
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    globalnet_cidr: Vec<IpNet>,
    /// How many global addresses this cluster gets, rounded up to a power of two [default: the broker's setting].
    #[arg(long, value_name = "COUNT")]
    globalnet_cluster_size: Option<u64>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    Off,
    /// On if the broker has Globalnet.
    AsBroker,
    On(Wish),
}

impl GlobalnetArgs {
    /// Returns what the flags ask for.
    ///
    /// # Errors
    ///
    /// They contradict one another.
    pub(crate) fn choice(&self) -> Result<Choice> {
        match (self.globalnet, &self.globalnet_cidr[..], self.globalnet_cluster_size) {
            (_, [_, ..], Some(_)) => {
                bail!("--globalnet-cidr says how many addresses there are already: leave --globalnet-cluster-size out")
            }
            (Some(false), [_, ..], _) => bail!("--globalnet-cidr: Globalnet is switched off by --globalnet=false"),
            (Some(false), [], Some(_)) => {
                bail!("--globalnet-cluster-size: Globalnet is switched off by --globalnet=false")
            }
            (Some(false), [], None) => Ok(Choice::Off),
            (Some(true) | None, cidrs @ [_, ..], None) => Ok(Choice::On(Wish::Cidrs(cidrs.to_vec()))),
            (Some(true) | None, [], Some(size)) => Ok(Choice::On(Wish::Size(size))),
            (Some(true), [], None) => Ok(Choice::On(Wish::Default)),
            (None, [], None) => Ok(Choice::AsBroker),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        globalnet: GlobalnetArgs,
    }

    fn choice(words: &str) -> Result<Choice> {
        let words = std::iter::once("culvert").chain(words.split_whitespace());
        Line::try_parse_from(words).unwrap().globalnet.choice()
    }

    #[test]
    fn flags_ask_for_one_thing() {
        let cidr = |text: &str| text.parse::<IpNet>().unwrap();
        for (words, expected) in [
            ("", Choice::AsBroker),
            ("--globalnet", Choice::On(Wish::Default)),
            ("--globalnet=true", Choice::On(Wish::Default)),
            ("--globalnet=false", Choice::Off),
            ("--globalnet-cluster-size 512", Choice::On(Wish::Size(512))),
            ("--globalnet --globalnet-cidr 242.1.0.0/16", Choice::On(Wish::Cidrs(vec![cidr("242.1.0.0/16")]))),
        ] {
            assert_eq!(choice(words).unwrap(), expected, "{words}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for (words, expected) in [
            ("--globalnet-cidr 242.1.0.0/16 --globalnet-cluster-size 512", "leave --globalnet-cluster-size out"),
            ("--globalnet=false --globalnet-cidr 242.1.0.0/16", "switched off by --globalnet=false"),
            ("--globalnet=false --globalnet-cluster-size 512", "switched off by --globalnet=false"),
        ] {
            let error = choice(words).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(Line::try_parse_from(["culvert", "--globalnet-cidr", "242.1.0.0"]).is_err());
    }
}
