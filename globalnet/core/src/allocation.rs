//! Which object holds which global addresses, and what has to be written so that the objects say so.
//!
//! Level-triggered: a pass over everything that is known, whose result depends on nothing else; what is written of it and
//! read again changes nothing. Addresses are kept first: what this process has given before, then what stands in a status,
//! where the older object wins, then what an object once gave back. Only what is still asked for is new.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::IpFamily;

use crate::applicants::{Applicant, CLUSTER_EGRESS, Demand, applicants};
use crate::conditions::{Outcome, conflicted, has_leftovers, merged};
use crate::exports::{self, Wanted};
use crate::groups::{Groups, groups};
use crate::hosts::Hosts;
use crate::ledger::Ledger;
use crate::{
    Condition, Decision, FoundStatus, GlobalAddresses, Holder, IngressObject, Inputs, Memory, ObjectKey, Status, Target,
};

/// How many addresses rest: pods of Deployments never come again by the same name, and the memory is not to grow for ever.
const MAX_RESTED: usize = 4096;

/// Decides who holds which address.
///
/// `memory` is that of this process's last decision, empty when it has just become active. It wins over statuses: one that
/// somebody has edited is set back.
pub fn allocate(inputs: &Inputs, memory: &Memory) -> Decision {
    let mut ledger = Ledger::new(&inputs.cidrs);
    let families: Vec<IpFamily> = ledger.families().collect();
    let wanted = if families.is_empty() { Wanted::default() } else { exports::wanted(inputs) };
    let applicants = applicants(inputs, &wanted, &families);
    let leaving = leaving(inputs, &wanted);
    let kept = keep(&applicants, &leaving, memory, &mut ledger);
    let former = former(memory);
    let mut all: Served<'_> = Vec::with_capacity(applicants.len());
    for (applicant, kept) in applicants.into_iter().zip(kept) {
        let outcome = serve(&applicant, &kept, former.get(&applicant.holder), &mut ledger);
        all.push((applicant, outcome));
    }
    for (applicant, outcome) in &mut all {
        let addresses = &outcome.addresses;
        let is_lost = |text: &&String| !text.parse::<IpAddr>().is_ok_and(|address| addresses.contains(&address));
        let lost = applicant.found.iter().filter(is_lost);
        // Who is to have no address is told why in other words.
        if matches!(applicant.demand, Demand::Addresses { .. }) {
            outcome.refusals = lost.filter_map(|text| ledger.refusal(text, &applicant.holder)).collect();
        }
    }
    let (addresses, groups) = addresses(inputs, &wanted, &all);
    let mut decision = Decision { addresses, notices: wanted.notices.clone(), ..Decision::default() };
    decision.notices.extend(all.iter().filter_map(|(applicant, outcome)| outcome.notice(&applicant.holder)));
    write_statuses(&mut decision, inputs, &wanted, &all, &groups);
    decision.memory = remember(inputs, memory, &leaving, all, ledger);
    decision.delete = leaving.into_iter().map(|(key, _)| key.clone()).collect();
    write_objects(&mut decision, inputs, wanted);
    decision
}

/// All objects that may hold addresses, and what they got.
type Served<'a> = Vec<(Applicant<'a>, Outcome)>;

/// GlobalIngressIPs of services that are not exported any more, and the addresses in their status.
type Leaving<'a> = Vec<(&'a ObjectKey, Vec<IpAddr>)>;

/// Returns the objects that are to be deleted. What is not understood is somebody else's, and stays.
fn leaving<'a>(inputs: &'a Inputs, wanted: &Wanted) -> Leaving<'a> {
    let goes = |key: &ObjectKey, object: &IngressObject| object.spec.is_ok() && !wanted.objects.contains_key(key);
    let leaving = inputs.ingress.iter().filter(|(key, object)| goes(key, object));
    let addresses =
        |object: &IngressObject| object.status.addresses.iter().filter_map(|text| text.parse().ok()).collect();
    leaving.map(|(key, object)| (key, addresses(object))).collect()
}

