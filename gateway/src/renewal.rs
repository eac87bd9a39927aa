//! Keeps this cluster's token at the broker from expiring: a task beside the passes, as `culvert_setup::Renewals` decides.
//!
//! A new token is written where the old one was read from: into the Secret that is mounted here, for all gateways of the
//! cluster, which is the active one's to do; or into the file itself, where there is no such Secret.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_api::{ByteString, Secret};
use culvert_runtime::Records;
use culvert_runtime::reconcile::Wake;
use culvert_runtime::task::{Ended, Task};
use culvert_setup::{Renewals, SecretBytes, Server, Step, TokenClaims, is_renewed, renew};
use jiff::Timestamp;
use tokio::sync::watch;

use crate::config::{BrokerToken, TokenHome};

/// The key of the token in the Secret, and the name of its file.
const TOKEN: &str = "token";
/// After which a file that could not be read is read again.
const RETRY: Duration = Duration::from_secs(10);

/// The running renewal; it ends with it.
pub(crate) struct Renewal {
    active: watch::Sender<bool>,
    complaint: watch::Receiver<Option<String>>,
    task: Task,
}

impl Renewal {
    /// Starts as a standby's; `wake` rings when what is to be said changes. `random` spreads clusters over time.
    pub(crate) fn start(token: BrokerToken, local: Records, random: u64, wake: Wake) -> Self {
        let (active, is_active) = watch::channel(false);
        let (sender, complaint) = watch::channel(None);
        let task = Task::spawn(
            "the renewal of the broker token",
            wake.clone(),
            run(Keeper { token, local }, Renewals::new(random), is_active, sender, wake),
        );
        Self { active, complaint, task }
    }

    /// Says whether this gateway is the active one.
    pub(crate) fn set_active(&self, active: bool) {
        self.active.send_if_modified(|current| std::mem::replace(current, active) != active);
    }

    /// Returns what is wrong with the token, and the way out.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.complaint.borrow().clone()
    }

    /// Makes sure that it still runs.
    pub(crate) fn check(&self) -> Result<(), Ended> {
        self.task.check()
    }
}

