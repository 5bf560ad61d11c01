//! Owns: what a session says first, and what it keeps of how it was made.
//! Never: waits for the peer: all of it goes out with the handshake.
//! Flow: greet -> `Session::open`, once -> receive.

use std::time::Duration;

use super::download::Download;
use super::exchange::Exchange;
use super::{Options, Session, State, Torrent, deadlines, receive};
use crate::limits::PIECES_MAX;
use crate::peer::{AllowedFast, RemotePieces, UploadQueue};
use crate::wire::extended::{
    ExtensionHandshake, LOCAL_ID_MAX, LOCAL_ID_MAX_UPLOADING, LT_DONTHAVE, UT_METADATA,
};
use crate::wire::message::{Message, id, prefix};
use crate::wire::{FrameLimits, FrameReader};

impl Session {
    /// Appends what is said first: extension handshake, bitfield (or have-all, have-none), allowed
    /// fast set. `seed` spreads keep-alives.
    ///
    /// # Panics
    /// Where `request_queue_max` is above 65,535.
    pub fn open(
        options: &Options,
        torrent: &impl Torrent,
        now: Duration,
        seed: u64,
        out: &mut Vec<u8>,
    ) -> Self {
        let request_queue_max = u16::try_from(options.request_queue_max);
        let request_queue_max = request_queue_max.expect("a queue is at most 65,535 long");
        let downloads = !options.upload_only;
        let pieces_max = match torrent.piece_count() {
            0 if downloads => PIECES_MAX, // not known before the metadata
            count => count,
        };
        let exchange = Exchange::new(options.exchange && !torrent.private(), now);
        let mut reader = FrameReader::new(frame_limits(pieces_max, downloads, exchange.local_id()));
        reader.stream_pieces(downloads);
        say_extension_handshake(options, torrent, exchange.local_id(), out);
        say_pieces(options, torrent, out);
        let state = State {
            fast: options.remote.fast(),
            extended: options.remote.extended(),
            am_choking: true,
            peer_choking: true,
            peer_interested: false,
            peer_upload_only: false,
            unheard: false,
            peer_metadata_id: 0,
            peer_dont_have_id: 0,
            watched: options.hides,
            request_queue_max,
            peer_listen_port: None,
            exchange,
            peer_client: None,
            pieces: RemotePieces::new(torrent.piece_count()),
            queue: UploadQueue::default(),
            allowed_fast: say_allowed_fast(options, torrent, out),
            refused: 0,
            idle: receive::Idle::new(now),
            download: downloads.then(|| Box::new(Download::new(now))),
            unwanted_bytes: 0,
            metadata_bytes: 0,
            clock: deadlines::Clock::new(now, seed),
        };
        Self { reader, state }
    }
}

/// What a session of a torrent of so many pieces reads.
pub(super) fn frame_limits(pieces_max: u32, downloads: bool, ut_pex: Option<u8>) -> FrameLimits {
    let extended_id = match ut_pex {
        _ if downloads => LOCAL_ID_MAX,
        Some(number) => number,
        None => LOCAL_ID_MAX_UPLOADING,
    };
    FrameLimits {
        bitfield_bytes: pieces_max.div_ceil(8),
        piece_data_bytes: if downloads { super::REQUEST_BYTES_MAX } else { 0 },
        extended_id,
    }
}

fn say_extension_handshake(
    options: &Options,
    torrent: &impl Torrent,
    ut_pex: Option<u8>,
    out: &mut Vec<u8>,
) {
    if !options.remote.extended() {
        return;
    }
    let metadata = torrent.metadata();
    let downloads = !options.upload_only;
    ExtensionHandshake {
        // Who lacks the metadata gets answers under this number.
        ut_metadata: (metadata.is_some() || downloads).then_some(UT_METADATA),
        lt_donthave: downloads.then_some(LT_DONTHAVE),
        ut_pex,
        client: Some(options.client.as_bytes()),
        request_queue: Some(options.request_queue_max),
        your_ip: options.your_ip,
        upload_only: (options.upload_only && !options.hides).then_some(true),
        metadata_bytes: metadata.and_then(|metadata| u32::try_from(metadata.len()).ok()),
        listen_port: options.listen_port,
    }
    .encode(out);
}

/// The handshake again, when it changes whether anything is wanted (BEP 21). What names us is not
/// repeated.
/// The numbers are, and stay in force: libtorrent takes what a later handshake leaves out as
/// switched off.
pub(super) fn say_upload_only(
    upload_only: bool,
    request_queue_max: u16,
    ut_pex: Option<u8>,
    torrent: &impl Torrent,
    out: &mut Vec<u8>,
) {
    let metadata = torrent.metadata();
    ExtensionHandshake {
        ut_metadata: Some(UT_METADATA),
        lt_donthave: Some(LT_DONTHAVE),
        ut_pex,
        request_queue: Some(request_queue_max.into()),
        upload_only: Some(upload_only),
        metadata_bytes: metadata.and_then(|metadata| u32::try_from(metadata.len()).ok()),
        ..ExtensionHandshake::default()
    }
    .encode(out);
}

fn say_pieces(options: &Options, torrent: &impl Torrent, out: &mut Vec<u8>) {
    let fast = options.remote.fast();
    if fast && torrent.piece_count() > 0 && torrent.offers_all() {
        return Message::HaveAll.encode(out);
    }
    let before = out.len();
    let field_bytes = torrent.piece_count().div_ceil(8) as usize;
    prefix(out, id::BITFIELD, field_bytes);
    let start = out.len();
    out.resize(start + field_bytes, 0);
    if !torrent.write_offered(&mut out[start..]) {
        out.truncate(before);
        // BEP 3: who has nothing may leave the bitfield out. BEP 6: must say one of the three.
        if fast {
            Message::HaveNone.encode(out);
        }
    }
}

fn say_allowed_fast(
    options: &Options,
    torrent: &impl Torrent,
    out: &mut Vec<u8>,
) -> Option<Box<AllowedFast>> {
    let ip = options.your_ip.filter(|_| options.remote.fast() && options.allowed_fast > 0)?;
    let count = torrent.piece_count();
    let mut set = AllowedFast::new(ip, torrent.info_hash(), count, options.allowed_fast);
    set.keep(|piece| torrent.offered(piece), |piece| torrent.piece_length(piece));
    for piece in set.iter() {
        Message::AllowedFast(piece).encode(out);
    }
    (!set.is_empty()).then(|| Box::new(set))
}
