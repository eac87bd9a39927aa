//! What global addresses and flows outlive, and what becomes of bad input: a gateway's successor, backends that come and go,
//! a pool that runs dry, a status that somebody edited.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddrV4;
use std::time::Duration;

use culvert_netns_tests::{
    BackendPlan, Caller, NAMESPACE, NodePlan, Overlapping, Proxy, Role, ServicePlan, Topology, Transport, wait_for,
    write_egress, write_endpoints, write_service,
};
use serde_json::Value;

const PORT: u16 = Overlapping::PORT;
const PATIENCE: Duration = Duration::from_secs(10);

fn topology() -> Topology {
    Topology::overlapping(Proxy::Nftables)
}

#[test]
fn a_standby_takes_over_with_the_same_addresses() {
    let mut topology = topology();
    for cluster in &mut topology.clusters {
        cluster.nodes.push(NodePlan::worker("standby"));
    }
    let mut world = Overlapping::up(&topology).unwrap();
    for cluster in ["west", "east"] {
        for role in [Role::Gateway, Role::Globalnet] {
            world.deployment.start(cluster, "standby", role).unwrap();
            world.deployment.daemon(cluster, "standby", role).wait_ready(PATIENCE).unwrap();
        }
        world.deployment.wait_active(cluster, "gw").unwrap();
    }
    let to = SocketAddrV4::new(world.global_address("west", "web").unwrap(), PORT);
    let sources = world.cluster_egress("east").unwrap();
    let from = world.pod("east", "worker");
    for cluster in ["west", "east"] {
        world.deployment.kill_node(cluster, "gw").unwrap();
        world.deployment.wait_active(cluster, "standby").unwrap();
        for transport in Transport::ALL {
            // The pod on the node that died serves no more, but its endpoint stands.
            world.wait_greeting(&from, transport, to, |it| sources.contains(&it.source)).unwrap();
        }
    }
    assert_eq!(world.global_address("west", "web").unwrap(), *to.ip());
    assert_eq!(world.cluster_egress("east").unwrap(), sources);
}

#[test]
fn clients_stay_with_their_backend_while_others_come_and_go() {
    let world = Overlapping::up(&topology()).unwrap();
    let sticky = ServicePlan { affinity: Some(600), ..Overlapping::web() };
    let backends = world.web_backends("west");
    write_service(&world.store("west"), &sticky, &backends).unwrap();
    let to = SocketAddrV4::new(world.global_address("west", "web").unwrap(), PORT);
    // One source for one client, so that affinity has something to hold on to.
    write_egress(&world.store("east"), "one", 1, None).unwrap();
    let source = world.egress("east", "one").unwrap();
    let from = world.pod("east", "worker");
    world.wait_greeting(&from, Transport::Tcp, to, |it| source.contains(&it.source)).unwrap();
    let home = |count: usize| -> BTreeSet<String> {
        (0..count).map(|_| world.greet(&from, Transport::Tcp, to).unwrap().who).collect()
    };
    wait_for("one backend for one client", PATIENCE, || Ok((home(16).len() == 1).then_some(()))).unwrap();
    let first = home(1);
    let (own, other): (Vec<BackendPlan>, Vec<BackendPlan>) = backends
        .iter()
        .cloned()
        .partition(|backend| first.contains(&format!("west-{}", backend.pod.trim_start_matches("web-"))));
    let mut more = own.clone();
    more.extend((20..30).map(|last| BackendPlan::ready(&format!("none-{last}"), [10, 244, 9, last].into())));
    for next in [own, more, backends] {
        write_endpoints(&world.store("west"), &sticky, &next).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(home(8), first);
    }
    // Its own backend goes: another one serves at once.
    write_endpoints(&world.store("west"), &sticky, &other).unwrap();
    world.wait_greeting(&from, Transport::Tcp, to, |it| !first.contains(&it.who)).unwrap();
}

#[test]
fn a_flow_to_a_backend_that_is_gone_goes_to_another_at_once() {
    let world = Overlapping::up(&topology()).unwrap();
    let to = SocketAddrV4::new(world.global_address("west", "web").unwrap(), PORT);
    let from = world.pod("east", "worker");
    let mut flows: Vec<Caller> = (0..8).map(|_| Caller::open(&from, Transport::Udp, to, 0).unwrap()).collect();
    let before: Vec<String> = flows.iter_mut().map(|flow| flow.greet().unwrap().who).collect();
    let gone = before[0].clone();
    let left = |backend: &BackendPlan| format!("west-{}", backend.pod.trim_start_matches("web-")) != gone;
    let left: Vec<BackendPlan> = world.web_backends("west").into_iter().filter(left).collect();

    write_endpoints(&world.store("west"), &Overlapping::web(), &left).unwrap();

    wait_for("another backend for the flow", PATIENCE, || Ok((flows[0].greet()?.who != gone).then_some(()))).unwrap();
    for (flow, before) in flows.iter_mut().zip(&before) {
        // A datagram that is on its way while its flow is forgotten is lost.
        let now = wait_for("an answer", PATIENCE, || flow.greet().map(Some)).unwrap().who;
        assert_ne!(now, gone);
        assert!(*before == gone || *before == now, "the flow to {before} goes to {now}");
    }
}

