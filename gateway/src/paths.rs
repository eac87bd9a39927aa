//! The ways to the peers: how large packets may be on them, and where a peer was heard last.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use culvert_gateway_core::cables::{Choices, ChosenCable};
use culvert_gateway_core::desired::Path;
use culvert_kernel::RouteLookup;
use culvert_model::{CableName, CableReport, CableSet, IpFamily};
use culvert_netstate::own::OUTER_MARK;

/// Returns what is known of the path to each peer: what the data plane found, or the route that leads there, or the MTU of
/// the node's own link.
pub(crate) async fn paths(
    choices: &Choices,
    reports: &BTreeMap<CableName, CableReport>,
    link_mtu: u16,
) -> BTreeMap<CableName, Path> {
    let routes = RouteLookup::open().await;
    let mut paths = BTreeMap::new();
    for (name, choice) in &choices.0 {
        let report = reports.get(name);
        let (remote, mark) = match &choice.cable {
            ChosenCable::WireGuard(cable) => {
                let remote = report.and_then(|report| report.remote).or(cable.candidates.first().copied());
                (remote.map(|remote| remote.ip()), Some(OUTER_MARK))
            }
            ChosenCable::Vxlan(cable) => (Some(IpAddr::V4(cable.remote)), None),
            ChosenCable::Refused(_) => (None, None),
        };
        let Some(remote) = remote else { continue };
        let mtu = match report.and_then(|report| report.path_mtu) {
            Some(mtu) => mtu,
            None => {
                let route = match &routes {
                    Ok(routes) => routes.route_to(remote, mark).await.ok().flatten(),
                    Err(_) => None,
                };
                route.map_or(link_mtu, |route| route.mtu)
            }
        };
        paths.insert(name.clone(), Path { mtu, family: IpFamily::of(remote) });
    }
    paths
}

/// Lets peers be sought where they were heard last too.
///
/// A NAT may have given a peer a port that no record names: a gateway that is started again would wait for the peer to
/// miss it.
pub(crate) fn add_remotes(set: &mut CableSet, remotes: &BTreeMap<CableName, SocketAddr>) {
    for (name, cable) in &mut set.cables {
        if let Some(remote) = remotes.get(name)
            && !cable.candidates.contains(remote)
        {
            cable.candidates.insert(0, *remote);
        }
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::{PublicKey, WireGuardCable};

    use super::*;

    #[test]
    fn where_a_peer_was_heard_last_is_tried_first_and_once() {
        let named: SocketAddr = "192.0.2.1:4500".parse().unwrap();
        let heard: SocketAddr = "192.0.2.1:1024".parse().unwrap();
        let cable = WireGuardCable { public_key: PublicKey([1; 32]), candidates: vec![named], subnets: Vec::new() };
        let mut set = CableSet { cables: BTreeMap::from([("west".to_owned(), cable)]), ..CableSet::default() };
        let remotes = BTreeMap::from([("west".to_owned(), heard), ("gone".to_owned(), heard)]);

        add_remotes(&mut set, &remotes);
        add_remotes(&mut set, &remotes);

        assert_eq!(set.cables["west"].candidates, [heard, named]);
    }
}
