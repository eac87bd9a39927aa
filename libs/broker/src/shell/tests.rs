//! Passes over real directories: what is written, what is left, and what a store that is away changes.

use std::time::Duration;

use culvert_api::{ClusterSpec, EndpointSpec, labels};
use tempfile::TempDir;

use super::*;
use crate::absence::HEALING;

/// One cluster's store and its syncer.
struct Member {
    store: Records,
    syncer: Syncer,
    root: TempDir,
}

impl Member {
    async fn new(id: &str, broker: &TempDir, subnet: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Records::open(root.path());
        let spec = ClusterSpec { cluster_id: id.to_owned(), ..ClusterSpec::default() };
        store.create(&Cluster::new(id, spec)).await.unwrap();
        let spec = EndpointSpec {
            cluster_id: id.to_owned(),
            cable_name: format!("submariner-cable-{id}-10-0-0-1"),
            hostname: format!("{id}-gw"),
            subnets: vec![subnet.to_owned()],
            private_ip: "10.0.0.1".to_owned(),
            backend: "wireguard".to_owned(),
            ..EndpointSpec::default()
        };
        store.create(&Endpoint::new(&endpoint_of(id), spec)).await.unwrap();
        let syncer = Syncer::new(id.parse().unwrap(), store.clone(), Records::open(broker.path()));
        Self { store, syncer, root }
    }

    async fn pass(&mut self, now: Instant) -> Result<SyncReport, SyncError> {
        let clock = Timestamp::from_second(1_700_000_000).unwrap();
        self.syncer.pass(&ForeignSubnets::default(), clock, now).await
    }

    async fn has_endpoint_of(&self, cluster: &str) -> bool {
        self.store.find::<Endpoint>(&endpoint_of(cluster)).await.unwrap().is_some()
    }

    async fn departed(&self, cluster: &str) -> bool {
        let copy = self.store.find::<Cluster>(cluster).await.unwrap().unwrap();
        copy.metadata.annotations.is_some_and(|all| all.contains_key(labels::DEPARTED))
    }
}

fn endpoint_of(cluster: &str) -> String {
    format!("{cluster}-submariner-cable-{cluster}-10-0-0-1")
}

async fn pair(broker: &TempDir) -> (Member, Member) {
    let mut east = Member::new("east", broker, "10.1.0.0/16").await;
    let mut west = Member::new("west", broker, "10.2.0.0/16").await;
    let now = Instant::now();
    for member in [&mut east, &mut west] {
        member.pass(now).await.unwrap();
    }
    east.pass(now).await.unwrap();
    (east, west)
}

fn wipe(broker: &TempDir) {
    for kind in ["clusters", "endpoints"] {
        std::fs::remove_dir_all(broker.path().join(kind)).unwrap();
    }
}

#[tokio::test]
async fn two_clusters_learn_of_each_other_and_come_to_rest() {
    let broker = tempfile::tempdir().unwrap();
    let (mut east, mut west) = pair(&broker).await;
    assert!(east.has_endpoint_of("west").await && west.has_endpoint_of("east").await);
    for member in [&mut east, &mut west] {
        let report = member.pass(Instant::now()).await.unwrap();
        assert_eq!((report.applied, report.refused.len(), report.failed.len()), (0, 0, 0), "{report:?}");
    }
}

#[tokio::test]
async fn a_cluster_that_departs_leaves_no_endpoint_and_a_departed_cluster() {
    let broker = tempfile::tempdir().unwrap();
    let (mut east, west) = pair(&broker).await;

    west.syncer.depart().await.unwrap();
    east.pass(Instant::now()).await.unwrap();

    assert!(!east.has_endpoint_of("west").await);
    assert!(east.departed("west").await);
    assert!(west.store.list::<Cluster>().await.unwrap().records.is_empty());
    assert!(west.store.list::<Endpoint>().await.unwrap().records.is_empty());
}

#[tokio::test]
async fn a_broker_that_is_away_changes_nothing() {
    let broker = tempfile::tempdir().unwrap();
    let (mut east, _west) = pair(&broker).await;
    broker.close().unwrap();

    let error = east.pass(Instant::now()).await.unwrap_err();

    assert!(matches!(error, SyncError::Broker(StoreError::Away { .. })), "{error:?}");
    assert!(east.has_endpoint_of("west").await);
    assert!(!east.departed("west").await);
}

