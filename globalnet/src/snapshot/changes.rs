//! What has become different in a snapshot, and whether the allocation asks for it.

use std::collections::{BTreeMap, BTreeSet};

use culvert_globalnet_core::{Inputs, ObjectKey};

/// What differs from before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub services: BTreeSet<ObjectKey>,
    /// Services whose endpoints differ.
    pub endpoints: BTreeSet<ObjectKey>,
    /// Namespaces with pods that do.
    pub pods: BTreeSet<String>,
    /// Exports, gateways, or objects that ask for addresses.
    pub others: bool,
}

impl Changes {
    /// Tells whether the allocation may decide something else than before.
    ///
    /// `inputs` are those after the changes, `pods` the namespaces whose pods it asked for when it last decided.
    pub(crate) fn concern_allocation(&self, inputs: &Inputs, pods: &BTreeSet<String>) -> bool {
        self.others
            || self.services.iter().any(|service| inputs.exports.contains(service))
            || self.endpoints.iter().any(|service| inputs.reads_endpoints_of(service))
            || self.pods.iter().any(|namespace| pods.contains(namespace))
            || !self.pods.is_empty() && inputs.reads_all_pods()
    }

    /// Returns the services that may be served otherwise than before.
    pub(crate) fn served(&self) -> BTreeSet<ObjectKey> {
        self.services.union(&self.endpoints).cloned().collect()
    }
}

/// Puts a value, or takes it out; tells whether that makes a difference.
pub(super) fn replace<K: Clone + Ord, V: PartialEq>(all: &mut BTreeMap<K, V>, key: &K, value: Option<V>) -> bool {
    match value {
        Some(value) if all.get(key) == Some(&value) => false,
        Some(value) => {
            all.insert(key.clone(), value);
            true
        }
        None => all.remove(key).is_some(),
    }
}
