//! A part of a daemon that runs beside the reconcile loop for as long as the daemon does.
//!
//! Such a part never ends by itself. If it does, a panic has ended it; what it last said would be believed for ever, so
//! the daemon has to end too and be started again.

use tokio::task::JoinHandle;

use crate::reconcile::Wake;

/// A running part; it ends with it.
#[derive(Debug)]
pub struct Task {
    name: &'static str,
    handle: JoinHandle<()>,
}

/// A part of the daemon is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} has ended by itself, which is a bug: start this daemon again, and report what it logged before")]
pub struct Ended {
    name: &'static str,
}

impl Task {
    /// Starts `work`, which `name` names in errors; `wake` rings when it ends. Needs a tokio runtime.
    pub fn spawn(name: &'static str, wake: Wake, work: impl Future<Output = ()> + Send + 'static) -> Self {
        let bell = RingAtEnd(wake);
        let handle = tokio::spawn(async move {
            let _bell = bell;
            work.await;
        });
        Self { name, handle }
    }

    /// Makes sure that the part still runs.
    ///
    /// # Errors
    ///
    /// [`Ended`] names it.
    pub fn check(&self) -> Result<(), Ended> {
        if self.handle.is_finished() { Err(Ended { name: self.name }) } else { Ok(()) }
    }

    /// Waits until the part has ended, as it was asked to. Cancel-safe.
    pub async fn ended(&mut self) {
        // How it ended no longer matters.
        let _ = (&mut self.handle).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

struct RingAtEnd(Wake);

impl Drop for RingAtEnd {
    fn drop(&mut self) {
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_panics_rings_and_is_named() {
        let wake = Wake::default();
        let task = Task::spawn("the test", wake.clone(), async { panic!("on purpose") });

        let start = Instant::now();
        wake.settled(start, start + Duration::from_secs(60)).await;

        assert!(start.elapsed() < Duration::from_secs(60), "the bell rang");
        let error = task.check().expect_err("it has ended");
        assert!(error.to_string().starts_with("the test has ended by itself"), "{error}");
    }

    #[tokio::test]
    async fn a_part_ends_with_its_handle() {
        let (alive, mut seen) = tokio::sync::watch::channel(());
        let task = Task::spawn("the test", Wake::default(), async move {
            let _alive = alive;
            std::future::pending().await
        });
        assert_eq!(task.check(), Ok(()));

        drop(task);

        assert!(seen.changed().await.is_err(), "the part was dropped");
    }
}
