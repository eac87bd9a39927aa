//! `join`: makes this cluster a member of a clusterset, or repairs what an earlier join made.
//!
//! Everything that speaks against it is looked for first, here and at the broker; then the broker gets this cluster's
//! account, and this cluster its definitions, secrets and daemons.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_api::ConnectionStatus;
use culvert_model::ClusterId;
use culvert_setup::manifests::{self, DAEMONS, GATEWAY, GLOBALNET};
use culvert_setup::names::{MANAGED_BY, OPERATOR_NAMESPACE, PSK_SECRET};
use culvert_setup::{
    Asked, BrokerCredentials, BrokerInfo, Facts, GatewayNodes, Installation, JoinRequest, Kind, LocalObstacle, Member,
    ObjectRef, Server, Settings, join_rights, prepare_member,
};
use ipnet::IpNet;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::args::Output;
use crate::globalnet;
use crate::join_args::Join;
use crate::progress::{POLL, Told, look, tell, wait_for_pods, wait_settled};
use crate::site;
use crate::table::printable;

/// How long cables may take once all daemons run.
const CONNECTED: Duration = Duration::from_secs(60);

/// What a run did, for people or as data.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    cluster: String,
    /// Whether it was a member already.
    repaired: bool,
    network_plugin: String,
    cluster_cidr: Vec<String>,
    service_cidr: Vec<String>,
    /// None without Globalnet.
    global_cidr: Vec<String>,
    gateways: Vec<String>,
    image: String,
    connections: Vec<Connection>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    cluster: String,
    status: ConnectionStatus,
    /// Why it is not connected.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

/// What there is in the cluster.
struct Found {
    facts: Facts,
    installation: Installation,
    identity: String,
    /// What its network plugin takes and the caller may not do.
    lacking: Option<LocalObstacle>,
}

/// What is to be done, once nothing speaks against it.
struct Plan {
    settings: Settings,
    installation: Installation,
    /// The node that is to be made a gateway.
    new_gateway: Option<String>,
    gateways: Vec<String>,
    image: String,
    node_addresses: Vec<IpNet>,
}

/// Joins a cluster, or a site without Kubernetes.
pub(crate) async fn run(asked: &Join) -> Result<String> {
    if asked.standalone {
        return site::join(asked).await;
    }
    asked.check()?;
    let info = asked.broker()?;
    let local = Server::of_kubeconfig(&asked.access.access()).await?;
    let broker = Server::of_broker(&info).await?;
    tell(&format!("Looking at this cluster, {}", local.url()));
    let found = look(&local, find(&local)).await?;
    let identity = found.identity.clone();
    let mut plan = plan(asked, &info, found)?;
    let cluster = plan.settings.cluster.clone();
    let networks = plan.settings.networks.all();
    let used = [networks.clone(), plan.node_addresses.clone()].concat();
    let member = Member { broker: info.namespace.clone(), cluster: cluster.clone() };
    let rights = join_rights(&broker, &member).await?;
    let wish = globalnet::wish(asked.globalnet()?, &broker, &info.namespace).await?;
    let wanted = wish.as_ref().map(|wish| Asked { cluster: &cluster, wish, local: &used });
    let request = JoinRequest {
        member,
        identity,
        known: plan.installation.is_known_as(&cluster),
        claims: match &wanted {
            Some(wanted) => globalnet::look(&broker, &info.namespace, wanted).await?,
            None => networks,
        },
    };
    tell(&format!("Asking the broker for this cluster's account, {}", broker.url()));
    let credentials = prepare_member(&broker, rights, &request, info.ca.as_deref()).await?;
    if let Some(wanted) = &wanted {
        plan.settings.global = broker.allocate(&info.namespace, wanted).await?;
    }
    install(&plan, &info, &credentials, &local).await?;
    wait_for_pods(&local, &DAEMONS).await?;
    if wanted.is_none() {
        let given_back = globalnet::give_back(&broker, &info.namespace, &cluster).await?;
        if !given_back.is_empty() {
            tell(&format!("Gave global CIDR {} back", globalnet::joined(&given_back)));
        }
    }
    let connections = wait_connected(&plan.settings.cluster, &info, &local, &broker).await?;
    render(&report(plan, connections), asked.output)
}

