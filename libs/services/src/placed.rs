//! A service as elements of the maps, and what changes from one state to the next.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::{Frontend, IpFamily};

use crate::structure::{Map, Target};
use crate::{Backend, Service, slots};

/// A backend's number within its service, by which clients are held to it; never 0.
///
/// It stays with the backend for as long as that serves, and comes to another one as late as can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(u16);

impl Id {
    /// Returns the id as it stands in the maps.
    pub fn number(self) -> u32 {
        u32::from(self.0)
    }

    /// Returns the id that stands as `number` in a map; `None` if it is no id.
    pub fn of_number(number: u32) -> Option<Self> {
        let id = u16::try_from(number).ok()?;
        (id != 0).then_some(Self(id))
    }

    /// Returns the ids that none of `taken` is, those first that were not in use lately.
    fn free(taken: &BTreeSet<Self>) -> impl Iterator<Item = Self> {
        let last = taken.last().map_or(0, |last| last.0);
        let after = (last..u16::MAX).map(|before| before + 1).chain(1..=last);
        after.map(Self).filter(|id| !taken.contains(id))
    }
}

/// An element of one of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// Packets to the frontend go to a chain.
    Service(Frontend, Target),
    /// Who holds a slot of a service without affinity.
    Slot(Frontend, u32, Backend),
    /// Whose is a slot of a service with affinity.
    SlotId(Frontend, u32, Id),
    /// Who has an id.
    ById(Frontend, Id, Backend),
}

impl Element {
    /// Returns the service that the element is of.
    pub fn frontend(&self) -> Frontend {
        match *self {
            Self::Service(frontend, _)
            | Self::Slot(frontend, ..)
            | Self::SlotId(frontend, ..)
            | Self::ById(frontend, ..) => frontend,
        }
    }

    /// Returns the map that the element is in; the family is that of the frontend.
    pub fn map(&self) -> Map {
        match self {
            Self::Service(..) => Map::Services,
            Self::Slot(..) => Map::Slots,
            Self::SlotId(..) => Map::Ids,
            Self::ById(..) => Map::ById,
        }
    }
}

/// What happens to an element. A value is changed by removing the element and adding it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Remove(Element),
    Add(Element),
}

/// All elements of one service, as they are in the kernel or shall be. Without a service there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    target: Option<Target>,
    slots: BTreeMap<u32, Backend>,
    slot_ids: BTreeMap<u32, Id>,
    by_id: BTreeMap<Id, Backend>,
}

impl Placed {
    /// Takes note of an element that was found.
    pub fn insert(&mut self, element: &Element) {
        match *element {
            Element::Service(_, target) => self.target = Some(target),
            Element::Slot(_, slot, backend) => drop(self.slots.insert(slot, backend)),
            Element::SlotId(_, slot, id) => drop(self.slot_ids.insert(slot, id)),
            Element::ById(_, id, backend) => drop(self.by_id.insert(id, backend)),
        }
    }

    /// Returns the chain that the service goes to.
    pub fn target(&self) -> Option<Target> {
        self.target
    }

    /// Returns all who may be chosen.
    pub fn backends(&self) -> BTreeSet<Backend> {
        self.slots.values().chain(self.by_id.values()).copied().collect()
    }

    /// Tells whether there is no element.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// Returns what `service` at `frontend` shall be when it was this before: slots and ids stay where they can.
    ///
    /// Backends of the other family, and those beyond the first 65,535, are left out.
    pub fn towards(&self, frontend: &Frontend, service: &Service) -> Self {
        let family = |address: IpAddr| IpFamily::of(address);
        let fits = |backend: &Backend| family(backend.address) == family(frontend.address);
        let weights: BTreeMap<Backend, u32> = service
            .backends
            .iter()
            .filter(|(backend, _)| fits(backend))
            .map(|(&backend, &weight)| (backend, weight))
            .take(usize::from(u16::MAX))
            .collect();
        if weights.is_empty() {
            return Self::default();
        }
        let shares = slots::shares(&weights);
        let total = shares.values().sum();
        let before: Vec<Option<Backend>> = (0..total).map(|slot| self.holder(slot)).collect();
        let holders = (0..).zip(slots::place(&before, &shares));
        let Some(seconds) = service.affinity.filter(|&seconds| seconds > 0) else {
            return Self { target: Some(Target::Pick { slots: total }), slots: holders.collect(), ..Self::default() };
        };
        let ids = self.ids(&shares);
        Self {
            target: Some(Target::Stick { slots: total, seconds }),
            slots: BTreeMap::new(),
            slot_ids: holders.filter_map(|(slot, backend)| Some((slot, *ids.get(&backend)?))).collect(),
            by_id: ids.iter().map(|(&backend, &id)| (id, backend)).collect(),
        }
    }

