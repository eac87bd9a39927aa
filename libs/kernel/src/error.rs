//! What can go wrong with the kernel as a whole; single steps report their failure in words.

use std::io;

/// The kernel cannot be observed, or is not there for us at all.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "capability CAP_NET_ADMIN is missing: run as root, or add NET_ADMIN to the container's `securityContext.capabilities`"
    )]
    Capability,
    #[error("program `nft` does not run: install the package nftables")]
    NftMissing(#[source] io::Error),
    #[error("`nft {command}` failed: {text}")]
    Nft { command: String, text: String },
    #[error(
        "program `conntrack` does not run, so flows keep a wrong source or a backend that is gone: install the package conntrack"
    )]
    ConntrackMissing(#[source] io::Error),
    #[error("flows keep a wrong source or a backend that is gone: `conntrack {command}` failed: {text}")]
    Conntrack { command: String, text: String },
    #[error("flows keep a wrong source or a backend that is gone: the kernel does not delete them")]
    Flows(#[source] io::Error),
    #[error("services of nft table `inet {table}` cannot be {what}: the kernel's nf_tables refuses")]
    Services {
        table: String,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("services of nft table `inet {table}` stay as they are: somebody else changes it again and again")]
    ServicesBusy { table: String },
    #[error("netlink socket cannot be opened: the kernel must be Linux 4.20 or newer")]
    Socket(#[source] io::Error),
    #[error("kernel does not list {what}")]
    List {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}