#[tokio::test]
async fn a_wiped_broker_is_filled_again_and_costs_nobody_a_cable() {
    let broker = tempfile::tempdir().unwrap();
    let (mut east, mut west) = pair(&broker).await;
    let start = Instant::now();
    wipe(&broker);

    assert!(east.pass(start).await.unwrap().healing);
    assert!(east.pass(start).await.unwrap().healing);
    assert!(east.has_endpoint_of("west").await);
    west.pass(start).await.unwrap();
    let healed = east.pass(start + HEALING).await.unwrap();

    assert!(!healed.healing);
    assert!(east.has_endpoint_of("west").await && !east.departed("west").await);
}

#[tokio::test]
async fn a_cluster_that_does_not_return_after_a_wipe_is_gone_in_the_end() {
    let broker = tempfile::tempdir().unwrap();
    let (mut east, _west) = pair(&broker).await;
    let start = Instant::now();
    wipe(&broker);

    for after in [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(1) + HEALING] {
        east.pass(start + after).await.unwrap();
    }

    assert!(!east.has_endpoint_of("west").await);
    assert!(east.departed("west").await);
}

#[tokio::test]
async fn a_malformed_file_at_the_broker_is_reported_and_stops_nothing_else() {
    let broker = tempfile::tempdir().unwrap();
    let (mut east, _west) = pair(&broker).await;
    let file = broker.path().join(format!("endpoints/{}.yaml", endpoint_of("west")));
    std::fs::write(&file, "kind: [").unwrap();
    let mut north = Member::new("north", &broker, "10.3.0.0/16").await;
    north.pass(Instant::now()).await.unwrap();

    let report = east.pass(Instant::now()).await.unwrap();

    assert_eq!(report.problems.len(), 1);
    assert_eq!(report.problems[0].place, culvert_runtime::Place::File(file));
    assert!(east.has_endpoint_of("west").await && east.has_endpoint_of("north").await);
}

#[tokio::test]
async fn an_own_record_that_cannot_be_read_stays_at_the_broker() {
    let broker = tempfile::tempdir().unwrap();
    let (mut east, mut west) = pair(&broker).await;
    let file = east.root.path().join(format!("endpoints/{}.yaml", endpoint_of("east")));
    std::fs::write(&file, "kind: [").unwrap();

    east.pass(Instant::now()).await.unwrap();
    west.pass(Instant::now()).await.unwrap();

    assert!(west.has_endpoint_of("east").await);
}

#[tokio::test]
async fn a_departure_without_broker_cleans_up_here_and_says_what_is_left() {
    let broker = tempfile::tempdir().unwrap();
    let (east, _west) = pair(&broker).await;
    broker.close().unwrap();

    let error = east.syncer.depart().await.unwrap_err();

    assert!(matches!(error, SyncError::Broker(_)));
    assert!(east.store.list::<Endpoint>().await.unwrap().records.is_empty());
}

#[test]
fn what_speaks_for_one_cluster_stays_in_order() {
    let endpoint = |cluster: &str, name: &str| {
        Endpoint::new(name, EndpointSpec { cluster_id: cluster.to_owned(), ..EndpointSpec::default() })
    };
    let records = [endpoint("west", "b"), endpoint("east", "only"), endpoint("west", "a")];
    let names: Vec<Vec<&str>> =
        by_cluster(&records).into_iter().map(|records| records.into_iter().map(Record::name).collect()).collect();
    assert_eq!(names, [vec!["only"], vec!["b", "a"]]);
}

#[tokio::test]
async fn clusters_do_not_wait_for_one_another() {
    let both = tokio::sync::Barrier::new(2);
    // Nobody comes past the barrier alone.
    let turn = async |name: &'static str| {
        both.wait().await;
        vec![name]
    };
    let outcomes = all_at_once(vec![turn("east"), turn("west")]);
    let outcomes = tokio::time::timeout(Duration::from_secs(10), outcomes).await.expect("they meet");
    assert_eq!(outcomes, ["east", "west"]);
}

