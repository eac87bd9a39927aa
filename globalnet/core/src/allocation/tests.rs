//! Each rule of the allocation on its own.

use std::collections::BTreeSet;

use crate::testing::{Cluster, address, cluster_egress, egress, ingress, key};
use crate::{ALLOCATED, CONFLICTED, Condition, EgressObject, FoundStatus, Holder, IngressObject, Selector, Target};

#[test]
fn a_cluster_has_its_default_egress_and_addresses_for_its_gateways() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.inputs.gateways.insert("gw-1".to_owned(), None);
    let decision = cluster.pass();
    assert!(decision.create_cluster_egress);
    let expected: BTreeSet<_> = (1..=8).map(|last| address(&format!("242.1.0.{last}"))).collect();
    assert_eq!(decision.addresses.cluster_egress, expected);
    assert_eq!(decision.gateways["gw-1"], Some(address("242.1.255.254")));
    assert_eq!(cluster.condition(&cluster_egress(), ALLOCATED), "True Success: Allocated 8 global IP(s)");
    assert!(cluster.pass().is_settled());
}

#[test]
fn an_exported_service_of_any_type_with_a_cluster_address_has_one() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.export("shop/web", "10.96.0.7");
    cluster.export("shop/alias", "10.96.0.8");
    cluster.inputs.services.get_mut(&key("shop/alias")).unwrap().is_external_name = true;
    cluster.inputs.exports.insert(key("shop/ghost"));
    let decision = cluster.pass();
    assert_eq!(decision.apply.len(), 1);
    let spec = &decision.apply[&key("shop/web")];
    assert_eq!((spec.target, spec.service.as_str(), &spec.pod), (Target::Service, "web", &None));
    assert_eq!(decision.addresses.ingress_services[&address("242.1.255.254")], key("shop/web"));
    assert_eq!(cluster.condition(&ingress("shop/web"), ALLOCATED), "True Success: Allocated global IP");
    let notices: Vec<&String> = decision.notices.iter().collect();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[0].starts_with("ServiceExport shop/alias: Service shop/alias is of type ExternalName"));
    assert!(notices[1].starts_with("ServiceExport shop/ghost: there is no Service shop/ghost: create it"));
}

#[test]
fn each_running_pod_of_a_headless_service_has_one() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.export_headless("shop/db", true);
    for (pod, ip) in [("db-0", "10.1.0.5"), ("db-1", "10.1.0.6")] {
        cluster.pod(&format!("shop/{pod}"), ip, "app=db");
        cluster.endpoint("shop/db", ip, Some(pod));
    }
    cluster.inputs.pods.get_mut(&key("shop/db-1")).unwrap().is_running = false;
    let decision = cluster.pass();
    assert_eq!(decision.apply.len(), 1);
    let spec = &decision.apply[&key("shop/pod-db-0")];
    assert_eq!((spec.target, spec.service.as_str(), spec.pod.as_deref()), (Target::Pod, "db", Some("db-0")));
    assert_eq!(decision.addresses.ingress_hosts[&address("242.1.255.254")], address("10.1.0.5"));

    cluster.inputs.services.get_mut(&key("shop/db")).unwrap().publishes_not_ready = true;
    assert!(cluster.pass().apply.contains_key(&key("shop/pod-db-1")));

    // A pod that comes again with another address keeps its global one.
    cluster.inputs.endpoints.clear();
    cluster.pod("shop/db-0", "10.1.0.99", "app=db");
    cluster.endpoint("shop/db", "10.1.0.99", Some("db-0"));
    let decision = cluster.pass();
    assert_eq!(decision.addresses.ingress_hosts[&address("242.1.255.254")], address("10.1.0.99"));
    assert_eq!(decision.apply[&key("shop/pod-db-0")].address, Some(address("10.1.0.99")));
    assert_eq!(decision.delete, BTreeSet::from([key("shop/pod-db-1")]));
}

#[test]
fn a_pod_of_two_exported_services_has_one_address_as_long_as_one_is_exported() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.pod("shop/db-0", "10.1.0.5", "app=db");
    for service in ["shop/a", "shop/b"] {
        cluster.export_headless(service, true);
        cluster.endpoint(service, "10.1.0.5", Some("db-0"));
    }
    let decision = cluster.settle();
    assert_eq!(decision.addresses.ingress_hosts.len(), 1);
    assert_eq!(cluster.inputs.ingress[&key("shop/pod-db-0")].spec.as_ref().unwrap().service, "a");
    cluster.inputs.exports.remove(&key("shop/a"));
    let without = cluster.settle();
    assert_eq!(without.addresses.ingress_hosts, decision.addresses.ingress_hosts);
    assert_eq!(cluster.inputs.ingress[&key("shop/pod-db-0")].spec.as_ref().unwrap().service, "b");
}

