//! Making files, writing shares into them, sizes, syncs.

use super::{Bench, Case, pattern};
use crate::{
    descriptors::File,
    memory::{Class, Share},
    op::{Access, Allocation, Identity, Io, Op, Outcome, Token},
    write_batch::WriteBatch,
};

pub(super) fn cases<I: Io>() -> Vec<Case<I>> {
    vec![
        ("a file is made with its folders, once", create_with_folders),
        ("many files are made in one new folder at once", create_many),
        ("nothing is made outside the root, or through links", create_stays_beneath),
        ("only what was asked for is made, and nothing is truncated", access_is_kept),
        ("what was written is read", write_and_read),
        ("a vectored write keeps its order, and holes are zeroes", write_vectored),
        ("a write goes over the file's end", write_grows),
        ("what is written can be held and sent meanwhile", write_keeps_shares),
        ("a failed write gives its batch back", write_failure),
        ("many writes at once keep their bytes apart", many_writes),
        ("a direct file is written aligned", write_direct),
        ("what was written can be synced", sync_written),
        ("a file is made longer, never shorter", allocate_never_shrinks),
    ]
}

fn opened<I: Io>(
    bench: &mut Bench<I>,
    path: &str,
    direct: bool,
    access: Access,
) -> (File, Identity) {
    match bench.open_for(1, path, direct, access) {
        Outcome::Opened(Ok(opened)) => opened,
        other => panic!("opening {path} gave {other:?}"),
    }
}

fn created<I: Io>(bench: &mut Bench<I>, path: &str) -> File {
    opened(bench, path, false, Access::Create).0
}

fn refused<I: Io>(bench: &mut Bench<I>, path: &str, access: Access) -> std::io::Error {
    match bench.open_for(1, path, false, access) {
        Outcome::Opened(Err(error)) => error,
        other => panic!("opening {path} gave {other:?}"),
    }
}

fn batch_of(parts: &[(&Share, std::ops::Range<usize>)]) -> Box<WriteBatch> {
    let mut batch = Box::new(WriteBatch::new());
    parts.iter().for_each(|(share, range)| batch.push(*share, range.clone()));
    batch
}

/// Writes all of the batch, however it is taken.
fn write<I: Io>(bench: &mut Bench<I>, file: &File, offset: u64, mut batch: Box<WriteBatch>) {
    let mut at = offset;
    while !batch.is_empty() {
        let (file, len) = (file.clone(), batch.len_bytes());
        bench.submit(Op::Write { token: Token(2), file, offset: at, batch });
        let Outcome::Written { result, batch: back } = bench.next(2) else {
            panic!("a write gave something else")
        };
        let written = result.expect("written");
        assert!(written > 0 && written <= len, "{written} written of {len}");
        assert_eq!(back.len_bytes(), len, "a batch comes back as it was");
        batch = back;
        batch.advance(written);
        at += written as u64;
    }
}

/// All of a range, however it is read; shorter only at the file's end.
fn content<I: Io>(bench: &mut Bench<I>, file: &File, offset: u64, length: usize) -> Vec<u8> {
    let mut found = Vec::new();
    while found.len() < length {
        let lease = bench.rig.io.pool().lease(Class::K64).expect("lease");
        let (offset, length) = (offset + found.len() as u64, (length - found.len()).min(65_536));
        let (file, length) = (file.clone(), length as u32);
        bench.submit(Op::Read { token: Token(3), file, offset, length, lease });
        let Outcome::Read { result, lease } = bench.next(3) else { panic!("not a read") };
        let n = result.expect("read");
        if n == 0 {
            break;
        }
        found.extend_from_slice(&lease[..n]);
    }
    found
}

fn size<I: Io>(bench: &mut Bench<I>, file: &File) -> u64 {
    bench.submit(Op::Identify { token: Token(4), file: file.clone() });
    match bench.next(4) {
        Outcome::Identified(Ok(identity)) => identity.size_bytes,
        other => panic!("identify gave {other:?}"),
    }
}

