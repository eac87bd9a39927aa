//! How many slots a backend has, and which.
//!
//! The kernel draws a number below the count of slots for each new flow, so a backend's share of the slots is its share
//! of the flows. Slots keep their backend wherever they can: one change of a service is a handful of changed slots.

use std::collections::BTreeMap;

use crate::Backend;

/// Slots of a service whose weights have no smaller common measure; they are rounded to this many then.
const MOST_SLOTS: u64 = 4096;

/// Returns how many slots each backend has, at least one: weights by their greatest common divisor.
///
/// Shares are exact up to 4096 slots. Beyond, they are rounded to about as many.
pub(crate) fn shares(weights: &BTreeMap<Backend, u32>) -> BTreeMap<Backend, u32> {
    let weights = weights.iter().map(|(&backend, &weight)| (backend, weight.max(1)));
    let divisor = weights.clone().fold(0, |divisor, (_, weight)| gcd(divisor, weight)).max(1);
    let total: u64 = weights.clone().map(|(_, weight)| u64::from(weight / divisor)).sum();
    let share = |weight: u32| {
        let exact = weight / divisor;
        if total <= MOST_SLOTS {
            return exact;
        }
        let rounded = (u64::from(exact) * MOST_SLOTS + total / 2) / total;
        u32::try_from(rounded).unwrap_or(exact).max(1)
    };
    weights.map(|(backend, weight)| (backend, share(weight))).collect()
}

/// Returns who holds each slot from 0 on when every backend has its share.
///
/// `before` tells who holds which now; `None` is a slot that nobody or a stranger holds. As many slots as can be stay as
/// they are: those of a backend that went are filled from the tail.
pub(crate) fn place(before: &[Option<Backend>], shares: &BTreeMap<Backend, u32>) -> Vec<Backend> {
    let total = shares.values().map(|&share| share as usize).sum();
    let mut missing = shares.clone();
    let mut slots = vec![None; total];
    for (slot, holder) in slots.iter_mut().zip(before) {
        let left = holder.and_then(|holder| missing.get_mut(&holder));
        if let Some(left) = left.filter(|left| **left > 0) {
            *left -= 1;
            *slot = *holder;
        }
    }
    let mut new = missing.into_iter().flat_map(|(backend, left)| (0..left).map(move |_| backend));
    slots.into_iter().filter_map(|slot| slot.or_else(|| new.next())).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn backend(number: u16) -> Backend {
        Backend { address: "10.1.0.1".parse().unwrap(), port: number }
    }

    fn weights(weights: &[u32]) -> BTreeMap<Backend, u32> {
        (1..).map(backend).zip(weights.iter().copied()).collect()
    }

    fn held(slots: &[Backend]) -> BTreeMap<Backend, u32> {
        let mut held = BTreeMap::new();
        for slot in slots {
            *held.entry(*slot).or_default() += 1;
        }
        held
    }

    #[test]
    fn weights_are_taken_by_their_common_measure() {
        assert_eq!(shares(&weights(&[100, 100, 100])), weights(&[1, 1, 1]));
        assert_eq!(shares(&weights(&[75, 25])), weights(&[3, 1]));
        assert_eq!(shares(&weights(&[0, 2])), weights(&[1, 2]));
        assert_eq!(shares(&BTreeMap::new()), BTreeMap::new());
    }

    #[test]
    fn weights_without_a_small_measure_are_rounded() {
        let rounded = shares(&weights(&[u32::MAX, 1, u32::MAX / 3]));
        assert_eq!(rounded, weights(&[3072, 1, 1024]));
    }

    #[test]
    fn the_slot_of_one_that_went_is_filled_from_the_tail() {
        let [a, b, c, d] = [1, 2, 3, 4].map(backend);
        let before = [a, b, c, d].map(Some);
        let three = BTreeMap::from([(a, 1), (c, 1), (d, 1)]);
        assert_eq!(place(&before, &three), [a, d, c]);
        let five = [a, b, c, d, backend(5)];
        assert_eq!(place(&before, &five.map(|backend| (backend, 1)).into()), five);
    }

    /// Weights of some of a few backends.
    fn some_weights() -> impl Strategy<Value = BTreeMap<Backend, u32>> {
        btree_map((1_u16..12).prop_map(backend), 1_u32..9, 0..10)
    }

    proptest! {
        #[test]
        fn shares_are_exact(weights in some_weights()) {
            let shares = shares(&weights);
            let total = |of: &BTreeMap<Backend, u32>| of.values().sum::<u32>();
            for (backend, weight) in &weights {
                prop_assert_eq!(shares[backend] * total(&weights), weight * total(&shares));
            }
        }

        /// No arrangement with these shares keeps more slots: a slot that changed had a holder whose share is used up
        /// by slots that it keeps.
        #[test]
        fn placement_has_the_shares_and_moves_the_fewest(
            before in vec(proptest::option::of((1_u16..12).prop_map(backend)), 0..60),
            weights in some_weights(),
        ) {
            let shares = shares(&weights);
            let after = place(&before, &shares);
            prop_assert_eq!(held(&after), shares.clone());
            let kept: Vec<Backend> =
                before.iter().zip(&after).filter(|(before, after)| **before == Some(**after)).map(|(_, &slot)| slot).collect();
            let kept = held(&kept);
            for (holder, slot) in before.iter().zip(&after).filter(|(before, after)| **before != Some(**after)) {
                if let Some(holder) = holder {
                    let share = shares.get(holder).copied().unwrap_or(0);
                    prop_assert_eq!(kept.get(holder).copied().unwrap_or(0), share, "{:?} had to give {:?}", holder, slot);
                }
            }
        }

        #[test]
        fn one_that_goes_moves_no_more_slots_than_it_had(weights in some_weights(), which in any::<prop::sample::Index>()) {
            prop_assume!(weights.len() > 1);
            let shares = shares(&weights);
            let before: Vec<_> = place(&[], &shares).into_iter().map(Some).collect();
            let gone = *which.get(&shares.keys().copied().collect::<Vec<_>>());
            let mut rest = shares.clone();
            let had = rest.remove(&gone).unwrap();
            let after = place(&before, &rest);
            let moved = before.iter().zip(&after).filter(|(before, after)| **before != Some(**after)).count();
            prop_assert!(moved <= had as usize);
        }
    }
}
