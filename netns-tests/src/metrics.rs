//! Reads a daemon's metrics as a monitoring system does.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;

const TIMEOUT: Duration = Duration::from_secs(2);

/// Returns all series of the daemon that serves on this port inside a namespace: name and labels, as written, to value.
///
/// # Errors
///
/// Nothing is served there, or something else than metrics.
pub fn metrics(of: &Namespace, port: u16) -> Result<BTreeMap<String, f64>> {
    let answer = of.enter(|| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream =
            TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("no metrics on {port}"))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "metrics are refused: {head}");
    parse(body)
}

fn parse(text: &str) -> Result<BTreeMap<String, f64>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').with_context(|| format!("no metric: {line}"))?;
            Ok((series.to_owned(), value.parse().with_context(|| format!("no value: {line}"))?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_told_by_name_and_labels() {
        let read = parse("# HELP a words\n# TYPE a gauge\na{b=\"c d\"} 3\na{b=\"e\"} 0.5\n# EOF\n").unwrap();
        assert_eq!(read, BTreeMap::from([("a{b=\"c d\"}".to_owned(), 3.0), ("a{b=\"e\"}".to_owned(), 0.5)]));
        assert!(parse("nonsense").is_err());
    }
}
