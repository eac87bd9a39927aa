//! The result: tables, and every figure as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::traffic::Figures;
use crate::control::process::Spent;
use crate::report::Machine;
use crate::statistics::{Spread, percentile};
use crate::table::{number, render};

/// A run of the bench.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// In which nothing changed.
    pub(crate) seconds: u64,
    pub(crate) rows: Vec<Row>,
    pub(crate) visits: Vec<Visit>,
}

/// A gateway.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) services: u32,
    /// From the daemon's start until each export had its address and said so.
    pub(crate) settled_seconds: f64,
    /// While nothing changed.
    pub(crate) idle: Spent,
    /// While endpoints changed.
    pub(crate) changing: Option<Spent>,
    /// For each, milliseconds until it was in the kernel.
    pub(crate) changes: Vec<f64>,
    pub(crate) exports: Vec<Sample>,
}

/// An export, in milliseconds from when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Until the kernel had the service.
    pub(crate) translated: f64,
    /// Until its object said the address; looked for every 20 ms.
    pub(crate) known: f64,
    /// Until a client then had a connection.
    pub(crate) answered: f64,
}

/// A look at the packets' way through a gateway.
#[derive(Serialize)]
pub(crate) struct Visit {
    pub(crate) services: u32,
    /// To a pod's own address.
    pub(crate) direct: Figures,
    /// To a service's global address.
    pub(crate) served: Option<Figures>,
}

impl Row {
    pub(crate) fn new(services: u32, settled_seconds: f64, idle: Spent) -> Self {
        Self { services, settled_seconds, idle, changing: None, changes: Vec::new(), exports: Vec::new() }
    }
}

impl Report {
    /// Writes all tables.
    pub(crate) fn text(&self) -> String {
        let Machine { kernel, cpus, load_average } = &self.machine;
        let mut text = format!(
            "Linux {kernel}, {cpus} CPUs, load {load_average} before; the stand-in for an API server runs on them too. \
             Watched for {} s.\n",
            self.seconds
        );
        for (title, table) in [
            ("Milliseconds, the middle one and the ninth of ten", self.delays()),
            ("The daemon", self.costs()),
            (
                "The packets' way: medians, and the ratio to a pod's own address at a gateway without services",
                self.ways(),
            ),
        ] {
            let _ = write!(text, "\n{title}\n\n{table}");
        }
        text
    }

    fn delays(&self) -> String {
        let header =
            ["exported services", "endpoint in the kernel", "export in the kernel", "address known", "connected"];
        let row = |row: &Row| {
            let exports = |of: fn(&Sample) -> f64| both(&row.exports.iter().map(of).collect::<Vec<_>>());
            vec![
                row.services.to_string(),
                both(&row.changes),
                exports(|sample| sample.translated),
                exports(|sample| sample.known),
                exports(|sample| sample.answered),
            ]
        };
        let rows: Vec<_> = self.rows.iter().filter(|row| row.services > 0).map(row).collect();
        render(&header.map(str::to_owned), &rows)
    }

    fn costs(&self) -> String {
        let header = [
            "exported services",
            "all addresses given after, s",
            "CPU s per minute idle",
            "CPU ms per change",
            "resident MB",
            "of it own",
            "peak MB",
        ];
        let row = |row: &Row| {
            let changing = row.changing.map(|spent| spent.cpu_seconds * 1e3 / row.changes.len() as f64);
            vec![
                row.services.to_string(),
                if row.services == 0 { "-".to_owned() } else { number(row.settled_seconds) },
                number(row.idle.cpu_per_minute()),
                changing.map_or_else(|| "-".to_owned(), number),
                number(row.idle.memory.resident),
                number(row.idle.memory.anonymous),
                number(row.idle.memory.peak),
            ]
        };
        render(&header.map(str::to_owned), &self.rows.iter().map(row).collect::<Vec<_>>())
    }

    fn ways(&self) -> String {
        let header = ["to", "connections/s", "", "first answer, µs", "", "exchanges/s", "", "Gbit/s", ""];
        let measures: [fn(&Figures) -> f64; 4] =
            [|it| it.connections, |it| it.first_answer, |it| it.exchanges, |it| it.gigabits];
        let figures = |services: u32, served: bool| -> Vec<&Figures> {
            let of_gateway = self.visits.iter().filter(move |visit| visit.services == services);
            of_gateway.filter_map(|visit| if served { visit.served.as_ref() } else { Some(&visit.direct) }).collect()
        };
        let middle = |figures: &[&Figures], measure: fn(&Figures) -> f64| {
            Spread::of(&figures.iter().map(|it| measure(it)).collect::<Vec<_>>()).map(|spread| spread.median)
        };
        let base = figures(0, false);
        let mut rows = Vec::new();
        for row in &self.rows {
            for (what, served) in [("pod", false), ("service", true)] {
                let found = figures(row.services, served);
                if found.is_empty() {
                    continue;
                }
                let mut cells = vec![format!("a {what}, {} services", row.services)];
                for measure in measures {
                    let (value, base) = (middle(&found, measure).unwrap_or_default(), middle(&base, measure));
                    cells.push(number(value));
                    cells.push(base.map_or_else(|| "-".to_owned(), |base| format!("× {}", number(value / base))));
                }
                rows.push(cells);
            }
        }
        render(&header.map(str::to_owned), &rows)
    }
}

/// Writes the middle one of a sample and the ninth of ten.
fn both(sample: &[f64]) -> String {
    match (percentile(sample, 50), percentile(sample, 90)) {
        (Some(middle), Some(ninth)) => format!("{}, {}", number(middle), number(ninth)),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::process::Memory;

    fn report() -> Report {
        let spent = Spent { seconds: 30.0, cpu_seconds: 0.5, datagrams_per_second: 0.0, memory: Memory::default() };
        let figures = |connections| Figures { connections, first_answer: 50.0, exchanges: 2.0e4, gigabits: 8.0 };
        let mut row = Row::new(10, 1.5, spent);
        row.changes = vec![1.0, 2.0, 3.0];
        row.changing = Some(spent);
        row.exports = vec![Sample { translated: 4.0, known: 20.0, answered: 21.0 }];
        let visit = |services, served| Visit { services, direct: figures(8000.0), served };
        Report {
            machine: Machine { kernel: "6.18".to_owned(), cpus: 2, load_average: "0 0 0".to_owned() },
            seconds: 30,
            rows: vec![Row::new(0, 0.5, spent), row],
            visits: vec![visit(0, None), visit(10, Some(figures(6000.0)))],
        }
    }

    #[test]
    fn the_tables_have_a_row_for_each_gateway_and_ratios_to_the_one_without_services() {
        let text = report().text();
        assert!(text.contains("2.00, 3.00"), "{text}");
        let way = text.lines().find(|line| line.starts_with("| a service, 10 services")).unwrap();
        assert!(way.contains("× 0.75"), "{way}");
        assert!(!text.contains("| a service, 0 services"), "{text}");
    }

    #[test]
    fn the_json_has_what_the_tables_are_made_of() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(
            (&json["rows"][1]["changes"][2], &json["visits"][1]["served"]["connections"]),
            (&3.0.into(), &6000.0.into())
        );
    }
}
