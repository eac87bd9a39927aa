//! What was read from the TUN and waits to be sealed: flows take turns, and none keeps a standing queue.
//!
//! This is FQ-CoDel (RFC 8290): deficit round robin among flows, those that have just begun first, and CoDel (RFC 8289)
//! in each. So a ping, or the first packet of a connection, passes by the megabytes that a bulk transfer has waiting,
//! and packets of one flow never overtake each other. A super-packet counts as one packet of its whole size.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use crate::packet::Packet;
use crate::tun::{HEADER, MAX_PACKET};

/// Packets that may wait; each has a buffer of its own, made when it is first needed.
const SLOTS: usize = 128;
/// Flows that are told apart; more of them share turns.
const FLOWS: usize = 256;
/// Bytes of a flow's turn.
const QUANTUM: isize = 8192;
/// How long packets may wait without need (RFC 8289 section 4.3), and for how long that is put up with (4.2).
const TARGET: Duration = Duration::from_millis(5);
const INTERVAL: Duration = Duration::from_millis(100);

/// Packets in the order in which they shall be sealed.
pub(crate) struct FairQueue {
    seed: u64,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// The packet that was handed out last; its buffer is free at the next call.
    taken: Option<usize>,
    flows: Vec<Flow>,
    /// Flows with packets: those in their first turn, and the others.
    fresh: VecDeque<usize>,
    standing: VecDeque<usize>,
    dropped: u64,
}

struct Slot {
    /// Virtio header and packet.
    bytes: Vec<u8>,
    length: usize,
    arrived: Option<Instant>,
}

#[derive(Default)]
struct Flow {
    packets: VecDeque<usize>,
    bytes: usize,
    /// What is left of its turn.
    credit: isize,
    is_listed: bool,
    codel: Codel,
}

impl FairQueue {
    /// Makes an empty queue; `seed` keeps strangers from choosing which flows share turns.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            slots: Vec::new(),
            free: Vec::new(),
            taken: None,
            flows: std::iter::repeat_with(Flow::default).take(FLOWS).collect(),
            fresh: VecDeque::new(),
            standing: VecDeque::new(),
            dropped: 0,
        }
    }

    /// Tells whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.standing.is_empty()
    }

    /// Returns how many packets were dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Returns room for a virtio header and the largest packet; there is always some, beside the packets that may wait.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.release();
        if self.free.is_empty() {
            self.slots.push(Slot { bytes: vec![0; HEADER + MAX_PACKET], length: 0, arrived: None });
            self.free.push(self.slots.len() - 1);
        }
        let slot = *self.free.last().expect("a slot was made free");
        &mut self.slots[slot].bytes
    }

    /// Takes the `length` bytes that were written into [`Self::room`]. In a full queue the longest flow loses its oldest.
    pub(crate) fn push(&mut self, length: usize, now: Instant) {
        let Some(place) = self.free.pop() else { return };
        let slot = &mut self.slots[place];
        slot.length = length.min(slot.bytes.len());
        slot.arrived = Some(now);
        let number = bucket(self.seed, slot.bytes.get(HEADER..slot.length).unwrap_or_default());
        let flow = &mut self.flows[number];
        flow.packets.push_back(place);
        flow.bytes += slot.length;
        if !flow.is_listed {
            flow.is_listed = true;
            flow.credit = QUANTUM;
            self.fresh.push_back(number);
        }
        if self.slots.len() - self.free.len() > SLOTS {
            self.drop_from_longest();
        }
    }

    /// Returns the `length` bytes that were written into [`Self::room`] at once: nothing waits before them.
    pub(crate) fn pass(&mut self, length: usize) -> &mut [u8] {
        self.taken = self.free.pop();
        self.taken.map_or(&mut [], |place| &mut self.slots[place].bytes[..length])
    }

    /// Returns the next packet, its virtio header first.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<&mut [u8]> {
        self.release();
        loop {
            let is_fresh = !self.fresh.is_empty();
            let number = *if is_fresh { self.fresh.front() } else { self.standing.front() }?;
            let flow = &mut self.flows[number];
            if flow.credit > 0 {
                let next = flow.next(&self.slots, now, |dropped| {
                    self.dropped += 1;
                    self.free.push(dropped);
                });
                if let Some(place) = next {
                    self.taken = Some(place);
                    let slot = &mut self.slots[place];
                    return Some(&mut slot.bytes[..slot.length]);
                }
            }
            let flow = &mut self.flows[number];
            if is_fresh {
                self.fresh.pop_front()
            } else {
                self.standing.pop_front()
            };
            if flow.credit <= 0 {
                flow.credit += QUANTUM;
                self.standing.push_back(number);
            } else if is_fresh && !self.standing.is_empty() {
                // It goes through the others' turns once, or it could be fresh again and again (RFC 8290 section 4.2).
                self.standing.push_back(number);
            } else {
                flow.is_listed = false;
            }
        }
    }

    fn release(&mut self) {
        self.free.extend(self.taken.take());
    }

    fn drop_from_longest(&mut self) {
        let longest = self.flows.iter_mut().max_by_key(|flow| flow.bytes);
        if let Some(flow) = longest
            && let Some(place) = flow.take_oldest(&self.slots)
        {
            self.dropped += 1;
            self.free.push(place);
        }
    }
}