#[tokio::test]
async fn many_clusters_do_not_keep_endpoints_waiting_and_are_all_written_in_the_end() {
    let broker = tempfile::tempdir().unwrap();
    let mut east = Member::new("east", &broker, "10.1.0.0/16").await;
    let store = Records::open(broker.path());
    let label = |cluster: &str| Some([(labels::CLUSTER_ID.to_owned(), cluster.to_owned())].into());
    let count = CLUSTERS_AT_ONCE + 1;
    for number in 0..count {
        let id = format!("c{number}");
        let mut cluster = Cluster::new(&id, ClusterSpec { cluster_id: id.clone(), ..ClusterSpec::default() });
        let mut endpoint = Endpoint::new(
            &endpoint_of(&id),
            EndpointSpec {
                cluster_id: id.clone(),
                cable_name: format!("submariner-cable-{id}-10-0-0-1"),
                subnets: vec![format!("172.16.{number}.0/24")],
                private_ip: "10.0.0.1".to_owned(),
                backend: "wireguard".to_owned(),
                ..EndpointSpec::default()
            },
        );
        (cluster.metadata.labels, endpoint.metadata.labels) = (label(&id), label(&id));
        store.create(&cluster).await.unwrap();
        store.create(&endpoint).await.unwrap();
    }

    let first = east.pass(Instant::now()).await.unwrap();

    assert!(first.unfinished, "{first:?}");
    assert_eq!(east.store.list::<Endpoint>().await.unwrap().records.len(), count + 1);
    assert_eq!(east.store.list::<Cluster>().await.unwrap().records.len(), CLUSTERS_AT_ONCE + 1);
    assert!(!east.pass(Instant::now()).await.unwrap().unfinished);
    assert_eq!(east.store.list::<Cluster>().await.unwrap().records.len(), count + 1);
}

#[tokio::test]
async fn a_gateway_with_other_subnets_replaces_its_endpoint_without_the_two_being_there_at_once() {
    let broker = tempfile::tempdir().unwrap();
    let (mut east, _) = pair(&broker).await;
    let store = Records::open(broker.path());
    let key = (backend_config::PUBLIC_KEY.to_owned(), "key".to_owned());
    let mut old = east.store.find::<Endpoint>(&endpoint_of("east")).await.unwrap().unwrap();
    old.spec.backend_config.extend([key]);
    east.store.update(&old).await.unwrap();
    east.pass(Instant::now()).await.unwrap();
    let mut new = Endpoint::new("east-submariner-cable-east-10-0-0-1g1", old.spec.clone());
    new.spec.subnets = vec!["242.1.0.0/16".to_owned()];
    assert!(is_changed(old.name(), &found(&store, &mut vec![]).await.unwrap(), &[new.clone()]));
    new.spec.subnets.clone_from(&old.spec.subnets);
    assert!(!is_changed(old.name(), &found(&store, &mut vec![]).await.unwrap(), &[new.clone()]), "it has only moved");
    new.spec.subnets = vec!["242.1.0.0/16".to_owned()];

    east.store.delete::<Endpoint>(old.name()).await.unwrap();
    east.store.create(&new).await.unwrap();
    east.pass(Instant::now()).await.unwrap();

    let names = store.list::<Endpoint>().await.unwrap().records;
    let names: Vec<&str> = names.iter().map(Record::name).filter(|name| name.starts_with("east")).collect();
    assert_eq!(names, [new.name()]);
}

#[tokio::test]
async fn an_endpoint_stays_while_the_one_that_takes_its_place_is_refused() {
    let endpoint = |cluster: &str, name: &str| {
        Endpoint::new(name, EndpointSpec { cluster_id: cluster.to_owned(), ..EndpointSpec::default() })
    };
    let root = tempfile::tempdir().unwrap();
    let (away, there) = (Records::open(root.path().join("away")), Records::open(root.path()));
    let mut report = SyncReport::default();
    let new = [endpoint("east", "east-new")];
    assert_eq!(put(&there, "broker", &new, &mut report).await, BTreeSet::new());
    let behind = put(&away, "broker", &new, &mut report).await;
    assert_eq!((behind.clone(), report.failed.len()), (["east".to_owned()].into(), 1));

    let found = [endpoint("east", "east-old"), endpoint("west", "west-old")].into_iter().collect();
    let old = ["east-old", "west-old"].map(str::to_owned);
    assert_eq!(replaced(&old, &found, &behind), ["west-old"]);
    assert_eq!(replaced(&old, &found, &BTreeSet::new()), ["east-old", "west-old"]);
}
