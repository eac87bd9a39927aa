//! Decides what is shown of global addresses: who holds which, and why somebody has none.

use std::net::IpAddr;

use anyhow::Result;
use culvert_api::{ClusterGlobalEgressIP, Condition, Gateway, GlobalEgressIP, GlobalIngressIP, Record, globalnet};
use culvert_runtime::{Location, Objects};
use serde::Serialize;

use crate::table::{self, Cell, Colour};

/// The objects that hold global addresses.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GlobalObjects {
    pub(crate) ingress: Vec<GlobalIngressIP>,
    pub(crate) egress: Vec<GlobalEgressIP>,
    pub(crate) cluster_egress: Vec<ClusterGlobalEgressIP>,
}

/// An object and the addresses that it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GlobalIpRow {
    /// Empty for an object of the whole cluster.
    pub(crate) namespace: String,
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) addresses: Vec<String>,
    /// What is reached by them, or who leaves by them.
    pub(crate) used_by: String,
    /// `allocated`, or why not in a word.
    pub(crate) status: String,
    /// Why not, in words; empty if all is well.
    pub(crate) reason: String,
}

/// Reads the objects at `location`; the second value says, one line each, which ones could not be read.
pub(crate) async fn read(location: &Location) -> Result<(GlobalObjects, Vec<String>)> {
    // Nothing is applied under this name.
    let objects = Objects::at(location, "culvert").await?;
    // All are on their way while one is waited for.
    let _watch = objects
        .watch(const { &[GlobalIngressIP::RESOURCE, GlobalEgressIP::RESOURCE, ClusterGlobalEgressIP::RESOURCE] });
    let ingress = objects.list::<GlobalIngressIP>().await?;
    let egress = objects.list::<GlobalEgressIP>().await?;
    let cluster_egress = objects.list::<ClusterGlobalEgressIP>().await?;
    let problems = ingress.problems.iter().chain(&egress.problems).chain(&cluster_egress.problems);
    let problems = problems.map(ToString::to_string).collect();
    let found =
        GlobalObjects { ingress: ingress.records, egress: egress.records, cluster_egress: cluster_egress.records };
    Ok((found, problems))
}

impl GlobalObjects {
    /// Returns a row for each object: the cluster's own addresses, those of pods that leave, those that lead to something, and
    /// those by which gateways are probed.
    pub(crate) fn rows(&self, gateways: &[Gateway]) -> Vec<GlobalIpRow> {
        let cluster = self.cluster_egress.iter().map(|object| {
            let who = "all that no GlobalEgressIP chooses".to_owned();
            row(object, who, &object.status.allocated_ips, &object.status.conditions)
        });
        let egress = self.egress.iter().map(|object| {
            let who = match &object.spec.pod_selector {
                None => "all pods of the namespace".to_owned(),
                Some(selector) => {
                    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
                    let expressions = selector.match_expressions.iter().flatten().map(|one| {
                        let values = one.values.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(", ");
                        format!("{} {} ({values})", one.key, one.operator)
                    });
                    format!("pods with {}", labels.chain(expressions).collect::<Vec<_>>().join(", "))
                }
            };
            row(object, who, &object.status.allocated_ips, &object.status.conditions)
        });
        let ingress = self.ingress.iter().map(|object| {
            let name = |reference: &Option<culvert_api::LocalReference>| {
                reference.as_ref().map(|reference| reference.name.clone()).unwrap_or_default()
            };
            let service = name(&object.spec.service_ref);
            let annotation = |key: &str| object.metadata.annotations.as_ref().and_then(|all| all.get(key)).cloned();
            let to = match &object.spec.pod_ref {
                Some(_) => format!("pod {} of service {service}", name(&object.spec.pod_ref)),
                None => match annotation(globalnet::ENDPOINT_ADDRESS) {
                    Some(address) => format!("endpoint {address} of service {service}"),
                    None => format!("service {service}"),
                },
            };
            let address = Some(object.status.allocated_ip.clone()).filter(|address| !address.is_empty());
            row(object, to, &address.into_iter().collect::<Vec<_>>(), &object.status.conditions)
        });
        let gateways = gateways.iter().filter_map(|gateway| {
            let address = gateway.metadata.annotations.as_ref()?.get(globalnet::GATEWAY_ADDRESS)?;
            Some(GlobalIpRow {
                // Nobody asks for it by an object of its own.
                status: "allocated".to_owned(),
                reason: String::new(),
                ..row(gateway, "the gateway itself".to_owned(), std::slice::from_ref(address), &[])
            })
        });
        cluster.chain(egress).chain(ingress).chain(gateways).collect()
    }
}

fn row<R: Record>(object: &R, used_by: String, addresses: &[String], conditions: &[Condition]) -> GlobalIpRow {
    let of_kind = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    let (status, reason) = match (of_kind("Allocated"), of_kind("Conflicted")) {
        (Some(allocated), _) if allocated.status != "True" => (allocated.reason.clone(), allocated.message.clone()),
        (Some(_), Some(conflicted)) if conflicted.status == "True" => {
            (conflicted.reason.clone(), conflicted.message.clone())
        }
        (Some(_), _) => ("allocated".to_owned(), String::new()),
        (None, _) => (
            "waiting".to_owned(),
            "no active gateway of this cluster has looked at it: does culvert-globalnet run?".to_owned(),
        ),
    };
    GlobalIpRow {
        namespace: object.namespace().to_owned(),
        kind: R::KIND,
        name: object.name().to_owned(),
        addresses: addresses.to_vec(),
        used_by,
        status,
        reason,
    }
}

