//! Records that outlived what wrote them, messages that outlast others, and what nobody knows mislead no diagnosis.

use super::*;
use crate::deployed;

/// A cluster that is well, with the record of a route agent whose node was cut off, then deleted.
fn with_a_node_gone() -> Snapshot {
    let (mut snapshot, mut gone) = (well(), agent("gone"));
    gone.status.version = "0.0.9".to_owned();
    gone.status.remote_endpoints[0].status = ConnectionStatus::Error;
    snapshot.route_agents.push(gone);
    snapshot
}

#[test]
fn a_node_that_is_gone_is_no_trouble() {
    assert_eq!(report(&with_a_node_gone(), Diagnosis::All), report(&well(), Diagnosis::All));
}

#[test]
fn the_version_of_a_node_that_is_gone_does_not_run() {
    assert_eq!(deployed::versions(&with_a_node_gone(), now()), deployed::versions(&well(), now()));
}

#[test]
fn without_an_api_server_every_record_counts() {
    let snapshot = Snapshot { survey: None, ..with_a_node_gone() };
    let report = report(&snapshot, Diagnosis::Connections);
    assert!(!report.healthy && report.lines(false).contains("not from gone"), "{report:?}");
}

#[test]
fn a_subnet_that_is_not_carried_is_no_matter_of_waiting() {
    let damage: Break = |s| {
        let message = "waiting for the first answer to an echo request; subnet 10.1.0.0/16 overlaps: change it";
        cable(s, ConnectionStatus::Connected, message);
    };
    let texts = ["connected, but not for all subnets: subnet 10.1.0.0/16"];
    assert_found(Diagnosis::Connections, "a wait and a subnet", damage, &texts);
}

#[test]
fn several_nodes_are_described_by_one_command() {
    let damage: Break = |s| {
        let labelled = |name| json!({"metadata": {"name": name, "labels": {"submariner.io/gateway": "true"}}});
        survey_of(s).nodes = vec![labelled("east-gw"), labelled("worker")];
    };
    let texts = ["no gateway node is ready: east-gw, worker", "kubectl describe node east-gw worker"];
    assert_found(Diagnosis::Deployment, "two nodes", damage, &texts);
}

#[test]
fn networks_that_nobody_shows_are_not_called_right() {
    let mut snapshot = well();
    survey_of(&mut snapshot).networks.pods = None;
    let lines = report(&snapshot, Diagnosis::All).lines(false);
    assert!(lines.contains("the cluster does not show the CIDRs of its pods"), "{lines}");
}
