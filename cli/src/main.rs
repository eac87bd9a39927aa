//! `culvert`: makes brokers, joins clusters and takes them out, shows what gateways and connections are doing, and says
//! what is wrong.
//!
//! Exit status 0 if what was asked for was done, 1 on any error and if a diagnosis finds one (Submariner chapter 10).

mod access;
mod args;
mod broker;
mod broker_args;
mod contexts;
mod deployed;
mod diagnose;
mod global_ips;
mod globalnet;
mod globalnet_args;
mod join;
mod join_args;
mod later;
mod progress;
mod proxy_args;
mod show;
mod site;
mod snapshot;
mod table;
mod uninstall;
mod view;

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use culvert_runtime::Location;
use culvert_runtime::flags::Surroundings;
use culvert_runtime::shutdown::Shutdown;

use crate::args::{Args, Command, Diagnose, Show, What};
use crate::contexts::{OfContext, Places};

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

/// What is printed, and whether nothing is wrong with what was looked at.
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
        Command::Show(asked) => return show(asked),
        Command::Diagnose(asked) => return diagnose(asked),
    };
    Ok(Answer { text: text?, healthy: true })
}

fn show(asked: &Show) -> anyhow::Result<Answer> {
    let brief = matches!(asked.what, What::Connections | What::Endpoints | What::Gateways | What::GlobalIps);
    let terminal = std::io::stdout().is_terminal();
    let (found, complete) = each(&asked.places, async |location| {
        let (mut snapshot, mut problems) = match brief {
            true => snapshot::read(location).await?,
            false => snapshot::read_all(location).await?,
        };
        if asked.what.includes(What::Brokers) {
            match snapshot::hosted(location).await {
                Ok(hosted) => snapshot.hosted = hosted,
                Err(error) => problems.push(format!("brokers in this cluster cannot be looked for: {error:#}")),
            }
        }
        if asked.what == What::GlobalIps {
            let (global, unreadable) = global_ips::read(location).await?;
            snapshot.global = Some(global);
            problems.extend(unreadable);
        } else if asked.what.includes(What::GlobalIps) {
            match global_ips::read(location).await {
                Ok((global, unreadable)) => {
                    snapshot.global = Some(global);
                    problems.extend(unreadable);
                }
                Err(error) => problems.push(format!("global addresses cannot be looked for: {error:#}")),
            }
        }
        for problem in problems {
            eprintln!("warning: {}", table::printable(&problem));
        }
        Ok(view::View::of(&snapshot, asked.what, jiff::Timestamp::now()))
    })?;
    let text = contexts::render(&found, asked.output, |view| show::tables(view, terminal))?;
    Ok(Answer { text, healthy: complete })
}

fn diagnose(asked: &Diagnose) -> anyhow::Result<Answer> {
    let terminal = std::io::stdout().is_terminal();
    let (found, complete) = each(&asked.places, async |location| {
        let (snapshot, problems) = snapshot::read_all(location).await?;
        diagnose::Report::of(&snapshot, problems, asked.what, jiff::Timestamp::now())
    })?;
    let text = contexts::render(&found, asked.output, |report| report.lines(terminal))?;
    Ok(Answer { text, healthy: complete && found.iter().all(|(_, report)| report.healthy) })
}

/// Looks at each cluster that is meant; `false` if not all of several could be looked at, which was said then.
fn each<T>(
    places: &Places,
    look: impl AsyncFn(&Location) -> anyhow::Result<T>,
) -> anyhow::Result<(Vec<OfContext<T>>, bool)> {
    let runtime = runtime()?;
    let (mut found, mut complete) = (Vec::new(), true);
    for (context, location) in places.locations(Surroundings::of_person())? {
        match (runtime.block_on(look(&location)), &context) {
            (Ok(one), _) => found.push((context, one)),
            (Err(error), None) => return Err(error),
            (Err(error), Some(name)) => {
                eprintln!("error: context {name}: {error:#}");
                complete = false;
            }
        }
    }
    Ok((found, complete))
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
