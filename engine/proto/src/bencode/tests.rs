use proptest::prelude::*;

use super::*;

fn refused(bytes: &[u8]) -> (ErrorKind, usize) {
    let error = Document::parse(bytes).expect_err("refused");
    (error.kind, error.offset)
}

#[test]
fn reads_values() {
    let bytes = b"d3:bar4:spam3:fooi-42e4:listl1:ai0ed1:k0:eee";
    let document = Document::parse(bytes).expect("valid");
    let root = document.root();
    assert_eq!(root.dict_get("bar").and_then(|value| value.as_str()), Some("spam"));
    assert_eq!(root.dict_get("foo").and_then(|value| value.as_int()), Some(-42));
    assert!(root.dict_get("baz").is_none());
    let items: Vec<_> = root.dict_get("list").expect("list").list().collect();
    assert_eq!(items.len(), 3);
    assert_eq!(items[1].as_int(), Some(0));
    assert_eq!(items[2].raw(), b"d1:k0:e");
    assert_eq!(items[2].dict_get(b"k").and_then(|value| value.as_bytes()), Some(&b""[..]));
    assert_eq!(root.dict_iter().count(), 3);
    assert_eq!(root.list().count(), 0, "a dictionary is not a list");
    assert_eq!(items[0].dict_iter().count(), 0);
    assert_eq!(document.unsorted_key(), None);
}

#[test]
fn raw_outlives_the_document() {
    let bytes = b"d4:infod1:a1:bee".to_vec();
    let raw = {
        let document = Document::parse(&bytes).expect("valid");
        document.root().dict_get("info").expect("info").raw()
    };
    assert_eq!(raw, b"d1:a1:be");
}

#[test]
fn prefix_gives_the_rest() {
    let (document, rest) = Document::parse_prefix(b"d8:msg_typei1eeDATA").expect("valid");
    assert_eq!(rest, b"DATA");
    assert_eq!(document.root().dict_get("msg_type").and_then(|value| value.as_int()), Some(1));
}

#[test]
fn refuses_what_is_not_canonical() {
    use ErrorKind::*;
    let table: &[(&[u8], ErrorKind, usize)] = &[
        (b"", Truncated, 0),
        (b"i", Truncated, 1),
        (b"i12", Truncated, 3),
        (b"ie", ExpectedDigit, 1),
        (b"i-e", ExpectedDigit, 2),
        (b"i+1e", ExpectedDigit, 1),
        (b"i1 e", ExpectedDigit, 2),
        (b"i-0e", NegativeZero, 0),
        (b"i03e", LeadingZero, 1),
        (b"i-03e", LeadingZero, 2),
        (b"i00e", LeadingZero, 1),
        (b"i9223372036854775808e", Overflow, 0),
        (b"i-9223372036854775809e", Overflow, 0),
        (b"i99999999999999999999999e", Overflow, 0),
        (b"4:abc", Truncated, 0),
        (b"9999999999:abc", Truncated, 0),
        (b"99999999999999999999999:abc", Overflow, 0),
        (b"01:a", LeadingZero, 0),
        (b"1a", ExpectedDigit, 1),
        (b"-1:a", ExpectedValue, 0),
        (b"e", ExpectedValue, 0),
        (b"x", ExpectedValue, 0),
        (b"l", Truncated, 1),
        (b"li1e", Truncated, 4),
        (b"lx", ExpectedValue, 1),
        (b"di1e1:ae", ExpectedKey, 1),
        (b"d1:ae", MissingValue, 4),
        (b"d1:ai1e1:ai2ee", DuplicateKey, 7),
        (b"d1:bi1e1:ai1e1:bi2ee", DuplicateKey, 13),
        (b"i1ei2e", TrailingData, 3),
        (b"lee", TrailingData, 2),
    ];
    for (bytes, kind, offset) in table {
        assert_eq!(refused(bytes), (*kind, *offset), "{}", bytes.escape_ascii());
    }
}

#[test]
fn integers_reach_both_ends() {
    for number in [i64::MIN, i64::MAX, 0, -1] {
        let text = format!("i{number}e");
        let document = Document::parse(text.as_bytes()).expect("valid");
        assert_eq!(document.root().as_int(), Some(number));
    }
}

#[test]
fn unsorted_keys_are_read_and_told() {
    let document = Document::parse(b"d1:bi1e1:ald1:zi1e1:yi2eeee").expect("valid");
    assert_eq!(document.unsorted_key(), Some(7));
    assert_eq!(document.root().dict_get("b").and_then(|value| value.as_int()), Some(1));
}

