//! Snapshots of what a person and a program are shown, from records as gateways write them.

use std::collections::BTreeMap;

use culvert_api::{
    Connection, ConnectionStatus, Endpoint, EndpointSpec, Gateway, GatewayStatus, HaStatus, LatencyRtt, labels,
};
use culvert_runtime::{Location, Records};
use jiff::Timestamp;

use super::*;
use crate::args::{Output, What};
use crate::contexts::render;
use crate::snapshot::{Snapshot, read};

const NOW: i64 = 1_700_000_000;

fn spec(cluster: &str, host: &str, address: &str) -> EndpointSpec {
    EndpointSpec {
        cluster_id: cluster.to_owned(),
        cable_name: format!("submariner-cable-{cluster}-{}", address.replace('.', "-")),
        hostname: host.to_owned(),
        subnets: vec![format!("100.{}.0.0/16", cluster.len()), format!("10.{}.0.0/16", cluster.len())],
        private_ip: address.to_owned(),
        public_ip: "203.0.113.7".to_owned(),
        backend: "wireguard".to_owned(),
        ..EndpointSpec::default()
    }
}

fn gateway(node: &str, age: i64, ha_status: HaStatus, connections: Vec<Connection>) -> Gateway {
    let status = GatewayStatus {
        version: "0.1.0".to_owned(),
        ha_status,
        local_endpoint: spec("east", node, "192.168.1.1"),
        status_failure: String::new(),
        connections,
    };
    let mut gateway = Gateway::new(node, status);
    let written = (labels::UPDATE_TIMESTAMP.to_owned(), (NOW - age).to_string());
    gateway.metadata.annotations = Some(BTreeMap::from([written]));
    gateway
}

fn connection(cluster: &str, status: ConnectionStatus, message: &str) -> Connection {
    let average = "1.234567ms".to_owned();
    Connection {
        status,
        status_message: message.to_owned(),
        endpoint: spec(cluster, &format!("{cluster}-gw"), "192.168.2.1"),
        using_ip: "203.0.113.9".to_owned(),
        using_nat: true,
        latency_rtt: (status == ConnectionStatus::Connected).then(|| LatencyRtt { average, ..LatencyRtt::default() }),
    }
}

fn connections() -> Vec<Connection> {
    let mut silent = connection("southwest", ConnectionStatus::Connecting, "");
    silent.using_ip.clear();
    silent.using_nat = false;
    vec![
        connection("west", ConnectionStatus::Connected, "Rx=10 Bytes, Tx=20 Bytes"),
        connection("north", ConnectionStatus::Error, "backend libreswan is not spoken here: join with wireguard"),
        silent,
    ]
}

fn shown(snapshot: &Snapshot, what: What, output: Output) -> String {
    let view = View::of(snapshot, what, Timestamp::from_second(NOW).unwrap());
    render(&[(None, view)], output, |view| tables(view, false)).unwrap()
}

fn clusterset() -> Snapshot {
    let mut remote = Endpoint::new("west", spec("west", "west-gw", "192.168.2.1"));
    remote.metadata.labels = Some(BTreeMap::from([(labels::CLUSTER_ID.to_owned(), "west".to_owned())]));
    Snapshot {
        gateways: vec![
            gateway("east-gw", 5, HaStatus::Active, connections()),
            gateway("east-standby", 3, HaStatus::Passive, Vec::new()),
        ],
        endpoints: vec![remote, Endpoint::new("east", spec("east", "east-gw", "192.168.1.1"))],
        ..Snapshot::default()
    }
}

