//! The packet path: TUN on one side, UDP on the other, WireGuard between them.
//!
//! [`Dataplane::start`] makes the TUN device and the sockets and hands them to a thread of its own, so that nothing the
//! daemon does delays a packet. The thread owns all sessions; the daemon gives it a whole [`CableSet`] and reads
//! [`CableReport`]s. When the handle is dropped the TUN device goes, and with it every route on it.
//!
//! Inside, the `forwarder` is a plain struct without sockets or threads: packets in, an outbox out. What makes it
//! fast is that many bytes move per system call and few copies are made: super-packets from the TUN (TSO, USO) are cut
//! and sealed straight into a `UDP_SEGMENT` batch (`segment`, `outbox`); batches from the network (`UDP_GRO`) are
//! opened and joined again into super-packets for the TUN (`join`).

mod checksum;
mod forwarder;
mod join;
mod outbox;
mod packet;
mod peer;
mod ports;
mod prefixes;
mod pump;
mod queue;
mod segment;
mod socket;
mod tun;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use culvert_model::{CableName, CableReport, CableSet};
use nix::sys::eventfd::EventFd;
use tokio::sync::Notify;

/// What the data plane is started with.
#[derive(Clone)]
pub struct Config {
    /// Name of the TUN device.
    pub link: String,
    /// MTU of the TUN device, in bytes; routes may have a smaller one.
    pub mtu: u16,
    /// This gateway's Curve25519 private key.
    pub private_key: [u8; 32],
    /// Mixed into every session (WireGuard paper, section 5.4).
    pub preshared_key: [u8; 32],
    /// UDP port, on all local addresses of both families.
    pub port: u16,
    /// Firewall mark of outer packets.
    pub mark: u32,
    /// Any number, secret to strangers: they shall not choose which flows take turns together.
    pub queue_seed: u64,
}

/// Why the data plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no TUN device: /dev/net/tun is missing or refuses to open; load the `tun` module, or mount the device")]
    NoTun(#[source] io::Error),
    #[error("no permission to make TUN device {link}: give the gateway CAP_NET_ADMIN")]
    Permission { link: String, source: io::Error },
    #[error("TUN device {link} is in use: another gateway runs in this network namespace; stop it first")]
    LinkInUse { link: String, source: io::Error },
    #[error("TUN device {link} cannot be set up")]
    Tun { link: String, source: io::Error },
    #[error("UDP port {port} is in use: stop what listens there (`ss -ulnp`), or choose another with --natt-port")]
    PortInUse { port: u16, source: io::Error },
    #[error("UDP port {port} cannot be opened")]
    Socket { port: u16, source: io::Error },
    #[error("the packet thread cannot be started")]
    Thread(#[source] io::Error),
}

/// What all cables together have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Datagrams that no cable could open: garbage, unknown keys, replays.
    pub rejected_datagrams: u64,
    /// Packets from the TUN for which there is no cable, or that are malformed.
    pub unroutable_packets: u64,
    /// Packets larger than the path to their peer takes.
    pub oversized_packets: u64,
    /// Packets that the kernel refused to take or to send.
    pub failed_writes: u64,
    /// Packets dropped because their flow's queue at the TUN stood for too long, or was full.
    pub queue_drops: u64,
}

/// What the data plane tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub cables: BTreeMap<CableName, CableReport>,
    pub totals: Totals,
    /// Why the packet thread has ended, if it has; it then needs a restart of the process.
    pub failure: Option<String>,
}

/// A running data plane.
pub struct Dataplane {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told.
enum Command {
    Apply(CableSet),
    Stop,
}

/// What the thread and its owner share; never locked on the packet path.
struct Shared {
    wake: EventFd,
    report: Mutex<Report>,
    changed: Notify,
}

impl Shared {
    fn publish(&self, report: Report) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }
}

impl Dataplane {
    /// Makes the TUN device and the sockets in the calling thread's network namespace and starts the packet thread.
    ///
    /// # Errors
    ///
    /// [`StartError`] names the device or port; nothing is left behind.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let wake =
            EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK | nix::sys::eventfd::EfdFlags::EFD_CLOEXEC)
                .map_err(|errno| StartError::Thread(errno.into()))?;
        let shared = Arc::new(Shared { wake, report: Mutex::default(), changed: Notify::new() });
        let (commands, receiver) = mpsc::channel();
        let pump = pump::Pump::open(&config, Arc::clone(&shared), receiver)?;
        let thread = std::thread::Builder::new()
            .name("culvert-packets".to_owned())
            .spawn(move || pump::run(pump))
            .map_err(StartError::Thread)?;
        Ok(Self { commands, shared, thread: Some(thread) })
    }

    /// Gives the thread the cables that it shall run from now on.
    pub fn apply(&self, cables: CableSet) {
        self.send(Command::Apply(cables));
    }

    /// Returns the newest report, about a tenth of a second old at most.
    pub fn report(&self) -> Report {
        self.shared.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a cable came up or went silent, its remote address or path MTU changed, or the thread failed.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    fn send(&self, command: Command) {
        // A thread that has ended says so in its report.
        if self.commands.send(command).is_ok() {
            self.shared.wake.write(1).ok();
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
