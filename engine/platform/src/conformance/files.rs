//! Opening beneath a root, identity, reading into leases.

use super::{Bench, Case, pattern, patterned};
use crate::{
    descriptors::File,
    memory::Class,
    op::{Identity, Io, Op, Outcome, Token},
};

pub(super) fn cases<I: Io>() -> Vec<Case<I>> {
    vec![
        ("a file opens with its identity", open_with_identity),
        ("nothing opens outside the root, or through links", open_stays_beneath),
        ("only regular files open", open_regular_only),
        ("a changed file has another identity", identity_changes),
        ("reads bring the bytes asked for", read_ranges),
        ("reads end at the file's end", read_at_end),
        ("a direct file reads aligned, and says what that is", read_direct),
        ("a window shows the file's bytes, if it opens", windows),
        ("a failed read gives its lease back", read_failure),
        ("many reads at once keep their leases apart", many_reads),
    ]
}

fn opened<I: Io>(bench: &mut Bench<I>, path: &str, direct: bool) -> (File, Identity) {
    match bench.open(1, path, direct) {
        Outcome::Opened(Ok(opened)) => opened,
        other => panic!("opening {path} gave {other:?}"),
    }
}

fn refused<I: Io>(bench: &mut Bench<I>, path: &str) -> std::io::Error {
    match bench.open(1, path, false) {
        Outcome::Opened(Err(error)) => error,
        other => panic!("opening {path} gave {other:?}"),
    }
}

/// Reads into a lease of 64 KiB and returns what came.
fn read<I: Io>(bench: &mut Bench<I>, file: &File, offset: u64, length: u32) -> Vec<u8> {
    let lease = bench.rig.io.pool().lease(Class::K64).expect("lease");
    bench.submit(Op::Read { token: Token(2), file: file.clone(), offset, length, lease });
    assert_eq!(bench.rig.io.pool().leased_bytes(), Class::K64.bytes(), "in flight: still leased");
    match bench.next(2) {
        Outcome::Read { result, lease } => lease[..result.expect("read")].to_vec(),
        other => panic!("a read gave {other:?}"),
    }
}

fn open_with_identity<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("folder/inner/file", b"12345");
    let (file, identity) = opened(bench, "folder/inner/file", false);
    assert_eq!((identity.size_bytes, identity.direct), (5, None));
    bench.submit(Op::Identify { token: Token(3), file: file.clone() });
    match bench.next(3) {
        Outcome::Identified(Ok(again)) => assert_eq!(again, identity),
        other => panic!("identify gave {other:?}"),
    }
    let (_, other) = opened(bench, "folder/inner/file", false);
    assert_eq!(other, identity);
    bench.rig.world.write("other", b"12345");
    let (_, other) = opened(bench, "other", false);
    assert_ne!(other.inode, identity.inode);
}

/// Two halves of a file, the second with its end.
fn windows<I: Io>(bench: &mut Bench<I>) {
    let content = patterned(200_000);
    bench.rig.world.write("file", &content);
    for direct in [false, true] {
        let (file, _) = opened(bench, "file", direct);
        for (offset, length) in [(0, 98_304), (98_304, 200_000 - 98_304)] {
            let Some(window) = bench.rig.io.window(&file, offset as u64, length) else { continue };
            assert!(window[..] == content[offset..offset + length] && window.is_whole());
        }
        let beyond = bench.rig.io.window(&file, 0, 400_000);
        assert!(beyond.is_none(), "the file ends before");
    }
}

fn open_stays_beneath<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("inside", b"inside");
    bench.rig.world.write("folder/file", b"file");
    bench.rig.world.link("folder/link", "../inside");
    bench.rig.world.link("linked", "folder");
    for path in ["../inside", "folder/../../x", "/etc/hostname", "folder/link", "linked/file"] {
        refused(bench, path);
    }
    assert_eq!(refused(bench, "missing").kind(), std::io::ErrorKind::NotFound);
    let (file, _) = opened(bench, "inside", false);
    assert_eq!(read(bench, &file, 0, 100), b"inside");
}

fn open_regular_only<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("folder/file", b"file");
    refused(bench, "folder");
    refused(bench, "folder/file/below");
}

