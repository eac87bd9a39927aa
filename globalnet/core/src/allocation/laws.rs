//! What holds whatever users do: small clusters with a small pool, changed, written to and restarted at random.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;

use super::allocate;
use crate::testing::{Cluster, address, cluster_egress, egress, key};
use crate::{ALLOCATED, CLUSTER_EGRESS, Decision, Holder};

const NAMES: [&str; 4] = ["shop/a", "shop/b", "bank/a", "bank/b"];
/// Free ones, others', the CIDR's first, another CIDR's, and none at all.
const EDITS: [&str; 6] = ["242.1.0.1", "242.1.0.2", "242.1.0.14", "242.1.0.0", "242.9.0.1", "x"];

#[derive(Clone, Debug)]
enum Step {
    Export(&'static str, bool),
    Unexport(&'static str),
    Pod(&'static str, u8, bool),
    PodGone(&'static str),
    Egress(&'static str, i64, bool),
    EgressGone(&'static str),
    Gateway(bool),
    ClusterNumber(i64),
    Edit(u8, &'static str),
    Clear(u8),
    Restart,
    Off,
    On,
    /// Nothing of the decision is written.
    Unwritten,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || select(NAMES.to_vec());
    prop_oneof![
        4 => (name(), any::<bool>()).prop_map(|(name, headless)| Step::Export(name, headless)),
        3 => name().prop_map(Step::Unexport),
        3 => (name(), 1u8..5, any::<bool>()).prop_map(|(name, host, runs)| Step::Pod(name, host, runs)),
        1 => name().prop_map(Step::PodGone),
        4 => (name(), -1i64..6, any::<bool>()).prop_map(|(name, number, all)| Step::Egress(name, number, all)),
        2 => name().prop_map(Step::EgressGone),
        1 => any::<bool>().prop_map(Step::Gateway),
        1 => (0i64..5).prop_map(Step::ClusterNumber),
        3 => (any::<u8>(), select(EDITS.to_vec())).prop_map(|(choice, text)| Step::Edit(choice, text)),
        1 => any::<u8>().prop_map(Step::Clear),
        2 => Just(Step::Restart),
        1 => Just(Step::Off),
        2 => Just(Step::On),
        2 => Just(Step::Unwritten),
    ]
}

/// The objects with a status, of which `choice` chooses one.
fn chosen(cluster: &Cluster, choice: u8) -> Option<Holder> {
    let inputs = &cluster.inputs;
    let all: Vec<Holder> = (inputs.ingress.keys().cloned().map(Holder::Ingress))
        .chain(inputs.egress.keys().cloned().map(Holder::Egress))
        .chain(inputs.cluster_egress.keys().cloned().map(Holder::ClusterEgress))
        .collect();
    (!all.is_empty()).then(|| all[usize::from(choice) % all.len()].clone())
}

/// Changes a cluster; whether the next decision is written.
fn change(cluster: &mut Cluster, step: &Step) -> bool {
    match step {
        Step::Export(name, false) => cluster.export(name, "10.96.0.9"),
        Step::Export(name, true) => {
            cluster.export_headless(name, true);
            cluster.inputs.endpoints.remove(&key(name));
            let namespace = key(name).namespace;
            let pods: Vec<_> = cluster.inputs.pods.iter().filter(|(pod, _)| pod.namespace == namespace).collect();
            let pods: Vec<_> = pods.into_iter().map(|(key, pod)| (key.name.clone(), pod.addresses.clone())).collect();
            for (pod, addresses) in pods {
                addresses.iter().for_each(|one| cluster.endpoint(name, &one.to_string(), Some(&pod)));
            }
        }
        Step::Unexport(name) => drop(cluster.inputs.exports.remove(&key(name))),
        Step::Pod(name, host, runs) => {
            cluster.pod(name, &format!("10.1.0.{host}"), "app=web");
            cluster.inputs.pods.get_mut(&key(name)).unwrap().is_running = *runs;
        }
        Step::PodGone(name) => drop(cluster.inputs.pods.remove(&key(name))),
        Step::Egress(name, number, all) => match cluster.inputs.egress.get_mut(&key(name)) {
            Some(object) => object.number = Some(*number),
            None => cluster.egress(name, *number, (!all).then_some("app=web")),
        },
        Step::EgressGone(name) => drop(cluster.inputs.egress.remove(&key(name))),
        Step::Gateway(true) => drop(cluster.inputs.gateways.entry("gw".to_owned()).or_default()),
        Step::Gateway(false) => drop(cluster.inputs.gateways.remove("gw")),
        Step::ClusterNumber(number) => {
            if let Some(object) = cluster.inputs.cluster_egress.get_mut(CLUSTER_EGRESS) {
                object.number = Some(*number);
            }
        }
        Step::Edit(choice, text) => {
            if let Some(holder) = chosen(cluster, *choice) {
                cluster.status(&holder).addresses = vec![(*text).to_owned()];
            }
        }
        Step::Clear(choice) => {
            if let Some(holder) = chosen(cluster, *choice) {
                *cluster.status(&holder) = crate::FoundStatus::default();
            }
        }
        Step::Restart => cluster.restart(),
        Step::Off => cluster.inputs.cidrs.clear(),
        Step::On => cluster.inputs.cidrs = vec!["242.1.0.0/28".parse().unwrap()],
        Step::Unwritten => return false,
    }
    true
}

/// Every address of a decision with the field that it stands in.
fn fields(decision: &Decision) -> Vec<(IpAddr, String)> {
    let all = &decision.addresses;
    let mut fields: Vec<(IpAddr, String)> = Vec::new();
    fields.extend(all.cluster_egress.iter().map(|&one| (one, cluster_egress().to_string())));
    for (name, group) in &all.egress {
        fields.extend(group.addresses.iter().map(|&one| (one, name.clone())));
    }
    fields.extend(all.ingress_hosts.iter().map(|(&one, host)| (one, host.to_string())));
    fields.extend(all.ingress_services.iter().map(|(&one, service)| (one, service.to_string())));
    fields.extend(all.gateways.iter().map(|(name, &one)| (one, name.clone())));
    fields
}

/// Whether behind every address by which a host leaves is one of the pods that have the host's.
fn all_leave_as_themselves(cluster: &Cluster, decision: &Decision) -> bool {
    let all = &decision.addresses;
    let is_pods = |host: &IpAddr| cluster.inputs.pods.values().any(|pod| pod.addresses.contains(host));
    all.leaving.iter().all(|global| all.ingress_hosts.get(global).is_some_and(is_pods))
}

/// What holds of every decision.
fn check(before: &Cluster, decision: &Decision) -> Result<(), TestCaseError> {
    let fields = fields(decision);
    let distinct: BTreeSet<IpAddr> = fields.iter().map(|(one, _)| *one).collect();
    prop_assert_eq!(distinct.len(), fields.len(), "an address stands twice: {:?}", fields);
    let (first, last) = (address("242.1.0.1"), address("242.1.0.14"));
    prop_assert!(distinct.iter().all(|one| (first..=last).contains(one)), "{distinct:?}");
    prop_assert!(!before.inputs.cidrs.is_empty() || distinct.is_empty(), "without Globalnet nobody has anything");
    // What is given is what is remembered, and rests with nobody.
    let held: BTreeSet<IpAddr> = decision.memory.held.values().flatten().copied().collect();
    prop_assert!(distinct.is_subset(&held));
    prop_assert_eq!(held.len(), decision.memory.held.values().flatten().count());
    prop_assert!(decision.memory.rested.iter().all(|(one, _)| !held.contains(one)));
    // Nobody gets what another object was given by this process in the pass before and has not given back since.
    for (holder, addresses) in &before.memory.held {
        let is_there = match holder {
            Holder::Ingress(key) => before.inputs.ingress.contains_key(key),
            Holder::Egress(key) => before.inputs.egress.contains_key(key),
            Holder::ClusterEgress(name) => before.inputs.cluster_egress.contains_key(name),
            Holder::Gateway(name) => before.inputs.gateways.contains_key(name),
        };
        for (other, others) in decision.memory.held.iter().filter(|(other, _)| *other != holder && is_there) {
            prop_assert!(!addresses.iter().any(|one| others.contains(one)), "{other} has what {holder} had");
        }
    }
    prop_assert!(all_leave_as_themselves(before, decision), "{:?}", decision.addresses);
    // Each source is in one group of a class.
    for is_selective in [true, false] {
        let groups = decision.addresses.egress.values().filter(|group| group.is_selective == is_selective);
        let sources: Vec<IpAddr> = groups.flat_map(|group| &group.sources).copied().collect();
        prop_assert_eq!(sources.iter().collect::<BTreeSet<_>>().len(), sources.len());
    }
    Ok(())
}

/// What every object that is still there had, of its demand's size.
fn check_kept(before: &Decision, after: &Decision) -> Result<(), TestCaseError> {
    for (holder, addresses) in &before.memory.held {
        if let Some(now) = after.memory.held.get(holder) {
            let common = addresses.len().min(now.len());
            prop_assert_eq!(&now[..common], &addresses[..common], "{} does not keep what it had", holder);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn addresses_are_given_once_and_kept(steps in proptest::collection::vec(step(), 1..40)) {
        let mut cluster = Cluster::new("242.1.0.0/28");
        let mut last = cluster.settle();
        for step in &steps {
            let is_on = !cluster.inputs.cidrs.is_empty();
            let is_written = change(&mut cluster, step);
            let before = cluster.clone();
            let decision = cluster.decide();
            check(&before, &decision)?;
            // While the process lives it puts back whatever is edited.
            if !matches!(step, Step::Restart) && is_on && !cluster.inputs.cidrs.is_empty() {
                check_kept(&last, &decision)?;
            }
            if is_written {
                cluster.write(&decision);
                let again = allocate(&cluster.inputs, &cluster.memory);
                // More may be given now that all know what was given back; what there is stays.
                check_kept(&decision, &again)?;
                prop_assert!(decision.memory.held.keys().all(|holder| again.memory.held.contains_key(holder)));
            }
            last = decision;
        }
        // Once everything is written, nothing changes any more, and another process sees it the same way.
        let settled = cluster.settle();
        cluster.restart();
        let fresh = cluster.decide();
        prop_assert!(fresh.is_settled(), "{fresh:?}");
        prop_assert_eq!(&fresh.addresses, &settled.addresses);
        prop_assert_eq!(&fresh.memory.held, &settled.memory.held);
        // Who has nothing is told, and there is nothing to be had.
        check_told(&mut cluster, &fresh)?;
    }
}

fn check_told(cluster: &mut Cluster, decision: &Decision) -> Result<(), TestCaseError> {
    let free = 14 - decision.memory.held.values().flatten().count();
    let wanting: BTreeMap<_, _> = cluster.inputs.egress.iter().map(|(key, one)| (key.clone(), one.number)).collect();
    for (key, number) in wanting {
        let holder = Holder::Egress(key);
        let (held, told) = (cluster.held(&holder).len(), cluster.condition(&holder, ALLOCATED));
        let number = usize::try_from(number.unwrap_or(1)).unwrap_or(usize::MAX);
        if held == number && number > 0 {
            prop_assert!(told.starts_with("True Success"), "{holder} {told}");
        } else {
            prop_assert!(told.starts_with("False"), "{holder} {told}");
            let is_short = number > held + free || number == 0 || cluster.inputs.cidrs.is_empty();
            prop_assert!(is_short, "{holder} has {held} of {number}, and {free} are free: {told}");
        }
    }
    Ok(())
}

#[test]
fn no_more_addresses_rest_than_a_few_thousand_and_the_newest_do() {
    let mut cluster = Cluster::new("242.0.0.0/8");
    cluster.pass();
    let old = |number: u32| (std::net::Ipv4Addr::from(0xf201_0000 + number).into(), egress(&format!("shop/{number}")));
    cluster.memory.rested = (0..5000).map(old).collect();
    cluster.pass();
    assert_eq!(cluster.memory.rested, (904..5000).map(old).collect::<Vec<_>>());
}
