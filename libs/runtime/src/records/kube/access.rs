//! How an API server is reached: from a pod, by a kubeconfig, or with the files of a mounted Secret.
//!
//! Nothing secret is a text in this process's arguments. A pod's own token and authority are read again within a minute
//! after they changed; a kubeconfig and the files of a mounted Secret are, whenever they changed, for the next request.
//!
//! A Secret is that of a broker, which is trusted if its certificate is by the Secret's authority or by one of the system's
//! (Submariner chapter 3.3): it may be reached through a balancer that has a certificate of its own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::kube::api::DynamicObject;
use ::kube::config::{Config, KubeConfigOptions, Kubeconfig};
use ::kube::core::{ApiResource, GroupVersionKind};
use ::kube::{Api, Client};
use culvert_api::Resource;
use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use super::REQUEST;
use super::answer::{Failure, Peer, cause_of};
use crate::{authorities, proxy};

const CONNECT: Duration = Duration::from_secs(5);
/// Without a byte from the server; a watch ends by itself before.
const SILENCE: Duration = Duration::from_secs(75);
/// Where a pod finds who it is.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const HOST_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";
const PORT_VARIABLE: &str = "KUBERNETES_SERVICE_PORT";
/// Submariner's, in every cluster of a set (chapter 3.1).
const NAMESPACE: &str = "submariner-operator";
const BROKER_NAMESPACE: &str = "submariner-k8s-broker";

/// A namespace of an API server, and how to get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub access: Access,
    /// `None`: a pod's own; that of the Secret, or else Submariner's for a broker; Submariner's for its operator.
    pub namespace: Option<String>,
}

/// How an API server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// As the service account of the pod that this process runs in.
    Pod,
    /// By kubeconfig, `None` being those that `KUBECONFIG` names or else `~/.kube/config`.
    Kubeconfig { file: Option<PathBuf>, choice: Choice },
    /// At an address, `https://` being understood, with the files `token`, `ca.crt` and `namespace` of a directory; the
    /// last two may be missing. The system's authorities are trusted as well as that of the directory.
    Secret { address: String, directory: PathBuf },
}

/// What of a kubeconfig is used, as kubectl's flags have it; `None`: its current context, and what that names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    pub context: Option<String>,
    pub cluster: Option<String>,
    pub user: Option<String>,
}

impl Access {
    /// Tells whether this process runs in a pod.
    pub fn in_pod() -> bool {
        std::env::var_os(HOST_VARIABLE).is_some()
    }
}

/// The way to a namespace.
pub(super) struct Link {
    access: Access,
    pub(super) peer: Peer,
    /// Changes when the server answers again after a long outage.
    pub(super) revived: watch::Sender<()>,
    current: Mutex<(Stamp, Client)>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// What tells one state of files from another without reading them: of each its inode, size and time, if it is there.
type Stamp = Vec<Option<(u64, u64, i64, i64)>>;

impl Link {
    pub(super) async fn open(server: &Server) -> Result<Self, String> {
        let access = server.access.clone();
        let namespace = match &server.namespace {
            Some(namespace) => namespace.clone(),
            None => access.namespace()?,
        };
        let stamp = access.stamp();
        let config = access.config().await?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let peer = Peer { server, namespace, remedy: access.remedy() };
        let current = Mutex::new((stamp, client(config)?));
        Ok(Self { access, peer, revived: watch::Sender::new(()), current })
    }

    /// Returns the client, a new one if the files it was made from have changed.
    ///
    /// # Errors
    ///
    /// The words of what is wrong with those files.
    pub(super) async fn client(&self) -> Result<Client, String> {
        let mut current = self.current.lock().await;
        let stamp = self.access.stamp();
        if current.0 != stamp {
            *current = (stamp, client(self.access.config().await?)?);
        }
        Ok(current.1.clone())
    }

    /// Asks the server, for so long and no longer.
    pub(super) async fn ask<T>(&self, request: impl AsyncFnOnce(Client) -> ::kube::Result<T>) -> Result<T, Failure> {
        let work = async {
            let client = self.client().await.map_err(Failure::Silent)?;
            request(client).await.map_err(Failure::from)
        };
        match timeout(REQUEST, work).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Silent(format!("no answer within {} s", REQUEST.as_secs()))),
        }
    }
}

impl Access {
    fn namespace(&self) -> Result<String, String> {
        let of_file = |file: &Path| fs::read_to_string(file).map(|text| text.trim().to_owned());
        match self {
            Self::Pod => {
                let file = Path::new(SERVICE_ACCOUNT).join("namespace");
                of_file(&file).map_err(|error| format!("{} cannot be read: {error}", file.display()))
            }
            Self::Kubeconfig { .. } => Ok(NAMESPACE.to_owned()),
            Self::Secret { directory, .. } => {
                Ok(of_file(&directory.join("namespace")).unwrap_or_else(|_| BROKER_NAMESPACE.to_owned()))
            }
        }
    }

