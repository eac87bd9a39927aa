//! nftables tables through the `nft` program, and what we remember of them.
//!
//! nft lists rules in other words than it took them, so a listing cannot be compared with a desired table. Instead we
//! remember which table we put and how it was listed right after: if it is listed like that again, it is that table.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::process::{Output, Stdio};

use culvert_netstate::nft::{self, Table};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::KernelError;

/// The tables that this process has put.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    table: Table,
    /// Hash of the listing without counter values.
    listing: u64,
}

impl Tables {
    /// Returns the table `name` as it is: what we put, [`Table::unknown`] if it is no longer that, `None` if there is
    /// none.
    pub(crate) async fn observe(&mut self, name: &str) -> Result<Option<Table>, KernelError> {
        let Some(listing) = list(name).await? else { return Ok(None) };
        let known = self.known.get(name).filter(|known| known.listing == hash(&listing));
        Ok(Some(known.map_or_else(Table::unknown, |known| known.table.clone())))
    }

    /// Makes the table `name` or replaces its content in one transaction.
    pub(crate) async fn put(&mut self, name: &str, table: &Table) -> Result<(), KernelError> {
        let before = list(name).await?.unwrap_or_default();
        run(&["-f", "-"], &nft::render_update(name, &before, table)).await?;
        if let Some(listing) = list(name).await? {
            self.known.insert(name.to_owned(), Known { table: table.clone(), listing: hash(&listing) });
        }
        Ok(())
    }

    pub(crate) async fn delete(&mut self, name: &str) -> Result<(), KernelError> {
        self.known.remove(name);
        run(&["-f", "-"], &nft::render_delete(name)).await.map(drop)
    }
}

/// Reads the named counters of the table `inet <table>` as packets and bytes; none if there is no such table.
///
/// # Errors
///
/// [`KernelError::Nft`] with nft's own words.
pub async fn nft_counters(table: &str) -> Result<BTreeMap<String, (u64, u64)>, KernelError> {
    let listing = unless_away(run(&["list", "counters", "table", "inet", table], "").await)?;
    Ok(nft::parse_counters(&listing.unwrap_or_default()))
}

/// Checks that nft can be run.
pub(crate) async fn check_program() -> Result<(), KernelError> {
    run(&["--version"], "").await.map(drop)
}

/// Lists a table without counter values; `None` if there is none.
async fn list(name: &str) -> Result<Option<String>, KernelError> {
    unless_away(run(&["-s", "list", "table", "inet", name], "").await)
}

fn unless_away(listing: Result<String, KernelError>) -> Result<Option<String>, KernelError> {
    match listing {
        Ok(listing) => Ok(Some(listing)),
        Err(KernelError::Nft { text, .. }) if text.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs nft with `script` on its standard input and returns what it writes.
pub(crate) async fn run(arguments: &[&str], script: &str) -> Result<String, KernelError> {
    let output = output(arguments, script).await.map_err(KernelError::NftMissing)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(KernelError::Nft { command: arguments.join(" "), text })
    }
}

async fn output(arguments: &[&str], script: &str) -> io::Result<Output> {
    let mut child = Command::new("nft")
        .args(arguments)
        // The words of errors are read.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let (written, output) = tokio::join!(
        async move {
            stdin.write_all(script.as_bytes()).await?;
            stdin.shutdown().await
        },
        child.wait_with_output()
    );
    match written {
        // nft left before it read all; its status says why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    output
}

fn hash(listing: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    listing.hash(&mut hasher);
    hasher.finish()
}