/// Gives every object what it has already, and keeps from everybody what others have not yet heard that they lost.
fn keep(applicants: &[Applicant<'_>], leaving: &Leaving<'_>, memory: &Memory, ledger: &mut Ledger) -> Vec<Vec<IpAddr>> {
    let mut kept: Vec<Vec<IpAddr>> = vec![Vec::new(); applicants.len()];
    let remembered = |holder: &Holder| memory.held.get(holder).filter(|addresses| !addresses.is_empty());
    let mut known = vec![false; applicants.len()];
    for ((applicant, kept), known) in applicants.iter().zip(&mut kept).zip(&mut known) {
        let Some(addresses) = remembered(&applicant.holder) else { continue };
        *known = true;
        kept.extend(addresses.iter().filter(|&&address| ledger.claim(address, &applicant.holder)));
    }
    for ((applicant, kept), known) in applicants.iter().zip(&mut kept).zip(&known) {
        if !known {
            let addresses = applicant.found.iter().filter_map(|text| text.parse().ok());
            kept.extend(addresses.filter(|&address| ledger.claim(address, &applicant.holder)));
        }
    }
    for (key, found) in leaving {
        let addresses = remembered(&Holder::Ingress((*key).clone())).into_iter().flatten().chain(found);
        addresses.for_each(|&address| ledger.block(address));
    }
    memory.rested.iter().for_each(|(address, holder)| ledger.rest(*address, holder));
    // Mostly nothing has gone since the last pass.
    if known.iter().filter(|&&known| known).count() < memory.held.len() {
        for (holder, addresses) in &memory.held {
            addresses.iter().for_each(|&address| ledger.rest(address, holder));
        }
    }
    kept
}

/// Returns what rests by who had it.
fn former(memory: &Memory) -> BTreeMap<&Holder, Vec<IpAddr>> {
    let mut all: BTreeMap<&Holder, Vec<IpAddr>> = BTreeMap::new();
    for (address, holder) in &memory.rested {
        all.entry(holder).or_default().push(*address);
    }
    all
}

/// Gives an object what it asks for: the first of what it has, then what it once had, then new addresses.
fn serve(applicant: &Applicant<'_>, kept: &[IpAddr], former: Option<&Vec<IpAddr>>, ledger: &mut Ledger) -> Outcome {
    let mut outcome = Outcome::default();
    let (families, count) = match &applicant.demand {
        Demand::Nothing { .. } => return outcome,
        Demand::Kept { .. } => {
            outcome.addresses = kept.to_vec();
            return outcome;
        }
        Demand::Addresses { families, count } => (families, *count),
    };
    for &family in families {
        let is_of_family = |address: &&IpAddr| IpFamily::of(**address) == family;
        let mut own: Vec<IpAddr> = kept.iter().filter(is_of_family).take(count).copied().collect();
        for &address in former.into_iter().flatten().filter(is_of_family) {
            if own.len() < count && ledger.claim(address, &applicant.holder) {
                own.push(address);
            }
        }
        match ledger.allocate(family, count - own.len(), &applicant.holder) {
            Ok(new) => own.extend(new),
            Err(failure) => outcome.failure = Some(failure),
        }
        outcome.addresses.extend(own);
    }
    outcome
}

/// Returns what this process has to know in its next pass.
fn remember(inputs: &Inputs, memory: &Memory, leaving: &Leaving<'_>, served: Served<'_>, ledger: Ledger) -> Memory {
    let holding = served.into_iter().filter(|(_, outcome)| !outcome.addresses.is_empty());
    let held: BTreeMap<Holder, Vec<IpAddr>> =
        holding.map(|(applicant, outcome)| (applicant.holder, outcome.addresses)).collect();
    let all: BTreeSet<IpAddr> = held.values().flatten().copied().collect();
    let mut rested = ledger.into_rested(&all);
    let mut resting: BTreeSet<IpAddr> = rested.iter().map(|(address, _)| *address).collect();
    let mut rest = |holder: &Holder, address: IpAddr| {
        let is_ours = || inputs.cidrs.iter().any(|cidr| cidr.contains(&address));
        if !all.contains(&address) && is_ours() && resting.insert(address) {
            rested.push((address, holder.clone()));
        }
    };
    for (key, found) in leaving {
        found.iter().for_each(|&address| rest(&Holder::Ingress((*key).clone()), address));
    }
    for (holder, addresses) in &memory.held {
        addresses.iter().for_each(|&address| rest(holder, address));
    }
    rested.drain(..rested.len().saturating_sub(MAX_RESTED));
    Memory { held, rested }
}

/// Returns what the NAT goes by, and how pods are grouped.
fn addresses(inputs: &Inputs, wanted: &Wanted, served: &Served<'_>) -> (GlobalAddresses, Groups) {
    let mut all = GlobalAddresses { cidrs: inputs.cidrs.clone(), ..GlobalAddresses::default() };
    let mut egress: BTreeMap<ObjectKey, BTreeSet<IpAddr>> = BTreeMap::new();
    let hosts = Hosts::of(inputs, &wanted.objects);
    for (applicant, outcome) in served {
        let addresses = outcome.addresses.iter().copied();
        match &applicant.holder {
            Holder::Gateway(name) => all.gateways.extend(addresses.map(|address| (name.clone(), address))),
            Holder::ClusterEgress(_) => all.cluster_egress.extend(addresses),
            Holder::Egress(key) => drop(egress.insert(key.clone(), addresses.collect())),
            Holder::Ingress(key) => {
                let Some(spec) = wanted.objects.get(key) else { continue };
                match (spec.target, spec.address) {
                    (Target::Service, _) => {
                        let service = ObjectKey { namespace: key.namespace.clone(), name: spec.service.clone() };
                        all.ingress_services.extend(addresses.map(|address| (address, service.clone())));
                    }
                    (Target::Pod | Target::Endpoint, Some(host)) => {
                        if hosts.leaves(&key.namespace, spec) {
                            all.leaving.extend(addresses.clone());
                        }
                        all.ingress_hosts.extend(addresses.map(|address| (address, host)));
                    }
                    (Target::Pod | Target::Endpoint, None) => {}
                }
            }
        }
    }
    egress.retain(|_, addresses| !addresses.is_empty());
    let mut groups = groups(inputs, &egress);
    all.egress = std::mem::take(&mut groups.groups);
    (all, groups)
}

/// Decides which objects are created and set right.
fn write_objects(decision: &mut Decision, inputs: &Inputs, wanted: Wanted) {
    let is_unclear =
        |key: &ObjectKey| !inputs.unclear.is_empty() && inputs.unclear.contains(&Holder::Ingress(key.clone()));
    for (key, spec) in wanted.objects {
        let stands = inputs.ingress.get(&key).is_some_and(|object| object.spec.as_ref() == Ok(&spec));
        if !stands && !is_unclear(&key) {
            decision.apply.insert(key, spec);
        }
    }
    let default = Holder::ClusterEgress(CLUSTER_EGRESS.to_owned());
    decision.create_cluster_egress = !inputs.cidrs.is_empty()
        && !inputs.cluster_egress.contains_key(CLUSTER_EGRESS)
        && !inputs.unclear.contains(&default);
}

/// Decides which statuses and annotations are written.
fn write_statuses(decision: &mut Decision, inputs: &Inputs, wanted: &Wanted, served: &Served<'_>, groups: &Groups) {
    let is_kept = |holder: &Holder| matches!(holder, Holder::Ingress(key) if wanted.kept.contains(key));
    let none = FoundStatus::default();
    for (applicant, outcome) in served {
        let holder = &applicant.holder;
        if inputs.unclear.contains(holder) || is_kept(holder) {
            continue;
        }
        let found = applicant.status.unwrap_or(&none);
        let conflict = match holder {
            Holder::Gateway(name) => {
                if !outcome.stands_in(applicant.found) {
                    decision.gateways.insert(name.clone(), outcome.addresses.first().copied());
                }
                continue;
            }
            Holder::Egress(key) => conflicted(groups.conflicts.get(key), found),
            Holder::ClusterEgress(_) | Holder::Ingress(_) => None,
        };
        let allocated = outcome.allocated(holder, &applicant.demand, found);
        let ours: Vec<Condition> = [allocated, conflict].into_iter().flatten().collect();
        if !ours.is_empty() || has_leftovers(found) || !outcome.stands_in(&found.addresses) {
            let status = Status { addresses: outcome.addresses.clone(), conditions: merged(found, ours) };
            decision.statuses.insert(holder.clone(), status);
        }
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
