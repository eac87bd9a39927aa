//! Each cause of a broken membership, made in a snapshot of one that is well, is the one that is named.

mod outlived;

use std::collections::BTreeMap;

use culvert_api::{
    Cluster, ClusterSpec, Connection, ConnectionStatus, Endpoint, EndpointSpec, Gateway, GatewayStatus, HaStatus,
    RemoteEndpoint, RouteAgent, RouteAgentStatus, labels,
};
use culvert_setup::{BrokerSeen, BrokerState, Discovered, Found, Installation, Survey};
use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_700_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn endpoint(cluster: &str, number: u8) -> Endpoint {
    let spec = EndpointSpec {
        cluster_id: cluster.to_owned(),
        cable_name: format!("cable-{cluster}"),
        hostname: format!("{cluster}-gw"),
        subnets: vec![format!("10.{number}.0.0/16")],
        private_ip: format!("192.168.{number}.1"),
        public_ip: format!("203.0.113.{number}"),
        backend: "wireguard".to_owned(),
        backend_config: BTreeMap::from([("udp-port".to_owned(), "4500".to_owned())]),
        ..EndpointSpec::default()
    };
    let mut endpoint = Endpoint::new(cluster, spec);
    if cluster != "east" {
        endpoint.metadata.labels = Some(BTreeMap::from([(labels::CLUSTER_ID.to_owned(), cluster.to_owned())]));
    }
    endpoint
}

fn cluster(id: &str, number: u8) -> Cluster {
    let spec = ClusterSpec {
        cluster_id: id.to_owned(),
        cluster_cidr: vec![format!("10.{number}.0.0/16")],
        service_cidr: vec![format!("100.{number}.0.0/16")],
        ..ClusterSpec::default()
    };
    Cluster::new(id, spec)
}

fn pod(app: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": format!("{app}-{node}"), "labels": {"app": app}},
        "spec": {"nodeName": node},
        "status": {"containerStatuses": [{"ready": true, "state": {"running": {}}}]},
    })
}

fn daemon_set(count: u64) -> Value {
    json!({
        "metadata": {"generation": 1},
        "spec": {"template": {"spec": {
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"image": "culvert.io/culvert:0.1.0"}],
        }}},
        "status": {
            "observedGeneration": 1,
            "desiredNumberScheduled": count,
            "updatedNumberScheduled": count,
            "numberReady": count,
            "numberAvailable": count,
        },
    })
}

