//! The result: tables of medians, ratios between candidates, and every raw figure as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Serialize;

use crate::candidate::Candidate;
use crate::measure::{Figure, Measure, TOPICS};
use crate::statistics::Spread;
use crate::table::{number, render};
use crate::tools::Tool;
use crate::visit::{Outcome, Visit};

/// What Culvert's WireGuard cable is set against.
const RIVALS: [Candidate; 2] = [Candidate::BoringtunCli, Candidate::WireguardGo];

/// A run of the bench.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    /// Of a TCP phase.
    pub(crate) seconds: u32,
    pub(crate) tools: BTreeMap<Candidate, Tool>,
    pub(crate) summary: BTreeMap<Candidate, BTreeMap<Measure, Cell>>,
    pub(crate) visits: Vec<Visit>,
}

/// Where it ran.
#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    /// The averages before the run, as the kernel writes them: a busy machine makes poor figures.
    pub(crate) load_average: String,
}

/// A measure of a candidate over all rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cell {
    #[serde(flatten)]
    spread: Option<Spread>,
    /// Rounds in which it could not be measured.
    failed: usize,
}

impl Cell {
    fn of(figures: &[Figure]) -> Self {
        let mut values = Vec::new();
        let mut failed = 0;
        for figure in figures {
            match figure {
                Figure::Value(value) => values.push(*value),
                Figure::Absent => {}
                Figure::Failed(_) => failed += 1,
            }
        }
        Self { spread: Spread::of(&values), failed }
    }

    fn text(&self) -> String {
        let failed = if self.failed > 0 { " !" } else { "" };
        match self.spread {
            None if self.failed > 0 => "error".to_owned(),
            None => "-".to_owned(),
            Some(Spread { median, min, max }) if min == max => format!("{}{failed}", number(median)),
            Some(Spread { median, min, max }) => {
                format!("{} ({}-{}){failed}", number(median), number(min), number(max))
            }
        }
    }
}

/// Summarises visits.
pub(crate) fn summarise(visits: &[Visit]) -> BTreeMap<Candidate, BTreeMap<Measure, Cell>> {
    let mut figures: BTreeMap<Candidate, BTreeMap<Measure, Vec<Figure>>> = BTreeMap::new();
    for visit in visits {
        let of_candidate = figures.entry(visit.candidate).or_default();
        for &measure in TOPICS.iter().flat_map(|topic| topic.measures) {
            of_candidate.entry(measure).or_default().push(figure(visit, measure));
        }
    }
    let cells = |figures: BTreeMap<Measure, Vec<Figure>>| {
        figures.into_iter().map(|(measure, figures)| (measure, Cell::of(&figures))).collect()
    };
    figures.into_iter().map(|(candidate, figures)| (candidate, cells(figures))).collect()
}

fn figure(visit: &Visit, measure: Measure) -> Figure {
    match &visit.phases {
        Outcome::Measured(phases) => measure.of(phases),
        Outcome::Failed { error } => Figure::Failed(error.clone()),
    }
}

impl Report {
    /// Writes all tables, and below them what went wrong.
    pub(crate) fn text(&self) -> String {
        let Machine { kernel, cpus, load_average } = &self.machine;
        let mut text = format!(
            "Linux {kernel}, {cpus} CPUs, load {load_average} before. Median (min-max) of {} rounds, {} s a TCP phase.\n",
            self.rounds, self.seconds
        );
        for (candidate, tool) in &self.tools {
            let _ = writeln!(text, "{}: {} ({})", candidate.as_str(), tool.version, tool.path.display());
        }
        for topic in &TOPICS {
            let _ = write!(text, "\n{}\n\n", topic.title);
            text.push_str(&self.table(topic.measures));
        }
        let errors = self.errors();
        if !errors.is_empty() {
            let _ = write!(text, "\nNot measured:\n\n");
        }
        for error in errors {
            let _ = writeln!(text, "- {error}");
        }
        text
    }

