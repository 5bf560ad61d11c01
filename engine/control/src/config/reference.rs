//! Owns: the JSON schema and the commented reference file, made from the docs of `file` and
//! `sections`.
//! Never: a doc, default or range of its own.
//! Flow: `seedring schema` and `seedring reference` print them; a test holds the committed ones to
//! them.

use std::fmt::Write;

use serde_json::Value as Json;

use super::file::{ConfigFile, TorrentEntry, TrackerFile};

/// The JSON schema (draft 2020-12) of the configuration file; editors complete and check with it.
pub fn schema() -> Json {
    schemars::schema_for!(ConfigFile).to_value()
}

/// Text wraps here.
const WIDTH: usize = 96;

/// A YAML file with every key, its doc, range and default. Everything stands commented out except
/// the sections' names, so that it is a valid configuration as it is.
pub fn reference() -> String {
    let schema = schema();
    let mut out = String::new();
    out.push_str(
        "# Every key of the configuration, with its default. Made from the schema by \
         `seedring reference`;\n\
         # take what you need into a file of your own, and check that with \
         `seedring check-config FILE`.\n\
         # yaml-language-server: $schema=seedring.schema.json\n#\n",
    );
    comment(&mut out, "", text(&schema, "description"));
    let defaults = plain(&ConfigFile::default());
    section(&mut out, &schema, &schema, &defaults, "");
    out
}

/// The defaults of a section as values.
fn plain<T: serde::Serialize>(defaults: &T) -> Json {
    serde_json::to_value(defaults).expect("invariant: the defaults are plain values")
}

fn section(out: &mut String, root: &Json, schema: &Json, defaults: &Json, indent: &str) {
    let Some(properties) = schema.get("properties").and_then(Json::as_object) else { return };
    for (key, property) in properties {
        let target = target(root, property);
        let default = defaults.get(key).unwrap_or(&Json::Null);
        out.push('\n');
        comment(out, indent, text(property, "description").or(text(target, "description")));
        variants(out, indent, target);
        range(out, indent, property);
        let deeper = format!("{indent}  ");
        if key == "torrents" {
            let _ = writeln!(out, "torrents:\n  # -");
            let entry = plain(&TorrentEntry::default());
            let item = target_of_items(root, property);
            section(out, root, item, &entry, "    ");
        } else if target.get("properties").is_some() {
            let optional = default.is_null();
            let _ = writeln!(
                out,
                "{indent}{}{key}:",
                if optional || indent.len() > 2 { "# " } else { "" }
            );
            let of_tracker = plain(&TrackerFile::default());
            section(out, root, target, if optional { &of_tracker } else { default }, &deeper);
        } else {
            let _ = writeln!(out, "{indent}# {key}:{}", written(default));
        }
    }
}

fn target<'a>(root: &'a Json, property: &'a Json) -> &'a Json {
    let of = |one: &'a Json| one.get("$ref").and_then(Json::as_str);
    let any = property.get("anyOf").and_then(Json::as_array);
    let reference = of(property).or_else(|| any?.iter().find_map(of));
    reference.and_then(|path| root.pointer(path.strip_prefix('#')?)).unwrap_or(property)
}

fn target_of_items<'a>(root: &'a Json, property: &'a Json) -> &'a Json {
    property.get("items").map_or(property, |items| target(root, items))
}

fn text<'a>(schema: &'a Json, key: &str) -> Option<&'a str> {
    schema.get(key).and_then(Json::as_str)
}

fn comment(out: &mut String, indent: &str, text: Option<&str>) {
    for paragraph in text.unwrap_or_default().split("\n\n") {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && indent.len() + line.len() + word.len() + 3 > WIDTH {
                let _ = writeln!(out, "{indent}#{line}");
                line.clear();
            }
            line.push(' ');
            line.push_str(word);
        }
        if !line.is_empty() {
            let _ = writeln!(out, "{indent}#{line}");
        }
    }
}

fn variants(out: &mut String, indent: &str, schema: &Json) {
    let plain = schema.get("enum").and_then(Json::as_array).cloned().unwrap_or_default();
    let documented = schema.get("oneOf").and_then(Json::as_array).cloned().unwrap_or_default();
    let mut names: Vec<String> = Vec::new();
    for one in &plain {
        names.extend(one.as_str().map(str::to_string));
    }
    for one in &documented {
        names.extend(text(one, "const").map(str::to_string));
        let listed = one.get("enum").and_then(Json::as_array).cloned().unwrap_or_default();
        names.extend(listed.iter().filter_map(|name| name.as_str().map(str::to_string)));
    }
    if !names.is_empty() {
        comment(out, indent, Some(&format!("One of: {}.", names.join(", "))));
    }
}

fn range(out: &mut String, indent: &str, schema: &Json) {
    let bound = |plain: &str, unit: &str| {
        let value = schema.get(unit).or_else(|| schema.get(plain))?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_string))
    };
    if let (Some(least), Some(most)) = (bound("minimum", "x-least"), bound("maximum", "x-most")) {
        comment(out, indent, Some(&format!("From {least} to {most}.")));
    }
}

/// A default as YAML; nothing for what is left out.
fn written(default: &Json) -> String {
    match default {
        Json::Null => String::new(),
        Json::String(text) if text.contains([' ', ':', '#', '[']) => format!(" \"{text}\""),
        Json::String(text) => format!(" {text}"),
        Json::Array(items) if items.is_empty() => String::new(),
        other => format!(" {other}"),
    }
}
