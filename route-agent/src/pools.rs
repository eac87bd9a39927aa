//! Keeps the IPPools that tell Calico of the other clusters' subnets, where Calico is the network plugin (Submariner
//! chapter 7.6).
//!
//! A task of its own: routes do not wait for an API server. It lists the pools and writes what differs when what is wanted
//! changes, every few minutes, and after a failure ever less often.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use culvert_api::Resource;
use culvert_route_agent_core::{FoundPool, POOL_LABEL, PoolChanges, pool_changes};
use culvert_runtime::reconcile::{Backoff, Wake};
use culvert_runtime::task::Task;
use culvert_runtime::{ClusterWide, StoreError};
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

/// Calico's own kind; those of `crd.projectcalico.org` are its storage and not for others.
pub(crate) const IP_POOLS: Resource =
    Resource { api_version: "projectcalico.org/v3", kind: "IPPool", plural: "ippools", is_namespaced: false };

/// Between two looks when nothing is known to have changed.
const INTERVAL: Duration = Duration::from_secs(300);
/// After each look, however much changes: each lists all pools.
const REST: Duration = Duration::from_secs(1);

/// The pools that there are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Subnets by the name of their pool.
    pub(crate) pools: BTreeMap<String, IpNet>,
    /// Whether all records are known as they are now: else nothing is deleted.
    pub(crate) is_complete: bool,
}

/// The task that keeps the pools; it ends with it.
pub(crate) struct Pools {
    wanted: watch::Sender<Option<Wanted>>,
    obstacles: watch::Receiver<BTreeSet<String>>,
    _task: Task,
}

impl Pools {
    /// Starts with nothing to do; `wake` rings whenever the obstacles change.
    pub(crate) fn start(objects: ClusterWide, wake: Wake) -> Self {
        let (wanted, receiver) = watch::channel(None);
        let (sender, obstacles) = watch::channel(BTreeSet::new());
        let task = Task::spawn("the keeping of IPPools", wake.clone(), run(objects, receiver, sender, wake));
        Self { wanted, obstacles, _task: task }
    }

    /// Changes what is wanted; `None` if another node keeps the pools.
    pub(crate) fn want(&self, wanted: Option<Wanted>) {
        self.wanted.send_if_modified(|current| {
            let differs = *current != wanted;
            *current = wanted;
            differs
        });
    }

    /// Returns what is not as it should be, in words.
    pub(crate) fn obstacles(&self) -> BTreeSet<String> {
        self.obstacles.borrow().clone()
    }

    /// Resolves if the task ends by itself, which only a panic makes it do.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let wanted = self.wanted.clone();
        async move { wanted.closed().await }
    }
}

/// Deletes all pools of ours.
///
/// # Errors
///
/// The first pool that is not deleted, or the list that is not to be had; a server that knows no pools has none.
pub(crate) async fn remove_all(objects: &ClusterWide) -> Result<(), StoreError> {
    let found = objects.list().await?.unwrap_or_default();
    let changes = pool_changes(&BTreeMap::new(), &found_pools(&found), true);
    for name in &changes.delete {
        objects.delete(name).await?;
    }
    Ok(())
}

async fn run(
    objects: ClusterWide,
    mut wanted: watch::Receiver<Option<Wanted>>,
    told: watch::Sender<BTreeSet<String>>,
    wake: Wake,
) {
    let mut backoff = Backoff::default();
    loop {
        let now = wanted.borrow_and_update().clone();
        let (obstacles, pause) = match &now {
            Some(now) => {
                let look = look(&objects, now, || wanted.has_changed().unwrap_or(true)).await;
                if look.is_done {
                    backoff.succeeded();
                    (look.obstacles, INTERVAL)
                } else {
                    (look.obstacles, backoff.failed())
                }
            }
            None => (BTreeSet::new(), INTERVAL),
        };
        let is_news = told.send_if_modified(|current| {
            let differs = *current != obstacles;
            *current = obstacles;
            differs
        });
        if is_news {
            wake.wake();
        }
        sleep(REST).await;
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = sleep(pause) => {}
        }
    }
}

