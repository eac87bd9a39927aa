//! Which pods leave by which GlobalEgressIP.
//!
//! Pods in host network are in no group: they send from their node's address. Of two objects of the same class (with a
//! selector, or for the whole namespace) that choose a pod, the older one has it; the other one is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::IpFamily;

use crate::{EgressGroup, EgressObject, Holder, Inputs, ObjectKey, Pod};

/// How many pods a message names.
const NAMED: usize = 3;

/// Who leaves by what, and who has less than it chooses.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub(crate) groups: BTreeMap<String, EgressGroup>,
    /// What is wrong with objects that choose older ones' pods.
    pub(crate) conflicts: BTreeMap<ObjectKey, String>,
}

/// Sorts pods into groups; `addresses` are those of the objects that have any.
pub(crate) fn groups(inputs: &Inputs, addresses: &BTreeMap<ObjectKey, BTreeSet<IpAddr>>) -> Groups {
    let mut all = Groups::default();
    let mut order: Vec<(&ObjectKey, &EgressObject)> = inputs.egress.iter().collect();
    order.sort_by_key(|(key, object)| (object.created.is_none(), object.created, *key));
    let mut chosen: BTreeMap<(bool, IpAddr), &ObjectKey> = BTreeMap::new();
    // The oldest object for all of a namespace, by namespace.
    let mut whole: BTreeMap<&str, &ObjectKey> = BTreeMap::new();
    for (key, object) in order {
        let Some(own) = addresses.get(key) else { continue };
        let selector = match &object.selector {
            None => None,
            Some(Ok(selector)) => Some(selector),
            Some(Err(_)) => continue,
        };
        let mut group =
            EgressGroup { is_selective: selector.is_some(), sources: BTreeSet::new(), addresses: own.clone() };
        let mut others: BTreeMap<&ObjectKey, BTreeSet<&str>> = BTreeMap::new();
        let pods = pods_of(inputs, &key.namespace).filter(|(_, pod)| !pod.is_on_host_network && !pod.is_finished);
        for (name, pod) in pods.filter(|(_, pod)| selector.is_none_or(|selector| selector.matches(&pod.labels))) {
            for &address in &pod.addresses {
                if !own.iter().any(|&one| IpFamily::of(one) == IpFamily::of(address)) {
                    continue;
                }
                let holder = *chosen.entry((group.is_selective, address)).or_insert(key);
                if holder == key {
                    group.sources.insert(address);
                } else {
                    others.entry(holder).or_default().insert(name);
                }
            }
        }
        let older = if group.is_selective { None } else { Some(*whole.entry(&key.namespace).or_insert(key)) };
        if let Some(conflict) = conflict(key, older, &others) {
            all.conflicts.insert(key.clone(), conflict);
        }
        all.groups.insert(Holder::Egress(key.clone()).to_string(), group);
    }
    all
}

/// Returns the pods of a namespace by name.
fn pods_of<'a>(inputs: &'a Inputs, namespace: &'a str) -> impl Iterator<Item = (&'a str, &'a Pod)> {
    let first = ObjectKey { namespace: namespace.to_owned(), name: String::new() };
    let pods = inputs.pods.range(first..).take_while(move |(key, _)| key.namespace == namespace);
    pods.map(|(key, pod)| (key.name.as_str(), pod))
}

fn conflict(
    key: &ObjectKey,
    older: Option<&ObjectKey>,
    others: &BTreeMap<&ObjectKey, BTreeSet<&str>>,
) -> Option<String> {
    if let Some(older) = older.filter(|older| *older != key) {
        return Some(format!(
            "the pods of the namespace leave by GlobalEgressIP {older}, which has no selector either and is older: give \
             this one a selector, or delete one of the two"
        ));
    }
    let parts: Vec<String> = others
        .iter()
        .map(|(older, pods)| {
            let named: Vec<&str> = pods.iter().take(NAMED).copied().collect();
            let more = if pods.len() > NAMED { " and more" } else { "" };
            format!("pods {}{more} leave by GlobalEgressIP {older}", named.join(", "))
        })
        .collect();
    let verb = "which is older: change one of the selectors";
    (!parts.is_empty()).then(|| format!("{}, {verb}", parts.join(", ")))
}
