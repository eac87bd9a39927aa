//! Decides which CIDRs a Cluster record claims, and where two members claim the same ones.
//!
//! The policies refuse a claim that overlaps a known one. Two members that claim at the same moment both pass: the API
//! server judges each by what it knew. [`conflicts`] finds them afterwards, for both alike.

use std::fmt;

use culvert_api::{Cluster, ClusterSpec, Record};
use culvert_model::overlaps;
use ipnet::IpNet;

/// Two CIDRs of two members that share addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// A member, and its CIDR as it is written.
    pub one: (String, String),
    pub other: (String, String),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { one, other } = self;
        write!(
            f,
            "{} of cluster {} overlaps {} of cluster {}: give one of the two other CIDRs",
            one.1, one.0, other.1, other.0
        )
    }
}

/// Returns the CIDRs that a Cluster claims, as they are written: with Globalnet its global ones, else those of services
/// and pods.
pub fn claims(spec: &ClusterSpec) -> Vec<&str> {
    let chosen = match spec.global_cidr.is_empty() {
        true => spec.service_cidr.iter().chain(&spec.cluster_cidr),
        false => spec.global_cidr.iter().chain(&[]),
    };
    chosen.map(String::as_str).collect()
}

/// Returns the conflicts of one member's claims with all other Clusters. What is no CIDR claims nothing.
pub fn conflicts_of(id: &str, own: &[&str], clusters: &[Cluster]) -> Vec<Conflict> {
    let parsed = |text: &str| text.parse::<IpNet>().ok();
    let mut found = Vec::new();
    for cluster in clusters.iter().filter(|cluster| cluster.name() != id) {
        for (mine, theirs) in
            own.iter().flat_map(|mine| claims(&cluster.spec).into_iter().map(move |their| (*mine, their)))
        {
            if let (Some(a), Some(b)) = (parsed(mine), parsed(theirs))
                && overlaps(&a, &b)
            {
                let other = (cluster.name().to_owned(), theirs.to_owned());
                found.push(Conflict { one: (id.to_owned(), mine.to_owned()), other });
            }
        }
    }
    found
}

/// Returns all conflicts between members, each once.
pub fn conflicts(clusters: &[Cluster]) -> Vec<Conflict> {
    let of = |(index, cluster): (usize, &Cluster)| {
        conflicts_of(cluster.name(), &claims(&cluster.spec), &clusters[index + 1..])
    };
    clusters.iter().enumerate().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(id: &str, pods: &str, global: &[&str]) -> Cluster {
        let spec = ClusterSpec {
            cluster_id: id.to_owned(),
            cluster_cidr: vec![pods.to_owned()],
            service_cidr: vec!["100.64.0.0/16".to_owned()],
            global_cidr: global.iter().map(|&cidr| cidr.to_owned()).collect(),
            ..ClusterSpec::default()
        };
        Cluster::new(id, spec)
    }

    #[test]
    fn both_sides_of_a_conflict_are_named() {
        let clusters = [cluster("east", "10.1.0.0/16", &[]), cluster("west", "10.1.3.0/24", &[])];
        let texts: Vec<String> = conflicts(&clusters).iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[1].starts_with("10.1.0.0/16 of cluster east overlaps 10.1.3.0/24 of cluster west"), "{texts:?}");
        assert_eq!(conflicts_of("west", &["10.1.3.0/24"], &clusters).len(), 1);
    }

    #[test]
    fn with_globalnet_only_global_cidrs_are_claimed() {
        let east = cluster("east", "10.1.0.0/16", &["242.0.0.0/16"]);
        assert_eq!(conflicts(&[east.clone(), cluster("west", "10.1.0.0/16", &["242.1.0.0/16"])]), []);
        assert_eq!(conflicts(&[east, cluster("west", "10.1.0.0/16", &["242.0.0.0/8"])]).len(), 1);
    }

    #[test]
    fn what_is_no_cidr_conflicts_with_nothing() {
        assert_eq!(conflicts_of("east", &["10.1.0.0", "x"], &[cluster("west", "10.1.0.0/16", &[])]), []);
    }
}