/// How a look went.
#[derive(Debug, Default)]
struct Look {
    /// Whether all is as it is wanted.
    is_done: bool,
    obstacles: BTreeSet<String>,
}

/// Lists the pools and writes what differs, until `is_outdated`: who is no longer the active gateway writes nothing.
async fn look(objects: &ClusterWide, wanted: &Wanted, is_outdated: impl Fn() -> bool) -> Look {
    let found = match objects.list().await {
        Ok(Some(found)) => found_pools(&found),
        Ok(None) => return Look { is_done: false, obstacles: BTreeSet::from([missing_api()]) },
        Err(error) => return Look { is_done: false, obstacles: BTreeSet::from([words(&error)]) },
    };
    let PoolChanges { delete, correct, create, foreign } = pool_changes(&wanted.pools, &found, wanted.is_complete);
    let writes = delete.into_iter().map(Write::Delete);
    let writes = writes.chain(correct.into_iter().map(Write::Correct));
    let writes = writes.chain(create.into_iter().map(|(name, subnet)| Write::Create(name, subnet)));
    let mut look = Look { is_done: foreign.is_empty(), obstacles: foreign.iter().map(ToString::to_string).collect() };
    let mut written = 0;
    for write in writes {
        if is_outdated() {
            look.is_done = false;
            break;
        }
        match write.apply(objects).await {
            Ok(()) => written += 1,
            // The gateway before this one was quicker: what it made is looked at next time.
            Err(StoreError::Exists { .. }) => look.is_done = false,
            Err(error) => {
                look.is_done = false;
                look.obstacles.insert(words(&error));
                if error.is_away() {
                    break;
                }
            }
        }
    }
    if written > 0 {
        tracing::info!(written, wanted = wanted.pools.len(), "Calico's IPPools are brought to the remote subnets");
    }
    look
}

/// One change of one pool.
enum Write {
    Delete(String),
    Correct(String),
    Create(String, IpNet),
}

impl Write {
    async fn apply(&self, objects: &ClusterWide) -> Result<(), StoreError> {
        match self {
            Self::Delete(name) => objects.delete(name).await.map(drop),
            Self::Correct(name) => objects.merge(name, &json!({"spec": inert()})).await,
            Self::Create(name, subnet) => objects.create(&pool(name, subnet)).await,
        }
    }
}

fn missing_api() -> String {
    let Resource { api_version, plural, .. } = IP_POOLS;
    format!(
        "the API server has no {plural} of {api_version}, so Calico does not know the other clusters' subnets and may \
         masquerade or drop their packets: install Calico's API server, or Calico with its CRDs of {api_version}"
    )
}

fn words(error: &StoreError) -> String {
    format!("Calico's IPPools are not as they should be: {error}")
}

/// Returns the fields that keep a pool from being used as one.
fn inert() -> Value {
    json!({"natOutgoing": false, "disabled": true, "disableBGPExport": true})
}

fn pool(name: &str, subnet: &IpNet) -> Value {
    let mut spec = inert();
    spec["cidr"] = json!(subnet);
    json!({
        "apiVersion": IP_POOLS.api_version,
        "kind": IP_POOLS.kind,
        "metadata": {"name": name, "labels": {POOL_LABEL: "true"}},
        "spec": spec,
    })
}

fn found_pools(objects: &[Value]) -> Vec<FoundPool> {
    objects.iter().map(found_pool).collect()
}

/// Reads a pool. Calico leaves out what is false.
fn found_pool(object: &Value) -> FoundPool {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let is = |field: &str| spec[field].as_bool().unwrap_or(false);
    FoundPool {
        name: metadata["name"].as_str().unwrap_or_default().to_owned(),
        is_labelled: metadata["labels"][POOL_LABEL] == "true",
        subnet: spec["cidr"].as_str().and_then(|text| text.parse().ok()),
        is_inert: !is("natOutgoing") && is("disabled") && is("disableBGPExport"),
    }
}

#[cfg(test)]
mod tests;
