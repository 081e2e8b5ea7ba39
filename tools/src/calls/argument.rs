//! What an argument of a tool may be where arguments are written one by one: a text as it is, or JSON.

use std::borrow::Cow;

use serde_json::{Value, json};

/// The most schemas that an argument's is looked into for.
const MAX_SCHEMAS: usize = 64;
/// JSON Schema's types.
const TYPES: [&str; 7] = [
    "string", "null", "boolean", "integer", "number", "array", "object",
];

/// An argument by its key.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArgumentForm {
    pub key: String,
    /// The texts that it may be, if it may be one.
    pub text: Option<TextForm>,
    /// What it may be otherwise, which is written as JSON.
    pub json: Vec<Value>,
}

/// Texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TextForm {
    /// These only; none where any will do.
    pub choices: Vec<String>,
    /// Bounds on the number of characters.
    pub least: u64,
    pub most: Option<u64>,
    /// A keyword that cannot be enforced.
    pub unenforced: Option<&'static str>,
}

impl ArgumentForm {
    /// What a schema inside of `root` allows.
    pub(crate) fn of(key: &str, schema: &Value, root: &Value) -> ArgumentForm {
        let mut form = ArgumentForm {
            key: key.to_string(),
            ..ArgumentForm::default()
        };
        let mut alternatives = Vec::new();
        let mut left = MAX_SCHEMAS;
        collect(schema, root, &mut left, &mut alternatives);
        let is_text = |schema: &Cow<'_, Value>| is_text(schema);
        if left == 0 || !alternatives.iter().any(is_text) {
            form.json = vec![schema.clone()];
            return form;
        }
        let (texts, others): (Vec<_>, Vec<_>) = alternatives.into_iter().partition(is_text);
        let mut texts = texts.iter().map(|schema| TextForm::of(schema));
        form.text = texts.next().map(|first| texts.fold(first, TextForm::or));
        form.json = others.into_iter().map(Cow::into_owned).collect();
        form
    }

    /// Whether a JSON text of this value may stand here, by its kind.
    pub(crate) fn allows(&self, value: &Value, json: &str) -> bool {
        let kinds: &[&str] = match value {
            Value::Null => &["null"],
            Value::Bool(_) => &["boolean"],
            // A long integer is read as a float.
            Value::Number(_) if json.contains(['.', 'e', 'E']) => &["number"],
            Value::Number(_) => &["number", "integer"],
            Value::String(_) => &["string"],
            Value::Array(_) => &["array"],
            Value::Object(_) => &["object"],
        };
        self.json.iter().any(|schema| match schema.get("type") {
            Some(Value::String(name)) => kinds.contains(&&**name),
            Some(Value::Array(names)) => names
                .iter()
                .filter_map(Value::as_str)
                .any(|name| kinds.contains(&name)),
            _ => match listed(schema) {
                Some(all) => all.contains(value),
                None => true,
            },
        })
    }
}

impl TextForm {
    fn of(schema: &Value) -> TextForm {
        let choices = listed(schema).unwrap_or_default();
        let length = |key| schema.get(key).and_then(Value::as_u64);
        let mut unenforced = ["pattern", "format"].into_iter();
        TextForm {
            choices: choices
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_string)
                .collect(),
            least: length("minLength").unwrap_or(0),
            most: length("maxLength"),
            unenforced: unenforced.find(|key| schema.get(key).is_some()),
        }
    }

    /// What either allows.
    fn or(self, other: TextForm) -> TextForm {
        let any = self.choices.is_empty() || other.choices.is_empty();
        TextForm {
            choices: match any {
                true => Vec::new(),
                false => [self.choices, other.choices].concat(),
            },
            least: self.least.min(other.least),
            most: self.most.zip(other.most).map(|(a, b)| a.max(b)),
            unenforced: self.unenforced.or(other.unenforced),
        }
    }
}

