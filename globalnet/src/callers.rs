//! Tells who stands behind a global address, from the node's connection tracking: as long as a flow lives, and no longer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use culvert_api::{Pod, Record};
use culvert_kernel::{Caller, callers};
use culvert_model::Protocol;
use culvert_runtime::Objects;

use crate::config::{Config, Seen};

/// Returns a line for each flow that other clusters see coming from an address, or that there is none.
///
/// # Errors
///
/// Connection tracking or the pods cannot be listed.
pub async fn who_called(config: &Config, (address, port): Seen) -> anyhow::Result<String> {
    let flows = callers(address, port).await?;
    let objects = Objects::at(&config.records, "culvert-globalnet").await.context("this cluster's pods")?;
    let mut pods = BTreeMap::new();
    for pod in objects.list::<Pod>().await?.records.iter().filter(|pod| !pod.spec.host_network) {
        let addresses = pod.status.pod_ips.iter().map(|one| &one.ip).chain([&pod.status.pod_ip]);
        let name = format!("pod {}/{}", pod.namespace(), pod.name());
        pods.extend(addresses.filter_map(|text| Some((text.parse::<IpAddr>().ok()?, name.clone()))));
    }
    if flows.is_empty() {
        let port = port.map(|port| format!(" port {port}")).unwrap_or_default();
        return Ok(format!("No flow on this node leaves by {address}{port}: is its gateway the active one?\n"));
    }
    Ok(flows.iter().map(|flow| line(flow, &pods)).collect())
}

fn line(flow: &Caller, pods: &BTreeMap<IpAddr, String>) -> String {
    let end = |(address, port): (IpAddr, Option<u16>)| match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let protocol =
        Protocol::of_number(flow.protocol).map_or(format!("protocol {}", flow.protocol), |one| one.to_string());
    let who = pods.get(&flow.source.0).map_or("no pod that is known", String::as_str);
    format!("{protocol} {} is {who} ({}), to {}\n", end(flow.seen), end(flow.source), end(flow.destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_pod_and_both_ends() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut flow = Caller {
            protocol: 6,
            source: (address("10.244.1.5"), Some(4000)),
            destination: (address("242.2.255.254"), Some(80)),
            seen: (address("242.1.0.3"), Some(51234)),
        };
        let pods = BTreeMap::from([(address("10.244.1.5"), "pod shop/web-0".to_owned())]);
        assert_eq!(
            line(&flow, &pods),
            "tcp 242.1.0.3:51234 is pod shop/web-0 (10.244.1.5:4000), to 242.2.255.254:80\n"
        );
        flow.protocol = 1;
        (flow.source.1, flow.destination.1, flow.seen.1) = (None, None, None);
        assert_eq!(
            line(&flow, &BTreeMap::new()),
            "protocol 1 242.1.0.3 is no pod that is known (10.244.1.5), to 242.2.255.254\n"
        );
    }
}
