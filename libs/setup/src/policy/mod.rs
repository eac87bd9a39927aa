//! Decides what a member's account may write at the broker, as ValidatingAdmissionPolicy objects in CEL.
//!
//! The API server itself enforces them: no webhook runs. All rules of Submariner's webhook (chapter 3.6) hold, and beyond
//! them those on CIDRs. They judge the accounts `cluster-<id>` of one broker namespace; everybody else, and every other
//! broker on the cluster, has nothing to do with them.
//!
//! CIDRs are judged against all Cluster records, which the API server hands in one by one as parameters. So no rule can
//! say that a record is *missing*: a member that takes its own Cluster away may announce CIDRs that nobody claims.

mod cel;
mod records;
mod services;

use serde_json::{Value, json};

use crate::names::{MANAGED_BY, user_prefix};
use crate::objects::Broker;

/// One policy of a broker, before it is written as objects.
struct Policy {
    /// What it is about, such as `clusters`.
    topic: &'static str,
    /// What it judges.
    rules: Vec<Value>,
    params: Params,
    variables: Vec<(&'static str, String)>,
    validations: Vec<Validation>,
}

/// What else a policy looks at.
#[derive(Clone, Copy)]
enum Params {
    None,
    /// All Clusters of the broker, and what happens if there is none.
    Clusters {
        missing: &'static str,
    },
    /// What the broker has noted of Globalnet; nobody is judged by it where it is not there.
    Globalnet,
}

/// A condition, and what is said if it does not hold.
#[derive(Clone)]
struct Validation {
    expression: String,
    /// A CEL expression that gives text: it names the object, the field and the way out.
    message: String,
    reason: &'static str,
}

impl Validation {
    /// A rule on whose record it is.
    fn whose(expression: impl Into<String>, message: impl Into<String>) -> Self {
        Self { expression: expression.into(), message: message.into(), reason: "Forbidden" }
    }

    /// A rule on what a record says.
    fn what(expression: impl Into<String>, message: impl Into<String>) -> Self {
        Self { expression: expression.into(), message: message.into(), reason: "Invalid" }
    }
}

/// Returns all policies of a broker and their bindings.
pub(crate) fn objects(broker: &Broker) -> Vec<Value> {
    let policies = [
        tokens(broker),
        services::secrets(),
        services::service_imports(),
        services::endpoint_slices(),
        records::endpoint_subnets(),
        records::endpoints(),
        records::cluster_cidrs(),
        records::global_cidrs(),
        // Last, since it tells that all are in force: see `wait_enforced`.
        records::clusters(),
    ];
    policies.into_iter().flat_map(|policy| [definition(broker, &policy), binding(broker, &policy)]).collect()
}

/// A member renews its token itself; this keeps it from asking for one that outlives the broker's setting.
fn tokens(broker: &Broker) -> Policy {
    let seconds = broker.token_lifetime.as_secs();
    Policy {
        topic: "tokens",
        rules: vec![rule("", "v1", &["serviceaccounts/token"], &["CREATE"])],
        params: Params::None,
        variables: vec![],
        validations: vec![
            Validation::whose(
                format!("request.name == '{}' + variables.id", crate::names::ACCOUNT_PREFIX),
                "'ServiceAccount ' + request.name + ': a member asks for tokens of its own account only'",
            ),
            Validation::what(
                format!("object.spec.?expirationSeconds.orValue(3600) <= {seconds}"),
                format!(
                    "'ServiceAccount ' + request.name + ': spec.expirationSeconds: tokens of this broker live at most \
                     {seconds} s: ask for less, or run deploy-broker with another --token-lifetime'"
                ),
            ),
        ],
    }
}

/// Returns a rule that names resources and operations.
fn rule(group: &str, version: &str, resources: &[&str], operations: &[&str]) -> Value {
    json!({
        "apiGroups": [group],
        "apiVersions": [version],
        "resources": resources,
        "operations": operations,
        "scope": "Namespaced",
    })
}

/// A policy's name: two brokers on one cluster share none. A namespace has no dots, so no two names collide.
fn name(broker: &Broker, topic: &str) -> String {
    format!("{topic}.{}.broker.culvert.io", broker.namespace)
}

fn definition(broker: &Broker, policy: &Policy) -> Value {
    let prefix = user_prefix(&broker.namespace);
    let shared = [("id", cel::member_id(&prefix)), ("name", cel::NAME.to_owned())];
    let variables = shared.iter().chain(&policy.variables);
    let variables: Vec<Value> =
        variables.map(|(name, expression)| json!({"name": name, "expression": expression})).collect();
    let validation = |validation: &Validation| {
        let Validation { expression, message, reason } = validation;
        json!({"expression": expression, "messageExpression": message, "reason": reason})
    };
    let mut spec = json!({
        "failurePolicy": "Fail",
        "matchConstraints": {
            "matchPolicy": "Equivalent",
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": broker.namespace}},
            "resourceRules": policy.rules,
        },
        "matchConditions": [{"name": "called-by-a-member", "expression": cel::called_by_member(&prefix)}],
        "variables": variables,
        "validations": policy.validations.iter().map(validation).collect::<Vec<_>>(),
    });
    match policy.params {
        Params::None => {}
        Params::Clusters { .. } => spec["paramKind"] = json!({"apiVersion": "submariner.io/v1", "kind": "Cluster"}),
        Params::Globalnet => spec["paramKind"] = json!({"apiVersion": "v1", "kind": "ConfigMap"}),
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name(broker, policy.topic), "labels": labels(broker)},
        "spec": spec,
    })
}

fn binding(broker: &Broker, policy: &Policy) -> Value {
    let name = name(broker, policy.topic);
    let mut spec = json!({"policyName": name, "validationActions": ["Deny"]});
    let namespace = &broker.namespace;
    match policy.params {
        Params::None => {}
        // All of this broker's namespace.
        Params::Clusters { missing } => {
            spec["paramRef"] = json!({"namespace": namespace, "selector": {}, "parameterNotFoundAction": missing});
        }
        Params::Globalnet => {
            let name = crate::globalnet::NAME;
            spec["paramRef"] = json!({"namespace": namespace, "name": name, "parameterNotFoundAction": "Allow"});
        }
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name, "labels": labels(broker)},
        "spec": spec,
    })
}

fn labels(broker: &Broker) -> Value {
    json!({MANAGED_BY.0: MANAGED_BY.1, "culvert.io/broker": broker.namespace})
}

#[cfg(test)]
mod tests;