#[test]
fn endpoints_of_a_headless_service_without_selector_have_one_each_once_they_are_ready() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.export_headless("shop/legacy", false);
    cluster.endpoint("shop/legacy", "172.16.0.9", None);
    cluster.endpoint("shop/legacy", "172.16.0.10", None);
    cluster.inputs.endpoints.get_mut(&key("shop/legacy")).unwrap()[0].endpoints[1].is_ready = false;
    let decision = cluster.pass();
    let spec = &decision.apply[&key("shop/ep-legacy-172.16.0.9")];
    assert_eq!((spec.target, decision.apply.len()), (Target::Endpoint, 1));
    cluster.inputs.endpoints.get_mut(&key("shop/legacy")).unwrap()[0].endpoints[0].is_ready = false;
    assert!(cluster.pass().is_settled(), "what is not ready for a moment keeps its address");
}

#[test]
fn pods_whose_names_are_cut_to_the_same_have_objects_of_their_own() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.export_headless("shop/db", true);
    let set = "a".repeat(60);
    for ordinal in 0..3 {
        let (pod, ip) = (format!("{set}-{ordinal}"), format!("10.1.0.{ordinal}"));
        cluster.pod(&format!("shop/{pod}"), &ip, "app=db");
        cluster.endpoint("shop/db", &ip, Some(&pod));
    }
    assert_eq!(cluster.settle().addresses.ingress_hosts.len(), 3);
    let before = cluster.inputs.ingress.clone();
    // The one with the name that is Submariner's goes, the others stay as they are called.
    cluster.inputs.endpoints.get_mut(&key("shop/db")).unwrap()[0].endpoints.remove(0);
    cluster.settle();
    assert_eq!(cluster.inputs.ingress.len(), 2);
    assert!(cluster.inputs.ingress.iter().all(|(key, object)| before.get(key) == Some(object)));
}

#[test]
fn the_address_of_a_deleted_service_is_nobodys_in_the_same_pass_and_others_last() {
    let mut cluster = Cluster::new("242.1.0.0/28");
    cluster.inputs.cluster_egress.insert(
        "cluster-egress.submariner.io".to_owned(),
        EgressObject { number: Some(12), ..EgressObject::default() },
    );
    cluster.export("shop/a", "10.96.0.1");
    cluster.export("shop/b", "10.96.0.2");
    cluster.settle();
    assert_eq!(cluster.held(&ingress("shop/a")), ["242.1.0.14"]);
    cluster.inputs.services.remove(&key("shop/a"));
    cluster.export("shop/c", "10.96.0.3");
    let decision = cluster.pass();
    assert_eq!(decision.delete, BTreeSet::from([key("shop/a")]));
    assert!(cluster.condition(&ingress("shop/c"), ALLOCATED).starts_with("False IPPoolAllocationFailed: global CIDR"));
    let decision = cluster.pass();
    assert_eq!(decision.addresses.ingress_services[&address("242.1.0.14")], key("shop/c"), "by itself");
    assert_eq!(cluster.condition(&ingress("shop/c"), ALLOCATED), "True Success: Allocated global IP");
}

#[test]
fn a_service_that_is_exported_again_has_its_address_again() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.export("shop/a", "10.96.0.1");
    cluster.settle();
    let held = cluster.held(&ingress("shop/a"));
    cluster.inputs.exports.remove(&key("shop/a"));
    cluster.settle();
    cluster.export("shop/b", "10.96.0.2");
    cluster.settle();
    assert_ne!(cluster.held(&ingress("shop/b")), held);
    cluster.inputs.exports.insert(key("shop/a"));
    cluster.settle();
    assert_eq!(cluster.held(&ingress("shop/a")), held);
}

#[test]
fn all_addresses_survive_another_process_and_a_write_that_failed() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.export("shop/a", "10.96.0.1");
    let unwritten = cluster.decide();
    cluster.export("shop/b", "10.96.0.2");
    let decision = cluster.settle();
    assert!(
        unwritten
            .addresses
            .ingress_services
            .iter()
            .all(|(one, service)| { decision.addresses.ingress_services.get(one) == Some(service) })
    );
    cluster.restart();
    let fresh = cluster.pass();
    assert!(fresh.is_settled());
    assert_eq!(fresh.addresses, decision.addresses);
}

