//! The rules on what service discovery writes, and on Secrets (Submariner chapter 3.6).

use super::cel::{both_labelled, label, quoted};
use super::{Params, Policy, Validation, rule};

const ALL: [&str; 3] = ["CREATE", "UPDATE", "DELETE"];

const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
const SERVICE_NAME: &str = "multicluster.kubernetes.io/service-name";
const CSR_REQUEST: &str = "submariner.io/csr-request";

pub(super) fn endpoint_slices() -> Policy {
    Policy {
        topic: "endpointslices",
        rules: vec![rule("discovery.k8s.io", "*", &["endpointslices"], &ALL)],
        params: Params::None,
        variables: vec![],
        validations: vec![labelled("EndpointSlice", SOURCE_CLUSTER)],
    }
}

/// A member's account needs no right on Secrets; this holds whatever rights it is given, as for certificate requests.
pub(super) fn secrets() -> Policy {
    Policy {
        topic: "secrets",
        rules: vec![rule("", "v1", &["secrets"], &ALL)],
        params: Params::None,
        variables: vec![],
        validations: vec![labelled("Secret", CSR_REQUEST)],
    }
}

/// Two kinds in one: a member's own record of an exported service, and the aggregate of all members', which has the
/// service's name in an annotation.
pub(super) fn service_imports() -> Policy {
    let aggregated = |object: &str| {
        format!("{object} != null && {object}.metadata.?annotations[?{}].hasValue()", quoted(SERVICE_NAME))
    };
    let clusters = |object: &str| format!("{object} == null ? [] : {object}.?status.?clusters.orValue([])");
    let others = |list: &str| format!("variables.{list}.filter(c, c.cluster != variables.id)");
    let same = |field: &str| format!("object.?{field}.orValue({{}}) == oldObject.?{field}.orValue({{}})");
    let own = format!("variables.aggregated || variables.was_aggregated || ({})", both_labelled(SOURCE_CLUSTER));
    Policy {
        topic: "serviceimports",
        rules: vec![rule("multicluster.x-k8s.io", "*", &["serviceimports", "serviceimports/status"], &ALL)],
        params: Params::None,
        variables: vec![
            ("aggregated", aggregated("object")),
            ("was_aggregated", aggregated("oldObject")),
            ("clusters", clusters("object")),
            ("old_clusters", clusters("oldObject")),
            ("others", others("clusters")),
            ("old_others", others("old_clusters")),
            ("listed", "(variables.clusters + variables.old_clusters).exists(c, c.cluster == variables.id)".to_owned()),
        ],
        validations: vec![
            Validation::whose(
                "request.operation != 'UPDATE' || variables.aggregated == variables.was_aggregated",
                format!(
                    "'ServiceImport ' + variables.name + ': annotation {SERVICE_NAME}: an aggregated service stays \
                     one, and the own record of a member too: use another name'"
                ),
            ),
            Validation::whose(
                own,
                format!(
                    "'ServiceImport ' + variables.name + ': label {SOURCE_CLUSTER}: a member writes only its own: ' + \
                     variables.id"
                ),
            ),
            Validation::whose(
                "request.operation == 'UPDATE' || !(variables.aggregated || variables.was_aggregated) || \
                 size(variables.others) + size(variables.old_others) == 0",
                "'ServiceImport ' + variables.name + ': status.clusters lists another cluster: a member creates and \
                 deletes only what nobody but ' + variables.id + ' exports'",
            ),
            Validation::whose(
                "request.operation != 'UPDATE' || !variables.aggregated || \
                 (variables.others.all(c, variables.old_others.exists(o, o == c)) && \
                 variables.old_others.all(o, variables.others.exists(c, c == o)))",
                "'ServiceImport ' + variables.name + ': status.clusters: a member adds or removes only itself: ' + \
                 variables.id",
            ),
            Validation::whose(
                format!(
                    "request.operation != 'UPDATE' || !variables.aggregated || variables.listed || ({} && {} && {})",
                    same("spec"),
                    same("metadata.?labels"),
                    same("metadata.?annotations")
                ),
                "'ServiceImport ' + variables.name + ': only members in status.clusters change it: export the service \
                 from ' + variables.id + ' first'",
            ),
        ],
    }
}

fn labelled(kind: &str, key: &str) -> Validation {
    Validation::whose(
        both_labelled(key),
        format!(
            "'{kind} ' + variables.name + ': label {key} is \"' + ({old} != variables.id && oldObject != null ? {old} : {new}) + '\": a member \
             writes only what has its own id there: ' + variables.id",
            old = label("oldObject", key),
            new = label("object", key)
        ),
    )
}
