//! Decides how far a DaemonSet has come, and what its pods wait for, from its status and theirs.

use serde_json::Value;

/// How far a DaemonSet has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Pods of the present form that are ready.
    pub ready: u64,
    /// Nodes that are to have one.
    pub wanted: u64,
    /// What keeps pods from being ready, a line each.
    pub obstacles: Vec<String>,
    /// Pods, of whatever form, that are ready, but not for long enough to count as available.
    settling: u64,
    /// Whether the controller has seen the DaemonSet as it is now.
    seen: bool,
}

impl Rollout {
    /// Reads a DaemonSet and its pods.
    pub fn of(daemon_set: &Value, pods: &[Value]) -> Self {
        let status = &daemon_set["status"];
        let number = |key: &str| status[key].as_u64().unwrap_or_default();
        let generation = daemon_set["metadata"]["generation"].as_u64();
        // What a pod that is ending waits for is of no interest.
        let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        Self {
            ready: number("numberReady").min(number("updatedNumberScheduled")),
            wanted: number("desiredNumberScheduled"),
            obstacles: pods.iter().filter(stays).filter_map(obstacle).collect(),
            settling: number("numberReady").saturating_sub(number("numberAvailable")),
            seen: generation.is_some() && status["observedGeneration"].as_u64() >= generation,
        }
    }

    /// Tells whether every node that is to have a pod has one that is ready.
    pub fn is_complete(&self) -> bool {
        self.seen && self.ready >= self.wanted
    }

    /// Tells whether a change would end several pods at once: the controller replaces one after the other only what
    /// counts as available, and all else at once.
    pub fn is_settling(&self) -> bool {
        self.wanted > 1 && self.settling > 0
    }
}

/// Returns what a pod waits for, in words; `None` if it is ready or has just begun.
fn obstacle(pod: &Value) -> Option<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let status = &pod["status"];
    let of = |kind: &str| status[kind].as_array().cloned().unwrap_or_default();
    let containers: Vec<Value> = [of("initContainerStatuses"), of("containerStatuses")].concat();
    let words = containers.iter().find_map(words).or_else(|| {
        let conditions = of("conditions");
        let unscheduled = conditions.iter().find(|one| one["type"] == "PodScheduled" && one["status"] == "False")?;
        unscheduled["message"].as_str().map(str::to_owned)
    })?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("no node yet");
    Some(format!("pod {name} on {node}: {words}"))
}

fn words(container: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(|text| text.trim().to_owned());
    let waiting = &container["state"]["waiting"];
    let reason = text(&waiting["reason"]).filter(|reason| reason != "ContainerCreating" && reason != "PodInitializing");
    // What it said last tells more than that it is waited before it is started again.
    let ended = [&container["state"]["terminated"], &container["lastState"]["terminated"]];
    let last = ended.into_iter().filter(|ended| ended["exitCode"] != 0).find_map(|ended| text(&ended["message"]));
    let running = container["ready"] == true || container["state"]["running"].is_object();
    match (reason, last, text(&waiting["message"])) {
        (Some(_), Some(last), _) => Some(last),
        (Some(reason), None, Some(message)) => Some(format!("{reason}: {message}")),
        (Some(reason), None, None) => Some(reason),
        (None, Some(last), _) if !running => Some(last),
        (None, _, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rollout(generation: u64, observed: u64, numbers: [u64; 3]) -> Rollout {
        let [wanted, updated, ready] = numbers;
        let set = json!({
            "metadata": {"generation": generation},
            "status": {
                "observedGeneration": observed,
                "desiredNumberScheduled": wanted,
                "updatedNumberScheduled": updated,
                "numberReady": ready,
            },
        });
        Rollout::of(&set, &[])
    }

    #[test]
    fn a_rollout_is_complete_when_all_pods_are_new_and_ready() {
        assert!(!rollout(1, 0, [0, 0, 0]).is_complete());
        assert!(!rollout(2, 1, [2, 2, 2]).is_complete());
        assert!(!rollout(2, 2, [2, 1, 2]).is_complete());
        assert!(!rollout(2, 2, [2, 2, 1]).is_complete());
        assert!(rollout(2, 2, [2, 2, 2]).is_complete());
        assert!(!Rollout::of(&json!({}), &[]).is_complete());
    }

    #[test]
    fn several_pods_settle_until_all_that_are_ready_are_available() {
        let settling = |wanted: u64, ready: u64, available: u64| {
            let status = json!({"desiredNumberScheduled": wanted, "numberReady": ready, "numberAvailable": available});
            Rollout::of(&json!({"status": status}), &[]).is_settling()
        };
        assert!(settling(2, 2, 1) && settling(2, 1, 0));
        assert!(!settling(2, 2, 2) && !settling(2, 1, 1) && !settling(1, 1, 0));
    }

    #[test]
    fn what_pods_wait_for_is_said_with_their_last_words() {
        let pod = |status: Value| json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": status});
        let container = |state: Value, last: Value| {
            pod(json!({"containerStatuses": [{"ready": false, "state": state, "lastState": last}]}))
        };
        let none = json!({});
        let pods = [
            container(json!({"waiting": {"reason": "ContainerCreating"}}), none.clone()),
            container(json!({"waiting": {"reason": "ErrImagePull", "message": "no such host"}}), none.clone()),
            container(
                json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}),
                json!({"terminated": {"exitCode": 1, "message": "no token\n"}}),
            ),
            container(json!({"running": {}}), json!({"terminated": {"exitCode": 1, "message": "earlier"}})),
            pod(json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no memory"}]})),
            json!({
                "metadata": {"name": "q", "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "status": {"containerStatuses": [{
                    "ready": false,
                    "state": {"terminated": {"exitCode": 0}},
                    "lastState": {"terminated": {"exitCode": 137, "message": "killed before"}},
                }]},
            }),
        ];
        let set = json!({});
        assert_eq!(
            Rollout::of(&set, &pods).obstacles,
            ["pod p on n: ErrImagePull: no such host", "pod p on n: no token", "pod p on n: no memory"]
        );
    }
}
