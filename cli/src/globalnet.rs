//! A cluster's global CIDRs at the broker, on the ways of `join` and `uninstall`: looked at before anything is changed,
//! noted before the daemons know them, given back once they do not.

use std::path::Path;

use anyhow::{Context, Result, bail};
use culvert_model::ClusterId;
use culvert_setup::{Asked, BROKER_FILE, Installation, Member, Server, ServerError, Wish, read};
use ipnet::IpNet;

use crate::globalnet_args::Choice;

/// Decides whether a cluster gets global CIDRs, and which ones it wishes for.
pub(crate) async fn wish(choice: Choice, broker: &Server, namespace: &str) -> Result<Option<Wish>> {
    match choice {
        Choice::Off => Ok(None),
        Choice::On(wish) => Ok(Some(wish)),
        Choice::AsBroker => Ok(broker.globalnet(namespace).await?.is_enabled.then_some(Wish::Default)),
    }
}

/// Returns the global CIDRs that a cluster would get now; says if they are not those that it wishes for.
pub(crate) async fn look(broker: &Server, namespace: &str, asked: &Asked<'_>) -> Result<Vec<IpNet>> {
    let (cidrs, warning) = broker.would_allocate(namespace, asked).await?;
    if let Some(warning) = warning {
        eprintln!("warning: {warning}");
    }
    Ok(cidrs)
}

/// Gives back what a cluster has that runs without Globalnet now; returns it.
pub(crate) async fn give_back(broker: &Server, namespace: &str, cluster: &ClusterId) -> Result<Vec<IpNet>> {
    let given_back = broker.give_back(namespace, cluster.as_str()).await;
    given_back.context("all is done, but the broker still has this cluster's global CIDR: run the same command again")
}

/// Who gives back a cluster's global CIDRs when that leaves.
pub(crate) enum Leaving {
    /// Somebody with the rights of the broker's administrator.
    Administrator { broker: Server, member: Member },
    /// Nobody here can; the CIDRs as they are written, empty if there are none.
    Nobody { cluster: String, global: String },
}

impl Leaving {
    /// Finds out who: the account of a broker file, or the caller himself if the broker is in the cluster that leaves.
    ///
    /// # Errors
    ///
    /// The file cannot be used, or is of another broker.
    pub(crate) async fn of(installation: &Installation, local: &Server, file: Option<&Path>) -> Result<Self> {
        let id = installation.cluster.clone().unwrap_or_default();
        let nobody = || Self::Nobody { cluster: id.clone(), global: installation.global.clone() };
        let Ok(cluster) = id.parse::<ClusterId>() else { return Ok(nobody()) };
        if let Some(file) = file {
            return Self::of_file(file, cluster, &local.identity().await?).await;
        }
        let Some(namespace) = installation.broker_namespace.clone() else { return Ok(nobody()) };
        let member = Member { broker: namespace, cluster };
        let is_here = async { local.hosts(&member, &local.identity().await?).await };
        match is_here.await {
            Ok(true) => Ok(Self::Administrator { broker: local.clone(), member }),
            // Whoever may not look is no administrator.
            Ok(false) | Err(ServerError::Forbidden { .. }) => Ok(nobody()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the account of a broker file, if that broker knows the cluster as this one.
    ///
    /// # Errors
    ///
    /// The file cannot be used, or is of another broker.
    pub(crate) async fn of_file(file: &Path, cluster: ClusterId, identity: &str) -> Result<Self> {
        let info = read(file)?;
        let broker = Server::of_broker(&info).await?;
        let member = Member { broker: info.namespace, cluster };
        if !broker.knows_member(&member, identity).await? {
            bail!(
                "{}: its broker {} does not know this cluster as {}: give the file of the broker that it has joined",
                file.display(),
                broker.url(),
                member.cluster
            );
        }
        Ok(Self::Administrator { broker, member })
    }

    /// Gives back, and returns what is to be told of it: an empty text if there was nothing.
    pub(crate) async fn give_back(&self) -> String {
        match self {
            Self::Nobody { global, .. } if global.is_empty() => String::new(),
            Self::Nobody { cluster, global } => left(cluster, &format!("Global CIDR {global} is still noted")),
            Self::Administrator { broker, member } => {
                match broker.give_back(&member.broker, member.cluster.as_str()).await {
                    Ok(cidrs) if cidrs.is_empty() => String::new(),
                    Ok(cidrs) => format!("Global CIDR {} is given back\n", joined(&cidrs)),
                    Err(error) => {
                        left(member.cluster.as_str(), &format!("Its global CIDR may still be noted ({error})"))
                    }
                }
            }
        }
    }
}

/// Gives back the global CIDRs of a cluster that is gone, or that left when nobody could.
pub(crate) async fn forget(file: &Path, cluster: &ClusterId) -> Result<String> {
    let info = read(file)?;
    let broker = Server::of_broker(&info).await?;
    let member = Member { broker: info.namespace, cluster: cluster.clone() };
    if broker.has_cluster(&member).await? {
        bail!(
            "cluster {cluster} still announces itself at the broker: run `culvert uninstall` there, or if it is gone, \
             delete its Endpoints and Cluster {cluster} at the broker"
        );
    }
    let cidrs = broker.give_back(&member.broker, cluster.as_str()).await?;
    Ok(match &cidrs[..] {
        [] => format!("The broker has no global CIDR of cluster {cluster}\n"),
        cidrs => format!("Global CIDR {} of cluster {cluster} is given back\n", joined(cidrs)),
    })
}

fn left(cluster: &str, what: &str) -> String {
    format!(
        "{what} at the broker, whose administrator can give it back: culvert uninstall --gone {cluster} --broker-info \
         {BROKER_FILE}\n"
    )
}

pub(crate) fn joined(cidrs: &[IpNet]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_may_not_give_back_says_what_is_left_and_what_helps() {
        let nobody = |global: &str| Leaving::Nobody { cluster: "east".to_owned(), global: global.to_owned() };
        assert_eq!(nobody("").give_back().await, "");
        let text = nobody("242.1.0.0/16").give_back().await;
        assert!(text.starts_with("Global CIDR 242.1.0.0/16 is still noted at the broker"), "{text}");
        assert!(text.ends_with("culvert uninstall --gone east --broker-info broker-info.subm\n"), "{text}");
    }
}
