//! More network namespaces for one test: a client's and the servers', with the test's own between them as router.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::support::run;

const PATIENCE: Duration = Duration::from_secs(5);
/// Where every server listens.
pub(crate) const SERVER_PORT: u16 = 8080;

/// A network namespace without a name; it lives as long as this, and sockets made in it.
pub(crate) struct Room {
    namespace: File,
}

impl Room {
    /// Makes a namespace behind the link `link` of this thread's one.
    pub(crate) fn behind(link: &str) -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let room = Self { namespace: made.join().unwrap() };
        let path = format!("/proc/{}/fd/{}", std::process::id(), room.namespace.as_raw_fd());
        run(&format!("ip link add {link} type veth peer name eth0 netns {path}"));
        run(&format!("ip link set {link} up"));
        room.enter(|| {
            run("ip link set lo up");
            run("ip link set eth0 up");
        });
        room
    }

    /// Runs `work` inside.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// Starts servers at `address` that answer every line or datagram with their own address.
    pub(crate) fn serve(&self, address: IpAddr) {
        let at = SocketAddr::new(address, SERVER_PORT);
        let (listener, socket) = self.enter(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
        let name = address.to_string();
        thread::spawn({
            let name = name.clone();
            move || {
                for stream in listener.incoming() {
                    let (mut stream, name) = (stream.unwrap(), name.clone());
                    thread::spawn(move || {
                        let mut buffer = [0; 64];
                        while stream.read(&mut buffer).is_ok_and(|length| length > 0) {
                            stream.write_all(name.as_bytes()).unwrap();
                        }
                    });
                }
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(name.as_bytes(), from).unwrap();
            }
        });
    }

    /// Returns a socket bound to `from` that sends to `to`.
    pub(crate) fn udp(&self, from: SocketAddr, to: SocketAddr) -> UdpSocket {
        let socket = self.enter(|| UdpSocket::bind(from).unwrap());
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Returns a connection to `to`.
    pub(crate) fn tcp(&self, to: SocketAddr) -> TcpStream {
        let stream = self.enter(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// Asks over UDP and returns which server answered.
pub(crate) fn ask_udp(socket: &UdpSocket) -> IpAddr {
    socket.send(b"who").unwrap();
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    name(&buffer[..length])
}

/// Asks over TCP and returns which server answered.
pub(crate) fn ask_tcp(stream: &mut TcpStream) -> IpAddr {
    stream.write_all(b"who").unwrap();
    let mut buffer = [0; 64];
    let length = stream.read(&mut buffer).unwrap();
    name(&buffer[..length])
}

fn name(answer: &[u8]) -> IpAddr {
    std::str::from_utf8(answer).unwrap().parse().unwrap()
}
