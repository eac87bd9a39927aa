//! Which gateway is active, and that what is kept from pass to pass is what a look at everything finds.

use std::collections::BTreeMap;

use culvert_api::EndpointSpec;
use culvert_globalnet_core::{Holder, Memory, allocate};
use culvert_runtime::{Listing, Location, Place};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::*;

fn config(is_global: bool) -> Config {
    Config {
        local: Vec::new(),
        cluster: "east".parse().unwrap(),
        global: is_global.then(|| "242.1.0.0/28".parse().unwrap()).into_iter().collect(),
        records: Location::from("/r"),
        node: "gw1".to_owned(),
    }
}

fn endpoint(cluster: &str, hostname: &str, created: &str) -> Endpoint {
    let spec =
        EndpointSpec { cluster_id: cluster.to_owned(), hostname: hostname.to_owned(), ..EndpointSpec::default() };
    let mut endpoint = Endpoint::new(&format!("{cluster}-{hostname}"), spec);
    endpoint.metadata.creation_timestamp = serde_json::from_value(serde_json::json!(created)).unwrap();
    endpoint
}

#[test]
fn the_newest_endpoint_of_the_cluster_is_the_active_gateways() {
    let config = |node: &str| Config { node: node.to_owned(), ..config(false) };
    let endpoints = [
        endpoint("east", "gw1", "2026-01-02T00:00:00Z"),
        endpoint("east", "gw2", "2026-01-03T00:00:00Z"),
        endpoint("west", "gw1", "2026-01-04T00:00:00Z"),
    ]
    .map(Arc::new);
    assert!(is_active(&config("gw2"), &endpoints));
    assert!(!is_active(&config("gw1"), &endpoints));
    assert!(!is_active(&config("gw1"), &[]));
}

/// The objects of a kind by namespace and name, as an API server keeps them.
#[derive(Clone, Debug)]
struct Kept<R>(BTreeMap<(String, String), Arc<R>>);

impl<R: Record> Kept<R> {
    /// Puts an object with this content, or takes it out.
    fn set(&mut self, (namespace, name): (&str, &str), content: Option<Value>) {
        let place = (namespace.to_owned(), name.to_owned());
        let Some(mut value) = content else {
            self.0.remove(&place);
            return;
        };
        value["apiVersion"] = json!(R::API_VERSION);
        value["kind"] = json!(R::KIND);
        value["metadata"]["name"] = json!(name);
        if R::IS_NAMESPACED {
            value["metadata"]["namespace"] = json!(namespace);
        }
        self.0.insert(place, Arc::new(serde_json::from_value(value).unwrap()));
    }

    /// Lists the objects but for one that cannot be read.
    fn listing(&self, unclear: Option<(&str, &str)>) -> Shared<R> {
        let is_clear = |(namespace, name): &(String, String)| unclear != Some((namespace, name));
        let records = self.0.iter().filter(|(place, _)| is_clear(place)).map(|(_, record)| record.clone()).collect();
        let unclear = unclear.filter(|(namespace, name)| !is_clear(&((*namespace).to_owned(), (*name).to_owned())));
        let problem = |(namespace, name): (&str, &str)| Problem {
            place: Place::Object { kind: R::KIND, path: format!("{namespace}/{name}").into() },
            line: None,
            field: None,
            message: "garbage".to_owned(),
        };
        Arc::new(Listing { records, problems: unclear.map(problem).into_iter().collect() })
    }
}

/// All objects of a cluster.
#[derive(Clone, Debug, Default)]
struct World {
    services: Kept<Service>,
    slices: Kept<EndpointSlice>,
    pods: Kept<Pod>,
    exports: Kept<ServiceExport>,
    gateways: Kept<Gateway>,
    ingress: Kept<GlobalIngressIP>,
    egress: Kept<GlobalEgressIP>,
    cluster_egress: Kept<ClusterGlobalEgressIP>,
}

impl<R> Default for Kept<R> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl World {
    fn seen(&self, unclear: Option<(&str, &str)>, is_global: bool) -> Seen {
        Seen {
            gateways: self.gateways.listing(unclear),
            ingress: self.ingress.listing(unclear),
            egress: self.egress.listing(unclear),
            cluster_egress: self.cluster_egress.listing(unclear),
            endpoints: Kept::default().listing(None),
            services: self.services.listing(unclear),
            slices: self.slices.listing(unclear),
            global: is_global
                .then(|| Global { pods: self.pods.listing(unclear), exports: self.exports.listing(unclear) }),
        }
    }

