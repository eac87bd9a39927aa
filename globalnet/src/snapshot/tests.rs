//! Objects as users and Submariner write them, well and badly, and what becomes of them on both ways.

use std::collections::BTreeSet;

use culvert_api::{Time, Timestamp};
use culvert_globalnet_core::{CLUSTER_EGRESS, CLUSTER_EGRESS_NUMBER, IngressSpec, Memory, Target, allocate};
use serde_json::{Value, json};

use super::*;

fn read<R: Record>(mut value: Value) -> R {
    value["apiVersion"] = json!(R::API_VERSION);
    value["kind"] = json!(R::KIND);
    serde_json::from_value(value).unwrap()
}

fn named(name: &str) -> ObjectKey {
    ObjectKey { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn service(name: &str, spec: &Value) -> Service {
    read(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec}))
}

#[test]
fn services_are_read_by_what_globalnet_asks_for() {
    let mut snapshot = Snapshot::default();
    snapshot.put_service(&service(
        "web",
        &json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:96::7"],
            "selector": {"app": "web"}, "sessionAffinity": "ClientIP", "publishNotReadyAddresses": true,
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "s", "port": 9, "protocol": "SCTP"},
            ],
        }),
    ));
    snapshot.put_service(&service("db", &json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {}})));
    snapshot.put_service(&service("out", &json!({"type": "ExternalName", "externalName": "example.com"})));
    let web = &snapshot.inputs.services[&named("web")];
    assert_eq!(web.cluster_ips, BTreeSet::from([address("10.96.0.7"), address("fd00:96::7")]));
    assert_eq!((web.affinity, web.has_selector, web.publishes_not_ready), (Some(10_800), true, true));
    let protocols: Vec<_> = web.ports.iter().map(|port| (port.number, port.protocol)).collect();
    assert_eq!(protocols, [(80, Protocol::Tcp), (53, Protocol::Udp), (9, Protocol::Sctp)]);
    let db = &snapshot.inputs.services[&named("db")];
    assert!(db.is_headless && !db.has_selector && db.cluster_ips.is_empty());
    assert!(snapshot.inputs.services[&named("out")].is_external_name);
    assert_eq!(snapshot.problems(), BTreeSet::new());
}

#[test]
fn slices_of_a_service_come_together_and_readiness_that_is_not_told_is_readiness() {
    let mut snapshot = Snapshot::default();
    let slice = |name: &str, kind: &str, service: Value, endpoints: Value| -> EndpointSlice {
        read(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
            "addressType": kind, "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "any"}],
        }))
    };
    let pod = |name: &str, namespace: &str| json!({"kind": "Pod", "name": name, "namespace": namespace});
    snapshot.put_slice(&slice(
        "db-1",
        "IPv4",
        json!("db"),
        json!([
            {"addresses": ["10.1.0.5", "10.1.0.99"], "targetRef": pod("db-0", "shop"), "hostname": "db-0"},
            {"addresses": ["10.1.0.6"], "conditions": {"ready": false}, "targetRef": pod("db-1", "elsewhere")},
        ]),
    ));
    snapshot.put_slice(&slice("db-2", "IPv6", json!("db"), json!([{"addresses": ["fd00::5"]}])));
    snapshot.put_slice(&slice("db-3", "FQDN", json!("db"), json!([{"addresses": ["example.com"]}])));
    snapshot.put_slice(&slice("other", "IPv4", json!(""), json!([{"addresses": ["10.1.0.7"]}])));
    assert_eq!(snapshot.inputs.endpoints.len(), 1);
    let db = &snapshot.inputs.endpoints[&named("db")];
    assert_eq!((db.len(), db[0].ports.len(), db[0].ports[0].number), (2, 1, 8080));
    let endpoints: Vec<_> = db[0].endpoints.iter().map(|one| (one.address, one.is_ready, one.pod.as_deref())).collect();
    assert_eq!(endpoints, [(address("10.1.0.5"), true, Some("db-0")), (address("10.1.0.6"), false, None)]);
    assert_eq!(snapshot.problems(), BTreeSet::new());
}

#[test]
fn what_is_not_understood_is_named_and_hides_nothing() {
    let mut snapshot = Snapshot::default();
    snapshot.put_service(&service(
        "odd",
        &json!({
            "clusterIPs": ["10.96.0.7", "ten"],
            "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 0}, {"name": "c", "port": 8, "protocol": "QUIC"}],
        }),
    ));
    let odd = &snapshot.inputs.services[&named("odd")];
    assert_eq!((odd.cluster_ips.len(), odd.ports.len()), (1, 1));
    let problems: Vec<String> = snapshot.problems().into_iter().collect();
    assert_eq!(
        problems,
        [
            "Service shop/odd: port \"b\": 0 is no port: use 1 to 65535",
            "Service shop/odd: port \"c\": protocol \"QUIC\" is not known: use TCP, UDP or SCTP",
            "Service shop/odd: spec.clusterIPs: \"ten\" is no IP address: correct it",
        ]
    );
}

