//! The real kernel: observes and applies [`culvert_netstate`] in the network namespace of the calling thread.
//!
//! Decides nothing: what is ours follows from [`Owner`], what is to be done from a [`Plan`]. Links, addresses,
//! neighbours, routes and rules go through rtnetlink, nftables through the `nft` program (elements of services straight
//! over netlink), sysctls through `/proc/sys`.

mod apply;
mod changes;
mod error;
mod facts;
mod flows;
mod messages;
mod netlink;
mod nft;
mod observe;
mod services;
mod sysctl;

use culvert_netstate::own::Owner;
use culvert_netstate::{Plan, State, diff};

pub use changes::Changes;
pub use error::KernelError;
pub use facts::{Interface, NodeFacts, RouteInfo, RouteLookup, node_facts, route_to};
pub use flows::{
    Caller, callers, forget_flows_not_from, forget_flows_past, forget_flows_to, forget_flows_to_hosts,
    forget_translated_flows,
};
pub use nft::nft_counters;
pub use services::{ServiceReport, ServiceTable};

use crate::netlink::Netlink;
use crate::nft::Tables;

/// What one component has in the kernel.
///
/// It stays in the network namespace of the thread that opened it; `nft` and sysctls work in that of the thread that
/// calls, so all calls have to come from threads of the same namespace.
pub struct Kernel {
    owner: Owner,
    netlink: Netlink,
    tables: Tables,
}

/// What became of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Steps that succeeded.
    pub applied: usize,
    /// What failed and why, a line for each step.
    pub failed: Vec<String>,
}

impl Kernel {
    /// Opens the kernel for `owner`. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`KernelError::Capability`] and [`KernelError::NftMissing`] say what the process lacks.
    pub async fn open(owner: Owner) -> Result<Self, KernelError> {
        netlink::check_capability()?;
        nft::check_program().await?;
        Ok(Self { owner, netlink: Netlink::open()?, tables: Tables::default() })
    }

    /// Reads what the owner has in the kernel, and those sysctls that `desired` names.
    ///
    /// A table counts as different from any other until this process has put it, and again after somebody else changed
    /// it; a link that is down has MTU 0.
    ///
    /// # Errors
    ///
    /// What the kernel or nft refused to list.
    pub async fn observe(&mut self, desired: &State) -> Result<State, KernelError> {
        observe::observe(&self.netlink, &self.owner, &mut self.tables, desired).await
    }

    /// Takes the steps of `plan` in order; one that fails does not stop the others, except that no link is made while
    /// the tables that guard it could not be put.
    pub async fn apply(&mut self, plan: &Plan) -> Report {
        apply::apply(&self.netlink, &self.owner, &mut self.tables, plan).await
    }

    /// Brings the kernel from whatever is found to `desired`.
    ///
    /// # Errors
    ///
    /// As [`Self::observe`]; steps that fail are in the report.
    pub async fn converge(&mut self, desired: &State) -> Result<Report, KernelError> {
        let observed = self.observe(desired).await?;
        Ok(self.apply(&diff(&observed, desired)).await)
    }
}
