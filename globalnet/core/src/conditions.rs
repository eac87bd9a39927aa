//! What stands in an object's status about its addresses, with Submariner's condition and reasons (chapter 8.4).

use std::net::IpAddr;

use crate::applicants::Demand;
use crate::ledger::Refusal;
use crate::{Condition, FoundStatus, Holder, PoolError};

/// The condition of whoever asks for addresses.
pub const ALLOCATED: &str = "Allocated";
/// The condition, not Submariner's, of a GlobalEgressIP some of whose pods an older one has.
pub const CONFLICTED: &str = "Conflicted";

pub(crate) const SUCCESS: &str = "Success";
pub(crate) const POOL_FAILED: &str = "IPPoolAllocationFailed";
pub(crate) const RESERVE_FAILED: &str = "ReserveAllocatedIPsFailed";
pub(crate) const INVALID_INPUT: &str = "InvalidInput";
pub(crate) const ZERO_INPUT: &str = "ZeroInput";
pub(crate) const INVALID_INSTANCE: &str = "InvalidInstance";

/// Where Submariner says that a selector cannot be changed, which it can here.
const UPDATED: &str = "Updated";

/// What an object got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) addresses: Vec<IpAddr>,
    /// Why it does not keep what stood in its status.
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) failure: Option<PoolError>,
}

impl Outcome {
    /// Returns what is wrong, and what helps; `None` if nothing is.
    pub(crate) fn notice(&self, holder: &Holder) -> Option<String> {
        let has = match self.addresses.as_slice() {
            [] => "it has none".to_owned(),
            addresses => format!("it has {}", list(addresses)),
        };
        match (&self.failure, self.refusals.is_empty()) {
            (Some(_), _) => Some(format!("{holder}: {}", self.problem())),
            (None, false) => Some(format!("{holder}: {}, so that {has}", list(&self.refusals))),
            (None, true) => None,
        }
    }

    /// Returns the condition `Allocated` to be written; `None` if the one that stands in `found` is to stay.
    pub(crate) fn allocated(&self, holder: &Holder, demand: &Demand, found: &FoundStatus) -> Option<Condition> {
        let (status, reason) = match (demand, &self.failure, self.refusals.is_empty()) {
            (Demand::Kept { reason, .. } | Demand::Nothing { reason, .. }, _, _) => ("False", *reason),
            (Demand::Addresses { .. }, Some(_), true) => ("False", POOL_FAILED),
            (Demand::Addresses { .. }, Some(_), false) => ("False", RESERVE_FAILED),
            (Demand::Addresses { .. }, None, _) => ("True", SUCCESS),
        };
        let current = found.conditions.iter().find(|current| current.kind == ALLOCATED);
        // What was said of addresses that were not kept stays until there is something new.
        let is_old = |current: &Condition| {
            let is_same_reason = matches!(
                (current.reason.as_str(), reason),
                (SUCCESS, SUCCESS) | (RESERVE_FAILED, POOL_FAILED | RESERVE_FAILED)
            );
            current.status == status && is_same_reason && self.stands_in(&found.addresses)
        };
        if current.is_some_and(is_old) {
            return None;
        }
        let message = match demand {
            Demand::Kept { message, .. } | Demand::Nothing { message, .. } => message.clone(),
            Demand::Addresses { .. } => match (&self.failure, self.refusals.is_empty()) {
                (Some(_), _) => self.problem(),
                (None, true) => self.success(holder),
                (None, false) => format!("{}; not kept: {}", self.success(holder), list(&self.refusals)),
            },
        };
        let wanted = condition(ALLOCATED, status, reason, message);
        (current != Some(&wanted)).then_some(wanted)
    }

    /// Tells whether the addresses are those of a status, in the same order.
    pub(crate) fn stands_in(&self, found: &[String]) -> bool {
        let is_same = |(text, address): (&String, &IpAddr)| text.parse() == Ok(*address);
        found.len() == self.addresses.len() && found.iter().zip(&self.addresses).all(is_same)
    }

    fn success(&self, holder: &Holder) -> String {
        match holder {
            Holder::Ingress(_) | Holder::Gateway(_) => "Allocated global IP".to_owned(),
            Holder::Egress(_) | Holder::ClusterEgress(_) => format!("Allocated {} global IP(s)", self.addresses.len()),
        }
    }

    fn problem(&self) -> String {
        let mut parts: Vec<String> = self.refusals.iter().map(ToString::to_string).collect();
        parts.extend(self.failure.map(|failure| failure.to_string()));
        format!(
            "{}: delete exports or egress objects that nobody needs, or give the cluster a wider CIDR with `join \
             --globalnet-cidr`",
            parts.join(", ")
        )
    }
}

/// Returns the condition `Conflicted` to be written; `None` if what stands in `found` is to stay.
pub(crate) fn conflicted(conflict: Option<&String>, found: &FoundStatus) -> Option<Condition> {
    let current = found.conditions.iter().find(|current| current.kind == CONFLICTED);
    let wanted = match (conflict, current) {
        (Some(message), _) => condition(CONFLICTED, "True", "PodsOfOlderObject", message.clone()),
        (None, Some(_)) => condition(CONFLICTED, "False", "NoConflict", String::new()),
        (None, None) => return None,
    };
    (current != Some(&wanted)).then_some(wanted)
}

/// Tells whether conditions are to be taken away.
pub(crate) fn has_leftovers(found: &FoundStatus) -> bool {
    found.conditions.iter().any(|current| current.kind == UPDATED)
}

/// Returns all conditions of an object: `ours` in place of those of their kinds, and all others.
pub(crate) fn merged(found: &FoundStatus, ours: Vec<Condition>) -> Vec<Condition> {
    let mut all = Vec::new();
    for current in &found.conditions {
        let is_again = all.iter().any(|one: &Condition| one.kind == current.kind);
        if current.kind == UPDATED || is_again {
            continue;
        }
        let new = ours.iter().find(|new| new.kind == current.kind);
        all.push(new.unwrap_or(current).clone());
    }
    let added = ours.into_iter().filter(|new| !found.conditions.iter().any(|current| current.kind == new.kind));
    all.extend(added);
    all
}

fn condition(kind: &str, status: &str, reason: &str, message: String) -> Condition {
    Condition { kind: kind.to_owned(), status: status.to_owned(), reason: reason.to_owned(), message }
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