#[test]
fn a_number_out_of_range_is_told_and_costs_nobody_an_address() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.egress("shop/a", 20, None);
    cluster.egress("shop/b", 0, None);
    cluster.egress("shop/c", 21, Some("app=c"));
    cluster.egress("shop/d", -1, Some("app=d"));
    cluster.settle();
    assert_eq!(cluster.held(&egress("shop/a")).len(), 20);
    assert_eq!(
        cluster.condition(&egress("shop/b"), ALLOCATED),
        "False ZeroInput: spec.numberOfIPs is 0: ask for 1 to 20 addresses"
    );
    assert_eq!(
        cluster.condition(&egress("shop/c"), ALLOCATED),
        "False InvalidInput: spec.numberOfIPs is 21: ask for 1 to 20 addresses"
    );
    assert!(cluster.condition(&egress("shop/d"), ALLOCATED).starts_with("False InvalidInput: spec.numberOfIPs is -1"));
    let held = cluster.held(&egress("shop/a"));
    cluster.inputs.egress.get_mut(&key("shop/a")).unwrap().number = Some(21);
    cluster.settle();
    assert_eq!(cluster.held(&egress("shop/a")), held, "a typing error takes nothing away");
    cluster.inputs.egress.get_mut(&key("shop/a")).unwrap().number = Some(0);
    let decision = cluster.settle();
    assert!(cluster.held(&egress("shop/a")).is_empty() && decision.addresses.egress.is_empty());
}

#[test]
fn a_number_that_changes_keeps_what_it_can() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.egress("shop/a", 4, None);
    cluster.settle();
    let four = cluster.held(&egress("shop/a"));
    let set = |cluster: &mut Cluster, number| {
        cluster.inputs.egress.get_mut(&key("shop/a")).unwrap().number = number;
        cluster.settle();
        cluster.held(&egress("shop/a"))
    };
    assert_eq!(set(&mut cluster, Some(2)), four[..2]);
    assert_eq!(set(&mut cluster, Some(4)), four, "those it had");
    let six = set(&mut cluster, Some(6));
    assert_eq!((&six[..4], six.len()), (&four[..], 6));
    assert_eq!(set(&mut cluster, None), four[..1], "no number is one");
}

#[test]
fn a_dry_pool_is_told_and_serves_again_by_itself_once_something_is_free() {
    let mut cluster = Cluster::new("242.1.0.0/28");
    cluster.settle();
    cluster.egress("shop/a", 4, None);
    cluster.egress("shop/b", 4, None);
    let decision = cluster.settle();
    assert_eq!(
        cluster.condition(&egress("shop/b"), ALLOCATED),
        "False IPPoolAllocationFailed: global CIDR 242.1.0.0/28 has no 4 free addresses: delete exports or egress objects \
         that nobody needs, or give the cluster a wider CIDR with `join --globalnet-cidr`"
    );
    assert!(decision.notices.iter().any(|notice| notice.starts_with("GlobalEgressIP shop/b: global CIDR")));
    assert!(!decision.addresses.egress.contains_key("GlobalEgressIP shop/b"));
    let others = (cluster.held(&egress("shop/a")), cluster.held(&cluster_egress()));
    cluster.egress("shop/a", 2, None);
    cluster.inputs.egress.get_mut(&key("shop/a")).unwrap().status.addresses.clone_from(&others.0);
    let decision = cluster.settle();
    assert_eq!(decision.notices, BTreeSet::new());
    assert_eq!(cluster.condition(&egress("shop/b"), ALLOCATED), "True Success: Allocated 4 global IP(s)");
    assert_eq!(cluster.held(&cluster_egress()), others.1);
}

