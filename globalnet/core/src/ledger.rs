//! Who holds which address during one pass: claims first, by precedence, then what is still asked for.
//!
//! An address that anything held when the pass began is given to nobody else in it, however it became free: neither the
//! objects nor the kernel have heard of it yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::{IpFamily, clipped};
use ipnet::IpNet;

use crate::{Holder, Pool, PoolError};

/// Why an address that an object names is not its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{address} is not of global CIDR {cidrs}")]
    Foreign { address: IpAddr, cidrs: String },
    #[error("{address} is held by {holder}")]
    Held { address: IpAddr, holder: Holder },
    #[error("{address} was not given to it")]
    NotGiven { address: IpAddr },
    #[error("{text:?} is no address")]
    NoAddress { text: String },
}

/// The pools of all families and who holds their addresses.
#[derive(Debug)]
pub(crate) struct Ledger {
    pools: Vec<Pool>,
    held: BTreeMap<IpAddr, Holder>,
    /// Addresses that nobody holds but that others get only when no other address is free, and when they came to rest.
    rested: BTreeMap<IpAddr, (usize, Holder)>,
    /// How many came to rest.
    rests: usize,
}

impl Ledger {
    pub(crate) fn new(cidrs: &[IpNet]) -> Self {
        let pools = cidrs.iter().copied().map(Pool::new).collect();
        Self { pools, held: BTreeMap::new(), rested: BTreeMap::new(), rests: 0 }
    }

    /// Returns the families of which there are addresses, in the order of the CIDRs.
    pub(crate) fn families(&self) -> impl Iterator<Item = IpFamily> {
        self.pools.iter().map(|pool| IpFamily::of_net(&pool.cidr()))
    }

    /// Gives a certain address to `holder`; `false` if it is not to be had.
    pub(crate) fn claim(&mut self, address: IpAddr, holder: &Holder) -> bool {
        // What rests is taken in the pool already.
        let is_had =
            self.rested.remove(&address).is_some() || self.pools.iter_mut().any(|pool| pool.reserve(address).is_ok());
        if is_had {
            self.held.insert(address, holder.clone());
        }
        is_had
    }

    /// Returns why what stands in the status of `holder`, who does not keep it, was not to be had; `None` if it was.
    pub(crate) fn refusal(&self, text: &str, holder: &Holder) -> Option<Refusal> {
        let Ok(address) = text.parse::<IpAddr>() else { return Some(Refusal::NoAddress { text: clipped(text, 64) }) };
        match self.held.get(&address) {
            Some(other) if other == holder => None,
            Some(other) => Some(Refusal::Held { address, holder: other.clone() }),
            None if self.pools.iter().any(|pool| pool.has(address)) => Some(Refusal::NotGiven { address }),
            None => {
                let cidrs: Vec<String> = self.pools.iter().map(|pool| pool.cidr().to_string()).collect();
                Some(Refusal::Foreign { address, cidrs: cidrs.join(", ") })
            }
        }
    }

    /// Lets an address rest that nobody has claimed: its old holder may claim it. What rests longer is to come first.
    pub(crate) fn rest(&mut self, address: IpAddr, holder: &Holder) {
        if self.pools.iter_mut().any(|pool| pool.reserve(address).is_ok()) {
            self.rested.insert(address, (self.rests, holder.clone()));
            self.rests += 1;
        }
    }

    /// Keeps an address from everybody for the rest of the pass.
    pub(crate) fn block(&mut self, address: IpAddr) {
        if !self.held.contains_key(&address) && self.rested.remove(&address).is_none() {
            // Of no pool, or blocked before: there is nothing to keep.
            let _ = self.pools.iter_mut().any(|pool| pool.reserve(address).is_ok());
        }
    }

    /// Gives `count` addresses of a family.
    pub(crate) fn allocate(
        &mut self,
        family: IpFamily,
        count: usize,
        holder: &Holder,
    ) -> Result<Vec<IpAddr>, PoolError> {
        let Some(pool) = self.pools.iter_mut().find(|pool| IpFamily::of_net(&pool.cidr()) == family) else {
            return Ok(Vec::new());
        };
        let given = match pool.allocate(count) {
            Ok(given) => given,
            Err(exhausted) => {
                let resting = self.rested.iter().filter(|(address, _)| pool.has(**address));
                let mut oldest: Vec<(usize, IpAddr)> =
                    resting.map(|(&address, &(since, _))| (since, address)).collect();
                oldest.sort_unstable();
                let mut given = Err(exhausted);
                for (_, address) in oldest {
                    self.rested.remove(&address);
                    pool.release(address);
                    given = pool.allocate(count);
                    if given.is_ok() {
                        break;
                    }
                }
                given?
            }
        };
        self.held.extend(given.iter().map(|&address| (address, holder.clone())));
        Ok(given)
    }

