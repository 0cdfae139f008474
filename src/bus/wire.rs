//! Marshalling by hand, for the one answer that is large: a list of runs. serde goes through a signature for every
//! variant, which is 9 µs a run; this is one tenth of it. The bytes are the same, and a test holds them to zbus's.

use serde::{Serialize, Serializer};
use zbus::{Signature, Type};

/// A value that knows its signature.
pub trait Value: Sized {
    /// Its signature.
    const CODE: &'static str;
    /// The alignment of its first byte.
    const ALIGN: usize;
    /// Writes it, aligned.
    fn put(&self, w: &mut Writer);
    /// Reads it; `None` when the bytes are not one.
    fn take(r: &mut Reader<'_>) -> Option<Self>;
}

/// Bytes in the making. Offsets are those in the message's body, so that alignment comes out right.
pub struct Writer {
    bytes: Vec<u8>,
    base: usize,
}

impl Writer {
    /// Begins at this offset of the body.
    pub fn at(base: usize) -> Self {
        Self { bytes: Vec::new(), base }
    }

    fn align(&mut self, to: usize) {
        let offset = self.base + self.bytes.len();
        self.bytes.resize(self.bytes.len() + offset.next_multiple_of(to) - offset, 0);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.align(4);
        self.raw(&(text.len() as u32).to_ne_bytes());
        self.raw(text.as_bytes());
        self.raw(&[0]);
    }

    /// Writes an array: its length in bytes, the padding of its elements, and what `elements` writes.
    pub fn array(&mut self, align: usize, elements: impl FnOnce(&mut Self)) {
        self.align(4);
        let length_at = self.bytes.len();
        self.raw(&[0; 4]);
        self.align(align);
        let begin = self.bytes.len();
        elements(self);
        let length = (self.bytes.len() - begin) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Writes an entry of an `a{sv}`.
    pub fn entry<T: Value>(&mut self, key: &str, value: &T) {
        self.align(8);
        self.text(key);
        self.raw(&[T::CODE.len() as u8]);
        self.raw(T::CODE.as_bytes());
        self.raw(&[0]);
        value.put(self);
    }

    /// The bytes.
    pub fn done(self) -> Vec<u8> {
        self.bytes
    }
}

/// Bytes to be read, as they are in a message's body.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Begins at the first byte of a body.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn raw(&mut self, n: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(n)?;
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.align(N);
        self.raw(N)?.try_into().ok()
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = u32::from_ne_bytes(self.number()?) as usize;
        self.ended(length)
    }

    /// Text of this length, and the NUL that ends it, which is the only one.
    fn ended(&mut self, length: usize) -> Option<&'a str> {
        let (end, bytes) = self.raw(length.checked_add(1)?)?.split_last()?;
        let is_text = *end == 0 && !bytes.contains(&0);
        is_text.then(|| std::str::from_utf8(bytes).ok())?
    }

    /// Reads an array: calls `element` until its bytes are over.
    pub fn array(&mut self, align: usize, mut element: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        let length = u32::from_ne_bytes(self.number()?) as usize;
        self.align(align);
        let end = self.at.checked_add(length).filter(|e| *e <= self.bytes.len())?;
        while self.at < end {
            element(self)?;
        }
        (self.at == end).then_some(())
    }

    /// Reads the key and the signature of an entry of an `a{sv}`; the value follows.
    pub fn entry(&mut self) -> Option<(&'a str, &'a str)> {
        self.align(8);
        let key = self.text()?;
        let length = usize::from(*self.raw(1)?.first()?);
        Some((key, self.ended(length)?))
    }
}

macro_rules! numbers {
    ($($type:ty, $signature:literal, $align:literal;)*) => {$(
        impl Value for $type {
            const CODE: &'static str = $signature;
            const ALIGN: usize = $align;

            fn put(&self, w: &mut Writer) {
                w.align(Self::ALIGN);
                w.raw(&self.to_ne_bytes());
            }

            fn take(r: &mut Reader<'_>) -> Option<Self> {
                Some(<$type>::from_ne_bytes(r.number()?))
            }
        }
    )*};
}

numbers! { u32, "u", 4; i32, "i", 4; u64, "t", 8; }

impl Value for bool {
    const CODE: &'static str = "b";
    const ALIGN: usize = 4;

    fn put(&self, w: &mut Writer) {
        u32::from(*self).put(w);
    }

