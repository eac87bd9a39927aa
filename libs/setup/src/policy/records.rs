//! The rules on Cluster and Endpoint records.

use culvert_api::labels;

use super::cel::{claims, label, overlaps};
use super::{Params, Policy, Validation, rule};

const ALL: [&str; 3] = ["CREATE", "UPDATE", "DELETE"];
const WRITES: [&str; 2] = ["CREATE", "UPDATE"];

/// Widest prefixes that one cluster may claim, as `culvert_model::ForeignSubnets` has them.
const NARROW: &str = "cidr(c).prefixLength() >= (cidr(c).ip().family() == 4 ? 8 : 16)";

/// Whose Cluster it is, and that its CIDRs are CIDRs.
pub(super) fn clusters() -> Policy {
    Policy {
        topic: "clusters",
        rules: vec![rule("submariner.io", "*", &["clusters"], &ALL)],
        params: Params::None,
        variables: vec![
            ("cluster_id", "object == null ? variables.id : object.?spec.?cluster_id.orValue('')".to_owned()),
            ("cidrs", format!("object == null ? [] : {}", all_cidrs("object"))),
            ("sender", label("object", labels::CLUSTER_ID)),
        ],
        validations: [
            vec![
                Validation::whose(
                    "variables.name == variables.id",
                    "'Cluster ' + variables.name + ': metadata.name: a member writes only the Cluster of its own \
                     name: ' + variables.id",
                ),
                Validation::whose(
                    "variables.cluster_id == variables.id",
                    "'Cluster ' + variables.name + ': spec.cluster_id is ' + variables.cluster_id + ': write ' + \
                     variables.id",
                ),
                sender("Cluster"),
            ],
            well_formed("Cluster", "spec.service_cidr, cluster_cidr, global_cidr"),
        ]
        .concat(),
    }
}

/// That a Cluster claims nothing that another one claims. An update that claims nothing new passes: two members that
/// claimed one CIDR at the same moment can still say other things.
pub(super) fn cluster_cidrs() -> Policy {
    Policy {
        topic: "cluster-cidrs",
        rules: vec![rule("submariner.io", "*", &["clusters"], &WRITES)],
        params: Params::Clusters { missing: "Allow" },
        variables: vec![
            ("cidrs", judged("variables.name == variables.id", &claims("object"))),
            ("known", format!("oldObject != null && {} == {}", claims("oldObject"), claims("object"))),
            ("theirs", claims("params")),
        ],
        validations: vec![apart("Cluster", "spec.service_cidr, cluster_cidr or global_cidr")],
    }
}

/// That a Cluster claims only such global CIDRs as the broker has noted for it. An update that claims nothing new passes.
pub(super) fn global_cidrs() -> Policy {
    let global = |object: &str| format!("{object}.?spec.?global_cidr.orValue([])");
    // An entry as Go writes it: the id, then the list. A dot stands for any character unless it is quoted.
    let entry =
        r#"r'"cluster_id":\s*"' + variables.id + r'",\s*"global_cidr":\s*\[[^\]]*"' + c.replace('.', r'\.') + '"'"#;
    let noted = format!("variables.noted.matches({entry})");
    Policy {
        topic: "global-cidrs",
        rules: vec![rule("submariner.io", "*", &["clusters"], &WRITES)],
        params: Params::Globalnet,
        variables: vec![
            ("cidrs", judged("variables.name == variables.id", &global("object"))),
            ("known", format!("oldObject != null && {} == {}", global("oldObject"), global("object"))),
            ("noted", "params.?data[?'clusterinfo'].orValue('')".to_owned()),
        ],
        validations: vec![Validation::what(
            format!("variables.known || variables.cidrs.all(c, {noted})"),
            format!(
                "'Cluster ' + variables.name + ': spec.global_cidr: ' + variables.cidrs.filter(c, !{noted})[0] + ' is not \
                 what the broker has noted for ' + variables.id + ': let `culvert join` choose one'"
            ),
        )],
    }
}

