//! What Culvert's processes on a node cost, by /proc (proc(5)): processor time with that of the programs that they run,
//! memory, and what their node's network sends.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use culvert_netns_tests::kubernetes::Node;
use serde::Serialize;

/// Ticks of processor time in a second, the same on every machine (USER_HZ).
const TICKS: f64 = 100.0;

/// A daemon of Culvert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Program {
    Gateway,
    RouteAgent,
}

impl Program {
    pub(crate) const ALL: [Self; 2] = [Self::Gateway, Self::RouteAgent];

    fn file_name(self) -> &'static str {
        match self {
            Self::Gateway => "culvert-gateway",
            Self::RouteAgent => "culvert-route-agent",
        }
    }
}

/// A running daemon.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    directory: PathBuf,
}

/// What a process has used until a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    at: Instant,
    /// Seconds of processor time.
    cpu: f64,
    /// Datagrams that the process's network has sent.
    datagrams: f64,
    memory: Memory,
}

/// Memory, in megabytes of a million bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Memory {
    /// Resident, pages of the binary included.
    pub(crate) resident: f64,
    /// The same with each page divided by how many have it.
    pub(crate) proportional: f64,
    /// The process's own.
    pub(crate) anonymous: f64,
    /// The most that was ever resident.
    pub(crate) peak: f64,
}

/// What a process used between two moments.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spent {
    /// How long, in seconds.
    pub(crate) seconds: f64,
    /// Seconds of processor time.
    pub(crate) cpu_seconds: f64,
    /// Of its network, per second.
    pub(crate) datagrams_per_second: f64,
    /// In the end.
    pub(crate) memory: Memory,
}

impl Spent {
    /// Returns processor time in seconds per minute.
    pub(crate) fn cpu_per_minute(&self) -> f64 {
        self.cpu_seconds * 60.0 / self.seconds
    }
}

impl Process {
    /// Finds the daemon on a node.
    ///
    /// # Errors
    ///
    /// It does not run there.
    pub(crate) fn find(node: &Node, program: Program) -> Result<Self> {
        let listing =
            culvert_netns_tests::run(std::process::Command::new("ip").args(["netns", "pids", node.namespace.name()]))?;
        for id in listing.lines().map(str::trim) {
            let directory = PathBuf::from("/proc").join(id);
            // It may have ended since it was listed.
            let Ok(executable) = fs::read_link(directory.join("exe")) else { continue };
            if executable.file_name().is_some_and(|name| name == program.file_name()) {
                return Ok(Self { directory });
            }
        }
        bail!("{} does not run on {}", program.file_name(), node.name)
    }

    /// Names a daemon by its process id.
    pub(crate) fn of(id: u32) -> Self {
        Self { directory: PathBuf::from("/proc").join(id.to_string()) }
    }

    /// Reads what it has used until now.
    ///
    /// # Errors
    ///
    /// It has ended: a daemon that is measured must not.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let read = |name: &str| {
            let path = self.directory.join(name);
            fs::read_to_string(&path).with_context(|| format!("{} cannot be read: has it ended?", path.display()))
        };
        Ok(Usage {
            at: Instant::now(),
            cpu: cpu_seconds(&read("stat")?).context("stat is not as proc(5) has it")?,
            datagrams: datagrams(&read("net/snmp")?).context("net/snmp has no UDP")?,
            memory: memory(&read("status")?, &read("smaps_rollup")?).context("the memory is not said")?,
        })
    }
}

impl Usage {
    /// Returns what was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Spent {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        Spent {
            seconds,
            cpu_seconds: self.cpu - before.cpu,
            datagrams_per_second: (self.datagrams - before.datagrams) / seconds,
            memory: self.memory,
        }
    }
}

/// Sums the time of a process and of those children that it has waited for.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(11).take(4).map(str::parse::<f64>).collect::<Result<Vec<_>, _>>();
    let ticks = ticks.ok().filter(|ticks| ticks.len() == 4)?;
    Some(ticks.iter().sum::<f64>() / TICKS)
}

fn memory(status: &str, rollup: &str) -> Option<Memory> {
    let megabytes = |text: &str, field: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        let kibibytes: f64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kibibytes * 1024.0 / 1e6)
    };
    Some(Memory {
        resident: megabytes(rollup, "Rss")?,
        proportional: megabytes(rollup, "Pss")?,
        anonymous: megabytes(rollup, "Anonymous")?,
        peak: megabytes(status, "VmHWM")?,
    })
}

fn datagrams(snmp: &str) -> Option<f64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let position = names.split_whitespace().position(|name| name == "OutDatagrams")?;
    values.split_whitespace().nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_that_of_the_process_and_its_children() {
        let stat = "17 (a) b) S 1 17 17 0 -1 4194560 900 0 0 0 150 50 20 30 20 0 3 0 100 0 0";
        assert_eq!(cpu_seconds(stat), Some(2.5));
        assert_eq!(cpu_seconds("17 (a) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_millions_of_bytes() {
        let rollup = "55-7f ---p 00000000 00:00 0 [rollup]\nRss:    10000 kB\nPss:     5000 kB\nPss_Dirty: 1 kB\nAnonymous: 2500 kB\n";
        let memory = memory("Name:\tx\nVmHWM:\t   20000 kB\n", rollup).unwrap();
        let expected = Memory { resident: 10.24, proportional: 5.12, anonymous: 2.56, peak: 20.48 };
        assert_eq!(memory, expected);
    }

    #[test]
    fn datagrams_are_found_by_the_name_of_their_column() {
        let snmp = "Tcp: A B\nTcp: 1 2\nUdp: InDatagrams NoPorts InErrors OutDatagrams\nUdp: 7 0 0 9\n";
        assert_eq!(datagrams(snmp), Some(9.0));
        assert_eq!(datagrams("Tcp: A\nTcp: 1\n"), None);
    }
}
