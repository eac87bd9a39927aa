//! The definitions of records, and what those that a cluster has already are to this release: to be brought up to date,
//! to be left as they are, or a reason to do nothing at all.
//!
//! A definition that somebody else or a newer release made stays as it is, as long as it serves what this release writes:
//! an older one in its place would make objects that are stored in a newer version unreadable.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::error::ServerError;
use crate::names::MANAGED_BY;
use crate::object::ObjectRef;
use crate::server::Server;

/// The label with the release that made a definition.
const RELEASE: &str = "app.kubernetes.io/version";

/// What is found of the definitions before anything is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definitions {
    /// Those that somebody else or a newer release made: they stay as they are.
    pub kept: BTreeSet<String>,
    pub unusable: Vec<UnusableDefinition>,
}

/// A definition that this release cannot work with, and may not replace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableDefinition {
    #[error(
        "CustomResourceDefinition {name} does not serve {wanted} but {served}: use the release that made it, or have \
         {wanted} served again"
    )]
    Version { name: String, wanted: String, served: String },
    #[error("CustomResourceDefinition {name} is not served ({reason}): correct it, or delete it if nobody uses it")]
    NotServed { name: String, reason: String },
    #[error("CustomResourceDefinition {name} is being deleted: wait until it is gone, or look at what holds it")]
    BeingDeleted { name: String },
}

/// What a definition that is there is to this release.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Ours, and to be brought up to date.
    Ours,
    /// Left as it is.
    Kept,
    Unusable(UnusableDefinition),
}

/// Returns the CustomResourceDefinitions.
pub(crate) fn definitions() -> Vec<Value> {
    let parsed = |(_, yaml): (String, String)| {
        let mut value: Value = serde_yaml_ng::from_str(&yaml).expect("generated definitions are YAML");
        value["metadata"]["labels"] = json!({MANAGED_BY.0: MANAGED_BY.1, RELEASE: env!("CARGO_PKG_VERSION")});
        value
    };
    culvert_api::crd::all().into_iter().map(parsed).collect()
}

impl Server {
    /// Brings the definitions of records, but for those that are kept, and waits until they are served.
    ///
    /// # Errors
    ///
    /// [`ServerError`], also if it takes too long.
    pub async fn apply_definitions(&self, kept: &BTreeSet<String>) -> Result<(), ServerError> {
        for definition in definitions() {
            let reference = ObjectRef::of(&definition);
            if !kept.contains(&reference.name) {
                self.apply(&definition).await?;
            }
            self.wait(&reference, |object| established(object).then_some(())).await?;
        }
        Ok(())
    }

    /// Looks at the definitions that are there. Changes nothing.
    pub(crate) async fn found_definitions(&self) -> Result<Definitions, ServerError> {
        let mut all = Definitions::default();
        for definition in definitions() {
            let reference = ObjectRef::of(&definition);
            let Some(found) = self.find(&reference).await? else { continue };
            match standing(&definition, &found) {
                Standing::Ours => {}
                Standing::Kept => {
                    all.kept.insert(reference.name);
                }
                Standing::Unusable(reason) => all.unusable.push(reason),
            }
        }
        Ok(all)
    }
}

/// Tells whether the server serves the kind of a definition.
pub(crate) fn established(definition: &Value) -> bool {
    condition(definition, "Established").is_some_and(|condition| condition["status"] == "True")
}

/// Tells whether a definition that was found serves all versions of the one that is wanted.
pub(crate) fn serves(wanted: &Value, found: &Value) -> bool {
    served(wanted).is_subset(&served(found))
}

fn standing(wanted: &Value, found: &Value) -> Standing {
    let metadata = &found["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    if !metadata["deletionTimestamp"].is_null() {
        return Standing::Unusable(UnusableDefinition::BeingDeleted { name });
    }
    let by_us = metadata["labels"][MANAGED_BY.0] == MANAGED_BY.1;
    let is_newer = release(found) > release(wanted);
    if by_us && !is_newer && versions(found).is_subset(&versions(wanted)) {
        return Standing::Ours;
    }
    if !serves(wanted, found) {
        let list = |versions: BTreeSet<&str>| match versions.is_empty() {
            true => "nothing".to_owned(),
            false => versions.into_iter().collect::<Vec<_>>().join(", "),
        };
        let (wanted, served) = (list(served(wanted)), list(served(found)));
        return Standing::Unusable(UnusableDefinition::Version { name, wanted, served });
    }
    match condition(found, "Established").filter(|condition| condition["status"] == "False") {
        Some(refused) => {
            let names = condition(found, "NamesAccepted").filter(|condition| condition["status"] == "False");
            let reason = names.unwrap_or(refused)["message"].as_str().unwrap_or("it does not say why").to_owned();
            Standing::Unusable(UnusableDefinition::NotServed { name, reason })
        }
        None => Standing::Kept,
    }
}

