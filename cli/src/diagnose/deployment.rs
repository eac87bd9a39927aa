//! Decides whether everything runs that a member needs, from objects of the API server and from the daemons' records.
//!
//! What would explain all the rest is said alone: a cluster that has not joined has nothing else to look at.

use std::collections::BTreeSet;

use culvert_api::{Record, object_name};
use culvert_setup::manifests::{GATEWAY, GATEWAY_LABEL, GLOBALNET, ROUTE_AGENT, image_of};
use culvert_setup::{GatewayNodes, Rollout, Survey};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Cause, Check, ago, see_log};
use crate::deployed::{NetworksView, WITH_GLOBALNET};
use crate::snapshot::Snapshot;

/// A pod that was started again within this time is worth a warning.
const RECENT: SignedDuration = SignedDuration::from_hours(1);

/// Returns what is found of a deployment.
pub(super) fn checks(snapshot: &Snapshot, survey: &Survey, now: Timestamp) -> Vec<Check> {
    if let Some(cause) = not_a_member(survey) {
        return vec![Check::failed("Membership", cause)];
    }
    let mut checks = vec![objects(survey), gateway_nodes(survey)];
    let daemon_sets = [(GATEWAY, &survey.gateway), (ROUTE_AGENT, &survey.route_agent), (GLOBALNET, &survey.globalnet)];
    for (name, daemon_set) in daemon_sets {
        // That it is not there is said of the objects.
        checks.extend(daemon_set.as_ref().map(|daemon_set| rollout(survey, name, daemon_set)));
    }
    checks.extend(survey.route_agent.as_ref().and_then(|daemon_set| nodes_without_agent(survey, daemon_set)));
    checks.extend(survey.pods.iter().filter_map(|pod| restarted(pod, now)));
    checks.push(route_agents(snapshot, survey));
    checks.push(versions(snapshot, survey, now));
    checks.extend(networks(snapshot, survey));
    checks
}

/// Returns why this cluster is no member, or not one that could work.
fn not_a_member(survey: &Survey) -> Option<Cause> {
    let installation = &survey.installation;
    let leaves = "run `culvert uninstall` again, then `culvert join`";
    if installation.half_uninstalled {
        return Some(Cause::new("an uninstallation of this cluster was broken off", leaves));
    }
    if installation.submariner {
        let beside = "Submariner runs in this cluster, and its gateways take the same ports and records";
        return Some(Cause::new(beside, "run `subctl uninstall`, then `culvert join` again"));
    }
    match installation.cluster {
        None => Some(Cause::new("this cluster has not joined a clusterset", "run `culvert join`")),
        Some(_) => None,
    }
}

/// Returns why no gateway can run in this cluster; `None` if nothing of that is seen.
pub(super) fn gateway_cannot_run(survey: &Survey) -> Option<Cause> {
    if let Some(cause) = not_a_member(survey) {
        return Some(cause);
    }
    let Some(daemon_set) = &survey.gateway else {
        return Some(Cause::new(format!("DaemonSet {GATEWAY} is not there"), "run `culvert join` again"));
    };
    unlabelled(survey).or_else(|| {
        let obstacle = Rollout::of(daemon_set, &pods_of(survey, GATEWAY)).obstacles.into_iter().next();
        obstacle.map(|obstacle| pod_cause(obstacle, GATEWAY, daemon_set)).or_else(|| not_ready(survey))
    })
}

fn unlabelled(survey: &Survey) -> Option<Cause> {
    match GatewayNodes::of(&survey.nodes) {
        GatewayNodes::Labelled(_) => None,
        GatewayNodes::Candidates(nodes) => {
            let best = nodes.first().map_or("NODE", String::as_str);
            let label = format!("kubectl label node {best} {GATEWAY_LABEL}=true");
            Some(Cause::new(format!("no node has the label {GATEWAY_LABEL}=true"), label))
        }
    }
}

/// Returns the gateway nodes that Kubernetes calls not ready, unless there are others.
fn not_ready(survey: &Survey) -> Option<Cause> {
    let gateways = || survey.nodes.iter().filter(|node| node["metadata"]["labels"][GATEWAY_LABEL] == "true");
    let ready = |node: &Value| {
        let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
    };
    let names: Vec<&str> = gateways().filter(|node| !ready(node)).map(name_of).collect();
    (!names.is_empty() && names.len() == gateways().count()).then(|| {
        let way_out = format!("kubectl describe node {}", names.join(" "));
        Cause::new(format!("no gateway node is ready: {}", names.join(", ")), way_out)
    })
}

