//! Says what is wrong with a cluster's membership: for each thing that is looked at, that it is well, or one cause and the
//! way out.
//!
//! All is decided from a [`Snapshot`]: [`connections`] from records above all, [`deployment`] from what runs on Kubernetes.
//! What a daemon said a while ago is not taken for what is.

mod connections;
mod deployment;

use anyhow::{Result, bail};
use culvert_setup::names::OPERATOR_NAMESPACE;
use jiff::Timestamp;
use serde::Serialize;

use crate::args::Diagnosis;
use crate::snapshot::Snapshot;
use crate::table::printable;

/// What a diagnosis found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// Whether nothing is wrong; warnings are not.
    pub(crate) healthy: bool,
    checks: Vec<Check>,
}

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    verdict: Verdict,
    subject: String,
    /// How it is; if it is not well, the cause.
    message: String,
    /// What helps; empty if nothing is needed.
    #[serde(skip_serializing_if = "String::is_empty")]
    way_out: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

/// Why something is not well, and what helps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cause {
    message: String,
    way_out: String,
}

impl Cause {
    fn new(message: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self { message: message.into(), way_out: way_out.into() }
    }
}

impl Check {
    fn ok(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, subject: subject.into(), message: message.into(), way_out: String::new() }
    }

    fn warning(subject: impl Into<String>, Cause { message, way_out }: Cause) -> Self {
        Self { verdict: Verdict::Warning, subject: subject.into(), message, way_out }
    }

    fn failed(subject: impl Into<String>, Cause { message, way_out }: Cause) -> Self {
        Self { verdict: Verdict::Failed, subject: subject.into(), message, way_out }
    }

    fn line(&self, terminal: bool) -> String {
        let (sign, word, colour) = match self.verdict {
            Verdict::Ok => ("✓", "ok", 32),
            Verdict::Warning => ("⚠", "warning", 33),
            Verdict::Failed => ("✗", "failed", 31),
        };
        let mark = if terminal { format!("\x1b[{colour}m{sign}\x1b[0m") } else { format!("{word:<7}") };
        let mut text = format!("{}: {}", self.subject, self.message);
        if !self.way_out.is_empty() {
            text = text + ": " + &self.way_out;
        }
        format!("{mark} {}\n", printable(&text))
    }
}

impl Report {
    /// Decides what is wrong at `now`. `problems` are records that could not be understood.
    ///
    /// # Errors
    ///
    /// A deployment is asked for where there is none to look at.
    pub(crate) fn of(snapshot: &Snapshot, problems: Vec<String>, asked: Diagnosis, now: Timestamp) -> Result<Self> {
        let unreadable =
            |problem: String| Check::failed("Records", Cause::new(problem, "correct or delete that record"));
        let mut checks: Vec<Check> = problems.into_iter().map(unreadable).collect();
        match (asked, &snapshot.survey) {
            (Diagnosis::Deployment, None) => {
                bail!("a directory of records has no deployment to look at: ask for `diagnose connections`")
            }
            (Diagnosis::Deployment | Diagnosis::All, Some(survey)) => {
                checks.extend(deployment::checks(snapshot, survey, now));
            }
            (Diagnosis::Connections, _) | (Diagnosis::All, None) => {}
        }
        if asked != Diagnosis::Deployment {
            checks.extend(connections::checks(snapshot, now));
        }
        Ok(Self { healthy: checks.iter().all(|check| check.verdict != Verdict::Failed), checks })
    }

    /// Returns one line for each check, with signs and colours if it is for a terminal.
    pub(crate) fn lines(&self, terminal: bool) -> String {
        self.checks.iter().map(|check| check.line(terminal)).collect()
    }
}

/// Where a daemon says more.
fn see_log(daemon_set: &str) -> String {
    format!("its log tells more: kubectl --namespace {OPERATOR_NAMESPACE} logs daemonset/{daemon_set}")
}

/// Returns how long ago `then` was, in words.
fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

#[cfg(test)]
mod tests;
