//! Forgets flows that were translated before the node knew better.
//!
//! The first NAT binding of a flow wins for as long as the flow lives. A client that tried to reach another cluster
//! before its subnets were known here got another source on its way to the default route, and so would every later
//! packet of the same flow: a retried connection, a resolver with a fixed port, an echo. The kernel itself forgets a
//! masqueraded flow whose link changes, but not one of a CNI that gives a fixed source (`snat to`).

use std::process::Stdio;

use ipnet::IpNet;
use tokio::process::Command;

use crate::KernelError;

/// Removes the source-translated flows to `destination` from connection tracking; their next packet begins anew.
///
/// Flows whose source is bound to itself are not touched. Works in the network namespace of the calling thread.
///
/// # Errors
///
/// [`KernelError::ConntrackMissing`] if the program is not there, [`KernelError::Conntrack`] with its own words.
pub async fn forget_translated_flows(destination: IpNet) -> Result<(), KernelError> {
    let family = if destination.addr().is_ipv4() { "ipv4" } else { "ipv6" };
    let subnet = destination.trunc().to_string();
    let output = Command::new("conntrack")
        .args(["--delete", "--src-nat", "--family", family, "--orig-dst", &subnet])
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(KernelError::ConntrackMissing)?;
    let text = String::from_utf8_lossy(&output.stderr);
    // That there was none to delete is a failure by its exit status, and none by ours.
    if output.status.success() || text.contains("0 flow entries have been deleted") {
        return Ok(());
    }
    Err(KernelError::Conntrack { subnet, text: text.trim().to_owned() })
}
