//! The authorities that this system trusts, for servers that one of them vouches for.
//!
//! They are where OpenSSL looks for them, `/etc/ssl/certs` for one, or where `SSL_CERT_FILE` and `SSL_CERT_DIR` say. The
//! container image has the file of the machine that it was made on.

/// Has a server trusted by the system's authorities as well as by those in its `config`. One without any is trusted by the
/// system's already.
pub fn add_to(config: &mut kube::Config) {
    if let Some(authorities) = &mut config.root_cert {
        authorities.extend(of_system());
    }
}

/// Returns the certificates, as DER, of those authorities that can be understood; none if the system has none.
///
/// Some hundred are read from files each time.
pub(crate) fn of_system() -> Vec<Vec<u8>> {
    // What cannot be read or understood is one authority less, no reason to speak to nobody.
    let found = rustls_native_certs::load_native_certs().certs;
    let mut store = rustls::RootCertStore::empty();
    let understood = found.into_iter().filter(|certificate| store.add(certificate.clone()).is_ok());
    understood.map(|certificate| certificate.as_ref().to_vec()).collect()
}
