//! What cannot be joined: a kubeconfig, a broker file or a definition of records that is not right is refused in words,
//! and neither cluster is changed.

#![allow(clippy::unwrap_used)]

mod signing;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use culvert_netns_tests::Binaries;
use culvert_netns_tests::kubernetes::{
    BROKER_NAMESPACE, Cluster, Installer, Lab, NAMESPACE, Plan, ProxyMode, join_line, state,
};
use culvert_setup::{BrokerInfo, Validity, read};
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::signing::aged;

const JOIN: &str = "join broker-info.subm --clusterid west --clustercidr 10.2.0.0/16";
const DEFINITION: &str = "endpoints.submariner.io";

/// Two clusters, the broker's file, and a folder for files that are not right.
struct Stage<'a> {
    east: &'a Cluster,
    west: &'a Cluster,
    info: BrokerInfo,
    folder: TempDir,
}

impl Stage<'_> {
    fn culvert(&self, kubeconfig: &Path, line: &str) -> Output {
        let mut command = Command::new(Binaries::find().unwrap().tool());
        command.args(line.split_whitespace()).arg("--kubeconfig").arg(kubeconfig);
        command.current_dir(self.folder.path()).output().unwrap()
    }

    /// Has a command fail with all of these words, and change nothing.
    fn assert_refused(&self, kubeconfig: &Path, line: &str, expected: &[&str]) {
        let before = self.listing();
        let output = self.culvert(kubeconfig, line);
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "culvert {line}: {words}");
        let reason = words.lines().last().unwrap_or_default();
        println!("culvert {line}: {reason}");
        assert!(reason.starts_with("error: "), "culvert {line}: {words}");
        assert!(expected.iter().all(|words| reason.contains(words)), "culvert {line}: {expected:?}: {words}");
        let after = self.listing();
        let changed: Vec<&String> = before.symmetric_difference(&after).collect();
        assert!(changed.is_empty(), "culvert {line}: {words}\nchanged {changed:#?}");
    }

    /// Returns all that a join or a broker makes or changes, in both clusters.
    fn listing(&self) -> BTreeSet<String> {
        let objects = |cluster: &Cluster, line: &str| -> Vec<String> {
            let items = cluster.items(line).unwrap();
            items.iter().map(|object| format!("{} {}", cluster.name(), form(object))).collect()
        };
        let mut listing = BTreeSet::new();
        for cluster in [self.east, self.west] {
            let kinds = "customresourcedefinitions,namespaces,clusterroles,clusterrolebindings,nodes,\
                         validatingadmissionpolicies,validatingadmissionpolicybindings";
            listing.extend(objects(cluster, &format!("get {kinds}")));
            listing.extend(objects(cluster, "get daemonsets,serviceaccounts,roles,rolebindings --all-namespaces"));
            for namespace in [BROKER_NAMESPACE, "submariner-k8s-broker-admin", NAMESPACE] {
                listing.extend(objects(cluster, &format!("get secrets,configmaps --namespace {namespace}")));
            }
        }
        listing
    }

    /// Writes west's kubeconfig with one thing changed.
    fn kubeconfig(&self, name: &str, pointer: &str, value: &str) -> PathBuf {
        let text = fs::read_to_string(self.west.kubeconfig()).unwrap();
        let mut kubeconfig: Value = serde_yaml_ng::from_str(&text).unwrap();
        *kubeconfig.pointer_mut(pointer).unwrap() = value.into();
        let path = self.folder.path().join(name);
        fs::write(&path, kubeconfig.to_string()).unwrap();
        path
    }

    fn broker_file(&self, change: impl FnOnce(&mut BrokerInfo)) {
        let mut info = self.info.clone();
        change(&mut info);
        fs::write(self.folder.path().join("broker-info.subm"), info.to_text()).unwrap();
    }

    /// Makes an account in west, bound to these rules, and returns its kubeconfig.
    fn account(&self, name: &str, rules: &Value) -> PathBuf {
        self.west.kubectl(&format!("create serviceaccount {name}")).unwrap();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": name},
                "rules": rules,
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
                "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": name}],
            },
        ]});
        self.west.apply(&list.to_string()).unwrap();
        let token = self.west.kubectl(&format!("create token {name}")).unwrap();
        self.kubeconfig(name, "/users/0/user/token", token.trim())
    }
}

