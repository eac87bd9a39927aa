//! A kernel in memory, with the behaviour that plans depend on, and with faults at will.
//!
//! It knows who made what, refuses what Linux refuses (making what exists, deleting what another protocol made, a route
//! on a missing link), and drops what stands on a link that goes.

use std::collections::{BTreeMap, BTreeSet};

use culvert_model::MacAddr;

use crate::own::Owner;
use crate::{Fdb, Link, Plan, RouteKey, RouteTarget, Rule, State, Step};

/// Routing protocol number of what stands for everybody else.
const FOREIGN: u8 = 4;

/// A network namespace in which one component of Culvert lives beside others.
#[derive(Clone, Debug)]
pub struct FakeKernel {
    owner: Owner,
    /// Names of all links; the details of own ones are in `state`.
    links: BTreeSet<String>,
    routes: BTreeMap<RouteKey, (u8, RouteTarget)>,
    rules: BTreeMap<Rule, u8>,
    /// nftables tables, addresses, neighbours and so on, ours and foreign alike.
    state: State,
    steps_taken: usize,
    faults: BTreeSet<usize>,
}

/// A step that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub step: Step,
    pub reason: &'static str,
}

impl FakeKernel {
    /// Makes a kernel for `owner` that already holds `foreign`, made by somebody else. The map of foreign links gives
    /// names only.
    pub fn new(owner: Owner, foreign: State) -> Self {
        let State { links, routes, rules, .. } = foreign.clone();
        Self {
            owner,
            links: links.into_keys().collect(),
            routes: routes.into_iter().map(|(key, target)| (key, (FOREIGN, target))).collect(),
            rules: rules.into_iter().map(|rule| (rule, FOREIGN)).collect(),
            state: State { routes: BTreeMap::new(), rules: BTreeSet::new(), links: BTreeMap::new(), ..foreign },
            steps_taken: 0,
            faults: BTreeSet::new(),
        }
    }

    /// Lets the step number `nth` from now, counted from 0 over all plans, fail without effect.
    pub fn fail_step(&mut self, nth: usize) {
        self.faults.insert(self.steps_taken + nth);
    }

    /// Returns what is the owner's, and of the sysctls those named in `desired`.
    pub fn observe(&self, desired: &State) -> State {
        let mut own = self.state.clone();
        let is_own = |link: &String| self.owner.links.contains(link);
        own.addresses.retain(|(link, _)| is_own(link));
        own.neighbours.retain(|neighbour, _| is_own(&neighbour.link));
        own.fdb.retain(|entry| is_own(&entry.link));
        own.nft.retain(|name, _| self.owner.nft_tables.contains(name));
        own.sysctls.retain(|path, _| desired.sysctls.contains_key(path));
        own.routes = self.routes_of(self.owner.protocol);
        own.rules = self.rules_of(self.owner.protocol);
        own
    }

    /// Returns what everybody else made, without links.
    pub fn foreign(&self) -> State {
        let mut foreign = self.state.clone();
        let is_own = |link: &String| self.owner.links.contains(link);
        foreign.links.clear();
        foreign.sysctls.clear();
        foreign.addresses.retain(|(link, _)| !is_own(link));
        foreign.neighbours.retain(|neighbour, _| !is_own(&neighbour.link));
        foreign.fdb.retain(|entry| !is_own(&entry.link));
        foreign.nft.retain(|name, _| !self.owner.nft_tables.contains(name));
        foreign.routes = self.routes_of(FOREIGN);
        foreign.rules = self.rules_of(FOREIGN);
        foreign
    }

    /// Takes the steps in order; one that fails does not stop the others.
    pub fn apply(&mut self, plan: &Plan) -> Vec<Fault> {
        let mut faults = Vec::new();
        for step in &plan.steps {
            if let Err(reason) = self.take(step) {
                faults.push(Fault { step: step.clone(), reason });
            }
        }
        faults
    }

