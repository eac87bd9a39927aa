//! Turns records into objects of an API server and back, and decides what an apply would change.
//!
//! Applied are name, labels, annotations and content; all other metadata are the server's. Labels and annotations that
//! somebody else has put there already are left to them (server-side apply would make them ours too, and nobody could
//! take them away again).

use ::kube::api::DynamicObject;
use culvert_api::{ObjectMeta, Record};
use serde_json::{Map, Value, json};

use crate::records::error::{Place, Problem, StoreError};

/// An object for comparison with what is to be applied.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) value: Value,
    /// What this manager has applied, in the form of `managedFields` (`fieldsV1`).
    pub(super) owned: Vec<Value>,
}

impl Current {
    pub(super) fn of(mut object: DynamicObject, manager: &str) -> Self {
        let owned = take_owned(&mut object, manager);
        Self { value: serde_json::to_value(object).unwrap_or_default(), owned }
    }

    pub(super) fn uid(&self) -> Option<&str> {
        self.value["metadata"]["uid"].as_str()
    }
}

/// Takes the managed fields out of an object and returns those that `manager` has applied.
pub(super) fn take_owned(object: &mut DynamicObject, manager: &str) -> Vec<Value> {
    let all = object.metadata.managed_fields.take().unwrap_or_default();
    let ours = all
        .into_iter()
        .filter(|entry| entry.manager.as_deref() == Some(manager) && entry.operation.as_deref() == Some("Apply"));
    ours.filter_map(|entry| entry.fields_v1.map(|fields| fields.0)).collect()
}

/// Reads an object as a record.
pub(super) fn parse<R: Record>(mut object: DynamicObject, namespace: &str) -> Result<R, Problem> {
    let name = object.metadata.name.clone().unwrap_or_default();
    object.metadata.managed_fields = None;
    let problem = |field: Option<String>, message: String| Problem {
        place: place::<R>(namespace, &name),
        line: None,
        field,
        message,
    };
    let mut value = serde_json::to_value(object).map_err(|error| problem(None, error.to_string()))?;
    // Items of a list do not all say what they are.
    if let Value::Object(fields) = &mut value {
        fields.entry("apiVersion").or_insert_with(|| R::API_VERSION.into());
        fields.entry("kind").or_insert_with(|| R::KIND.into());
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = Some(error.path().to_string()).filter(|field| field != ".");
        problem(field, error.into_inner().to_string())
    })
}

fn place<R: Record>(namespace: &str, name: &str) -> Place {
    let path = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
    Place::Object { kind: R::KIND, path: path.into() }
}

/// Returns the object that a POST takes.
pub(super) fn to_create<R: Record>(record: &R, namespace: &str) -> Value {
    with_metadata(record, own_metadata(record, namespace))
}

/// Returns the object that a PUT takes, which rests on the resource version that was read.
pub(super) fn to_update<R: Record>(record: &R, namespace: &str) -> Value {
    let metadata = ObjectMeta {
        resource_version: record.metadata().resource_version.clone(),
        finalizers: record.metadata().finalizers.clone(),
        owner_references: record.metadata().owner_references.clone(),
        ..own_metadata(record, namespace)
    };
    with_metadata(record, metadata)
}

/// Returns the fields that are to be applied.
pub(super) fn to_apply<R: Record>(record: &R, namespace: &str) -> Value {
    to_create(record, namespace)
}

fn own_metadata<R: Record>(record: &R, namespace: &str) -> ObjectMeta {
    ObjectMeta {
        name: record.metadata().name.clone(),
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        labels: record.metadata().labels.clone(),
        annotations: record.metadata().annotations.clone(),
        ..ObjectMeta::default()
    }
}

fn with_metadata<R: Record>(record: &R, metadata: ObjectMeta) -> Value {
    let mut record = record.clone();
    *record.metadata_mut() = metadata;
    let mut value = serde_json::to_value(&record).unwrap_or_default();
    strip_nulls(&mut value);
    value
}

