//! What records become the inputs of the decisions, and what is reported of those that are wrong.

use culvert_api::{ClusterSpec, RouteAgentStatus};
use culvert_runtime::{Place, Problem};

use super::*;

fn config() -> Config {
    Config {
        cluster: "east".parse().unwrap(),
        pods: vec!["10.1.0.0/16".parse().unwrap()],
        services: Vec::new(),
        global: Vec::new(),
        records: "/r".into(),
        node: "worker".to_owned(),
        address: None,
        probe: None,
        calico: false,
    }
}

fn cluster(id: &str, pods: &[&str], global: &[&str]) -> Cluster {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let spec = ClusterSpec {
        cluster_id: id.to_owned(),
        cluster_cidr: texts(pods),
        global_cidr: texts(global),
        ..ClusterSpec::default()
    };
    Cluster::new(id, spec)
}

fn endpoint(port: &str) -> Endpoint {
    let spec = EndpointSpec {
        cluster_id: "west".to_owned(),
        cable_name: "cable-west".to_owned(),
        subnets: vec!["10.2.0.0/16".to_owned()],
        backend: "wireguard".to_owned(),
        backend_config: BTreeMap::from([("udp-port".to_owned(), port.to_owned())]),
        ..EndpointSpec::default()
    };
    Endpoint::new("west", spec)
}

fn by_name<R: Record>(records: &[R]) -> BTreeMap<String, R> {
    records.iter().map(|record| (record.name().to_owned(), record.clone())).collect()
}

fn inputs(known: &Known) -> (Inputs, BTreeSet<String>) {
    known.inputs(&config(), Addresses::default(), &NodeFacts::default())
}

fn shown(clusters: &[KnownCluster]) -> Vec<String> {
    clusters.iter().flat_map(|cluster| cluster.subnets.iter().map(ToString::to_string)).collect()
}

#[test]
fn a_wrong_endpoint_is_reported_and_its_subnets_stay_guarded() {
    let known = Known { endpoints: by_name(&[endpoint("70000")]), ..Known::default() };

    let (inputs, problems) = inputs(&known);

    assert_eq!(inputs.endpoints, []);
    assert_eq!(shown(&inputs.clusters), ["10.2.0.0/16"]);
    assert!(problems.iter().any(|problem| problem.contains("udp-port") && problem.contains("70000")), "{problems:?}");
}

#[test]
fn a_right_endpoint_is_taken() {
    let known = Known { endpoints: by_name(&[endpoint("4500")]), ..Known::default() };

    let (inputs, problems) = inputs(&known);

    assert_eq!(inputs.endpoints.len(), 1);
    assert_eq!(problems, BTreeSet::new());
}

#[test]
fn a_cluster_with_globalnet_is_known_by_its_global_subnets_only() {
    let clusters =
        by_name(&[cluster("north", &["10.1.0.0/16"], &["242.1.0.0/16"]), cluster("west", &["10.2.0.0/16"], &[])]);

    let (inputs, _) = inputs(&Known { clusters, ..Known::default() });

    assert_eq!(shown(&inputs.clusters), ["242.1.0.0/16", "10.2.0.0/16"]);
}

#[test]
fn one_bad_subnet_of_a_cluster_is_reported_and_the_others_count() {
    let clusters = by_name(&[cluster("west", &["10.2.0.0", "10.3.0.0/16"], &[])]);

    let (inputs, problems) = inputs(&Known { clusters, ..Known::default() });

    assert_eq!(shown(&inputs.clusters), ["10.3.0.0/16"]);
    assert!(
        problems.iter().any(|problem| problem.starts_with("Cluster west: \"10.2.0.0\" is no CIDR")),
        "{problems:?}"
    );
}

#[test]
fn node_addresses_come_from_annotations_and_bad_ones_are_reported() {
    let agent = |name: &str, addresses: &str| {
        let mut agent = RouteAgent::new(name, RouteAgentStatus::default());
        let annotation = (labels::NODE_ADDRESSES.to_owned(), addresses.to_owned());
        agent.metadata.annotations = Some(BTreeMap::from([annotation]));
        agent
    };
    let agents = by_name(&[
        agent("n1", "192.168.1.10, fd00::10"),
        agent("n2", "eth0,192.168.1.11"),
        RouteAgent::new("submariners", RouteAgentStatus::default()),
    ]);

    let (inputs, problems) = inputs(&Known { agents, ..Known::default() });

    assert_eq!(inputs.node_addresses.len(), 3, "{:?}", inputs.node_addresses);
    assert!(problems.iter().any(|problem| problem.starts_with("RouteAgent n2")), "{problems:?}");
}

#[test]
fn a_record_whose_file_went_bad_keeps_its_last_content_and_a_deleted_one_does_not() {
    let before = by_name(&[cluster("west", &["10.2.0.0/16"], &[]), cluster("north", &["10.3.0.0/16"], &[])]);
    let place = Place::File("/r/clusters/west.yaml".into());
    let problem = Problem { place, line: Some(3), field: None, message: "not a mapping".to_owned() };
    let mut problems = BTreeSet::new();

    let records = merged(Listing::<Cluster> { records: Vec::new(), problems: vec![problem] }, &before, &mut problems);

    assert_eq!(records.keys().collect::<Vec<_>>(), ["west"]);
    assert_eq!(problems.len(), 1);
}

#[test]
fn an_endpoint_or_cluster_of_an_absurd_size_does_not_fill_the_routing_table() {
    let many: Vec<String> = (0..10_000).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    let mut large = endpoint("4500");
    large.spec.subnets = many.clone();
    let pods: Vec<&str> = many.iter().map(String::as_str).collect();
    let known =
        Known { endpoints: by_name(&[large]), clusters: by_name(&[cluster("west", &pods, &[])]), ..Known::default() };

    let (inputs, problems) = inputs(&known);

    assert!(inputs.endpoints.is_empty());
    assert_eq!(inputs.clusters.iter().map(|cluster| cluster.subnets.len()).collect::<Vec<_>>(), [MAX_SUBNETS; 2]);
    assert_eq!(problems.len(), 2, "{problems:?}");
}
