//! `deploy-broker` and `recover-broker-info`: what speaks against it at the API server is looked for first, and the broker
//! file is written last.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use culvert_setup::names::OPERATOR_NAMESPACE;
use culvert_setup::{
    BROKER_FILE, Broker, BrokerInfo, Existing, Globalnet, PSK_LENGTH, SecretBytes, Server, TOKEN_LIFETIME, https_url,
    read, read_if_there, write,
};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::Output;
use crate::broker_args::{DeployBroker, RecoverBrokerInfo};
use crate::progress::{look, tell};

/// What a run did, for people or as data.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    broker_url: String,
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_lifetime_seconds: Option<u64>,
    broker_file: String,
    /// What an older broker file is called now.
    #[serde(skip_serializing_if = "Option::is_none")]
    older_file: Option<String>,
    psk: &'static str,
    /// `None` without Globalnet.
    #[serde(skip_serializing_if = "Option::is_none")]
    globalnet: Option<GlobalnetReport>,
    warnings: Vec<String>,
}

/// The global addresses that clusters get.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct GlobalnetReport {
    cidr_range: String,
    cluster_size: u64,
}

/// Makes a broker, or repairs it.
pub(crate) async fn deploy(asked: &DeployBroker) -> Result<String> {
    asked.check()?;
    let file = Path::new(BROKER_FILE);
    // A file that is damaged is looked at before it would be put away.
    let before = read_if_there(file)?;
    let given = asked.ipsec_psk_from.as_deref().map(read).transpose()?;
    let server = Server::of_kubeconfig(&asked.broker.access.access()).await?;
    tell(&format!("Looking at API server {}", server.url()));
    let url = asked.broker.broker_url.clone().map_or_else(|| https_url(server.url()), Ok)?;
    let wanted = Broker::new(&asked.broker.namespace, asked.token_lifetime.unwrap_or(TOKEN_LIFETIME))?;
    let (existing, noted) = look(&server, async {
        let existing = server.look_at_broker(&wanted).await?;
        Ok((existing, server.globalnet(wanted.namespace()).await?))
    })
    .await?;
    let wish = asked.globalnet();
    noted.configured(&wish)?;
    let (psk, origin) = choose_psk(given, before, existing.psk.clone())?;
    let lifetime = asked.token_lifetime.or(existing.token_lifetime).unwrap_or(TOKEN_LIFETIME);
    let broker = Broker::new(&asked.broker.namespace, lifetime)?;
    let mut warnings = warnings(&existing, broker.namespace());
    warnings.extend(noted.contested().iter().map(ToString::to_string));
    for warning in &warnings {
        eprintln!("warning: {warning}");
    }

    tell("Making the definitions of records");
    server.apply_definitions(&existing.kept_definitions).await?;
    tell(&format!("Making accounts, roles and policies in namespace {}", broker.namespace()));
    for object in broker.objects() {
        server.apply(&object).await?;
    }
    for object in broker.initial_objects() {
        server.create(&object).await?;
    }
    let globalnet = server.configure_globalnet(broker.namespace(), &wish).await?;
    server.keep_psk(broker.namespace(), &psk).await?;
    tell("Waiting until the policies are in force");
    if !server.wait_enforced(&broker).await? {
        let unsure = "whether the policies are in force cannot be seen without the right to impersonate: wait a minute \
                      before clusters join";
        eprintln!("warning: {unsure}");
        warnings.push(unsure.to_owned());
    }
    tell("Waiting for the token that joins clusters");
    let (token, ca) = server.admin_token(broker.namespace()).await?;

    let info = BrokerInfo {
        url,
        namespace: broker.namespace().to_owned(),
        token,
        ca,
        psk,
        components: vec!["connectivity".to_owned()],
        custom_domains: vec![],
    };
    let older = write(file, &info, Timestamp::now())?;
    let report = Report {
        broker_url: info.url,
        namespace: info.namespace,
        token_lifetime_seconds: Some(lifetime.as_secs()),
        broker_file: BROKER_FILE.to_owned(),
        older_file: older.map(|path| path.display().to_string()),
        psk: origin,
        globalnet: globalnet_report(&globalnet),
        warnings,
    };
    render(&report, asked.output)
}

/// Writes the broker file of a broker that is there.
pub(crate) async fn recover(asked: &RecoverBrokerInfo) -> Result<String> {
    let server = Server::of_kubeconfig(&asked.broker.access.access()).await?;
    tell(&format!("Looking at API server {}", server.url()));
    let url = asked.broker.broker_url.clone().map_or_else(|| https_url(server.url()), Ok)?;
    let (token, ca) = server.recover_token(&asked.broker.namespace).await?;
    let noted = server.globalnet(&asked.broker.namespace).await?;
    let (psk, origin) = find_psk(asked, &server).await?;
    let (mut components, custom_domains) = server.recorded_components(&asked.broker.namespace).await?;
    if components.is_empty() {
        components.push("connectivity".to_owned());
    }
    let info =
        BrokerInfo { url, namespace: asked.broker.namespace.clone(), token, ca, psk, components, custom_domains };
    let older = write(Path::new(BROKER_FILE), &info, Timestamp::now())?;
    let report = Report {
        broker_url: info.url,
        namespace: info.namespace,
        token_lifetime_seconds: None,
        broker_file: BROKER_FILE.to_owned(),
        older_file: older.map(|path| path.display().to_string()),
        psk: origin,
        globalnet: globalnet_report(&noted),
        warnings: noted.contested().iter().map(ToString::to_string).collect(),
    };
    render(&report, asked.output)
}