/// Returns an object without what the server's controllers write into it.
fn form(object: &Value) -> String {
    let mut metadata = object["metadata"].clone();
    if let Some(labels) = metadata["labels"].as_object_mut() {
        // Written when a token is shown for the first time on a day.
        labels.remove("kubernetes.io/legacy-token-last-used");
    }
    let spec = if object["kind"] == "Node" { &Value::Null } else { &object["spec"] };
    json!([
        object["kind"],
        metadata["namespace"],
        metadata["name"],
        metadata["labels"],
        metadata["annotations"],
        spec,
        object["rules"],
        object["data"]
    ])
    .to_string()
}

/// Returns the definition of Endpoints with these versions, and whether each is served; the last one is stored.
fn definition(manager: &str, versions: &[(&str, bool)]) -> Value {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds/endpoints.submariner.io.yaml");
    let mut definition: Value = serde_yaml_ng::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let form = definition["spec"]["versions"][0].clone();
    let (stored, _) = versions.last().unwrap();
    let version = |(name, served): &(&str, bool)| {
        let mut version = form.clone();
        version["name"] = json!(name);
        version["served"] = json!(served);
        version["storage"] = json!(name == stored);
        version
    };
    definition["spec"]["versions"] = versions.iter().map(version).collect();
    definition["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": manager});
    definition
}

fn kubeconfigs_that_do_not_do(stage: &Stage<'_>) {
    let rights =
        ["patch customresourcedefinitions.apiextensions.k8s.io", "ask for these rights, or use another context"];
    let nobody = stage.account("nobody", &json!([]));
    stage.assert_refused(&nobody, JOIN, &[rights[0], rights[1], "secrets in namespace submariner-operator"]);
    stage.assert_refused(
        &nobody,
        "deploy-broker",
        &[rights[0], rights[1], "secrets in namespace submariner-k8s-broker"],
    );
    // Who may make everything, roles too, but not give what these give.
    let maker = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["create", "get", "list", "patch"]}]);
    let maker = stage.account("maker", &maker);
    let given = "delete/update/watch endpoints.submariner.io in namespace submariner-operator";
    stage.assert_refused(&maker, JOIN, &["you may not", given, rights[1]]);
    let given = "delete/update/watch endpoints.submariner.io in namespace submariner-k8s-broker";
    stage.assert_refused(&maker, "deploy-broker", &["does not allow you to", given, rights[1]]);

    let admin = stage.west.kubeconfig();
    stage.assert_refused(&admin, &format!("{JOIN} --context nowhere"), &["nowhere", "--context"]);
    let stranger = stage.kubeconfig("stranger", "/users/0/user/token", "unknown");
    stage.assert_refused(&stranger, JOIN, &["did not accept the credentials", "get a new kubeconfig"]);
    let text = fs::read_to_string(stage.east.kubeconfig()).unwrap();
    let east: Value = serde_yaml_ng::from_str(&text).unwrap();
    let authority = "/clusters/0/cluster/certificate-authority-data";
    let foreign = stage.kubeconfig("foreign", authority, east.pointer(authority).unwrap().as_str().unwrap());
    stage.assert_refused(&foreign, JOIN, &["certificate that is not trusted", "get a new kubeconfig"]);
    let damaged = stage.kubeconfig("damaged", authority, "bm8gY2VydGlmaWNhdGU=");
    stage.assert_refused(&damaged, JOIN, &["kubeconfig"]);
}

fn broker_files_that_do_not_do(stage: &Stage<'_>) {
    let admin = stage.west.kubeconfig();
    let anew = "`recover-broker-info`";
    let key = |cluster: &Cluster, file: &str| fs::read(cluster.kubeconfig().with_file_name("pki").join(file)).unwrap();
    let text = stage.info.to_text();
    fs::write(stage.folder.path().join("broker-info.subm"), &text[..text.len() / 2]).unwrap();
    stage.assert_refused(&admin, JOIN, &["broker-info.subm is cut short: copy it again", anew]);
    stage.broker_file(|info| info.ca = Some(key(stage.west, "ca.crt")));
    stage.assert_refused(&admin, JOIN, &["certificate that is not trusted", anew]);
    stage.broker_file(|info| info.ca = Some(b"no certificate".to_vec()));
    stage.assert_refused(&admin, JOIN, &[&stage.info.url, anew]);
    let now = Timestamp::now();
    let past = Validity { issued: now - 2.hours(), expires: now - 1.hours() };
    let signer = stage.east.kubeconfig().with_file_name("pki").join("service-account.key");
    stage.broker_file(|info| info.token = aged(&info.token, &past, &signer));
    stage.assert_refused(&admin, JOIN, &[&stage.info.url, "did not accept the credentials", anew]);
    stage.broker_file(|info| info.namespace = "elsewhere".to_owned());
    stage.assert_refused(&admin, JOIN, &["the broker file's account may not", "in namespace elsewhere", anew]);
    stage.broker_file(|info| info.url = info.url.replace(":6443", ":6"));
    stage.assert_refused(&admin, JOIN, &[":6 cannot be reached", "check the address"]);
    stage.broker_file(|_| {});
}

