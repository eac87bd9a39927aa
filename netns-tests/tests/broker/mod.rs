//! What the tests of brokers share: a broker made by `culvert deploy-broker`, callers of its API server, and a table of
//! what they tried.

pub(crate) mod globalnet;
pub(crate) mod life;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use culvert_api::ClusterSpec;
use culvert_netns_tests::Binaries;
use culvert_setup::{
    BrokerCredentials, BrokerInfo, JoinError, JoinRequest, Member, Server, join_rights, prepare_member, read,
};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The CIDRs of services and pods.
pub(crate) const EAST: [&str; 2] = ["100.1.0.0/16", "10.1.0.0/16"];
pub(crate) const WEST: [&str; 2] = ["100.2.0.0/16", "10.2.0.0/16"];

/// A broker, and the directory with its file.
pub(crate) struct Broker {
    pub(crate) directory: TempDir,
    pub(crate) info: BrokerInfo,
}

impl Broker {
    /// Runs `culvert deploy-broker` in a new directory.
    pub(crate) fn deploy(kubeconfig: &Path, namespace: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let output = culvert(directory.path(), kubeconfig, &["deploy-broker", "--namespace", namespace]);
        assert!(output.status.success(), "{}", stderr(&output));
        let info = read(&directory.path().join("broker-info.subm")).unwrap();
        assert_eq!(info.namespace, namespace);
        Self { directory, info }
    }

    /// Asks to join as the account of the broker file does.
    pub(crate) async fn join(&self, id: &str, identity: &str, cidrs: &[&str]) -> Result<BrokerCredentials, JoinError> {
        let request = JoinRequest {
            member: Member { broker: self.info.namespace.clone(), cluster: id.parse().unwrap() },
            identity: identity.to_owned(),
            known: false,
            claims: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        };
        let server = Server::of_broker(&self.info).await.unwrap();
        let rights = join_rights(&server, &request.member).await?;
        prepare_member(&server, rights, &request, self.info.ca.as_deref()).await
    }

    /// Joins, and returns the member as a caller.
    pub(crate) async fn member(&self, id: &str, cidrs: &[&str]) -> Caller {
        let credentials = self.join(id, &format!("uid-of-{id}"), cidrs).await.unwrap();
        assert!(credentials.expires.is_some());
        self.caller(id, credentials.token.expose()).await
    }

    /// Returns whoever shows a token.
    pub(crate) async fn caller(&self, name: &str, token: &[u8]) -> Caller {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let kubeconfig = json!({
            "clusters": [{"name": "b", "cluster": {
                "server": self.info.url,
                "certificate-authority-data": base64(self.info.ca.as_deref().unwrap()),
            }}],
            "users": [{"name": "u", "user": {"token": text(token)}}],
            "contexts": [{"name": "c", "context": {"cluster": "b", "user": "u"}}],
            "current-context": "c",
        });
        let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).unwrap();
        Caller::of(name, kubeconfig, &self.info.namespace).await
    }
}

/// Somebody who sends requests about one namespace.
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) namespace: String,
    client: kube::Client,
}