/// The schemas of which one must hold, references resolved. Those that stand in the request are not copied: they may
/// be large, and each inside of another.
fn collect<'a>(
    mut schema: &'a Value,
    root: &'a Value,
    left: &mut usize,
    out: &mut Vec<Cow<'a, Value>>,
) {
    loop {
        if *left == 0 {
            return;
        }
        *left -= 1;
        let target = schema.get("$ref").and_then(Value::as_str);
        let target = target.and_then(|target| target.strip_prefix('#'));
        match target.and_then(|pointer| root.pointer(pointer)) {
            Some(found) => schema = found,
            None => break,
        }
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(Value::Array(all)) = schema.get(key) {
            return all.iter().for_each(|one| collect(one, root, left, out));
        }
    }
    match (schema.get("type"), listed(schema)) {
        // One of a list of values for each kind of them.
        (_, Some(all)) if all.iter().any(Value::is_string) && !all.iter().all(Value::is_string) => {
            let (texts, others): (Vec<_>, Vec<_>) = all.iter().partition(|one| one.is_string());
            out.push(Cow::Owned(json!({ "enum": texts })));
            out.push(Cow::Owned(json!({ "enum": others })));
        }
        (Some(Value::Array(names)), _) if names.iter().any(|name| name == "string") => {
            let known = TYPES
                .into_iter()
                .filter(|name| names.iter().any(|one| one == name));
            for name in known {
                let mut one = schema.clone();
                one["type"] = name.into();
                let fits = |value: &Value| value.is_string() == (name == "string");
                if listed(&one).is_none_or(|all| all.iter().all(fits)) {
                    out.push(Cow::Owned(one));
                }
            }
        }
        _ => out.push(Cow::Borrowed(schema)),
    }
}

/// The values that a schema lists, if it does.
fn listed(schema: &Value) -> Option<&[Value]> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(one), _) => Some(std::slice::from_ref(one)),
        (None, Some(Value::Array(all))) => Some(all),
        _ => None,
    }
}

fn is_text(schema: &Value) -> bool {
    match schema.get("type") {
        Some(name) => name == "string",
        None => {
            listed(schema).is_some_and(|all| !all.is_empty() && all.iter().all(Value::is_string))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(schema: Value) -> ArgumentForm {
        let root = json!({"$defs": {
            "text": {"type": "string"},
            "circle": {"anyOf": [{"$ref": "#/$defs/circle"}, {"type": "string"}]},
        }});
        ArgumentForm::of("k", &schema, &root)
    }

    fn allows(form: &ArgumentForm, json: &str) -> bool {
        form.allows(&serde_json::from_str(json).unwrap(), json)
    }

    #[test]
    fn texts_and_others_are_told_apart() {
        assert_eq!(
            form(json!({"$ref": "#/$defs/text"})).text,
            Some(TextForm::default())
        );
        assert!(form(json!({"type": "integer"})).text.is_none());
        assert!(form(json!({})).text.is_none());
        for nullable in [
            json!({"type": ["string", "null"]}),
            json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ] {
            let form = form(nullable);
            assert_eq!(form.text, Some(TextForm::default()));
            assert!(allows(&form, "null") && !allows(&form, "5") && !allows(&form, "{}"));
        }
        let mixed = form(json!({"enum": ["a", "b", null, 3]}));
        assert_eq!(mixed.text.as_ref().unwrap().choices, ["a", "b"]);
        assert!(allows(&mixed, "3") && allows(&mixed, "null") && !allows(&mixed, "4"));
        let counted = form(json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}));
        assert!(allows(&counted, "12345678901234567890123") && !allows(&counted, "1.5"));
        let strict = form(
            json!({"anyOf": [{"type": "string", "pattern": "x", "maxLength": 3}, {"type": "null"}]}),
        );
        let text = strict.text.unwrap();
        assert_eq!((text.unenforced, text.most), (Some("pattern"), Some(3)));
    }

    #[test]
    fn circles_and_crowds_end() {
        assert!(form(json!({"$ref": "#/$defs/circle"})).text.is_none());
        let mut root = json!({"$defs": {"a0": {"type": "string"}}});
        for i in 1..40 {
            let before = json!({"$ref": format!("#/$defs/a{}", i - 1)});
            root["$defs"][format!("a{i}")] = json!({"anyOf": [before, before]});
        }
        let form = ArgumentForm::of("k", &json!({"$ref": "#/$defs/a39"}), &root);
        assert!(form.text.is_none() && form.json.len() == 1);
    }
}