fn definitions_that_do_not_do(stage: &Stage<'_>) {
    let (admin, west) = (stage.west.kubeconfig(), stage.west);
    for manager in ["Helm", "culvert"] {
        west.apply(&definition(manager, &[("v1", false), ("v2", true)]).to_string()).unwrap();
        west.kubectl(&format!("wait crd/{DEFINITION} --for=condition=Established --timeout=60s")).unwrap();
        for line in [JOIN, "deploy-broker"] {
            let words = format!("CustomResourceDefinition {DEFINITION} does not serve v1 but v2");
            stage.assert_refused(&admin, line, &[&words, "use the release that made it"]);
        }
        west.kubectl(&format!("delete crd {DEFINITION}")).unwrap();
    }
    let mut held = definition("culvert", &[("v1", true)]);
    held["metadata"]["finalizers"] = json!(["culvert.io/test"]);
    west.apply(&held.to_string()).unwrap();
    west.kubectl(&format!("wait crd/{DEFINITION} --for=condition=Established --timeout=60s")).unwrap();
    west.kubectl(&format!("delete crd {DEFINITION} --wait=false")).unwrap();
    for line in [JOIN, "deploy-broker"] {
        stage.assert_refused(&admin, line, &[&format!("{DEFINITION} is being deleted: wait until it is gone")]);
    }
    west.kubectl(&format!(r#"patch crd {DEFINITION} --type=merge --patch={{"metadata":{{"finalizers":null}}}}"#))
        .unwrap();
    west.kubectl(&format!("wait crd/{DEFINITION} --for=delete --timeout=60s")).unwrap();
}

/// A definition of a newer release, with objects stored in its version, stays; records are kept by it all the same.
fn a_newer_definition_stays(stage: &Stage<'_>, lab: &Lab, installer: &Installer) {
    let west = stage.west;
    west.apply(&definition("culvert", &[("v1", true), ("v2", true)]).to_string()).unwrap();
    west.kubectl(&format!("wait crd/{DEFINITION} --for=condition=Established --timeout=60s")).unwrap();
    let spec = || west.json(&format!("get crd {DEFINITION}")).unwrap()["spec"].clone();
    let before = spec();

    installer.run(stage.east, &join_line(stage.east)).unwrap_or_else(|error| panic!("{error:#}\n{}", state(lab)));
    let report = installer.run(west, &format!("{} --output json", join_line(west)));
    let report = report.unwrap_or_else(|error| panic!("{error:#}\n{}", state(lab)));

    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["connections"], json!([{"cluster": "east", "status": "connected"}]), "{}", state(lab));
    assert_eq!(spec(), before);
    let output = stage.culvert(&west.kubeconfig(), "deploy-broker --namespace other-broker");
    let words = String::from_utf8_lossy(&output.stderr);
    let warning = format!("warning: CustomResourceDefinitions {DEFINITION} were not made by this release of culvert");
    assert!(output.status.success() && words.contains(&warning), "{words}");
    assert_eq!(spec(), before);
}

#[test]
fn what_cannot_be_joined_is_named_and_nothing_is_changed() {
    Binaries::find().unwrap();
    let lab = Lab::up(&Plan::new("refusals", &["east", "west"], 1, ProxyMode::Iptables).unwrap()).unwrap();
    let (east, west) = (lab.cluster("east"), lab.cluster("west"));
    let installer = Installer::new(&lab).unwrap();
    installer.run(east, "deploy-broker").unwrap();
    let info = read(&installer.directory().join("broker-info.subm")).unwrap();
    let stage = Stage { east, west, info, folder: tempfile::tempdir().unwrap() };
    stage.broker_file(|_| {});

    kubeconfigs_that_do_not_do(&stage);
    broker_files_that_do_not_do(&stage);
    definitions_that_do_not_do(&stage);
    a_newer_definition_stays(&stage, &lab, &installer);
}
