//! What the demo tells: lines as things happen, a verdict for each stage as it ends, and all of it as JSON.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value};

/// The stages so far.
pub(crate) struct Report {
    reader: Reader,
    start: Instant,
    stages: Vec<Stage>,
}

/// Where lines for people go.
#[derive(Clone, Copy)]
struct Reader {
    /// Standard output is for JSON.
    json: bool,
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

/// What a stage finds: for people at once, and as data in the end.
#[derive(Serialize)]
pub(crate) struct Facts {
    lines: Vec<String>,
    values: Map<String, Value>,
    /// Whether the stage found something that is not as it should be.
    #[serde(skip)]
    broken: Vec<String>,
    #[serde(skip)]
    reader: Reader,
}

impl Facts {
    /// Tells text, line by line.
    pub(crate) fn say(&mut self, text: impl AsRef<str>) {
        for line in text.as_ref().lines() {
            self.reader.tell(&format!("    {line}"));
            self.lines.push(line.to_owned());
        }
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

    /// Runs a command to its end, tells what it writes as it does, and returns that.
    ///
    /// # Errors
    ///
    /// The program could not be started, or it failed: `line` is what the error calls it.
    pub(crate) fn run(&mut self, line: &str, mut command: Command) -> Result<String> {
        self.say(format!("$ {line}"));
        let (output, end) = std::io::pipe()?;
        command.stdin(Stdio::null()).stdout(end.try_clone()?).stderr(end);
        let mut child = command.spawn().with_context(|| format!("cannot start {line}"))?;
        // It holds an end of the pipe too.
        drop(command);
        let mut text = String::new();
        for written in BufReader::new(output).lines() {
            let written = written?;
            self.say(&written);
            text += &(written + "\n");
        }
        let status = child.wait()?;
        ensure!(status.success(), "{line} failed: {status}");
        Ok(text)
    }
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { reader: Reader { json }, start: Instant::now(), stages: Vec::new() }
    }

    /// Runs a stage and tells what becomes of it. Returns what it made, unless it failed.
    pub(crate) fn stage<T>(&mut self, name: &str, work: impl FnOnce(&mut Facts) -> Result<T>) -> Option<T> {
        self.say(name);
        let start = Instant::now();
        let mut facts = Facts { lines: vec![], values: Map::new(), broken: vec![], reader: self.reader };
        let result = work(&mut facts);
        let seconds = start.elapsed().as_secs_f64();
        let mut errors = std::mem::take(&mut facts.broken);
        let made = match result {
            Ok(made) => Some(made),
            Err(error) => {
                errors.push(format!("{error:#}"));
                None
            }
        };
        for line in errors.iter().flat_map(|error| error.lines()) {
            self.say(&format!("  ! {line}"));
        }
        let mark = if errors.is_empty() { "✓" } else { "✗" };
        self.say(&format!("  {mark} {seconds:.1} s"));
        let error = (!errors.is_empty()).then(|| errors.join("\n"));
        self.stages.push(Stage { name: name.to_owned(), passed: error.is_none(), seconds, facts, error });
        made
    }

    /// Tells the reader something that belongs to no stage.
    pub(crate) fn say(&self, line: &str) {
        self.reader.tell(line);
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
        if self.reader.json {
            let all = serde_json::json!({ "passed": failed == 0, "seconds": seconds, "stages": self.stages });
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Ok(failed == 0)
    }
}

impl Reader {
    fn tell(self, line: &str) {
        if self.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }
}