#[test]
fn pods_of_the_past_and_of_the_host_are_told_apart() {
    let mut snapshot = Snapshot::default();
    for (name, phase, host) in [("a", "Running", false), ("b", "Failed", true), ("c", "Pending", false)] {
        snapshot.put_pod(&read(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"hostNetwork": host},
            "status": {"phase": phase, "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}]},
        })));
    }
    let told = |name: &str| {
        let pod = &snapshot.inputs.pods[&named(name)];
        assert_eq!(pod.addresses.len(), 2);
        (pod.is_running, pod.is_finished, pod.is_on_host_network)
    };
    assert_eq!(told("a"), (true, false, false));
    assert_eq!(told("b"), (false, true, true));
    assert_eq!(told("c"), (false, false, false));
}

#[test]
fn exports_that_are_being_deleted_are_none() {
    let mut snapshot = Snapshot::default();
    let export = |name: &str| json!({"metadata": {"name": name, "namespace": "shop"}});
    snapshot.put_export(&read(export("a")));
    let mut going = export("b");
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    snapshot.put_export(&read(going));
    assert_eq!(snapshot.inputs.exports, BTreeSet::from([named("a")]));
}

#[test]
fn selectors_and_numbers_are_read_and_wrong_ones_kept_for_the_status() {
    let mut snapshot = Snapshot::default();
    for (name, selector) in [
        ("all", json!(null)),
        ("every", json!({})),
        ("some", json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]})),
        ("odd", json!({"matchExpressions": [{"key": "x", "operator": "Like", "values": ["y"]}]})),
    ] {
        snapshot.put_egress(&read(json!({
            "metadata": {"name": name, "namespace": "shop", "creationTimestamp": "1970-01-01T00:00:09Z"},
            "spec": {"numberOfIPs": 3, "podSelector": selector},
            "status": {"allocatedIPs": ["242.1.0.1", "odd"]},
        })));
    }
    let object = |name: &str| &snapshot.inputs.egress[&named(name)];
    assert_eq!((object("all").created, object("all").number), (Some(9), Some(3)));
    assert_eq!(object("all").status.addresses, ["242.1.0.1", "odd"]);
    assert_eq!(object("all").selector, None);
    let labels = |labels: &[(&str, &str)]| labels.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    assert!(object("every").selector.clone().unwrap().unwrap().matches(&labels(&[])));
    let some = object("some").selector.clone().unwrap().unwrap();
    assert!(some.matches(&labels(&[("app", "web"), ("x", "")])) && !some.matches(&labels(&[("app", "web")])));
    assert!(object("odd").selector.clone().unwrap().is_err());
}

#[test]
fn what_is_written_of_an_ingress_object_is_read_as_the_same() {
    let specs = [
        IngressSpec { target: Target::Service, service: "web".to_owned(), pod: None, address: None },
        IngressSpec {
            target: Target::Pod,
            service: "db".to_owned(),
            pod: Some("db-0".to_owned()),
            address: Some(address("10.1.0.5")),
        },
        IngressSpec {
            target: Target::Endpoint,
            service: "legacy".to_owned(),
            pod: None,
            address: Some(address("172.16.0.9")),
        },
    ];
    for spec in specs {
        let object = ingress_object(&named("any"), &spec);
        assert_eq!(global::ingress_object(&object).spec, Ok(spec.clone()));
        let mut bare = object.clone();
        bare.metadata.labels = None;
        assert_eq!(global::ingress_object(&bare).spec == Ok(spec.clone()), spec.target == Target::Service);
    }
    let pod = IngressSpec {
        target: Target::Pod,
        service: "db".to_owned(),
        pod: Some("db-0".to_owned()),
        address: Some(address("10.1.0.5")),
    };
    assert_eq!(
        serde_json::to_value(ingress_object(&named("pod-db-0"), &pod)).unwrap(),
        json!({
            "apiVersion": "submariner.io/v1", "kind": "GlobalIngressIP",
            "metadata": {
                "name": "pod-db-0", "namespace": "shop", "labels": {"submariner.io/serviceRef": "db"},
                "annotations": {"submariner.io/headless-svc-pod-ip": "10.1.0.5"},
            },
            "spec": {"target": "HeadlessServicePod", "serviceRef": {"name": "db"}, "podRef": {"name": "db-0"}},
        })
    );
}