    fn set(&mut self, kind: u8, place: (&str, &str), content: Option<u8>) {
        let pick = |choice: u8, contents: &[Value]| contents[usize::from(choice) % contents.len()].clone();
        let ports = json!([{"name": "http", "port": 80}]);
        match kind {
            0 => self.services.set(place, content.map(|choice| json!({"metadata": {}, "spec": pick(choice, &[
                json!({"clusterIP": "10.96.0.7", "ports": ports}),
                json!({"clusterIP": "10.96.0.8", "ports": ports}),
                json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": ports}),
                json!({"clusterIP": "None", "ports": ports}),
                json!({"clusterIP": "ten", "ports": ports}),
                Value::Null,
            ])}))),
            1 => {
                let slice = |service: &str, kind: &str, address: &str| json!({
                    "metadata": {"labels": {"kubernetes.io/service-name": service}},
                    "addressType": kind, "ports": ports, "endpoints": [
                        {"addresses": [address], "targetRef": {"kind": "Pod", "name": "a"}},
                        {"addresses": ["10.1.0.9"], "conditions": {"ready": false}},
                    ],
                });
                self.slices.set(place, content.map(|choice| pick(choice, &[
                    slice("a", "IPv4", "10.1.0.1"),
                    slice("a", "IPv4", "10.1.0.2"),
                    slice("b", "IPv4", "10.1.0.1"),
                    slice("b", "IPv4", "eleven"),
                    slice("", "IPv4", "10.1.0.1"),
                    slice("a", "FQDN", "example.com"),
                ])));
            }
            2 => {
                let pod = |phase: &str, label: &str, address: &str| json!({
                    "metadata": {"labels": {"app": label}}, "spec": {}, "status": {"phase": phase, "podIP": address},
                });
                self.pods.set(place, content.map(|choice| pick(choice, &[
                    pod("Running", "web", "10.1.0.1"),
                    pod("Pending", "web", "10.1.0.1"),
                    pod("Running", "db", "10.1.0.2"),
                    pod("Running", "db", "twelve"),
                ])));
            }
            3 => self.exports.set(place, content.map(|choice| pick(choice, &[
                json!({"metadata": {}}),
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            ]))),
            4 => self.gateways.set(place, content.map(|choice| json!({
                "metadata": {"annotations": pick(choice, &[json!({}), json!({"submariner.io/globalIp": "242.1.0.3"})])},
                "status": {},
            }))),
            5 => {
                let status = json!({"allocatedIP": "242.1.0.5"});
                self.ingress.set(place, content.map(|choice| json!({"metadata": {}, "status": status, "spec": pick(choice, &[
                    json!({"target": "ClusterIPService", "serviceRef": {"name": place.1}}),
                    json!({"target": "HeadlessServicePod", "serviceRef": {"name": "a"}, "podRef": {"name": "a"}}),
                    json!({"target": "Moon"}),
                ])})));
            }
            6 => self.egress.set(place, content.map(|choice| json!({"metadata": {}, "spec": pick(choice, &[
                json!({"numberOfIPs": 1}),
                json!({"numberOfIPs": 2, "podSelector": {"matchLabels": {"app": "web"}}}),
                json!({"numberOfIPs": -1}),
            ])}))),
            _ => self.cluster_egress.set(("", "cluster-egress.submariner.io"), content.map(|choice| json!({
                "metadata": {}, "spec": {"numberOfIPs": choice},
            }))),
        }
    }
}

#[test]
fn an_export_keeps_its_object_while_what_it_rests_on_cannot_be_read() {
    let mut world = World::default();
    let (service, other) = (("shop", "a"), ("shop", "b"));
    world.set(0, service, Some(0));
    world.set(3, service, Some(0));
    world.set(4, service, Some(1));
    world.set(5, service, Some(0));
    world.set(5, other, Some(0));
    // Nothing is read of Service, export, gateway and object.
    let unreadable = Known::of(&config(true), world.seen(Some(service), true));
    let problems = unreadable.snapshot.problems();
    assert!(problems.iter().any(|problem| problem.contains("Gateway")), "{problems:?}");
    let gateway = Holder::Gateway("a".to_owned());
    assert!(unreadable.snapshot.inputs.unclear.contains(&gateway));
    // The object itself can be read.
    let mut seen = world.seen(Some(service), true);
    seen.ingress = world.ingress.listing(None);
    let decision = allocate(&Known::of(&config(true), seen).snapshot.inputs, &Memory::default());
    assert_eq!(decision.delete.into_iter().map(|key| key.name).collect::<Vec<_>>(), ["b"]);
    assert_eq!(decision.addresses.ingress_services.len(), 1);
}

proptest! {
    /// An update is a look at everything, and what is said not to concern the allocation does not change it.
    #[test]
    fn what_is_kept_is_what_is_found(
        is_global in any::<bool>(),
        steps in vec((0u8..8, select(vec![("shop", "a"), ("shop", "b"), ("bank", "a")]), option::weighted(0.8, 0u8..6),
            option::weighted(0.2, select(vec![("shop", "a"), ("bank", "a")]))), 1..40),
    ) {
        let config = config(is_global);
        let mut world = World::default();
        let mut known = Known::of(&config, world.seen(None, is_global));
        for (kind, place, content, unclear) in steps {
            let before = allocate(&known.snapshot.inputs, &Memory::default());
            let pods = known.snapshot.inputs.namespaces_of_pods().into_iter().map(str::to_owned).collect();
            known.snapshot.take_changes();
            let inputs = known.snapshot.inputs.clone();
            world.set(kind, place, content);

            known.update(&config, world.seen(unclear, is_global));

            prop_assert!(known.is_as_if_read_anew(&config));
            let changes = known.snapshot.take_changes();
            if !changes.concern_allocation(&known.snapshot.inputs, &pods) {
                prop_assert_eq!(allocate(&known.snapshot.inputs, &Memory::default()), before);
            }
            let now = &known.snapshot.inputs;
            let others = |key: &&ObjectKey| {
                inputs.services.get(*key) != now.services.get(*key) || inputs.endpoints.get(*key) != now.endpoints.get(*key)
            };
            let keys = [&inputs, now].into_iter().flat_map(|one| one.services.keys().chain(one.endpoints.keys()));
            prop_assert!(keys.filter(others).all(|key| changes.served().contains(key)));
        }
    }
}
