//! The policies as they are made, against a record of them; what they refuse is shown by an API server elsewhere.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

fn broker(namespace: &str) -> Broker {
    Broker { namespace: namespace.to_owned(), token_lifetime: Duration::from_secs(3600) }
}

#[test]
fn policies_are_these() {
    insta::assert_snapshot!(crate::objects::yaml(&objects(&broker("submariner-k8s-broker"))));
}

#[test]
fn two_brokers_share_no_policy() {
    let names = |namespace: &str| -> BTreeSet<String> {
        objects(&broker(namespace)).iter().map(|one| one["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert!(names("a").is_disjoint(&names("b")));
    for object in objects(&broker("a")) {
        let text = object.to_string();
        assert!(text.contains("a.broker.culvert.io"), "{text}");
        if object["kind"] == "ValidatingAdmissionPolicy" {
            assert!(text.contains("system:serviceaccount:a:cluster-"), "{text}");
            assert_eq!(
                object["spec"]["matchConstraints"]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"],
                "a"
            );
        }
    }
}

#[test]
fn a_policy_that_errs_refuses() {
    for object in objects(&broker("a")).iter().filter(|one| one["kind"] == "ValidatingAdmissionPolicy") {
        assert_eq!(object["spec"]["failurePolicy"], "Fail");
        for validation in object["spec"]["validations"].as_array().unwrap() {
            assert!(validation["messageExpression"].as_str().unwrap().contains("': "), "{validation}");
        }
    }
}
