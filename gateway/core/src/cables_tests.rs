//! The rules of the choice, one scene each: a local gateway, remote Endpoints, and what comes of them.

use super::*;
use crate::nat_discovery::{NatChoice, NatSource};
use crate::testing::{address, cluster, endpoint, net};

struct Scene {
    local: Endpoint,
    endpoints: Vec<Endpoint>,
    nat: NatChoices,
    allow_vxlan: BTreeSet<ClusterId>,
    incumbents: BTreeSet<ClusterId>,
    own_addresses: BTreeSet<IpAddr>,
}

impl Scene {
    fn with(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let local = endpoint("east", 1);
        Self {
            own_addresses: local.private.iter().collect(),
            local,
            endpoints: endpoints.into_iter().collect(),
            nat: NatChoices::new(),
            allow_vxlan: BTreeSet::new(),
            incumbents: BTreeSet::new(),
        }
    }

    fn allowing(mut self, id: &str) -> Self {
        self.allow_vxlan.insert(cluster(id));
        self
    }

    fn local_backend(mut self, kind: CableKind) -> Self {
        self.local.backend = Backend::Cable(kind);
        self
    }

    fn choose(&self) -> Choices {
        choose(&ChoiceInputs {
            local: &self.local,
            endpoints: &self.endpoints,
            nat: &self.nat,
            allow_vxlan: &self.allow_vxlan,
            vxlan_port: (!self.allow_vxlan.is_empty()).then_some(4500),
            foreign_subnets: &ForeignSubnets { local: self.local.subnets.clone(), nodes: vec![net("192.168.1.0/24")] },
            own_addresses: &self.own_addresses,
            incumbents: &self.incumbents,
        })
    }

    fn only(&self) -> Choice {
        let mut choices = self.choose().0;
        assert_eq!(choices.len(), 1);
        choices.pop_first().unwrap().1
    }

    fn of(&self, id: &str) -> Choice {
        self.choose().0.into_values().find(|choice| choice.endpoint.cluster == cluster(id)).unwrap()
    }
}

fn submariner(id: &str, number: u8, backend: &str) -> Endpoint {
    Endpoint { culvert: false, backend: Backend::from(backend), ..endpoint(id, number) }
}

fn wireguard(choice: &Choice) -> &WireGuardCable {
    let ChosenCable::WireGuard(cable) = &choice.cable else { panic!("{choice:?}") };
    cable
}

fn refusal(choice: &Choice) -> &Refusal {
    let ChosenCable::Refused(refusal) = &choice.cable else { panic!("{choice:?}") };
    refusal
}

#[test]
fn a_culvert_peer_is_sought_at_private_then_public_address() {
    let choice = Scene::with([endpoint("west", 2), endpoint("east", 3)]).only();

    let candidates = ["192.168.2.10:4500", "198.51.100.2:4500"].map(|text| text.parse().unwrap());
    assert_eq!(wireguard(&choice).candidates, candidates);
    assert_eq!(wireguard(&choice).subnets, endpoint("west", 2).subnets);
}

#[test]
fn nat_discovery_comes_first_and_no_address_twice() {
    let west = endpoint("west", 2);
    let mut scene = Scene::with([west.clone()]);
    let chosen = NatChoice { address: address("198.51.100.2"), nat: true, source: NatSource::Public };
    scene.nat.insert((west.cable_name, IpFamily::V4), chosen);

    let candidates = ["198.51.100.2:4500", "192.168.2.10:4500"].map(|text| text.parse().unwrap());
    assert_eq!(wireguard(&scene.only()).candidates, candidates);
}

#[test]
fn a_peer_is_never_sought_at_our_own_or_at_no_hosts_address() {
    for bad in ["127.0.0.1", "224.0.0.5", "0.0.0.0", "255.255.255.255", "192.168.1.10", "::1", "ff02::1", "::"] {
        let mut west = endpoint("west", 2);
        west.private = address(bad).into();
        let candidates = wireguard(&Scene::with([west]).only()).candidates.clone();
        assert_eq!(candidates, ["198.51.100.2:4500".parse().unwrap()], "{bad}");
    }
}

#[test]
fn both_families_are_sought() {
    let mut west = endpoint("west", 2);
    west.private.set(address("2001:db8::2"));
    let scene = Scene::with([Endpoint { udp_port: 4501, ..west }]);

    let candidates = ["192.168.2.10:4501", "[2001:db8::2]:4501", "198.51.100.2:4501"].map(|text| text.parse().unwrap());
    assert_eq!(wireguard(&scene.only()).candidates, candidates);
}