fn node(name: &str, labels: Value) -> Value {
    let conditions = json!([{"type": "Ready", "status": "True"}]);
    json!({"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"conditions": conditions}})
}

fn survey() -> Survey {
    let found = |place, cidr: &str| Some(Found { place, cidrs: vec![cidr.to_owned()] });
    Survey {
        url: "https://east:6443".to_owned(),
        installation: Installation { cluster: Some("east".to_owned()), ..Installation::default() },
        nodes: vec![node("east-gw", json!({"submariner.io/gateway": "true"})), node("worker", json!({}))],
        gateway: Some(daemon_set(1)),
        route_agent: Some(daemon_set(2)),
        globalnet: Some(daemon_set(1)),
        pods: vec![
            pod("culvert-gateway", "east-gw"),
            pod("culvert-route-agent", "east-gw"),
            pod("culvert-route-agent", "worker"),
            pod("culvert-globalnet", "east-gw"),
        ],
        networks: Discovered {
            plugin: "kindnet".to_owned(),
            pods: found("kindnet's pod", "10.1.0.0/16"),
            services: found("kube-apiserver", "100.1.0.0/16"),
        },
        ..Survey::default()
    }
}

fn agent(node: &str) -> RouteAgent {
    let way = RemoteEndpoint {
        status: ConnectionStatus::Connected,
        spec: endpoint("west", 2).spec,
        ..RemoteEndpoint::default()
    };
    let version = "0.1.0".to_owned();
    RouteAgent::new(node, RouteAgentStatus { version, remote_endpoints: vec![way], ..RouteAgentStatus::default() })
}

/// East, joined to west and well.
fn well() -> Snapshot {
    let connection = Connection {
        status: ConnectionStatus::Connected,
        endpoint: endpoint("west", 2).spec,
        using_ip: "192.168.2.1".to_owned(),
        ..Connection::default()
    };
    let status = GatewayStatus {
        version: "culvert-0.1.0".to_owned(),
        ha_status: HaStatus::Active,
        local_endpoint: endpoint("east", 1).spec,
        status_failure: String::new(),
        connections: vec![connection],
    };
    let mut gateway = Gateway::new("east-gw", status);
    let written = (labels::UPDATE_TIMESTAMP.to_owned(), (NOW - 5).to_string());
    gateway.metadata.annotations = Some([written].into());
    let endpoints = vec![endpoint("east", 1), endpoint("west", 2)];
    let clusters = vec![cluster("east", 1), cluster("west", 2)];
    Snapshot {
        gateways: vec![gateway],
        endpoints: endpoints.clone(),
        clusters: clusters.clone(),
        route_agents: vec![agent("east-gw"), agent("worker")],
        survey: Some(survey()),
        broker: Some(BrokerSeen {
            url: "https://broker:6443".to_owned(),
            namespace: "ns".to_owned(),
            expires: None,
            state: BrokerState::Seen { clusters, endpoints },
        }),
        ..Snapshot::default()
    }
}

fn report(snapshot: &Snapshot, asked: Diagnosis) -> Report {
    Report::of(snapshot, vec![], asked, now()).unwrap()
}

fn survey_of(snapshot: &mut Snapshot) -> &mut Survey {
    snapshot.survey.as_mut().unwrap()
}

fn status_of(snapshot: &mut Snapshot) -> &mut GatewayStatus {
    &mut snapshot.gateways[0].status
}

/// Sets what the gateway says of its cable to west.
fn cable(snapshot: &mut Snapshot, status: ConnectionStatus, message: &str) {
    let connection = &mut status_of(snapshot).connections[0];
    (connection.status, connection.status_message) = (status, message.to_owned());
}

fn waiting(reason: &str, message: &str) -> Value {
    json!([{"ready": false, "state": {"waiting": {"reason": reason, "message": message}}}])
}

fn broker_of(snapshot: &mut Snapshot) -> (&mut Vec<Cluster>, &mut Vec<Endpoint>) {
    match &mut snapshot.broker.as_mut().unwrap().state {
        BrokerState::Seen { clusters, endpoints } => (clusters, endpoints),
        other @ (BrokerState::Refused(_) | BrokerState::Unreachable(_) | BrokerState::NoCredentials) => {
            panic!("{other:?}")
        }
    }
}

fn without_cable(snapshot: &mut Snapshot) {
    status_of(snapshot).connections.clear();
}

type Break = fn(&mut Snapshot);

/// Asserts that a break is what is found, by texts that one failed check has, and nothing of it in a healthy snapshot.
fn assert_found(asked: Diagnosis, name: &str, damage: Break, texts: &[&str]) {
    let mut snapshot = well();
    damage(&mut snapshot);
    let report = report(&snapshot, asked);
    assert!(!report.healthy, "{name}: {report:?}");
    let lines: Vec<String> = report.checks.iter().map(|check| check.line(false)).collect();
    let found = lines.iter().any(|line| line.starts_with("failed") && texts.iter().all(|text| line.contains(text)));
    assert!(found, "{name}: {texts:?} in\n{}", lines.concat());
}

#[test]
fn all_is_well_in_words() {
    let text = report(&well(), Diagnosis::All).lines(false);
    insta::assert_snapshot!(text);
}

#[test]
fn every_cause_of_a_missing_connection_is_named_with_the_way_out() {
    let cases: &[(&str, Break, &[&str])] = &[
        (
            "no label",
            |s| {
                survey_of(s).nodes = vec![node("n1", json!({}))];
                survey_of(s).pods.remove(0);
            },
            &["Gateway: no node has the label", "kubectl label node n1 submariner.io/gateway=true"],
        ),
        (
            "image",
            |s| survey_of(s).pods[0]["status"]["containerStatuses"] = waiting("ErrImagePull", "not found"),
            &["ErrImagePull: not found", "culvert join --image"],
        ),
        (
            "crash",
            |s| {
                let mut status = waiting("CrashLoopBackOff", "back-off");
                status[0]["lastState"] = json!({"terminated": {"exitCode": 1, "message": "no token"}});
                survey_of(s).pods[0]["status"]["containerStatuses"] = status;
            },
            &["Gateway: pod culvert-gateway-east-gw on east-gw: no token", "logs daemonset/culvert-gateway"],
        ),
        ("no DaemonSet", |s| (survey_of(s).gateway, survey_of(s).pods) = (None, vec![]), &["run `culvert join` again"]),
        (
            "not joined",
            |s| {
                survey_of(s).installation.cluster = None;
                s.gateways.clear();
            },
            &["has not joined"],
        ),
        ("no report", |s| s.gateways.clear(), &["no gateway of this cluster has reported"]),
        (
            "standby only",
            |s| status_of(s).ha_status = HaStatus::Passive,
            &["no gateway is active; standing by: east-gw"],
        ),
        (
            "stale",
            |s| {
                let stamp = (labels::UPDATE_TIMESTAMP.to_owned(), (NOW - 600).to_string());
                s.gateways[0].metadata.annotations = Some(BTreeMap::from([stamp]));
            },
            &["its status is 10 minutes old, do not trust it"],
        ),
        (
            "failure",
            |s| status_of(s).status_failure = "kernel: no TUN".to_owned(),
            &["Gateway east-gw: kernel: no TUN"],
        ),
        (
            "token refused",
            |s| s.broker.as_mut().unwrap().state = BrokerState::Refused("Unauthorized".to_owned()),
            &["it refuses this cluster: Unauthorized", "run `culvert join` again"],
        ),
        (
            "token expired",
            |s| {
                let broker = s.broker.as_mut().unwrap();
                broker.expires = Some(Timestamp::from_second(NOW - 3 * 86400).unwrap());
                broker.state = BrokerState::Refused("Unauthorized".to_owned());
            },
            &["token has expired 3 days ago"],
        ),
        ("no token", |s| s.broker.as_mut().unwrap().state = BrokerState::NoCredentials, &["has no token for it"]),
        ("not announced", |s| drop(broker_of(s).1.remove(0)), &["this cluster's Endpoint is not there"]),
        (
            "announced as it was",
            |s| broker_of(s).1[0].spec.cable_name = "cable-former".to_owned(),
            &["it has an older Endpoint of this cluster"],
        ),
        (
            "no handshake",
            |s| cable(s, ConnectionStatus::Error, "no handshake yet: check"),
            &[
                "Cluster west: no packet",
                "UDP must reach 192.168.2.1:4500 or 203.0.113.2:4500 from here, or 192.168.1.1:4500",
            ],
        ),
        (
            "gone silent",
            |s| cable(s, ConnectionStatus::Error, "nothing has come for more than 30 s: check"),
            &["Cluster west: no packet of its gateway comes any more"],
        ),
        (
            "no echo",
            |s| {
                cable(
                    s,
                    ConnectionStatus::Error,
                    "10.2.0.1 does not answer to echo requests through the cable (4 lost)",
                )
            },
            &["Cluster west: the cable stands, but 10.2.0.1 does not answer", "ICMP"],
        ),
        (
            "libreswan",
            |s| cable(s, ConnectionStatus::Error, "cluster west uses cable driver \"libreswan\": redeploy it"),
            &["uses cable driver \"libreswan\": redeploy it"],
        ),
        (
            "a subnet of many",
            |s| {
                cable(s, ConnectionStatus::Connected, "subnet 10.1.0.0/16 overlaps 10.1.0.0/16 of this cluster: change")
            },
            &["connected, but not for all subnets: subnet 10.1.0.0/16"],
        ),
        ("connecting", |s| cable(s, ConnectionStatus::Connecting, "waiting"), &["connecting, waiting: ask again"]),
        ("no status", |s| cable(s, ConnectionStatus::None, ""), &["the gateway gives no reason"]),
        (
            "overlap",
            |s| {
                without_cable(s);
                s.clusters[1].spec.cluster_cidr = vec!["10.1.4.0/24".to_owned()];
            },
            &["Cluster west: 10.1.0.0/16 of cluster east overlaps 10.1.4.0/24 of cluster west: give one"],
        ),
        (
            "refused record",
            |s| {
                without_cable(s);
                status_of(s).status_failure = "not synced: Endpoint west: its cable name is taken".to_owned();
            },
            &["Cluster west: not synced: Endpoint west"],
        ),
        ("not used", without_cable, &["Cluster west: the gateway does not use its Endpoint"]),
        (
            "not come",
            |s| {
                without_cable(s);
                s.endpoints.truncate(1);
            },
            &["Cluster west: its Endpoint is at the broker, but has not come here"],
        ),
        (
            "no gateway there",
            |s| {
                without_cable(s);
                s.endpoints.truncate(1);
                broker_of(s).1.truncate(1);
            },
            &["Cluster west: it has announced no gateway", "in cluster west"],
        ),
        (
            "a node is cut off",
            |s| {
                let way = &mut s.route_agents[1].status.remote_endpoints[0];
                way.status = ConnectionStatus::Error;
                way.status_message = "10.2.0.1 does not answer echo requests".to_owned();
            },
            &["Cluster west: connected, but not from worker: 10.2.0.1", "UDP 4800"],
        ),
    ];
    for (name, damage, texts) in cases {
        assert_found(Diagnosis::Connections, name, *damage, texts);
    }
}

#[test]
fn every_cause_of_a_broken_deployment_is_named_with_the_way_out() {
    let cases: &[(&str, Break, &[&str])] = &[
        ("not joined", |s| survey_of(s).installation.cluster = None, &["Membership: this cluster has not joined"]),
        ("half", |s| survey_of(s).installation.half_uninstalled = true, &["was broken off", "culvert uninstall"]),
        ("beside", |s| survey_of(s).installation.submariner = true, &["Submariner runs", "subctl uninstall"]),
        (
            "missing",
            |s| survey_of(s).missing = vec!["Secret x/y".to_owned(), "CustomResourceDefinition z".to_owned()],
            &["missing: Secret x/y, CustomResourceDefinition z", "run `culvert join` again"],
        ),
        ("no label", |s| survey_of(s).nodes[0] = node("east-gw", json!({})), &["Gateway nodes: no node has the label"]),
        (
            "not ready",
            |s| survey_of(s).nodes[0]["status"] = json!({}),
            &["Gateway nodes: no gateway node is ready: east-gw", "describe node"],
        ),
        (
            "incomplete",
            |s| {
                survey_of(s).route_agent.as_mut().unwrap()["status"]["numberReady"] = json!(1);
                survey_of(s).route_agent.as_mut().unwrap()["status"]["numberAvailable"] = json!(1);
                survey_of(s).pods[2]["status"]["containerStatuses"] = waiting("ImagePullBackOff", "gone");
            },
            &["DaemonSet culvert-route-agent: 1 of 2 pods are ready; pod culvert-route-agent-worker", "join --image"],
        ),
        (
            "no globalnet",
            |s| survey_of(s).globalnet.as_mut().unwrap()["status"]["numberReady"] = json!(0),
            &["DaemonSet culvert-globalnet: 0 of 1 pods are ready, and no pod says why"],
        ),
        (
            "taint",
            |s| {
                survey_of(s).route_agent.as_mut().unwrap()["spec"]["template"]["spec"]["tolerations"] = json!([]);
                survey_of(s).nodes[1]["spec"] = json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]});
                survey_of(s).pods.truncate(2);
            },
            &["Route agents: not on worker: the taint gpu keeps it off"],
        ),
        ("narrowed", |s| survey_of(s).pods.truncate(2), &["Route agents: not on worker: these nodes' pods"]),
        ("silent agent", |s| s.route_agents.truncate(1), &["Nodes: the route agents of worker have not reported"]),
        (
            "failing agent",
            |s| s.route_agents[1].status.status_failure = "no link holds 192.0.2.1".to_owned(),
            &["Nodes: worker: no link holds 192.0.2.1"],
        ),
    ];
    for (name, damage, texts) in cases {
        assert_found(Diagnosis::Deployment, name, *damage, texts);
    }
}

