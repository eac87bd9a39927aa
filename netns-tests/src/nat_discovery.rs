//! NAT discovery as a Submariner gateway speaks it (chapter 4.4), with its bytes written by hand.
//!
//! Releases up to 0.20 name an endpoint by its cable name, later ones by that and `-v4`, and each refuses the other form.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::submariner::{Remote, Submariner};

const PORT: u16 = 4490;
const ASK_EVERY: Duration = Duration::from_millis(500);

const OK: u64 = 0;
const NAT_DETECTED: u64 = 1;
const UNKNOWN_DST_ENDPOINT: u64 = 3;

/// Which releases the speaker is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    UpTo020,
    Since021,
}

impl Release {
    fn id(self, cable_name: &str) -> String {
        match self {
            Self::UpTo020 => cable_name.to_owned(),
            Self::Since021 => format!("{cable_name}-v4"),
        }
    }
}

/// A running speaker.
pub struct NatDiscovery {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Dialogue>>,
}

/// What was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dialogue {
    /// Names that we were asked by.
    pub asked_for: BTreeSet<String>,
    /// Requests that were answered with OK.
    pub accepted: usize,
    /// Requests that were answered with NAT_DETECTED.
    pub behind_nat: usize,
    /// Requests for a name that this release does not know.
    pub refused: usize,
    /// Response codes to our requests, and the names of those who answered.
    pub answers: BTreeSet<(u64, String)>,
}

impl NatDiscovery {
    /// Asks and answers on a Submariner gateway's node until told to stop.
    pub fn start(submariner: &Submariner, remote: &Remote, cluster: &str, release: Release) -> Result<Self> {
        let socket = submariner.node.namespace.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("cannot listen on 4490")?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        })?;
        let own_id = release.id(&submariner.cable_name());
        let speaker = Speaker {
            socket,
            address: submariner.node.address,
            details: endpoint_details(&submariner.plan.id, &own_id),
            remote: SocketAddrV4::new(remote.private, PORT),
            remote_details: endpoint_details(cluster, &release.id(&remote.cable_name)),
            own_id,
            dialogue: Dialogue::default(),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || speaker.run(&stopped));
        Ok(Self { stop, thread })
    }

    /// Stops and returns what was said.
    pub fn finish(self) -> Result<Dialogue> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the speaker does not panic")
    }
}

struct Speaker {
    socket: UdpSocket,
    address: Ipv4Addr,
    own_id: String,
    details: Vec<u8>,
    remote: SocketAddrV4,
    remote_details: Vec<u8>,
    dialogue: Dialogue,
}