    /// Takes one step.
    ///
    /// # Errors
    ///
    /// The kernel's words for what it refuses.
    pub fn take(&mut self, step: &Step) -> Result<(), &'static str> {
        let number = self.steps_taken;
        self.steps_taken += 1;
        if self.faults.contains(&number) {
            return Err("injected fault");
        }
        match step {
            Step::PutTable { name, table } => {
                self.state.nft.insert(name.clone(), table.clone());
                Ok(())
            }
            Step::DeleteTable { name } => there(self.state.nft.remove(name).is_some()),
            Step::AddLink { name, link } => self.add_link(name, link),
            Step::SetMtu { link, mtu } => {
                self.state.links.get_mut(link).map(|found| found.mtu = *mtu).ok_or("no such device")
            }
            Step::DeleteLink { name } => self.delete_link(name),
            Step::SetSysctl { path, value } => {
                if let Some(link) = path.split('/').find(|part| self.owner.links.contains(*part)) {
                    self.device(link)?;
                }
                self.state.sysctls.insert(path.clone(), value.clone());
                Ok(())
            }
            Step::AddAddress { link, address } => {
                self.device(link)?;
                let taken = self.state.addresses.iter().any(|(on, found)| on == link && found.addr() == address.addr());
                free(!taken)?;
                self.state.addresses.insert((link.clone(), *address));
                Ok(())
            }
            Step::DeleteAddress { link, address } => there(self.state.addresses.remove(&(link.clone(), *address))),
            Step::SetNeighbour { neighbour, mac } => {
                self.device(&neighbour.link)?;
                self.state.neighbours.insert(neighbour.clone(), *mac);
                Ok(())
            }
            Step::DeleteNeighbour(neighbour) => there(self.state.neighbours.remove(neighbour).is_some()),
            Step::AddFdb(entry) => self.add_fdb(entry),
            Step::DeleteFdb(entry) => there(self.state.fdb.remove(entry)),
            Step::AddRoute { key, target } => {
                free(!self.routes.contains_key(key))?;
                self.set_route(key, target)
            }
            Step::ReplaceRoute { key, target } => self.set_route(key, target),
            Step::DeleteRoute(key) => {
                there(self.routes.get(key).is_some_and(|(protocol, _)| *protocol == self.owner.protocol))?;
                self.routes.remove(key);
                Ok(())
            }
            Step::AddRule(rule) => {
                free(!self.rules.contains_key(rule))?;
                self.rules.insert(rule.clone(), self.owner.protocol);
                Ok(())
            }
            Step::DeleteRule(rule) => {
                there(self.rules.get(rule) == Some(&self.owner.protocol))?;
                self.rules.remove(rule);
                Ok(())
            }
        }
    }

    fn routes_of(&self, owner: u8) -> BTreeMap<RouteKey, RouteTarget> {
        let own = self.routes.iter().filter(|(_, (protocol, _))| *protocol == owner);
        own.map(|(key, (_, target))| (key.clone(), target.clone())).collect()
    }

    fn rules_of(&self, owner: u8) -> BTreeSet<Rule> {
        self.rules.iter().filter(|(_, protocol)| **protocol == owner).map(|(rule, _)| rule.clone()).collect()
    }

    fn device(&self, link: &str) -> Result<(), &'static str> {
        if self.links.contains(link) { Ok(()) } else { Err("no such device") }
    }

    fn add_link(&mut self, name: &str, link: &Link) -> Result<(), &'static str> {
        free(self.links.insert(name.to_owned()))?;
        self.state.links.insert(name.to_owned(), link.clone());
        Ok(())
    }

    fn delete_link(&mut self, name: &str) -> Result<(), &'static str> {
        self.device(name)?;
        self.links.remove(name);
        self.state.links.remove(name);
        self.state.addresses.retain(|(link, _)| link != name);
        self.state.neighbours.retain(|neighbour, _| neighbour.link != name);
        self.state.fdb.retain(|entry| entry.link != name);
        self.state.sysctls.retain(|path, _| path.split('/').all(|part| part != name));
        self.routes.retain(|_, (_, target)| match target {
            RouteTarget::Via(route) => route.link != name,
            RouteTarget::Local | RouteTarget::Unreachable => true,
        });
        Ok(())
    }

    fn add_fdb(&mut self, entry: &Fdb) -> Result<(), &'static str> {
        self.device(&entry.link)?;
        let taken = self.state.fdb.iter().any(|found| {
            found == entry || (found.mac != MacAddr::ZERO && found.link == entry.link && found.mac == entry.mac)
        });
        free(!taken)?;
        self.state.fdb.insert(entry.clone());
        Ok(())
    }

    fn set_route(&mut self, key: &RouteKey, target: &RouteTarget) -> Result<(), &'static str> {
        match target {
            RouteTarget::Via(route) => self.device(&route.link)?,
            RouteTarget::Local | RouteTarget::Unreachable => {}
        }
        self.routes.insert(key.clone(), (self.owner.protocol, target.clone()));
        Ok(())
    }
}

fn there(found: bool) -> Result<(), &'static str> {
    if found { Ok(()) } else { Err("no such entry") }
}

fn free(free: bool) -> Result<(), &'static str> {
    if free { Ok(()) } else { Err("exists") }
}
