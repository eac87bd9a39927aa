//! The packet thread: moves bytes between the TUN, the sockets and the [`Forwarder`], and decides nothing.
//!
//! One thread serves both directions in turn, in bounded portions, so that neither starves. All that waits on the TUN is
//! read into the queue, where flows take turns (`queue`); a lone packet passes by it.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::forwarder::Forwarder;
use crate::join::Joiner;
use crate::outbox::Outbox;
use crate::ports::Ports;
use crate::queue::FairQueue;
use crate::socket::{MESSAGES, Receiver, Sent, path_mtu};
use crate::tun::{HEADER, MAX_PACKET, Tun, VirtioHeader};
use crate::{Command, Config, Shared, StartError};

/// Pause between runs of the timers.
const PERIOD: Duration = Duration::from_millis(100);
/// A wait that is shorter found its event there already.
const AT_ONCE: Duration = Duration::from_micros(15);
/// Sources of events that are no socket; those are numbered from zero.
const TUN: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;
const TICK: u64 = u64::MAX - 2;
/// Reads from the TUN before anything is sealed: nothing shall wait there, where it cannot be told apart.
const TUN_READS: usize = 64;
/// Bytes from the TUN that are sealed before the network, and the TUN, are looked at again.
const SEALED: usize = 256 << 10;
/// Bytes of opened packets that wait for the TUN.
const JOINER: usize = 2 << 20;

/// All that the thread owns.
pub(crate) struct Pump {
    forwarder: Forwarder,
    tun: Tun,
    ports: Ports,
    mark: u32,
    epoll: Epoll,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    outbox: Outbox,
    joiner: Joiner,
    receiver: Receiver,
    queue: FairQueue,
    messages: Portion,
    tun_reads: Portion,
    ticker: TimerFd,
}

/// How much is taken from a source before it is passed on.
///
/// A lone packet is passed on before the next is looked for; where more waits already, each look takes twice as much.
struct Portion {
    size: usize,
    largest: usize,
}

impl Portion {
    fn up_to(largest: usize) -> Self {
        Self { size: 1, largest }
    }

    /// Grows or shrinks by whether something waited already when it was looked for.
    fn adapt(&mut self, had_waited: bool) -> usize {
        self.size = if had_waited { (self.size * 2).min(self.largest) } else { (self.size / 2).max(1) };
        self.size
    }
}

