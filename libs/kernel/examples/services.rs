//! Measures how long the change of one endpoint takes: by the `nft` program, and straight over netlink.
//!
//! `cargo run -p culvert-kernel --example services -- 10000` as root; it makes a network namespace of its own.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use culvert_kernel::ServiceTable;
use culvert_model::{Frontend, Protocol};
use culvert_services::{Backend, Service, Services, Table};
use nix::sched::{CloneFlags, unshare};

const TABLE: &str = "culvert_bench";
const ENDPOINTS: u8 = 10;
/// Changes of each kind; the two ways take turns.
const ROUNDS: u8 = 50;

fn frontend(number: u16) -> Frontend {
    let [high, low] = number.to_be_bytes();
    Frontend { address: Ipv4Addr::new(242, 0, high, low).into(), protocol: Protocol::Tcp, port: 80 }
}

fn backend(service: u16, number: u8) -> Backend {
    let [high, low] = service.to_be_bytes();
    Backend { address: Ipv4Addr::new(10, number, high, low).into(), port: 8080 }
}

fn service(number: u16, backends: impl Iterator<Item = u8>, affinity: Option<u32>) -> Service {
    Service { backends: backends.map(|last| (backend(number, last), 1)).collect(), affinity }
}

/// Runs nft with `script` on its standard input.
fn nft(script: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{script}");
}

/// Returns the script that gives one slot to another backend, as `nft` would be told it.
fn replace(at: Frontend, slot: u8, old: IpAddr, new: IpAddr) -> String {
    let key = format!("{} . tcp . {} . {slot}", at.address, at.port);
    let map = format!("element inet {TABLE} slots4");
    format!("delete {map} {{ {key} : {old} . 8080 }}\nadd {map} {{ {key} : {new} . 8080 }}\n")
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Returns the middle one and the one below which nine of ten are, in milliseconds.
fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |part: usize| times[times.len() * part / 10].as_secs_f64() * 1000.0;
    format!("{:8.2} {:8.2}", at(5), at(9))
}

fn main() {
    let count: u16 = std::env::args().nth(1).map_or(1000, |count| count.parse().unwrap());
    unshare(CloneFlags::CLONE_NEWNET).expect("root makes network namespaces");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure(count));
}

async fn measure(count: u16) {
    let table = || Table { name: TABLE.to_owned(), prerouting: String::new(), output: None };
    let mut kernel = ServiceTable::open(table()).await.unwrap();
    let mut services: Services = (0..count)
        .map(|number| (frontend(number), service(number, 0..ENDPOINTS, (number % 10 == 9).then_some(10_800))))
        .collect();
    let start = Instant::now();
    let report = kernel.converge(&services).await.unwrap();
    println!("{count} services, {} elements: loaded in {:.0?}", report.elements, start.elapsed());

    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let ours = frontend(count / 2);
    let theirs = frontend(count / 2 + 1);
    let number = count / 2;
    for round in 0..ROUNDS {
        let mut keep = |what, time| times.entry(what).or_default().push(time);
        // One endpoint is replaced by another.
        let backends = move |extra: u8| (1..ENDPOINTS).chain([100 + extra % 100]);
        services.insert(ours, service(number, backends(round), None));
        let start = Instant::now();
        kernel.converge(&services).await.unwrap();
        keep("netlink: one endpoint for another", start.elapsed());

        let to = |last| backend(number + 1, last).address;
        let old = if round == 0 { to(0) } else { to(100 + round - 1) };
        let script = replace(theirs, 0, old, to(100 + round));
        keep("nft: one endpoint for another", timed(|| nft(&script)));

        // Somebody else's transaction was in between, so that we look at the table.
        services.insert(ours, service(number, backends(round + 1).take(usize::from(ENDPOINTS) - 1), None));
        let start = Instant::now();
        kernel.converge(&services).await.unwrap();
        keep("netlink: one endpoint less, after a look", start.elapsed());

        services.insert(ours, service(number, backends(round), None));
        let start = Instant::now();
        kernel.converge(&services).await.unwrap();
        keep("netlink: one endpoint more", start.elapsed());

        let start = Instant::now();
        kernel.converge(&services).await.unwrap();
        keep("netlink: nothing", start.elapsed());
    }
    for (what, times) in times {
        println!("{what:42} {}", summary(times));
    }
    // Our own table takes the other service for what it was.
    let start = Instant::now();
    let mut again = ServiceTable::open(table()).await.unwrap();
    let opened = start.elapsed();
    again.converge(&services).await.unwrap();
    println!("read back in {opened:.0?}, compared in {:.0?}", start.elapsed() - opened);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap());
}
