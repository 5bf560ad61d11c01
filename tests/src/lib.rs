//! Owns: the support of the tests that need more than one crate, or programs beside the engine.
//! Never: is linked into the engine or the load generator.
//! Flow: `interop` runs real programs in network namespaces for `tests/tests/interop.rs` and its
//! neighbours; the simulator, where the engine's own parts meet a virtual kernel, lies in `sim`.

pub mod interop;
pub mod sim;
