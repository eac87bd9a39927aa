//! `culvert`: makes brokers, joins clusters and takes them out, shows what gateways and connections are doing, and says
//! what is wrong.
//!
//! Exit status 0 if what was asked for was done, 1 on any error and if a diagnosis finds one (Submariner chapter 10).

mod access;
mod args;
mod broker;
mod broker_args;
mod deployed;
mod diagnose;
mod join;
mod join_args;
mod later;
mod progress;
mod show;
mod snapshot;
mod table;
mod uninstall;
mod view;

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use culvert_runtime::flags::Surroundings;
use culvert_runtime::shutdown::Shutdown;

use crate::args::{Args, Command, What};

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
        Ok(Answer { text, healthy }) => {
            let printed = print(&text);
            if healthy { printed } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is printed, and whether a diagnosis found nothing wrong.
struct Answer {
    text: String,
    healthy: bool,
}

fn run(args: &Args) -> anyhow::Result<Answer> {
    let text = match &args.command {
        Command::DeployBroker(asked) => runtime()?.block_on(broker::deploy(asked)),
        Command::RecoverBrokerInfo(asked) => runtime()?.block_on(broker::recover(asked)),
        Command::Join(asked) => runtime()?.block_on(join::run(asked)),
        Command::Uninstall(asked) => runtime()?.block_on(uninstall::run(asked)),
        Command::Pause => runtime()?.block_on(async {
            Shutdown::install()?.requested().await;
            Ok(String::new())
        }),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "culvert", &mut script);
            Ok(String::from_utf8(script)?)
        }
        Command::Version => Ok(format!("culvert {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Show(asked) => {
            let location = asked.records.location(Surroundings::of_person())?;
            let (snapshot, problems) = match asked.what {
                What::Connections | What::Endpoints | What::Gateways => {
                    runtime()?.block_on(snapshot::read(&location))?
                }
                What::Networks | What::Versions | What::Brokers | What::All => {
                    runtime()?.block_on(snapshot::read_all(&location))?
                }
            };
            for problem in problems {
                eprintln!("warning: {}", table::printable(&problem));
            }
            let view = view::View::of(&snapshot, asked.what, jiff::Timestamp::now());
            show::render(&view, asked.output, std::io::stdout().is_terminal())
        }
        Command::Diagnose(asked) => {
            let location = asked.records.location(Surroundings::of_person())?;
            let (snapshot, problems) = runtime()?.block_on(snapshot::read_all(&location))?;
            let report = diagnose::Report::of(&snapshot, problems, asked.what, jiff::Timestamp::now())?;
            let text = report.render(asked.output, std::io::stdout().is_terminal())?;
            return Ok(Answer { text, healthy: report.healthy });
        }
    };
    Ok(Answer { text: text?, healthy: true })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
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