    /// Returns what helps if the server does not accept who this is.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Pod => "see that this pod's service account is still there",
            Self::Kubeconfig { .. } => "get a kubeconfig with a valid token or certificate",
            Self::Secret { .. } => "run `culvert join` again",
        }
    }

    /// Returns the state of those files that are not read again by themselves, or only after a while.
    fn stamp(&self) -> Stamp {
        let files: Vec<PathBuf> = match self {
            Self::Pod => Vec::new(),
            Self::Kubeconfig { file: Some(file), .. } => vec![file.clone()],
            Self::Kubeconfig { file: None, .. } => match std::env::var_os("KUBECONFIG") {
                Some(files) => std::env::split_paths(&files).collect(),
                None => std::env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect(),
            },
            Self::Secret { directory, .. } => vec![directory.join("ca.crt"), directory.join("token")],
        };
        let stamp = |file: &PathBuf| {
            let metadata = fs::metadata(file).ok()?;
            Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
        };
        files.iter().map(stamp).collect()
    }

    async fn config(&self) -> Result<Config, String> {
        let (kubeconfig, choice, authority) = match self {
            Self::Pod => {
                let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set: not in a pod"));
                let (host, port) = (variable(HOST_VARIABLE)?, variable(PORT_VARIABLE)?);
                let host = if host.contains(':') { format!("[{host}]") } else { host };
                let (kubeconfig, authority) = mounted(&format!("https://{host}:{port}"), Path::new(SERVICE_ACCOUNT))?;
                (kubeconfig, Choice::default(), authority)
            }
            Self::Kubeconfig { file, choice } => {
                let read = match file {
                    Some(file) => Kubeconfig::read_from(file),
                    None => Kubeconfig::read(),
                };
                (read.map_err(|error| cause_of(&error))?, choice.clone(), None)
            }
            Self::Secret { address, directory } => (mounted(&https(address)?, directory)?.0, Choice::default(), None),
        };
        let Choice { context, cluster, user } = choice;
        let options = KubeConfigOptions { context, cluster, user };
        let mut config = proxy::config_of(kubeconfig, &options).await.map_err(|error| cause_of(&error))?;
        if let Self::Pod = self {
            // A proxy is the way out of the cluster: from there its own API server has no such address.
            config.proxy_url = None;
        }
        config.root_cert_file = authority;
        if let Self::Secret { .. } = self {
            authorities::add_to(&mut config);
        }
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        config.write_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        // Whoever asks has pauses of his own, which no server stretches, and tells why he waits.
        config.default_retry = false;
        Ok(config)
    }
}

/// Returns the way to the objects of a kind in a namespace; `None`: to those of all, or those that have none.
pub(super) fn api(client: Client, resource: Resource, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = api_resource(resource);
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    }
}

/// Returns a kind as the client names it.
fn api_resource(resource: Resource) -> ApiResource {
    let (group, version) = resource.api_version.split_once('/').unwrap_or(("", resource.api_version));
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, resource.kind), resource.plural)
}

fn client(config: Config) -> Result<Client, String> {
    Client::try_from(config).map_err(|error| cause_of(&error))
}

/// Returns the kubeconfig that stands for a mounted Secret, and the file of the authority's certificate, if there is one.
fn mounted(address: &str, directory: &Path) -> Result<(Kubeconfig, Option<PathBuf>), String> {
    let (token, authority) = (directory.join("token"), directory.join("ca.crt"));
    let text = fs::read_to_string(&token).map_err(|error| format!("{} cannot be read: {error}", token.display()))?;
    if text.is_empty() || text.contains(|character: char| character.is_whitespace()) {
        return Err(format!("{} is no token: write it without spaces and line breaks", token.display()));
    }
    let authority = authority.exists().then_some(authority);
    let kubeconfig = json!({
        "clusters": [{"name": "server", "cluster": {"server": address, "certificate-authority": authority}}],
        "users": [{"name": "self", "user": {"tokenFile": token}}],
        "contexts": [{"name": "mounted", "context": {"cluster": "server", "user": "self"}}],
        "current-context": "mounted",
    });
    let kubeconfig = serde_json::from_value(kubeconfig).map_err(|error| error.to_string())?;
    Ok((kubeconfig, authority))
}