impl Speaker {
    fn run(mut self, stop: &AtomicBool) -> Result<Dialogue> {
        let mut next_request = Instant::now();
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if Instant::now() >= next_request {
                self.socket.send_to(&self.request(), self.remote).context("cannot ask")?;
                next_request += ASK_EVERY;
            }
            let Ok((length, from)) = self.socket.recv_from(&mut buffer) else { continue };
            for (number, field) in fields(&buffer[..length]).context("a message that cannot be read")? {
                match (number, field) {
                    (2, Field::Bytes(request)) => {
                        let response = self.answer(request, from)?;
                        self.socket.send_to(&response, from).context("cannot answer")?;
                    }
                    (3, Field::Bytes(response)) => self.handle_response(response)?,
                    _ => {}
                }
            }
        }
        Ok(self.dialogue)
    }

    fn request(&self) -> Vec<u8> {
        let mut request = Vec::new();
        put_number(&mut request, 1, 4711);
        put_bytes(&mut request, 2, &self.details);
        put_bytes(&mut request, 3, &self.remote_details);
        put_bytes(&mut request, 4, &address_and_port(&self.address.to_string(), PORT));
        put_bytes(&mut request, 5, &address_and_port(&self.remote.ip().to_string(), PORT));
        let mut message = Vec::new();
        put_number(&mut message, 1, 1);
        put_bytes(&mut message, 2, &request);
        message
    }

    fn answer(&mut self, request: &[u8], from: SocketAddr) -> Result<Vec<u8>> {
        let request = fields(request).context("a request that cannot be read")?;
        let bytes = |number| bytes_of(&request, number).context("a request without one of its parts");
        let receiver = text_of(&fields(bytes(3)?).context("no receiver")?, 2);
        let using_source = text_of(&fields(bytes(4)?).context("no source")?, 1);
        let using_destination = text_of(&fields(bytes(5)?).context("no destination")?, 1);
        let code = if receiver != self.own_id {
            self.dialogue.refused += 1;
            UNKNOWN_DST_ENDPOINT
        } else if using_source != from.ip().to_string() || using_destination != self.address.to_string() {
            self.dialogue.behind_nat += 1;
            NAT_DETECTED
        } else {
            self.dialogue.accepted += 1;
            OK
        };
        self.dialogue.asked_for.insert(receiver);
        let mut response = Vec::new();
        put_number(&mut response, 1, number_of(&request, 1));
        put_number(&mut response, 2, code);
        put_bytes(&mut response, 3, &self.details);
        put_bytes(&mut response, 4, bytes(2)?);
        put_bytes(&mut response, 8, &address_and_port(&from.ip().to_string(), from.port()));
        let mut message = Vec::new();
        put_bytes(&mut message, 3, &response);
        Ok(message)
    }

    fn handle_response(&mut self, response: &[u8]) -> Result<()> {
        let response = fields(response).context("a response that cannot be read")?;
        let sender = fields(bytes_of(&response, 3).context("a response without its sender")?).context("no sender")?;
        self.dialogue.answers.insert((number_of(&response, 2), text_of(&sender, 2)));
        Ok(())
    }
}

fn endpoint_details(cluster: &str, endpoint: &str) -> Vec<u8> {
    let mut details = Vec::new();
    put_bytes(&mut details, 1, cluster.as_bytes());
    put_bytes(&mut details, 2, endpoint.as_bytes());
    details
}

fn address_and_port(address: &str, port: u16) -> Vec<u8> {
    let mut pair = Vec::new();
    put_bytes(&mut pair, 1, address.as_bytes());
    put_number(&mut pair, 2, port.into());
    pair
}

/// A field of a protobuf message, as far as this protocol has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn bytes_of<'a>(message: &[(u64, Field<'a>)], number: u64) -> Option<&'a [u8]> {
    message.iter().find_map(|(found, field)| match field {
        Field::Bytes(bytes) if *found == number => Some(*bytes),
        Field::Bytes(_) | Field::Number(_) => None,
    })
}

fn text_of(message: &[(u64, Field<'_>)], number: u64) -> String {
    String::from_utf8_lossy(bytes_of(message, number).unwrap_or_default()).into_owned()
}

/// A number that is 0 is not written (proto3).
fn number_of(message: &[(u64, Field<'_>)], number: u64) -> u64 {
    let found = message.iter().find_map(|(found, field)| match field {
        Field::Number(value) if *found == number => Some(*value),
        Field::Number(_) | Field::Bytes(_) => None,
    });
    found.unwrap_or_default()
}

fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let value = take_varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(value),
            2 => {
                let (taken, rest) = bytes.split_at_checked(usize::try_from(value).ok()?)?;
                bytes = rest;
                Field::Bytes(taken)
            }
            _ => return None,
        };
        fields.push((key >> 3, field));
    }
    Some(fields)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn put_number(message: &mut Vec<u8>, number: u64, value: u64) {
    put_varint(message, number << 3);
    put_varint(message, value);
}

fn put_bytes(message: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_varint(message, number << 3 | 2);
    put_varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Vec::new();
        put_number(&mut message, 1, u64::MAX);
        put_bytes(&mut message, 300, b"words");
        let read = fields(&message).unwrap();
        assert_eq!(read, [(1, Field::Number(u64::MAX)), (300, Field::Bytes(b"words"))]);
        assert_eq!((number_of(&read, 1), number_of(&read, 2)), (u64::MAX, 0));
        assert_eq!(text_of(&read, 300), "words");
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, b"words");
        assert_eq!(fields(&message[..3]), None);
        assert_eq!(fields(&message[..1]), None);
    }
}
