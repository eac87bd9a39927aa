//! Decides which cluster has which global CIDR: what a broker's ConfigMap says, and what it is to say once a cluster has
//! joined or left, or the range has changed (Submariner chapter 8.1).
//!
//! An allocation lasts until its cluster gives it back; Submariner's last for ever. What was given back rests for a day, so
//! that nobody who still sends there reaches another cluster; the cluster that had it gets it back at once. What rests
//! stands in an annotation, which Submariner's tools leave as it is.

mod config_map;
mod room;

use std::fmt;

use culvert_api::{Cluster, Record};
use culvert_model::{ClusterId, IpFamily, SubnetError, check_global, overlaps};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

pub(crate) use config_map::NAME;
use room::{free, has_size, prefix_of};

use crate::claims::claims;

/// The range of a clusterset's global CIDRs unless another is chosen: 242.0.0.0/8.
const GLOBALNET_RANGE: &str = "242.0.0.0/8";
/// How many addresses a cluster gets unless told otherwise.
const GLOBALNET_CLUSTER_SIZE: u64 = 65536;

/// How long what was given back is nobody else's.
const REST: SignedDuration = SignedDuration::from_hours(24);
/// Addresses of the smallest global CIDR: eight of them are the cluster's own way out, others are gateways' and services'.
const FEWEST: u64 = 16;

/// What a broker has noted of Globalnet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Globalnet {
    /// Whether clusters that join get global CIDRs.
    pub is_enabled: bool,
    /// Where they are taken from.
    pub range: Option<IpNet>,
    /// How many addresses a cluster gets.
    pub cluster_size: Option<u64>,
    pub allocations: Vec<Allocation>,
    /// What was given back.
    pub resting: Vec<Resting>,
}

/// The global CIDRs of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    pub cluster: String,
    pub cidrs: Vec<IpNet>,
}

/// Global CIDRs that a cluster gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resting {
    pub cluster: String,
    pub cidrs: Vec<IpNet>,
    pub since: Timestamp,
}

/// Which global CIDRs somebody wants for a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// As many addresses as the broker gives by itself.
    Default,
    /// As many addresses, rounded up to a power of two.
    Size(u64),
    /// These, one of a family at most.
    Cidrs(Vec<IpNet>),
}

/// What an allocation rests on, beside what the broker has noted.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    pub cluster: &'a ClusterId,
    pub wish: &'a Wish,
    /// Pods, services and node addresses of the cluster itself.
    pub local: &'a [IpNet],
    /// The Clusters at the broker.
    pub clusters: &'a [Cluster],
    pub now: Timestamp,
}

/// What is decided on an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub cidrs: Vec<IpNet>,
    /// Why these are not the ones that were wished for.
    pub warning: Option<String>,
    /// What the broker is to note; `None` if it has already.
    pub change: Option<Globalnet>,
}

/// What `deploy-broker` is told of Globalnet; what is not given stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GlobalnetWish {
    pub enabled: Option<bool>,
    pub range: Option<IpNet>,
    pub cluster_size: Option<u64>,
}

/// A CIDR that somebody has, and who, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub cidr: IpNet,
    pub whose: String,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.cidr, self.whose)
    }
}