fn create_with_folders<I: Io>(bench: &mut Bench<I>) {
    let (file, made) = opened(bench, "a/b/c/file", false, Access::Create);
    assert_eq!((made.size_bytes, made.direct), (0, None));
    let share = bench.share(Class::K16, 0);
    write(bench, &file, 0, batch_of(&[(&share, 0..100)]));
    let (again, found) = opened(bench, "a/b/c/file", false, Access::Create);
    assert_eq!((found.size_bytes, found.inode), (100, made.inode), "found, not made anew");
    assert!(content(bench, &again, 0, 200) == share[..100]);
    let (_, beside) = opened(bench, "a/b/beside", false, Access::Create);
    assert_ne!(beside.inode, made.inode);
    let (_, top) = opened(bench, "top", false, Access::Create);
    assert_eq!(top.size_bytes, 0);
    refused(bench, "a/b", Access::Create);
    refused(bench, "top/below", Access::Create);
}

fn create_many<I: Io>(bench: &mut Bench<I>) {
    for n in 0..20u64 {
        let request = Box::new(crate::op::OpenRequest {
            root: bench.rig.world.root(),
            path: std::ffi::CString::new(format!("new/folder/{n}")).expect("no zero byte"),
            direct: false,
            access: Access::Create,
        });
        bench.submit(Op::Open { token: Token(100 + n), request });
    }
    let mut inodes = Vec::new();
    for n in 0..20 {
        match bench.next(100 + n) {
            Outcome::Opened(Ok((_, identity))) => inodes.push(identity.inode),
            other => panic!("file {n} gave {other:?}"),
        }
    }
    inodes.sort_unstable();
    inodes.dedup();
    assert_eq!(inodes.len(), 20);
}

fn create_stays_beneath<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("folder/file", b"file");
    bench.rig.world.link("linked", "folder");
    bench.rig.world.link("folder/link", "file");
    bench.rig.world.link("dangling", "nowhere");
    let outside = ["../made", "folder/../../made", "missing/../../made", "/tmp/seedring-made"];
    let linked = ["linked/made", "linked/deep/made", "folder/link", "dangling", "dangling/made"];
    for path in outside.into_iter().chain(linked) {
        for access in [Access::Create, Access::Write] {
            refused(bench, path, access);
        }
    }
    for path in ["folder/made", "folder/deep/made", "nowhere", "nowhere/made"] {
        let error = refused(bench, path, Access::Read);
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{path} was made through a link");
    }
}

fn access_is_kept<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("folder/file", b"before");
    let missing = refused(bench, "folder/missing", Access::Write);
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    let missing = refused(bench, "missing/file", Access::Write);
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    refused(bench, "folder", Access::Write);
    for access in [Access::Write, Access::Create] {
        let (file, identity) = opened(bench, "folder/file", false, access);
        assert_eq!(identity.size_bytes, 6);
        assert_eq!(content(bench, &file, 0, 10), b"before");
    }
}

fn write_and_read<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("file", &[0xEE; 10_000]);
    let (file, _) = opened(bench, "file", false, Access::Write);
    let share = bench.share(Class::K64, 0);
    for (offset, range) in [(0, 0..1), (3, 17..4000), (9_999, 5..6), (5_000, 0..65_536)] {
        write(bench, &file, offset, batch_of(&[(&share, range.clone())]));
        let found = content(bench, &file, offset, range.len());
        assert!(found == share[range], "wrong bytes at {offset}");
    }
    assert_eq!(content(bench, &file, 1, 2), [0xEE, 0xEE], "bytes beside a write stay");
}

fn write_vectored<I: Io>(bench: &mut Bench<I>) {
    let file = created(bench, "file");
    let shares: Vec<_> = (0..8).map(|n| bench.share(Class::K16, n * 1_000)).collect();
    let mut parts: Vec<_> = shares.iter().map(|share| (share, 0..share.len())).collect();
    parts.push((&shares[0], 100..101));
    parts.insert(3, (&shares[7], 50..777));
    let expected: Vec<u8> =
        parts.iter().flat_map(|(share, range)| &share[range.clone()]).copied().collect();
    write(bench, &file, 50_001, batch_of(&parts));
    assert!(content(bench, &file, 50_001, 1 << 20) == expected);
    assert!(content(bench, &file, 0, 50_001).iter().all(|&byte| byte == 0));
    assert!(shares.iter().all(|share| share.holders() == 1), "a written share is let go");
}

