//! `culvert`: shows what the clusters, gateways and connections of a clusterset are doing.
//!
//! Exit status 0 if what was asked for was shown, 1 on any error (Submariner chapter 10).

mod args;
mod show;
mod table;
mod view;

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let asked_for = !error.use_stderr();
            // Nothing is left to tell it to if this fails.
            let _ = error.print();
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match run(&args) {
        Ok(text) => print(&text),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<String> {
    match &args.command {
        Command::Version => Ok(format!("culvert {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Show(asked) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (snapshot, problems) = runtime.block_on(show::read(&asked.records))?;
            for problem in problems {
                eprintln!("warning: {}", table::printable(&problem));
            }
            let view = view::View::of(&snapshot, asked.what, jiff::Timestamp::now());
            show::render(&view, asked.output, std::io::stdout().is_terminal())
        }
    }
}

fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read it has had enough, as `head` does.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: could not write the output: {error}");
            ExitCode::FAILURE
        }
    }
}
