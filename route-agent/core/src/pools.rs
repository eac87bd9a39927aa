//! Decides which IPPools tell Calico of the other clusters' subnets (Submariner chapter 7.6).
//!
//! What leaves Calico's pools is masqueraded, and who is in none may be taken for a stranger. A pool that is disabled
//! gives no addresses away and says that these are pods too. A pool is ours by its label, never by its name.
//!
//! Calico refuses pools that overlap: of subnets inside one another the widest has a pool, and a subnet that two clusters
//! announce has one, by the name of a cluster with a gateway if there is one.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::remote::remote;
use crate::{Inputs, Role};

/// Label of the pools that are ours, as Submariner's; its value is `true`.
pub const POOL_LABEL: &str = "submariner.io/ippool";

/// The longest that a cluster's id may be, in characters: it is a DNS label.
const MAX_ID: usize = 63;

/// A pool as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPool {
    pub name: String,
    /// Whether it has [`POOL_LABEL`].
    pub is_labelled: bool,
    /// `None` if it is no CIDR.
    pub subnet: Option<IpNet>,
    /// Whether it only tells of the subnet: no addresses from it, no masquerading, no BGP.
    pub is_inert: bool,
}

/// What is to be done to the pools, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolChanges {
    /// By name.
    pub delete: BTreeSet<String>,
    /// Those that are to be made inert again, by name.
    pub correct: BTreeSet<String>,
    /// Subnets by the name of their pool.
    pub create: BTreeMap<String, IpNet>,
    /// Those that keep a pool of ours from being made.
    pub foreign: Vec<ForeignPool>,
}

/// A pool that has the name of one of ours, and is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error(
    "IPPool {name} has no label {POOL_LABEL}=true, so it is somebody else's and stays as it is: delete it, or give it \
     that label if it is from Submariner"
)]
pub struct ForeignPool {
    pub name: String,
}

/// Returns the subnets that need a pool, by its name; `None` if this node is not the active gateway, which alone writes.
///
/// Subnets are those that routes are made or guarded for, so a cluster that left counts for as long as it is known.
pub fn wanted_pools(inputs: &Inputs) -> Option<BTreeMap<String, IpNet>> {
    if !matches!(inputs.role(), Role::Gateway(_)) {
        return None;
    }
    let (remote, _) = remote(inputs);
    let outermost = outermost(&remote.known);
    let with_gateway = inputs.remote_endpoints().map(|endpoint| (endpoint.cluster.as_str(), &endpoint.subnets));
    let own = inputs.cluster.as_str();
    let known = inputs.clusters.iter().filter(|cluster| cluster.name != own);
    let known = known.map(|cluster| (cluster.name.as_str(), &cluster.subnets));
    let mut names = BTreeMap::new();
    for (cluster, subnets) in with_gateway.chain(known) {
        for subnet in subnets.iter().map(IpNet::trunc).filter(|subnet| outermost.contains(subnet)) {
            names.entry(subnet).or_insert_with(|| pool_name(cluster, subnet));
        }
    }
    Some(names.into_iter().map(|(subnet, name)| (name, subnet)).collect())
}

/// Compares the pools that are wanted with those that were found.
///
/// Unless `may_delete` nothing is deleted: not all is known that there is.
pub fn pool_changes(wanted: &BTreeMap<String, IpNet>, found: &[FoundPool], may_delete: bool) -> PoolChanges {
    let mut changes = PoolChanges { create: wanted.clone(), ..PoolChanges::default() };
    for pool in found {
        match (pool.is_labelled, wanted.get(&pool.name)) {
            (true, Some(subnet)) if pool.subnet == Some(*subnet) => {
                changes.create.remove(&pool.name);
                if !pool.is_inert {
                    changes.correct.insert(pool.name.clone());
                }
            }
            // A subnet that somebody changed cannot be changed back: another pool takes the place.
            (true, wanted) => {
                if may_delete {
                    changes.delete.insert(pool.name.clone());
                } else if wanted.is_some() {
                    changes.create.remove(&pool.name);
                }
            }
            (false, Some(_)) => {
                changes.create.remove(&pool.name);
                changes.foreign.push(ForeignPool { name: pool.name.clone() });
            }
            (false, None) => {}
        }
    }
    changes
}

/// Returns the subnets that are inside no other one.
fn outermost(subnets: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    let mut outermost: BTreeSet<IpNet> = BTreeSet::new();
    // A subnet comes after the wider one that begins with the same address, and before all that begin later.
    for subnet in subnets {
        if !outermost.last().is_some_and(|wider| wider.contains(subnet)) {
            outermost.insert(*subnet);
        }
    }
    outermost
}

