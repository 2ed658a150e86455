//! Whether the settings of two parts say the same, and what a merge of them says.

use serde_json::{Map, Value};

const FILE: &str = "tokenizer";
const MAPPING: &str = "tokenizer_mapping";

/// The name of a setting in which `a` and `b` differ.
///
/// The hash of a tokenizer's file changes when the file is saved again. Where both record what the tokenizer does, that
/// decides.
pub(super) fn differing(a: &Value, b: &Value) -> Option<String> {
    let empty = Map::new();
    let (a, b) = (a.as_object().unwrap_or(&empty), b.as_object().unwrap_or(&empty));
    let other = other_tokenizer(a, b);
    let same = |name: &str| match name {
        FILE | MAPPING => !other,
        _ => a.get(name) == b.get(name),
    };
    a.keys().chain(b.keys()).find(|name| !same(name)).cloned()
}

/// The settings of a merge of parts between which nothing is [`differing`]; the order of the parts does not matter.
pub(super) fn common(a: &Value, b: &Value) -> Value {
    let (Some(one), Some(other)) = (a.as_object(), b.as_object()) else { return a.clone() };
    let mut settings = one.clone();
    if one.get(FILE) != other.get(FILE) {
        settings.insert(FILE.into(), Value::Null);
    }
    let size = |mapping: &Value| mapping.get("vocab_size").and_then(Value::as_u64);
    // Of two vocabularies the shorter: what was added later is in no part that was mined before.
    if let Some(mapping) = mapping_of(one).into_iter().chain(mapping_of(other)).min_by_key(|mapping| size(mapping)) {
        settings.insert(MAPPING.into(), mapping.clone());
    }
    Value::Object(settings)
}

fn mapping_of(settings: &Map<String, Value>) -> Option<&Value> {
    settings.get(MAPPING).filter(|mapping| mapping.is_object())
}

fn other_tokenizer(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let file = |settings: &Map<String, Value>| settings.get(FILE).filter(|file| !file.is_null()).cloned();
    match (mapping_of(a), mapping_of(b)) {
        _ if file(a).is_some() && file(a) == file(b) => false,
        (Some(one), Some(other)) => {
            let same = |name: &str| one.get(name) == other.get(name);
            !same("fingerprint") || same("vocab_size") && !same("added_fingerprint")
        }
        _ => file(a) != file(b),
    }
}