#[test]
fn a_status_edited_to_somebody_elses_address_is_put_back() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.egress("shop/a", 2, None);
    cluster.export("shop/b", "10.96.0.1");
    let before = cluster.settle();
    let (a, b) = (cluster.held(&egress("shop/a")), cluster.held(&ingress("shop/b")));
    for (edit, told) in [
        (a[0].as_str(), format!("{} is held by GlobalEgressIP shop/a", a[0])),
        ("242.1.9.9", "242.1.9.9 was not given to it".to_owned()),
        ("10.0.0.1", "10.0.0.1 is not of global CIDR 242.1.0.0/16".to_owned()),
        ("nonsense", "\"nonsense\" is no address".to_owned()),
    ] {
        cluster.status(&ingress("shop/b")).addresses = vec![edit.to_owned()];
        let decision = cluster.pass();
        assert_eq!(decision.addresses, before.addresses, "all other addresses untouched");
        assert_eq!(decision.statuses.keys().collect::<Vec<_>>(), [&ingress("shop/b")]);
        assert_eq!(cluster.held(&ingress("shop/b")), b);
        let notice = format!("GlobalIngressIP shop/b: {told}, so that it has {}", b[0]);
        assert!(decision.notices.contains(&notice), "{notice}: {:?}", decision.notices);
        let condition = format!("True Success: Allocated global IP; not kept: {told}");
        assert_eq!(cluster.condition(&ingress("shop/b"), ALLOCATED), condition);
        assert!(cluster.pass().is_settled());
    }
}

#[test]
fn without_a_memory_the_older_object_keeps_the_address() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.egress("shop/old", 1, None);
    cluster.egress("shop/new", 1, Some("app=new"));
    cluster.settle();
    let held = cluster.held(&egress("shop/old"));
    cluster.status(&egress("shop/new")).addresses.clone_from(&held);
    cluster.restart();
    cluster.settle();
    assert_eq!(cluster.held(&egress("shop/old")), held);
    assert_ne!(cluster.held(&egress("shop/new")), held);
    assert_eq!(
        cluster.condition(&egress("shop/new"), ALLOCATED),
        format!("True Success: Allocated 1 global IP(s); not kept: {} is held by GlobalEgressIP shop/old", held[0])
    );
}

#[test]
fn an_address_that_is_not_kept_while_no_other_is_free_is_submariners_failure_of_reserving() {
    let mut cluster = Cluster::new("242.1.0.0/28");
    for (name, number) in [("shop/a", 6), ("shop/b", 1)] {
        cluster.egress(name, number, None);
    }
    cluster.inputs.egress.get_mut(&key("shop/b")).unwrap().status.addresses = vec!["242.7.0.1".to_owned()];
    cluster.settle();
    assert_eq!(
        cluster.condition(&egress("shop/b"), ALLOCATED),
        "True Success: Allocated 1 global IP(s); not kept: 242.7.0.1 is not of global CIDR 242.1.0.0/28"
    );
    // The default object is the youngest here: seven are left for its eight.
    assert!(cluster.condition(&cluster_egress(), ALLOCATED).starts_with("False IPPoolAllocationFailed"));
    let others: Vec<String> = cluster.held(&egress("shop/a"));
    cluster.status(&cluster_egress()).addresses = others;
    cluster.pass();
    let told = cluster.condition(&cluster_egress(), ALLOCATED);
    assert!(
        told.starts_with("False ReserveAllocatedIPsFailed: 242.1.0.1 is held by GlobalEgressIP shop/a, "),
        "{told}"
    );
    assert!(cluster.pass().is_settled(), "and so it stays until there is something new");
}

#[test]
fn without_a_global_cidr_everything_is_given_back() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.inputs.gateways.insert("gw".to_owned(), None);
    cluster.egress("shop/a", 2, None);
    cluster.export("shop/b", "10.96.0.1");
    cluster.settle();
    cluster.inputs.cidrs.clear();
    let decision = cluster.pass();
    assert_eq!(decision.addresses, crate::GlobalAddresses::default());
    assert_eq!(decision.delete, BTreeSet::from([key("shop/b")]));
    assert_eq!(decision.gateways["gw"], None);
    assert!(cluster.held(&egress("shop/a")).is_empty() && cluster.held(&cluster_egress()).is_empty());
    let told = cluster.condition(&egress("shop/a"), ALLOCATED);
    assert!(told.starts_with("False IPPoolAllocationFailed: this cluster has no global CIDR: give it one"), "{told}");
    assert!(cluster.pass().is_settled());
    assert_eq!(Cluster::default().pass(), crate::Decision::default(), "nor is anything made");
}

#[test]
fn another_global_cidr_gives_new_addresses_to_everybody() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.inputs.gateways.insert("gw".to_owned(), None);
    cluster.egress("shop/a", 2, None);
    cluster.settle();
    cluster.inputs.cidrs = vec!["242.2.0.0/16".parse().unwrap()];
    let decision = cluster.settle();
    assert!(decision.memory.held.values().flatten().all(|one| cluster.inputs.cidrs[0].contains(one)));
    assert_eq!(cluster.held(&egress("shop/a")).len(), 2);
    assert_eq!(cluster.inputs.gateways["gw"].as_deref(), Some("242.2.255.254"));
}

