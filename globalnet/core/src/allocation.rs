//! Which object holds which global addresses, and what has to be written so that the objects say so.
//!
//! Level-triggered: a pass over everything that is known, whose result depends on nothing else; what is written of it and
//! read again changes nothing. Addresses are kept first: what this process has given before, then what stands in a status,
//! where the older object wins, then what an object once gave back. Only what is still asked for is new.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::IpFamily;

use crate::applicants::{Applicant, CLUSTER_EGRESS, Demand, applicants};
use crate::conditions::{Outcome, conflicted, merged};
use crate::exports::{self, Wanted};
use crate::groups::{Groups, groups};
use crate::ledger::Ledger;
use crate::{Decision, FoundStatus, GlobalAddresses, Holder, Inputs, Memory, ObjectKey, Status, Target};

/// Decides who holds which address.
///
/// `memory` is that of this process's last decision, empty when it has just become active. It wins over statuses: one that
/// somebody has edited is set back.
pub fn allocate(inputs: &Inputs, memory: &Memory) -> Decision {
    let mut ledger = Ledger::new(&inputs.cidrs);
    let families: Vec<IpFamily> = ledger.families().collect();
    let wanted = if families.is_empty() { Wanted::default() } else { exports::wanted(inputs) };
    let applicants = applicants(inputs, &wanted, &families);
    let kept = keep(&applicants, inputs, memory, &mut ledger);
    let former = former(memory);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (applicant, kept) in applicants.iter().zip(&kept) {
        outcomes.push(serve(applicant, kept, former.get(&applicant.holder), &mut ledger));
    }
    for (applicant, outcome) in applicants.iter().zip(&mut outcomes) {
        let addresses = &outcome.addresses;
        let is_lost = |text: &&String| !text.parse::<IpAddr>().is_ok_and(|address| addresses.contains(&address));
        let lost = applicant.found.iter().filter(is_lost);
        // Who is to have no address is told why in other words.
        if matches!(applicant.demand, Demand::Addresses { .. }) {
            outcome.refusals = lost.filter_map(|text| ledger.refusal(text, &applicant.holder)).collect();
        }
    }
    let outcomes: BTreeMap<&Holder, (&Applicant<'_>, Outcome)> =
        applicants.iter().zip(outcomes).map(|(one, outcome)| (&one.holder, (one, outcome))).collect();
    let (addresses, groups) = addresses(inputs, &wanted, &outcomes);
    let mut decision = Decision {
        addresses,
        memory: remember(inputs, memory, &wanted, &outcomes, ledger),
        notices: wanted.notices.clone(),
        ..Decision::default()
    };
    decision.notices.extend(outcomes.iter().filter_map(|(holder, (_, outcome))| outcome.notice(holder)));
    write_objects(&mut decision, inputs, wanted);
    write_statuses(&mut decision, inputs, &outcomes, &groups);
    decision
}

/// Gives every object what it has already, and keeps from everybody what others have not yet heard that they lost.
fn keep(applicants: &[Applicant<'_>], inputs: &Inputs, memory: &Memory, ledger: &mut Ledger) -> Vec<Vec<IpAddr>> {
    let mut kept: Vec<Vec<IpAddr>> = vec![Vec::new(); applicants.len()];
    let remembered = |holder: &Holder| memory.held.get(holder).filter(|addresses| !addresses.is_empty());
    for (applicant, kept) in applicants.iter().zip(&mut kept) {
        let addresses = remembered(&applicant.holder).into_iter().flatten();
        kept.extend(addresses.filter(|&&address| ledger.claim(address, &applicant.holder)));
    }
    for (applicant, kept) in applicants.iter().zip(&mut kept) {
        if remembered(&applicant.holder).is_none() {
            let addresses = applicant.found.iter().filter_map(|text| text.parse().ok());
            kept.extend(addresses.filter(|&address| ledger.claim(address, &applicant.holder)));
        }
    }
    let served: BTreeSet<&Holder> = applicants.iter().map(|applicant| &applicant.holder).collect();
    for (key, object) in &inputs.ingress {
        let holder = Holder::Ingress(key.clone());
        if !served.contains(&holder) {
            let found = object.status.addresses.iter().filter_map(|text| text.parse().ok());
            let addresses = remembered(&holder).into_iter().flatten().copied().chain(found);
            addresses.for_each(|address| ledger.block(address));
        }
    }
    let gone = memory.held.iter().filter(|(holder, _)| !served.contains(holder));
    for (holder, address) in gone.flat_map(|(holder, addresses)| addresses.iter().map(move |address| (holder, address)))
    {
        ledger.rest(*address, holder);
    }
    memory.rested.iter().for_each(|(&address, holder)| ledger.rest(address, holder));
    kept
}

/// Returns what rests by who had it.
fn former(memory: &Memory) -> BTreeMap<&Holder, Vec<IpAddr>> {
    let mut all: BTreeMap<&Holder, Vec<IpAddr>> = BTreeMap::new();
    for (&address, holder) in &memory.rested {
        all.entry(holder).or_default().push(address);
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
fn remember(
    inputs: &Inputs,
    memory: &Memory,
    wanted: &Wanted,
    outcomes: &BTreeMap<&Holder, (&Applicant<'_>, Outcome)>,
    ledger: Ledger,
) -> Memory {
    let held: BTreeMap<Holder, Vec<IpAddr>> = outcomes
        .iter()
        .filter(|(_, (_, outcome))| !outcome.addresses.is_empty())
        .map(|(&holder, (_, outcome))| (holder.clone(), outcome.addresses.clone()))
        .collect();
    let all: BTreeSet<IpAddr> = held.values().flatten().copied().collect();
    let mut rested = ledger.into_rested(&all);
    let mut rest = |holder: &Holder, address: IpAddr| {
        if !all.contains(&address) && inputs.cidrs.iter().any(|cidr| cidr.contains(&address)) {
            rested.entry(address).or_insert_with(|| holder.clone());
        }
    };
    for (key, object) in inputs.ingress.iter().filter(|(key, _)| !wanted.objects.contains_key(key)) {
        let found = object.status.addresses.iter().filter_map(|text| text.parse().ok());
        found.for_each(|address| rest(&Holder::Ingress(key.clone()), address));
    }
    for (holder, addresses) in &memory.held {
        addresses.iter().for_each(|&address| rest(holder, address));
    }
    Memory { held, rested }
}

/// Returns what the NAT goes by, and how pods are grouped.
fn addresses(
    inputs: &Inputs,
    wanted: &Wanted,
    outcomes: &BTreeMap<&Holder, (&Applicant<'_>, Outcome)>,
) -> (GlobalAddresses, Groups) {
    let mut all = GlobalAddresses { cidrs: inputs.cidrs.clone(), ..GlobalAddresses::default() };
    let mut egress: BTreeMap<ObjectKey, BTreeSet<IpAddr>> = BTreeMap::new();
    for (&holder, (_, outcome)) in outcomes {
        let addresses = outcome.addresses.iter().copied();
        match holder {
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

/// Decides which objects are created, set right and deleted.
fn write_objects(decision: &mut Decision, inputs: &Inputs, wanted: Wanted) {
    let is_unclear = |holder: &Holder| inputs.unclear.contains(holder);
    for key in inputs.ingress.keys().filter(|key| !wanted.objects.contains_key(key)) {
        // What is not understood is somebody else's.
        if inputs.ingress[key].spec.is_ok() && !is_unclear(&Holder::Ingress(key.clone())) {
            decision.delete.insert(key.clone());
        }
    }
    for (key, spec) in wanted.objects {
        let stands = inputs.ingress.get(&key).is_some_and(|object| object.spec.as_ref() == Ok(&spec));
        if !stands && !is_unclear(&Holder::Ingress(key.clone())) {
            decision.apply.insert(key, spec);
        }
    }
    let default = Holder::ClusterEgress(CLUSTER_EGRESS.to_owned());
    decision.create_cluster_egress =
        !inputs.cidrs.is_empty() && !inputs.cluster_egress.contains_key(CLUSTER_EGRESS) && !is_unclear(&default);
}

/// Decides which statuses and annotations are written.
fn write_statuses(
    decision: &mut Decision,
    inputs: &Inputs,
    outcomes: &BTreeMap<&Holder, (&Applicant<'_>, Outcome)>,
    groups: &Groups,
) {
    let none = FoundStatus::default();
    for (&holder, (applicant, outcome)) in outcomes {
        if inputs.unclear.contains(holder) {
            continue;
        }
        let (found, conflict) = match holder {
            Holder::Gateway(name) => {
                if outcome.texts() != applicant.found {
                    decision.gateways.insert(name.clone(), outcome.addresses.first().copied());
                }
                continue;
            }
            Holder::ClusterEgress(name) => (inputs.cluster_egress.get(name).map_or(&none, |one| &one.status), None),
            Holder::Egress(key) => {
                let found = inputs.egress.get(key).map_or(&none, |one| &one.status);
                (found, conflicted(groups.conflicts.get(key), found))
            }
            Holder::Ingress(key) => (inputs.ingress.get(key).map_or(&none, |one| &one.status), None),
        };
        let allocated = outcome.allocated(holder, &applicant.demand, found);
        let conditions = merged(found, [Some(allocated), conflict].into_iter().flatten().collect());
        if outcome.texts() != found.addresses || conditions != found.conditions {
            let addresses = outcome.addresses.clone();
            decision.statuses.insert(holder.clone(), Status { addresses, conditions });
        }
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