    fn table(&self, measures: &[Measure]) -> String {
        let mut header = vec![String::new()];
        header.extend(measures.iter().map(|measure| measure.heading().to_owned()));
        let mut rows = Vec::new();
        for (candidate, cells) in &self.summary {
            let mut row = vec![candidate.as_str().to_owned()];
            row.extend(measures.iter().map(|measure| cells[measure].text()));
            rows.push(row);
        }
        let ours = Candidate::CulvertWireguard;
        for rival in RIVALS.iter().filter(|rival| self.summary.contains_key(rival)) {
            if self.summary.contains_key(&ours) {
                let mut row = vec![format!("{} / {}", ours.as_str(), rival.as_str())];
                row.extend(measures.iter().map(|&measure| self.ratio(ours, *rival, measure)));
                rows.push(row);
            }
        }
        render(&header, &rows)
    }

    fn ratio(&self, ours: Candidate, rival: Candidate, measure: Measure) -> String {
        let median = |candidate: Candidate| self.summary[&candidate][&measure].spread.map(|spread| spread.median);
        match median(ours).zip(median(rival)) {
            Some((ours, rival)) if rival > 0.0 => format!("× {}", number(ours / rival)),
            Some(_) | None => "-".to_owned(),
        }
    }

    fn errors(&self) -> BTreeSet<String> {
        let mut errors = BTreeSet::new();
        for visit in &self.visits {
            for &measure in TOPICS.iter().flat_map(|topic| topic.measures) {
                if let Figure::Failed(error) = figure(visit, measure) {
                    errors.insert(format!("{}, round {}: {error}", visit.candidate.as_str(), visit.round));
                }
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::tests::phases;

    fn report(visits: Vec<Visit>) -> Report {
        let machine = Machine { kernel: "6.18".to_owned(), cpus: 2, load_average: "0.1 0.2 0.3".to_owned() };
        Report { machine, rounds: 1, seconds: 2, tools: BTreeMap::new(), summary: summarise(&visits), visits }
    }

    fn visit(candidate: Candidate, round: usize, phases: Outcome<crate::visit::Phases>) -> Visit {
        Visit { candidate, round, phases }
    }

    #[test]
    fn a_cell_has_median_and_range() {
        let values = [Figure::Value(2.0), Figure::Value(0.75), Figure::Value(1.5)];
        assert_eq!(Cell::of(&values).text(), "1.50 (0.75-2.00)");
        assert_eq!(Cell::of(&values[..1]).text(), "2.00");
    }

    #[test]
    fn a_cell_tells_what_was_not_measured() {
        let failed = Figure::Failed("no route".to_owned());
        assert_eq!(Cell::of(&[Figure::Absent, Figure::Absent]).text(), "-");
        assert_eq!(Cell::of(&[failed.clone(), failed.clone()]).text(), "error");
        assert_eq!(Cell::of(&[failed, Figure::Value(2.0)]).text(), "2.00 !");
    }

    #[test]
    fn the_ratio_is_that_of_the_medians() {
        let slower = {
            let mut phases = phases(Some(4.0));
            if let Outcome::Measured(bulk) = &mut phases.one_flow {
                bulk.figures.bits_per_second = 1e9;
            }
            phases
        };
        let text = report(vec![
            visit(Candidate::BoringtunCli, 1, Outcome::Measured(slower)),
            visit(Candidate::CulvertWireguard, 1, Outcome::Measured(phases(Some(1.0)))),
        ])
        .text();
        let rows: Vec<&str> = text.lines().filter(|line| line.contains(" / boringtun-cli")).collect();
        assert_eq!(rows.len(), TOPICS.len());
        assert!(rows[0].contains("| × 3.00 |") && rows[1].contains("| × 0.25 |"), "{text}");
        assert!(!text.contains("Not measured"), "{text}");
    }

    #[test]
    fn errors_are_listed_once() {
        let failed = || Outcome::Failed { error: "wireguard ended at once".to_owned() };
        let text = report(vec![visit(Candidate::WireguardGo, 2, failed())]).text();
        assert_eq!(text.matches("- wireguard-go, round 2: wireguard ended at once\n").count(), 1, "{text}");
        assert!(text.contains("error"), "{text}");
    }

    #[test]
    fn the_json_has_raw_figures_and_the_summary() {
        let json = serde_json::to_value(report(vec![visit(Candidate::Raw, 1, Outcome::Measured(phases(None)))]));
        let json = json.unwrap();
        assert_eq!(json["visits"][0]["phases"]["one_flow"]["retransmits"], 7);
        assert_eq!(json["visits"][0]["phases"]["udp_small"]["steps"][1]["offered"], 45_000);
        assert_eq!(json["summary"]["raw"]["one_flow"]["median"], 3.0);
    }
}
