//! The result: tables, and every figure as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::control::crowd::Lag;
use crate::control::process::Spent;
use crate::control::requests::{Rates, kinds};
use crate::report::Machine;
use crate::table::{number, render};

/// A run of the bench.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// In which nothing changed, each time.
    pub(crate) seconds: u64,
    pub(crate) join: Join,
    pub(crate) idle: Idle,
    pub(crate) loads: Vec<Load>,
}

/// How the second cluster joined, in seconds from the start of `culvert join`.
#[derive(Serialize)]
pub(crate) struct Join {
    pub(crate) command_seconds: f64,
    pub(crate) first_ping_seconds: f64,
}

/// Two joined clusters, and nothing changes.
#[derive(Serialize)]
pub(crate) struct Idle {
    pub(crate) components: Vec<Component>,
    /// Requests that Culvert makes, per minute.
    pub(crate) west: Rates,
    /// The same at the cluster with the broker.
    pub(crate) east: Rates,
}

/// What a daemon of west used in a while.
#[derive(Serialize)]
pub(crate) struct Component {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) spent: Spent,
}

/// Remote clusters at the broker.
#[derive(Serialize)]
pub(crate) struct Load {
    pub(crate) remotes: u32,
    /// How long it took to write their records at the broker.
    pub(crate) write_seconds: f64,
    /// When the last node had all routes.
    pub(crate) routes_in: Lag,
    /// The same for their removal.
    pub(crate) routes_gone: Lag,
    /// From before the first write until the routes were in.
    pub(crate) arriving: Vec<Component>,
    /// Once all records are copied.
    pub(crate) steady: Vec<Component>,
    /// Requests at west, per minute, with no change of the remote clusters.
    pub(crate) requests: Rates,
    pub(crate) gateway_record_bytes: usize,
    pub(crate) route_agent_record_bytes: usize,
    /// How often another gateway took over meanwhile.
    pub(crate) takeovers: u64,
}

impl Report {
    /// Writes all tables.
    pub(crate) fn text(&self) -> String {
        let Machine { kernel, cpus, load_average } = &self.machine;
        let mut text = format!(
            "Linux {kernel}, {cpus} CPUs, load {load_average} before; both clusters on it. Watched for {} s each time.\n",
            self.seconds
        );
        let Join { command_seconds, first_ping_seconds } = self.join;
        let _ = writeln!(
            text,
            "\nThe second cluster joins: first ping from pod to pod {first_ping_seconds:.1} s after the start of \
             `culvert join`, which takes {command_seconds:.1} s."
        );
        for (title, table) in [
            ("Remote Endpoints at the broker, seconds", self.routes()),
            ("Components of a cluster", self.components()),
            ("Requests to API servers per minute when nothing changes", self.requests()),
        ] {
            let _ = write!(text, "\n{title}\n\n{table}");
        }
        text
    }

    fn routes(&self) -> String {
        let header = [
            "remote Endpoints",
            "written in",
            "all routes after the first write",
            "after the last",
            "gone after the last deletion",
            "Gateway record, kB",
            "RouteAgent record, kB",
            "takeovers",
        ];
        let row = |load: &Load| {
            vec![
                load.remotes.to_string(),
                number(load.write_seconds),
                number(load.routes_in.from_first_write),
                number(load.routes_in.from_last_write),
                number(load.routes_gone.from_last_write),
                number(load.gateway_record_bytes as f64 / 1e3),
                number(load.route_agent_record_bytes as f64 / 1e3),
                load.takeovers.to_string(),
            ]
        };
        render(&header.map(str::to_owned), &self.loads.iter().map(row).collect::<Vec<_>>())
    }

