//! Refuses those of subctl's flags that mean nothing here yet, so that a script learns it at once.

use anyhow::{Result, bail};

/// Refuses the first of these flags that is given: its name, its value, and what to do without it.
///
/// # Errors
///
/// Names the flag. One that is switched off asks for nothing, and is no error.
pub(crate) fn refuse(flags: &[(&str, &Option<String>, &str)]) -> Result<()> {
    match flags.iter().find(|(_, value, _)| value.as_deref().is_some_and(|value| value != "false")) {
        Some((flag, _, reason)) => bail!("{flag}: {reason}"),
        None => Ok(()),
    }
}
