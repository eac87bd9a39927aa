//! Decides how long an API server may take for an answer, and when it is asked once more.
//!
//! The client's own way of asking again would outlast whoever waits: it does what a server says that wants to be left alone
//! for an hour.

use std::time::Duration;

use tokio::time::{sleep, timeout};

/// The longest that an answer may take, asked once or more often.
const ANSWER: Duration = Duration::from_secs(30);
/// Before a server is asked again that is busy now.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// Asks a server until it answers otherwise than that it is busy, or for as long as that may take.
pub(crate) async fn ask<T, F: Future<Output = kube::Result<T>>>(request: impl Fn() -> F) -> kube::Result<T> {
    let work = async {
        for pause in PAUSES {
            match request().await {
                Err(kube::Error::Api(status)) if is_busy(status.code) => sleep(pause).await,
                answer => return answer,
            }
        }
        request().await
    };
    match timeout(ANSWER, work).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service(format!("no answer within {} s", ANSWER.as_secs()).into())),
    }
}

/// Tells whether a server that says this may do a moment later what it does not do now.
fn is_busy(code: u16) -> bool {
    matches!(code, 429 | 503 | 504)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use tokio::time::Instant;

    use super::*;

    fn failed<T>(code: u16) -> kube::Result<T> {
        Err(kube::Error::Api(kube::core::Status { code, ..kube::core::Status::default() }.boxed()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
        for (code, times) in [(429, 6), (503, 6), (504, 6), (500, 1), (403, 1)] {
            let asked = Cell::new(0);
            let answer = ask(|| {
                asked.set(asked.get() + 1);
                ready(failed::<()>(code))
            });
            assert!(matches!(answer.await, Err(kube::Error::Api(status)) if status.code == code));
            assert_eq!(asked.get(), times, "{code}");
        }
        let asked = Cell::new(0);
        let answer = ask(|| {
            asked.set(asked.get() + 1);
            ready(if asked.get() < 3 { failed(503) } else { Ok("well") })
        });
        assert_eq!(answer.await.unwrap(), "well");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_half_a_minute() {
        let began = Instant::now();
        let error = ask(pending::<kube::Result<()>>).await.unwrap_err().to_string();
        assert!(error.contains("no answer within 30 s"), "{error}");
        assert_eq!(began.elapsed(), ANSWER);
    }
}
