//! `join --standalone` and `uninstall --standalone`: a site without Kubernetes becomes a member, or leaves.
//!
//! The broker gives it an account as it gives one to a cluster, and all that speaks against it is looked for first. The
//! daemons are the site's own to start: the command writes the files by which they are started, and says how.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use culvert_model::ClusterId;
use culvert_setup::manifests::{DAEMONS, GATEWAY, GLOBAL_CIDR, GLOBALNET, ROUTE_AGENT};
use culvert_setup::{
    Asked, JoinRequest, Member, Networks, Server, Settings, Site, SiteError, Wish, join_rights, prepare_member,
};
use serde::Serialize;
use tokio::process::Command;

use crate::args::Output;
use crate::globalnet::{self, Leaving};
use crate::globalnet_args::Choice;
use crate::join::{ask, confirm};
use crate::join_args::Join;
use crate::progress::tell;

/// The daemons of a site without global addresses.
const WITHOUT_GLOBALNET: [&str; 2] = [GATEWAY, ROUTE_AGENT];
const CLUSTER: &str = "SUBMARINER_CLUSTERID";

/// What a run did, for people or as data.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    cluster: String,
    /// Whether it was a member already.
    repaired: bool,
    cluster_cidr: Vec<String>,
    service_cidr: Vec<String>,
    /// None without Globalnet.
    global_cidr: Vec<String>,
    /// Whether it had a global CIDR before and has none now.
    globalnet_ends: bool,
    records: PathBuf,
    /// The file with the daemons' variables.
    variables: PathBuf,
    token_expires: Option<String>,
}

/// Makes a site a member, or repairs what an earlier join made.
pub(crate) async fn join(asked: &Join) -> Result<String> {
    asked.check()?;
    let info = asked.broker()?;
    if asked.clustercidr.is_empty() {
        bail!("a site without Kubernetes has nobody to ask for its subnets: give them with --clustercidr");
    }
    let site = Site::of_records(&asked.records)?;
    let joined = match site.joined() {
        // What is damaged is written anew, for a site that is named.
        Err(SiteError::Line { .. }) if asked.clusterid.is_some() => Some(BTreeMap::new()),
        joined => joined?,
    };
    let before = joined.as_ref().and_then(|variables| variables.get(CLUSTER)).map(String::as_str);
    let cluster = cluster_id(asked, before)?;
    let had_global =
        joined.as_ref().and_then(|variables| variables.get(GLOBAL_CIDR)).is_some_and(|had| !had.is_empty());
    let mut settings = Settings {
        cluster: cluster.clone(),
        networks: Networks {
            plugin: "none".to_owned(),
            pods: asked.clustercidr.clone(),
            services: asked.servicecidr.clone(),
        },
        global: vec![],
        broker_url: info.url.clone(),
        broker_namespace: info.namespace.clone(),
        variables: asked.variables(),
    };
    site.check(&settings)?;
    let broker = Server::of_broker(&info).await?;
    let identity = site.prepare()?;
    let networks = settings.networks.all();
    let member = Member { broker: info.namespace.clone(), cluster: cluster.clone() };
    let rights = join_rights(&broker, &member).await?;
    let wish = match asked.globalnet()? {
        // A join starts no daemon of a site that translates addresses: it has to be meant.
        Choice::AsBroker if had_global => Some(Wish::Default),
        Choice::AsBroker => None,
        choice @ (Choice::Off | Choice::On(_)) => globalnet::wish(choice, &broker, &info.namespace).await?,
    };
    let wanted = wish.as_ref().map(|wish| Asked { cluster: &cluster, wish, local: &networks });
    let request = JoinRequest {
        member,
        identity,
        known: joined.is_some(),
        claims: match &wanted {
            Some(wanted) => globalnet::look(&broker, &info.namespace, wanted).await?,
            None => networks.clone(),
        },
    };
    tell(&format!("Asking the broker for this site's account, {}", broker.url()));
    let credentials = prepare_member(&broker, rights, &request, info.ca.as_deref()).await?;
    if let Some(wanted) = &wanted {
        settings.global = broker.allocate(&info.namespace, wanted).await?;
    }
    tell(&format!("Writing {}", site.variables_file().display()));
    site.keep(&settings, &info.psk, &credentials)?;
    if wanted.is_none() {
        globalnet::give_back(&broker, &info.namespace, &cluster).await?;
    }
    let texts = |cidrs: &[ipnet::IpNet]| cidrs.iter().map(ToString::to_string).collect();
    let report = Report {
        cluster: settings.cluster.to_string(),
        repaired: joined.is_some(),
        cluster_cidr: texts(&settings.networks.pods),
        service_cidr: texts(&settings.networks.services),
        globalnet_ends: had_global && settings.global.is_empty(),
        global_cidr: texts(&settings.global),
        records: site.records().to_owned(),
        variables: site.variables_file(),
        token_expires: credentials.expires.map(|time| time.to_string()),
    };
    render(&report, asked.output)
}

/// Returns the id that was given, or had before, or that somebody types.
fn cluster_id(asked: &Join, before: Option<&str>) -> Result<ClusterId> {
    match (&asked.clusterid, before) {
        (Some(id), Some(before)) if id.as_str() != before => bail!(
            "this site has joined as {before}: pass --clusterid {before} to repair it, or run `culvert uninstall \
             --standalone` first"
        ),
        (Some(id), _) => Ok(id.clone()),
        (None, Some(before)) => before.parse().with_context(|| format!("this site has joined by {before:?}")),
        (None, None) => match ask("Id of this site in its clusterset: ")? {
            Some(id) => id.parse().with_context(|| format!("{id:?} is no id")),
            None => bail!("this site needs an id: give it with --clusterid"),
        },
    }
}

