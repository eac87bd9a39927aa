//! A network namespace for each test, and iproute2 as a second opinion on what is in it.

use std::future::Future;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a new network namespace, which goes when it ends. Needs root.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root makes network namespaces: run the tests as root");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a command line in the namespace of this thread and returns what it writes.
pub(crate) fn run(line: &str) -> String {
    run_with(line, "")
}

/// Runs a command line that reads `input`.
pub(crate) fn run_with(line: &str, input: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a node: a loopback, and `eth0` with an address of both families; both ends of the wire are here.
pub(crate) fn make_node() {
    run("ip link set lo up");
    run("ip link add eth0 mtu 1500 type veth peer name wire");
    // Without link-local addresses nothing happens by itself later on.
    run("ip link set eth0 addrgenmode none");
    run("ip link set wire addrgenmode none");
    run("ip link set eth0 up");
    run("ip link set wire up");
    run("ip address add 192.168.7.1/24 dev eth0");
    run("ip address add fd00:7::1/64 dev eth0 nodad");
}
