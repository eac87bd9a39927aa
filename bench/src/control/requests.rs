//! What an API server was asked for, by its own metric `apiserver_request_total`.
//!
//! It does not say by whom. Submariner's kinds are asked for by Culvert alone; Leases also by the nodes, whose share is
//! counted before Culvert is there.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use culvert_netns_tests::kubernetes::Cluster;
use serde::Serialize;

const METRIC: &str = "apiserver_request_total";
/// API groups, and the resource that counts of each; all do if there is none.
const COUNTED: [(&str, Option<&str>); 2] = [("submariner.io", None), ("coordination.k8s.io", Some("leases"))];

/// Requests until a moment, by what was asked: `GET leases`.
#[derive(Clone, Debug)]
pub(crate) struct Requests {
    at: Instant,
    counts: BTreeMap<String, f64>,
}

/// Requests per minute, by what was asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rates(pub(crate) BTreeMap<String, f64>);

impl Requests {
    /// Reads the counters of a cluster's API server.
    ///
    /// # Errors
    ///
    /// It does not answer, or has no such counters.
    pub(crate) fn until_now(cluster: &Cluster) -> Result<Self> {
        let text = cluster.kubectl("get --raw /metrics")?;
        let counts = parse(&text);
        anyhow::ensure!(text.contains(METRIC), "the API server of {} does not count requests", cluster.name());
        Ok(Self { at: Instant::now(), counts })
    }

    /// Returns how often each thing was asked for since `before`.
    pub(crate) fn since(&self, before: &Self) -> Rates {
        let minutes = self.at.duration_since(before.at).as_secs_f64() / 60.0;
        let rate = |(what, count): (&String, &f64)| {
            let asked = count - before.counts.get(what).copied().unwrap_or_default();
            (asked > 0.0).then(|| (what.clone(), asked / minutes))
        };
        Rates(self.counts.iter().filter_map(rate).collect())
    }
}

impl Rates {
    /// Returns these without what was asked for at the rates `others` already.
    pub(crate) fn without(&self, others: &Self) -> Self {
        let less = |(what, rate): (&String, &f64)| {
            let left = rate - others.0.get(what).copied().unwrap_or_default();
            (left > 0.5).then(|| (what.clone(), left))
        };
        Self(self.0.iter().filter_map(less).collect())
    }

    /// Returns the sum of all that is no watch: a watch is one request a minute for all that happens meanwhile.
    pub(crate) fn without_watches(&self) -> f64 {
        self.0.iter().filter(|(what, _)| !what.starts_with("WATCH ")).fold(0.0, |sum, (_, rate)| sum + rate)
    }
}

fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    let series = text.lines().filter_map(|line| line.strip_prefix(METRIC)?.strip_prefix('{')?.split_once("} "));
    for (labels, value) in series {
        let label = |name: &str| {
            let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"')).next().unwrap_or_default()
        };
        let (resource, subresource) = (label("resource"), label("subresource"));
        let counts_here =
            COUNTED.iter().any(|(group, only)| *group == label("group") && only.is_none_or(|only| only == resource));
        if let (true, Ok(value)) = (counts_here, value.parse::<f64>()) {
            let slash = if subresource.is_empty() { "" } else { "/" };
            let what = format!("{} {resource}{slash}{subresource}", label("verb"));
            *counts.entry(what).or_default() += value;
        }
    }
    counts
}

/// Returns all that was asked for in any of these, in order.
pub(crate) fn kinds<'a>(rates: impl IntoIterator<Item = &'a Rates>) -> Vec<String> {
    let mut all: Vec<String> = rates.into_iter().flat_map(|rates| rates.0.keys().cloned()).collect();
    all.sort();
    all.dedup();
    all
}

/// Says which cluster could not be asked.
pub(crate) fn of(cluster: &Cluster) -> Result<Requests> {
    Requests::until_now(cluster).with_context(|| format!("requests of cluster {}", cluster.name()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TEXT: &str = "\
# HELP apiserver_request_total Counter
apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"submariner.io\",resource=\"gateways\",scope=\"resource\",subresource=\"\",verb=\"APPLY\",version=\"v1\"} 3
apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"\",group=\"submariner.io\",resource=\"gateways\",scope=\"resource\",subresource=\"\",verb=\"APPLY\",version=\"v1\"} 1
apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"coordination.k8s.io\",resource=\"leases\",scope=\"resource\",subresource=\"\",verb=\"PUT\",version=\"v1\"} 30
apiserver_request_total{code=\"0\",component=\"apiserver\",dry_run=\"\",group=\"submariner.io\",resource=\"endpoints\",scope=\"namespace\",subresource=\"\",verb=\"WATCH\",version=\"v1\"} 2
apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"pods\",scope=\"resource\",subresource=\"\",verb=\"GET\",version=\"v1\"} 7
";

    #[test]
    fn only_what_culvert_asks_for_counts_whatever_the_answer_was() {
        let counts = parse(TEXT);
        let expected = [("APPLY gateways", 4.0), ("PUT leases", 30.0), ("WATCH endpoints", 2.0)];
        assert_eq!(counts, expected.map(|(what, count)| (what.to_owned(), count)).into());
    }

    #[test]
    fn rates_are_per_minute_and_others_do_not_count() {
        let start = Instant::now();
        let before = Requests { at: start, counts: BTreeMap::new() };
        let after = Requests { at: start + Duration::from_secs(30), counts: parse(TEXT) };
        let others = Rates([("PUT leases".to_owned(), 59.9)].into());

        let rates = after.since(&before).without(&others);

        let expected = [("APPLY gateways", 8.0), ("WATCH endpoints", 4.0)];
        assert_eq!(rates.0, expected.map(|(what, rate)| (what.to_owned(), rate)).into());
        assert!((rates.without_watches() - 8.0).abs() < 1e-9);
    }
}
