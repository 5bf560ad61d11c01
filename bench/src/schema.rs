//! Owns: whether a report is as `bench/report.schema.json` says: as much of JSON Schema as that
//! file uses.
//! Never: part of the program: tests alone use it, here and in bench/tests. Flow: report -> `check`
//! -> what does not fit, with its place.

use serde_json::Value;

/// A line for each thing that does not fit.
pub fn check(report: &Value) -> Vec<String> {
    let text = include_str!("../report.schema.json");
    let schema: Value = serde_json::from_str(text).expect("the schema is JSON");
    let mut wrong = Vec::new();
    Check { root: &schema, wrong: &mut wrong }.value(&schema, report, "report");
    wrong
}

struct Check<'a> {
    root: &'a Value,
    wrong: &'a mut Vec<String>,
}

impl Check<'_> {
    fn value(&mut self, schema: &Value, value: &Value, at: &str) {
        const KNOWN: [&str; 14] = [
            "$schema",
            "$id",
            "$defs",
            "$ref",
            "title",
            "description",
            "type",
            "const",
            "anyOf",
            "properties",
            "required",
            "additionalProperties",
            "items",
            "default",
        ];
        for key in schema.as_object().into_iter().flatten().map(|(key, _)| key) {
            assert!(KNOWN.contains(&key.as_str()), "{key} of the schema is not looked at");
        }
        if let Some(name) = schema["$ref"].as_str() {
            let target = self.root.pointer(name.trim_start_matches('#')).expect("what $ref names");
            return self.value(target, value, at);
        }
        if let Some(all) = schema["anyOf"].as_array() {
            let tries = all.iter().map(|one| {
                let mut wrong = Vec::new();
                Check { root: self.root, wrong: &mut wrong }.value(one, value, at);
                wrong
            });
            // Most mistakes are told of by the one that fits best, which is not the shortest.
            let tries: Vec<Vec<String>> = tries.collect();
            if tries.iter().all(|wrong| !wrong.is_empty()) {
                self.wrong.extend(tries.into_iter().next().unwrap_or_default());
            }
            return;
        }
        if schema.get("const").is_some_and(|only| only != value) {
            self.wrong.push(format!("{at} is {value}, not {}", schema["const"]));
        }
        if !fits(&schema["type"], value) {
            return self.wrong.push(format!("{at} is {value}, no {}", schema["type"]));
        }
        if let Some(members) = value.as_object() {
            for name in schema["required"].as_array().into_iter().flatten() {
                let is_there = name.as_str().is_some_and(|name| members.contains_key(name));
                if !is_there {
                    self.wrong.push(format!("{at} has no {name}"));
                }
            }
            for (name, member) in members {
                let at = format!("{at}.{name}");
                match (&schema["properties"][name], &schema["additionalProperties"]) {
                    (Value::Null, Value::Bool(false)) => {
                        self.wrong.push(format!("{at} is not described"));
                    }
                    (Value::Null, Value::Object(_)) => {
                        self.value(&schema["additionalProperties"], member, &at);
                    }
                    (Value::Null, _) => {}
                    (of_it, _) => self.value(of_it, member, &at),
                }
            }
        }
        if let (Some(items), of_each @ Value::Object(_)) = (value.as_array(), &schema["items"]) {
            for (number, item) in items.iter().enumerate() {
                self.value(of_each, item, &format!("{at}[{number}]"));
            }
        }
    }
}

/// Whether it is of the type, or of one of several; nothing said: of any.
fn fits(kind: &Value, value: &Value) -> bool {
    match kind {
        Value::Array(all) => all.iter().any(|one| fits(one, value)),
        Value::String(name) => match name.as_str() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "number" => value.is_number(),
            "integer" => value.is_u64() || value.is_i64(),
            other => panic!("{other} is no type of JSON Schema"),
        },
        _ => true,
    }
}