    fn take(r: &mut Reader<'_>) -> Option<Self> {
        match u32::take(r)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Value for String {
    const CODE: &'static str = "s";
    const ALIGN: usize = 4;

    fn put(&self, w: &mut Writer) {
        w.text(self);
    }

    fn take(r: &mut Reader<'_>) -> Option<Self> {
        r.text().map(str::to_owned)
    }
}

macro_rules! lists {
    ($($element:ty, $signature:literal;)*) => {$(
        impl Value for Vec<$element> {
            const CODE: &'static str = $signature;
            const ALIGN: usize = 4;

            fn put(&self, w: &mut Writer) {
                w.array(<$element>::ALIGN, |w| self.iter().for_each(|e| e.put(w)));
            }

            fn take(r: &mut Reader<'_>) -> Option<Self> {
                let mut all = Vec::new();
                r.array(<$element>::ALIGN, |r| Some(all.push(<$element>::take(r)?)))?;
                Some(all)
            }
        }
    )*};
}

lists! {
    String, "as";
    (String, u64), "a(st)";
    (String, String, u64), "a(sst)";
    (String, String, String), "a(sss)";
    (String, u64, u32, String), "a(stus)";
    (String, String, String, u64), "a(ssst)";
    (String, u64, u64, u32), "a(sttu)";
    (u32, u32, String, String, String), "a(uusss)";
    (u32, u64, String, String, String), "a(utsss)";
}

macro_rules! structs {
    ($(($($field:ident: $type:ty),*), $signature:literal;)*) => {$(
        impl Value for ($($type),*) {
            const CODE: &'static str = $signature;
            const ALIGN: usize = 8;

            fn put(&self, w: &mut Writer) {
                let ($($field),*) = self;
                w.align(8);
                $($field.put(w);)*
            }

            fn take(r: &mut Reader<'_>) -> Option<Self> {
                r.align(8);
                Some(($(<$type>::take(r)?),*))
            }
        }
    )*};
}

structs! {
    (a: u32, b: u64), "(ut)";
    (a: u32, b: String), "(us)";
    (a: String, b: u64), "(st)";
    (a: String, b: String, c: u64), "(sst)";
    (a: String, b: String, c: String), "(sss)";
    (a: String, b: u64, c: u32, d: String), "(stus)";
    (a: String, b: i32, c: String), "(sis)";
    (a: String, b: String, c: u64, d: String), "(ssts)";
    (a: String, b: String, c: String, d: u64), "(ssst)";
    (a: String, b: u64, c: u64, d: u32), "(sttu)";
    (a: u32, b: u32, c: String, d: String, e: String), "(uusss)";
    (a: u32, b: u64, c: String, d: String, e: String), "(utsss)";
}

/// A value of an entry: there always, or only sometimes.
pub trait Entry {
    /// Writes the entry, if there is a value.
    fn put_entry(&self, key: &str, w: &mut Writer);
    /// Reads the value, if it is of the right type.
    fn take_value(&mut self, signature: &str, r: &mut Reader<'_>) -> Option<()>;
}

impl<T: Value> Entry for Option<T> {
    fn put_entry(&self, key: &str, w: &mut Writer) {
        if let Some(value) = self {
            w.entry(key, value);
        }
    }

    fn take_value(&mut self, signature: &str, r: &mut Reader<'_>) -> Option<()> {
        *self = Some((signature == T::CODE).then(|| T::take(r))??);
        Some(())
    }
}

macro_rules! entries {
    ($($type:ty),*) => {$(
        impl Entry for $type {
            fn put_entry(&self, key: &str, w: &mut Writer) {
                w.entry(key, self);
            }

            fn take_value(&mut self, signature: &str, r: &mut Reader<'_>) -> Option<()> {
                *self = (signature == <$type>::CODE).then(|| <$type>::take(r))??;
                Some(())
            }
        }
    )*};
}

entries!(u32, u64, String, Vec<String>);

/// A dictionary of which there are lists.
pub trait Listed: Default {
    /// Writes all entries.
    fn put_entries(&self, w: &mut Writer);
    /// Reads the value of this key; `None` when it is malformed or unknown.
    fn take_entry(&mut self, key: &str, signature: &str, r: &mut Reader<'_>) -> Option<()>;
}

/// An `aa{sv}` that is marshalled already, and the only value of a message's body.
#[derive(Debug)]
pub struct Marshalled(Vec<u8>);

impl Marshalled {
    /// Marshals.
    pub fn of<D: Listed>(dicts: impl IntoIterator<Item = D>) -> Self {
        // The length of the outer array comes first, and is written by serde.
        let mut w = Writer::at(4);
        for dict in dicts {
            w.array(8, |w| dict.put_entries(w));
        }
        Self(w.done())
    }
}

impl Type for Marshalled {
    const SIGNATURE: &'static Signature = &Signature::Array(zbus::wire::signature::Child::Static {
        child: <std::collections::HashMap<String, zbus::OwnedVariant> as Type>::SIGNATURE,
    });
}

impl Serialize for Marshalled {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // zbus writes bytes as it writes any array: the length, then the elements.
        serializer.serialize_bytes(&self.0)
    }
}

/// Reads an `aa{sv}` that is the body of a message; `None` when it is malformed.
pub fn list<D: Listed>(body: &[u8]) -> Option<Vec<D>> {
    let mut all = Vec::new();
    Reader::new(body).array(4, |r| {
        let mut dict = D::default();
        r.array(8, |r| {
            let (key, signature) = r.entry()?;
            dict.take_entry(key, signature, r)
        })?;
        all.push(dict);
        Some(())
    })?;
    Some(all)
}
