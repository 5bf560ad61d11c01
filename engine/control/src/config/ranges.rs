//! Owns: comparing values with the least and the most that the schema states for their key.
//! Never: states a range itself; each stands beside the doc of its key.
//! Flow: after `tree`, before `read`: what is out of range is reported and set aside.

use serde_json::Value as Json;

use super::read::{Problem, Reading};
use super::tree::{Node, Value};
use super::units::{ByteSize, Period};

/// Checks a node and all below it against a schema; `root` is where `$ref` leads.
pub(super) fn check(reading: &Reading, root: &Json, schema: &Json, node: &Node, path: &str) {
    let schema = resolve(root, schema);
    match &node.value {
        Value::Null => {}
        Value::Scalar(text) => {
            if let Some(message) = outside(schema, text) {
                reading.set_aside(node);
                let (key, help) = (path.to_string(), default_of(schema));
                reading.report(Problem { place: node.place, key, message, help });
            }
        }
        Value::Map(entries) => {
            for (key, value) in entries {
                let name = key.text().unwrap_or_default();
                let Some(property) = property(root, schema, name) else { continue };
                let dot = if path.is_empty() { "" } else { "." };
                check(reading, root, property, value, &format!("{path}{dot}{name}"));
            }
        }
        Value::Seq(items) => {
            let Some(item_schema) = schema.get("items") else { return };
            for (index, item) in items.iter().enumerate() {
                check(reading, root, item_schema, item, &format!("{path}[{index}]"));
            }
        }
    }
}

fn property<'a>(root: &'a Json, schema: &'a Json, name: &str) -> Option<&'a Json> {
    if let Some(property) = schema.get("properties").and_then(|all| all.get(name)) {
        return Some(property);
    }
    // An optional section: `anyOf: [section, null]`.
    let any = schema.get("anyOf")?.as_array()?;
    any.iter().find_map(|one| resolve(root, one).get("properties")?.get(name))
}

fn resolve<'a>(root: &'a Json, schema: &'a Json) -> &'a Json {
    let Some(path) = schema.get("$ref").and_then(Json::as_str) else { return schema };
    // A reference beside its own range keeps that range.
    if schema.get("x-least").is_some() {
        return schema;
    }
    path.strip_prefix('#').and_then(|pointer| root.pointer(pointer)).unwrap_or(schema)
}

fn default_of(schema: &Json) -> Option<String> {
    let default = schema.get("default").filter(|default| !default.is_null())?;
    let text = default.as_str().map_or_else(|| default.to_string(), str::to_string);
    Some(format!("the default is {text}"))
}

/// What is wrong with a value's size; `None` also where it is not a number at all.
fn outside(schema: &Json, text: &str) -> Option<String> {
    let number = |key: &str| schema.get(key).and_then(Json::as_i64);
    if let (Some(least), Some(most)) = (number("minimum"), number("maximum")) {
        let value: i128 = text.replace('_', "").parse().ok()?;
        let inside = (i128::from(least)..=i128::from(most)).contains(&value);
        return (!inside).then(|| {
            format!("{value} is out of range; expected a whole number from {least} to {most}")
        });
    }
    let bound = |key: &str| schema.get(key).and_then(Json::as_str);
    let (least, most) = (bound("x-least")?, bound("x-most")?);
    let inside = match text.parse::<Period>() {
        Ok(value) => (least.parse().ok()?..=most.parse().ok()?).contains(&value),
        Err(_) => {
            let value: ByteSize = text.parse().ok()?;
            (least.parse().ok()?..=most.parse().ok()?).contains(&value)
        }
    };
    (!inside).then(|| format!("{text} is out of range; expected {least} to {most}"))
}
