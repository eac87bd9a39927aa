//! Which addresses of a global CIDR are free, and which of them is given next.
//!
//! Given are Submariner's (chapter 8.2): one address is the highest free one, several are the first free run from the
//! bottom. Where no run is free, the lowest free ones are taken instead. Held are ranges of free addresses, not addresses:
//! a /8 and a /64 cost as little as a /28.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why the pool does not do what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("global CIDR {cidr} has no {count} free addresses")]
    Exhausted { cidr: IpNet, count: usize },
    #[error("{address} is none of the addresses of global CIDR {cidr}")]
    Foreign { address: IpAddr, cidr: IpNet },
    #[error("{address} is held already")]
    Taken { address: IpAddr },
}

/// The addresses of a global CIDR.
///
/// Never given are an IPv4 CIDR's first and last address, and an IPv6 CIDR's first, which is the routers' (RFC 4291
/// section 2.6.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    cidr: IpNet,
    /// The first and the last address that can be given; none of a CIDR that is too small.
    bounds: Option<(u128, u128)>,
    /// Free ranges, the last address by the first one. Between two there is an address that is held.
    free: BTreeMap<u128, u128>,
}

impl Pool {
    /// Makes a pool with all addresses free.
    pub fn new(cidr: IpNet) -> Self {
        let (first, last) = (number(cidr.network()), number(cidr.broadcast()));
        let last_given = match cidr {
            IpNet::V4(_) => last.saturating_sub(1),
            IpNet::V6(_) => last,
        };
        let bounds = first.checked_add(1).map(|first| (first, last_given)).filter(|(first, last)| first <= last);
        Self { cidr: cidr.trunc(), bounds, free: bounds.into_iter().collect() }
    }

    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// Tells whether the pool can give `address` at all.
    pub fn has(&self, address: IpAddr) -> bool {
        let is_between = |(first, last)| (first..=last).contains(&number(address));
        address.is_ipv4() == matches!(self.cidr, IpNet::V4(_)) && self.bounds.is_some_and(is_between)
    }

    /// Tells whether `address` can be reserved.
    pub fn is_free(&self, address: IpAddr) -> bool {
        self.has(address) && self.range_of(number(address)).is_some()
    }

    /// Takes `count` addresses: the highest free one, or the first free run from the bottom, or the lowest free ones.
    ///
    /// # Errors
    ///
    /// [`PoolError::Exhausted`] leaves the pool as it was.
    pub fn allocate(&mut self, count: usize) -> Result<Vec<IpAddr>, PoolError> {
        let exhausted = PoolError::Exhausted { cidr: self.cidr, count };
        let taken: Vec<u128> = match count {
            0 => Vec::new(),
            1 => self.free.last_key_value().map(|(_, last)| vec![*last]).ok_or(exhausted)?,
            _ => {
                // Nobody asks for more addresses than a usize has numbers.
                let more = count as u128 - 1;
                let run = self.free.iter().find(|(first, last)| *last - *first >= more);
                match run {
                    Some((&first, _)) => (first..=first + more).collect(),
                    None => self.free.iter().flat_map(|(&first, &last)| first..=last).take(count).collect(),
                }
            }
        };
        if taken.len() < count {
            return Err(exhausted);
        }
        taken.iter().for_each(|&taken| self.take(taken));
        Ok(taken.into_iter().map(|taken| self.address(taken)).collect())
    }

    /// Takes one address.
    ///
    /// # Errors
    ///
    /// [`PoolError::Foreign`], [`PoolError::Taken`].
    pub fn reserve(&mut self, address: IpAddr) -> Result<(), PoolError> {
        if !self.has(address) {
            return Err(PoolError::Foreign { address, cidr: self.cidr });
        }
        if !self.is_free(address) {
            return Err(PoolError::Taken { address });
        }
        self.take(number(address));
        Ok(())
    }