#[test]
fn two_culvert_gateways_choose_the_same_kind() {
    use CableKind::{Vxlan, WireGuard};
    for (local, remote, expected) in [
        (WireGuard, WireGuard, "wireguard"),
        (WireGuard, Vxlan, "wireguard"),
        (Vxlan, WireGuard, "wireguard"),
        (Vxlan, Vxlan, "vxlan"),
    ] {
        let west = Endpoint { backend: Backend::Cable(remote), ..endpoint("west", 2) };
        let choice = Scene::with([west]).local_backend(local).allowing("west").only();
        let kind = match choice.cable {
            ChosenCable::WireGuard(_) => "wireguard",
            ChosenCable::Vxlan(_) => "vxlan",
            ChosenCable::Refused(refusal) => panic!("{refusal}"),
        };
        assert_eq!(kind, expected, "{local} with {remote}");
    }
}

#[test]
fn no_record_talks_us_out_of_encryption() {
    let west = Scene::with([submariner("west", 2, "vxlan")]);
    let other_allowed = Scene::with([submariner("west", 2, "vxlan")]).allowing("north");
    let both_vxlan = Scene::with([Endpoint { backend: Backend::from("vxlan"), ..endpoint("west", 2) }])
        .local_backend(CableKind::Vxlan);

    for scene in [west, other_allowed, both_vxlan] {
        let choice = scene.only();
        assert_eq!(*refusal(&choice), Refusal::VxlanNotAllowed { cluster: cluster("west") });
        assert!(refusal(&choice).to_string().contains("--allow-vxlan west"));
    }
}

#[test]
fn a_submariner_peer_is_followed() {
    let vxlan = Scene::with([submariner("west", 2, "vxlan")]).allowing("west").only();
    let over_wireguard = Scene::with([submariner("west", 2, "wireguard")]).local_backend(CableKind::Vxlan).only();
    let libreswan = Scene::with([submariner("west", 2, "libreswan")]).only();

    let expected = VxlanCable {
        remote: Ipv4Addr::new(198, 51, 100, 2),
        private: Ipv4Addr::new(192, 168, 2, 10),
        subnets: endpoint("west", 2).subnets,
        culvert: false,
    };
    assert_eq!(vxlan.cable, ChosenCable::Vxlan(expected));
    assert_eq!(wireguard(&over_wireguard).public_key, PublicKey([2; 32]));
    assert!(refusal(&libreswan).to_string().contains("join --cable-driver wireguard"));
}

#[test]
fn a_submariner_peer_on_another_vxlan_port_is_refused() {
    let west = Endpoint { udp_port: 4600, ..submariner("west", 2, "vxlan") };
    let choice = Scene::with([west]).allowing("west").only();
    assert!(matches!(refusal(&choice), Refusal::VxlanPort { remote: 4600, local: 4500, .. }));
}

#[test]
fn keys_that_are_missing_or_ours_or_anothers_are_refused() {
    let missing = Endpoint { public_key: None, ..endpoint("west", 2) };
    let ours = Endpoint { public_key: Some(PublicKey([1; 32])), ..endpoint("west", 2) };
    let copied = Endpoint { public_key: Some(PublicKey([2; 32])), ..endpoint("north", 3) };

    assert!(matches!(refusal(&Scene::with([missing]).only()), Refusal::NoPublicKey { .. }));
    assert!(matches!(refusal(&Scene::with([ours]).only()), Refusal::OwnPublicKey { .. }));
    let scene = Scene::with([copied, endpoint("west", 2)]);
    assert!(matches!(refusal(&scene.of("north")), Refusal::PublicKeyTaken { other, .. } if *other == cluster("west")));
    wireguard(&scene.of("west"));
}

#[test]
fn the_newest_endpoint_of_a_cluster_counts() {
    let older = endpoint("west", 2);
    let newer = Endpoint { subnets: older.subnets.clone(), ..endpoint("west", 3) };
    let choices = Scene::with([newer.clone(), older]).choose().0;
    assert_eq!(choices.keys().collect::<Vec<_>>(), [&newer.cable_name]);
    assert_eq!(choices[&newer.cable_name].refused_subnets, []);
}

#[test]
fn a_cluster_with_a_cable_keeps_its_subnets_whatever_the_records_are_dated() {
    let running = Endpoint { created: 900, ..endpoint("west", 2) };
    let backdated = Endpoint { created: 1, subnets: running.subnets.clone(), ..endpoint("north", 3) };
    let mut scene = Scene::with([running, backdated]);
    assert!(matches!(scene.of("west").cable, ChosenCable::Refused(_)), "by age alone the other is first");

    scene.incumbents.insert(cluster("west"));
    assert!(matches!(scene.of("west").cable, ChosenCable::WireGuard(_)));
    assert!(matches!(scene.of("north").cable, ChosenCable::Refused(Refusal::NoSubnets { .. })));
}