impl Pump {
    /// Opens device and sockets.
    pub(crate) fn open(
        config: &Config,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self, StartError> {
        let socket_error = |source: io::Error| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => StartError::PortInUse { port: config.port, source },
            _ => StartError::Socket { port: config.port, source },
        };
        let ports = Ports::open(config.port, config.mark).map_err(socket_error)?;
        let tun = Tun::open(&config.link, config.mtu)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| StartError::Thread(errno.into()))?;
        ports.register(&epoll).map_err(StartError::Thread)?;
        let ticker = ticker().map_err(|errno| StartError::Thread(errno.into()))?;
        for (source, fd) in [(TUN, tun.fd()), (WAKE, shared.wake.as_fd()), (TICK, ticker.as_fd())] {
            epoll
                .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source))
                .map_err(|errno| StartError::Thread(errno.into()))?;
        }
        Ok(Self {
            forwarder: Forwarder::new(config.private_key, config.preshared_key),
            joiner: Joiner::new(JOINER, tun.offloads()),
            tun,
            ports,
            mark: config.mark,
            epoll,
            commands,
            shared,
            outbox: Outbox::new(),
            receiver: Receiver::new(),
            queue: FairQueue::new(config.queue_seed),
            messages: Portion::up_to(MESSAGES),
            tun_reads: Portion::up_to(TUN_READS),
            ticker,
        })
    }

    /// Serves until told to stop.
    ///
    /// Only what is ready is touched, and what is left is reported again: a single packet costs a wait, a read or two,
    /// and a write. The timers' tick is an event too: a wait with a time limit sets a timer of its own every time.
    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 4];
        loop {
            let before = Instant::now();
            let patience = if self.queue.is_empty() { EpollTimeout::NONE } else { EpollTimeout::ZERO };
            let ready = match self.epoll.wait(&mut events, patience) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            let now = Instant::now();
            let had_waited = now.duration_since(before) < AT_ONCE;
            for event in &events[..ready] {
                match event.data() {
                    WAKE => {
                        if self.take_commands() {
                            return Ok(());
                        }
                        // New cables are looked for at once. The time is taken anew: they are younger than the event.
                        self.tick(Instant::now());
                    }
                    TICK => {
                        self.ticker.wait().ok();
                        self.tick(now);
                    }
                    TUN => self.read_tun(now, had_waited)?,
                    socket => self.handle_socket(socket, now, had_waited),
                }
            }
            if !self.queue.is_empty() {
                self.seal_waiting(now);
                if !self.queue.is_empty() {
                    // On a busy machine whoever has to take what was sent gets a turn, or it waits in his queue instead.
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Does what the owner said; `true` if that is to stop.
    fn take_commands(&mut self) -> bool {
        self.shared.wake.read().ok();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Apply(cables)) => {
                    self.forwarder.apply(cables, Instant::now());
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        self.forwarder.tick(now, &mut self.outbox);
        self.flush(now);
        for socket in self.ports.follow(&self.forwarder.living_remotes(), &self.epoll) {
            while let count @ 1.. = self.receiver.receive(&socket, MESSAGES) {
                self.open_messages(count, now);
            }
        }
        for (remote, probes) in self.forwarder.path_checks(now) {
            if let Some(mtu) = path_mtu(remote, self.mark) {
                self.forwarder.set_path_mtu(remote, mtu);
                if probes {
                    self.ports.probe_path(remote, mtu);
                }
            }
        }
        self.publish(now);
    }

    fn publish(&mut self, now: Instant) {
        let changed = self.forwarder.take_changed();
        self.shared.publish(self.forwarder.report(now));
        if changed {
            self.shared.changed.notify_one();
        }
    }

    /// Opens what waits on a socket, up to a portion.
    fn handle_socket(&mut self, number: u64, now: Instant, had_waited: bool) {
        // A peer's own socket may have gone since the event.
        let Some(socket) = self.ports.of_event(number) else { return };
        let count = self.receiver.receive(socket, self.messages.adapt(had_waited));
        if self.receiver.was_refused()
            && let Some(remote) = self.ports.remote_of_event(number)
        {
            self.forwarder.handle_refused(remote, now);
        }
        self.open_messages(count, now);
    }

    /// Opens the messages that were received last.
    fn open_messages(&mut self, count: usize, now: Instant) {
        for position in 0..count {
            if self.joiner.slot(MAX_PACKET + 1).is_none() {
                self.write_tun();
            }
            let Some(message) = self.receiver.message(position) else { continue };
            for datagram in message.bytes.chunks(message.segment) {
                self.forwarder.handle_network(datagram, message.from, now, &mut self.joiner, &mut self.outbox);
            }
            // An empty datagram has no chunk but was received all the same.
            if message.bytes.is_empty() {
                self.forwarder.totals().rejected_datagrams += 1;
            }
        }
        self.write_tun();
        self.flush(now);
    }

    /// Takes what waits on the TUN into the queue, up to a portion; a lone packet is sealed at once.
    fn read_tun(&mut self, now: Instant, had_waited: bool) -> io::Result<()> {
        let portion = self.tun_reads.adapt(had_waited);
        for _ in 0..portion {
            match self.tun.read(self.queue.room()) {
                Ok(length) if portion == 1 && self.queue.is_empty() => {
                    seal(self.queue.pass(length), &mut self.forwarder, now, &mut self.outbox);
                    self.flush(now);
                }
                Ok(length) => self.queue.push(length, now),
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => break,
                // The device was set down or removed by somebody else.
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Seals from the queue, up to a portion.
    fn seal_waiting(&mut self, now: Instant) {
        let mut sealed = 0;
        while sealed < SEALED
            && let Some(bytes) = self.queue.pop(now)
        {
            sealed += bytes.len();
            seal(bytes, &mut self.forwarder, now, &mut self.outbox);
            if self.outbox.is_full() {
                self.flush(now);
            }
        }
        self.forwarder.totals().queue_drops += self.queue.take_dropped();
        self.flush(now);
    }

    /// Sends the outbox.
    fn flush(&mut self, now: Instant) {
        for (batch, bytes) in self.outbox.batches() {
            match self.ports.send(batch, bytes) {
                Sent::Yes => {}
                Sent::ButRefused => self.forwarder.handle_refused(batch.to, now),
                Sent::TooLarge => {
                    self.forwarder.totals().oversized_packets += 1;
                    if let Some(mtu) = path_mtu(batch.to, self.mark) {
                        self.forwarder.set_path_mtu(batch.to, mtu);
                    }
                }
                Sent::Failed => self.forwarder.totals().failed_writes += 1,
            }
        }
        self.outbox.clear();
    }

    /// Writes the opened packets to the TUN.
    fn write_tun(&mut self) {
        let mut failed = 0;
        self.joiner.drain(|slices| {
            if self.tun.write(slices).is_err() {
                failed += 1;
            }
        });
        self.forwarder.totals().failed_writes += failed;
    }
}

/// Seals what was read from the TUN, its virtio header first.
fn seal(bytes: &mut [u8], forwarder: &mut Forwarder, now: Instant, outbox: &mut Outbox) {
    let whole = bytes.split_first_chunk_mut::<HEADER>();
    match whole.and_then(|(header, packet)| Some((VirtioHeader::decode(header)?, packet))) {
        Some((header, packet)) => forwarder.handle_tun(&header, packet, now, outbox),
        None => forwarder.totals().unroutable_packets += 1,
    }
}

/// Makes the timer whose events run the cables' timers.
fn ticker() -> nix::Result<TimerFd> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    timer.set(Expiration::Interval(TimeSpec::from_duration(PERIOD)), TimerSetTimeFlags::empty())?;
    Ok(timer)
}

/// Serves on the calling thread; if that ends by itself the report says why, so that the owner ends the process.
pub(crate) fn run(mut pump: Pump) {
    let shared = Arc::clone(&pump.shared);
    let outcome = catch_unwind(AssertUnwindSafe(|| pump.serve()));
    let failure = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("the packet thread cannot go on: {error}")),
        Err(_) => Some("the packet thread panicked".to_owned()),
    };
    if let Some(failure) = failure {
        tracing::error!(failure, "Packet thread has ended");
        shared.publish(crate::Report { failure: Some(failure), ..crate::Report::default() });
        shared.changed.notify_one();
    }
}