fn identity_changes<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("file", b"before");
    let (file, before) = opened(bench, "file", false);
    // Times have a granularity of a few milliseconds.
    for _ in 0..3 {
        bench.turn();
    }
    bench.rig.world.write("file", b"after it changed");
    let (_, after) = opened(bench, "file", false);
    assert_ne!(before, after);
    assert_eq!(after.size_bytes, 16);
    drop(file);
}

fn read_ranges<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("file", &patterned(300_000));
    let (file, _) = opened(bench, "file", false);
    for (offset, length) in [(0, 65_536), (1, 1), (123_457, 16_384), (299_999, 1), (4096, 4096)] {
        let bytes = read(bench, &file, offset, length);
        assert!(!bytes.is_empty() && bytes.len() <= length as usize);
        let right = bytes.iter().enumerate().all(|(at, &b)| b == pattern(offset as usize + at));
        assert!(right, "wrong bytes at {offset}");
    }
}

fn read_at_end<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("file", &patterned(10_000));
    bench.rig.world.write("empty", b"");
    let (file, _) = opened(bench, "file", false);
    assert!(read(bench, &file, 10_000, 4096).is_empty());
    assert!(read(bench, &file, 1 << 40, 4096).is_empty());
    let bytes = read(bench, &file, 8192, 4096);
    assert!(!bytes.is_empty() && bytes.len() <= 1808);
    let (empty, identity) = opened(bench, "empty", false);
    assert_eq!(identity.size_bytes, 0);
    assert!(read(bench, &empty, 0, 4096).is_empty());
}

fn read_direct<I: Io>(bench: &mut Bench<I>) {
    let content = patterned(200_000);
    bench.rig.world.write("file", &content);
    let (file, identity) = opened(bench, "file", true);
    let Some(alignment) = identity.direct else {
        // The file system has no direct I/O: then it is an ordinary file.
        assert_eq!(read(bench, &file, 3, 5), content[3..8]);
        return;
    };
    assert!(alignment.memory_bytes <= 4096 && alignment.offset_bytes <= 65_536);
    let step = u64::from(alignment.offset_bytes.max(4096));
    let bytes = read(bench, &file, step, 65_536);
    assert!(!bytes.is_empty());
    assert!(bytes == content[step as usize..step as usize + bytes.len()]);
    // A whole aligned range over the file's end brings what is there.
    let last = 200_000 / step * step;
    let bytes = read(bench, &file, last, 65_536);
    assert!(bytes == content[last as usize..]);
    let lease = bench.rig.io.pool().lease(Class::K16).expect("lease");
    bench.submit(Op::Read { token: Token(5), file: file.clone(), offset: 1, length: 4096, lease });
    match bench.next(5) {
        // Some file systems fall back to the page cache for what is not aligned.
        Outcome::Read { result: Ok(len), lease } => assert_eq!(lease[..len], content[1..1 + len]),
        Outcome::Read { result: Err(error), .. } => {
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
        other => panic!("a read gave {other:?}"),
    }
    bench.submit(Op::Identify { token: Token(3), file });
    assert!(matches!(bench.next(3), Outcome::Identified(Ok(again)) if again == identity));
}

fn read_failure<I: Io>(bench: &mut Bench<I>) {
    let root = bench.rig.world.root();
    let lease = bench.rig.io.pool().lease(Class::K256).expect("lease");
    bench.submit(Op::Read { token: Token(2), file: root, offset: 0, length: 4096, lease });
    match bench.next(2) {
        Outcome::Read { result, lease } => {
            assert!(result.is_err(), "a directory was read");
            assert_eq!(lease.class(), Class::K256);
        }
        other => panic!("a read gave {other:?}"),
    }
    assert_eq!(bench.rig.io.pool().leased_bytes(), 0);
}

fn many_reads<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("file", &patterned(1 << 20));
    let (file, _) = opened(bench, "file", false);
    let reads = bench.rig.in_flight_max.min(60) as u64;
    for n in 0..reads {
        let lease = bench.rig.io.pool().lease(Class::K16).expect("lease");
        let offset = n * 16_384;
        let op = Op::Read { token: Token(n), file: file.clone(), offset, length: 16_384, lease };
        bench.submit(op);
    }
    for n in (0..reads).rev() {
        let Outcome::Read { result, lease } = bench.next(n) else { panic!("not a read") };
        let len = result.expect("read");
        let start = n as usize * 16_384;
        assert!(len > 0 && (0..len).all(|at| lease[at] == pattern(start + at)));
    }
}
