//! What the kernel tells of changes of nftables (nfnetlink, group NFTABLES): when an element is in.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culvert_netns_tests::Namespace;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h, as a mask.
const GROUP: u32 = 1 << (7 - 1);
const BUFFER: usize = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket that is told.
pub(crate) struct Notices(OwnedFd);

impl Notices {
    /// Listens in a namespace, from now on.
    pub(crate) fn of(namespace: &Namespace) -> Result<Self> {
        namespace.enter(|| {
            let socket =
                socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
                    .context("no netlink socket")?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(10_000))?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP)).context("nftables cannot be followed")?;
            Ok(Self(socket))
        })
    }

    /// Waits for a notice that has an endpoint in it, and returns when it came.
    ///
    /// # Errors
    ///
    /// None comes within ten seconds.
    pub(crate) fn wait_for(&self, endpoint: Ipv4Addr, port: u16) -> Result<Instant> {
        let needle = [&endpoint.octets()[..], &port.to_be_bytes()].concat();
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 1 << 18];
        while Instant::now() < deadline {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) if buffer[..length].windows(needle.len()).any(|window| window == needle) => {
                    return Ok(Instant::now());
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error).context("notices of nftables"),
            }
        }
        bail!("the endpoint {endpoint}:{port} did not come to the kernel within {PATIENCE:?}")
    }
}