    /// Returns what has to be done so that these become `after`.
    pub fn changes<'a>(&'a self, frontend: Frontend, after: &'a Self) -> impl Iterator<Item = Change> + use<'a> {
        let target = |of: &Self| of.target.map(|target| ((), target)).into_iter().collect();
        let removed = differing(&target(self), &target(after), |(), target| Element::Service(frontend, target))
            .chain(differing(&self.slots, &after.slots, |slot, backend| Element::Slot(frontend, slot, backend)))
            .chain(differing(&self.slot_ids, &after.slot_ids, |slot, id| Element::SlotId(frontend, slot, id)))
            .chain(differing(&self.by_id, &after.by_id, |id, backend| Element::ById(frontend, id, backend)))
            .map(Change::Remove);
        let added = differing(&after.slots, &self.slots, |slot, backend| Element::Slot(frontend, slot, backend))
            .chain(differing(&after.slot_ids, &self.slot_ids, |slot, id| Element::SlotId(frontend, slot, id)))
            .chain(differing(&after.by_id, &self.by_id, |id, backend| Element::ById(frontend, id, backend)))
            .chain(differing(&target(after), &target(self), |(), target| Element::Service(frontend, target)))
            .map(Change::Add);
        removed.chain(added)
    }

    fn holder(&self, slot: u32) -> Option<Backend> {
        let by_id = || self.by_id.get(self.slot_ids.get(&slot)?);
        self.slots.get(&slot).or_else(by_id).copied()
    }

    /// Returns the ids of `backends`, which are those that they had, or new ones.
    fn ids(&self, backends: &BTreeMap<Backend, u32>) -> BTreeMap<Backend, Id> {
        let mut ids = BTreeMap::new();
        for (&id, &backend) in self.by_id.iter().filter(|(_, backend)| backends.contains_key(backend)) {
            ids.entry(backend).or_insert(id);
        }
        // An id that is given up now comes last: clients are still held to it.
        let taken: BTreeSet<Id> = self.by_id.keys().copied().collect();
        let kept: BTreeSet<Id> = ids.values().copied().collect();
        let mut free = Id::free(&taken).chain(taken.difference(&kept).copied());
        for &backend in backends.keys() {
            if let Entry::Vacant(vacant) = ids.entry(backend)
                && let Some(id) = free.next()
            {
                vacant.insert(id);
            }
        }
        ids
    }
}