    /// Gives an address back; `false` if it was not taken.
    pub fn release(&mut self, address: IpAddr) -> bool {
        if !self.has(address) || self.is_free(address) {
            return false;
        }
        let (mut first, mut last) = (number(address), number(address));
        if let Some(before) = first.checked_sub(1).and_then(|before| self.range_of(before)) {
            first = before.0;
        }
        if let Some(after) = last.checked_add(1).and_then(|after| self.range_of(after)) {
            self.free.remove(&after.0);
            last = after.1;
        }
        self.free.insert(first, last);
        true
    }

    /// Returns the free range that `number` is in.
    fn range_of(&self, number: u128) -> Option<(u128, u128)> {
        let (&first, &last) = self.free.range(..=number).next_back()?;
        (number <= last).then_some((first, last))
    }

    /// Takes a free address out of its range.
    fn take(&mut self, number: u128) {
        let Some((first, last)) = self.range_of(number) else { return };
        self.free.remove(&first);
        if first < number {
            self.free.insert(first, number - 1);
        }
        if number < last {
            self.free.insert(number + 1, last);
        }
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.cidr {
            IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).expect("an IPv4 pool has IPv4 addresses")).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pool(cidr: &str) -> Pool {
        Pool::new(cidr.parse().unwrap())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn texts(addresses: &[IpAddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_is_the_highest_and_several_are_the_lowest_run() {
        let mut pool = pool("242.1.0.0/16");
        assert_eq!(texts(&pool.allocate(1).unwrap()), ["242.1.255.254"]);
        assert_eq!(texts(&pool.allocate(3).unwrap()), ["242.1.0.1", "242.1.0.2", "242.1.0.3"]);
        assert_eq!(texts(&pool.allocate(1).unwrap()), ["242.1.255.253"]);
        pool.release(address("242.1.0.2"));
        assert_eq!(texts(&pool.allocate(2).unwrap()), ["242.1.0.4", "242.1.0.5"], "a gap of one is no run");
        assert!(pool.allocate(0).unwrap().is_empty());
    }

    #[test]
    fn scattered_addresses_are_taken_where_no_run_is_free() {
        let mut pool = pool("242.1.0.0/29");
        pool.allocate(6).unwrap();
        for free in ["242.1.0.5", "242.1.0.1", "242.1.0.3"] {
            assert!(pool.release(address(free)));
        }
        assert_eq!(texts(&pool.allocate(2).unwrap()), ["242.1.0.1", "242.1.0.3"]);
        assert_eq!(
            pool.allocate(2).unwrap_err().to_string(),
            "global CIDR 242.1.0.0/29 has no 2 free addresses",
            "and the one that is free stays free"
        );
        assert_eq!(texts(&pool.allocate(1).unwrap()), ["242.1.0.5"]);
        assert!(pool.allocate(1).is_err());
    }

    #[test]
    fn the_smallest_cidrs_have_few_addresses_or_none() {
        for (cidr, count) in [
            ("242.1.0.0/30", 2),
            ("242.1.0.0/31", 0),
            ("242.1.0.0/32", 0),
            ("0.0.0.0/32", 0),
            ("255.255.255.255/32", 0),
            ("fd00::/126", 3),
            ("fd00::/127", 1),
            ("fd00::/128", 0),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", 0),
        ] {
            let mut pool = pool(cidr);
            let given = std::iter::from_fn(|| pool.allocate(1).ok()).count();
            assert_eq!(given, count, "{cidr}");
        }
    }

    #[test]
    fn wide_cidrs_are_quick_in_both_families() {
        for (cidr, highest, lowest) in [
            ("0.0.0.0/0", "255.255.255.254", "0.0.0.1"),
            ("242.0.0.0/8", "242.255.255.254", "242.0.0.1"),
            ("fd00:1::/64", "fd00:1::ffff:ffff:ffff:ffff", "fd00:1::1"),
            ("::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1"),
        ] {
            let mut pool = pool(cidr);
            assert_eq!(texts(&pool.allocate(1).unwrap()), [highest]);
            assert_eq!(texts(&pool.allocate(2).unwrap())[0], lowest);
            for _ in 0..20_000 {
                pool.allocate(1).unwrap();
            }
        }
    }

    #[test]
    fn only_own_and_free_addresses_are_reserved() {
        let mut pool = pool("242.1.0.0/24");
        pool.reserve(address("242.1.0.7")).unwrap();
        assert_eq!(pool.reserve(address("242.1.0.7")).unwrap_err().to_string(), "242.1.0.7 is held already");
        for foreign in ["242.1.0.0", "242.1.0.255", "242.2.0.1", "fd00::7", "::f201:7"] {
            let error = pool.reserve(address(foreign)).unwrap_err();
            assert!(matches!(error, PoolError::Foreign { .. }), "{error}");
            assert!(!pool.release(address(foreign)));
        }
        assert!(pool.release(address("242.1.0.7")));
        assert!(!pool.release(address("242.1.0.7")), "once is enough");
    }

    /// What is done to a pool; numbers choose among what is possible.
    #[derive(Clone, Debug)]
    enum Step {
        Allocate(usize),
        Reserve(u8),
        Release(u8),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0usize..6).prop_map(Step::Allocate),
            any::<u8>().prop_map(Step::Reserve),
            any::<u8>().prop_map(Step::Release),
            Just(Step::Restart),
        ]
    }

    proptest! {
        #[test]
        fn a_pool_is_a_set_of_addresses(
            cidr in proptest::sample::select(vec!["242.1.0.0/28", "242.1.0.0/27", "fd00:1::/124"]),
            steps in proptest::collection::vec(step(), 0..80),
        ) {
            let net: IpNet = cidr.parse().unwrap();
            let mut pool = Pool::new(net);
            let all: Vec<IpAddr> = match net {
                IpNet::V4(net) => net.hosts().map(IpAddr::from).collect(),
                IpNet::V6(net) => net.hosts().map(IpAddr::from).filter(|one| *one != net.network()).collect(),
            };
            let mut held = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Allocate(count) => {
                        let free: Vec<IpAddr> = all.iter().copied().filter(|one| !held.contains(one)).collect();
                        match pool.allocate(count) {
                            Ok(given) => {
                                prop_assert_eq!(given.len(), count);
                                prop_assert!(given.iter().all(|one| free.contains(one)), "{given:?} of {free:?}");
                                if count == 1 {
                                    prop_assert_eq!(given.first(), free.last());
                                }
                                let runs = free.windows(count.max(1)).find(|run| {
                                    number(run[run.len() - 1]) - number(run[0]) == run.len() as u128 - 1
                                });
                                match runs {
                                    Some(run) if count > 1 => prop_assert_eq!(&given[..], run),
                                    _ if count > 1 => prop_assert_eq!(&given[..], &free[..count]),
                                    _ => {}
                                }
                                held.extend(given.iter().copied());
                            }
                            Err(error) => {
                                prop_assert_eq!(error, PoolError::Exhausted { cidr: net, count });
                                prop_assert!(free.len() < count);
                            }
                        }
                    }
                    Step::Reserve(choice) => {
                        let address = all[usize::from(choice) % all.len()];
                        prop_assert_eq!(pool.reserve(address).is_ok(), held.insert(address));
                    }
                    Step::Release(choice) => {
                        let address = all[usize::from(choice) % all.len()];
                        prop_assert_eq!(pool.release(address), held.remove(&address));
                    }
                    Step::Restart => {
                        let mut rebuilt = Pool::new(net);
                        held.iter().for_each(|&address| rebuilt.reserve(address).unwrap());
                        prop_assert_eq!(&rebuilt, &pool);
                        pool = rebuilt;
                    }
                }
            }
        }
    }
}
