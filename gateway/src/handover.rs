//! How a gateway that gives way hands over: it forwards until its successor is there and everybody has followed.
//!
//! Peers and other nodes follow the successor's Endpoint, and what they sent before is still taken for a while. Pods on this
//! node follow too, as soon as its route agent has a way to the successor: else their packets would leave by this
//! gateway and the answers come by the other, where connection tracking has not seen what they answer.

use std::time::Duration;

use culvert_kernel::{Kernel, KernelError};
use culvert_netstate::State;
use culvert_netstate::own::{CABLE_TABLE, NODE_TABLE, Owner, ROUTE_METRIC};
use culvert_netstate::{RouteKey, RouteTarget};
use culvert_runtime::Records;
use tokio::time::Instant;

use crate::config::Config;
use crate::records;

/// How long the successor's Endpoint is waited for.
const SUCCESSOR: Duration = Duration::from_secs(5);
/// How long this gateway goes on for what is under way.
const LINGER: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Returns when another gateway has taken over, or none has in time.
pub(crate) async fn to_successor(config: &Config, records: &Records, kernel: &mut Kernel) {
    let deadline = Instant::now() + SUCCESSOR;
    while !records::has_successor(config, records).await {
        if Instant::now() >= deadline {
            tracing::warn!("No other gateway has taken over in time");
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    tracing::info!("Another gateway has taken over");
    let end = Instant::now() + LINGER;
    match tokio::time::timeout_at(end, let_node_follow(kernel)).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::warn!(%error, "Pods on this node follow late"),
    }
    tokio::time::sleep_until(end).await;
}

/// Takes the cable routes away once the route agent's lead to the successor.
async fn let_node_follow(kernel: &mut Kernel) -> Result<(), KernelError> {
    let mut node = Kernel::open(Owner::route_agent()).await?;
    loop {
        let own = kernel.observe(&State::default()).await?;
        if let Some(without) = without_cable_routes(&own, &node.observe(&State::default()).await?) {
            kernel.apply(&culvert_netstate::diff(&own, &without)).await;
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns this gateway's state without its cable routes; `None` while the node has no other way to all their destinations.
fn without_cable_routes(own: &State, node: &State) -> Option<State> {
    let has_other_way = |route: &RouteKey| {
        let other = RouteKey { table: NODE_TABLE, metric: ROUTE_METRIC, ..route.clone() };
        matches!(node.routes.get(&other), Some(RouteTarget::Via(_)))
    };
    let mut cables = own.routes.keys().filter(|route| route.table == CABLE_TABLE);
    cables.all(has_other_way).then(|| {
        let mut without = own.clone();
        without.routes.retain(|route, _| route.table != CABLE_TABLE);
        without
    })
}

#[cfg(test)]
mod tests {
    use culvert_netstate::Route;

    use super::*;

    fn state(table: culvert_netstate::TableId, destinations: &[&str], target: &RouteTarget) -> State {
        let route = |text: &&str| {
            let destination = text.parse().expect("a subnet");
            (RouteKey { table, destination, metric: ROUTE_METRIC }, target.clone())
        };
        State { routes: destinations.iter().map(route).collect(), ..State::default() }
    }

    #[test]
    fn cable_routes_go_when_the_node_has_another_way_to_all_they_lead_to() {
        let via = RouteTarget::Via(Route { link: "l".to_owned(), next_hop: None, preferred_source: None, mtu: None });
        let own = state(CABLE_TABLE, &["10.2.0.0/16", "10.3.0.0/16"], &via);
        let node = |destinations: &[&str], target| state(NODE_TABLE, destinations, target);
        assert_eq!(without_cable_routes(&own, &node(&["10.2.0.0/16"], &via)), None);
        let refusing = node(&["10.2.0.0/16", "10.3.0.0/16"], &RouteTarget::Unreachable);
        assert_eq!(without_cable_routes(&own, &refusing), None);
        let without = without_cable_routes(&own, &node(&["10.2.0.0/16", "10.3.0.0/16"], &via));
        assert_eq!(without, Some(State::default()));
    }
}
