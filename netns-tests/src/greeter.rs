//! Servers that say who they are and whom they see, by TCP and by UDP: what a service's clients and servers notice of NAT.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::namespace::Namespace;

/// For a connection, a datagram and its answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// What a client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The server's name.
    pub who: String,
    /// The client's address as the server saw it.
    pub source: Ipv4Addr,
}

/// A transport protocol of greetings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

/// A server of both protocols on one port of a namespace. Dropping it ends it.
pub struct Greeter {
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

impl Greeter {
    /// Starts it on all IPv4 addresses of a namespace, under a name without spaces.
    pub fn start(namespace: &Namespace, name: &str, port: u16) -> Result<Self> {
        let at = (Ipv4Addr::UNSPECIFIED, port);
        let describe = || format!("cannot listen on {port} in {}", namespace.name());
        let listener = namespace.enter(|| Ok(TcpListener::bind(at)?)).with_context(describe)?;
        listener.set_nonblocking(true)?;
        let socket = namespace.enter(|| Ok(UdpSocket::bind(at)?)).with_context(describe)?;
        socket.set_read_timeout(Some(LOOK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (of_tcp, of_udp) = (Arc::clone(&stop), Arc::clone(&stop));
        let (name, again) = (name.to_owned(), name.to_owned());
        let tcp = std::thread::spawn(move || {
            while !of_tcp.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, client)) => greet(stream, &name, client),
                    Err(_) => std::thread::sleep(LOOK / 10),
                }
            }
        });
        let udp = std::thread::spawn(move || {
            while !of_udp.load(Ordering::Relaxed) {
                if let Ok((_, client)) = socket.recv_from(&mut [0; 64]) {
                    // Who is gone by now hears nothing.
                    let _ = socket.send_to(greeting(&again, client).as_bytes(), client);
                }
            }
        });
        Ok(Self { stop, servers: vec![tcp, udp] })
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            server.join().expect("a greeter does not panic");
        }
    }
}

/// Greets on each word that is heard, on a thread of its own: a connection may stay open.
fn greet(mut stream: TcpStream, name: &str, client: SocketAddr) {
    let text = greeting(name, client);
    std::thread::spawn(move || {
        let mut word = [0; 1];
        while stream.set_nonblocking(false).is_ok() && stream.read_exact(&mut word).is_ok() {
            if stream.write_all(text.as_bytes()).is_err() {
                return;
            }
        }
    });
}

fn greeting(name: &str, client: SocketAddr) -> String {
    format!("{name} {}\n", client.ip())
}

/// Asks `to` from a namespace, from the port `from_port` if that is not 0.
///
/// # Errors
///
/// Nobody answered within two seconds, or a connection was refused.
pub fn greet_from(from: &Namespace, transport: Transport, to: SocketAddrV4, from_port: u16) -> Result<Greeting> {
    let mut caller = Caller::open(from, transport, to, from_port)?;
    caller.greet()
}

/// A client that keeps its flow open.
pub struct Caller {
    socket: Socket,
    describe: String,
}

impl Caller {
    /// Connects, as [`greet_from`] does.
    pub fn open(from: &Namespace, transport: Transport, to: SocketAddrV4, from_port: u16) -> Result<Self> {
        let describe = format!("{transport:?} from {} to {to}", from.name());
        let socket = from.enter(|| {
            let (kind, protocol) = match transport {
                Transport::Tcp => (Type::STREAM, Protocol::TCP),
                Transport::Udp => (Type::DGRAM, Protocol::UDP),
            };
            let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, from_port)))?;
            socket.connect_timeout(&SockAddr::from(to), TIMEOUT)?;
            Ok(socket)
        });
        let socket = socket.with_context(|| describe.clone())?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { socket, describe })
    }

    /// Says a word and returns what is answered.
    pub fn greet(&mut self) -> Result<Greeting> {
        let mut answer = [0; 128];
        let heard = (|| {
            self.socket.send(b"?")?;
            let length = (&self.socket).read(&mut answer)?;
            anyhow::Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        })();
        let text = heard.with_context(|| self.describe.clone())?;
        let (who, source) =
            text.trim().split_once(' ').with_context(|| format!("{}: heard {text:?}", self.describe))?;
        Ok(Greeting { who: who.to_owned(), source: source.parse()? })
    }
}