/// Returns the address with its scheme, which others leave out. A token is not sent in the clear.
fn https(address: &str) -> Result<String, String> {
    match address.split_once("://") {
        None => Ok(format!("https://{address}")),
        Some(("https", _)) => Ok(address.to_owned()),
        Some(_) => Err(format!("{address} is not encrypted: give an address that answers to https")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of no server: `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=test`.
    const AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBdTCCARugAwIBAgIUUoEdlWT7q5JjM/Sao1R3nFNU678wCgYIKoZIzj0EAwIw\n\
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjUwNzQ4MThaGA8yMTI2MTEwMTA3NDgx\n\
OFowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABEC2\n\
1KPKYYJsLHcU8EkYZPiZaghjm/iY+u6AuNUVhpPtItVIVBX8Sr3i6OO3d1a72Mbm\n\
0E2kqetA1BtU0sKTYBWjUzBRMB0GA1UdDgQWBBQNnNQnJ2Hf9S+80xR9pyUfC/1+\n\
FDAfBgNVHSMEGDAWgBQNnNQnJ2Hf9S+80xR9pyUfC/1+FDAPBgNVHRMBAf8EBTAD\n\
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQDFlBFrg0oMbirGrvneWmWxXQIaaKq8O46B\n\
JHQfA5kjQQIgdQnAbFHz07O2dzZJ9jgPFCOYM86ku+Kq3M9955uZ8Ls=\n\
-----END CERTIFICATE-----\n";

    fn secret(directory: &Path) -> Access {
        Access::Secret { address: "api.example.org:6443".to_owned(), directory: directory.to_owned() }
    }

    #[tokio::test]
    async fn a_mounted_secret_is_a_way_to_a_server() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("token"), "t").unwrap();

        let config = secret(directory.path()).config().await.unwrap();

        assert_eq!(config.cluster_url.to_string(), "https://api.example.org:6443/");
        let token = directory.path().join("token");
        assert_eq!(config.auth_info.token_file.as_deref(), token.to_str());
        assert_eq!((config.root_cert, config.root_cert_file), (None, None), "the system's authorities alone count");
    }

    #[tokio::test]
    async fn the_authority_of_a_secret_counts_beside_those_of_the_system() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("token"), "t").unwrap();
        fs::write(directory.path().join("ca.crt"), AUTHORITY).unwrap();

        let config = secret(directory.path()).config().await.unwrap();

        let trusted = config.root_cert.unwrap();
        let system = authorities::of_system();
        assert_eq!((trusted.len(), &trusted[1..]), (system.len() + 1, &system[..]));
    }

    #[tokio::test]
    async fn a_token_that_was_renewed_is_used_for_the_next_request() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("token"), "first").unwrap();
        fs::write(directory.path().join("ca.crt"), AUTHORITY).unwrap();
        let link = Link::open(&Server { access: secret(directory.path()), namespace: None }).await.unwrap();
        let before = link.current.lock().await.0.clone();
        fs::write(directory.path().join("token"), "second").unwrap();

        link.client().await.unwrap();

        assert_ne!(link.current.lock().await.0, before);
    }

    #[tokio::test]
    async fn a_token_that_is_missing_or_no_token_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = secret(directory.path()).config().await.unwrap_err();
        assert!(missing.contains("/token cannot be read"), "{missing}");
        fs::write(directory.path().join("token"), "t\n").unwrap();
        let broken = secret(directory.path()).config().await.unwrap_err();
        assert!(broken.contains("without spaces and line breaks"), "{broken}");
    }

    #[test]
    fn the_namespace_is_the_secrets_own_or_the_brokers() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(secret(directory.path()).namespace().unwrap(), BROKER_NAMESPACE);
        fs::write(directory.path().join("namespace"), "elsewhere\n").unwrap();
        assert_eq!(secret(directory.path()).namespace().unwrap(), "elsewhere");
        let kubeconfig = Access::Kubeconfig { file: None, choice: Choice::default() };
        assert_eq!(kubeconfig.namespace().unwrap(), NAMESPACE);
    }

    #[test]
    fn a_token_is_not_sent_in_the_clear() {
        assert_eq!(https("api:6443").unwrap(), "https://api:6443");
        assert_eq!(https("https://api/path").unwrap(), "https://api/path");
        assert!(https("http://api:8080").unwrap_err().contains("not encrypted"));
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_not_there_or_lacks_the_context_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubeconfig");
        let access = |context: Option<&str>| Access::Kubeconfig {
            file: Some(file.clone()),
            choice: Choice { context: context.map(str::to_owned), ..Choice::default() },
        };
        let missing = access(None).config().await.unwrap_err();
        assert!(missing.contains(file.to_str().unwrap()), "{missing}");
        fs::write(&file, "kind: Config\napiVersion: v1\n").unwrap();
        let context = access(Some("west")).config().await.unwrap_err();
        assert!(context.contains("west"), "{context}");
        fs::write(&file, "users: [{name: u, user: {token: \"very-secret").unwrap();
        let cut = access(None).config().await.unwrap_err();
        assert!(cut.contains("line 1") && !cut.contains("secret"), "{cut}");
    }

    #[tokio::test]
    async fn a_changed_kubeconfig_makes_a_new_client() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubeconfig");
        let text = |port: u16| {
            json!({
                "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
                "current-context": "c",
            })
            .to_string()
        };
        fs::write(&file, text(1)).unwrap();
        let access = Access::Kubeconfig { file: Some(file.clone()), choice: Choice::default() };
        let link = Link::open(&Server { access, namespace: None }).await.unwrap();
        let before = link.current.lock().await.0.clone();
        fs::write(&file, text(20000)).unwrap();

        link.client().await.unwrap();

        assert_ne!(link.current.lock().await.0, before);
        fs::write(&file, "no kubeconfig").unwrap();
        assert!(link.client().await.is_err());
    }
}
