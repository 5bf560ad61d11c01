//! Owns: what is known and decided about one peer: its session, its upload queue, its name.
//! Never: touches a socket, reads a piece, or knows another peer.
//! Flow: shards feed received bytes to a session and send what it appends.

mod allowed_fast;
mod client;
pub mod pex;
mod remote_pieces;
pub mod requests;
pub mod session;
mod upload_queue;

pub use allowed_fast::AllowedFast;
pub use client::{client_name, peer_id};
pub use remote_pieces::RemotePieces;
pub use requests::Requests;
pub use session::{Blocks, Event, Options, Session, Torrent};
pub use upload_queue::UploadQueue;