/// Returns a pool's name: Submariner's, but that of an IPv6 subnet, which would be no name of an object.
///
/// IPv6 addresses are written in full, so that a name of ours says of one subnet only, whatever the cluster's id.
fn pool_name(cluster: &str, subnet: IpNet) -> String {
    let lower = |character: char| match character.to_ascii_lowercase() {
        lower @ ('a'..='z' | '0'..='9') => lower,
        // Of a record that is wrong; its subnets count all the same.
        _ => '-',
    };
    let cluster: String = cluster.chars().take(MAX_ID).map(lower).collect();
    let address = match subnet {
        IpNet::V4(subnet) => subnet.addr().to_string(),
        IpNet::V6(subnet) => subnet.addr().segments().map(|segment| format!("{segment:04x}")).join("-"),
    };
    format!("submariner-{cluster}-{address}-{}", subnet.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, endpoint, inputs, net};

    fn on_gateway() -> Inputs {
        Inputs { node: "gateway".to_owned(), ..inputs() }
    }

    fn pools(list: &[(&str, &str)]) -> BTreeMap<String, IpNet> {
        list.iter().map(|(name, subnet)| ((*name).to_owned(), net(subnet))).collect()
    }

    fn found(name: &str, subnet: &str) -> FoundPool {
        FoundPool { name: name.to_owned(), is_labelled: true, subnet: subnet.parse().ok(), is_inert: true }
    }

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_active_gateways_node_alone_wants_pools() {
        let west = [("submariner-west-10.2.0.0-16", "10.2.0.0/16"), ("submariner-west-100.2.0.0-16", "100.2.0.0/16")];

        assert_eq!(wanted_pools(&on_gateway()), Some(pools(&west)));
        assert_eq!(wanted_pools(&inputs()), None);
        let mut waiting = on_gateway();
        waiting.endpoints.remove(0);
        assert_eq!(wanted_pools(&waiting), None);
    }

    #[test]
    fn a_cluster_that_left_counts_while_it_is_known_and_a_refused_subnet_never() {
        let mut inputs = on_gateway();
        inputs.clusters.push(cluster("gone", &["10.3.0.0/16", "10.1.7.0/24"]));

        let wanted = wanted_pools(&inputs).unwrap();

        assert_eq!(wanted["submariner-gone-10.3.0.0-16"], net("10.3.0.0/16"));
        assert!(!wanted.values().any(|subnet| *subnet == net("10.1.7.0/24")), "{wanted:?}");
    }

    #[test]
    fn no_two_pools_overlap() {
        let mut inputs = on_gateway();
        inputs.clusters.push(cluster("gone", &["100.2.0.0/16", "100.2.3.0/24", "10.2.0.0/15"]));

        let wanted = wanted_pools(&inputs).unwrap();

        let expected =
            [("submariner-gone-10.2.0.0-15", "10.2.0.0/15"), ("submariner-west-100.2.0.0-16", "100.2.0.0/16")];
        assert_eq!(wanted, pools(&expected));
    }

    #[test]
    fn names_are_those_of_objects() {
        let mut inputs = on_gateway();
        inputs.endpoints.push(endpoint("six", "g6", "192.168.6.2", &["fd00:2::/48", "10.6.1.1/24"]));
        inputs.clusters.push(cluster("Wrong_Id", &["10.7.0.0/16"]));

        let wanted = wanted_pools(&inputs).unwrap();

        let six = "submariner-six-fd00-0002-0000-0000-0000-0000-0000-0000-48";
        for (name, subnet) in [
            (six, "fd00:2::/48"),
            ("submariner-six-10.6.1.0-24", "10.6.1.0/24"),
            ("submariner-wrong-id-10.7.0.0-16", "10.7.0.0/16"),
        ] {
            assert_eq!(wanted.get(name), Some(&net(subnet)), "{wanted:?}");
        }
        assert!(pool_name(&"x".repeat(1000), net("fd00:2::/48")).len() <= 253);
    }

    #[test]
    fn what_is_missing_is_made_and_what_nobody_wants_goes() {
        let wanted = pools(&[("a", "10.2.0.0/16"), ("b", "10.3.0.0/16")]);
        let found = [found("a", "10.2.0.0/16"), found("c", "10.4.0.0/16")];

        let changes = pool_changes(&wanted, &found, true);

        let expected =
            PoolChanges { delete: names(&["c"]), create: pools(&[("b", "10.3.0.0/16")]), ..PoolChanges::default() };
        assert_eq!(changes, expected);
        assert_eq!(pool_changes(&wanted, &found, false), PoolChanges { delete: names(&[]), ..expected });
        assert_eq!(pool_changes(&BTreeMap::new(), &found, true).delete, names(&["a", "c"]));
    }

    #[test]
    fn a_pool_of_ours_that_somebody_changed_is_put_right() {
        let wanted = pools(&[("a", "10.2.0.0/16"), ("b", "10.3.0.0/16"), ("c", "10.4.0.0/16")]);
        let found =
            [FoundPool { is_inert: false, ..found("a", "10.2.0.0/16") }, found("b", "10.9.0.0/16"), found("c", "none")];

        let changes = pool_changes(&wanted, &found, true);

        assert_eq!(changes.correct, names(&["a"]));
        assert_eq!(changes.delete, names(&["b", "c"]));
        assert_eq!(changes.create, pools(&[("b", "10.3.0.0/16"), ("c", "10.4.0.0/16")]));
        let cautious = pool_changes(&wanted, &found, false);
        assert_eq!(cautious, PoolChanges { correct: names(&["a"]), ..PoolChanges::default() });
    }

    #[test]
    fn what_lacks_the_label_is_never_touched() {
        let wanted = pools(&[("submariner-west-10.2.0.0-16", "10.2.0.0/16")]);
        let theirs = |name: &str| FoundPool { is_labelled: false, is_inert: false, ..found(name, "10.2.0.0/16") };
        let found = [theirs("submariner-west-10.2.0.0-16"), theirs("default-ipv4-ippool"), theirs("submariner-x")];

        let changes = pool_changes(&wanted, &found, true);

        let foreign = vec![ForeignPool { name: "submariner-west-10.2.0.0-16".to_owned() }];
        assert!(foreign[0].to_string().starts_with("IPPool submariner-west-10.2.0.0-16 has no label"));
        assert_eq!(changes, PoolChanges { foreign, ..PoolChanges::default() });
    }
}