// Threat 1: 20 KB of nesting ended another client.
#[test]
fn nesting_is_bounded() {
    let deep = |levels: usize| [vec![b'l'; levels], vec![b'e'; levels]].concat();
    assert!(Document::parse(&deep(DEPTH_MAX)).is_ok());
    assert_eq!(refused(&deep(DEPTH_MAX + 1)), (ErrorKind::TooDeep, DEPTH_MAX));
    assert_eq!(refused(&vec![b'd'; 20_000]), (ErrorKind::ExpectedKey, 1));
}

#[test]
fn tokens_are_bounded() {
    let flat = |values: usize| [b"l".to_vec(), b"0:".repeat(values), b"e".to_vec()].concat();
    assert!(Document::parse(&flat(TOKENS_MAX - 1)).is_ok());
    assert_eq!(refused(&flat(TOKENS_MAX)).0, ErrorKind::TooManyTokens);
}

// Threat 13: a million keys in descending order must cost n log n; squared would take hours.
#[test]
fn unsorted_keys_cost_n_log_n() {
    let mut bytes = vec![b'd'];
    for key in (0..1_000_000).rev() {
        bytes.extend_from_slice(format!("7:{key:07}0:").as_bytes());
    }
    bytes.push(b'e');
    assert!(Document::parse(&bytes).is_ok());
}

#[test]
#[should_panic(expected = "ascending")]
fn encoder_asserts_the_order() {
    Encoder::new(&mut Vec::new()).begin_dict().key("b").int(1).key("a");
}

#[test]
#[should_panic(expected = "was ended")]
fn encoder_asserts_the_end() {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out);
    encoder.begin_list();
    encoder.finish();
}

/// A value as a tree, for the tests only.
#[derive(Clone, Debug, PartialEq)]
enum Tree {
    Int(i64),
    Bytes(Vec<u8>),
    List(Vec<Tree>),
    Dict(std::collections::BTreeMap<Vec<u8>, Tree>),
}

fn trees() -> impl Strategy<Value = Tree> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..12);
    let leaf = prop_oneof![any::<i64>().prop_map(Tree::Int), bytes().prop_map(Tree::Bytes)];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Tree::List),
            proptest::collection::btree_map(bytes(), inner, 0..6).prop_map(Tree::Dict),
        ]
    })
}

fn encode(tree: &Tree, encoder: &mut Encoder<'_>) {
    match tree {
        Tree::Int(number) => _ = encoder.int(*number),
        Tree::Bytes(bytes) => _ = encoder.bytes(bytes),
        Tree::List(items) => {
            encoder.begin_list();
            items.iter().for_each(|item| encode(item, encoder));
            encoder.end();
        }
        Tree::Dict(entries) => {
            encoder.begin_dict();
            for (key, value) in entries {
                encode(value, encoder.key(key));
            }
            encoder.end();
        }
    }
}

fn decode(value: Value<'_, '_>) -> Tree {
    match value.kind() {
        Kind::Int => Tree::Int(value.as_int().expect("int")),
        Kind::Bytes => Tree::Bytes(value.as_bytes().expect("bytes").to_vec()),
        Kind::List => Tree::List(value.list().map(decode).collect()),
        Kind::Dict => Tree::Dict(
            value.dict_iter().map(|(key, value)| (key.to_vec(), decode(value))).collect(),
        ),
    }
}

fn encoded(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out);
    encode(tree, &mut encoder);
    encoder.finish();
    out
}

proptest! {
    #[test]
    fn what_is_encoded_is_read(tree in trees()) {
        let bytes = encoded(&tree);
        let document = Document::parse(&bytes).expect("valid");
        prop_assert_eq!(document.unsorted_key(), None);
        prop_assert_eq!(document.root().raw(), &bytes[..]);
        prop_assert_eq!(decode(document.root()), tree);
    }

    // What is accepted has one spelling: but for the order of keys it is what we would write.
    #[test]
    fn what_is_read_is_canonical(bytes in proptest::collection::vec(
        prop_oneof![Just(b'l'), Just(b'd'), Just(b'e'), Just(b'i'), Just(b':'), b'0'..=b'3'], 0..16,
    )) {
        if let Ok(document) = Document::parse(&bytes)
            && document.unsorted_key().is_none()
        {
            prop_assert_eq!(encoded(&decode(document.root())), bytes);
        }
    }

    #[test]
    fn every_cut_is_refused(tree in trees(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&tree);
        let cut = cut.index(bytes.len());
        prop_assert!(Document::parse(&bytes[..cut]).is_err());
    }

    #[test]
    fn mutations_never_panic(tree in trees(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = encoded(&tree);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok((document, _)) = Document::parse_prefix(&bytes) {
            decode(document.root());
        }
    }
}
