//! A cluster's control plane: one process with etcd, API server, controller-manager and scheduler, on the first node.
//!
//! It runs in the node's network only, as a host-network pod would, but is no pod. Defaults of Kubernetes are kept
//! wherever a lab can have them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::certificates::{Account, Certificates, write_secret};
use super::network::API_PORT;
use super::node::{Node, spawn};
use super::plan::ClusterPlan;
use super::programs::Programs;
use crate::wait::wait_for;

/// How long an API server may take to begin, on a machine that is busy with many of them.
const READY: Duration = Duration::from_secs(300);
/// What `server.go` logs once `/readyz` says so.
const READY_SENTENCE: &str = "API server is ready";
/// Who signs service account tokens, as `kubeadm` has it.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A control plane that was started.
pub(crate) struct ControlPlane {
    pub(crate) child: Child,
    log: std::path::PathBuf,
}

/// The accounts of a control plane's own programs.
pub(crate) struct Accounts {
    pub(crate) controllers: Account,
    pub(crate) scheduler: Account,
}

impl Accounts {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            controllers: Account::new("system:kube-controller-manager", None)?,
            scheduler: Account::new("system:kube-scheduler", None)?,
        })
    }
}

impl ControlPlane {
    /// Starts it on a node; its files are in the cluster's directory.
    pub(crate) fn start(
        directory: &Path,
        plan: &ClusterPlan,
        node: &Node,
        certificates: &Certificates,
        accounts: &Accounts,
        programs: &Programs,
    ) -> Result<Self> {
        let server = server_url(node.address);
        for (file, account) in [("controllers", &accounts.controllers), ("scheduler", &accounts.scheduler)] {
            let kubeconfig = certificates.kubeconfig(&plan.network.id, &server, account)?;
            write_secret(&directory.join(format!("{file}.kubeconfig")), &kubeconfig)?;
        }
        let config = directory.join("server.json");
        fs::write(&config, config_of(directory, plan, node.address, certificates).to_string())?;
        let [binary, mode] = programs.words("server");
        let mut command = node.namespace.command(&binary);
        command.arg(mode).arg(config);
        let log = directory.join("server.log");
        Ok(Self { child: spawn(command, &log)?, log })
    }

    /// Waits until the API server is ready.
    ///
    /// # Errors
    ///
    /// The process ended or took too long.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        let ended = wait_for(&format!("the API server that logs to {}", self.log.display()), READY, || {
            if fs::read_to_string(&self.log)?.contains(READY_SENTENCE) {
                return Ok(Some(None));
            }
            Ok(self.child.try_wait()?.map(Some))
        })?;
        if let Some(status) = ended {
            bail!("the control plane that logs to {} ended ({status})", self.log.display());
        }
        Ok(())
    }
}

/// Returns the address of an API server.
pub(crate) fn server_url(address: Ipv4Addr) -> String {
    format!("https://{address}:{API_PORT}")
}

/// Returns the configuration that `server.go` reads.
fn config_of(directory: &Path, plan: &ClusterPlan, node: Ipv4Addr, certificates: &Certificates) -> Value {
    let file = |name: &str| certificates.path(name).display().to_string();
    let flag = |name: &str, file_name: &str| format!("--{name}={}", file(file_name));
    let etcd = "http://127.0.0.1:2379";
    let api = [
        flag("client-ca-file", "ca.crt"),
        flag("kubelet-client-certificate", "kubelet-client.crt"),
        flag("kubelet-client-key", "kubelet-client.key"),
        flag("service-account-key-file", "service-account.pub"),
        flag("service-account-signing-key-file", "service-account.key"),
        flag("tls-cert-file", "apiserver.crt"),
        flag("tls-private-key-file", "apiserver.key"),
        flag("token-auth-file", "tokens.csv"),
        format!("--advertise-address={node}"),
        "--allow-privileged=true".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        format!("--etcd-servers={etcd}"),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--profiling=false".to_owned(),
        format!("--secure-port={API_PORT}"),
        format!("--service-account-issuer={ISSUER}"),
        format!("--service-cluster-ip-range={}", plan.network.service_cidr),
    ];
    let kubeconfig = |name: &str| format!("--kubeconfig={}", directory.join(name).display());
    let controllers = [
        kubeconfig("controllers.kubeconfig"),
        flag("root-ca-file", "ca.crt"),
        flag("service-account-private-key-file", "service-account.key"),
        "--leader-elect=false".to_owned(),
        "--profiling=false".to_owned(),
        // With the rights of a token's user alone, RBAC would refuse most controllers.
        "--use-service-account-credentials=true".to_owned(),
    ];
    let scheduler =
        [kubeconfig("scheduler.kubeconfig"), "--leader-elect=false".to_owned(), "--profiling=false".to_owned()];
    json!({
        "etcdDirectory": directory.join("etcd"),
        "etcdClientURL": etcd,
        "etcdPeerURL": "http://127.0.0.1:2380",
        "serverURL": server_url(node),
        "certificateAuthority": certificates.path("ca.crt"),
        "apiServer": api,
        "controllerManager": controllers,
        "scheduler": scheduler,
    })
}
