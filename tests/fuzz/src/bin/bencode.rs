//! Owns: the fuzz target of the bencode parser and encoder.
//! Never: expects more of the bytes than the parser said.
//! Flow: parse, write again, compare: what is accepted has one spelling. With
//! SEEDRING_FUZZ_PLANTED set it writes one kind of value wrong, so that `planted` can show that
//! such a fault is found.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use seedring_proto::bencode::{Document, Encoder, Kind, Value};

static PLANTED: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("SEEDRING_FUZZ_PLANTED").is_some());

fuzz_target!(|bytes: &[u8]| {
    let Ok((document, rest)) = Document::parse_prefix(bytes) else {
        assert!(Document::parse(bytes).is_err());
        return;
    };
    let root = document.root();
    assert_eq!(root.raw().len() + rest.len(), bytes.len());
    assert_eq!(Document::parse(bytes).is_ok(), rest.is_empty());
    if document.unsorted_key().is_none() {
        let mut written = Vec::new();
        let mut encoder = Encoder::new(&mut written);
        write(root, &mut encoder);
        encoder.finish();
        assert_eq!(written, root.raw());
    }
});

/// Recursion is bounded by the parser's 100 levels.
fn write(value: Value<'_, '_>, encoder: &mut Encoder<'_>) {
    match value.kind() {
        // Planted: a sign that is lost.
        Kind::Int if *PLANTED => {
            _ = encoder.int(value.as_int().expect("an integer").saturating_abs());
        }
        Kind::Int => _ = encoder.int(value.as_int().expect("an integer")),
        Kind::Bytes => _ = encoder.bytes(value.as_bytes().expect("a string")),
        Kind::List => {
            encoder.begin_list();
            value.list().for_each(|item| write(item, encoder));
            encoder.end();
        }
        Kind::Dict => {
            encoder.begin_dict();
            value.dict_iter().for_each(|(key, value)| write(value, encoder.key(key)));
            encoder.end();
        }
    }
}
