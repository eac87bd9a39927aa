//! Starts the gateway: `culvert-gateway --help` lists what it takes.

use std::process::ExitCode;

use clap::Parser;
use culvert_gateway::config::{Args, Config};
use culvert_runtime::shutdown::Shutdown;
use culvert_runtime::{logging, memory};

fn main() -> ExitCode {
    memory::share_one_heap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(start(Args::parse())),
        Err(error) => Err(anyhow::Error::new(error).context("no runtime")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may be what failed.
            eprintln!("culvert-gateway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: Args) -> anyhow::Result<()> {
    logging::init(args.node.log_format, &args.node.log_level)?;
    let uninstall = args.node.uninstall;
    let config = Config::try_from(args)?;
    if uninstall {
        return culvert_gateway::uninstall(&config).await;
    }
    culvert_gateway::run(config, Shutdown::install()?).await
}
