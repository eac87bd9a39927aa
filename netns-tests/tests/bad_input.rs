//! Bad input while the clusters are joined: records of a peer that are wrong, and floods. The other peers' traffic takes
//! no notice, and the status says what is wrong.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_netns_tests::{
    Deployment, Flood, Pinger, Role, Settings, Topology, delete_record, garbage, metrics, wait_for, write_record,
};

const PROBE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(20);

/// An Endpoint with nothing wrong; its key is that of RFC 7748 section 6.1.
const NORTH: &str = "apiVersion: submariner.io/v1
kind: Endpoint
metadata:
  name: north-bad
  labels:
    submariner-io/clusterID: north
spec:
  cluster_id: north
  cable_name: submariner-cable-north-192-0-2-11
  hostname: north-gw
  subnets: [10.3.0.0/16]
  private_ip: 192.0.2.11
  public_ip: 192.0.2.11
  healthCheckIP: 10.3.1.1
  nat_enabled: false
  backend: wireguard
  backend_config:
    udp-port: \"4500\"
    publicKey: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
";

/// What is replaced in the record, by what, and the words that the status must have then.
const WRONG: [(&str, &str, &[&str]); 10] = [
    ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", "bm8ga2V5", &["north-bad", "publicKey"]),
    ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", "OWN KEY", &["submariner-cable-north", "make a new key"]),
    ("\"4500\"", "\"70000\"", &["north-bad", "udp-port", "70000"]),
    ("\"4500\"", "\"0\"", &["north-bad", "udp-port", "\"0\""]),
    ("10.3.0.0/16", "10.0.0.0/8", &["10.0.0.0/8", "overlaps"]),
    ("10.3.0.0/16", "10.3.0.0/16, 10.1.128.0/17", &["10.1.128.0/17", "overlaps"]),
    ("10.3.0.0/16", "0.0.0.0/0", &["0.0.0.0/0", "too wide"]),
    ("10.3.0.0/16", "10.2.2.0/24", &["10.2.2.0/24", "west"]),
    ("cluster_id: north\n", "cluster_id: North_1\n", &["north-bad", "North_1"]),
    ("[10.3.0.0/16]\n", "[10.3.0\n  - {", &["north-bad.yaml", "line"]),
];

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn pinger(deployment: &Deployment) -> Pinger {
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    Pinger::start(&east.pod, west.pod_address, PROBE).unwrap()
}

/// Waits until the Gateway record and `culvert show` have all these words.
fn wait_said(deployment: &Deployment, words: &[&str]) {
    let said = || {
        let gateway = deployment.active_gateway("east")?.unwrap_or_default();
        let status = &gateway["status"];
        let connections = status["connections"].as_array().into_iter().flatten();
        let messages = connections.filter_map(|connection| connection["statusMessage"].as_str());
        let texts: Vec<&str> = messages.chain(status["statusFailure"].as_str()).collect();
        let text = texts.iter().find(|text| words.iter().all(|word| text.contains(word)));
        anyhow::ensure!(text.is_some(), "it is {texts:?}");
        Ok(Some(()))
    };
    deployment.explain(wait_for(&format!("{words:?} in the status of east"), READY, said)).unwrap();
    let shown = || {
        let shown = deployment.show("all", "east")?;
        anyhow::ensure!(words.iter().all(|word| shown.contains(word)), "{shown}");
        Ok(Some(()))
    };
    deployment.explain(wait_for(&format!("{words:?} in what is shown"), READY, shown)).unwrap();
}

fn wait_content(deployment: &Deployment) {
    let content = || {
        let gateway = deployment.active_gateway("east")?.unwrap_or_default();
        let status = &gateway["status"];
        let failure = status["statusFailure"].as_str().unwrap_or_default();
        anyhow::ensure!(failure.is_empty() && status["connections"].as_array().is_some_and(|all| all.len() == 1));
        Ok(Some(()))
    };
    deployment.explain(wait_for("east to be content again", READY, content)).unwrap();
}