#[test]
fn what_may_be_meant_is_a_warning_and_no_failure() {
    let cases: &[(Break, &[&str])] = &[
        (|s| survey_of(s).networks.plugin = "OVNKubernetes".to_owned(), &["OVN-Kubernetes is not supported yet"]),
        (
            |s| {
                survey_of(s).networks.pods = Some(Found { place: "weave's pod", cidrs: vec!["10.9.0.0/16".to_owned()] })
            },
            &["Network of pods: announced is 10.1.0.0/16, but weave's pod says 10.9.0.0/16"],
        ),
        (|s| s.route_agents[1].status.version = "0.0.9".to_owned(), &["different versions run: 0.0.9, 0.1.0"]),
        (
            |s| s.broker.as_mut().unwrap().state = BrokerState::Unreachable("no route".to_owned()),
            &["not seen from here: no route", "the gateway says nothing against it"],
        ),
        (
            |s| {
                let ended = Timestamp::from_second(NOW - 300).unwrap().to_string();
                let status = &mut survey_of(s).pods[0]["status"]["containerStatuses"][0];
                status["restartCount"] = json!(3);
                status["lastState"] =
                    json!({"terminated": {"exitCode": 1, "message": "port taken", "finishedAt": ended}});
            },
            &["started again 3 times, the last 5 minutes ago: port taken"],
        ),
        (
            |s| cable(s, ConnectionStatus::Connected, "waiting for the first answer to an echo request"),
            &["connected, but waiting for the first answer"],
        ),
    ];
    for (damage, texts) in cases {
        let mut snapshot = well();
        damage(&mut snapshot);
        let report = report(&snapshot, Diagnosis::All);
        assert!(report.healthy, "{texts:?}: {report:?}");
        let text = report.lines(false);
        let warned = text.lines().any(|line| line.starts_with("warning") && texts.iter().all(|one| line.contains(one)));
        assert!(warned, "{texts:?} in\n{text}");
    }
}