#[test]
fn only_the_default_object_counts_for_the_cluster() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.inputs.cluster_egress.insert("mine".to_owned(), EgressObject::default());
    let decision = cluster.settle();
    assert_eq!(decision.addresses.cluster_egress.len(), 8);
    let told = cluster.condition(&Holder::ClusterEgress("mine".to_owned()), ALLOCATED);
    assert!(
        told.starts_with("False InvalidInstance: only cluster-egress.submariner.io counts: set numGlobalIPs there")
    );
}

#[test]
fn pods_leave_by_the_object_that_chooses_them_but_those_of_the_host_and_of_the_past() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.pod("shop/web", "10.1.0.1", "app=web");
    cluster.pod("shop/db", "10.1.0.2", "app=db");
    cluster.pod("bank/web", "10.1.0.3", "app=web");
    cluster.pod("shop/node", "10.1.0.4", "app=web");
    cluster.pod("shop/done", "10.1.0.5", "app=web");
    cluster.inputs.pods.get_mut(&key("shop/node")).unwrap().is_on_host_network = true;
    let done = cluster.inputs.pods.get_mut(&key("shop/done")).unwrap();
    (done.is_running, done.is_finished) = (false, true);
    cluster.egress("shop/all", 1, None);
    cluster.egress("shop/web", 1, Some("app=web"));
    cluster.egress("shop/every", 1, None);
    cluster.inputs.egress.get_mut(&key("shop/every")).unwrap().selector = Some(Ok(Selector::default()));
    let sources = |cluster: &mut Cluster, name: &str| {
        let group = cluster.settle().addresses.egress[&egress(name).to_string()].clone();
        (group.is_selective, group.sources.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let list = |sources: &[&str]| sources.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
    assert_eq!(sources(&mut cluster, "shop/all"), (false, list(&["10.1.0.1", "10.1.0.2"])));
    assert_eq!(sources(&mut cluster, "shop/web"), (true, list(&["10.1.0.1"])));
    assert_eq!(sources(&mut cluster, "shop/every"), (true, list(&["10.1.0.2"])), "an empty selector is one");
    // The selector may change.
    cluster.inputs.egress.get_mut(&key("shop/web")).unwrap().selector =
        Some(Ok(Selector::of_labels(crate::testing::labels("app=db"))));
    assert_eq!(sources(&mut cluster, "shop/web"), (true, list(&["10.1.0.2"])));
    assert_eq!(sources(&mut cluster, "shop/every"), (true, list(&["10.1.0.1"])));
}

#[test]
fn of_two_objects_that_choose_a_pod_the_older_has_it_and_the_other_is_told() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    for last in 1..=5 {
        cluster.pod(&format!("shop/web-{last}"), &format!("10.1.0.{last}"), "app=web");
    }
    cluster.egress("shop/z-old", 1, Some("app=web"));
    cluster.egress("shop/a-new", 1, Some("app=web"));
    cluster.egress("shop/all", 1, None);
    cluster.egress("shop/all-too", 1, None);
    let decision = cluster.settle();
    assert_eq!(decision.addresses.egress["GlobalEgressIP shop/z-old"].sources.len(), 5);
    assert_eq!(decision.addresses.egress["GlobalEgressIP shop/a-new"].sources.len(), 0);
    assert_eq!(
        cluster.condition(&egress("shop/a-new"), CONFLICTED),
        "True PodsOfOlderObject: pods web-1, web-2, web-3 and more leave by GlobalEgressIP shop/z-old, which is older: \
         change one of the selectors"
    );
    assert!(
        cluster.condition(&egress("shop/all-too"), CONFLICTED).contains("leave by GlobalEgressIP shop/all, which has")
    );
    assert_eq!(cluster.condition(&egress("shop/z-old"), CONFLICTED), "");
    assert_eq!(cluster.condition(&egress("shop/all"), CONFLICTED), "", "another class is no conflict");
    cluster.inputs.egress.remove(&key("shop/z-old"));
    cluster.settle();
    assert_eq!(cluster.condition(&egress("shop/a-new"), CONFLICTED), "False NoConflict: ");
}