/// Why there is no global CIDR, or no such range of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobalnetError {
    #[error("{key} of the broker's ConfigMap {NAME} is not understood ({reason}): correct it at the broker")]
    Unreadable { key: &'static str, reason: String },
    #[error("the broker has no Globalnet: run `culvert deploy-broker --globalnet` first")]
    NotEnabled,
    #[error(
        "the broker's ConfigMap {NAME} has no {key}: run `culvert deploy-broker --globalnet`, which adds it, or give this \
         cluster a global CIDR with --globalnet-cidr"
    )]
    Incomplete { key: &'static str },
    #[error("global CIDR {cidr} cannot be used: {reason}")]
    Unusable { cidr: IpNet, reason: SubnetError },
    #[error("global CIDR {cidr} is too small: a cluster needs {FEWEST} addresses at least")]
    TooSmall { cidr: IpNet },
    #[error("--globalnet-cidr names two CIDRs of IPv{family}: give one of each family at most")]
    TwoOfAFamily { family: IpFamily },
    #[error(
        "global CIDR {cidr} of cluster {cluster} overlaps {taken}: give another one with --globalnet-cidr; if the broker \
         has noted this one already, run `culvert join --globalnet=false` first"
    )]
    Overlap { cluster: String, cidr: IpNet, taken: Taken },
    #[error(
        "clusters {one} and {other} both have {cidr} in the broker's ConfigMap {NAME}: take it from one of the two there, \
         and join that one again"
    )]
    Contested { one: String, other: String, cidr: IpNet },
    #[error("a cluster cannot have {size} addresses: give {FEWEST} to {most}, which is half of the range {range}")]
    Size { size: u64, most: u64, range: IpNet },
    #[error(
        "no {size} addresses in a row are free in the range {range}: give a --globalnet-cidr of your own, ask for fewer \
         with --globalnet-cluster-size, or widen the range with `culvert deploy-broker --globalnet-cidr-range`"
    )]
    Full { size: u64, range: IpNet },
    #[error(
        "the range cannot be {range}, since these would be outside: {}: choose one that has them, or run `culvert join \
         --globalnet=false` in these clusters first", list(.outside)
    )]
    Outside { range: IpNet, outside: Vec<Allocation> },
    #[error(
        "Globalnet cannot be switched off while clusters have global CIDRs: {}: run `culvert join --globalnet=false` in \
         these clusters first", list(.allocations)
    )]
    InUse { allocations: Vec<Allocation> },
    #[error("--globalnet-cidr-range and --globalnet-cluster-size are for brokers with Globalnet: pass --globalnet too")]
    RangeWithoutGlobalnet,
}