    fn components(&self) -> String {
        let header = [
            "component",
            "remote Endpoints",
            "CPU s until the routes are in",
            "CPU s per minute then",
            "resident MB",
            "of it own",
            "share of what is shared counted",
            "peak MB",
            "datagrams/s of its node",
        ];
        let row = |remotes: u32, arriving: Option<&Component>, steady: &Component| {
            let Spent { memory, datagrams_per_second, .. } = steady.spent;
            vec![
                steady.name.clone(),
                remotes.to_string(),
                arriving.map_or_else(|| "-".to_owned(), |arriving| number(arriving.spent.cpu_seconds)),
                number(steady.spent.cpu_per_minute()),
                number(memory.resident),
                number(memory.anonymous),
                number(memory.proportional),
                number(memory.peak),
                number(datagrams_per_second),
            ]
        };
        let mut rows = Vec::new();
        for (at, component) in self.idle.components.iter().enumerate() {
            rows.push(row(0, None, component));
            rows.extend(self.loads.iter().map(|load| row(load.remotes, load.arriving.get(at), &load.steady[at])));
        }
        render(&header.map(str::to_owned), &rows)
    }

    fn requests(&self) -> String {
        let mut columns = vec![
            ("member, two gateways".to_owned(), &self.idle.west),
            ("member with the broker, one gateway".to_owned(), &self.idle.east),
        ];
        columns.extend(self.loads.iter().map(|load| (format!("member, {} remotes", load.remotes), &load.requests)));
        let mut header = vec!["request".to_owned()];
        header.extend(columns.iter().map(|(title, _)| title.clone()));
        let line = |what: String, of: &dyn Fn(&Rates) -> f64| {
            let mut row = vec![what];
            row.extend(columns.iter().map(|(_, rates)| number(of(rates))));
            row
        };
        let mut rows: Vec<Vec<String>> = kinds(columns.iter().map(|(_, rates)| *rates))
            .into_iter()
            .map(|what| line(what.clone(), &|rates| rates.0.get(&what).copied().unwrap_or_default()))
            .collect();
        rows.push(line("all but watches".to_owned(), &Rates::without_watches));
        render(&header, &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::process::Memory;

    fn component(cpu_seconds: f64) -> Component {
        let memory = Memory { resident: 12.5, proportional: 9.0, anonymous: 6.0, peak: 14.0 };
        let spent = Spent { seconds: 30.0, cpu_seconds, datagrams_per_second: 2.0, memory };
        Component { name: "gateway, active".to_owned(), spent }
    }

    fn report() -> Report {
        let rates = |what: &str, rate| Rates([(what.to_owned(), rate)].into());
        let lag = Lag { from_first_write: 3.0, from_last_write: 0.75 };
        let load = Load {
            remotes: 200,
            write_seconds: 2.25,
            routes_in: lag,
            routes_gone: lag,
            arriving: vec![component(1.5)],
            steady: vec![component(0.5)],
            requests: rates("WATCH endpoints", 2.0),
            gateway_record_bytes: 180_000,
            route_agent_record_bytes: 120_000,
            takeovers: 0,
        };
        Report {
            machine: Machine { kernel: "6.18".to_owned(), cpus: 2, load_average: "0 0 0".to_owned() },
            seconds: 30,
            join: Join { command_seconds: 9.0, first_ping_seconds: 7.5 },
            idle: Idle { components: vec![component(0.1)], west: rates("PUT leases", 12.0), east: Rates::default() },
            loads: vec![load],
        }
    }

    #[test]
    fn each_component_has_a_row_for_every_number_of_remotes() {
        let text = report().text();
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| gateway, active")).collect();
        assert_eq!(rows.len(), 2, "{text}");
        assert!(rows[0].contains("|                0 |") && rows[1].contains("|              200 |"), "{text}");
        assert!(rows[1].contains(" 1.50 |") && rows[1].contains(" 1.00 |"), "{text}");
    }

    #[test]
    fn watches_are_listed_and_not_summed() {
        let text = report().text();
        let sum = text.lines().find(|line| line.starts_with("| all but watches")).unwrap();
        let cells: Vec<&str> = sum.split('|').map(str::trim).collect();
        assert_eq!(cells[2..5], ["12.0", "0.00", "0.00"], "{text}");
        assert!(text.contains("| WATCH endpoints"), "{text}");
    }

    #[test]
    fn the_json_has_what_the_tables_are_made_of() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["loads"][0]["routes_in"]["from_last_write"], 0.75);
        assert_eq!(json["loads"][0]["steady"][0]["memory"]["resident"], 12.5);
        assert_eq!(json["idle"]["west"]["PUT leases"], 12.0);
    }
}
