//! Whether the routes to remote clusters are in, on every node of a cluster, by the kernel's own word.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use culvert_netns_tests::kubernetes::{Cluster, Node};
use culvert_netns_tests::run;

/// Between two looks: each takes a few milliseconds of a machine that has other things to do meanwhile.
const LOOK: Duration = Duration::from_millis(50);
/// The longest that is waited for: routes are measured, and not to come at all is no measurement.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where routes to remote subnets are on a node.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Into the cables, on the active gateway.
    Cables,
    /// Over the overlay to the gateway, everywhere else.
    Overlay,
}

/// The routes of all nodes of a cluster, with the number that each had at first.
pub(crate) struct Routes<'a> {
    nodes: Vec<(&'a Node, Way, usize)>,
}

impl<'a> Routes<'a> {
    /// Counts the routes that are there now.
    pub(crate) fn on(cluster: &'a Cluster, active: &Node) -> Result<Self> {
        let count = |node: &'a Node| {
            let way = if node.name == active.name { Way::Cables } else { Way::Overlay };
            Ok((node, way, way.count(node)?))
        };
        Ok(Self { nodes: cluster.nodes.iter().map(count).collect::<Result<_>>()? })
    }

    /// Waits until every node has exactly `more` routes more than at first; returns when that was seen.
    ///
    /// # Errors
    ///
    /// It takes minutes: the error has the counts.
    pub(crate) fn wait_for(&self, more: usize) -> Result<Instant> {
        let start = Instant::now();
        let mut left: Vec<&(&Node, Way, usize)> = self.nodes.iter().collect();
        loop {
            let mut missing = Vec::new();
            let mut words = Vec::new();
            for entry @ (node, way, at_first) in left {
                let count = way.count(node)?;
                if count != at_first + more {
                    words.push(format!("{} has {count} of {}", node.name, at_first + more));
                    missing.push(entry);
                }
            }
            let now = Instant::now();
            if missing.is_empty() {
                return Ok(now);
            }
            left = missing;
            ensure!(now.duration_since(start) < PATIENCE, "the routes are not in: {}", words.join(", "));
            std::thread::sleep(LOOK);
        }
    }
}

impl Way {
    fn count(self, node: &Node) -> Result<usize> {
        // Tables and links as ARCHITECTURE.md has them.
        let (table, link) = match self {
            Self::Cables => ("7201", "culvert-wg"),
            Self::Overlay => ("7202", "culvert-ov"),
        };
        let mut command = std::process::Command::new("ip");
        command.args(["-n", node.namespace.name(), "route", "show", "table", table]);
        // A table without routes does not exist.
        let listing = run(&mut command).unwrap_or_default();
        Ok(listing.lines().filter(|line| line.split(' ').any(|word| word == link)).count())
    }
}