/// A server takes an absent field where it would refuse null.
fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Returns a record's JSON in the client's form.
pub(super) fn dynamic<R: Record>(value: &Value, namespace: &str) -> Result<DynamicObject, StoreError> {
    let place = place::<R>(namespace, value["metadata"]["name"].as_str().unwrap_or_default());
    serde_json::from_value(value.clone()).map_err(|error| StoreError::Unreadable {
        problem: Problem { place, line: None, field: None, message: error.to_string() },
    })
}

/// Takes those labels and annotations out of what is to be applied that stand there already and are not ours.
pub(super) fn leave_to_others(wanted: &mut Value, current: &Current) {
    for kind in ["labels", "annotations"] {
        let there = &current.value["metadata"][kind];
        let Some(Value::Object(fields)) = wanted["metadata"].get_mut(kind) else { continue };
        fields.retain(|key, value| {
            let is_ours = current
                .owned
                .iter()
                .any(|owned| !owned["f:metadata"][format!("f:{kind}").as_str()][format!("f:{key}").as_str()].is_null());
            is_ours || there.get(key) != Some(value)
        });
    }
}

/// Tells whether an apply would change anything: a field that stands otherwise, or one of ours that is no longer wanted.
/// What has no status says nothing of it.
pub(super) fn would_change(wanted: &Value, current: &Current) -> bool {
    let is_covered = |owned: &Value| match owned {
        Value::Object(owned) => owned.iter().all(|(key, below)| match key.as_str() {
            "f:status" if wanted.get("status").is_none() => true,
            _ => covers_field(wanted, key, below),
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => true,
    };
    !stands(wanted, Some(&current.value)) || !current.owned.iter().all(is_covered)
}

/// As [`would_change`], of the status alone.
pub(super) fn status_would_change(wanted: &Value, current: &Current) -> bool {
    let status = &wanted["status"];
    let is_other = !status.is_null() && !stands(status, current.value.get("status"));
    is_other || !current.owned.iter().all(|owned| covers(status, &owned["f:status"]))
}

/// Tells whether all fields of `wanted` are in `found` with the same values. Lists are compared as a whole.
fn stands(wanted: &Value, found: Option<&Value>) -> bool {
    match wanted {
        Value::Object(fields) => {
            let none = Map::new();
            let found = match found {
                Some(Value::Object(found)) => found,
                Some(Value::Null) | None => &none,
                Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => return false,
            };
            fields.iter().all(|(key, value)| stands(value, found.get(key)))
        }
        Value::Null => found.is_none_or(Value::is_null),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => found == Some(wanted),
    }
}

/// Tells whether `wanted` has all fields that were applied before, by their `fieldsV1`.
fn covers(wanted: &Value, owned: &Value) -> bool {
    let Value::Object(owned) = owned else { return true };
    owned.iter().all(|(key, below)| covers_field(wanted, key, below))
}

fn covers_field(wanted: &Value, key: &str, below: &Value) -> bool {
    match key.strip_prefix("f:") {
        Some(field) => wanted.get(field).is_some_and(|value| covers(value, below)),
        // The field itself (`.`), and items of lists that are merged: no record of ours has such.
        None => true,
    }
}

/// Tells whether the server has taken the status.
pub(super) fn status_stands(wanted: &Value, written: &DynamicObject) -> bool {
    wanted.get("status").is_none_or(|status| stands(status, written.data.get("status")))
}

/// Returns the part of an object that its status endpoint takes; with a uid, of no other object of that name.
pub(super) fn status_only(wanted: &Value, uid: Option<&str>) -> Value {
    let metadata =
        json!({"name": wanted["metadata"]["name"], "namespace": wanted["metadata"]["namespace"], "uid": uid});
    let mut only = json!({
        "apiVersion": wanted["apiVersion"],
        "kind": wanted["kind"],
        "metadata": metadata,
        "status": wanted["status"],
    });
    strip_nulls(&mut only);
    only
}

#[cfg(test)]
mod tests;
