//! A gateway with Globalnet between a remote client, which comes by a cable's link, and the pods of a cluster with so many
//! exported services.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culvert_netns_tests::{Binaries, Lab, Namespace, Role, run, wait_for};
use serde_json::{Value, json};

use super::objects::{self, Service, TARGET_PORT};
use super::server::Server;
use super::traffic;
use crate::control::process::Process;
use crate::tunnel::PREFIX;

const CLUSTER: &str = "bench";
const NODE: &str = "gw";
/// Of the daemon's own records.
const NAMESPACE: &str = "submariner-operator";
const GLOBAL_CIDR: &str = "242.1.0.0/16";
const PODS: &str = "10.128.0.0/9";
/// The link by which packets of WireGuard cables come.
const CABLE: &str = "culvert-wg";
const SERVICES: &str = "10.96.0.0/12";
/// The daemon makes an object for each export, one after the other.
const PATIENCE: Duration = Duration::from_secs(600);

/// The namespaces, the daemon, and the objects that it knows. Dropping it removes the namespaces and what runs in them.
pub(crate) struct Site {
    pub(crate) services: u32,
    pub(crate) server: Server,
    pub(crate) remote: Namespace,
    pub(crate) gateway: Namespace,
    pub(crate) process: Process,
    /// From the daemon's start until every export had its address and said so.
    pub(crate) settled_seconds: f64,
    daemon: Child,
    prefix: String,
}

impl Site {
    /// Sets a gateway up with `services` exported services, and `more` that are not exported yet.
    ///
    /// # Errors
    ///
    /// A command failed, or the exports did not get their addresses within minutes: see the daemon's log.
    pub(crate) fn set_up(services: u32, more: u32, directory: &Path) -> Result<Self> {
        let prefix = format!("{PREFIX}-gn{services}");
        Lab::remove_named(&prefix)?;
        let server = filled(services, more);
        let [remote, gateway, pods] = ["remote", "gw", "pods"].map(|part| Namespace::new(format!("{prefix}-{part}")));
        join(&remote, &gateway, &pods)?;
        traffic::serve(&pods, TARGET_PORT)?;
        let listener = gateway.enter(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?))?;
        let kubeconfig = directory.join(format!("{services}.kubeconfig"));
        fs::write(&kubeconfig, kubeconfig_of(listener.local_addr()?).to_string())?;
        server.serve(listener);
        let log = directory.join(format!("{services}.log"));
        let started = Instant::now();
        let daemon = started_daemon(&gateway, &kubeconfig, &log)?;
        let mut site = Self {
            services,
            process: Process::of(daemon.id()),
            server,
            remote,
            gateway,
            settled_seconds: 0.0,
            daemon,
            prefix,
        };
        let wanted = usize::try_from(services)?;
        wait_for(&format!("{services} global addresses (the log is {})", log.display()), PATIENCE, || {
            if let Some(status) = site.daemon.try_wait()? {
                bail!("the daemon ended: {status}");
            }
            Ok((site.server.count("globalingressips", |object| address_in(object).is_some()) >= wanted).then_some(()))
        })?;
        site.settled_seconds = started.elapsed().as_secs_f64();
        Ok(site)
    }

    /// Returns the address that a service's object says.
    pub(crate) fn address(&self, service: Service) -> Option<Ipv4Addr> {
        address_in(&self.server.get("globalingressips", &service.namespace(), &service.name())?)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if let Err(error) = Lab::remove_named(&self.prefix) {
            eprintln!("The namespaces of {} could not be removed: {error:#}", self.prefix);
        }
    }
}

fn address_in(object: &Value) -> Option<Ipv4Addr> {
    object["status"]["allocatedIP"].as_str()?.parse().ok()
}

fn filled(services: u32, more: u32) -> Server {
    let server = Server::default();
    server.put("endpoints", objects::endpoint(CLUSTER, NODE, NAMESPACE));
    for service in (0..services + more).map(Service) {
        server.put("services", service.object());
        server.put("endpointslices", service.slice(&service.addresses()));
        service.pods().into_iter().for_each(|pod| server.put("pods", pod));
        if service.0 < services {
            server.put("serviceexports", service.export());
        }
    }
    server
}

/// Makes the namespaces and their links: `eth0` of the client leads to the cable's link, that of the pods to theirs.
fn join(remote: &Namespace, gateway: &Namespace, pods: &Namespace) -> Result<()> {
    for namespace in [remote, gateway, pods] {
        run(Command::new("ip").args(["netns", "add", namespace.name()]))?;
        namespace.ip("link set lo up\n")?;
    }
    gateway.ip(&format!(
        "link add {CABLE} type veth peer name eth0 netns {remote}\nlink add pods type veth peer name eth0 netns {pods}\n\
         address add 242.2.0.1/16 dev {CABLE}\naddress add 10.127.0.1/24 dev pods\n\
         link set {CABLE} up\nlink set pods up\nroute add {PODS} via 10.127.0.2 onlink dev pods\n",
        remote = remote.name(),
        pods = pods.name(),
    ))?;
    remote.ip("address add 242.2.0.2/16 dev eth0\nlink set eth0 up\nroute add default via 242.2.0.1\n")?;
    // Every address of a pod is here.
    pods.ip(&format!(
        "address add 10.127.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.127.0.1\nroute add local {PODS} dev lo\n"
    ))?;
    gateway.sysctl("net/ipv4/ip_forward", "1")
}

fn kubeconfig_of(server: SocketAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    })
}

fn started_daemon(gateway: &Namespace, kubeconfig: &Path, log: &Path) -> Result<Child> {
    let binary: PathBuf = Binaries::find()?.daemon(Role::Globalnet);
    let mut command = gateway.command(&binary.display().to_string());
    let log = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    command
        .args(["--cluster-id", CLUSTER, "--node-name", NODE, "--namespace", NAMESPACE])
        .args(["--cluster-cidr", PODS, "--service-cidr", SERVICES, "--global-cidr", GLOBAL_CIDR])
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.spawn().context("culvert-globalnet cannot be started")
}