/// Reads what there is in this cluster. Changes nothing.
async fn find(local: &Server) -> Result<Found> {
    // Rights first: without them the rest cannot be read.
    if let Some(lacking) = local.lacking_for_join().await? {
        bail!("this cluster cannot join: {lacking}");
    }
    let facts = local.network_facts().await?;
    Ok(Found {
        lacking: local.lacking_for_plugin(&facts.discovered().plugin).await?,
        facts,
        installation: local.installation().await?,
        identity: local.identity().await?,
    })
}

/// Decides what is to be done, and finds everything here that speaks against it. Somebody may be asked.
fn plan(asked: &Join, info: &BrokerInfo, found: Found) -> Result<Plan> {
    let Found { facts, installation, lacking, .. } = found;
    let networks = facts.networks(&asked.clustercidr, &asked.servicecidr)?;
    let node_addresses = facts.node_addresses();
    let cluster = cluster_id(asked, &installation)?;
    let mut obstacles = installation.obstacles(&cluster);
    obstacles.extend(lacking);
    let (gateways, new_gateway) = match GatewayNodes::of(&facts.nodes) {
        GatewayNodes::Labelled(nodes) => (nodes, None),
        GatewayNodes::Candidates(nodes) if asked.label_gateway && !nodes.is_empty() => {
            let node = choose_node(&nodes)?;
            (vec![node.clone()], Some(node))
        }
        GatewayNodes::Candidates(_) => {
            obstacles.push(LocalObstacle::NoGateway);
            (vec![], None)
        }
    };
    if !obstacles.is_empty() {
        let obstacles: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
        bail!("this cluster cannot join: {}", obstacles.join("; "));
    }
    let image = asked.image().map_or_else(manifests::default_image, str::to_owned);
    let settings = Settings {
        cluster,
        networks,
        global: vec![],
        broker_url: info.url.clone(),
        broker_namespace: info.namespace.clone(),
        variables: asked.variables(),
    };
    Ok(Plan { settings, installation, new_gateway, gateways, image, node_addresses })
}

/// Brings everything to this cluster.
async fn install(plan: &Plan, info: &BrokerInfo, credentials: &BrokerCredentials, local: &Server) -> Result<()> {
    tell("Making the definitions of records");
    local.apply_definitions(&plan.installation.definitions.kept).await?;
    tell(&format!("Making accounts, secrets and daemons in namespace {OPERATOR_NAMESPACE}"));
    let namespace = ObjectRef { kind: Kind::NAMESPACE, namespace: None, name: OPERATOR_NAMESPACE.to_owned() };
    let found = local.find(&namespace).await?;
    let foreign = found.is_some_and(|found| found["metadata"]["labels"][MANAGED_BY.0] != MANAGED_BY.1);
    if !foreign {
        let all = manifests::base();
        let own = all.iter().find(|object| object["kind"] == Kind::NAMESPACE.kind);
        local.apply(own.context("the manifests have a namespace")?).await?;
    }
    local.apply(&credentials.secret(OPERATOR_NAMESPACE)).await?;
    local.apply(&manifests::psk_secret(&info.psk)).await?;
    let psk = local.find(&ObjectRef::new(Kind::SECRET, OPERATOR_NAMESPACE, PSK_SECRET)).await?.unwrap_or_default();
    let version = psk["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let objects = manifests::objects(&plan.image, &plan.settings.variables(), version);
    for daemon_set in [GATEWAY, GLOBALNET] {
        wait_settled(local, daemon_set).await?;
    }
    for object in objects.iter().filter(|object| object["kind"] != Kind::NAMESPACE.kind) {
        local.apply(object).await?;
    }
    // What cannot be deleted here is no right too many that this join has given.
    local.remove_plugin_objects(&plan.settings.networks.plugin).await?;
    if let Some(node) = &plan.new_gateway {
        tell(&format!("Making node {node} the gateway"));
        local.label_gateway(node).await?;
    }
    Ok(())
}

/// Returns the id that was given, or had before, or that somebody types.
fn cluster_id(asked: &Join, installation: &Installation) -> Result<ClusterId> {
    if let Some(id) = &asked.clusterid {
        return Ok(id.clone());
    }
    if let Some(id) = &installation.cluster {
        return id.parse().with_context(|| format!("this cluster has joined by an id that is none, {id:?}"));
    }
    match ask("Id of this cluster in its clusterset: ")? {
        Some(id) => id.parse().with_context(|| format!("{id:?} is no id")),
        None => bail!("this cluster needs an id: give it with --clusterid"),
    }
}

/// Chooses the node that becomes the gateway: the best one, unless somebody types another.
fn choose_node(nodes: &[String]) -> Result<String> {
    let [best, others @ ..] = nodes else { bail!("this cluster has no nodes") };
    if others.is_empty() {
        return Ok(best.clone());
    }
    let answer = ask(&format!("Node that becomes the gateway, of {} [{best}]: ", nodes.join(", ")))?;
    match answer.filter(|answer| !answer.is_empty()) {
        None => Ok(best.clone()),
        Some(node) if nodes.contains(&node) => Ok(node),
        Some(node) => bail!("this cluster has no node {node:?}"),
    }
}

/// Asks, if there is a person to answer.
pub(crate) fn ask(question: &str) -> Result<Option<String>> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(None);
    }
    let mut error = std::io::stderr();
    error.write_all(question.as_bytes())?;
    error.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(Some(answer.trim().to_owned()))
}