#[test]
fn a_connection_to_a_pod_that_ends_may_come_to_its_end() {
    let world = Overlapping::up(&topology()).unwrap();
    let to = SocketAddrV4::new(world.global_address("west", "web").unwrap(), PORT);
    let from = world.pod("east", "worker");
    let mut connection = Caller::open(&from, Transport::Tcp, to, 0).unwrap();
    let before = connection.greet().unwrap();
    let mut backends = world.web_backends("west");
    for backend in &mut backends {
        backend.ready = format!("west-{}", backend.pod.trim_start_matches("web-")) != before.who;
    }

    write_endpoints(&world.store("west"), &Overlapping::web(), &backends).unwrap();

    // New connections go elsewhere, again and again.
    let elsewhere = || -> anyhow::Result<bool> {
        (0..8).try_fold(true, |all, _| Ok(all && world.greet(&from, Transport::Tcp, to)?.who != before.who))
    };
    wait_for("the other backend alone", PATIENCE, || Ok(elsewhere()?.then_some(()))).unwrap();
    assert_eq!(connection.greet().unwrap(), before);
}

/// Returns the condition `Allocated` of an object, once it has this status.
fn wait_allocated(world: &Overlapping, place: &str, name: &str, status: &str) -> Value {
    let what = format!("{name} with Allocated={status}");
    let found = wait_for(&what, PATIENCE, || {
        let object = world.object("east", place, name)?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let allocated = conditions.into_iter().find(|condition| condition["type"] == "Allocated");
        Ok(allocated.filter(|condition| condition["status"] == status))
    });
    world.deployment.explain(found).unwrap()
}

#[test]
fn a_pool_that_runs_dry_says_so_and_goes_on_once_there_is_room() {
    let mut topology = topology();
    // Fourteen addresses: eight of the cluster, the gateway's, those of web and two pods: two are left.
    topology.cluster_mut("east").global_cidr = Some("242.1.0.0/28".parse().unwrap());
    let world = Overlapping::up(&topology).unwrap();
    let egress = format!("globalegressips/{NAMESPACE}");
    let store = world.store("east");
    let before = world.cluster_egress("east").unwrap();

    write_egress(&store, "three", 3, None).unwrap();
    let condition = wait_allocated(&world, &egress, "three", "False");
    assert_eq!(condition["reason"], "IPPoolAllocationFailed", "{condition}");
    assert!(condition["message"].as_str().unwrap().contains("242.1.0.0/28"), "{condition}");
    write_egress(&store, "zero", 0, None).unwrap();
    assert_eq!(wait_allocated(&world, &egress, "zero", "False")["reason"], "ZeroInput");
    write_egress(&store, "many", 21, None).unwrap();
    assert_eq!(wait_allocated(&world, &egress, "many", "False")["reason"], "InvalidInput");

    culvert_netns_tests::delete_export(&store, "db").unwrap();
    wait_allocated(&world, &egress, "three", "True");
    assert_eq!(world.egress("east", "three").unwrap().len(), 3);
    assert_eq!(world.cluster_egress("east").unwrap(), before);
}

#[test]
fn a_status_that_somebody_edited_is_set_back() {
    let world = Overlapping::up(&topology()).unwrap();
    let (web, pod) = ("web", "pod-db-gw");
    let addresses = [web, pod].map(|name| world.global_address("east", name).unwrap());
    let path = world.store("east").join("globalingressips").join(NAMESPACE).join("web.yaml");
    let text = fs::read_to_string(&path).unwrap();

    fs::write(&path, text.replace(&addresses[0].to_string(), &addresses[1].to_string())).unwrap();

    let found = wait_for("the address that web had", PATIENCE, || {
        Ok((world.global_address("east", web)? == addresses[0]).then_some(()))
    });
    world.deployment.explain(found).unwrap();
    assert_eq!(world.global_address("east", pod).unwrap(), addresses[1]);
    let to = SocketAddrV4::new(addresses[0], PORT);
    world.greet(&world.pod("west", "worker"), Transport::Tcp, to).unwrap();
}