#[test]
fn a_directory_has_connections_and_no_deployment() {
    let snapshot = Snapshot { survey: None, broker: None, ..well() };
    assert!(report(&snapshot, Diagnosis::All).healthy);
    let error = Report::of(&snapshot, vec![], Diagnosis::Deployment, now()).unwrap_err().to_string();
    assert!(error.contains("diagnose connections"), "{error}");
}

#[test]
fn a_killed_gateways_record_is_not_taken_for_a_gateway() {
    let mut snapshot = well();
    survey_of(&mut snapshot).pods.remove(0);
    let report = report(&snapshot, Diagnosis::Connections);
    assert!(!report.healthy, "{report:?}");
    assert!(report.checks.iter().any(|check| check.message == "not connected, since this cluster has no gateway"));
}

#[test]
fn a_cluster_that_left_and_a_set_of_one_are_no_troubles() {
    let mut snapshot = well();
    without_cable(&mut snapshot);
    snapshot.endpoints.truncate(1);
    snapshot.clusters[1].metadata.annotations = Some(BTreeMap::from([(labels::DEPARTED.to_owned(), String::new())]));
    broker_of(&mut snapshot).0.truncate(1);
    broker_of(&mut snapshot).1.truncate(1);
    let report = report(&snapshot, Diagnosis::Connections);
    assert!(report.healthy, "{report:?}");
    assert_eq!(report.checks.last().unwrap().subject, "Other clusters");
}

#[test]
fn a_record_that_cannot_be_read_is_a_failure_and_no_terminal_is_steered() {
    let report = Report::of(&well(), vec!["Endpoint \x1b[2J".to_owned()], Diagnosis::Connections, now()).unwrap();
    assert!(!report.healthy);
    let text = report.lines(true);
    assert!(text.contains("✗") && text.contains("✓") && !text.contains("\x1b[2J"), "{text}");
    let json: Value = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["healthy"], &json["checks"][0]["verdict"]), (&json!(false), &json!("failed")));
    assert_eq!(json["checks"][0]["wayOut"], "correct or delete that record");
}
