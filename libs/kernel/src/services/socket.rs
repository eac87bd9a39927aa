//! A socket to nfnetlink: transactions, dumps, and which generation of tables the kernel has.

use std::io;

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::message::{Attributes, GET_GENERATION, Message, NLM_F_DUMP, NLMSG_DONE, NLMSG_ERROR, Writer};

/// What one datagram to the kernel may be long; the kernel takes no memory for it before.
const SEND_BUFFER: usize = 256 << 20;
/// More than any datagram of the kernel.
const RECEIVE_BUFFER: usize = 64 << 10;
/// `MSG_DONTWAIT`.
const DONT_WAIT: i32 = 0x40;
/// `NFTA_GEN_ID`.
const GENERATION: u16 = 1;

/// errno(3): the transaction was meant for another generation.
pub(super) const ERESTART: i32 = 85;
/// errno(3): there is no such table, set or element.
pub(super) const ENOENT: i32 = 2;

pub(super) struct Nfnetlink {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Nfnetlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // An error does not repeat the request.
        socket.set_cap_ack(true)?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER)?;
        Ok(Self { socket, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Returns the generation of the namespace's tables, which every transaction of anyone makes another.
    pub(super) fn generation(&mut self) -> io::Result<u32> {
        let mut writer = Writer::default();
        let message = writer.message(GET_GENERATION, 0);
        writer.end_message(message);
        self.ask(writer, |attributes| attributes.number(GENERATION))?.ok_or_else(broken)
    }

    /// Sends a transaction; it is done when this returns.
    ///
    /// # Errors
    ///
    /// The first that the kernel refused, and then nothing has changed: [`ERESTART`] if the generation is another one.
    pub(super) fn transact(&mut self, transaction: Writer) -> io::Result<()> {
        self.send(transaction)?;
        let mut outcome = Err(broken());
        // All answers are there before sending returns.
        while let Some(length) = self.receive(DONT_WAIT)? {
            for message in Message::all(&self.buffer[..length]).filter(|message| message.kind == NLMSG_ERROR) {
                match message.error() {
                    Some(0) => outcome = Ok(()),
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    None => return Err(broken()),
                }
            }
        }
        outcome
    }

    /// Sends one request and returns what `read` finds in its answer, `None` if it finds nothing.
    pub(super) fn ask<T>(
        &mut self,
        request: Writer,
        read: impl Fn(Attributes<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        self.send(request)?;
        let length = self.receive(0)?.ok_or_else(broken)?;
        let message = Message::all(&self.buffer[..length]).next().ok_or_else(broken)?;
        if message.kind == NLMSG_ERROR {
            return Err(message.error().filter(|errno| *errno != 0).map_or_else(broken, io::Error::from_raw_os_error));
        }
        Ok(read(message.attributes()))
    }

    /// Lists all that a request asks for; `collect` gets one answer after the other.
    ///
    /// The kernel marks a list as inconsistent if *any* table changed meanwhile, which on a busy node is always: whoever
    /// has to know compares generations.
    pub(super) fn dump<T: Default>(
        &mut self,
        kind: u16,
        attributes: &[(u16, &str)],
        collect: impl Fn(&mut T, Attributes<'_>),
    ) -> io::Result<T> {
        let mut writer = Writer::default();
        let message = writer.message(kind, NLM_F_DUMP);
        for (kind, text) in attributes {
            writer.text(*kind, text);
        }
        writer.end_message(message);
        self.send(writer)?;
        let mut found = T::default();
        loop {
            let length = self.receive(0)?.ok_or_else(broken)?;
            for message in Message::all(&self.buffer[..length]) {
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match message.error() {
                            Some(0) => Ok(found),
                            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                            None => Err(broken()),
                        };
                    }
                    _ => collect(&mut found, message.attributes()),
                }
            }
        }
    }

    fn send(&mut self, writer: Writer) -> io::Result<()> {
        self.drain()?;
        let bytes = writer.into_bytes();
        let sent = self.socket.send(&bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(broken()) }
    }

    /// Throws away what is left of an answer that broke off.
    fn drain(&mut self) -> io::Result<()> {
        while self.receive(DONT_WAIT)?.is_some() {}
        Ok(())
    }

    /// Receives a datagram and returns its length; `None` if none is there and it should not be waited for.
    fn receive(&mut self, flags: i32) -> io::Result<Option<usize>> {
        loop {
            match self.socket.recv(&mut &mut self.buffer[..], flags) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is none")
}