#[test]
fn a_selector_that_is_not_understood_is_told_and_takes_nothing_away() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.pod("shop/web", "10.1.0.1", "app=web");
    cluster.egress("shop/a", 2, Some("app=web"));
    cluster.settle();
    let held = cluster.held(&egress("shop/a"));
    let wrong = Selector::default().with("app".to_owned(), "Like", BTreeSet::new());
    cluster.inputs.egress.get_mut(&key("shop/a")).unwrap().selector = Some(wrong);
    let decision = cluster.settle();
    assert_eq!(cluster.held(&egress("shop/a")), held);
    assert!(decision.addresses.egress.is_empty());
    let told = cluster.condition(&egress("shop/a"), ALLOCATED);
    assert!(told.starts_with("False InvalidInput: spec.podSelector: operator \"Like\" for label \"app\""), "{told}");
}

#[test]
fn what_is_not_understood_keeps_what_it_has_and_is_not_touched() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.egress("shop/a", 2, None);
    cluster.export("shop/b", "10.96.0.1");
    let before = cluster.settle();
    cluster.inputs.egress.clear();
    cluster.inputs.ingress.clear();
    cluster.inputs.cluster_egress.clear();
    cluster.inputs.unclear = BTreeSet::from([egress("shop/a"), ingress("shop/b"), cluster_egress()]);
    let decision = cluster.pass();
    assert!(decision.is_settled(), "{decision:?}");
    assert_eq!(decision.memory.held, before.memory.held);
    assert_eq!(decision.addresses.ingress_services, before.addresses.ingress_services);
    assert_eq!(decision.addresses.cluster_egress, before.addresses.cluster_egress);
}

#[test]
fn an_ingress_object_of_others_is_told_and_one_without_an_export_goes() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    let object = |spec| IngressObject { created: Some(1), spec, status: FoundStatus::default() };
    cluster.inputs.ingress.insert(key("shop/odd"), object(Err("spec.target \"Moon\" is not known".to_owned())));
    let stray = crate::IngressSpec { target: Target::Service, service: "gone".to_owned(), pod: None, address: None };
    cluster.inputs.ingress.insert(key("shop/gone"), object(Ok(stray)));
    let decision = cluster.pass();
    assert_eq!(decision.delete, BTreeSet::from([key("shop/gone")]));
    let told = cluster.condition(&ingress("shop/odd"), ALLOCATED);
    assert_eq!(told, "False InvalidInput: spec.target \"Moon\" is not known");
}

#[test]
fn conditions_of_others_stay_and_submariners_about_selectors_goes() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.egress("shop/a", 1, None);
    let condition = |kind: &str, reason: &str| Condition {
        kind: kind.to_owned(),
        status: "False".to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
    };
    cluster.status(&egress("shop/a")).conditions =
        vec![condition("Theirs", "Reason"), condition("Updated", "PodSelectorUpdateNotSupported")];
    cluster.settle();
    let kinds: Vec<String> = cluster.status(&egress("shop/a")).conditions.iter().map(|one| one.kind.clone()).collect();
    assert_eq!(kinds, ["Theirs", ALLOCATED]);
}

#[test]
fn both_families_are_served_alike() {
    let mut cluster = Cluster::new("242.1.0.0/16");
    cluster.inputs.cidrs.push("fd00:242:1::/48".parse().unwrap());
    cluster.egress("shop/a", 2, None);
    cluster.pod("shop/web", "fd00:1::7", "app=web");
    cluster.export("shop/four", "10.96.0.1");
    cluster.export("shop/six", "fd00:96::1");
    let decision = cluster.settle();
    assert_eq!(cluster.held(&egress("shop/a")), ["242.1.0.1", "242.1.0.2", "fd00:242:1::1", "fd00:242:1::2"]);
    assert_eq!(cluster.held(&ingress("shop/six")), ["fd00:242:1:ffff:ffff:ffff:ffff:ffff"]);
    assert_eq!(cluster.held(&ingress("shop/four")), ["242.1.255.254"]);
    assert_eq!(decision.addresses.egress["GlobalEgressIP shop/a"].sources, BTreeSet::from([address("fd00:1::7")]));
    cluster.inputs.cidrs.pop();
    cluster.settle();
    assert_eq!(
        cluster.condition(&ingress("shop/six"), ALLOCATED),
        "False IPPoolAllocationFailed: what Service shop/six leads to has no IPv4 address, and the cluster no global CIDR \
         of another family: give it one with `join --globalnet-cidr`"
    );
}