async fn run(
    keeper: Keeper,
    mut renewals: Renewals,
    mut active: watch::Receiver<bool>,
    complaint: watch::Sender<Option<String>>,
    wake: Wake,
) {
    loop {
        let is_ours = *active.borrow_and_update() || keeper.token.home == TokenHome::File;
        let (said, pause) = if is_ours { look(&keeper, &mut renewals).await } else { (None, Duration::MAX) };
        if complaint.send_if_modified(|current| std::mem::replace(current, said.clone()) != said) {
            wake.wake();
        }
        tokio::select! {
            changed = active.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Looks at the token once and does what is due; returns what is to be said, and when to look again.
async fn look(keeper: &Keeper, renewals: &mut Renewals) -> (Option<String>, Duration) {
    let token = match keeper.read() {
        Ok(token) => token,
        Err(error) => return (Some(format!("{error:#}: run `culvert join` again")), RETRY),
    };
    if let Step::Renew { claims, lifetime } = renewals.poll(&token, Timestamp::now()) {
        match keeper.renew(&token, &claims, lifetime).await {
            Ok(expires) => {
                if let Some(expires) = expires {
                    tracing::info!(account = claims.subject, %expires, "Broker token is renewed");
                }
                renewals.handle_renewed(Timestamp::now());
            }
            Err(error) => renewals.handle_failed(format!("{error:#}"), lifetime, Timestamp::now()),
        }
    }
    let now = Timestamp::now();
    let pause = match renewals.poll(&token, now) {
        Step::Wait(pause) => pause,
        Step::Renew { .. } => Duration::ZERO,
    };
    (renewals.complaint(&token, now), pause)
}

/// Where the token is, and how it gets there.
struct Keeper {
    token: BrokerToken,
    local: Records,
}

impl Keeper {
    fn read(&self) -> Result<SecretBytes> {
        let file = self.token.directory.join(TOKEN);
        let token = fs::read(&file).with_context(|| format!("broker token {} cannot be read", file.display()))?;
        Ok(SecretBytes::from(token))
    }

    /// Asks for a new token and writes it to its place; returns when it expires. `None`: there is a newer one already,
    /// which has not come to where it is read.
    async fn renew(&self, token: &SecretBytes, claims: &TokenClaims, lifetime: Duration) -> Result<Option<Timestamp>> {
        let secret = match &self.token.home {
            TokenHome::Secret(name) => {
                let found = self.local.find::<Secret>(name).await?;
                let found = found.with_context(|| format!("Secret {name} of this cluster is not there"))?;
                let newest = found.data.as_ref().and_then(|data| data.get(TOKEN)).map(|token| token.0.clone());
                if newest.is_some_and(|newest| is_renewed(&newest.into(), claims, Timestamp::now())) {
                    return Ok(None);
                }
                Some(found)
            }
            TokenHome::File => None,
        };
        let authority = fs::read(self.token.directory.join("ca.crt")).ok();
        let broker = Server::of_token(&self.token.url, token, authority.as_deref()).await?;
        let granted = renew(&broker, claims, lifetime).await?;
        match secret {
            // Rests on what was read: a `join` meanwhile may have brought the token of another broker.
            Some(mut secret) => {
                let new = ByteString(granted.token.expose().to_vec());
                secret.data.get_or_insert_default().insert(TOKEN.to_owned(), new);
                self.local.update(&secret).await?;
            }
            None if self.read()? == *token => replace(&self.token.directory, granted.token.expose())?,
            None => return Ok(None),
        }
        Ok(Some(granted.expires))
    }
}

/// Replaces the file of a token so that whoever reads it finds the old one or the new one.
fn replace(directory: &Path, token: &[u8]) -> Result<()> {
    let file = directory.join(TOKEN);
    let new: PathBuf = directory.join(".token.new");
    let write = || -> std::io::Result<()> {
        let permissions = fs::metadata(&file)?.permissions();
        let mut opened = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        opened.write_all(token)?;
        opened.set_permissions(permissions)?;
        opened.sync_all()?;
        fs::rename(&new, &file)
    };
    write().with_context(|| format!("the new token cannot be written to {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn keeper(directory: &Path, home: TokenHome) -> Keeper {
        // Nobody listens there.
        let url = "https://127.0.0.1:1".to_owned();
        let token = BrokerToken { url, directory: directory.to_owned(), home };
        Keeper { token, local: Records::open(directory.join("away")) }
    }

    /// A token that expired long ago, or one that is due for ever.
    fn token(expires: &str) -> String {
        use base64::Engine as _;
        let claims = format!(r#"{{"sub":"system:serviceaccount:n:cluster-east","iat":1,"exp":{expires}}}"#);
        format!("e30.{}.c2ln", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims))
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_token_is_said_with_the_way_out_and_without_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let due = token("4102444800");
        for (content, home, expected) in [
            (None, TokenHome::File, "/token cannot be read"),
            (Some(token("600")), TokenHome::File, "the broker token has expired at 1970-01-01 00:10:00 UTC"),
            (
                Some(due.clone()),
                TokenHome::File,
                "expires at 2100-01-01 00:00:00 UTC and cannot be renewed: API server",
            ),
            (Some(due.clone()), TokenHome::Secret("s".to_owned()), "cannot be renewed: record store"),
        ] {
            if let Some(content) = &content {
                fs::write(&file, content).unwrap();
            }
            let (said, pause) = look(&keeper(directory.path(), home), &mut Renewals::new(0)).await;
            let said = said.unwrap();
            assert!(said.contains(expected) && said.contains("`culvert join` again"), "{said}");
            assert!(!content.is_some_and(|content| said.contains(&content)) && !pause.is_zero(), "{said}");
        }
        assert_eq!(fs::read_to_string(file).unwrap(), due, "nothing is lost");
    }

    #[tokio::test]
    async fn a_standby_leaves_the_clusters_secret_to_the_active_gateway() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("token"), token("600")).unwrap();
        let Keeper { token, local } = keeper(directory.path(), TokenHome::Secret("s".to_owned()));
        let wake = Wake::default();
        let mut renewal = Renewal::start(token, local, 0, wake);
        assert_eq!(renewal.complaint(), None);

        renewal.set_active(true);
        let said = renewal.complaint.wait_for(Option::is_some);
        tokio::time::timeout(Duration::from_secs(60), said).await.expect("it says so").unwrap();
        renewal.set_active(false);
        let unsaid = renewal.complaint.wait_for(Option::is_none);
        tokio::time::timeout(Duration::from_secs(60), unsaid).await.expect("it is another's to say").unwrap();
        renewal.check().unwrap();
    }

    #[test]
    fn a_token_in_a_file_is_replaced_as_a_whole_and_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        fs::write(&file, "a long old token").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();

        replace(directory.path(), b"new").unwrap();

        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
