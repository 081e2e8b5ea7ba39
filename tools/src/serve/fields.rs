//! Requests' JSON: read strictly, and looked at field by field, so that what is wrong is told by its path.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// How deep a request may be nested, and schemas in it.
const MAX_DEPTH: usize = 64;
const MAX_SCHEMA_DEPTH: usize = 120;
/// Fields with schemas.
const WITH_SCHEMAS: [&str; 3] = ["response_format", "tools", "format"];

/// A request's body: one object. A key that is there twice is refused, since others may have looked at the
/// first where this server looks at the last.
pub(super) fn parse(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let invalid = |error: &dyn fmt::Display| {
        ApiError::bad(format!("the body is not valid JSON: {error}")).code("invalid_json")
    };
    let text = std::str::from_utf8(body).map_err(|error| invalid(&error))?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let strict = Strict {
        depth_left: MAX_DEPTH,
    };
    let value = strict.deserialize(&mut deserializer);
    let value = value.map_err(|error| invalid(&error))?;
    deserializer.end().map_err(|error| invalid(&error))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(invalid(&"an object is wanted")),
    }
}

/// Reads a value without double keys, nested so many levels at most.
#[derive(Clone, Copy)]
struct Strict {
    depth_left: usize,
}

impl Strict {
    fn inner<E: Error>(self) -> Result<Strict, E> {
        let depth_left = self.depth_left.checked_sub(1);
        let depth_left = depth_left.ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Strict { depth_left })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let is_schema = self.depth_left == MAX_DEPTH && WITH_SCHEMAS.contains(&&*key);
            let depth_left = match is_schema {
                true => MAX_SCHEMA_DEPTH,
                false => inner.depth_left,
            };
            let value = entries.next_value_seed(Strict { depth_left })?;
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!(
                    "the key {key:?} is there twice"
                )));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// The fields of an object of a request. One that is `null` counts as absent.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Where the object is, empty for the request itself.
    path: String,
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Map<String, Value>) -> Fields<'a> {
        let path = String::new();
        Fields { object, path }
    }

    /// Those of `value`, which is at `path`.
    pub(super) fn of(value: &'a Value, path: String) -> Result<Fields<'a>, ApiError> {
        match value {
            Value::Object(object) => Ok(Fields { object, path }),
            _ => Err(ApiError::field(path, "must be an object")),
        }
    }

    /// The path of a field.
    pub(super) fn path(&self, name: &str) -> String {
        match self.path.is_empty() {
            true => name.to_string(),
            false => format!("{}.{name}", self.path),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// A refusal of a field.
    pub(super) fn wrong<T>(&self, name: &str, what: &str) -> Result<T, ApiError> {
        Err(ApiError::field(self.path(name), what))
    }

    /// A field that must be there.
    pub(super) fn required<T>(&self, name: &str, field: Option<T>) -> Result<T, ApiError> {
        match field {
            Some(field) => Ok(field),
            None => self.wrong(name, "is required"),
        }
    }

    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => self.wrong(name, "must be true or false"),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.wrong(name, "must be a string"),
        }
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        let value = self.get(name);
        value
            .map(|value| Fields::of(value, self.path(name)))
            .transpose()
    }

    pub(super) fn array(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => self.wrong(name, "must be an array"),
        }
    }

    pub(super) fn number(
        &self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n as f32)),
            None => {
                let what = format!("must be a number from {} to {}", range.start(), range.end());
                self.wrong(name, &what)
            }
        }
    }

    /// A whole number, which may be written as `5.0`; one larger than any is the largest.
    pub(super) fn integer(
        &self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match whole(value).filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => {
                let what = match *range.end() {
                    i64::MAX => format!("must be a whole number, {} at least", range.start()),
                    end => format!("must be a whole number from {} to {end}", range.start()),
                };
                self.wrong(name, &what)
            }
        }
    }

    /// A whole number that counts something.
    pub(super) fn count(
        &self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        let end = i64::try_from(*range.end()).unwrap_or(i64::MAX);
        let start = i64::try_from(*range.start()).unwrap_or(i64::MAX);
        let n = self.integer(name, start..=end)?;
        Ok(n.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }
}

/// A whole number; one that is too large for the type is the type's largest.
pub(super) fn whole(value: &Value) -> Option<i64> {
    let Value::Number(number) = value else {
        return None;
    };
    if let Some(n) = number.as_i64() {
        return Some(n);
    }
    // What is a float here, or above the range, saturates.
    number
        .as_f64()
        .filter(|n| n.fract() == 0.0)
        .map(|n| n as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &[u8]) -> String {
        let error = parse(body).unwrap_err();
        assert_eq!(error.code, Some("invalid_json"));
        error.message
    }

    #[test]
    fn only_one_clear_object_is_read() {
        assert!(refused(b"[]").contains("an object"));
        assert!(refused(b"{} {}").contains("trailing"));
        assert!(refused(b"{\"a\":\"\xff\"}").contains("utf-8"));
        assert!(refused(br#"{"a":1,"b":{"c":1,"c":2}}"#).contains("\"c\" is there twice"));
        assert!(refused(br#"{"a":1e999}"#).contains("number out of range"));
        assert!(refused(b"{\"a\":NaN}").contains("expected"));
        let nested = |n: usize| format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
        assert!(parse(nested(63).as_bytes()).is_ok());
        assert!(refused(nested(64).as_bytes()).contains("too deeply"));
        assert!(refused("[".repeat(100_000).as_bytes()).contains("too deeply"));
        let schema = nested(100).replace("\"a\"", "\"tools\"");
        assert!(parse(schema.as_bytes()).is_ok());
    }

    #[test]
    fn fields_are_looked_at_with_their_paths() {
        let body = br#"{"n":5.0,"half":5.5,"text":"5","big":1e30,"none":null,"in":{"t":2}}"#;
        let object = parse(body).unwrap();
        let fields = Fields::new(&object);
        assert_eq!(fields.integer("n", 0..=9).unwrap(), Some(5));
        assert_eq!(fields.integer("big", 0..=i64::MAX).unwrap(), Some(i64::MAX));
        assert_eq!(fields.integer("none", 0..=9).unwrap(), None);
        assert_eq!(fields.integer("absent", 0..=9).unwrap(), None);
        for name in ["half", "text", "in"] {
            let error = fields.integer(name, 0..=9).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
        }
        let inner = fields.object("in").unwrap().unwrap();
        let error = inner.number("t", 0.0..=1.0).unwrap_err();
        assert_eq!(error.message, "in.t must be a number from 0 to 1");
    }
}