/// One request.
pub(crate) enum Act<'a> {
    Create(Value),
    Replace(Value),
    Merge(&'a str, Value),
    Apply(Value),
    Status(Value),
    Delete(&'a str),
    DeleteAll,
    Get(&'a str),
    List,
    Watch(&'a str),
}

impl Caller {
    /// Returns the cluster's administrator, whom no policy judges.
    pub(crate) async fn administrator(kubeconfig: &Path, namespace: &str) -> Self {
        Self::of("administrator", Kubeconfig::read_from(kubeconfig).unwrap(), namespace).await
    }

    async fn of(name: &str, kubeconfig: Kubeconfig, namespace: &str) -> Self {
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        Self { name: name.to_owned(), namespace: namespace.to_owned(), client }
    }

    /// Sends a request; an error has the status code and the server's words.
    pub(crate) async fn act(&self, kind: &Kind, act: Act<'_>) -> Result<Value, (u16, String)> {
        let resource = kind.resource();
        let api: Api<DynamicObject> = match kind.namespaced {
            true => Api::namespaced_with(self.client.clone(), &self.namespace, &resource),
            false => Api::all_with(self.client.clone(), &resource),
        };
        let object = |value: Value| serde_json::from_value::<DynamicObject>(with_type(kind, value)).unwrap();
        let one = |object: DynamicObject| serde_json::to_value(object).unwrap();
        let (post, patch) = (PostParams::default(), PatchParams::default());
        let result = match act {
            Act::Create(value) => api.create(&post, &object(value)).await.map(one),
            Act::Replace(value) => api.replace(&name_of(&value), &post, &object(value)).await.map(one),
            Act::Merge(name, value) => api.patch(name, &patch, &Patch::Merge(value)).await.map(one),
            Act::Apply(value) => {
                let params = PatchParams::apply("test").force();
                api.patch(&name_of(&value), &params, &Patch::Apply(with_type(kind, value))).await.map(one)
            }
            Act::Status(value) => {
                let name = name_of(&value);
                api.replace_status(&name, &post, &object(value)).await.map(one)
            }
            Act::Delete(name) => api.delete(name, &DeleteParams::default()).await.map(|_| Value::Null),
            Act::DeleteAll => {
                api.delete_collection(&DeleteParams::default(), &ListParams::default()).await.map(|_| Value::Null)
            }
            Act::Get(name) => api.get(name).await.map(one),
            Act::List => api
                .list(&ListParams::default())
                .await
                .map(|list| Value::Array(list.items.into_iter().map(one).collect())),
            Act::Watch(name) => {
                let field = format!("metadata.name={name}");
                api.watch(&WatchParams::default().fields(&field).timeout(1), "0").await.map(|_| Value::Null)
            }
        };
        result.map_err(|error| {
            let text = error.to_string();
            if let kube::Error::Api(status) = error { (status.code, status.message) } else { (0, text) }
        })
    }
}

/// A kind of objects, as requests need it.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) namespaced: bool,
}

impl Kind {
    pub(crate) const CLUSTER: Self = Self::new("submariner.io", "v1", "Cluster", "clusters");
    pub(crate) const ENDPOINT: Self = Self::new("submariner.io", "v1", "Endpoint", "endpoints");
    pub(crate) const SLICE: Self = Self::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices");
    pub(crate) const IMPORT: Self = Self::new("multicluster.x-k8s.io", "v1alpha1", "ServiceImport", "serviceimports");
    pub(crate) const SECRET: Self = Self::new("", "v1", "Secret", "secrets");
    pub(crate) const CONFIG_MAP: Self = Self::new("", "v1", "ConfigMap", "configmaps");
    pub(crate) const ACCOUNT: Self = Self::new("", "v1", "ServiceAccount", "serviceaccounts");
    pub(crate) const ROLE: Self = Self::new("rbac.authorization.k8s.io", "v1", "Role", "roles");
    pub(crate) const ROLE_BINDING: Self = Self::new("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings");
    pub(crate) const NAMESPACE: Self = Self { namespaced: false, ..Self::new("", "v1", "Namespace", "namespaces") };
    pub(crate) const POLICY_BINDING: Self = Self {
        namespaced: false,
        ..Self::new(
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        )
    };
    pub(crate) const DEFINITION: Self = Self {
        namespaced: false,
        ..Self::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
    };

    const fn new(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self { group, version, kind, plural, namespaced: true }
    }

    fn resource(&self) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.kind);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }
}

/// What was tried, what was to come of it, and what came.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<[String; 4]>,
    wrong: Vec<String>,
}

impl Table {
    /// Notes a request that must be refused with words like `why`.
    pub(crate) async fn refused(&mut self, caller: &Caller, what: &str, kind: &Kind, act: Act<'_>, why: &str) {
        let result = caller.act(kind, act).await;
        let right = matches!(&result, Err((403 | 422, message)) if message.contains(why));
        let said = match result {
            Ok(_) => "ALLOWED".to_owned(),
            Err((code, message)) => format!("{code} {}", message.rsplit("denied request: ").next().unwrap_or_default()),
        };
        self.note(caller, what, kind, said, right);
    }

    /// Notes a request that must be allowed.
    pub(crate) async fn allowed(&mut self, caller: &Caller, what: &str, kind: &Kind, act: Act<'_>) -> Value {
        let result = caller.act(kind, act).await;
        let said = match &result {
            Ok(_) => "allowed".to_owned(),
            Err((code, message)) => format!("{code} {message}"),
        };
        self.note(caller, what, kind, said, result.is_ok());
        result.unwrap_or_default()
    }

    fn note(&mut self, caller: &Caller, what: &str, kind: &Kind, said: String, right: bool) {
        let row = [caller.name.clone(), what.to_owned(), kind.kind.to_owned(), said];
        if !right {
            self.wrong.push(row.join(" | "));
        }
        self.rows.push(row);
    }