/// Returns the entries of `these` that `others` has not or has with another value, as elements.
fn differing<K: Copy + Ord, V: Copy + PartialEq>(
    these: &BTreeMap<K, V>,
    others: &BTreeMap<K, V>,
    element: impl Fn(K, V) -> Element,
) -> std::vec::IntoIter<Element> {
    let differs = |(key, value): &(&K, &V)| others.get(key) != Some(*value);
    let found: Vec<Element> = these.iter().filter(differs).map(|(&key, &value)| element(key, value)).collect();
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use culvert_model::Protocol;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn frontend() -> Frontend {
        Frontend { address: "242.0.0.1".parse().unwrap(), protocol: Protocol::Tcp, port: 80 }
    }

    fn backend(number: u16) -> Backend {
        Backend { address: "10.1.0.1".parse().unwrap(), port: number }
    }

    fn service(backends: impl IntoIterator<Item = u16>, affinity: Option<u32>) -> Service {
        Service { backends: backends.into_iter().map(|number| (backend(number), 1)).collect(), affinity }
    }

    fn elements(placed: &Placed) -> BTreeSet<Element> {
        let changes = Placed::default().changes(frontend(), placed).collect::<Vec<_>>();
        changes
            .into_iter()
            .map(|change| match change {
                Change::Add(element) => element,
                Change::Remove(element) => panic!("{element:?} is removed from nothing"),
            })
            .collect()
    }

    #[test]
    fn one_change_in_a_thousand_is_a_handful_of_elements() {
        for affinity in [None, Some(60)] {
            let before = Placed::default().towards(&frontend(), &service(1..=1000, affinity));
            let fewer = before.towards(&frontend(), &service((1..=1000).filter(|&number| number != 500), affinity));
            let changes = before.changes(frontend(), &fewer).count();
            assert!(changes <= 6, "{changes} changes for one that went");
            let other = before.towards(&frontend(), &service((2..=1000).chain([2000]), affinity));
            let changes = before.changes(frontend(), &other).count();
            assert!(changes <= 4, "{changes} changes for one that replaces another");
        }
    }

    #[test]
    fn a_service_without_backends_of_its_family_has_no_elements() {
        let mut foreign = service([], None);
        foreign.backends.insert(Backend { address: "fd00::1".parse().unwrap(), port: 80 }, 1);
        assert!(Placed::default().towards(&frontend(), &foreign).is_empty());
        assert!(Placed::default().towards(&frontend(), &service([], Some(5))).is_empty());
    }

    #[test]
    fn an_id_that_was_given_up_comes_back_last() {
        let first = Placed::default().towards(&frontend(), &service([1, 2, 3], Some(60)));
        let second = first.towards(&frontend(), &service([1, 2, 4], Some(60)));
        let ids: Vec<u16> = second.by_id.keys().map(|id| id.0).collect();
        assert_eq!(ids, [1, 2, 4]);
        assert_eq!(Id::free(&BTreeSet::from([Id(2), Id(u16::MAX)])).next(), Some(Id(1)));
        assert_eq!(Id::of_number(Id(7).number()), Some(Id(7)));
        assert_eq!([0, 0x1_0000].map(Id::of_number), [None; 2]);
    }

    fn some_service() -> impl Strategy<Value = Service> {
        let affinity = proptest::option::of(prop::sample::select(vec![10_u32, 20]));
        let backends = btree_map((1_u16..8).prop_map(backend), 1_u32..5, 0..7);
        (backends, affinity).prop_map(|(backends, affinity)| Service { backends, affinity })
    }

    proptest! {
        #[test]
        fn changes_lead_from_one_state_to_the_next_and_ids_stay(services in vec(some_service(), 1..12)) {
            let mut placed = Placed::default();
            let mut kernel = BTreeSet::new();
            for service in services {
                let after = placed.towards(&frontend(), &service);
                for change in placed.changes(frontend(), &after) {
                    match change {
                        Change::Remove(element) => prop_assert!(kernel.remove(&element), "{element:?} is not there"),
                        Change::Add(element) => prop_assert!(kernel.insert(element), "{element:?} is there"),
                    }
                }
                prop_assert_eq!(&kernel, &elements(&after));
                prop_assert_eq!(after.backends(), service.backends.keys().copied().collect());
                let keys: BTreeSet<String> = kernel.iter().map(|element| match element {
                    Element::Service(..) => "service".to_owned(),
                    Element::Slot(_, slot, _) => format!("slot {slot}"),
                    Element::SlotId(_, slot, _) => format!("id of {slot}"),
                    Element::ById(_, id, _) => format!("{id:?}"),
                }).collect();
                prop_assert_eq!(keys.len(), kernel.len());
                for (id, backend) in &after.by_id {
                    let before = placed.by_id.iter().find(|(_, before)| *before == backend);
                    prop_assert!(before.is_none_or(|(before, _)| before == id));
                }
                let read = kernel.iter().fold(Placed::default(), |mut read, element| {
                    read.insert(element);
                    read
                });
                prop_assert_eq!(&read, &after);
                placed = after;
            }
        }
    }
}