/// Returns the rows as a table.
pub(crate) fn table(rows: &[GlobalIpRow], colours: bool) -> String {
    if rows.is_empty() {
        return "There are no global addresses: this cluster has no Globalnet\n".to_owned();
    }
    let cells: Vec<[Cell; 6]> = rows
        .iter()
        .map(|row| {
            let colour = if row.status == "allocated" { Colour::Green } else { Colour::Red };
            [
                row.namespace.as_str().into(),
                row.kind.into(),
                row.name.as_str().into(),
                runs(&row.addresses).as_str().into(),
                row.used_by.as_str().into(),
                Cell::coloured(&row.status, colour),
            ]
        })
        .collect();
    let mut text = table::render(["NAMESPACE", "KIND", "NAME", "GLOBAL IP", "USED BY", "STATUS"], &cells, colours);
    let reasons = rows.iter().filter(|row| !row.reason.is_empty()).map(|row| {
        let namespace = if row.namespace.is_empty() { String::new() } else { format!("{}/", row.namespace) };
        table::printable(&format!("{} {namespace}{}: {}", row.kind, row.name, row.reason)) + "\n"
    });
    let reasons: String = reasons.collect();
    if !reasons.is_empty() {
        text = text + "\n" + &reasons;
    }
    text
}

/// Writes addresses that follow one another as the first and the last of them.
fn runs(addresses: &[String]) -> String {
    let number = |text: &String| match text.parse() {
        Ok(IpAddr::V4(address)) => Some(u128::from(u32::from(address))),
        Ok(IpAddr::V6(address)) => Some(u128::from(address)),
        Err(_) => None,
    };
    let mut runs: Vec<(&String, &String)> = Vec::new();
    for address in addresses {
        match runs.last_mut() {
            Some((_, last)) if number(last).and_then(|last| last.checked_add(1)) == number(address) => *last = address,
            _ => runs.push((address, address)),
        }
    }
    let text = |(first, last): &(&String, &String)| match first == last {
        true => (*first).clone(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn condition(kind: &str, status: &str, reason: &str, message: &str) -> serde_json::Value {
        json!({"type": kind, "status": status, "reason": reason, "message": message})
    }

    fn objects() -> GlobalObjects {
        let allocated = || condition("Allocated", "True", "Success", "");
        let of = |kind: &str, metadata: serde_json::Value, spec: serde_json::Value, status: serde_json::Value| json!({"apiVersion": "submariner.io/v1", "kind": kind, "metadata": metadata, "spec": spec, "status": status});
        let dry =
            condition("Allocated", "False", "IPPoolAllocationFailed", "242.1.0.0/16 is used up: delete an export");
        let two = condition("Conflicted", "True", "PodsChosenTwice", "GlobalEgressIP shop/a has pod web-0");
        let addresses: Vec<String> = (1..=8).map(|last| format!("242.1.0.{last}")).collect();
        GlobalObjects {
            cluster_egress: vec![
                serde_json::from_value(of(
                    "ClusterGlobalEgressIP",
                    json!({"name": "cluster-egress.submariner.io"}),
                    json!({"numGlobalIPs": 8}),
                    json!({"allocatedIPs": addresses, "conditions": [allocated()]}),
                ))
                .unwrap(),
            ],
            egress: vec![
                serde_json::from_value(of(
                    "GlobalEgressIP",
                    json!({"name": "some", "namespace": "shop"}),
                    json!({"podSelector": {"matchLabels": {"app": "web"}}}),
                    json!({"allocatedIPs": ["242.1.0.9", "242.1.0.12"], "conditions": [allocated(), two]}),
                ))
                .unwrap(),
                serde_json::from_value(of(
                    "GlobalEgressIP",
                    json!({"name": "new", "namespace": "shop"}),
                    json!({}),
                    json!({}),
                ))
                .unwrap(),
            ],
            ingress: vec![
                serde_json::from_value(of(
                    "GlobalIngressIP",
                    json!({"name": "pod-db-0", "namespace": "shop"}),
                    json!({"target": "HeadlessServicePod", "serviceRef": {"name": "db"}, "podRef": {"name": "db-0"}}),
                    json!({"allocatedIP": "242.1.255.254", "conditions": [allocated()]}),
                ))
                .unwrap(),
                serde_json::from_value(of(
                    "GlobalIngressIP",
                    json!({"name": "web", "namespace": "shop"}),
                    json!({"target": "ClusterIPService", "serviceRef": {"name": "web"}}),
                    json!({"conditions": [dry]}),
                ))
                .unwrap(),
            ],
        }
    }

    fn gateways() -> Vec<Gateway> {
        let mut gateway = Gateway::new("gw", culvert_api::GatewayStatus::default());
        let noted = (globalnet::GATEWAY_ADDRESS.to_owned(), "242.1.255.253".to_owned());
        gateway.metadata.annotations = Some(std::collections::BTreeMap::from([noted]));
        vec![gateway, Gateway::new("without", culvert_api::GatewayStatus::default())]
    }

    #[test]
    fn a_person_sees_who_holds_what_and_why_not() {
        insta::assert_snapshot!(table(&objects().rows(&gateways()), false));
    }

    #[test]
    fn a_program_gets_each_address() {
        let rows = serde_json::to_value(objects().rows(&gateways())).unwrap();
        assert_eq!(rows[0]["addresses"].as_array().unwrap().len(), 8);
        assert_eq!(rows[4]["status"], "IPPoolAllocationFailed");
        assert_eq!(rows[2]["usedBy"], "all pods of the namespace");
    }

    #[test]
    fn no_objects_are_no_globalnet() {
        assert!(table(&GlobalObjects::default().rows(&[]), false).contains("no Globalnet"));
    }
}
