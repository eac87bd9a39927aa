//! Keeps no more memory from the system than is in use.
//!
//! A pass over a thousand records uses megabytes for a moment, a status of as many entries tens of them. glibc gives back
//! what lies at the end of its heaps only, and a daemon that has little to do for hours would hold the rest.

use std::time::Duration;

/// Between two times: a heap of a hundred megabytes takes some milliseconds.
const INTERVAL: Duration = Duration::from_secs(15);

/// Lets all threads share one heap, where each would otherwise keep what it has freed for itself. To be called before any
/// other thread is started.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` (mallopt(3)) takes two numbers; a value that it does not know changes nothing.
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what is free, again and again; never resolves.
pub async fn give_back() {
    loop {
        tokio::time::sleep(INTERVAL).await;
        trim();
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: `malloc_trim` (malloc_trim(3)) may be called at any time from any thread.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
