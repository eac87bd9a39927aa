//! A proxy that tunnels to whom CONNECT names (RFC 9110 section 9.3.6), and remembers who that was.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};

use crate::namespace::Namespace;

/// A proxy on a node or router. Dropping it ends it; tunnels live as long as their ends.
pub struct ConnectProxy {
    namespace: Namespace,
    address: SocketAddrV4,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    asked: Mutex<BTreeSet<String>>,
    is_over: AtomicBool,
}

impl ConnectProxy {
    /// Listens in a namespace; from there it connects too.
    ///
    /// # Errors
    ///
    /// The address is not there, or its port is taken.
    pub fn start(namespace: &Namespace, address: SocketAddrV4) -> Result<Self> {
        let bind = || TcpListener::bind(address).with_context(|| format!("a proxy cannot listen at {address}"));
        let listener = namespace.enter(bind)?;
        let inner = Arc::<Inner>::default();
        let (shared, from) = (inner.clone(), namespace.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), shared, from) = (client, shared.clone(), from.clone()) else { continue };
                // Whom a tunnel breaks for asks again.
                thread::spawn(move || tunnel(client, &from, &shared.asked));
            }
        });
        Ok(Self { namespace: namespace.clone(), address, inner })
    }

    /// Returns whom it was asked to connect to, HOST:PORT.
    pub fn asked(&self) -> BTreeSet<String> {
        self.inner.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.inner.is_over.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = self.namespace.enter(|| Ok(TcpStream::connect(self.address)?));
    }
}

fn tunnel(mut client: TcpStream, from: &Namespace, asked: &Mutex<BTreeSet<String>>) -> Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let target = request.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let target = target.context("the request is no CONNECT")?.to_owned();
    let mut header = String::new();
    while reader.read_line(&mut header)? > 0 && !header.trim().is_empty() {
        header.clear();
    }
    asked.lock().unwrap_or_else(PoisonError::into_inner).insert(target.clone());
    let Ok(mut server) = from.enter(|| Ok(TcpStream::connect(&target)?)) else {
        return Ok(client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")?);
    };
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let mut answers = server.try_clone()?;
    let back = thread::spawn(move || {
        let copied = io::copy(&mut answers, &mut client);
        // The client hears of the end, whichever it was.
        let _ = client.shutdown(Shutdown::Both);
        copied
    });
    let copied = io::copy(&mut reader, &mut server);
    let _ = server.shutdown(Shutdown::Both);
    back.join().expect("the other direction does not panic")?;
    copied?;
    Ok(())
}
