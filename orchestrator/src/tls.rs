//! One TLS stack for everything: rustls with ring.

/// Makes ring the provider of every TLS configuration that does not name one. Calling it again does nothing.
pub(crate) fn install_provider() {
    // An error means that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
