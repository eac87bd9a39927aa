//! Sealed datagrams that wait to be sent, grouped so that one system call sends many.
//!
//! A batch holds datagrams for one address that are all of one size; only its last may be smaller (`UDP_SEGMENT`).

use std::net::SocketAddr;

/// Datagrams per `UDP_SEGMENT` send that every kernel takes.
const MAX_SEGMENTS: usize = 64;
/// Bytes per `UDP_SEGMENT` send: what fits a UDP datagram over IPv4.
const MAX_BYTES: usize = 65_507;
/// Bytes that wait before it is time to send.
const CAPACITY: usize = 512 * 1024;
/// Room beyond that for one more super-packet from the TUN, which is sealed as a whole: 64 KiB in segments of no more
/// than 48 bytes, the smallest that a TCP of Linux sends, grow fourfold.
const RESERVE: usize = 256 * 1024;
/// The largest datagram that is ever sealed: a packet of 65,535 bytes and WireGuard's 32.
pub(crate) const MAX_DATAGRAM: usize = 65_535 + 32;

/// Datagrams of one size to one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) to: SocketAddr,
    /// Offset of the first byte in the outbox.
    start: usize,
    pub(crate) length: usize,
    /// Size of every datagram but the last.
    pub(crate) segment: usize,
    closed: bool,
}

impl Batch {
    /// Number of datagrams.
    pub(crate) fn count(&self) -> usize {
        self.length.div_ceil(self.segment)
    }
}

/// The arena of sealed datagrams and the batches in it.
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    used: usize,
    batches: Vec<Batch>,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; CAPACITY + RESERVE + MAX_DATAGRAM], used: 0, batches: Vec::with_capacity(256) }
    }

    /// Tells whether it is time to send.
    pub(crate) fn is_full(&self) -> bool {
        self.used >= CAPACITY
    }

    /// Returns where the next datagram is to be written; room for the largest.
    ///
    /// When nobody sends although the outbox is full, what waits is dropped: a datagram may always be lost.
    pub(crate) fn slot(&mut self) -> &mut [u8] {
        if self.used > CAPACITY + RESERVE {
            self.clear();
        }
        &mut self.bytes[self.used..self.used + MAX_DATAGRAM]
    }

    /// Takes the `length` bytes at the start of the slot as a datagram to `to`.
    pub(crate) fn commit(&mut self, length: usize, to: SocketAddr) {
        if length == 0 {
            return;
        }
        let start = self.used;
        self.used += length;
        if let Some(batch) = self.batches.last_mut() {
            let fits = batch.to == to
                && !batch.closed
                && length <= batch.segment
                && batch.count() < MAX_SEGMENTS
                && batch.length + length <= MAX_BYTES;
            if fits {
                batch.length += length;
                batch.closed = length < batch.segment;
                return;
            }
        }
        self.batches.push(Batch { to, start, length, segment: length, closed: false });
    }

    /// Copies the datagram committed last to one more address.
    pub(crate) fn repeat_last(&mut self, length: usize, to: SocketAddr) {
        let start = self.used - length;
        self.slot();
        if self.used >= start + length {
            self.bytes.copy_within(start..start + length, self.used);
            self.commit(length, to);
        }
    }

    /// Returns the batches and the bytes of each.
    pub(crate) fn batches(&self) -> impl Iterator<Item = (&Batch, &[u8])> {
        self.batches.iter().map(|batch| (batch, &self.bytes[batch.start..batch.start + batch.length]))
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.batches.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 4500))
    }

    fn filled(datagrams: &[(usize, u8)]) -> Vec<(u8, usize, usize)> {
        let mut outbox = Outbox::new();
        for &(length, last) in datagrams {
            outbox.slot()[..length].fill(last);
            outbox.commit(length, to(last));
        }
        let summary = outbox.batches().map(|(batch, bytes)| {
            assert!(bytes.iter().all(|&byte| batch.to == to(byte)));
            (bytes[0], batch.count(), batch.length)
        });
        summary.collect()
    }

    #[test]
    fn equal_sizes_share_a_batch_that_a_smaller_one_ends() {
        assert_eq!(filled(&[(100, 1), (100, 1), (40, 1), (40, 1), (100, 1)]), [(1, 3, 240), (1, 1, 40), (1, 1, 100)]);
    }

    #[test]
    fn addresses_do_not_mix() {
        assert_eq!(filled(&[(100, 1), (100, 2), (100, 1)]), [(1, 1, 100), (2, 1, 100), (1, 1, 100)]);
    }

    #[test]
    fn a_batch_ends_at_the_limits_of_the_kernel() {
        assert_eq!(filled(&[(60, 1); 70]), [(1, 64, 3840), (1, 6, 360)]);
        assert_eq!(filled(&[(1452, 1); 46]), [(1, 45, 65_340), (1, 1, 1452)]);
    }

    #[test]
    fn a_datagram_goes_to_several_addresses() {
        let mut outbox = Outbox::new();
        outbox.slot()[..148].fill(7);
        outbox.commit(148, to(1));
        outbox.repeat_last(148, to(2));
        let all: Vec<_> = outbox.batches().map(|(batch, bytes)| (batch.to, bytes.to_vec())).collect();
        assert_eq!(all, [(to(1), vec![7; 148]), (to(2), vec![7; 148])]);
    }

    #[test]
    fn an_outbox_that_nobody_empties_drops_instead_of_growing() {
        let mut outbox = Outbox::new();
        for _ in 0..10_000 {
            outbox.slot();
            outbox.commit(1452, to(1));
        }
        assert!(outbox.batches().count() > 0);
    }
}