fn list(allocations: &[Allocation]) -> String {
    let one = |one: &Allocation| format!("{} of cluster {}", joined(&one.cidrs), one.cluster);
    allocations.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn joined(cidrs: &[IpNet]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Checks a range, or a global CIDR, by itself.
///
/// # Errors
///
/// It is loopback, link-local, multicast or unspecified, Submariner's own (240.0.0.0/8 and 241.0.0.0/8), too wide for one
/// cluster, or too small.
fn check_usable(cidr: IpNet) -> Result<(), GlobalnetError> {
    check_global(cidr).map_err(|reason| GlobalnetError::Unusable { cidr, reason })?;
    match cidr.max_prefix_len() - cidr.prefix_len() {
        bits if bits < FEWEST.ilog2() as u8 => Err(GlobalnetError::TooSmall { cidr }),
        _ => Ok(()),
    }
}

impl Globalnet {
    /// Returns the global CIDRs of a cluster; none if it has none.
    pub fn cidrs_of(&self, cluster: &str) -> &[IpNet] {
        self.allocations.iter().find(|one| one.cluster == cluster).map(|one| one.cidrs.as_slice()).unwrap_or_default()
    }

    /// Decides which global CIDRs a cluster gets. One that has some keeps them, whatever it wishes for now.
    ///
    /// # Errors
    ///
    /// [`GlobalnetError`]: there is no Globalnet, what is wished for cannot be had, or nothing is free.
    pub fn allocate(&self, situation: &Situation<'_>) -> Result<Decision, GlobalnetError> {
        let cluster = situation.cluster.as_str();
        if !self.is_enabled {
            return Err(GlobalnetError::NotEnabled);
        }
        let taken = self.taken(situation);
        let has = self.cidrs_of(cluster);
        if !has.is_empty() {
            self.check_uncontested(cluster, has)?;
            check_apart(cluster, has, &taken)?;
            return Ok(Decision { cidrs: has.to_vec(), warning: self.differs(situation), change: None });
        }
        let cidrs = match situation.wish {
            Wish::Cidrs(cidrs) => {
                let cidrs: Vec<IpNet> = cidrs.iter().map(IpNet::trunc).collect();
                check_families(&cidrs)?;
                check_apart(cluster, &cidrs, &taken)?;
                cidrs
            }
            Wish::Default => self.found(situation, self.cluster_size.unwrap_or(GLOBALNET_CLUSTER_SIZE), &taken)?,
            Wish::Size(size) => self.found(situation, *size, &taken)?,
        };
        let mut change = self.rested(situation.now);
        change.resting.retain(|one| one.cluster != cluster || one.cidrs != cidrs);
        change.allocations.retain(|one| one.cluster != cluster);
        change.allocations.push(Allocation { cluster: cluster.to_owned(), cidrs: cidrs.clone() });
        Ok(Decision { cidrs, warning: None, change: Some(change) })
    }

    /// Returns what the broker is to note once a cluster has left, or has no Globalnet any more; `None` if it had no
    /// global CIDRs.
    pub fn give_back(&self, cluster: &str, now: Timestamp) -> Option<Self> {
        let (gone, kept): (Vec<Allocation>, Vec<Allocation>) =
            self.allocations.iter().cloned().partition(|one| one.cluster == cluster);
        if gone.is_empty() {
            return None;
        }
        let mut change = Self { allocations: kept, ..self.rested(now) };
        let rests = |Allocation { cluster, cidrs }| Resting { cluster, cidrs, since: now };
        change.resting.extend(gone.into_iter().map(rests));
        Some(change)
    }

    /// Returns what the broker is to note once `deploy-broker` has run; `None` if it has already.
    ///
    /// # Errors
    ///
    /// [`GlobalnetError`]: the range or the size cannot be used, or clusters have what would be lost.
    pub fn configured(&self, wish: &GlobalnetWish) -> Result<Option<Self>, GlobalnetError> {
        let is_enabled = wish.enabled.unwrap_or(self.is_enabled);
        if !is_enabled {
            if wish.range.is_some() || wish.cluster_size.is_some() {
                return Err(GlobalnetError::RangeWithoutGlobalnet);
            }
            if !self.allocations.is_empty() && self.is_enabled {
                return Err(GlobalnetError::InUse { allocations: self.allocations.clone() });
            }
            return Ok(self.is_enabled.then(|| Self { is_enabled, ..self.clone() }));
        }
        let default = || GLOBALNET_RANGE.parse().expect("the default range is a CIDR");
        let range = wish.range.map(|range| range.trunc()).or(self.range).unwrap_or_else(default);
        let size = wish.cluster_size.or(self.cluster_size).unwrap_or(GLOBALNET_CLUSTER_SIZE);
        check_usable(range)?;
        prefix_of(size, range)?;
        // One that was outside before was chosen by hand.
        let leaves = |one: &&Allocation| {
            let inside = |range: IpNet| one.cidrs.iter().all(|cidr| range.contains(cidr));
            self.range.is_some_and(inside) && !inside(range)
        };
        let outside: Vec<Allocation> = self.allocations.iter().filter(leaves).cloned().collect();
        if !outside.is_empty() {
            return Err(GlobalnetError::Outside { range, outside });
        }
        let change = Self { is_enabled, range: Some(range), cluster_size: Some(size), ..self.clone() };
        Ok((change != *self).then_some(change))
    }

    /// Finds a CIDR of a size: the one that this cluster gave back, else the first that is free.
    fn found(&self, situation: &Situation<'_>, size: u64, taken: &[Taken]) -> Result<Vec<IpNet>, GlobalnetError> {
        let cluster = situation.cluster.as_str();
        let range = self.range.ok_or(GlobalnetError::Incomplete { key: config_map::RANGE })?;
        check_usable(range)?;
        let prefix = prefix_of(size, range)?;
        let fits = |one: &&Resting| {
            let any_size = *situation.wish == Wish::Default;
            one.cluster == cluster && (any_size || one.cidrs.iter().all(|cidr| cidr.prefix_len() == prefix))
        };
        let mut before = self.resting.iter().rev().filter(fits).map(|one| &one.cidrs);
        if let Some(cidrs) = before.find(|cidrs| check_apart(cluster, cidrs, taken).is_ok()) {
            return Ok(cidrs.clone());
        }
        free(range, prefix, taken).map(|cidr| vec![cidr]).ok_or(GlobalnetError::Full { size, range })
    }

    /// Returns all that a cluster's global CIDRs may not overlap.
    fn taken(&self, situation: &Situation<'_>) -> Vec<Taken> {
        let own = situation.cluster.as_str();
        let named = |cidrs: &[IpNet], whose: String| -> Vec<Taken> {
            cidrs.iter().map(|&cidr| Taken { cidr, whose: whose.clone() }).collect()
        };
        let others = self.allocations.iter().filter(|one| one.cluster != own);
        let others = others.flat_map(|one| named(&one.cidrs, format!("of cluster {}", one.cluster)));
        let resting = self.resting.iter().filter(|one| one.cluster != own && one.rests_until() > situation.now);
        let resting = resting.flat_map(|one| {
            let until = one.rests_until();
            named(&one.cidrs, format!("which cluster {} gave back and which rests until {until}", one.cluster))
        });
        let clusters = situation.clusters.iter().filter(|one| one.name() != own);
        let claimed = clusters.flat_map(|one| {
            let cidrs: Vec<IpNet> = claims(&one.spec).into_iter().filter_map(|text| text.parse().ok()).collect();
            named(&cidrs, format!("of cluster {}", one.name()))
        });
        others
            .chain(claimed)
            .chain(resting)
            .chain(named(situation.local, "of this cluster itself".to_owned()))
            .collect()
    }

    /// Tells why a cluster has other global CIDRs than it wishes for.
    fn differs(&self, situation: &Situation<'_>) -> Option<String> {
        let has = self.cidrs_of(situation.cluster.as_str());
        let differs = match situation.wish {
            Wish::Default => false,
            Wish::Cidrs(cidrs) => {
                let wished: Vec<IpNet> = cidrs.iter().map(IpNet::trunc).collect();
                !(wished.iter().all(|cidr| has.contains(cidr)) && has.iter().all(|cidr| wished.contains(cidr)))
            }
            Wish::Size(size) => !has.iter().all(|cidr| has_size(*cidr, *size)),
        };
        differs.then(|| {
            let id = situation.cluster;
            format!(
                "cluster {id} keeps its global CIDR {}: for another one run `culvert join --globalnet=false` first",
                joined(has)
            )
        })
    }

    /// Returns which clusters have the same addresses, noted by hand: each pair once.
    pub fn contested(&self) -> Vec<GlobalnetError> {
        let later = |(index, one)| self.allocations[index + 1..].iter().map(move |other| (one, other));
        let pairs = self.allocations.iter().enumerate().flat_map(later);
        pairs.filter_map(|(one, other)| contest(&one.cluster, &one.cidrs, other)).collect()
    }

    fn check_uncontested(&self, cluster: &str, cidrs: &[IpNet]) -> Result<(), GlobalnetError> {
        let mut others = self.allocations.iter().filter(|one| one.cluster != cluster);
        others.find_map(|other| contest(cluster, cidrs, other)).map_or(Ok(()), Err)
    }

    /// Returns the same without what has rested long enough.
    fn rested(&self, now: Timestamp) -> Self {
        let resting = self.resting.iter().filter(|one| one.rests_until() > now).cloned().collect();
        Self { resting, ..self.clone() }
    }
}

impl Resting {
    fn rests_until(&self) -> Timestamp {
        self.since.checked_add(REST).unwrap_or(Timestamp::MAX)
    }
}

/// Says that two clusters have the same addresses; `None` if they have not.
fn contest(cluster: &str, cidrs: &[IpNet], other: &Allocation) -> Option<GlobalnetError> {
    let cidr = cidrs.iter().find(|cidr| other.cidrs.iter().any(|theirs| overlaps(cidr, theirs)))?;
    Some(GlobalnetError::Contested { one: cluster.to_owned(), other: other.cluster.clone(), cidr: *cidr })
}

fn check_families(cidrs: &[IpNet]) -> Result<(), GlobalnetError> {
    let of = |family| cidrs.iter().filter(move |cidr| IpFamily::of_net(cidr) == family).count();
    match IpFamily::ALL.into_iter().find(|family| of(*family) > 1) {
        Some(family) => Err(GlobalnetError::TwoOfAFamily { family }),
        None => Ok(()),
    }
}

fn check_apart(cluster: &str, cidrs: &[IpNet], taken: &[Taken]) -> Result<(), GlobalnetError> {
    for &cidr in cidrs {
        check_usable(cidr)?;
        if let Some(taken) = taken.iter().find(|taken| overlaps(&taken.cidr, &cidr)) {
            return Err(GlobalnetError::Overlap { cluster: cluster.to_owned(), cidr, taken: taken.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
