//! What is shown of networks, versions and brokers.

use culvert_api::{Cluster, Gateway, GatewayStatus, labels};
use culvert_setup::{BrokerSeen, Discovered, Globalnet, Installation, Survey};
use serde_json::json;

use super::*;

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

/// A gateway of a version that was heard of some seconds ago.
fn gateway(version: &str, age: i64) -> Gateway {
    let status = GatewayStatus { version: format!("culvert-{version}"), ..GatewayStatus::default() };
    let mut gateway = Gateway::new("gw", status);
    let written = (labels::UPDATE_TIMESTAMP.to_owned(), (now().as_second() - age).to_string());
    gateway.metadata.annotations = Some([written].into());
    gateway
}

fn snapshot() -> Snapshot {
    let spec = ClusterSpec {
        cluster_id: "east".to_owned(),
        cluster_cidr: vec!["10.1.0.0/16".to_owned()],
        service_cidr: vec!["100.1.0.0/16".to_owned()],
        ..ClusterSpec::default()
    };
    let image = json!({"spec": {"template": {"spec": {"containers": [{"image": "r.example:5000/culvert:0.1.0"}]}}}});
    let found = |place, cidr: &str| Some(Found { place, cidrs: vec![cidr.to_owned()] });
    Snapshot {
        gateways: vec![gateway("0.1.0", 5), gateway("0.0.9", 600)],
        clusters: vec![Cluster::new("east", spec)],
        survey: Some(Survey {
            installation: Installation { cluster: Some("east".to_owned()), ..Installation::default() },
            nodes: vec![json!({"metadata": {"name": "n"}, "status": {"nodeInfo": {"architecture": "arm64"}}})],
            gateway: Some(image.clone()),
            route_agent: Some(image.clone()),
            globalnet: Some(image),
            pods: vec![
                json!({"metadata": {"labels": {"app": "culvert-gateway"}}, "spec": {"nodeName": "n"}}),
                json!({
                    "metadata": {"labels": {"app": "culvert-globalnet"}},
                    "spec": {"nodeName": "n", "containers": [{"image": "r.example:5000/culvert:0.0.9"}]},
                    "status": {"containerStatuses": [{"state": {"running": {}}}]},
                }),
            ],
            networks: Discovered {
                plugin: "kindnet".to_owned(),
                pods: found("kindnet's pod", "10.9.0.0/16"),
                services: found("kube-apiserver", "100.1.0.0/16"),
            },
            ..Survey::default()
        }),
        broker: Some(BrokerSeen {
            url: "https://b:6443".to_owned(),
            namespace: "ns".to_owned(),
            expires: None,
            state: BrokerState::Seen { clusters: vec![], endpoints: vec![] },
        }),
        ..Snapshot::default()
    }
}

#[test]
fn networks_are_shown_by_whose_word_and_a_difference_is_said() {
    insta::assert_snapshot!(NetworksView::of(&snapshot()).table());
}

#[test]
fn global_cidrs_are_shown_and_what_they_mean() {
    let mut snapshot = snapshot();
    let survey = snapshot.survey.as_mut().unwrap();
    survey.settings.insert("SUBMARINER_GLOBALCIDR".to_owned(), "242.1.0.0/16".to_owned());
    let view = NetworksView::of(&snapshot);
    let problems: Vec<_> = view.problems().filter(|(network, _)| *network == "global").collect();
    assert_eq!(
        problems,
        [("global", "not announced yet, though ConfigMap culvert says 242.1.0.0/16: wait for the gateway")]
    );

    snapshot.clusters[0].spec.global_cidr = vec!["242.1.0.0/16".to_owned()];
    let view = NetworksView::of(&snapshot);
    assert!(view.problems().all(|(network, _)| network != "global"), "{view:?}");
    let text = view.table();
    assert!(text.contains("Globalnet: other clusters reach this one by its global CIDRs alone"), "{text}");
    assert!(text.contains("global     242.1.0.0/16   ConfigMap culvert   242.1.0.0/16"), "{text}");
}

#[test]
fn versions_are_those_of_images_and_of_processes() {
    insta::assert_snapshot!(versions_table(&versions(&snapshot(), now())));
}

#[test]
fn a_broker_is_shown_with_its_health() {
    insta::assert_snapshot!(brokers_table(&brokers(&snapshot())));
    let mut refused = snapshot();
    refused.broker.as_mut().unwrap().state = BrokerState::Refused("Unauthorized".to_owned());
    let rows = brokers(&refused);
    assert_eq!((rows[0].healthy, rows[0].health.as_str()), (false, "refuses this cluster: Unauthorized"));
}

#[test]
fn a_broker_in_the_cluster_is_shown_once() {
    let cluster = |uid: &str| {
        let mut cluster = Cluster::new("east", ClusterSpec::default());
        cluster.metadata.uid = Some(uid.to_owned());
        cluster
    };
    let row = |row: BrokerRow| format!("{} {} {:?} {:?}", row.url, row.namespace, row.clusters, row.globalnet);
    let hosted = |namespace: &str, uid: &str, globalnet: &Globalnet| {
        let clusters = vec![cluster(uid)];
        HostedBroker {
            namespace: namespace.to_owned(),
            components: vec![],
            clusters,
            globalnet: Some(globalnet.clone()),
        }
    };
    let shown = |joined: bool, globalnet: &Globalnet| {
        let mut snapshot = snapshot();
        snapshot.broker.as_mut().unwrap().state = BrokerState::Seen { clusters: vec![cluster("1")], endpoints: vec![] };
        snapshot.broker = snapshot.broker.filter(|_| joined);
        snapshot.hosted = Some((
            "https://here".to_owned(),
            vec![hosted("ns", "1", globalnet), hosted("other", "2", &Globalnet::default())],
        ));
        brokers(&snapshot).into_iter().map(row).collect()
    };
    let range = "242.0.0.0/8".parse().ok();
    let globalnet = Globalnet { is_enabled: true, range, ..Globalnet::default() };
    let (all, beside): (Vec<String>, Vec<String>) = (shown(false, &globalnet), shown(true, &globalnet));
    let of_ns = "ns Some(1) Some(\"242.0.0.0/8\")";
    let other = "https://here other Some(1) Some(\"\")".to_owned();
    assert_eq!(all, [format!("https://here {of_ns}"), other.clone()]);
    assert_eq!(beside, [format!("https://b:6443 {of_ns}"), other]);
}

#[test]
fn a_directory_shows_what_is_announced() {
    let snapshot = Snapshot { survey: None, broker: None, ..snapshot() };
    let view = NetworksView::of(&snapshot);
    assert_eq!(view.problems().count(), 0);
    assert!(view.table().contains("Network plugin: unknown"), "{}", view.table());
    assert!(brokers_table(&brokers(&snapshot)).contains("There is no broker"));
}

#[test]
fn images_are_split_at_their_tag_or_digest() {
    for (image, repository, tag) in [
        ("culvert:1", "culvert", "1"),
        ("r:5000/culvert", "r:5000/culvert", "latest"),
        ("r:5000/culvert:2", "r:5000/culvert", "2"),
        ("r/culvert@sha256:ab", "r/culvert", "sha256:ab"),
    ] {
        assert_eq!(split_image(image), (repository.to_owned(), tag.to_owned()));
    }
}