#[test]
fn the_older_of_two_clusters_keeps_a_subnet() {
    let north = Endpoint { subnets: vec![net("10.2.7.0/24"), net("10.3.0.0/16")], ..endpoint("north", 3) };
    let scene = Scene::with([north, endpoint("west", 2)]);

    assert_eq!(scene.of("west").refused_subnets, []);
    let choice = scene.of("north");
    assert_eq!(wireguard(&choice).subnets, [net("10.3.0.0/16")]);
    let message = choice.refused_subnets[0].to_string();
    for word in ["10.2.7.0/24", "north", "10.2.0.0/16", "west"] {
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_refused_cluster_keeps_no_subnet_from_others() {
    let west = submariner("west", 2, "libreswan");
    let north = Endpoint { subnets: west.subnets.clone(), ..endpoint("north", 3) };
    assert_eq!(Scene::with([west, north]).of("north").refused_subnets, []);
}

#[test]
fn subnets_that_are_ours_are_refused_one_by_one() {
    let west =
        Endpoint { subnets: vec![net("10.1.0.0/16"), net("0.0.0.0/0"), net("10.2.0.0/16")], ..endpoint("west", 2) };
    let nothing_left = Endpoint { subnets: vec![net("192.168.0.0/16")], ..endpoint("west", 2) };

    let choice = Scene::with([west]).only();
    assert_eq!(wireguard(&choice).subnets, [net("10.2.0.0/16")]);
    assert_eq!(choice.refused_subnets.len(), 2);
    let choice = Scene::with([nothing_left]).only();
    assert_eq!(*refusal(&choice), Refusal::NoSubnets { cluster: cluster("west") });
    assert_eq!(choice.refused_subnets.len(), 1);
}

#[test]
fn an_outer_address_in_a_remote_subnet_is_for_wireguard_only() {
    let inside = |endpoint: Endpoint| Endpoint { subnets: vec![net("198.51.100.0/24")], ..endpoint };

    wireguard(&Scene::with([inside(endpoint("west", 2))]).only());
    let vxlan = Scene::with([inside(submariner("west", 2, "vxlan"))]).allowing("west").only();
    assert!(matches!(refusal(&vxlan), Refusal::VxlanInsideItself { .. }));
}

#[test]
fn no_cluster_announces_the_address_of_a_vxlan_peer() {
    let older = Endpoint { subnets: vec![net("198.51.100.0/24"), net("10.9.0.0/16")], ..endpoint("north", 0) };
    let scene = Scene::with([older, submariner("west", 2, "vxlan")]).allowing("west");

    assert!(matches!(scene.of("west").cable, ChosenCable::Vxlan(_)));
    assert_eq!(wireguard(&scene.of("north")).subnets, [net("10.9.0.0/16")]);
    assert!(matches!(scene.of("north").refused_subnets[0], RefusedSubnet::CoversPeer { .. }));
}

#[test]
fn vxlan_carries_only_ipv4() {
    let west = Endpoint { subnets: vec![net("10.2.0.0/16"), net("fd00:2::/48")], ..submariner("west", 2, "vxlan") };
    let choice = Scene::with([west]).allowing("west").only();
    assert_eq!(choice.refused_subnets, [RefusedSubnet::NotOverVxlan { subnet: net("fd00:2::/48") }]);
}

#[test]
fn two_gateways_never_share_an_address_on_the_vxlan_link() {
    let private = address("10.168.2.10").into();
    let north = Endpoint { private, ..submariner("north", 3, "vxlan") };
    let ours = Endpoint { private: address("10.168.1.10").into(), ..submariner("west", 2, "vxlan") };

    let scene = Scene::with([submariner("west", 2, "vxlan"), north]).allowing("west").allowing("north");
    assert!(matches!(scene.of("west").cable, ChosenCable::Vxlan(_)));
    assert!(matches!(refusal(&scene.of("north")), Refusal::VxlanAddressTaken { .. }));
    assert!(matches!(refusal(&Scene::with([ours]).allowing("west").only()), Refusal::VxlanAddressTaken { .. }));
}

#[test]
fn a_copied_cable_name_does_not_hide_the_older() {
    let west = endpoint("west", 2);
    let copy = Endpoint { cable_name: west.cable_name.clone(), ..endpoint("north", 3) };
    let scene = Scene::with([copy, west]);
    wireguard(&scene.of("west"));
    assert!(matches!(refusal(&scene.of("north")), Refusal::CableNameTaken { .. }));
}

#[test]
fn the_order_of_records_changes_nothing() {
    let north = Endpoint { subnets: endpoint("west", 2).subnets, created: 2, ..endpoint("north", 3) };
    let mut endpoints = vec![endpoint("west", 2), north, submariner("south", 4, "vxlan"), endpoint("west", 5)];
    let first = Scene::with(endpoints.clone()).choose();
    for _ in 0..endpoints.len() {
        endpoints.rotate_left(1);
        assert_eq!(Scene::with(endpoints.clone()).choose(), first);
    }
}
