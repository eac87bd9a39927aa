//! Endpoints as real Submariner releases write them, in both generations, and what is wrong with others.

use culvert_model::{Backend, CableKind};

use super::*;
use crate::{Gateway, HaStatus, RouteAgent};

/// As a gateway of release 0.19 with libreswan wrote it.
const OLDER: &str = r#"
apiVersion: submariner.io/v1
kind: Endpoint
metadata:
  creationTimestamp: "2024-10-22T09:15:04Z"
  generation: 1
  labels:
    submariner-io/clusterID: west
  name: west-submariner-cable-west-172-18-0-9
  namespace: submariner-operator
  resourceVersion: "4711"
  uid: 0f3b1f5e-8a43-4d52-9c5e-0d4f2a4a4c11
spec:
  backend: libreswan
  backend_config:
    natt-discovery-port: "4490"
    preferred-server: "false"
    udp-port: "4501"
  cable_name: submariner-cable-west-172-18-0-9
  cluster_id: west
  healthCheckIP: 10.2.128.1
  hostname: west-worker
  nat_enabled: true
  private_ip: 172.18.0.9
  public_ip: 198.51.100.7
  subnets:
  - 100.2.0.0/16
  - 10.2.0.0/16
"#;

/// As a gateway of release 0.21 with WireGuard wrote it.
const NEWER: &str = r#"
apiVersion: submariner.io/v1
kind: Endpoint
metadata:
  creationTimestamp: "2025-09-01T00:00:01Z"
  name: west-submariner-cable-west-172-18-0-9
  managedFields: [{manager: submariner-gateway, operation: Update}]
spec:
  backend: wireguard
  backend_config:
    interface-name: submariner
    publicKey: BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=
  cable_name: submariner-cable-west-172-18-0-9
  cluster_id: west
  healthCheckIP: 10.2.128.1
  healthCheckIPs: [10.2.128.1, "fd02::80:1"]
  hostname: west-worker
  nat_enabled: false
  newFieldOfTomorrow: {a: 1}
  private_ip: 172.18.0.9
  privateIPs: ["fd18::9", 172.18.0.10]
  public_ip: ""
  publicIPs: null
  subnets: [100.2.0.0/16, "fd02::/48"]
"#;

fn record(yaml: &str) -> Endpoint {
    serde_yaml_ng::from_str(yaml).expect("a record")
}

fn meaning(yaml: &str) -> Result<culvert_model::Endpoint, EndpointError> {
    culvert_model::Endpoint::try_from(&record(yaml))
}