/// Chooses the pre-shared key. Members that have joined already have it: it never changes by itself.
fn choose_psk(
    given: Option<BrokerInfo>,
    before: Option<BrokerInfo>,
    at_broker: Option<SecretBytes>,
) -> Result<(SecretBytes, &'static str)> {
    if let Some(given) = given {
        return Ok((given.psk, "from --ipsec-psk-from"));
    }
    match (before.map(|info| info.psk), at_broker) {
        (Some(file), Some(broker)) if file != broker => bail!(
            "{BROKER_FILE} in this directory has another pre-shared key than this broker's members: if it is another \
             broker's, run this in another directory; else say which one holds with --ipsec-psk-from"
        ),
        (_, Some(psk)) | (Some(psk), None) => Ok((psk, "kept")),
        (None, None) => Ok((new_psk()?, "new")),
    }
}

fn new_psk() -> Result<SecretBytes> {
    let mut psk = vec![0; PSK_LENGTH];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut psk));
    random.context("cannot make a pre-shared key: /dev/urandom cannot be read")?;
    Ok(psk.into())
}

async fn find_psk(asked: &RecoverBrokerInfo, server: &Server) -> Result<(SecretBytes, &'static str)> {
    if let Some(psk) = server.broker_psk(&asked.broker.namespace).await? {
        return Ok((psk, "from the broker"));
    }
    let member = match &asked.member_context {
        Some(context) => {
            let mut access = asked.broker.access.access();
            access.context = Some(context.clone());
            &Server::of_kubeconfig(&access).await?
        }
        None => server,
    };
    let psk = member.psk_in(OPERATOR_NAMESPACE).await?.with_context(|| {
        format!(
            "neither broker {} nor {} has the pre-shared key: name a joined cluster with --member-context",
            asked.broker.namespace,
            member.url()
        )
    })?;
    Ok((psk, "from a joined cluster"))
}

fn globalnet_report(globalnet: &Globalnet) -> Option<GlobalnetReport> {
    let cidr_range = globalnet.range.filter(|_| globalnet.is_enabled)?.to_string();
    Some(GlobalnetReport { cidr_range, cluster_size: globalnet.cluster_size? })
}

fn warnings(existing: &Existing, namespace: &str) -> Vec<String> {
    let kept: Vec<&str> = existing.kept_definitions.iter().map(String::as_str).collect();
    let definitions = (!kept.is_empty()).then(|| {
        format!(
            "CustomResourceDefinitions {} were not made by this release of culvert and stay as they are",
            kept.join(", ")
        )
    });
    let exposed = existing.exposed_tokens.iter().map(|name| {
        format!(
            "Secret {namespace}/{name} has a token that joins clusters, and members joined by subctl can read it: once \
             no older {BROKER_FILE} is needed, delete it"
        )
    });
    definitions.into_iter().chain(existing.conflicts.iter().map(ToString::to_string)).chain(exposed).collect()
}

fn render(report: &Report, output: Output) -> Result<String> {
    match output {
        Output::Json => Ok(serde_json::to_string_pretty(report)? + "\n"),
        Output::Yaml => Ok(serde_yaml_ng::to_string(report)?),
        Output::Table => {
            let mut text = format!("Broker {} at {}\n", report.namespace, report.broker_url);
            if let Some(older) = &report.older_file {
                let _ = writeln!(text, "The older broker file is {older} now");
            }
            let _ = writeln!(text, "Pre-shared key: {}", report.psk);
            if let Some(GlobalnetReport { cidr_range, cluster_size }) = &report.globalnet {
                let _ = writeln!(text, "Globalnet: {cluster_size} addresses of {cidr_range} for each cluster");
            }
            let _ = writeln!(text, "Join clusters with {}; keep it secret", report.broker_file);
            Ok(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(psk: &[u8]) -> BrokerInfo {
        BrokerInfo {
            url: "https://b".to_owned(),
            namespace: "ns".to_owned(),
            token: b"t".to_vec().into(),
            ca: None,
            psk: psk.to_vec().into(),
            components: vec![],
            custom_domains: vec![],
        }
    }

    #[test]
    fn a_key_that_members_have_stays() {
        let key = |text: &str| Some(SecretBytes::from(text.as_bytes().to_vec()));
        let chosen = |given: Option<&str>, before: Option<&str>, at_broker: Option<&str>| {
            let read = |text: &str| info(text.as_bytes());
            choose_psk(given.map(read), before.map(read), at_broker.and_then(key))
                .map(|(psk, origin)| (String::from_utf8_lossy(psk.expose()).into_owned(), origin))
        };
        assert_eq!(chosen(None, Some("a"), None).unwrap(), ("a".to_owned(), "kept"));
        assert_eq!(chosen(None, None, Some("b")).unwrap(), ("b".to_owned(), "kept"));
        assert_eq!(chosen(Some("c"), Some("a"), Some("b")).unwrap().0, "c");
        let error = chosen(None, Some("a"), Some("b")).unwrap_err().to_string();
        assert!(error.contains("another directory"), "{error}");
        let (new, origin) = choose_psk(None, None, None).unwrap();
        assert_eq!((new.expose().len(), origin), (PSK_LENGTH, "new"));
    }
}
