//! An API server, and the few requests that setting up needs of it.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use culvert_runtime::{authorities, proxy};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use crate::ask::ask;
use crate::broker_info::BrokerInfo;
use crate::error::{ConnectError, Credentials, ServerError, chain};
use crate::object::{Kind, ObjectRef};
use crate::secret::SecretBytes;

/// In whose name fields are set, as the API server records it.
const FIELD_MANAGER: &str = "culvert";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte from the server; how long a request may take is the matter of [`ask`].
const SILENCE: Duration = Duration::from_secs(60);

/// Where a kubeconfig is and what of it is used, as kubectl's flags have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `None`: `$KUBECONFIG`, else `~/.kube/config`, else a pod's own account.
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    pub cluster: Option<String>,
    pub user: Option<String>,
}

/// A connection to an API server.
#[derive(Clone)]
pub struct Server {
    pub(crate) client: kube::Client,
    url: String,
    credentials: Credentials,
}

/// A token that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    pub token: SecretBytes,
    /// The API server may grant less than was asked for.
    pub expires: Timestamp,
}

impl Server {
    /// Connects as a kubeconfig says. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// The kubeconfig is missing, is not understood, or has no such context.
    pub async fn of_kubeconfig(access: &Access) -> Result<Self, ConnectError> {
        let Access { kubeconfig, context, cluster, user } = access.clone();
        let chosen = context.is_some() || cluster.is_some() || user.is_some();
        let options = KubeConfigOptions { context, cluster, user };
        let named = match &kubeconfig {
            Some(path) => format!("kubeconfig {}", path.display()),
            None => "the kubeconfig".to_owned(),
        };
        let error = |error: &dyn std::error::Error| ConnectError::Kubeconfig {
            kubeconfig: named.clone(),
            reason: chain(error),
        };
        let is_named = kubeconfig.is_some() || chosen;
        let config = match kubeconfig.map_or_else(Kubeconfig::read, Kubeconfig::read_from) {
            Ok(file) => proxy::config_of(file, &options).await.map_err(|source| error(&source))?,
            Err(source) if is_named => return Err(error(&source)),
            // In a pod there is its own account, else there are words for both.
            Err(_) => Config::infer().await.map_err(|source| error(&source))?,
        };
        Self::of_config(config, Credentials::Kubeconfig)
    }

    /// Connects to the broker of a file, as the account that joins clusters. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// The address or the certificates are not understood.
    pub async fn of_broker(info: &BrokerInfo) -> Result<Self, ConnectError> {
        Self::with_token(&info.url, &info.token, info.ca.as_deref(), Credentials::BrokerFile).await
    }

    /// Connects to a broker with a member's token, and with certificates in PEM that vouch for the server; the system's
    /// authorities do as well, since a broker may be reached through a balancer (Submariner chapter 3.3).
    ///
    /// # Errors
    ///
    /// The address or the certificates are not understood.
    pub async fn of_token(url: &str, token: &SecretBytes, ca: Option<&[u8]>) -> Result<Self, ConnectError> {
        Self::with_token(url, token, ca, Credentials::Member).await
    }

    async fn with_token(
        url: &str,
        token: &SecretBytes,
        ca: Option<&[u8]>,
        credentials: Credentials,
    ) -> Result<Self, ConnectError> {
        let url = https_url(url)?;
        let token = String::from_utf8_lossy(token.expose());
        let kubeconfig = json!({
            "clusters": [{"name": "broker", "cluster": {
                "server": url,
                "certificate-authority-data": ca.map(|ca| STANDARD.encode(ca)),
            }}],
            "users": [{"name": "broker", "user": {"token": token.trim()}}],
            "contexts": [{"name": "broker", "context": {"cluster": "broker", "user": "broker"}}],
            "current-context": "broker",
        });
        let unusable = |error: &dyn std::error::Error| ConnectError::Client {
            url: url.clone(),
            reason: chain(error),
            remedy: credentials.remedy(),
        };
        let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).map_err(|error| unusable(&error))?;
        let config = proxy::config_of(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.map_err(|error| unusable(&error))?;
        authorities::add_to(&mut config);
        Self::of_config(config, credentials)
    }

