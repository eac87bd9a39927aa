//! Tells every part of a daemon that it has to end: on SIGTERM (an orchestrator) or SIGINT (a person).

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whether the process was asked to end. Cheap to clone; all clones see the same.
#[derive(Clone, Debug)]
pub struct Shutdown {
    asked: watch::Receiver<bool>,
}

/// Asks for the end by hand; dropping it asks too.
#[derive(Debug)]
pub struct ShutdownTrigger {
    ask: watch::Sender<bool>,
}

impl ShutdownTrigger {
    /// Asks for the end.
    pub fn request(&self) {
        self.ask.send_replace(true);
    }
}

impl Shutdown {
    /// Takes SIGTERM and SIGINT from now on, instead of dying of them. Call it within a tokio runtime.
    ///
    /// # Errors
    ///
    /// That of the kernel when it refuses a signal handler.
    pub fn install() -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (trigger, shutdown) = Self::by_hand();
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "Shutting down");
            trigger.request();
        });
        Ok(shutdown)
    }

    /// Returns a shutdown that the caller asks for.
    pub fn by_hand() -> (ShutdownTrigger, Self) {
        let (ask, asked) = watch::channel(false);
        (ShutdownTrigger { ask }, Self { asked })
    }

    /// Resolves once the end is asked for; at once if it was before. Cancel-safe.
    pub async fn requested(&self) {
        // An error says that the trigger is gone: nobody could ask any more, so the end is due.
        let _ = self.asked.clone().wait_for(|asked| *asked).await;
    }

    /// Tells whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        *self.asked.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_clone_hears_of_it() {
        let (trigger, shutdown) = Shutdown::by_hand();
        let other = shutdown.clone();
        assert!(!shutdown.is_requested());
        trigger.request();
        shutdown.requested().await;
        other.requested().await;
        assert!(other.is_requested());
    }

    #[tokio::test]
    async fn a_lost_trigger_counts_as_a_request() {
        let (trigger, shutdown) = Shutdown::by_hand();
        drop(trigger);
        shutdown.requested().await;
    }

    #[tokio::test]
    async fn sigterm_is_a_request() {
        let shutdown = Shutdown::install().unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        shutdown.requested().await;
        assert!(shutdown.is_requested());
    }
}