/// Returns the numbers of the release that made a definition; none if it does not say.
fn release(definition: &Value) -> Vec<u64> {
    let text = definition["metadata"]["labels"][RELEASE].as_str().unwrap_or_default();
    text.split(['.', '-', '+']).map_while(|number| number.parse().ok()).collect()
}

/// Returns the names of all versions, and of those in which objects were stored once.
fn versions(definition: &Value) -> BTreeSet<&str> {
    let stored = definition["status"]["storedVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
    named(definition).filter_map(|version| version["name"].as_str()).chain(stored).collect()
}

fn served(definition: &Value) -> BTreeSet<&str> {
    named(definition)
        .filter(|version| version["served"] == true)
        .filter_map(|version| version["name"].as_str())
        .collect()
}

fn named(definition: &Value) -> impl Iterator<Item = &Value> {
    definition["spec"]["versions"].as_array().into_iter().flatten()
}

fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    definition["status"]["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of Endpoints with these versions, and whether they are served.
    fn found(by_us: bool, versions: &[(&str, bool)]) -> Value {
        let label = if by_us { MANAGED_BY.1 } else { "Helm" };
        let versions: Vec<Value> =
            versions.iter().map(|(name, served)| json!({"name": name, "served": served})).collect();
        json!({
            "metadata": {"name": "endpoints.submariner.io", "labels": {MANAGED_BY.0: label}},
            "spec": {"versions": versions},
            "status": {"conditions": [{"type": "Established", "status": "True"}]},
        })
    }

    fn judged(found: &Value) -> Standing {
        let all = definitions();
        let wanted = all.iter().find(|one| one["metadata"]["name"] == "endpoints.submariner.io").unwrap();
        standing(wanted, found)
    }

    fn refusal(found: &Value) -> String {
        match judged(found) {
            Standing::Unusable(reason) => reason.to_string(),
            other @ (Standing::Ours | Standing::Kept) => panic!("{other:?}"),
        }
    }

    #[test]
    fn definitions_are_marked_as_ours() {
        assert!(definitions().iter().all(|one| one["metadata"]["labels"][MANAGED_BY.0] == MANAGED_BY.1));
        assert_eq!(definitions().len(), 8);
    }

    #[test]
    fn a_definition_of_others_or_of_a_newer_release_stays_while_it_serves_what_is_written() {
        assert_eq!(judged(&found(true, &[("v1", true)])), Standing::Ours);
        assert_eq!(judged(&found(true, &[("v1", false)])), Standing::Ours, "what was changed by hand is repaired");
        for kept in [found(false, &[("v1", true)]), found(true, &[("v1", true), ("v2", true)])] {
            assert_eq!(judged(&kept), Standing::Kept, "{kept}");
        }
        for (release, standing) in [("0.0.9", Standing::Ours), ("99.0.0", Standing::Kept), ("99", Standing::Kept)] {
            let mut other = found(true, &[("v1", true)]);
            other["metadata"]["labels"][RELEASE] = json!(release);
            assert_eq!(judged(&other), standing, "{release}");
        }
        let mut stored = found(true, &[("v1", true)]);
        stored["status"]["storedVersions"] = json!(["v1", "v2"]);
        assert_eq!(judged(&stored), Standing::Kept);
    }

    #[test]
    fn one_that_no_longer_serves_what_is_written_is_named_whoever_made_it() {
        for by_us in [true, false] {
            let text = refusal(&found(by_us, &[("v1", false), ("v2", true)]));
            assert!(text.contains("endpoints.submariner.io does not serve v1 but v2: use the release"), "{text}");
        }
        assert!(refusal(&found(false, &[("v1", false)])).contains("does not serve v1 but nothing"));
    }

    #[test]
    fn one_that_goes_or_was_never_accepted_is_named() {
        let mut going = found(true, &[("v1", true)]);
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(refusal(&going).contains("is being deleted: wait"));
        let mut refused = found(false, &[("v1", true)]);
        refused["status"]["conditions"] = json!([
            {"type": "Established", "status": "False", "message": "not all names are accepted"},
            {"type": "NamesAccepted", "status": "False", "message": "\"Endpoint\" is already in use"},
        ]);
        assert!(refusal(&refused).contains("(\"Endpoint\" is already in use): correct it"));
    }
}