/// Makes `record` wrong in every way and puts it into the store that `root` names, one after the other.
fn assert_wrong_records_harm_nobody(record: &str, root: impl Fn(&Deployment) -> PathBuf) {
    let deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let own = deployment.wait_endpoint("east").unwrap();
    let own_key = own["spec"]["backend_config"]["publicKey"].as_str().unwrap();
    let root = root(&deployment);
    // Records are dated in whole seconds; of two claims of one second neither is the older.
    let dated = now();
    wait_for("the next second", READY, || Ok((now() > dated).then_some(()))).unwrap();
    let pinger = pinger(&deployment);
    for (right, wrong, words) in WRONG {
        let wrong = if wrong == "OWN KEY" { own_key } else { wrong };
        assert!(record.contains(right), "{right}");
        let mut text = record.replace(right, wrong);
        if words.contains(&"line") {
            text.truncate(text.find(wrong).unwrap() + wrong.len());
        }
        write_record(&root, "endpoints", "north-bad", &text).unwrap();
        wait_said(&deployment, words);
        assert_eq!(deployment.connected_clusters("east").unwrap().into_iter().collect::<Vec<_>>(), ["west"]);
        delete_record(&root, "endpoints", "north-bad").unwrap();
        wait_content(&deployment);
    }
    let pings = pinger.finish().unwrap();
    assert_eq!(pings.lost, 0, "{pings:?}\n{}", deployment.logs());
}

#[test]
fn wrong_records_at_the_broker_are_named_and_harm_nobody() {
    // A sender that dates its record back gains nothing by it: what counts is when the record came here.
    let dated_back = NORTH.replace("  labels:", "  creationTimestamp: \"2001-02-03T04:05:06Z\"\n  labels:");
    assert_wrong_records_harm_nobody(&dated_back, |deployment| deployment.lab.broker());
}

#[test]
fn wrong_records_in_the_store_are_named_and_harm_nobody() {
    // With the label it would be a copy of what is not at the broker, and deleted.
    let by_hand = NORTH.replace("  labels:\n    submariner-io/clusterID: north\n", "");
    assert_wrong_records_harm_nobody(&by_hand, |deployment| deployment.lab.cluster("east").records());
}

/// Messages of WireGuard and of NAT discovery that are cut off, changed or made up.
fn nonsense() -> Vec<Vec<u8>> {
    let wireguard = [1, 2, 3, 4, 5].into_iter().flat_map(|kind: u8| {
        [1, 4, 16, 32, 60, 92, 148, 1400].map(|length| {
            let mut message = garbage(u64::from(kind) * 1000 + length as u64, length);
            message.splice(..length.min(4), [kind, 0, 0, 0].into_iter().take(length.min(4)));
            message
        })
    });
    let discovery = [
        // A request whose length is more than there is, one that is empty, and one that nests without an end.
        vec![0x08, 1, 0x12, 0xff, 0xff, 0xff, 0xff, 0x0f],
        vec![0x08, 1, 0x12, 0],
        vec![0x12; 1400],
        vec![0xff; 2049],
    ];
    let rest = [0, 1, 31, 500, 1400].map(|length| garbage(length as u64, length));
    wireguard.chain(discovery).chain(rest).collect()
}

fn resident_megabytes(deployment: &mut Deployment) -> usize {
    let process = deployment.daemon("east", "gw", Role::Gateway).process_id();
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

#[test]
fn floods_of_nonsense_cost_no_traffic_and_no_memory() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let before = resident_megabytes(&mut deployment);
    let pinger = pinger(&deployment);
    let attacker = deployment.lab.internet()[0].clone();
    let gateway = deployment.lab.node("east", "gw").address;
    let duration = Duration::from_secs(5);
    let floods = [4500, 4490]
        .map(|port| Flood::start(&attacker, SocketAddrV4::new(gateway, port), nonsense(), 10_000, duration).unwrap());
    let sent = floods.map(|flood| flood.finish().unwrap());
    let pings = pinger.finish().unwrap();

    assert!(sent.iter().all(|sent| *sent > 40_000), "{sent:?}");
    let seen = || {
        let rejected = metrics(&deployment.lab.node("east", "gw").namespace, 9780)?;
        Ok((rejected["culvert_gateway_dropped{reason=\"rejected_datagram\"}"] > 10_000.0).then_some(()))
    };
    wait_for("the flood to be counted", READY, seen).unwrap();
    assert_eq!(pings.lost, 0, "{pings:?}\n{}", deployment.logs());
    assert!(deployment.daemon("east", "gw", Role::Gateway).is_running().unwrap());
    let after = resident_megabytes(&mut deployment);
    assert!(after <= before + 20, "from {before} to {after} MB");
    deployment.wait_connected(&["east", "west"]).unwrap();
}
