//! Requests to rtnetlink (RFC 3549) and their answers.

#![allow(clippy::wildcard_enum_match_arm, reason = "netlink's own enums are not exhaustive")]

use std::fs;
use std::io;

use futures_util::StreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

use crate::KernelError;

/// Bit of CAP_NET_ADMIN in a capability set (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;
/// Dumps that the kernel calls inconsistent, since something changed meanwhile, before we give up.
const DUMP_ATTEMPTS: u32 = 8;

/// A connection to the kernel; it ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, KernelError> {
        // Strict checking lets the kernel filter dumps, so a node with many foreign routes costs nothing.
        let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check().map_err(KernelError::Socket)?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Asks for a change and waits until it is done.
    ///
    /// # Errors
    ///
    /// The kernel's error number.
    pub(crate) async fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut answers = self.send(message, NLM_F_ACK | flags)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return outcome(&error);
            }
        }
        Err(broken())
    }

    /// Asks for one thing; `Ok` has it, or the kernel's error number says why not.
    pub(crate) async fn ask(&self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut answers = self.send(message, 0)?;
        match answers.next().await.map(|answer| answer.payload) {
            Some(NetlinkPayload::InnerMessage(found)) => Ok(found),
            Some(NetlinkPayload::Error(error)) => outcome(&error).and(Err(broken())),
            _ => Err(broken()),
        }
    }

    /// Lists all things that match `message`.
    pub(crate) async fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(message.clone()).await? {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "it changes faster than it can be listed"))
    }

    /// Returns `None` if something changed during the dump.
    async fn dump_once(&self, message: RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let mut answers = self.send(message, NLM_F_DUMP)?;
        let mut found = Vec::new();
        let mut consistent = true;
        while let Some(answer) = answers.next().await {
            consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => found.push(inner),
                NetlinkPayload::Error(error) => outcome(&error)?,
                NetlinkPayload::Done(_) => return Ok(consistent.then_some(found)),
                _ => {}
            }
        }
        Err(broken())
    }

    fn send(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<impl StreamExt<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin + use<>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        self.handle.clone().request(request).map_err(|_| broken())
    }
}

/// Checks that this thread may change the network.
pub(crate) fn check_capability() -> Result<(), KernelError> {
    // Without /proc the first request tells.
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    if lacks_capability(&status) { Err(KernelError::Capability) } else { Ok(()) }
}

/// Tells whether a thread's `status` (proc(5)) shows that CAP_NET_ADMIN is missing.
fn lacks_capability(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> CAP_NET_ADMIN & 1 == 0)
}

fn outcome(error: &ErrorMessage) -> io::Result<()> {
    match error.code {
        None => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_abs())),
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the netlink connection broke off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_seen_in_the_status() {
        assert!(lacks_capability("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n"));
        assert!(lacks_capability("CapEff:\t000001ffffffefff\n"));
        assert!(!lacks_capability("CapEff:\t0000000000001000\n"));
        assert!(!lacks_capability(""));
    }
}
