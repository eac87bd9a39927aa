//! The ConfigMap as it stands at the broker, letter by letter as Submariner's tools write it (chapter 8.1).

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Value, json};

use super::{Allocation, Globalnet, GlobalnetError, Resting};

/// The ConfigMap's name.
pub(crate) const NAME: &str = "submariner-globalnet-info";

const ENABLED: &str = "globalnetEnabled";
pub(super) const RANGE: &str = "globalnetCidrRange";
const CLUSTER_SIZE: &str = "globalnetClusterSize";
const CLUSTERS: &str = "clusterinfo";
/// Annotation with what was given back.
const RESTING: &str = "culvert.io/globalnet-resting";

/// Label that Submariner's tools put on the ConfigMap.
const COMPONENT: (&str, &str) = ("component", "submariner-globalnet");

/// An entry of `clusterinfo`.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    cluster_id: String,
    // Go writes `null` for none.
    global_cidr: Option<Vec<String>>,
}

/// An entry of the annotation.
#[derive(Debug, Serialize, Deserialize)]
struct RestingEntry {
    #[serde(flatten)]
    entry: Entry,
    given_back: Timestamp,
}

impl Globalnet {
    /// Reads what a ConfigMap says; one that is not there says that there is no Globalnet.
    ///
    /// # Errors
    ///
    /// [`GlobalnetError::Unreadable`] names the key.
    pub(crate) fn of(config_map: Option<&Value>) -> Result<Self, GlobalnetError> {
        let Some(map) = config_map else { return Ok(Self::default()) };
        let text = |key: &str| map["data"][key].as_str().map(str::trim).unwrap_or_default();
        Ok(Self {
            is_enabled: text(ENABLED).eq_ignore_ascii_case("true"),
            range: range(text(RANGE))?,
            cluster_size: cluster_size(text(CLUSTER_SIZE))?,
            allocations: allocations(text(CLUSTERS))?,
            resting: resting(map["metadata"]["annotations"][RESTING].as_str().unwrap_or_default())?,
        })
    }

    /// Returns the ConfigMap that says this: the one that was `found`, with what others keep there, or a new one.
    pub(crate) fn config_map(&self, namespace: &str, found: Option<&Value>) -> Value {
        let mut map = found.cloned().unwrap_or_else(
            || json!({"metadata": {"name": NAME, "namespace": namespace, "labels": {COMPONENT.0: COMPONENT.1}}}),
        );
        map["apiVersion"] = json!("v1");
        map["kind"] = json!("ConfigMap");
        map["data"][ENABLED] = json!(self.is_enabled.to_string());
        map["data"][CLUSTERS] = json!(self.clusters());
        if let Some(range) = self.range {
            // A JSON string, quotes and all.
            map["data"][RANGE] = json!(json!(range.to_string()).to_string());
        }
        if let Some(size) = self.cluster_size {
            map["data"][CLUSTER_SIZE] = json!(size.to_string());
        }
        match self.resting() {
            Some(text) => map["metadata"]["annotations"][RESTING] = json!(text),
            None => {
                if let Some(annotations) = map.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
                    annotations.remove(RESTING);
                }
            }
        }
        map
    }

    /// Returns the entries as Go's `MarshalIndent` with tabs writes them.
    fn clusters(&self) -> String {
        let entries: Vec<Entry> = self.allocations.iter().map(|one| entry(&one.cluster, &one.cidrs)).collect();
        let mut text = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t"));
        // Neither a map with strange keys nor a writer that fails.
        let written = entries.serialize(&mut serializer);
        debug_assert!(written.is_ok());
        String::from_utf8_lossy(&text).into_owned()
    }

    fn resting(&self) -> Option<String> {
        let entry = |one: &Resting| RestingEntry { entry: entry(&one.cluster, &one.cidrs), given_back: one.since };
        let entries: Vec<RestingEntry> = self.resting.iter().map(entry).collect();
        (!entries.is_empty()).then(|| json!(entries).to_string())
    }
}

fn entry(cluster: &str, cidrs: &[IpNet]) -> Entry {
    Entry { cluster_id: cluster.to_owned(), global_cidr: Some(cidrs.iter().map(ToString::to_string).collect()) }
}

fn unreadable(key: &'static str) -> impl Fn(String) -> GlobalnetError {
    move |reason| GlobalnetError::Unreadable { key, reason }
}

fn range(text: &str) -> Result<Option<IpNet>, GlobalnetError> {
    // Hands that do not know leave the quotes out.
    let plain = text.trim_matches('"');
    if plain.is_empty() {
        return Ok(None);
    }
    let range = plain.parse::<IpNet>().map_err(|_| unreadable(RANGE)(format!("{plain:?} is no CIDR")))?;
    Ok(Some(range.trunc()))
}

fn cluster_size(text: &str) -> Result<Option<u64>, GlobalnetError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| unreadable(CLUSTER_SIZE)(format!("{text:?} is no number")))
}

fn allocations(text: &str) -> Result<Vec<Allocation>, GlobalnetError> {
    let entries: Vec<Entry> = parsed(text).map_err(unreadable(CLUSTERS))?;
    let allocation = |entry: Entry| {
        let cidrs = cidrs(&entry)?;
        Ok(Allocation { cluster: entry.cluster_id, cidrs })
    };
    entries.into_iter().map(allocation).collect::<Result<_, _>>().map_err(unreadable(CLUSTERS))
}

fn resting(text: &str) -> Result<Vec<Resting>, GlobalnetError> {
    let entries: Vec<RestingEntry> = parsed(text).map_err(unreadable(RESTING))?;
    let resting = |RestingEntry { entry, given_back }| {
        let cidrs = cidrs(&entry)?;
        Ok(Resting { cluster: entry.cluster_id, cidrs, since: given_back })
    };
    entries.into_iter().map(resting).collect::<Result<_, _>>().map_err(unreadable(RESTING))
}

fn parsed<T: for<'de> Deserialize<'de>>(text: &str) -> Result<Vec<T>, String> {
    match text {
        "" | "null" => Ok(Vec::new()),
        text => serde_json::from_str(text).map_err(|error| error.to_string()),
    }
}

fn cidrs(entry: &Entry) -> Result<Vec<IpNet>, String> {
    let parse = |text: &String| match text.parse::<IpNet>() {
        Ok(cidr) => Ok(cidr.trunc()),
        Err(_) => Err(format!("cluster {} has {text:?}, which is no CIDR", entry.cluster_id)),
    };
    entry.global_cidr.iter().flatten().map(parse).collect()
}