fn write_grows<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("file", b"12345");
    let (file, before) = opened(bench, "file", false, Access::Write);
    let share = bench.share(Class::K16, 0);
    // Times have a granularity of a few milliseconds.
    (0..3).for_each(|_| bench.turn());
    write(bench, &file, 3, batch_of(&[(&share, 0..1_000)]));
    assert_eq!(size(bench, &file), 1_003);
    let (_, after) = opened(bench, "file", false, Access::Read);
    assert_eq!((after.size_bytes, after.inode), (1_003, before.inode));
    assert_ne!(after.modified_ns, before.modified_ns);
    assert!(content(bench, &file, 0, 3) == b"123");
}

fn write_keeps_shares<I: Io>(bench: &mut Bench<I>) {
    let file = created(bench, "file");
    let share = bench.share(Class::K256, 0);
    let (near, far) = bench.pair();
    bench.submit(Op::Receive { token: Token(7), socket: far, bulk: false });
    let batch = batch_of(&[(&share, 0..share.len())]);
    bench.submit(Op::Write { token: Token(5), file: file.clone(), offset: 0, batch });
    assert_eq!(share.holders(), 2, "in flight: held");
    let mut sent = bench.rig.io.batch();
    sent.push_share(&share, 0..16_384);
    bench.send(6, &near, sent);
    let Outcome::Written { result, batch } = bench.next(5) else { panic!("not a write") };
    let written = result.expect("written");
    drop(batch);
    assert_eq!(share.holders(), 1);
    assert!(content(bench, &file, 0, written) == share[..written]);
    drop(near);
    let (bytes, end) = bench.received(7);
    end.expect("an orderly end");
    assert!(bytes == share[..16_384]);
}

fn write_failure<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("file", b"12345");
    let (file, _) = opened(bench, "file", false, Access::Read);
    let root = bench.rig.world.root();
    let share = bench.share(Class::K16, 0);
    for file in [file.clone(), root] {
        for parts in [1, 3] {
            let batch = batch_of(&vec![(&share, 0..512); parts]);
            bench.submit(Op::Write { token: Token(2), file: file.clone(), offset: 0, batch });
            let Outcome::Written { result, batch } = bench.next(2) else { panic!("not a write") };
            assert!(result.is_err(), "written without a descriptor for it");
            assert_eq!(batch.len_bytes(), parts * 512);
        }
    }
    assert_eq!(share.holders(), 1);
    assert_eq!(content(bench, &file, 0, 10), b"12345");
}

fn many_writes<I: Io>(bench: &mut Bench<I>) {
    let file = created(bench, "file");
    let writes = bench.rig.in_flight_max.min(60) as u64;
    for n in 0..writes {
        let share = bench.share(Class::K16, n as usize * 16_384);
        let batch = batch_of(&[(&share, 0..8_192), (&share, 8_192..16_384)]);
        let (token, file) = (Token(1000 + n), file.clone());
        bench.submit(Op::Write { token, file, offset: n * 16_384, batch });
    }
    for n in (0..writes).rev() {
        let Outcome::Written { result, mut batch } = bench.next(1000 + n) else {
            panic!("not a write")
        };
        let written = result.expect("written");
        batch.advance(written);
        write(bench, &file, n * 16_384 + written as u64, batch);
    }
    let found = content(bench, &file, 0, 1 << 20);
    assert_eq!(found.len() as u64, writes * 16_384);
    assert!(found.iter().enumerate().all(|(at, &byte)| byte == pattern(at)));
}

