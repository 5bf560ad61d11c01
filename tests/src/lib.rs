//! Owns: the support of the tests that need more than one crate, or programs beside the engine.
//! Never: is linked into the engine or the load generator.
//! Flow: `interop` runs real clients in network namespaces; `live` runs the real engine on
//! loopback beside peers moved by hand; `docker` runs the images; the simulator, where the
//! engine's own parts meet a virtual kernel, lies in `sim`.

pub mod docker;
pub mod figures;
pub mod interop;
pub mod live;
pub mod sim;
