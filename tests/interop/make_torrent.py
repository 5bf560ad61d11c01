"""Makes a v1 .torrent with libtorrent and prints its info-hash.

usage: make_torrent.py CONTENT TORRENT [ANNOUNCE]...   (`-` as TORRENT writes no file)

The engine must seed torrents that others made, and make the same ones from the same content.
A piece length may be given in SEEDRING_PIECE_BYTES.
"""

import os
import sys

import libtorrent as lt


def main() -> None:
    content, torrent, *announce = sys.argv[1:]
    files = lt.file_storage()
    lt.add_files(files, content)
    piece_bytes = int(os.environ.get("SEEDRING_PIECE_BYTES", "0"))
    creator = lt.create_torrent(files, piece_bytes, lt.create_torrent.v1_only)
    for tier, url in enumerate(announce):
        creator.add_tracker(url, tier)
    lt.set_piece_hashes(creator, os.path.dirname(os.path.abspath(content)))
    encoded = lt.bencode(creator.generate())
    if torrent != "-":
        with open(torrent, "wb") as file:
            file.write(encoded)
    print(lt.torrent_info(lt.bdecode(encoded)).info_hash())


if __name__ == "__main__":
    main()