/// Whose Endpoint it is, and that its subnets are CIDRs.
pub(super) fn endpoints() -> Policy {
    let cluster_id = |object: &str| format!("{object} == null ? variables.id : {object}.?spec.?cluster_id.orValue('')");
    Policy {
        topic: "endpoints",
        rules: vec![rule("submariner.io", "*", &["endpoints"], &ALL)],
        params: Params::None,
        variables: vec![
            ("cluster_id", cluster_id("object")),
            ("old_cluster_id", cluster_id("oldObject")),
            ("cidrs", "object == null ? [] : object.?spec.?subnets.orValue([])".to_owned()),
            ("sender", label("object", labels::CLUSTER_ID)),
            ("prefix", "variables.id + '-submariner-cable-' + variables.id + '-'".to_owned()),
        ],
        validations: [
            vec![
                Validation::whose(
                    "variables.old_cluster_id == variables.id",
                    "'Endpoint ' + variables.name + ' is of cluster ' + variables.old_cluster_id + \
                     ': a member writes only its own: ' + variables.id",
                ),
                Validation::whose(
                    "variables.cluster_id == variables.id",
                    "'Endpoint ' + variables.name + ': spec.cluster_id is ' + variables.cluster_id + ': write ' + \
                     variables.id",
                ),
                // A name that another member's gateway would have keeps that one out.
                Validation::whose(
                    "request.operation != 'CREATE' || variables.name.startsWith(variables.prefix)",
                    "'Endpoint ' + variables.name + ': metadata.name: begin it with ' + variables.prefix",
                ),
                sender("Endpoint"),
            ],
            well_formed("Endpoint", "spec.subnets"),
        ]
        .concat(),
    }
}

/// That an Endpoint's subnets lie in its own Cluster's CIDRs, and in no other's.
pub(super) fn endpoint_subnets() -> Policy {
    let outside = "variables.cidrs.filter(c, !variables.theirs.exists(t, isCIDR(t) && cidr(t).containsCIDR(c)))";
    let subnets = |object: &str| format!("{object}.?spec.?subnets.orValue([])");
    let own = |object: &str| format!("{object}.?spec.?cluster_id.orValue('') == variables.id");
    let own = format!("{} && (oldObject == null || {})", own("object"), own("oldObject"));
    Policy {
        topic: "endpoint-subnets",
        rules: vec![rule("submariner.io", "*", &["endpoints"], &WRITES)],
        params: Params::Clusters { missing: "Deny" },
        variables: vec![
            ("cidrs", judged(&own, &subnets("object"))),
            ("known", format!("oldObject != null && {} == {}", subnets("oldObject"), subnets("object"))),
            ("theirs", claims("params")),
            ("outside", format!("params.metadata.name == variables.id ? {outside} : []")),
        ],
        validations: vec![
            Validation::what(
                "size(variables.outside) == 0",
                "'Endpoint ' + variables.name + ': spec.subnets: ' + variables.outside[0] + ' is not in a CIDR of \
                 Cluster ' + variables.id + ', which has ' + variables.theirs.join(', ') + ': leave it out, or write \
                 the Cluster first'",
            ),
            apart("Endpoint", "spec.subnets"),
        ],
    }
}

/// Returns an expression for the CIDRs of a record that no other policy refuses: each refusal has one reason.
fn judged(own: &str, cidrs: &str) -> String {
    format!("{own} ? {cidrs}.filter(c, isCIDR(c) && {NARROW}) : []")
}

fn all_cidrs(object: &str) -> String {
    ["service_cidr", "cluster_cidr", "global_cidr"]
        .map(|field| format!("{object}.?spec.?{field}.orValue([])"))
        .join(" + ")
}

/// The label by which syncers tell who sent a record: with another's id in it, that one takes the record for its own.
fn sender(kind: &str) -> Validation {
    let key = labels::CLUSTER_ID;
    Validation::whose(
        "variables.sender in ['', variables.id]",
        format!("'{kind} ' + variables.name + ': label {key} is ' + variables.sender + ': write ' + variables.id"),
    )
}

fn well_formed(kind: &str, field: &str) -> Vec<Validation> {
    vec![
        Validation::what(
            "variables.cidrs.all(c, isCIDR(c))",
            format!(
                "'{kind} ' + variables.name + ': {field}: \"' + variables.cidrs.filter(c, !isCIDR(c))[0] + '\" is no \
                 CIDR: write it as 10.2.0.0/16 or fd00:2::/48'"
            ),
        ),
        Validation::what(
            format!("variables.cidrs.all(c, !isCIDR(c) || {NARROW})"),
            format!(
                "'{kind} ' + variables.name + ': {field}: ' + variables.cidrs.filter(c, isCIDR(c) && !({NARROW}))[0] + \
                 ' is too wide to belong to one cluster: claim a prefix of /8 (IPv4) or /16 (IPv6) at most'"
            ),
        ),
    ]
}

/// That no CIDR overlaps one of the Cluster given as parameter, unless that is the member's own.
fn apart(kind: &str, field: &str) -> Validation {
    let taken = format!("variables.theirs.exists(t, {})", overlaps("c", "t"));
    Validation::what(
        format!("params.metadata.name == variables.id || variables.known || variables.cidrs.all(c, !{taken})"),
        format!(
            "'{kind} ' + variables.name + ': {field}: ' + variables.cidrs.filter(c, {taken})[0] + ' overlaps a CIDR of \
             cluster ' + params.metadata.name + ', which has ' + variables.theirs.join(', ') + ': give one of the two \
             clusters other CIDRs'"
        ),
    )
}
