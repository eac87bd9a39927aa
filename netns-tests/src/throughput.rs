//! One TCP flow by iperf3.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::run;
use crate::namespace::Namespace;
use crate::wait::wait_for;

const PORT: &str = "5201";

/// Returns the bits per second that arrive in `server` from `from`, over `seconds`.
///
/// # Errors
///
/// iperf3 is not installed, or it failed.
pub fn throughput(from: &Namespace, server: &Namespace, to: Ipv4Addr, seconds: u32) -> Result<f64> {
    let mut child = server
        .command("iperf3")
        .args(["--server", "--one-off", "--port", PORT])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let result = measure(from, server, to, seconds);
    end(&mut child)?;
    result
}

fn measure(from: &Namespace, server: &Namespace, to: Ipv4Addr, seconds: u32) -> Result<f64> {
    wait_for("iperf3's server", Duration::from_secs(5), || {
        let listening = server.run("ss -Hltn")?;
        Ok(listening.contains(&format!(":{PORT}")).then_some(()))
    })?;
    let seconds = seconds.to_string();
    let to = to.to_string();
    let arguments = ["--client", &to, "--port", PORT, "--time", &seconds, "--connect-timeout", "5000", "--json"];
    let json = run(from.command("iperf3").args(arguments))?;
    let report: serde_json::Value = serde_json::from_str(&json).context("iperf3 wrote no JSON")?;
    report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 reported no throughput")
}

fn end(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_none() {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}
