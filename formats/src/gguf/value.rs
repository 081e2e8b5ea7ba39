//! Metadata values: scalars, strings, and arrays that stay encoded until they are read.

use alloc::string::ToString;
use core::fmt;

use super::cursor::Cursor;
use super::error::GgufError;
use super::limits;

/// The type of a metadata value. The discriminant is the type's number in GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ValueType {
    /// Unsigned, 8 bits.
    U8 = 0,
    /// Signed, 8 bits.
    I8 = 1,
    /// Unsigned, 16 bits.
    U16 = 2,
    /// Signed, 16 bits.
    I16 = 3,
    /// Unsigned, 32 bits.
    U32 = 4,
    /// Signed, 32 bits.
    I32 = 5,
    /// IEEE 754, 32 bits.
    F32 = 6,
    /// One byte, 0 or 1.
    Bool = 7,
    /// A length in 8 bytes and as many bytes of text.
    Str = 8,
    /// An element type in 4 bytes, a length in 8, and as many elements.
    Array = 9,
    /// Unsigned, 64 bits.
    U64 = 10,
    /// Signed, 64 bits.
    I64 = 11,
    /// IEEE 754, 64 bits.
    F64 = 12,
}

impl ValueType {
    /// The type with this number, `None` for a number GGUF does not use.
    pub fn from_id(id: u32) -> Option<ValueType> {
        use ValueType::*;
        [
            U8, I8, U16, I16, U32, I32, F32, Bool, Str, Array, U64, I64, F64,
        ]
        .into_iter()
        .find(|t| *t as u32 == id)
    }

