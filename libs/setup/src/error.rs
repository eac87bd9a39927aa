//! What an API server's refusal means, in words: who was asked, for what, and what helps.

use std::error::Error;

/// Why a request to an API server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "API server {server} cannot be reached: {cause}: check the address, this machine's network, and that the \
         server runs"
    )]
    Unreachable { server: String, cause: String },
    #[error("API server {server} did not accept the credentials ({message}): get new ones")]
    Unauthorized { server: String, message: String },
    #[error("API server {server} forbids it: {message}")]
    Forbidden { server: String, message: String },
    #[error("API server {server} refused {what}: {message}")]
    Refused { server: String, what: String, message: String },
    #[error("API server {server}: the answer for {what} is not understood: {message}")]
    Answer { server: String, what: String, message: String },
    #[error(
        "API server {server}: {what} took longer than {seconds} s: look at the server's controllers, then try again"
    )]
    TooLong { server: String, what: String, seconds: u64 },
}

/// Why there is no connection to try.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot use the kubeconfig ({0}): name one with --kubeconfig or $KUBECONFIG, and a context with --context")]
    Kubeconfig(String),
    #[error("broker address {url:?} cannot be used ({reason}): with --broker-url, write it as https://192.0.2.1:6443")]
    Url { url: String, reason: String },
    #[error("cannot speak to {url}: {reason}")]
    Client { url: String, reason: String },
}

impl ServerError {
    pub(crate) fn of(server: &str, what: impl Into<String>, error: &kube::Error) -> Self {
        let (server, what) = (server.to_owned(), what.into());
        let kube::Error::Api(status) = error else {
            let strange = matches!(error, kube::Error::SerdeError(_) | kube::Error::FromUtf8(_));
            return match strange {
                true => Self::Answer { server, what, message: chain(error) },
                // The client's own frame around the cause tells nothing.
                false => Self::Unreachable { server, cause: chain(error.source().unwrap_or(error)) },
            };
        };
        let message = status.message.clone();
        match status.code {
            401 => Self::Unauthorized { server, message },
            403 => Self::Forbidden { server, message },
            _ => Self::Refused { server, what, message },
        }
    }
}

/// Returns an error and its causes, each once: the outer ones of a client often repeat the inner.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.iter().any(|outer| outer.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}
