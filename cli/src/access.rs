//! Which API server is meant, by kubectl's flags.

use std::path::PathBuf;

use culvert_setup::Access;

/// kubectl's flags for the kubeconfig.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct AccessArgs {
    /// Kubeconfig file [default: $KUBECONFIG, else ~/.kube/config, else a pod's own account].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one].
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Cluster of the kubeconfig [default: the context's].
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// User of the kubeconfig [default: the context's].
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

impl AccessArgs {
    pub(crate) fn access(&self) -> Access {
        let Self { kubeconfig, context, cluster, user } = self.clone();
        Access { kubeconfig, context, cluster, user }
    }
}