    /// Returns what rests, the longest first, and what was claimed by whom but is in none of `held` in the end.
    pub(crate) fn into_rested(self, held: &BTreeSet<IpAddr>) -> Vec<(IpAddr, Holder)> {
        let mut rested: Vec<_> = self.rested.into_iter().collect();
        rested.sort_unstable_by_key(|(_, (since, _))| *since);
        let rested = rested.into_iter().map(|(address, (_, holder))| (address, holder));
        rested.chain(self.held.into_iter().filter(|(address, _)| !held.contains(address))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectKey;

    fn holder(name: &str) -> Holder {
        Holder::Egress(ObjectKey { namespace: "shop".to_owned(), name: name.to_owned() })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_rests_goes_to_its_old_holder_and_to_others_last() {
        let mut ledger = Ledger::new(&["242.1.0.0/30".parse().unwrap()]);
        ledger.rest(address("242.1.0.2"), &holder("old"));
        let given = ledger.allocate(IpFamily::V4, 1, &holder("new")).unwrap();
        assert_eq!(given, [address("242.1.0.1")], "not the highest, which rests");
        let mut other = Ledger::new(&["242.1.0.0/30".parse().unwrap()]);
        other.rest(address("242.1.0.2"), &holder("old"));
        assert!(other.claim(address("242.1.0.2"), &holder("old")));
        let given = ledger.allocate(IpFamily::V4, 1, &holder("new")).unwrap();
        assert_eq!(given, [address("242.1.0.2")], "nothing else is free");
        assert_eq!(ledger.into_rested(&BTreeSet::new()).len(), 2, "the two that were given");
    }

    #[test]
    fn what_rests_longest_goes_first_and_no_more_than_is_missing() {
        let mut ledger = Ledger::new(&["242.1.0.0/29".parse().unwrap()]);
        for last in [4, 2, 6, 1, 3] {
            ledger.rest(address(&format!("242.1.0.{last}")), &holder("old"));
        }
        let given = ledger.allocate(IpFamily::V4, 3, &holder("new")).unwrap();
        assert_eq!(given, ["242.1.0.2", "242.1.0.4", "242.1.0.5"].map(address), "one was free, and two are the oldest");
        let rested: Vec<IpAddr> =
            ledger.into_rested(&given.into_iter().collect()).into_iter().map(|one| one.0).collect();
        assert_eq!(rested, ["242.1.0.6", "242.1.0.1", "242.1.0.3"].map(address));
    }

    #[test]
    fn what_is_blocked_is_given_to_nobody() {
        let mut ledger = Ledger::new(&["242.1.0.0/30".parse().unwrap()]);
        ledger.block(address("242.1.0.2"));
        ledger.block(address("242.1.0.2"));
        ledger.rest(address("242.1.0.2"), &holder("old"));
        assert_eq!(ledger.allocate(IpFamily::V4, 1, &holder("a")).unwrap(), [address("242.1.0.1")]);
        assert!(ledger.allocate(IpFamily::V4, 1, &holder("a")).is_err());
    }

    #[test]
    fn refused_claims_say_why() {
        let mut ledger = Ledger::new(&["242.1.0.0/30".parse().unwrap()]);
        assert!(ledger.claim(address("242.1.0.2"), &holder("a")));
        assert!(!ledger.claim(address("242.1.0.2"), &holder("b")));
        assert!(!ledger.claim(address("242.1.0.3"), &holder("b")));
        let text = |text: &str| ledger.refusal(text, &holder("b")).unwrap().to_string();
        assert_eq!(text("242.1.0.2"), "242.1.0.2 is held by GlobalEgressIP shop/a");
        assert_eq!(text("242.1.0.3"), "242.1.0.3 is not of global CIDR 242.1.0.0/30");
        assert_eq!(text("242.1.0.1"), "242.1.0.1 was not given to it");
        assert_eq!(text("242.1"), "\"242.1\" is no address");
        assert_eq!(ledger.refusal("242.1.0.2", &holder("a")), None);
    }
}
