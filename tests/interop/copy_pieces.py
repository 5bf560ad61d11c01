"""Copies some pieces of a torrent's content; the files hold zeros for all others.

usage: copy_pieces.py TORRENT CONTENT_PARENT FOLDER PART PARTS

Of the content under CONTENT_PARENT it takes piece PART and every PARTS-th after it.
"""

import os
import sys

import libtorrent as lt


def copy_pieces(info: lt.torrent_info, source: str, target: str, wanted: set) -> None:
    for at in range(info.files().num_files()):
        to = os.path.join(target, info.files().file_path(at))
        os.makedirs(os.path.dirname(to), exist_ok=True)
        with open(to, "wb") as file:
            file.truncate(info.files().file_size(at))
    for piece in wanted:
        for part in info.map_block(piece, 0, info.piece_size(piece)):
            path = info.files().file_path(part.file_index)
            with open(os.path.join(source, path), "rb") as read:
                with open(os.path.join(target, path), "r+b") as write:
                    read.seek(part.offset)
                    write.seek(part.offset)
                    write.write(read.read(part.size))


def main() -> None:
    torrent, source, target = sys.argv[1:4]
    part, parts = map(int, sys.argv[4:6])
    info = lt.torrent_info(torrent)
    copy_pieces(info, source, target, set(range(part, info.num_pieces(), parts)))


if __name__ == "__main__":
    main()