impl Flow {
    /// Takes the oldest packet that CoDel lets pass, and pays for it; the others go to `drop`.
    fn next(&mut self, slots: &[Slot], now: Instant, mut drop: impl FnMut(usize)) -> Option<usize> {
        loop {
            let place = self.take_oldest(slots)?;
            let waited = slots[place].arrived.map_or(Duration::ZERO, |arrived| now.duration_since(arrived));
            // The last packet is never dropped: there is no queue behind it.
            if self.codel.drops(if self.packets.is_empty() { Duration::ZERO } else { waited }, now) {
                drop(place);
                continue;
            }
            self.credit -= isize::try_from(slots[place].length).unwrap_or(isize::MAX);
            return Some(place);
        }
    }

    fn take_oldest(&mut self, slots: &[Slot]) -> Option<usize> {
        let place = self.packets.pop_front()?;
        self.bytes -= slots[place].length;
        Some(place)
    }
}

/// Returns the number of a packet's flow: by addresses, and by protocol and ports where they can be read.
fn bucket(seed: u64, bytes: &[u8]) -> usize {
    let Some(packet) = Packet::parse(bytes) else { return 0 };
    let mut hasher = DefaultHasher::new();
    (seed, packet.source, packet.destination).hash(&mut hasher);
    if let Some(transport) = packet.transport {
        (transport.protocol, &bytes[transport.start..transport.start + 4]).hash(&mut hasher);
    }
    hasher.finish() as usize % FLOWS
}

/// CoDel's state (RFC 8289 section 5).
#[derive(Default)]
struct Codel {
    /// When waiting will have been too long for a whole interval.
    too_long_at: Option<Instant>,
    is_dropping: bool,
    next_drop: Option<Instant>,
    /// Drops since dropping began, and that number when it began.
    count: u32,
    first_count: u32,
}

impl Codel {
    /// Tells whether a packet that waited this long is to be dropped.
    fn drops(&mut self, waited: Duration, now: Instant) -> bool {
        if waited < TARGET {
            self.too_long_at = None;
            self.is_dropping = false;
            return false;
        }
        let too_long_at = *self.too_long_at.get_or_insert(now + INTERVAL);
        if now < too_long_at || self.is_dropping && self.next_drop.is_some_and(|next| now < next) {
            return false;
        }
        let last_drop = self.next_drop.unwrap_or(now);
        if self.is_dropping {
            self.count += 1;
            self.next_drop = Some(last_drop + INTERVAL.div_f64(f64::from(self.count).sqrt()));
        } else {
            // A queue that is back soon is met with the rate of drops that it had.
            let recent = self.next_drop.is_some_and(|last| now.saturating_duration_since(last) < 16 * INTERVAL);
            let made = self.count - self.first_count;
            self.count = if recent && made > 1 { made } else { 1 };
            self.first_count = self.count;
            self.is_dropping = true;
            self.next_drop = Some(now + INTERVAL.div_f64(f64::from(self.count).sqrt()));
        }
        true
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
