//! What the demo tells: a line for each stage as it ends, and all of it as JSON.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};

/// The stages so far.
pub(crate) struct Report {
    json: bool,
    start: Instant,
    stages: Vec<Stage>,
}

#[derive(Serialize)]
struct Stage {
    name: String,
    passed: bool,
    seconds: f64,
    #[serde(flatten)]
    facts: Facts,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What a stage found: for the reader, and as data.
#[derive(Default, Serialize)]
pub(crate) struct Facts {
    lines: Vec<String>,
    values: Map<String, Value>,
    /// Whether the stage found something that is not as it should be.
    #[serde(skip)]
    broken: Vec<String>,
}

impl Facts {
    /// Adds text, line by line.
    pub(crate) fn say(&mut self, text: impl AsRef<str>) {
        self.lines.extend(text.as_ref().lines().map(str::to_owned));
    }

    /// Adds a value under a name.
    pub(crate) fn value(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.values.insert(name.into(), value.into());
    }

    /// Notes what is not as it should be, unless `holds`; the stage goes on.
    pub(crate) fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(otherwise());
        }
    }
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, start: Instant::now(), stages: Vec::new() }
    }

    /// Runs a stage and tells what became of it. Returns what it made, unless it failed.
    pub(crate) fn stage<T>(&mut self, name: &str, work: impl FnOnce(&mut Facts) -> Result<T>) -> Option<T> {
        let start = Instant::now();
        let mut facts = Facts::default();
        let result = work(&mut facts);
        let mut errors = std::mem::take(&mut facts.broken);
        let made = match result {
            Ok(made) => Some(made),
            Err(error) => {
                errors.push(format!("{error:#}"));
                None
            }
        };
        let error = (!errors.is_empty()).then(|| errors.join("\n"));
        let stage = Stage {
            name: name.to_owned(),
            passed: error.is_none(),
            seconds: start.elapsed().as_secs_f64(),
            facts,
            error,
        };
        self.tell(&stage);
        self.stages.push(stage);
        made
    }

    fn tell(&self, stage: &Stage) {
        let mark = if stage.passed { "✓" } else { "✗" };
        self.say(&format!("{mark} {} ({:.1} s)", stage.name, stage.seconds));
        for line in &stage.facts.lines {
            self.say(&format!("    {line}"));
        }
        for line in stage.error.iter().flat_map(|error| error.lines()) {
            self.say(&format!("  ! {line}"));
        }
    }

    /// Tells the reader something that belongs to no stage.
    pub(crate) fn say(&self, line: &str) {
        if self.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }

    /// Ends the report. Returns whether all is as it should be.
    pub(crate) fn finish(self) -> Result<bool> {
        let failed = self.stages.iter().filter(|stage| !stage.passed).count();
        let seconds = self.start.elapsed().as_secs_f64();
        if failed == 0 {
            self.say(&format!("All is as it should be ({seconds:.0} s)."));
        } else {
            self.say(&format!("{failed} of {} stages failed ({seconds:.0} s).", self.stages.len()));
        }
        if self.json {
            let all = serde_json::json!({ "passed": failed == 0, "seconds": seconds, "stages": self.stages });
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Ok(failed == 0)
    }
}
