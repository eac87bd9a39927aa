//! Who asks for addresses, for how many, and in which order they are served.
//!
//! First gateways, without whose address the cluster's health is unknown, then by age: an object that is to be created is
//! the youngest.

use culvert_model::IpFamily;

use crate::conditions::{INVALID_INPUT, INVALID_INSTANCE, POOL_FAILED, ZERO_INPUT};
use crate::exports::Wanted;
use crate::{EgressObject, FoundStatus, Holder, IngressSpec, Inputs, ObjectKey, Target};

/// The one ClusterGlobalEgressIP that counts.
pub const CLUSTER_EGRESS: &str = "cluster-egress.submariner.io";
/// How many addresses it asks for when it is made.
pub const CLUSTER_EGRESS_NUMBER: i64 = 8;
/// How many addresses of a family an object may ask for.
pub const MAX_ADDRESSES: i64 = 20;

/// An object that may hold addresses.
#[derive(Debug)]
pub(crate) struct Applicant<'a> {
    pub(crate) holder: Holder,
    created: Option<i64>,
    /// Addresses in its status or annotation.
    pub(crate) found: &'a [String],
    /// Its status; `None` if it has none, being a Gateway or not there yet.
    pub(crate) status: Option<&'a FoundStatus>,
    pub(crate) demand: Demand,
}

/// What an object is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// So many addresses of each of these families.
    Addresses { families: Vec<IpFamily>, count: usize },
    /// What it has, because what it asks for is not understood.
    Kept { reason: &'static str, message: String },
    /// None.
    Nothing { reason: &'static str, message: String },
}

/// Returns all objects in the order in which they are served.
pub(crate) fn applicants<'a>(inputs: &'a Inputs, wanted: &Wanted, families: &[IpFamily]) -> Vec<Applicant<'a>> {
    let mut all = Vec::new();
    for (name, found) in &inputs.gateways {
        let demand = Demand::Addresses { families: families.iter().take(1).copied().collect(), count: 1 };
        let gateway = Applicant::new(Holder::Gateway(name.clone()), None, None, demand);
        all.push(Applicant { found: found.as_slice(), ..gateway });
    }
    for (name, object) in &inputs.cluster_egress {
        let demand = match name.as_str() {
            CLUSTER_EGRESS => egress_demand(object, "numGlobalIPs", families),
            _ => Demand::Nothing {
                reason: INVALID_INSTANCE,
                message: format!("only {CLUSTER_EGRESS} counts: set numGlobalIPs there, and delete this one"),
            },
        };
        all.push(Applicant::new(Holder::ClusterEgress(name.clone()), object.created, Some(&object.status), demand));
    }
    for (key, object) in &inputs.egress {
        let demand = egress_demand(object, "numberOfIPs", families);
        all.push(Applicant::new(Holder::Egress(key.clone()), object.created, Some(&object.status), demand));
    }
    for (key, spec) in &wanted.objects {
        let object = inputs.ingress.get(key);
        let (created, status) = (object.and_then(|object| object.created), object.map(|object| &object.status));
        let demand = if wanted.kept.contains(key) {
            Demand::Kept { reason: INVALID_INPUT, message: String::new() }
        } else {
            ingress_demand(inputs, key, spec, families)
        };
        all.push(Applicant::new(Holder::Ingress(key.clone()), created, status, demand));
    }
    for (key, object) in &inputs.ingress {
        if let Err(message) = &object.spec
            && !wanted.objects.contains_key(key)
        {
            let demand = Demand::Nothing { reason: INVALID_INPUT, message: message.clone() };
            all.push(Applicant::new(Holder::Ingress(key.clone()), object.created, Some(&object.status), demand));
        }
    }
    if families.is_empty() {
        let message = "this cluster has no global CIDR: give it one with `join --globalnet-cidr`".to_owned();
        all.iter_mut().for_each(|one| one.demand = Demand::Nothing { reason: POOL_FAILED, message: message.clone() });
    } else {
        add_missing(&mut all, inputs, families);
    }
    // Of the same age they stay as they stand here.
    all.sort_by_key(|one| match one.holder {
        Holder::Gateway(_) => (0, None),
        Holder::ClusterEgress(_) | Holder::Egress(_) | Holder::Ingress(_) if one.created.is_none() => (2, None),
        Holder::ClusterEgress(_) | Holder::Egress(_) | Holder::Ingress(_) => (1, one.created),
    });
    all
}

/// Adds what is not understood, and the default object for the cluster if it is not there.
fn add_missing(all: &mut Vec<Applicant<'_>>, inputs: &Inputs, families: &[IpFamily]) {
    for holder in &inputs.unclear {
        if !all.iter().any(|one| one.holder == *holder) {
            let demand = Demand::Kept { reason: INVALID_INPUT, message: String::new() };
            all.push(Applicant::new(holder.clone(), None, None, demand));
        }
    }
    let default = Holder::ClusterEgress(CLUSTER_EGRESS.to_owned());
    if !all.iter().any(|one| one.holder == default) {
        let object = EgressObject { number: Some(CLUSTER_EGRESS_NUMBER), ..EgressObject::default() };
        let demand = egress_demand(&object, "numGlobalIPs", families);
        all.push(Applicant::new(default, None, None, demand));
    }
}

impl<'a> Applicant<'a> {
    fn new(holder: Holder, created: Option<i64>, status: Option<&'a FoundStatus>, demand: Demand) -> Self {
        Self { holder, created, found: status.map_or(&[], |status| &status.addresses), status, demand }
    }
}

fn egress_demand(object: &EgressObject, field: &str, families: &[IpFamily]) -> Demand {
    let number = object.number.unwrap_or(1);
    let way_out = format!("spec.{field} is {number}: ask for 1 to {MAX_ADDRESSES} addresses");
    if let Some(Err(error)) = &object.selector {
        return Demand::Kept { reason: INVALID_INPUT, message: format!("spec.podSelector: {error}") };
    }
    match usize::try_from(number) {
        Ok(0) => Demand::Nothing { reason: ZERO_INPUT, message: way_out },
        Ok(count) if number <= MAX_ADDRESSES => Demand::Addresses { families: families.to_vec(), count },
        Ok(_) | Err(_) => Demand::Kept { reason: INVALID_INPUT, message: way_out },
    }
}

/// Returns the demand of one address: of the first global CIDR whose family the target has.
fn ingress_demand(inputs: &Inputs, key: &ObjectKey, spec: &IngressSpec, families: &[IpFamily]) -> Demand {
    let is_reachable = |family: &&IpFamily| match spec.target {
        Target::Service => {
            let service = inputs.services.get(key);
            service.is_some_and(|service| service.cluster_ips.iter().any(|&one| IpFamily::of(one) == **family))
        }
        Target::Pod | Target::Endpoint => spec.address.is_some_and(|address| IpFamily::of(address) == **family),
    };
    match families.iter().find(is_reachable) {
        Some(&family) => Demand::Addresses { families: vec![family], count: 1 },
        None => Demand::Nothing {
            reason: POOL_FAILED,
            message: format!(
                "what Service {}/{} leads to has no IPv{} address, and the cluster no global CIDR of another family: \
                 give it one with `join --globalnet-cidr`",
                key.namespace,
                spec.service,
                families.first().copied().unwrap_or(IpFamily::V4)
            ),
        },
    }
}