fn gateway_nodes(survey: &Survey) -> Check {
    match (unlabelled(survey).or_else(|| not_ready(survey)), GatewayNodes::of(&survey.nodes)) {
        (None, GatewayNodes::Labelled(nodes)) => Check::ok("Gateway nodes", nodes.join(", ")),
        (None, GatewayNodes::Candidates(_)) => Check::ok("Gateway nodes", ""),
        (Some(cause), _) => Check::failed("Gateway nodes", cause),
    }
}

fn objects(survey: &Survey) -> Check {
    match survey.missing.is_empty() {
        true => Check::ok("Objects", "accounts, roles, settings, secrets and definitions are there"),
        false => {
            let missing = format!("missing: {}", survey.missing.join(", "));
            Check::failed("Objects", Cause::new(missing, "run `culvert join` again"))
        }
    }
}

fn rollout(survey: &Survey, name: &str, daemon_set: &Value) -> Check {
    let subject = format!("DaemonSet {name}");
    let rollout = Rollout::of(daemon_set, &pods_of(survey, name));
    let state = format!("{} of {} pods are ready", rollout.ready, rollout.wanted);
    match (rollout.is_complete(), rollout.obstacles.first()) {
        (true, _) => Check::ok(subject, state),
        (false, Some(obstacle)) => {
            let Cause { message, way_out } = pod_cause(obstacle.clone(), name, daemon_set);
            Check::failed(subject, Cause::new(format!("{state}; {message}"), way_out))
        }
        (false, None) => Check::failed(subject, Cause::new(format!("{state}, and no pod says why"), see_log(name))),
    }
}

/// Returns what helps a pod that does not become ready.
fn pod_cause(obstacle: String, name: &str, daemon_set: &Value) -> Cause {
    let way_out = if ["ImagePull", "ErrImage", "InvalidImageName"].iter().any(|reason| obstacle.contains(reason)) {
        let image = image_of(daemon_set).unwrap_or_default();
        format!("see that the nodes can get image {image}, or name another with `culvert join --image`")
    } else if obstacle.contains("no node yet") {
        "make room on that node, or take away what keeps pods off it".to_owned()
    } else {
        see_log(name)
    };
    Cause::new(obstacle, way_out)
}

/// Returns the nodes of Linux on which there is no route agent though all should have one, and what keeps it off.
fn nodes_without_agent(survey: &Survey, daemon_set: &Value) -> Option<Check> {
    let pods = pods_of(survey, ROUTE_AGENT);
    let has_pod = |node: &&Value| pods.iter().any(|pod| pod["spec"]["nodeName"] == node["metadata"]["name"]);
    let linux = |node: &&Value| node["metadata"]["labels"]["kubernetes.io/os"] != "windows";
    let without: Vec<&Value> = survey.nodes.iter().filter(|node| linux(node) && !has_pod(node)).collect();
    let first = without.first()?;
    let names = without.iter().map(|node| name_of(node)).collect::<Vec<_>>().join(", ");
    let tolerations = daemon_set["spec"]["template"]["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    let mut taints = first["spec"]["taints"].as_array().into_iter().flatten();
    let taint = taints.find(|taint| taint["effect"] != "PreferNoSchedule" && !tolerates(&tolerations, taint));
    let cause = match taint {
        Some(taint) => Cause::new(
            format!("not on {names}: the taint {} keeps it off", taint["key"].as_str().unwrap_or_default()),
            "run `culvert join` again: its pods tolerate all taints",
        ),
        None => Cause::new(
            format!("not on {names}: these nodes' pods reach no other cluster"),
            "run `culvert join` again, which takes away what narrows the DaemonSet's choice of nodes",
        ),
    };
    Some(Check::failed("Route agents", cause))
}

/// Tells whether a taint is tolerated (Kubernetes' rule: an empty key with `Exists` tolerates all).
fn tolerates(tolerations: &[Value], taint: &Value) -> bool {
    tolerations.iter().any(|toleration| {
        let of = |field: &str| toleration[field].as_str().unwrap_or_default();
        let exists = of("operator") == "Exists";
        let effect = of("effect").is_empty() || toleration["effect"] == taint["effect"];
        let key = if of("key").is_empty() { exists } else { toleration["key"] == taint["key"] };
        let value = exists || of("value") == taint["value"].as_str().unwrap_or_default();
        effect && key && value
    })
}

/// Returns a warning of a pod that runs now and ended a short while ago.
fn restarted(pod: &Value, now: Timestamp) -> Option<Check> {
    let container = &pod["status"]["containerStatuses"][0];
    let last = &container["lastState"]["terminated"];
    let ended: Timestamp = last["finishedAt"].as_str()?.parse().ok()?;
    let runs = container["state"]["running"].is_object();
    (runs && now.duration_since(ended) < RECENT).then(|| {
        let count = container["restartCount"].as_u64().unwrap_or_default();
        let words = last["message"].as_str().or(last["reason"].as_str()).unwrap_or("no reason is known").trim();
        let message = format!("started again {count} times, the last {} ago: {words}", ago(ended, now));
        let name = name_of(pod);
        let way_out = format!("kubectl --namespace submariner-operator logs --previous {name}");
        Check::warning(format!("Pod {name}"), Cause::new(message, way_out))
    })
}

fn route_agents(snapshot: &Snapshot, survey: &Survey) -> Check {
    let pods = pods_of(survey, ROUTE_AGENT);
    let nodes: BTreeSet<String> =
        pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str().map(object_name)).collect();
    let agents = || snapshot.present_agents();
    let silent: Vec<&str> =
        nodes.iter().map(String::as_str).filter(|node| !agents().any(|agent| agent.name() == *node)).collect();
    if !silent.is_empty() {
        let cause = format!("the route agents of {} have not reported", silent.join(", "));
        return Check::failed("Nodes", Cause::new(cause, see_log(ROUTE_AGENT)));
    }
    let failing = |agent: &&culvert_api::RouteAgent| !agent.status.status_failure.is_empty();
    match agents().find(failing) {
        Some(agent) => {
            let others = agents().filter(failing).count() - 1;
            let others = if others > 0 { format!(" ({others} more nodes have troubles too)") } else { String::new() };
            let cause = format!("{}: {}{others}", agent.name(), agent.status.status_failure);
            Check::failed("Nodes", Cause::new(cause, see_log(ROUTE_AGENT)))
        }
        None => Check::ok("Nodes", format!("{} route agents report nothing wrong", nodes.len())),
    }
}

