//! Takes the steps of a plan, one at a time.
//!
//! Deleting what is not there is a success: the kernel drops what stands on a link that goes.

use std::collections::BTreeMap;
use std::io;

use culvert_model::MacAddr;
use culvert_netstate::own::Owner;
use culvert_netstate::{Fdb, Link, Plan, RouteKey, RouteTarget, Step};
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;

use crate::netlink::Netlink;
use crate::nft::Tables;
use crate::{KernelError, Report, messages, sysctl};

const MAKE: u16 = NLM_F_CREATE | NLM_F_EXCL;
const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;
// errno(3); what the kernel says of links, addresses, neighbours, routes and rules that are not there.
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const ENODEV: i32 = 19;
const EADDRNOTAVAIL: i32 = 99;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("link {0} is not there")]
    NoLink(String),
    #[error("link {0} is of no kind that is ever made")]
    Kind(String),
    #[error("nft table {0} that guards it could not be put")]
    Unguarded(String),
    #[error(transparent)]
    Refused(#[from] io::Error),
    #[error(transparent)]
    Table(#[from] KernelError),
}

pub(crate) async fn apply(netlink: &Netlink, owner: &Owner, tables: &mut Tables, plan: &Plan) -> Report {
    let mut hands = Hands { netlink, protocol: owner.protocol, tables, indexes: BTreeMap::new(), unguarded: None };
    let mut report = Report::default();
    for step in &plan.steps {
        match hands.take(step).await {
            Ok(()) => {
                tracing::debug!(%step, "Kernel was changed");
                report.applied += 1;
            }
            Err(error) => report.failed.push(format!("{step}: {error}")),
        }
    }
    report
}

/// What a plan is applied with.
struct Hands<'a> {
    netlink: &'a Netlink,
    protocol: u8,
    tables: &'a mut Tables,
    /// Indexes of links, as far as asked for.
    indexes: BTreeMap<String, u32>,
    /// A table that could not be put.
    unguarded: Option<String>,
}

impl Hands<'_> {
    async fn take(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::PutTable { name, table } => {
                let put = self.tables.put(name, table).await;
                if put.is_err() {
                    self.unguarded = Some(name.clone());
                }
                put?;
            }
            Step::DeleteTable { name } => self.tables.delete(name).await?,
            Step::AddLink { name, link } => self.add_link(name, link).await?,
            Step::SetMtu { link, mtu } => {
                let message = messages::set_mtu(self.index(link).await?, *mtu);
                self.netlink.change(RouteNetlinkMessage::SetLink(message), 0).await?;
            }
            Step::DeleteLink { name } => self.delete_link(name).await?,
            Step::SetSysctl { path, value } => sysctl::write(path, value)?,
            Step::AddAddress { link, address } => {
                let message = messages::address(self.index(link).await?, address);
                self.netlink.change(RouteNetlinkMessage::NewAddress(message), MAKE).await?;
            }
            Step::DeleteAddress { link, address } => {
                let Some(index) = self.index_to_delete(link).await? else { return Ok(()) };
                self.delete(RouteNetlinkMessage::DelAddress(messages::address(index, address))).await?;
            }
            Step::SetNeighbour { neighbour, mac } => {
                let message = messages::neighbour(self.index(&neighbour.link).await?, neighbour, Some(*mac));
                self.netlink.change(RouteNetlinkMessage::NewNeighbour(message), REPLACE).await?;
            }
            Step::DeleteNeighbour(neighbour) => {
                let Some(index) = self.index_to_delete(&neighbour.link).await? else { return Ok(()) };
                self.delete(RouteNetlinkMessage::DelNeighbour(messages::neighbour(index, neighbour, None))).await?;
            }
            Step::AddFdb(entry) => self.add_fdb(entry).await?,
            Step::DeleteFdb(entry) => {
                let Some(index) = self.index_to_delete(&entry.link).await? else { return Ok(()) };
                self.delete(RouteNetlinkMessage::DelNeighbour(messages::fdb(index, entry))).await?;
            }
            Step::AddRoute { key, target } => self.put_route(key, target, MAKE).await?,
            Step::ReplaceRoute { key, target } => self.put_route(key, target, REPLACE).await?,
            Step::DeleteRoute(key) => {
                self.delete(RouteNetlinkMessage::DelRoute(messages::route_key(key, self.protocol))).await?;
            }
            Step::AddRule(rule) => {
                let message = messages::rule(rule, self.protocol);
                self.netlink.change(RouteNetlinkMessage::NewRule(message), MAKE).await?;
            }
            Step::DeleteRule(rule) => {
                self.delete(RouteNetlinkMessage::DelRule(messages::rule(rule, self.protocol))).await?;
            }
        }
        Ok(())
    }

    async fn add_link(&mut self, name: &str, link: &Link) -> Result<(), StepError> {
        // A VXLAN device without its filter would take datagrams from anybody.
        if let Some(table) = &self.unguarded {
            return Err(StepError::Unguarded(table.clone()));
        }
        let message = messages::new_link(name, link).ok_or_else(|| StepError::Kind(name.to_owned()))?;
        self.netlink.change(RouteNetlinkMessage::NewLink(message), MAKE).await?;
        Ok(())
    }

    async fn delete_link(&mut self, name: &str) -> Result<(), StepError> {
        let Some(index) = self.index_to_delete(name).await? else { return Ok(()) };
        self.indexes.remove(name);
        self.delete(RouteNetlinkMessage::DelLink(messages::link_index(index))).await
    }

    async fn add_fdb(&mut self, entry: &Fdb) -> Result<(), StepError> {
        let message = messages::fdb(self.index(&entry.link).await?, entry);
        let flags = if entry.mac == MacAddr::ZERO { NLM_F_CREATE | NLM_F_APPEND } else { MAKE };
        self.netlink.change(RouteNetlinkMessage::NewNeighbour(message), flags).await?;
        Ok(())
    }

    async fn put_route(&mut self, key: &RouteKey, target: &RouteTarget, flags: u16) -> Result<(), StepError> {
        let message = match target {
            RouteTarget::Via(route) => messages::new_route(key, route, self.index(&route.link).await?, self.protocol),
            RouteTarget::Local => messages::new_local(key, self.index("lo").await?, self.protocol),
            RouteTarget::Unreachable => messages::new_unreachable(key, self.protocol),
        };
        self.netlink.change(RouteNetlinkMessage::NewRoute(message), flags).await?;
        Ok(())
    }

    async fn delete(&self, message: RouteNetlinkMessage) -> Result<(), StepError> {
        match self.netlink.change(message, 0).await {
            Err(error) if is_away(&error) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    /// Returns the index of a link, to make something on it.
    async fn index(&mut self, link: &str) -> Result<u32, StepError> {
        self.index_to_delete(link).await?.ok_or_else(|| StepError::NoLink(link.to_owned()))
    }

    /// Returns the index of a link; `None` if it is not there, and so nothing on it.
    async fn index_to_delete(&mut self, link: &str) -> Result<Option<u32>, StepError> {
        if let Some(index) = self.indexes.get(link) {
            return Ok(Some(*index));
        }
        match self.netlink.ask(RouteNetlinkMessage::GetLink(messages::link_name(link))).await {
            Ok(RouteNetlinkMessage::NewLink(found)) => {
                self.indexes.insert(link.to_owned(), found.header.index);
                Ok(Some(found.header.index))
            }
            Ok(_) => Ok(None),
            Err(error) if is_away(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_away(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOENT | ESRCH | ENODEV | EADDRNOTAVAIL))
}