    fn of_config(mut config: Config, credentials: Credentials) -> Result<Self, ConnectError> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(SILENCE);
        config.write_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        config.default_retry = false;
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = kube::Client::try_from(config).map_err(|error| ConnectError::Client {
            url: url.clone(),
            reason: chain(&error),
            remedy: credentials.remedy(),
        })?;
        Ok(Self { client, url, credentials })
    }

    /// Returns the address, with scheme.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the server's version, such as 1 and 33.
    ///
    /// # Errors
    ///
    /// As those of every request: [`ServerError`] names the server, what was asked, and what helps.
    pub async fn version(&self) -> Result<(u32, u32), ServerError> {
        let info = ask(|| self.client.apiserver_version()).await;
        let info = info.map_err(|error| self.error("its version", &error))?;
        // Some platforms write "33+".
        let number = |text: &str| text.trim_end_matches(|character: char| !character.is_ascii_digit()).parse().ok();
        number(&info.major).zip(number(&info.minor)).ok_or_else(|| ServerError::Answer {
            server: self.url.clone(),
            what: "its version".to_owned(),
            message: format!("{}.{}", info.major, info.minor),
        })
    }

    /// Makes an object, or brings the fields that are given here to what they are here.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn apply(&self, object: &Value) -> Result<(), ServerError> {
        let reference = ObjectRef::of(object);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let api = self.api(reference.kind, reference.namespace.as_deref());
        let patch = Patch::Apply(object);
        let applied = ask(|| api.patch(&reference.name, &params, &patch)).await;
        applied.map(|_| ()).map_err(|error| self.error(reference.to_string(), &error))
    }

    /// Makes an object unless it is there already, which gives `false`.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn create(&self, object: &Value) -> Result<bool, ServerError> {
        let reference = ObjectRef::of(object);
        let api = self.api(reference.kind, reference.namespace.as_deref());
        let (typed, params) = self.whole(&reference, object)?;
        match ask(|| api.create(&params, &typed)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(self.error(reference.to_string(), &error)),
        }
    }

    /// Replaces an object if it is still of the resource version that it names, or else gives `false`.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn replace(&self, object: &Value) -> Result<bool, ServerError> {
        let reference = ObjectRef::of(object);
        let api = self.api(reference.kind, reference.namespace.as_deref());
        let (typed, params) = self.whole(&reference, object)?;
        match ask(|| api.replace(&reference.name, &params, &typed)).await {
            Ok(_) => Ok(true),
            // One that is gone meanwhile has changed too.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(self.error(reference.to_string(), &error)),
        }
    }

    /// Returns an object as a request that writes all of it has it.
    fn whole(&self, reference: &ObjectRef, object: &Value) -> Result<(DynamicObject, PostParams), ServerError> {
        let typed = serde_json::from_value(object.clone()).map_err(|cause| ServerError::Answer {
            server: self.url.clone(),
            what: reference.to_string(),
            message: cause.to_string(),
        })?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        Ok((typed, params))
    }

    /// Reads an object; `None` if there is none, or if the server does not know its kind.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn find(&self, reference: &ObjectRef) -> Result<Option<Value>, ServerError> {
        let api = self.api(reference.kind, reference.namespace.as_deref());
        match ask(|| api.get(&reference.name)).await {
            Ok(found) => Ok(Some(serde_json::to_value(found).unwrap_or_default())),
            // Of a kind that it does not know, the server says so without a reason.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(self.error(reference.to_string(), &error)),
        }
    }

    /// Reads all objects of a kind in a namespace; none if the server does not know the kind.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn list(&self, kind: Kind, namespace: &str) -> Result<Vec<Value>, ServerError> {
        self.list_where(kind, Some(namespace), "", "").await
    }

    /// Asks for a token of an account that lives for `lifetime`.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn request_token(
        &self,
        namespace: &str,
        account: &str,
        lifetime: Duration,
    ) -> Result<Granted, ServerError> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: i64::try_from(lifetime.as_secs()).ok(),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let what = format!("a token of account {namespace}/{account}");
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams::default();
        let granted = ask(|| api.create_token_request(account, &params, &request)).await;
        let granted = granted.map_err(|error| self.error(what.clone(), &error))?;
        let status = granted.status.ok_or_else(|| ServerError::Answer {
            server: self.url.clone(),
            what,
            message: "it has no status".to_owned(),
        })?;
        Ok(Granted { token: status.token.into_bytes().into(), expires: status.expiration_timestamp.0 })
    }

    /// Tells what the server would answer if an account of a namespace made this object; `group` gives it rights.
    pub(crate) async fn would_answer(&self, user: &str, group: &str, object: &Value) -> Result<(), kube::Error> {
        let ObjectRef { kind, namespace, .. } = ObjectRef::of(object);
        let resource = kind.resource();
        let path = match namespace {
            Some(namespace) => format!("/apis/{}/namespaces/{namespace}/{}", resource.api_version, kind.plural),
            None => format!("/apis/{}/{}", resource.api_version, kind.plural),
        };
        let request = http::Request::post(format!("{path}?dryRun=All"))
            .header("Content-Type", "application/json")
            .header("Impersonate-User", user)
            .header("Impersonate-Group", group)
            .body(object.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.client.request::<Value>(request).await.map(|_| ())
    }

    pub(crate) fn too_long(&self, what: impl Into<String>, seconds: u64) -> ServerError {
        ServerError::TooLong { server: self.url.clone(), what: what.into(), seconds }
    }

    pub(crate) fn api(&self, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        let resource = kind.resource();
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    pub(crate) fn error(&self, what: impl Into<String>, error: &kube::Error) -> ServerError {
        ServerError::of(&self.url, self.credentials, what, error)
    }
}

/// Checks a broker's address: a token is not sent in the clear.
///
/// # Errors
///
/// [`ConnectError::Url`] if it is no URL, or not of the scheme `https`.
pub fn https_url(text: &str) -> Result<String, ConnectError> {
    let error = |reason: String| ConnectError::Url { url: text.to_owned(), reason };
    let url: http::Uri = text.parse().map_err(|reason: http::uri::InvalidUri| error(reason.to_string()))?;
    match url.scheme_str() {
        Some("https") => Ok(text.to_owned()),
        Some(scheme) => Err(error(format!("{scheme} is not encrypted"))),
        None => Err(error("it has no scheme".to_owned())),
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("url", &self.url).finish_non_exhaustive()
    }
}
