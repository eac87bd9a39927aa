//! A broker's objects as they are made, against a record of them; whoever grants a right holds it.

use super::*;

#[test]
fn a_broker_is_these_objects() {
    let broker = Broker::new("submariner-k8s-broker", TOKEN_LIFETIME).unwrap();
    let mut objects = broker.objects();
    objects.retain(|object| !object["kind"].as_str().unwrap().starts_with("ValidatingAdmission"));
    insta::assert_snapshot!("broker", yaml(&objects));
    insta::assert_snapshot!("broker_once", yaml(&broker.initial_objects()));
}

#[test]
fn an_administrator_has_every_right_that_it_grants() {
    let member = crate::Member { broker: "ns".to_owned(), cluster: "east".parse().unwrap() };
    let granted = member.objects("uid")[1]["rules"].as_array().unwrap().clone();
    let strings = |rule: &Value, field: &str| -> Vec<String> {
        rule[field].as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
    };
    let held = admin_rules();
    for rule in granted.iter().chain(&submariner_rules()) {
        for resource in strings(rule, "resources") {
            for verb in strings(rule, "verbs") {
                let covers = |held: &Value| {
                    held["apiGroups"] == rule["apiGroups"]
                        && strings(held, "resources").contains(&resource)
                        && strings(held, "verbs").contains(&verb)
                };
                assert!(held.iter().any(covers), "{verb} {resource}");
            }
        }
    }
}

#[test]
fn a_namespace_that_would_need_quoting_is_refused() {
    for name in ["", "a'b", "A", "a.b", &"x".repeat(58)] {
        let error = Broker::new(name, TOKEN_LIFETIME).unwrap_err().to_string();
        assert!(error.contains(&format!("{name:?}")), "{error}");
    }
    assert!(Broker::new("a", Duration::from_secs(599)).unwrap_err().to_string().contains("600 s or more"));
}