/// Asks whether something is to be done, unless `yes` says so.
///
/// # Errors
///
/// It is not to be done, or nobody is there to say so.
pub(crate) fn confirm(yes: bool, question: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    match ask(&format!("{question} [y/N] "))? {
        Some(answer) if ["y", "yes"].contains(&answer.to_lowercase().as_str()) => Ok(()),
        Some(_) => bail!("nothing was changed"),
        None => bail!("{question} Nobody is there to confirm it: pass --yes"),
    }
}

/// Waits until this cluster is announced at the broker, and until the cables to all others that are stand; returns how
/// they are in the end.
async fn wait_connected(
    own: &ClusterId,
    info: &BrokerInfo,
    local: &Server,
    broker: &Server,
) -> Result<Vec<Connection>> {
    let deadline = Instant::now() + CONNECTED;
    let mut told = Told::default();
    loop {
        let mut others = broker.announced_clusters(&info.namespace).await?;
        let announced = others.remove(own.as_str());
        let connections = connections(&others, &local.connections().await?);
        let open: Vec<&Connection> =
            connections.iter().filter(|one| one.status != ConnectionStatus::Connected).collect();
        if announced && open.is_empty() {
            return Ok(connections);
        }
        if Instant::now() >= deadline {
            if !announced {
                eprintln!(
                    "warning: no gateway of this cluster is announced at the broker yet; its log may tell why: kubectl \
                     --namespace {OPERATOR_NAMESPACE} logs daemonset/{GATEWAY}"
                );
            }
            for Connection { cluster, status, reason } in open {
                let warning = format!("cluster {cluster} is not connected ({status}): {reason}");
                eprintln!("warning: {}", printable(&warning));
            }
            return Ok(connections);
        }
        told.tell(&match announced {
            false => "Waiting for this cluster's gateway at the broker".to_owned(),
            true => {
                format!("Waiting for cables: {} of {} connected", connections.len() - open.len(), connections.len())
            }
        });
        sleep(POLL).await;
    }
}

/// Returns how the connections to `others` are by what the gateway says.
fn connections(others: &BTreeSet<String>, found: &[culvert_api::Connection]) -> Vec<Connection> {
    let connection = |cluster: &String| {
        let (status, reason) = match found.iter().find(|one| one.endpoint.cluster_id == *cluster) {
            // Submariner counts bytes here; that is no reason for anything.
            Some(one) if one.status == ConnectionStatus::Connected => (one.status, ""),
            Some(one) => (one.status, one.status_message.as_str()),
            None => (ConnectionStatus::None, "this cluster's gateway does not know of it yet"),
        };
        Connection { cluster: cluster.clone(), status, reason: reason.to_owned() }
    };
    others.iter().map(connection).collect()
}

