"""Makes a v1 .torrent with libtorrent and prints its info-hash.

usage: make_torrent.py CONTENT TORRENT [ANNOUNCE]...   (`-` as TORRENT writes no file)

The engine must seed torrents that others made, and make the same ones from the same content.
A piece length may be given in SEEDRING_PIECE_BYTES; SEEDRING_PRIVATE makes it a private one (BEP 27).
"""

import os
import sys

import libtorrent as lt


def main() -> None:
    content, torrent, *announce = sys.argv[1:]
    files = lt.file_storage()
    if os.path.isfile(content):
        lt.add_files(files, content)
    else:
        # lt.add_files takes a folder's order as the disk has it; sorted by the bytes of the path's
        # components, two programs can agree.
        parent = os.path.dirname(os.path.abspath(content))
        found = []
        for folder, _, names in os.walk(content):
            for name in names:
                path = os.path.relpath(os.path.join(os.path.abspath(folder), name), parent)
                found.append([part.encode() for part in path.split(os.sep)])
        for components in sorted(found):
            path = b"/".join(components).decode()
            files.add_file(path, os.path.getsize(os.path.join(parent, path)))
    piece_bytes = int(os.environ.get("SEEDRING_PIECE_BYTES", "0"))
    creator = lt.create_torrent(files, piece_bytes, lt.create_torrent.v1_only)
    creator.set_priv("SEEDRING_PRIVATE" in os.environ)
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