#[test]
fn an_ingress_object_that_is_not_understood_says_why() {
    for (spec, text) in [
        (json!({"target": "Moon"}), "spec.target: \"Moon\" is not known: export a Service instead"),
        (json!({"target": "ClusterIPService"}), "spec.serviceRef.name is missing for target ClusterIPService: export"),
        (json!({"target": "HeadlessServicePod", "serviceRef": {"name": "db"}}), "spec.podRef.name is missing for"),
    ] {
        let mut snapshot = Snapshot::default();
        snapshot.put_ingress(&read(json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": spec})));
        let error = snapshot.inputs.ingress[&named("a")].spec.clone().unwrap_err();
        assert!(error.starts_with(text), "{error}");
    }
}

#[test]
fn unclear_objects_are_holders_if_they_can_hold() {
    let mut snapshot = Snapshot::default();
    for kind in ["GlobalEgressIP", "ClusterGlobalEgressIP", "GlobalIngressIP", "Gateway", "Pod"] {
        snapshot.put_unclear(kind, std::iter::once((named("a"), format!("{kind} a cannot be read"))));
    }
    assert_eq!((snapshot.inputs.unclear.len(), snapshot.problems().len()), (4, 5));
}

#[test]
fn a_condition_keeps_its_time_while_its_status_stays_and_others_keep_all() {
    let found: GlobalEgressIPStatus = serde_json::from_value(json!({
        "conditions": [
            {"type": "Allocated", "status": "True", "reason": "Success", "message": "1",
             "lastTransitionTime": "1970-01-01T00:00:05Z"},
            {"type": "Theirs", "status": "Unknown", "reason": "R", "message": "", "observedGeneration": 4,
             "lastTransitionTime": "1970-01-01T00:00:06Z"},
        ],
        "allocatedIPs": ["242.1.0.1"],
    }))
    .unwrap();
    let mut conditions = global::found_status(&found.allocated_ips, &found.conditions).conditions;
    conditions[0].message = "2".to_owned();
    let status = culvert_globalnet_core::Status { addresses: vec![address("242.1.0.1")], conditions };
    let written = egress_status(&status, &found, &at(9));
    assert_eq!(written.conditions[0].last_transition_time, Some(at(5)));
    assert_eq!(written.conditions[0].message, "2");
    assert_eq!(written.conditions[1], found.conditions[1]);
    let mut status = status;
    status.conditions[0].status = "False".to_owned();
    status.addresses.clear();
    let written = egress_status(&status, &found, &at(9));
    assert_eq!((written.conditions[0].last_transition_time.clone(), written.allocated_ips.len()), (Some(at(9)), 0));
}

#[test]
fn names_are_the_same_on_the_wire_and_in_the_decisions() {
    assert_eq!((globalnet::CLUSTER_EGRESS, globalnet::CLUSTER_EGRESS_NUMBER), (CLUSTER_EGRESS, CLUSTER_EGRESS_NUMBER));
    assert_eq!(cluster_egress_object().metadata.name.as_deref(), Some(CLUSTER_EGRESS));
}

#[test]
fn from_objects_to_objects_and_back_nothing_is_left_to_do() {
    let cidrs: Vec<IpNet> = vec!["242.1.0.0/16".parse().unwrap()];
    let base = |gateway: &Gateway| {
        let mut snapshot = Snapshot::new(cidrs.clone());
        snapshot.put_service(&service("web", &json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]})));
        snapshot.put_export(&read(json!({"metadata": {"name": "web", "namespace": "shop"}})));
        snapshot.put_gateways(std::iter::once(gateway));
        snapshot
    };
    let mut gateway: Gateway = read(json!({"metadata": {"name": "gw"}, "status": {}}));
    let decision = allocate(&base(&gateway).inputs, &Memory::default());
    let text = decision.gateways["gw"].unwrap().to_string();
    gateway.metadata.annotations = Some(BTreeMap::from([(globalnet::GATEWAY_ADDRESS.to_owned(), text)]));
    let mut again = base(&gateway);
    for (key, spec) in &decision.apply {
        let mut object = ingress_object(key, spec);
        let status = &decision.statuses[&Holder::Ingress(key.clone())];
        object.status = ingress_status(status, &object.status, &at(1));
        assert_eq!(object.status.allocated_ip, "242.1.255.253");
        again.put_ingress(&object);
    }
    assert!(decision.create_cluster_egress);
    let mut default = cluster_egress_object();
    default.status =
        egress_status(&decision.statuses[&Holder::ClusterEgress(CLUSTER_EGRESS.to_owned())], &default.status, &at(1));
    again.put_cluster_egress(&default);
    let settled = allocate(&again.inputs, &Memory::default());
    assert!(settled.is_settled(), "{settled:?}");
    assert_eq!(settled.addresses, decision.addresses);
}