/// Takes a site out of its clusterset, and everything of Culvert off this machine but its programs.
pub(crate) async fn uninstall(records: &Path, broker_info: Option<&Path>, yes: bool) -> Result<String> {
    let site = Site::of_records(records)?;
    let Some(variables) = site.joined()? else {
        bail!("no site has joined from here ({} is not there): name its --records", site.variables_file().display());
    };
    let cluster = variables.get(CLUSTER).map_or("without an id", String::as_str);
    let leaving = match (broker_info, cluster.parse::<ClusterId>()) {
        (Some(file), Ok(cluster)) => Leaving::of_file(file, cluster, &site.prepare()?).await?,
        (None, _) | (_, Err(_)) => Leaving::Nobody {
            cluster: cluster.to_owned(),
            global: variables.get(GLOBAL_CIDR).cloned().unwrap_or_default(),
        },
    };
    confirm(yes, &format!("Take site {cluster} out of its clusterset?"))?;
    let mut left = Vec::new();
    // The gateway first: it takes the records back at the broker.
    let has_global = variables.get(GLOBAL_CIDR).is_some_and(|cidrs| !cidrs.is_empty());
    let daemons = if has_global || beside(GLOBALNET).is_some() { &DAEMONS[..] } else { &WITHOUT_GLOBALNET };
    for daemon in daemons {
        tell(&format!("Taking {daemon} off this machine"));
        left.extend(clean(daemon, &variables).await.err().map(|error| format!("{error:#}")));
    }
    if !left.is_empty() {
        bail!(
            "not all of site {cluster} is gone: {}; run the same command again, or, if the broker is gone for good, delete {}",
            left.join("; "),
            site.directory().display()
        );
    }
    let given_back = leaving.give_back().await;
    site.forget()?;
    Ok(format!(
        "Site {cluster} is uninstalled; left are its records' directory, {}, and who it is, so that it may join \
         again\n{given_back}",
        site.records().display()
    ))
}

/// Returns the program of a daemon if it is where this one is.
fn beside(daemon: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.parent()?.join(daemon);
    program.is_file().then_some(program)
}

/// Runs a daemon's own uninstallation.
async fn clean(daemon: &str, variables: &BTreeMap<String, String>) -> Result<()> {
    let program = beside(daemon).unwrap_or_else(|| daemon.into());
    let mut command = Command::new(&program);
    let output = command.arg("--uninstall").envs(variables).stdin(Stdio::null()).output().await;
    let output = output.with_context(|| format!("cannot run {}: is it installed?", program.display()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words.trim().lines().next_back().unwrap_or("it says nothing");
        bail!("{daemon} --uninstall: {last}");
    }
    Ok(())
}

fn render(report: &Report, output: Output) -> Result<String> {
    match output {
        Output::Json => Ok(serde_json::to_string_pretty(report)? + "\n"),
        Output::Yaml => Ok(serde_yaml_ng::to_string(report)?),
        Output::Table => {
            let done = if report.repaired { "is repaired" } else { "has joined" };
            let mut text = format!("Site {} {done}\nSubnets: {}\n", report.cluster, report.cluster_cidr.join(", "));
            if !report.global_cidr.is_empty() {
                let _ = writeln!(text, "Global addresses: {}", report.global_cidr.join(", "));
            }
            if let Some(expires) = &report.token_expires {
                let _ = writeln!(text, "Its token at the broker expires at {expires}; the gateway renews it");
            }
            let _ = writeln!(
                text,
                "Start the daemons, or start them again, with the variables of {}:",
                report.variables.display()
            );
            let _ = writeln!(text, "    set -a; . {}; set +a", report.variables.display());
            let daemons = if report.global_cidr.is_empty() { &WITHOUT_GLOBALNET[..] } else { &DAEMONS };
            let _ = writeln!(text, "    {} &", daemons.join(" & "));
            if report.globalnet_ends {
                let _ = writeln!(
                    text,
                    "End {GLOBALNET}, and take off this machine what it left:\n    {GLOBALNET} --uninstall"
                );
            }
            Ok(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_told_how_its_daemons_start() {
        let mut report = Report {
            cluster: "edge".to_owned(),
            repaired: false,
            cluster_cidr: vec!["10.9.0.0/16".to_owned()],
            service_cidr: vec![],
            global_cidr: vec![],
            globalnet_ends: false,
            records: "/r/records".into(),
            variables: "/r/site/site.env".into(),
            token_expires: Some("2030-01-01T00:00:00Z".to_owned()),
        };
        let text = render(&report, Output::Table).unwrap();
        assert!(text.starts_with("Site edge has joined\nSubnets: 10.9.0.0/16\n"), "{text}");
        assert!(
            text.ends_with("    set -a; . /r/site/site.env; set +a\n    culvert-gateway & culvert-route-agent &\n")
        );
        let json: serde_json::Value = serde_json::from_str(&render(&report, Output::Json).unwrap()).unwrap();
        assert_eq!((&json["variables"], &json["repaired"]), (&"/r/site/site.env".into(), &false.into()));

        report.globalnet_ends = true;
        let text = render(&report, Output::Table).unwrap();
        let end = "End culvert-globalnet, and take off this machine what it left:\n    culvert-globalnet --uninstall\n";
        assert!(text.ends_with(&format!("culvert-route-agent &\n{end}")), "{text}");
        (report.globalnet_ends, report.global_cidr) = (false, vec!["242.9.0.0/16".to_owned()]);
        let text = render(&report, Output::Table).unwrap();
        assert!(text.ends_with("    culvert-gateway & culvert-route-agent & culvert-globalnet &\n"), "{text}");
    }
}
