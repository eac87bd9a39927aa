//! Pieces of CEL that several policies share.
//!
//! Written for Kubernetes 1.30 and later: optional fields, `isCIDR` and `cidr`.

/// Returns an expression for the caller's cluster id; it is evaluated only where [`called_by_member`] holds.
pub(super) fn member_id(user_prefix: &str) -> String {
    format!("request.userInfo.username.substring({})", user_prefix.len())
}

/// Returns a condition that holds for the accounts of this broker's members, and for nobody else.
pub(super) fn called_by_member(user_prefix: &str) -> String {
    format!("request.userInfo.username.startsWith('{user_prefix}')")
}

/// The name of the object in question, for messages: a deleted one is in `oldObject` only.
pub(super) const NAME: &str = "(request.name != '' ? request.name : \
     object == null ? '' : object.metadata.?name.orValue(object.metadata.?generateName.orValue('')))";

/// Returns an expression for a label's value, empty if there is none or no object.
pub(super) fn label(object: &str, key: &str) -> String {
    format!("({object} == null ? '' : {object}.metadata.?labels[?'{key}'].orValue(''))")
}

/// Returns a condition that both the old and the new object, as far as they are, have the caller's id in a label.
pub(super) fn both_labelled(key: &str) -> String {
    let one = |object: &str| format!("({object} == null || {} == variables.id)", label(object, key));
    format!("{} && {}", one("object"), one("oldObject"))
}

/// Returns an expression for the CIDRs that a Cluster claims: with Globalnet its global ones, else those of services
/// and pods (Submariner chapter 2.1). With Globalnet the others may be anybody's.
pub(super) fn claims(cluster: &str) -> String {
    let field = |name: &str| format!("{cluster}.?spec.?{name}.orValue([])");
    format!(
        "(size({global}) > 0 ? {global} : {service} + {pods})",
        global = field("global_cidr"),
        service = field("service_cidr"),
        pods = field("cluster_cidr")
    )
}

/// Returns a condition that a CIDR shares an address with another text, if that is one.
pub(super) fn overlaps(a: &str, b: &str) -> String {
    format!("isCIDR({b}) && (cidr({a}).containsCIDR({b}) || cidr({b}).containsCIDR({a}))")
}

/// Returns text as a CEL string.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
