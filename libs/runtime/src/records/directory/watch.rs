//! Tells when something in a directory of records changed.
//!
//! By inotify on the root, on the directory of each kind, and on those of namespaces below it if there are such. Names that
//! begin with a dot do not count. What inotify cannot see, a root that was replaced or mounted over, is looked for every
//! 500 ms; so is a root that is away.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_api::Resource;
use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::time::{Instant, sleep_until};

use super::{Layout, file};

const POLL: Duration = Duration::from_millis(500);
/// Holds about a hundred events of names of usual length, and one of the longest.
const BUFFER: usize = 4096;

/// A watch on a record store.
#[derive(Debug)]
pub(crate) struct Watch {
    root: PathBuf,
    layout: Layout,
    /// Directories of the kinds that count.
    kinds: &'static [Resource],
    /// `None` while the root is away, or cannot be watched.
    armed: Option<Armed>,
    next_poll: Instant,
    /// Whether the log has it that the root cannot be watched.
    warned: bool,
}

#[derive(Debug)]
struct Armed {
    events: EventStream<[u8; BUFFER]>,
    /// Device and inode.
    identity: (u64, u64),
    root: WatchDescriptor,
    layout: Layout,
    kinds: &'static [Resource],
}

/// What the events since the last look amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Change,
    RootGone,
}

impl Watch {
    pub(super) fn new(root: &Path, layout: Layout, kinds: &'static [Resource]) -> Self {
        let mut watch =
            Self { root: root.to_owned(), layout, kinds, armed: None, next_poll: Instant::now() + POLL, warned: false };
        watch.arm();
        watch
    }

    /// Waits until something changed since the watch was made or the last call returned.
    ///
    /// That the root went away, or came back, is a change. Cancel-safe: a change that no call returned for is
    /// returned for by the next one.
    pub(crate) async fn changed(&mut self) {
        loop {
            let Some(armed) = &mut self.armed else {
                sleep_until(self.next_poll).await;
                self.next_poll = Instant::now() + POLL;
                if self.arm() {
                    return;
                }
                continue;
            };
            tokio::select! {
                event = armed.events.next() => match armed.take_events(event, &self.root) {
                    Ok(Seen::Nothing) => {}
                    Ok(Seen::Change) => return,
                    Ok(Seen::RootGone) | Err(_) => {
                        self.armed = None;
                        return;
                    }
                },
                () = sleep_until(self.next_poll) => {
                    self.next_poll = Instant::now() + POLL;
                    if identity(&self.root).ok() != Some(armed.identity) {
                        self.armed = None;
                        self.arm();
                        return;
                    }
                }
            }
        }
    }

    /// Tries to watch the root; `false` if it is away.
    ///
    /// A root that is there but cannot be watched counts as changed at every poll.
    fn arm(&mut self) -> bool {
        if identity(&self.root).is_err() {
            return false;
        }
        match Armed::new(&self.root, self.layout, self.kinds) {
            Ok(armed) => {
                self.armed = Some(armed);
                self.warned = false;
            }
            Err(error) => {
                if !self.warned {
                    tracing::warn!(root = %self.root.display(), %error,
                        "Record store cannot be watched and is polled; raise fs.inotify.max_user_instances or max_user_watches");
                }
                self.warned = true;
            }
        }
        true
    }
}

impl Armed {
    fn new(root: &Path, layout: Layout, kinds: &'static [Resource]) -> io::Result<Self> {
        let identity = identity(root)?;
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let descriptor = inotify.watches().add(root, mask)?;
        let armed = Self { events: inotify.into_event_stream([0; BUFFER])?, identity, root: descriptor, layout, kinds };
        armed.watch_kinds(root)?;
        Ok(armed)
    }

    /// Watches the directories of the kinds that count, as far as they are there.
    fn watch_kinds(&self, root: &Path) -> io::Result<()> {
        for kind in self.kinds {
            let directory = root.join(kind.plural);
            self.watch_files(&directory)?;
            if self.layout.has_namespaces(*kind) {
                let entries = match file::entries(&directory) {
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => Vec::new(),
                    entries => entries?,
                };
                let mut namespaces = entries.into_iter().filter(|entry| entry.is_directory);
                namespaces.try_for_each(|namespace| self.watch_files(&directory.join(namespace.name)))?;
            }
        }
        Ok(())
    }

    fn watch_files(&self, directory: &Path) -> io::Result<()> {
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        match self.events.watches().add(directory, mask) {
            Ok(_) => Ok(()),
            // Removed or replaced meanwhile: an event of the directory above tells.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes an event, and all others that wait behind it.
    fn take_events(&mut self, first: Option<io::Result<EventOwned>>, root: &Path) -> io::Result<Seen> {
        let mut next = first;
        let mut seen = Seen::Nothing;
        let mut new_directories = false;
        while let Some(event) = next {
            let event = event?;
            let is_root = event.wd == self.root;
            if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT) && is_root {
                return Ok(Seen::RootGone);
            }
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                (seen, new_directories) = (Seen::Change, true);
            } else if !event.mask.contains(EventMask::IGNORED) && !event.name.as_deref().is_some_and(is_hidden) {
                seen = Seen::Change;
                new_directories |= is_root || event.mask.contains(EventMask::ISDIR);
            }
            next = self.events.next().now_or_never().flatten();
        }
        if new_directories {
            self.watch_kinds(root)?;
        }
        Ok(seen)
    }
}

/// Returns which directory, by device and inode, is at `root`.
pub(super) fn identity(root: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(root)?;
    if metadata.is_dir() { Ok((metadata.dev(), metadata.ino())) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().first() == Some(&b'.')
}

#[cfg(test)]
mod tests;