fn report(plan: Plan, connections: Vec<Connection>) -> Report {
    let texts = |cidrs: &[IpNet]| cidrs.iter().map(ToString::to_string).collect();
    let Plan { settings, installation, gateways, image, .. } = plan;
    Report {
        cluster: settings.cluster.to_string(),
        repaired: installation.cluster.is_some(),
        network_plugin: settings.networks.plugin,
        cluster_cidr: texts(&settings.networks.pods),
        service_cidr: texts(&settings.networks.services),
        global_cidr: texts(&settings.global),
        gateways,
        image,
        connections,
    }
}

fn render(report: &Report, output: Output) -> Result<String> {
    match output {
        Output::Json => Ok(serde_json::to_string_pretty(report)? + "\n"),
        Output::Yaml => Ok(serde_yaml_ng::to_string(report)?),
        Output::Table => {
            let mut text =
                format!("Cluster {} {}\n", report.cluster, if report.repaired { "is repaired" } else { "has joined" });
            let cidrs = |cidrs: &[String]| cidrs.join(", ");
            let _ = writeln!(text, "Pods: {} ({})", cidrs(&report.cluster_cidr), report.network_plugin);
            let _ = writeln!(text, "Services: {}", cidrs(&report.service_cidr));
            if !report.global_cidr.is_empty() {
                let _ = writeln!(text, "Global addresses: {}", cidrs(&report.global_cidr));
            }
            let _ = writeln!(text, "Gateways: {}", report.gateways.join(", "));
            for connection in &report.connections {
                let _ = writeln!(text, "Cluster {}: {}", printable(&connection.cluster), connection.status);
            }
            if report.connections.is_empty() {
                text += "No other cluster has joined yet\n";
            }
            Ok(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use culvert_api::EndpointSpec;

    use super::*;

    #[test]
    fn a_cluster_that_the_gateway_does_not_know_yet_is_not_connected() {
        let others = ["north", "south", "west"].map(str::to_owned).into();
        let found = |cluster_id: &str, status, message: &str| culvert_api::Connection {
            status,
            status_message: message.to_owned(),
            endpoint: EndpointSpec { cluster_id: cluster_id.to_owned(), ..EndpointSpec::default() },
            ..culvert_api::Connection::default()
        };
        let found =
            [found("west", ConnectionStatus::Connected, "Rx=1"), found("north", ConnectionStatus::Error, "no answer")];
        let texts: Vec<String> =
            connections(&others, &found).into_iter().map(|one| format!("{} {}", one.status, one.reason)).collect();
        assert_eq!(texts, ["error no answer", "none this cluster's gateway does not know of it yet", "connected "]);
    }

    #[test]
    fn a_report_is_for_people_or_for_scripts() {
        let report = Report {
            cluster: "east".to_owned(),
            repaired: false,
            network_plugin: "generic".to_owned(),
            cluster_cidr: vec!["10.1.0.0/16".to_owned()],
            service_cidr: vec!["100.1.0.0/16".to_owned()],
            global_cidr: vec!["242.1.0.0/16".to_owned()],
            gateways: vec!["n1".to_owned()],
            image: "i:1".to_owned(),
            connections: vec![Connection {
                cluster: "west".to_owned(),
                status: ConnectionStatus::Connected,
                reason: String::new(),
            }],
        };
        let text = render(&report, Output::Table).unwrap();
        assert!(text.starts_with("Cluster east has joined\n") && text.contains("Cluster west: connected"), "{text}");
        assert!(text.contains("Global addresses: 242.1.0.0/16\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&render(&report, Output::Json).unwrap()).unwrap();
        assert_eq!(json["connections"][0], serde_json::json!({"cluster": "west", "status": "connected"}));
        assert_eq!(json["networkPlugin"], "generic");
    }
}
