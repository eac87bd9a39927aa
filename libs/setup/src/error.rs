//! What an API server's refusal means, in words: who was asked, for what, and what helps.

use std::error::Error;

use culvert_model::clipped;

/// Of a server's own words, in bytes: some answer with a page.
const MOST: usize = 500;

/// Whose credentials a server is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    Kubeconfig,
    BrokerFile,
    Member,
}

/// Why a request to an API server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "API server {server} cannot be reached: {cause}: check the address, this machine's network, and that the \
         server runs"
    )]
    Unreachable { server: String, cause: String },
    #[error("API server {server} shows a certificate that is not trusted ({cause}): {remedy}")]
    Untrusted { server: String, cause: String, remedy: &'static str },
    #[error("API server {server} did not accept the credentials ({message}): {remedy}")]
    Unauthorized { server: String, message: String, remedy: &'static str },
    #[error("API server {server} forbids it: {message}: ask for this right, or {remedy}")]
    Forbidden { server: String, message: String, remedy: &'static str },
    #[error(
        "API server {server} is not well: for {what} it answers {code} ({message}): look at its log, and try again once \
         it is"
    )]
    Unwell { server: String, what: String, code: u16, message: String },
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
    #[error(
        "cannot use {kubeconfig} ({reason}): name a kubeconfig with --kubeconfig or $KUBECONFIG, and a context with \
         --context"
    )]
    Kubeconfig { kubeconfig: String, reason: String },
    #[error("broker address {url:?} cannot be used ({reason}): with --broker-url, write it as https://192.0.2.1:6443")]
    Url { url: String, reason: String },
    #[error("cannot speak to {url} ({reason}): its certificates or credentials are damaged: {remedy}")]
    Client { url: String, reason: String, remedy: &'static str },
}

impl Credentials {
    /// Returns what helps if a server does not accept them, or is not the one that they are for.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Kubeconfig => "get a new kubeconfig, or name another context with --context",
            Self::BrokerFile => "make the broker file anew with `recover-broker-info`",
            Self::Member => "run `culvert join` again",
        }
    }
}

impl ServerError {
    pub(crate) fn of(server: &str, credentials: Credentials, what: impl Into<String>, error: &kube::Error) -> Self {
        let (server, what, remedy) = (server.to_owned(), what.into(), credentials.remedy());
        let kube::Error::Api(status) = error else {
            let strange = matches!(error, kube::Error::SerdeError(_) | kube::Error::FromUtf8(_));
            if strange {
                return Self::Answer { server, what, message: chain(error) };
            }
            // The client's own frame around the cause tells nothing.
            let cause = chain(error.source().unwrap_or(error));
            return match cause.contains("invalid peer certificate") {
                true => Self::Untrusted { server, cause, remedy },
                false => Self::Unreachable { server, cause },
            };
        };
        let message = line(if status.message.is_empty() { &status.reason } else { &status.message });
        match status.code {
            401 => Self::Unauthorized { server, message, remedy },
            403 => Self::Forbidden { server, message, remedy },
            code @ (429 | 500..) => Self::Unwell { server, what, code, message },
            _ => Self::Refused { server, what, message },
        }
    }
}

/// Returns an error and its causes, each once: the outer ones of a client often repeat the inner.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        // What follows a first line is an excerpt of what was read, such as a kubeconfig with a token.
        let text = error.to_string().lines().next().unwrap_or_default().to_owned();
        if !texts.iter().any(|outer| outer.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    line(&texts.join(": "))
}

/// Returns a text on one line.
fn line(text: &str) -> String {
    let words = text.split(|character: char| character.is_whitespace() || character.is_control());
    clipped(&words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "), MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: u16, message: &str, credentials: Credentials) -> String {
        let status = kube::core::Status { code, message: message.to_owned(), ..kube::core::Status::default() };
        ServerError::of("https://b", credentials, "Secret ns/a", &kube::Error::Api(status.boxed())).to_string()
    }

    #[test]
    fn what_is_not_accepted_is_told_what_helps_by_whose_it_is() {
        let text = told(401, "Unauthorized", Credentials::BrokerFile);
        assert!(text.ends_with("(Unauthorized): make the broker file anew with `recover-broker-info`"), "{text}");
        let text = told(403, "no", Credentials::Kubeconfig);
        assert!(text.contains("forbids it: no: ask for this right, or get a new kubeconfig"), "{text}");
        assert!(told(401, "Unauthorized", Credentials::Member).ends_with("run `culvert join` again"));
    }

    #[test]
    fn a_server_that_is_not_well_is_no_refusal_and_a_page_is_one_line() {
        let page = "<html>\r\n<h1>502 Bad\tGateway</h1>\n".to_owned() + &"x".repeat(5000);
        let text = told(502, &page, Credentials::Kubeconfig);
        let beginning =
            "API server https://b is not well: for Secret ns/a it answers 502 (<html> <h1>502 Bad Gateway</h1>";
        assert!(text.starts_with(beginning) && text.ends_with("try again once it is"), "{text}");
        assert!(text.lines().count() == 1 && text.len() < 700, "{text}");
        assert!(told(422, "no", Credentials::Kubeconfig).contains("refused Secret ns/a: no"));
    }
}
