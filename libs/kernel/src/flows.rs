//! Forgets flows that were translated before the node knew better.
//!
//! The first NAT binding of a flow wins for as long as the flow lives. A client that tried to reach another cluster
//! before its subnets were known here got another source on its way to the default route, and so would every later
//! packet of the same flow: a retried connection, a resolver with a fixed port, an echo. The kernel itself forgets a
//! masqueraded flow whose link changes, but not one of a CNI that gives a fixed source (`snat to`).

use std::collections::BTreeSet;
use std::process::Stdio;

use ipnet::IpNet;
use tokio::process::Command;

use crate::KernelError;

/// Removes the flows to `destination` whose source was changed from connection tracking; their next packet begins anew.
///
/// Flows that keep their source are not touched. Works in the network namespace of the calling thread.
///
/// # Errors
///
/// [`KernelError::ConntrackMissing`] if the program is not there, [`KernelError::Conntrack`] with its own words.
pub async fn forget_translated_flows(destination: IpNet) -> Result<(), KernelError> {
    let listing = conntrack(destination, &["--dump", "--src-nat"]).await?;
    for (source, translated) in translations(&listing) {
        conntrack(destination, &["--delete", "--orig-src", &source, "--reply-dst", &translated]).await?;
    }
    Ok(())
}

/// Runs the program on the flows to `destination` and returns what it lists.
async fn conntrack(destination: IpNet, arguments: &[&str]) -> Result<String, KernelError> {
    let family = if destination.addr().is_ipv4() { "ipv4" } else { "ipv6" };
    let subnet = destination.trunc().to_string();
    let output = Command::new("conntrack")
        .args(arguments)
        .args(["--family", family, "--orig-dst", &subnet])
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(KernelError::ConntrackMissing)?;
    let text = String::from_utf8_lossy(&output.stderr);
    // That there was none to delete any more is a failure by its exit status, and none by ours.
    if output.status.success() || text.contains("0 flow entries have been deleted") {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(KernelError::Conntrack { subnet, text: text.trim().to_owned() })
}

/// Returns the source of each listed flow that has another one on its way, and that other one.
///
/// The program's own `--src-nat` also lists flows whose source was bound to itself.
fn translations(listing: &str) -> BTreeSet<(String, String)> {
    let of_line = |line: &str| {
        let values = |key: &str| line.split_whitespace().filter_map(|word| word.strip_prefix(key)).collect::<Vec<_>>();
        let (sources, destinations) = (values("src="), values("dst="));
        match (sources.as_slice(), destinations.as_slice()) {
            // The tuple of the answers comes second.
            ([source, _], [_, translated]) if source != translated => {
                Some(((*source).to_owned(), (*translated).to_owned()))
            }
            _ => None,
        }
    };
    listing.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flows_with_another_source_count() {
        let listing = "\
tcp      6 84 TIME_WAIT src=10.1.2.2 dst=10.2.2.2 sport=36178 dport=7000 src=10.2.2.2 dst=10.1.2.2 sport=7000 dport=36178 [ASSURED] mark=0 use=1
icmp     1 26 src=10.1.2.2 dst=10.2.2.2 type=8 code=0 id=29 [UNREPLIED] src=10.2.2.2 dst=192.168.1.7 type=0 code=0 id=29 mark=0 use=1
udp      17 20 src=fd01::2 dst=fd02::2 sport=53 dport=53 [UNREPLIED] src=fd02::2 dst=fd00::7 sport=53 dport=53 mark=0 use=1
unreadable line src=10.1.2.2
";
        let expected = [("10.1.2.2", "192.168.1.7"), ("fd01::2", "fd00::7")];
        assert_eq!(translations(listing), expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into());
    }
}