fn write_direct<I: Io>(bench: &mut Bench<I>) {
    let (file, identity) = opened(bench, "folder/file", true, Access::Create);
    let share = bench.share(Class::K64, 0);
    let Some(alignment) = identity.direct else {
        // The file system has no direct I/O: then it is an ordinary file.
        write(bench, &file, 3, batch_of(&[(&share, 1..8)]));
        assert!(content(bench, &file, 3, 7) == share[1..8]);
        return;
    };
    assert_eq!(share.as_ptr().align_offset(alignment.memory_bytes as usize), 0);
    let step = alignment.offset_bytes.max(4096) as usize;
    let parts = [(&share, step..2 * step), (&share, 0..step)];
    write(bench, &file, step as u64, batch_of(&parts));
    write(bench, &file, 0, batch_of(&[(&share, 2 * step..3 * step)]));
    let (reader, _) = opened(bench, "folder/file", false, Access::Read);
    let expected = [&share[2 * step..3 * step], &share[step..2 * step], &share[..step]].concat();
    assert!(content(bench, &reader, 0, 4 * step) == expected);
    bench.submit(Op::Write {
        token: Token(5),
        file: file.clone(),
        offset: 1,
        batch: batch_of(&[(&share, 0..step)]),
    });
    match bench.next(5) {
        // Some file systems fall back to the page cache for what is not aligned.
        Outcome::Written { result: Ok(n), .. } => {
            assert!(content(bench, &reader, 1, n) == share[..n]);
        }
        Outcome::Written { result: Err(error), .. } => {
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            assert!(content(bench, &reader, 0, 4 * step) == expected);
        }
        other => panic!("a write gave {other:?}"),
    }
}

fn sync_written<I: Io>(bench: &mut Bench<I>) {
    let file = created(bench, "folder/file");
    let share = bench.share(Class::K64, 0);
    for data_only in [true, false] {
        write(bench, &file, 0, batch_of(&[(&share, 0..share.len())]));
        bench.submit(Op::Sync { token: Token(5), file: file.clone(), data_only });
        match bench.next(5) {
            Outcome::Synced(result) => result.expect("synced"),
            other => panic!("a sync gave {other:?}"),
        }
    }
    let root = bench.rig.world.root();
    bench.submit(Op::Sync { token: Token(5), file: root, data_only: false });
    let outcome = bench.next(5);
    assert!(matches!(outcome, Outcome::Synced(Err(_))), "a root has no bytes: {outcome:?}");
    assert!(content(bench, &file, 0, 1 << 20) == share[..]);
}

fn allocate<I: Io>(
    bench: &mut Bench<I>,
    file: &File,
    length_bytes: u64,
    mode: Allocation,
) -> std::io::Result<()> {
    bench.submit(Op::Allocate { token: Token(5), file: file.clone(), length_bytes, mode });
    match bench.next(5) {
        Outcome::Allocated(result) => result,
        other => panic!("an allocation gave {other:?}"),
    }
}

fn allocate_never_shrinks<I: Io>(bench: &mut Bench<I>) {
    for (name, mode) in [("sparse", Allocation::Sparse), ("full", Allocation::Full)] {
        let file = created(bench, name);
        let share = bench.share(Class::K16, 1);
        write(bench, &file, 0, batch_of(&[(&share, 0..10_000)]));
        match allocate(bench, &file, 300_001, mode) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
            Err(error) => panic!("{name}: {error}"),
        }
        assert_eq!(size(bench, &file), 300_001, "{name}");
        for shorter in [0, 1, 4096, 300_000, 300_001] {
            allocate(bench, &file, shorter, mode).expect("allocated");
            assert_eq!(size(bench, &file), 300_001, "{name} to {shorter}");
        }
        let found = content(bench, &file, 0, 1 << 20);
        assert!(found[..10_000] == share[..10_000], "{name}: bytes that were there stay");
        assert!(found[10_000..].iter().all(|&byte| byte == 0), "{name}: new ones are zeroes");
    }
    bench.rig.world.write("reading", b"12345");
    let (file, _) = opened(bench, "reading", false, Access::Read);
    assert!(allocate(bench, &file, 10, Allocation::Full).is_err());
    assert_eq!(size(bench, &file), 5);
}
