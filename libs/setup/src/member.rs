//! A member's objects at the broker as values: its account, and what that may do.
//!
//! A role of its own, not Submariner's common one: it names the member's account and Secrets, and no others. There is no
//! Secret with a token: Culvert's tokens expire and are asked for, so nothing at the broker holds one. The Secrets that
//! the role names are those that Submariner would make for this member: a token, and a certificate request. The ConfigMap
//! is that with the lifetime of tokens, for which a member asks when it renews its own.

use culvert_model::ClusterId;
use serde_json::{Value, json};

use crate::names;
use crate::objects::{account, record_rules, role, role_binding, role_rule};

/// Annotation on a member's account: which cluster it is of, whatever that one's id.
pub(crate) const IDENTITY: &str = "culvert.io/cluster-uid";

/// A cluster that is, or is to be, a member of a broker's clusterset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The broker's namespace.
    pub broker: String,
    pub cluster: ClusterId,
}

impl Member {
    /// Returns the account, its role and the binding of the two, in the order in which they are needed.
    ///
    /// `identity` tells the cluster from others of the same id.
    pub fn objects(&self, identity: &str) -> Vec<Value> {
        let name = names::account(&self.cluster);
        let mut account = account(&self.broker, &name);
        account["metadata"]["annotations"] = json!({IDENTITY: identity});
        vec![
            account,
            role(&self.broker, &name, self.rules()),
            role_binding(&self.broker, &name, &name, (&self.broker, &name)),
        ]
    }

    fn rules(&self) -> Vec<Value> {
        let account = names::account(&self.cluster);
        let secrets = [format!("{account}-token"), format!("submariner-certificate-{}", self.cluster)];
        let secrets = secrets.each_ref().map(String::as_str);
        let mut rules = record_rules();
        rules.push(role_rule("", &["secrets"], &["get", "list", "watch"], &secrets));
        rules.push(role_rule("", &["configmaps"], &["get"], &[names::SETTINGS]));
        rules.push(role_rule("", &["serviceaccounts"], &["get"], &[&account]));
        rules.push(role_rule("", &["serviceaccounts/token"], &["create"], &[&account]));
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_an_account_and_a_role_of_its_own() {
        let member = Member { broker: "submariner-k8s-broker".to_owned(), cluster: "east".parse().unwrap() };
        insta::assert_snapshot!(crate::objects::yaml(&member.objects("0fa3")));
    }
}