fn versions(snapshot: &Snapshot, survey: &Survey, now: Timestamp) -> Check {
    let daemon_sets = [&survey.gateway, &survey.route_agent, &survey.globalnet];
    let images: BTreeSet<&str> = daemon_sets.into_iter().flatten().filter_map(image_of).collect();
    let agents = snapshot.present_agents().map(|one| one.status.version.as_str());
    let running: BTreeSet<&str> =
        snapshot.gateway_versions(now).chain(agents).filter(|version| !version.is_empty()).collect();
    let list = |set: &BTreeSet<&str>| set.iter().copied().collect::<Vec<_>>().join(", ");
    let own = env!("CARGO_PKG_VERSION");
    let again = "run `culvert join` again with one --image";
    if images.len() > 1 {
        Check::warning("Versions", Cause::new(format!("the daemons have different images: {}", list(&images)), again))
    } else if running.len() > 1 {
        Check::warning("Versions", Cause::new(format!("different versions run: {}", list(&running)), again))
    } else if running.iter().any(|version| *version != own) {
        let cause = format!("{} runs, this command is {own}", list(&running));
        Check::warning("Versions", Cause::new(cause, "use the command of the version that runs, or join again with it"))
    } else {
        Check::ok("Versions", list(&running))
    }
}

fn networks(snapshot: &Snapshot, survey: &Survey) -> Vec<Check> {
    let view = NetworksView::of(snapshot);
    let plugin = survey.networks.plugin.as_str();
    let mut checks: Vec<Check> = view
        .problems()
        .map(|(network, problem)| {
            let (message, way_out) = problem.split_once(": ").unwrap_or((problem, "wait for the gateway"));
            Check::warning(format!("Network of {network}"), Cause::new(message, way_out))
        })
        .collect();
    if plugin.eq_ignore_ascii_case("OVNKubernetes") {
        let cause = "OVN-Kubernetes is not supported yet: packets may not find the way from nodes to the gateway";
        checks.push(Check::warning("Network plugin", Cause::new(cause, "use another network plugin")));
    } else if checks.is_empty() {
        let found = &survey.networks;
        let unknown = match (&found.pods, &found.services) {
            (Some(_), Some(_)) => None,
            (None, Some(_)) => Some("pods"),
            (Some(_), None) => Some("services"),
            (None, None) => Some("pods and services"),
        };
        let message = unknown.map_or_else(
            || "what is announced is what is there".to_owned(),
            |networks| {
                format!("the cluster does not show the CIDRs of its {networks}: what `join` was told is announced")
            },
        );
        let globalnet = if view.with_globalnet() { format!("; {WITH_GLOBALNET}") } else { String::new() };
        checks.push(Check::ok("Networks", format!("network plugin {plugin}; {message}{globalnet}")));
    }
    checks
}

fn pods_of(survey: &Survey, daemon_set: &str) -> Vec<Value> {
    survey.pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == daemon_set).cloned().collect()
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
