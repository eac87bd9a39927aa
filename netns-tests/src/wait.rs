//! Waiting for a fact instead of for a time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

const POLL: Duration = Duration::from_millis(20);

/// Something did not come true in time.
#[derive(Debug)]
pub struct WaitError {
    what: String,
    timeout: Duration,
    last: Option<anyhow::Error>,
}

impl std::fmt::Display for WaitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} did not come within {:?}", self.what, self.timeout)?;
        match &self.last {
            Some(error) => write!(f, ": {error:#}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for WaitError {}

/// Calls `check` until it returns a value; an error of `check` counts as "not yet".
///
/// # Errors
///
/// [`WaitError`] names what was waited for and the last error of `check`.
pub fn wait_for<T>(what: &str, timeout: Duration, mut check: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let last = match check() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            return Err(WaitError { what: what.to_owned(), timeout, last }.into());
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_what_and_why() {
        let result: Result<()> = wait_for("the moon", Duration::ZERO, || anyhow::bail!("cloudy"));
        assert_eq!(result.unwrap_err().to_string(), "the moon did not come within 0ns: cloudy");
    }
}
