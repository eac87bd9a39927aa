//! Tells that something changed in the network, not what: whoever is told observes anew.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

use crate::KernelError;

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// errno(3): more was to be told than the socket could hold.
const ENOBUFS: i32 = 105;

/// Pause after a failure of the socket.
const DEAF: Duration = Duration::from_secs(1);

/// Changes of links, addresses, routes and rules in the network namespace of the thread that opened it, our own
/// changes included.
pub struct Changes {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Changes {
    /// Starts to listen. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`KernelError::Socket`].
    pub fn open() -> Result<Self, KernelError> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(KernelError::Socket)?;
        let groups = GROUPS.iter().fold(0, |groups, group| groups | 1 << (*group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups)).map_err(KernelError::Socket)?;
        Ok(Self { socket, buffer: Vec::new() })
    }

    /// Returns after any change since the last call. Cancel-safe.
    ///
    /// A socket that fails for good counts as one change a second: whoever waits looks for itself then.
    pub async fn changed(&mut self) {
        let heard = poll_fn(|context| {
            if let Poll::Ready(first) = self.poll_message(context) {
                // A burst is one change, or a few: the runtime bounds what is read at a time.
                while let Poll::Ready(Ok(())) = self.poll_message(context) {}
                return Poll::Ready(first);
            }
            Poll::Pending
        })
        .await;
        if let Err(error) = heard {
            tracing::debug!(%error, "Changes of the kernel are not heard");
            tokio::time::sleep(DEAF).await;
        }
    }

    /// Reads one message and forgets it. That the buffer was full is as good as a message.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffer.clear();
        self.buffer.reserve(8192);
        self.socket.poll_recv(context, &mut self.buffer).map(|received| match received {
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => Ok(()),
            received => received,
        })
    }
}
