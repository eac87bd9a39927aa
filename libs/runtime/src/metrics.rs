//! Serves a daemon's metrics to Prometheus: `GET /metrics`, OpenMetrics 1.0 text, and nothing else.
//!
//! The port faces a network, so a client is given little: 16 connections in all, 5 s for a request's head, 10 s for
//! everything, one request a connection.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::shutdown::Shutdown;

const MAX_CONNECTIONS: usize = 16;
const HEAD_TIME: Duration = Duration::from_secs(5);
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept, which a lack of file descriptors makes fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const OPENMETRICS: HeaderValue = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Answers scrapes of `registry` on `listener` until `shutdown` is requested.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>, shutdown: Shutdown) {
    tokio::select! {
        () = accept(&listener, &registry) => {}
        () = shutdown.requested() => {}
    }
}

async fn accept(listener: &TcpListener, registry: &Arc<Registry>) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = Arc::clone(&free).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "Could not accept a metrics client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let registry = Arc::clone(registry);
        tokio::spawn(async move {
            if tokio::time::timeout(CONNECTION_TIME, converse(stream, registry)).await.is_err() {
                tracing::debug!(%client, "A metrics client was too slow");
            }
            drop(permit);
        });
    }
}

async fn converse(stream: TcpStream, registry: Arc<Registry>) {
    let answers = service_fn(|request| {
        let response = answer(&request, &registry);
        async { Ok::<_, Infallible>(response) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answers)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "A metrics client spoke no HTTP");
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "only /metrics is here\n");
    }
    if request.method() != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => {
            let mut response = Response::new(Full::new(Bytes::from(text)));
            response.headers_mut().insert(CONTENT_TYPE, OPENMETRICS);
            response
        }
        Err(error) => {
            tracing::warn!(%error, "Could not write the metrics");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n")
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::shutdown::ShutdownTrigger;

    async fn served() -> (std::net::SocketAddr, ShutdownTrigger, tokio::task::JoinHandle<()>) {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("culvert_test", "Things that were tested", counter.clone());
        counter.inc_by(7);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, shutdown) = Shutdown::by_hand();
        let server = tokio::spawn(serve(listener, Arc::new(registry), shutdown));
        (address, trigger, server)
    }

    async fn exchange(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.unwrap();
        String::from_utf8(response).unwrap()
    }

    #[tokio::test]
    async fn a_scrape_gets_openmetrics_text() {
        let (address, _trigger, _server) = served().await;
        let response = exchange(address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("application/openmetrics-text"), "{response}");
        assert!(response.contains("\nculvert_test_total 7\n"), "{response}");
        assert!(response.ends_with("# EOF\n"), "{response}");
    }

    #[tokio::test]
    async fn nothing_else_is_served() {
        let (address, _trigger, _server) = served().await;
        for (request, status) in [
            ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
            ("GET /metrics/../etc HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "405"),
            ("\u{1}\u{2} garbage\r\n\r\n", "400"),
        ] {
            let response = exchange(address, request).await;
            assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {response}");
        }
    }

    #[tokio::test]
    async fn silent_clients_do_not_shut_others_out_for_long() {
        let (address, _trigger, _server) = served().await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let response =
            tokio::time::timeout(HEAD_TIME * 2, exchange(address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"))
                .await
                .expect("a silent client is dropped after its time");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }

    #[tokio::test]
    async fn a_shutdown_ends_the_service() {
        let (_address, trigger, server) = served().await;
        trigger.request();
        server.await.unwrap();
    }
}