#[test]
fn the_older_generation_is_read_from_its_scalars() {
    let endpoint = meaning(OLDER).expect("an endpoint");

    assert_eq!(endpoint.private, "172.18.0.9".parse::<IpAddr>().unwrap().into());
    assert_eq!(endpoint.public, "198.51.100.7".parse::<IpAddr>().unwrap().into());
    assert_eq!(endpoint.health_check, "10.2.128.1".parse::<IpAddr>().unwrap().into());
    assert_eq!(endpoint.backend, Backend::Unsupported("libreswan".to_owned()));
    assert_eq!((endpoint.udp_port, endpoint.nat_discovery_port), (4501, Some(4490)));
    assert_eq!(endpoint.subnets, ["100.2.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap()]);
    assert_eq!(endpoint.created, 1_729_588_504);
    assert!(endpoint.nat_enabled && !endpoint.culvert && !endpoint.using_load_balancer);
}

#[test]
fn the_newer_generation_is_read_from_its_lists_first() {
    let endpoint = meaning(NEWER).expect("an endpoint");

    assert_eq!(endpoint.private.v4, Some("172.18.0.10".parse().unwrap()));
    assert_eq!(endpoint.private.v6, Some("fd18::9".parse().unwrap()));
    assert_eq!(endpoint.public, Addresses::default());
    assert_eq!(endpoint.health_check.v6, Some("fd02::80:1".parse().unwrap()));
    assert_eq!(endpoint.backend, Backend::Cable(CableKind::WireGuard));
    assert_eq!((endpoint.udp_port, endpoint.nat_discovery_port), (4500, None));
    assert_eq!(endpoint.public_key, Some(PublicKey([7; 32])));
}

#[test]
fn a_list_without_ipv4_leaves_the_scalar_to_count() {
    let endpoint = meaning(&NEWER.replace(r#"["fd18::9", 172.18.0.10]"#, r#"["fd18::9"]"#)).expect("an endpoint");

    assert_eq!(endpoint.private.v4, Some("172.18.0.9".parse().unwrap()));
    assert_eq!(endpoint.private.v6, Some("fd18::9".parse().unwrap()));
}

#[test]
fn discovery_port_zero_means_off() {
    assert_eq!(meaning(&OLDER.replace("\"4490\"", "\"0\"")).expect("an endpoint").nat_discovery_port, None);
}

#[test]
fn host_bits_of_a_subnet_are_dropped() {
    let endpoint = meaning(&OLDER.replace("10.2.0.0/16", "10.2.3.4/16")).expect("an endpoint");
    assert_eq!(endpoint.subnets[1].to_string(), "10.2.0.0/16");
}

#[test]
fn what_is_written_says_the_same_in_both_generations() {
    let mut endpoint = meaning(NEWER).expect("an endpoint");
    endpoint.culvert = true;
    endpoint.using_load_balancer = true;
    endpoint.nat_discovery_port = Some(4490);
    endpoint.created = 0;

    let written = endpoint_record(&endpoint);

    assert_eq!(written.name(), "west-submariner-cable-west-172-18-0-9");
    assert_eq!(written.spec.private_ip, "172.18.0.10");
    assert_eq!(written.spec.private_ips, ["172.18.0.10", "fd18::9"]);
    assert_eq!((written.spec.public_ip.as_str(), written.spec.public_ips.len()), ("", 0));
    let yaml = serde_yaml_ng::to_string(&written).expect("YAML");
    assert_eq!(meaning(&yaml), Ok(endpoint));
    // The older generation's schema requires the scalars.
    assert!(yaml.contains("public_ip: ''") && yaml.contains("private_ip: 172.18.0.10"), "{yaml}");
}

#[test]
fn ipv6_alone_is_written_to_the_list_only() {
    let mut endpoint = meaning(NEWER).expect("an endpoint");
    endpoint.private.v4 = None;

    let spec = endpoint_record(&endpoint).spec;

    assert_eq!((spec.private_ip.as_str(), spec.private_ips), ("", vec!["fd18::9".to_owned()]));
}

#[test]
fn bad_fields_are_named_with_record_and_value() {
    let name = "west-submariner-cable-west-172-18-0-9";
    for (original, replacement, field, value) in [
        ("cluster_id: west", "cluster_id: We_st", "spec.cluster_id", "\"We_st\""),
        ("cluster_id: west", "cluster_id: null", "spec.cluster_id", "\"\""),
        ("cable_name: submariner-cable-west-172-18-0-9", "cable_name: ''", "spec.cable_name", "empty"),
        ("10.2.0.0/16", "10.2.0.0/33", "spec.subnets", "\"10.2.0.0/33\""),
        ("10.2.0.0/16", "10.2.0.0", "spec.subnets", "\"10.2.0.0\""),
        ("private_ip: 172.18.0.9", "private_ip: 172.18.0", "spec.private_ip", "\"172.18.0\""),
        ("private_ip: 172.18.0.9", "private_ip: fd18::9", "spec.private_ip", "\"fd18::9\""),
        ("198.51.100.7", "gateway.example", "spec.public_ip", "\"gateway.example\""),
        ("10.2.128.1", "none", "spec.healthCheckIP", "\"none\""),
        ("\"4501\"", "\"0\"", "spec.backend_config.udp-port", "\"0\""),
        ("\"4501\"", "\"65536\"", "spec.backend_config.udp-port", "\"65536\""),
        ("\"4490\"", "\"-1\"", "spec.backend_config.natt-discovery-port", "\"-1\""),
        ("udp-port: \"4501\"", "publicKey: AAAA", "spec.backend_config.publicKey", "\"AAAA\""),
    ] {
        assert!(OLDER.contains(original), "{original}");
        let error = meaning(&OLDER.replace(original, replacement)).expect_err(replacement).to_string();
        for part in [name, field, value] {
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }
    let no_subnets = OLDER.replace("\n  - 100.2.0.0/16\n  - 10.2.0.0/16", " []");
    assert_eq!(meaning(&no_subnets), Err(EndpointError::NoSubnets { record: name.to_owned() }));
}

#[test]
fn a_bad_list_entry_is_an_error_even_if_the_scalar_is_good() {
    let error = meaning(&NEWER.replace("fd18::9", "fd18::x")).expect_err("no address");
    assert!(matches!(error, EndpointError::Address { field: "privateIPs", .. }), "{error}");
}

#[test]
fn a_gateway_of_submariner_is_read() {
    let gateway: Gateway = serde_yaml_ng::from_str(
        r#"
apiVersion: submariner.io/v1
kind: Gateway
metadata:
  annotations: {update-timestamp: "1729588504"}
  name: east-worker
status:
  connections:
  - endpoint: {backend: vxlan, cable_name: c, cluster_id: west, hostname: w, subnets: null}
    latencyRTT: {average: 1.2ms, last: 1.1ms, max: 2ms, min: 1ms, stdDev: 100µs}
    status: connected
    statusMessage: ""
    usingIP: 172.18.0.9
    usingNAT: true
  haStatus: active
  localEndpoint: {cluster_id: east}
  statusFailure: ""
  version: v0.19.0
"#,
    )
    .expect("a gateway");

    let connection = &gateway.status.connections[0];
    assert_eq!(gateway.status.ha_status, HaStatus::Active);
    assert_eq!((connection.using_ip.as_str(), connection.using_nat), ("172.18.0.9", true));
    assert_eq!(connection.latency_rtt.as_ref().map(|rtt| rtt.std_dev.as_str()), Some("100µs"));
    assert_eq!(connection.endpoint.subnets, Vec::<String>::new());
}

#[test]
fn missing_and_null_fields_are_defaults_but_unknown_states_are_named() {
    let frame = "apiVersion: submariner.io/v1\nkind: RouteAgent\nmetadata: {name: n}\n";
    let agent: RouteAgent = serde_yaml_ng::from_str(&format!("{frame}status: null\n")).expect("a route agent");
    assert_eq!(agent, RouteAgent::new("n", crate::RouteAgentStatus::default()));

    let odd = format!("{frame}status: {{remoteEndpoints: [{{status: splendid}}]}}\n");
    let error = serde_yaml_ng::from_str::<RouteAgent>(&odd).expect_err("no such state").to_string();
    assert!(error.contains("status.remoteEndpoints[0].status") && error.contains("splendid"), "{error}");
}
