//! Runs commands and turns their failures into errors that can be acted upon.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command to its end and returns what it wrote to its standard output.
///
/// # Errors
///
/// The program could not be started, or it failed: the error has the command line and what it wrote to standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", command_line(command)))?;
    stdout_of(command, output)
}

/// Runs a command as [`run`] does, with `input` as its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command_line(command)))?;
    let written = child.stdin.take().expect("standard input is piped").write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    let stdout = stdout_of(command, output).with_context(|| format!("its input was:\n{input}"))?;
    written.with_context(|| format!("{} did not read its input", command_line(command)))?;
    Ok(stdout)
}

/// Gives a flag of a command that is not started yet another value, or adds it. Variables of the command are lost.
pub fn set_flag(command: &mut Command, flag: &str, value: &str) {
    let mut arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    match arguments.iter().position(|argument| argument == flag) {
        Some(at) => arguments[at + 1] = value.into(),
        None => arguments.extend([flag.into(), value.into()]),
    }
    let mut changed = Command::new(command.get_program());
    changed.args(arguments);
    *command = changed;
}

fn stdout_of(command: &Command, output: Output) -> Result<String> {
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", command_line(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
