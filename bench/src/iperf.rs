//! Bulk TCP by iperf3: its JSON holds the bytes that arrived and the segments that were sent again.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use culvert_netns_tests::{Namespace, wait_for};
use serde::Serialize;
use serde_json::Value;

const PORT: &str = "5201";

/// Which way, and on how many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    OneFlow,
    EightFlows,
    /// One flow, from the server to the client.
    Reverse,
}

impl Shape {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::OneFlow => &[],
            Self::EightFlows => &["--parallel", "8"],
            Self::Reverse => &["--reverse"],
        }
    }
}

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Bulk {
    /// Payload.
    pub(crate) bytes: f64,
    pub(crate) bits_per_second: f64,
    pub(crate) retransmits: u64,
}

/// Sends as much as goes through for `seconds`.
///
/// # Errors
///
/// What iperf3 says of it.
pub(crate) fn bulk(from: &Namespace, server: &Namespace, to: Ipv4Addr, shape: Shape, seconds: u32) -> Result<Bulk> {
    let _server = Server::start(server)?;
    let (to, time) = (to.to_string(), seconds.to_string());
    let mut client = from.command("iperf3");
    client.args(["--client", &to, "--port", PORT, "--time", &time, "--connect-timeout", "5000", "--json"]);
    let output = client.args(shape.arguments()).stdin(Stdio::null()).output().context("cannot start iperf3")?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// A server for one test.
struct Server(Child);

impl Server {
    fn start(namespace: &Namespace) -> Result<Self> {
        let mut command: Command = namespace.command("iperf3");
        command.args(["--server", "--one-off", "--port", PORT]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(command.spawn().context("cannot start iperf3")?);
        wait_for("iperf3's server", Duration::from_secs(5), || {
            let listening = namespace.run("ss -Hltn")?;
            Ok(listening.contains(&format!(":{PORT}")).then_some(()))
        })?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After its one test it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads iperf3's report.
fn parse(json: &str) -> Result<Bulk> {
    let report: Value = serde_json::from_str(json).map_err(|error| anyhow!("iperf3 wrote no JSON: {error}"))?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let end = &report["end"];
    let number = |group: &str, name: &str| {
        end[group][name].as_f64().with_context(|| format!("iperf3's report has no end.{group}.{name}"))
    };
    Ok(Bulk {
        bytes: number("sum_received", "bytes")?,
        bits_per_second: number("sum_received", "bits_per_second")?,
        retransmits: end["sum_sent"]["retransmits"]
            .as_u64()
            .context("iperf3's report has no end.sum_sent.retransmits")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_receiver_got_counts() {
        let json = r#"{"start": {}, "end": {
            "sum_sent": {"bytes": 900, "bits_per_second": 7200.0, "retransmits": 3, "sender": true},
            "sum_received": {"bytes": 800, "bits_per_second": 6400.5, "sender": true}}}"#;
        assert_eq!(parse(json).unwrap(), Bulk { bytes: 800.0, bits_per_second: 6400.5, retransmits: 3 });
    }

    #[test]
    fn iperf3s_own_words_are_the_error() {
        let json = r#"{"start": {}, "end": {}, "error": "unable to connect to server: No route to host"}"#;
        assert_eq!(parse(json).unwrap_err().to_string(), "iperf3: unable to connect to server: No route to host");
    }

    #[test]
    fn a_cut_report_is_an_error() {
        assert!(parse("").is_err());
        let error = parse(r#"{"end": {"sum_received": {"bytes": 1}}}"#).unwrap_err();
        assert_eq!(error.to_string(), "iperf3's report has no end.sum_received.bits_per_second");
    }
}