    /// Prints the table, and fails if anything in it is wrong.
    pub(crate) fn finish(self) {
        let mut text = String::new();
        for [caller, what, kind, said] in &self.rows {
            let _ = writeln!(text, "{caller:<14} {what:<58} {kind:<15} {said}");
        }
        println!("{text}");
        assert!(self.wrong.is_empty(), "not as it should be:\n{}", self.wrong.join("\n"));
    }
}

/// Writes an Endpoint as a syncer does, again and again: its Cluster may not have reached those who judge yet.
pub(crate) async fn until_known(member: &Caller, endpoint: &Value) {
    let attempts = 100;
    for _ in 0..attempts {
        match member.act(&Kind::ENDPOINT, Act::Apply(endpoint.clone())).await {
            Ok(_) => return,
            Err((403 | 422, _)) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("the Endpoint of {} is refused for ever", member.name);
}

/// Returns the token that the server's controllers put into a Secret.
pub(crate) async fn token_of(caller: &Caller, secret: &str) -> Vec<u8> {
    use base64::Engine;
    for _ in 0..300 {
        let found = caller.act(&Kind::SECRET, Act::Get(secret)).await.unwrap();
        if let Some(token) = found["data"]["token"].as_str() {
            return base64::engine::general_purpose::STANDARD.decode(token).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("Secret {secret} gets no token");
}

/// Runs `culvert` in a directory, with a kubeconfig.
pub(crate) fn culvert(directory: &Path, kubeconfig: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(Binaries::find().unwrap().tool());
    command.current_dir(directory).env("KUBECONFIG", kubeconfig).env("HOME", directory);
    command.args(words).output().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A Cluster as Submariner's gateway writes it, with both of its own labels.
pub(crate) fn cluster(id: &str, services: &str, pods: &str) -> Value {
    let spec = ClusterSpec {
        cluster_id: id.to_owned(),
        color_codes: vec!["blue".to_owned()],
        service_cidr: vec![services.to_owned()],
        cluster_cidr: vec![pods.to_owned()],
        global_cidr: vec![],
    };
    json!({"metadata": {"name": id, "labels": {"submariner-io/clusterID": id}}, "spec": spec})
}

/// An Endpoint as a Submariner release with libreswan writes it: scalar addresses, no list fields.
pub(crate) fn endpoint(id: &str, subnets: &[&str]) -> Value {
    json!({
        "metadata": {
            "name": format!("{id}-submariner-cable-{id}-192-168-1-10"),
            "labels": {"submariner-io/clusterID": id},
        },
        "spec": {
            "cluster_id": id,
            "cable_name": format!("submariner-cable-{id}-192-168-1-10"),
            "healthCheckIP": "10.1.0.1",
            "hostname": "worker-1",
            "subnets": subnets,
            "private_ip": "192.168.1.10",
            "public_ip": "203.0.113.10",
            "nat_enabled": true,
            "backend": "libreswan",
            "backend_config": {
                "natt-discovery-port": "4490",
                "preferred-server": "false",
                "udp-port": "4500",
            },
        },
    })
}

/// An EndpointSlice as service discovery brings it to the broker.
pub(crate) fn slice(id: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("web-{id}"),
            "labels": {
                "submariner-io/clusterID": id,
                "endpointslice.kubernetes.io/managed-by": "lighthouse-agent.submariner.io",
                "multicluster.kubernetes.io/service-name": "web",
                "multicluster.kubernetes.io/source-cluster": id,
            },
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["100.1.0.9"]}],
        "ports": [{"name": "http", "port": 80}],
    })
}

/// A ServiceImport of one cluster.
pub(crate) fn own_import(id: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("web-default-{id}"),
            "labels": {"multicluster.kubernetes.io/source-cluster": id},
        },
        "spec": {"type": "ClusterSetIP", "ports": []},
    })
}

/// A ServiceImport that all exporters share.
pub(crate) fn shared_import(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"multicluster.kubernetes.io/service-name": "web"}},
        "spec": {"type": "ClusterSetIP", "ports": []},
    })
}

/// Returns an object with clusters in its status.
pub(crate) fn with_clusters(mut object: Value, ids: &[&str]) -> Value {
    object["status"]["clusters"] = ids.iter().map(|id| json!({"cluster": id})).collect();
    object
}

/// Returns an object with one field set, named by a JSON pointer whose last part may be new.
pub(crate) fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"));
    parent[key] = value;
    object
}

pub(crate) fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn with_type(kind: &Kind, mut object: Value) -> Value {
    let version = if kind.group.is_empty() { String::new() } else { format!("{}/", kind.group) } + kind.version;
    object["apiVersion"] = json!(version);
    object["kind"] = json!(kind.kind);
    object
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