    /// The type's name in lower case: `u8`, `str`, `array`.
    pub fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "u8",
            I8 => "i8",
            U16 => "u16",
            I16 => "i16",
            U32 => "u32",
            I32 => "i32",
            F32 => "f32",
            Bool => "bool",
            Str => "str",
            Array => "array",
            U64 => "u64",
            I64 => "i64",
            F64 => "f64",
        }
    }

    /// Bytes of one value of this type in a file; `None` for strings and arrays, whose size varies.
    pub fn size(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            Str | Array => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A metadata value. Strings and arrays borrow the file's bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // each variant is the type of its name in ValueType
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(&'a str),
    /// A string that is not UTF-8, against the format's rule.
    Bytes(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::Str(_) | Value::Bytes(_) => ValueType::Str,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value of any integer type; `None` for other types.
    pub fn as_integer(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            _ => None,
        }
    }

    /// The value of type F32 or F64, the latter rounded to F32; `None` for other types.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// Reads a value of type `ty`. Strings and arrays of strings are walked, not copied.
    pub(super) fn read(
        c: &mut Cursor<'a>,
        key: &str,
        ty: ValueType,
    ) -> Result<Value<'a>, GgufError> {
        let what = "metadata value";
        Ok(match ty {
            ValueType::U8 => Value::U8(u8::from_le_bytes(c.array(what)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(c.array(what)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(c.array(what)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(c.array(what)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(c.array(what)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(c.array(what)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(c.array(what)?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(c.array(what)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(c.array(what)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(c.array(what)?)),
            ValueType::Bool => Value::Bool(c.bool(key)?),
            ValueType::Str => {
                // Descriptions in other encodings are common, and nobody needs them to run a model.
                let bytes = c.bytes("string value", limits::MAX_STRING_BYTES)?;
                core::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Str)
            }
            ValueType::Array => {
                let offset = c.pos();
                let element = read_value_type(c, key)?;
                let len = c.u64("array length")?;
                Value::Array(Array::read(c, key, element, offset, len)?)
            }
        })
    }
}

/// Reads a value type's number.
pub(super) fn read_value_type(c: &mut Cursor<'_>, key: &str) -> Result<ValueType, GgufError> {
    let offset = c.pos();
    let found = c.u32("value type")?;
    ValueType::from_id(found).ok_or_else(|| GgufError::UnknownValueType {
        key: key.to_string(),
        offset,
        found,
    })
}

/// An array of metadata values of one type, in the bytes of the file: reading an element decodes
/// it, nothing is allocated. Equality compares those bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Array<'a> {
    element: ValueType,
    len: usize,
    // Exactly `len` valid elements.
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The array of `len` elements encoded as in GGUF files: little-endian, each string after its
    /// length in 8 bytes.
    ///
    /// # Errors
    /// As for an array in a file; [`GgufError::ArraySize`] when bytes are left over.
    pub fn from_bytes(
        element: ValueType,
        len: usize,
        bytes: &'a [u8],
    ) -> Result<Array<'a>, GgufError> {
        let mut c = Cursor::new(bytes);
        let array = Array::read(&mut c, "", element, 0, len as u64)?;
        if c.left() != 0 {
            return Err(GgufError::ArraySize {
                found: bytes.len(),
                wanted: array.bytes.len(),
            });
        }
        Ok(array)
    }

    // `offset` is where the element type stands, for errors; the cursor is at the first element.
    fn read(
        c: &mut Cursor<'a>,
        key: &str,
        element: ValueType,
        offset: usize,
        len: u64,
    ) -> Result<Array<'a>, GgufError> {
        if element == ValueType::Array {
            let key = key.to_string();
            return Err(GgufError::NestedArray { key, offset });
        }
        // A string takes at least the 8 bytes of its length.
        let min_bytes = element.size().unwrap_or(8);
        let len = c.check_count(
            "array length",
            offset + 4,
            len,
            limits::MAX_ARRAY_LEN,
            min_bytes,
        )?;
        let start = c.pos();
        for _ in 0..len {
            match element {
                ValueType::Str => {
                    c.bytes("string in array", limits::MAX_STRING_BYTES)?;
                }
                ValueType::Bool => {
                    c.bool(key)?;
                }
                _ => {
                    // Every bit pattern is a number. `check_count` has checked this product.
                    c.take(len as u64 * min_bytes as u64, "array elements")?;
                    break;
                }
            }
        }
        Ok(Array {
            element,
            len,
            bytes: c.since(start),
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of the elements; never [`ValueType::Array`].
    pub fn element_type(&self) -> ValueType {
        self.element
    }

    /// The elements as the file stores them, little-endian, strings after their lengths.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The element at `index`, `None` past the end and for arrays of strings, which have no
    /// random access: [`Array::iter_str`].
    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        let size = self.element.size()?;
        let rest = self.bytes.get(index.checked_mul(size)?..)?;
        Value::read(&mut Cursor::new(rest), "", self.element).ok()
    }

    /// The strings, as bytes: the token lists of real vocabularies are not always UTF-8. `None`
    /// for arrays of another type.
    pub fn iter_str(&self) -> Option<impl Iterator<Item = &'a [u8]> + Clone + use<'a>> {
        if self.element != ValueType::Str {
            return None;
        }
        let mut c = Cursor::new(self.bytes);
        // The strings have been walked when the array was made, so this ends after the last.
        Some(core::iter::from_fn(move || {
            c.bytes("string in array", limits::MAX_STRING_BYTES).ok()
        }))
    }

    /// The elements of an array of any type but strings, `None` for an array of strings.
    pub fn iter_values(&self) -> Option<impl Iterator<Item = Value<'a>> + Clone + use<'a>> {
        let element = self.element;
        Some(
            self.bytes
                .chunks_exact(element.size()?)
                .map_while(move |b| Value::read(&mut Cursor::new(b), "", element).ok()),
        )
    }

    /// The elements of an array of F32 or F64, the latter rounded; `None` for other types.
    pub fn iter_f32(&self) -> Option<impl Iterator<Item = f32> + Clone + use<'a>> {
        match self.element {
            ValueType::F32 | ValueType::F64 => Some(self.iter_values()?.filter_map(|v| v.as_f32())),
            _ => None,
        }
    }

    /// The elements of an array of any integer type, if all fit; `None` otherwise.
    pub fn iter_u32(&self) -> Option<impl Iterator<Item = u32> + Clone + use<'a>> {
        self.iter_integer()
    }

    /// The elements of an array of any integer type, if all fit; `None` otherwise.
    pub fn iter_i32(&self) -> Option<impl Iterator<Item = i32> + Clone + use<'a>> {
        self.iter_integer()
    }

    /// The elements of an array of any integer type, if all fit; `None` otherwise.
    pub fn iter_i64(&self) -> Option<impl Iterator<Item = i64> + Clone + use<'a>> {
        self.iter_integer()
    }

    /// The elements of an array of booleans; `None` for other types.
    pub fn iter_bool(&self) -> Option<impl Iterator<Item = bool> + Clone + use<'a>> {
        match self.element {
            ValueType::Bool => Some(self.bytes.iter().map(|b| *b != 0)),
            _ => None,
        }
    }

    fn iter_integer<T: TryFrom<i128>>(
        &self,
    ) -> Option<impl Iterator<Item = T> + Clone + use<'a, T>> {
        let convert = |v: Value<'a>| v.as_integer().and_then(|v| T::try_from(v).ok());
        let is_integer = !matches!(
            self.element,
            ValueType::F32 | ValueType::F64 | ValueType::Bool
        );
        let values = self.iter_values()?;
        if !is_integer || values.clone().any(|v| convert(v).is_none()) {
            return None;
        }
        Some(values.filter_map(convert))
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The elements may be hundreds of thousands.
        write!(f, "Array({} x {})", self.len, self.element)
    }
}