#[test]
fn connections_have_their_state_and_its_reason() {
    insta::assert_snapshot!(shown(&clusterset(), What::Connections, Output::Table), @r"
    GATEWAY        CLUSTER     REMOTE IP     NAT   CABLE DRIVER   SUBNETS                     STATUS       RTT avg.
    west-gw        west        203.0.113.9   yes   wireguard      100.4.0.0/16, 10.4.0.0/16   connected    1.234567ms
    north-gw       north       203.0.113.9   yes   wireguard      100.5.0.0/16, 10.5.0.0/16   error
    southwest-gw   southwest   203.0.113.7   no    wireguard      100.9.0.0/16, 10.9.0.0/16   connecting

    north-gw (north): backend libreswan is not spoken here: join with wireguard
    southwest-gw (southwest): the gateway gives no reason
    ");
}

#[test]
fn everything_is_shown_in_a_table_each() {
    insta::assert_snapshot!(shown(&clusterset(), What::All, Output::Table), @r"
    NODE           HA STATUS   SUMMARY
    east-gw        active      1 connections out of 3 are established
    east-standby   passive     There are no connections

    CLUSTER   ENDPOINT IP   PUBLIC IP     CABLE DRIVER   TYPE
    east      192.168.1.1   203.0.113.7   wireguard      local
    west      192.168.2.1   203.0.113.7   wireguard      remote

    GATEWAY        CLUSTER     REMOTE IP     NAT   CABLE DRIVER   SUBNETS                     STATUS       RTT avg.
    west-gw        west        203.0.113.9   yes   wireguard      100.4.0.0/16, 10.4.0.0/16   connected    1.234567ms
    north-gw       north       203.0.113.9   yes   wireguard      100.5.0.0/16, 10.5.0.0/16   error
    southwest-gw   southwest   203.0.113.7   no    wireguard      100.9.0.0/16, 10.9.0.0/16   connecting

    north-gw (north): backend libreswan is not spoken here: join with wireguard
    southwest-gw (southwest): the gateway gives no reason

    Cluster: east
    Network plugin: unknown

    NETWORK    DISCOVERED   SAID BY   ANNOUNCED
    pods       unknown                unknown
    services   unknown                unknown

    COMPONENT             REPOSITORY   CONFIGURED   RUNNING     ARCH
    culvert-gateway                    not known    0.1.0
    culvert-route-agent                not known    not known

    There is no broker: no settings of this cluster name one
    ");
}

#[test]
fn a_gateway_that_fell_silent_is_stale_and_so_are_its_connections() {
    let mut snapshot = clusterset();
    snapshot.gateways = vec![
        gateway("east-gw", 46, HaStatus::Active, vec![connection("west", ConnectionStatus::Connected, "")]),
        gateway("fresh", 45, HaStatus::Passive, Vec::new()),
        gateway("ahead", -3600, HaStatus::Passive, Vec::new()),
    ];
    insta::assert_snapshot!(shown(&snapshot, What::Gateways, Output::Table), @r"
    NODE      HA STATUS   SUMMARY
    east-gw   active      Stale: not reporting since 2023-11-14T22:12:34Z
    fresh     passive     There are no connections
    ahead     passive     There are no connections
    ");
    insta::assert_snapshot!(shown(&snapshot, What::Connections, Output::Table), @r"
    GATEWAY   CLUSTER   REMOTE IP     NAT   CABLE DRIVER   SUBNETS                     STATUS   RTT avg.
    west-gw   west      203.0.113.9   yes   wireguard      100.4.0.0/16, 10.4.0.0/16   stale    1.234567ms

    west-gw (west): gateway east-gw is not reporting since 2023-11-14T22:12:34Z; the connection was connected then
    ");
}

#[test]
fn a_gateway_without_a_time_is_not_taken_at_its_word() {
    let mut snapshot = clusterset();
    snapshot.gateways.truncate(1);
    snapshot.gateways[0].metadata.annotations = None;
    assert!(shown(&snapshot, What::Gateways, Output::Table).contains("Stale: not reporting"));
}

#[test]
fn a_failure_is_the_summary() {
    let mut snapshot = clusterset();
    snapshot.gateways.truncate(1);
    snapshot.gateways[0].status.status_failure = "port 4500 is in use".to_owned();
    assert!(shown(&snapshot, What::Gateways, Output::Table).contains("port 4500 is in use"));
}

#[test]
fn established_connections_are_counted() {
    let up = connection("west", ConnectionStatus::Connected, "");
    let snapshot = Snapshot { gateways: vec![gateway("gw", 0, HaStatus::Active, vec![up])], ..Snapshot::default() };
    assert!(shown(&snapshot, What::Gateways, Output::Table).contains("All connections (1) are established"));
}

#[test]
fn nothing_there_is_said_in_words() {
    insta::assert_snapshot!(shown(&Snapshot::default(), What::All, Output::Table), @r"
    There are no gateways: no gateway of this cluster has reported yet

    There are no endpoints: no gateway is active, here or in another cluster

    There are no connections

    Cluster: unknown
    Network plugin: unknown

    NETWORK    DISCOVERED   SAID BY   ANNOUNCED
    pods       unknown                unknown
    services   unknown                unknown

    COMPONENT             REPOSITORY   CONFIGURED   RUNNING     ARCH
    culvert-gateway                    not known    not known
    culvert-route-agent                not known    not known

    There is no broker: no settings of this cluster name one
    ");
}

#[test]
fn data_has_the_same_content() {
    insta::assert_snapshot!(shown(&clusterset(), What::Connections, Output::Json), @r#"
    {
      "connections": [
        {
          "gateway": "west-gw",
          "cluster": "west",
          "remoteIp": "203.0.113.9",
          "nat": true,
          "cableDriver": "wireguard",
          "subnets": [
            "100.4.0.0/16",
            "10.4.0.0/16"
          ],
          "status": "connected",
          "rttAverage": "1.234567ms",
          "reason": "",
          "reportedBy": "east-gw"
        },
        {
          "gateway": "north-gw",
          "cluster": "north",
          "remoteIp": "203.0.113.9",
          "nat": true,
          "cableDriver": "wireguard",
          "subnets": [
            "100.5.0.0/16",
            "10.5.0.0/16"
          ],
          "status": "error",
          "rttAverage": "",
          "reason": "backend libreswan is not spoken here: join with wireguard",
          "reportedBy": "east-gw"
        },
        {
          "gateway": "southwest-gw",
          "cluster": "southwest",
          "remoteIp": "203.0.113.7",
          "nat": false,
          "cableDriver": "wireguard",
          "subnets": [
            "100.9.0.0/16",
            "10.9.0.0/16"
          ],
          "status": "connecting",
          "rttAverage": "",
          "reason": "the gateway gives no reason",
          "reportedBy": "east-gw"
        }
      ]
    }
    "#);
    insta::assert_snapshot!(shown(&clusterset(), What::Endpoints, Output::Yaml), @r"
    endpoints:
    - type: local
      cluster: east
      endpointIp: 192.168.1.1
      publicIp: 203.0.113.7
      cableDriver: wireguard
    - type: remote
      cluster: west
      endpointIp: 192.168.2.1
      publicIp: 203.0.113.7
      cableDriver: wireguard
    ");
}

#[test]
fn before_any_gateway_ran_a_label_tells_remote_endpoints() {
    let mut snapshot = clusterset();
    snapshot.gateways.clear();
    let text = shown(&snapshot, What::Endpoints, Output::Table);
    let kinds: Vec<_> = text.lines().skip(1).map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(kinds, ["local", "remote"]);
}

#[tokio::test]
async fn a_malformed_record_is_reported_and_hides_no_other() {
    let root = tempfile::tempdir().unwrap();
    let records = Records::open(root.path());
    records.create(&clusterset().gateways[0]).await.unwrap();
    std::fs::write(root.path().join("gateways/bad.yaml"), "kind: Gateway\nstatus: {haStatus: [}\n").unwrap();

    let (snapshot, problems) = read(&Location::from(root.path())).await.unwrap();

    assert_eq!(snapshot.gateways.len(), 1);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("bad.yaml"), "{problems:?}");
}

#[tokio::test]
async fn a_store_that_is_not_there_is_an_error_that_names_it() {
    let error = read(&Location::from("/nonexistent/records")).await.unwrap_err();
    assert!(format!("{error:#}").contains("/nonexistent/records"), "{error:#}");
}
