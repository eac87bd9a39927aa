//! Tells when something in a record store changed: an object written, edited by hand or deleted, or the store itself
//! gone or come back.

use crate::records::directory::watch::Watch as DirectoryWatch;
use crate::records::kube::Watch as ServerWatch;

/// A watch on a record store.
#[derive(Debug)]
pub struct Watch {
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// With a buffer of some size.
    Directory(Box<DirectoryWatch>),
    Server(ServerWatch),
}

impl Watch {
    pub(crate) fn of_directory(watch: DirectoryWatch) -> Self {
        Self { form: Form::Directory(Box::new(watch)) }
    }

    pub(crate) fn of_server(watch: ServerWatch) -> Self {
        Self { form: Form::Server(watch) }
    }

    /// Waits until something changed since the watch was made or the last call returned.
    ///
    /// That the store went away, or came back, is a change. Cancel-safe: a change that no call returned for is returned
    /// for by the next one.
    pub async fn changed(&mut self) {
        match &mut self.form {
            Form::Directory(watch) => watch.changed().await,
            Form::Server(watch) => watch.changed().await,
        }
    }
}
