//! What a `.proto` file says about its messages, with every name looked up.
//!
//! A file stands alone, so that it can travel as a contract: it may import Google's well-known types, of which none is looked into,
//! and nothing else.

use std::collections::BTreeMap;

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

/// The messages and enumerations of a file, by their full names (`shop.v1.OrderPlaced`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtoFile {
    messages: BTreeMap<String, ProtoMessage>,
    /// The names of their values, by the numbers.
    enums: BTreeMap<String, BTreeMap<i32, String>>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtoMessage {
    /// Where it stands in its file, as Confluent's clients write it before a body: the number of the outermost message, then that of
    /// the message in it, and so on.
    pub index: Vec<i32>,
    /// Its fields, by their numbers.
    pub fields: BTreeMap<i32, ProtoField>,
    /// Whether it is an entry of a map, which files do not write out.
    pub is_map_entry: bool,
}

/// A field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtoField {
    /// Its name in the file.
    pub name: String,
    /// What it holds.
    pub kind: ProtoKind,
    /// Whether it may be left out.
    pub presence: Presence,
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtoKind {
    /// One value.
    Scalar(Type),
    /// A message of the file, by its full name.
    Message(String),
    /// An enumeration of the file, by its full name.
    Enum(String),
    /// A message of Google's: `google.protobuf.Timestamp`.
    WellKnown(String),
}

/// Whether a field may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is always there; what is not written is its default (proto3 without `optional`, or `required` in proto2).
    Always,
    /// It may be left out, and a reader sees that: `optional`, a message, one of several (`oneof`).
    Optional,
    /// There may be any number.
    Repeated,
}

impl ProtoFile {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it is none, imports others than Google's, or names what is not there.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file = protox_parse::parse("messages.proto", text)
            .map_err(|error| format!("the `.proto` file cannot be read: {error}"))?;
        if let Some(other) = file
            .dependency
            .iter()
            .find(|it| !it.starts_with("google/protobuf/"))
        {
            return Err(format!(
                "the `.proto` file imports `{other}`: put what it needs into the file itself, so that it can be read alone"
            ));
        }
        let mut read = Self {
            messages: BTreeMap::new(),
            enums: BTreeMap::new(),
        };
        let package = file.package().to_owned();
        read.names(&package, &file.message_type, &file.enum_type);
        read.messages_of(&file, &package, &file.message_type, &[])?;
        Ok(read)
    }

    /// A message by its full name.
    pub fn message(&self, name: &str) -> Option<&ProtoMessage> {
        self.messages.get(name)
    }

    /// The values of an enumeration: their names by their numbers.
    pub fn values(&self, name: &str) -> Option<&BTreeMap<i32, String>> {
        self.enums.get(name)
    }

    /// The names of its messages, without entries of maps.
    pub fn messages(&self) -> impl Iterator<Item = &str> {
        let all = self.messages.iter().filter(|(_, it)| !it.is_map_entry);
        all.map(|(name, _)| name.as_str())
    }

    /// All names, before anybody asks for one.
    fn names(&mut self, scope: &str, messages: &[DescriptorProto], enums: &[EnumDescriptorProto]) {
        for it in enums {
            let values = it
                .value
                .iter()
                .map(|it| (it.number(), it.name().to_owned()));
            self.enums
                .insert(within(scope, it.name()), values.collect());
        }
        for it in messages {
            let name = within(scope, it.name());
            self.names(&name, &it.nested_type, &it.enum_type);
            let empty = ProtoMessage {
                index: Vec::new(),
                fields: BTreeMap::new(),
                is_map_entry: it.options.as_ref().is_some_and(|it| it.map_entry()),
            };
            self.messages.insert(name, empty);
        }
    }

    fn messages_of(
        &mut self,
        file: &FileDescriptorProto,
        scope: &str,
        messages: &[DescriptorProto],
        outer: &[i32],
    ) -> Result<(), String> {
        for (index, it) in (0..).zip(messages) {
            let name = within(scope, it.name());
            let index = [outer, &[index]].concat();
            let mut fields = BTreeMap::new();
            for field in &it.field {
                fields.insert(field.number(), self.field(file, &name, field)?);
            }
            self.messages_of(file, &name, &it.nested_type, &index)?;
            if let Some(message) = self.messages.get_mut(&name) {
                message.index = index;
                message.fields = fields;
            }
        }
        Ok(())
    }

    fn field(
        &self,
        file: &FileDescriptorProto,
        scope: &str,
        field: &FieldDescriptorProto,
    ) -> Result<ProtoField, String> {
        let kind = match field.type_name.as_deref() {
            None => ProtoKind::Scalar(field.r#type()),
            Some(name) => self.kind(scope, name).ok_or_else(|| {
                format!(
                    "the `.proto` file has no `{name}`, of which `{scope}.{}` is",
                    field.name()
                )
            })?,
        };
        let is_proto3 = file.syntax() == "proto3";
        let is_message = matches!(kind, ProtoKind::Message(_) | ProtoKind::WellKnown(_));
        let presence = match field.label() {
            Label::Repeated => Presence::Repeated,
            Label::Required => Presence::Always,
            Label::Optional => {
                let is_seen = field.proto3_optional() || field.oneof_index.is_some() || is_message;
                match is_proto3 && !is_seen {
                    true => Presence::Always,
                    false => Presence::Optional,
                }
            }
        };
        Ok(ProtoField {
            name: field.name().to_owned(),
            kind,
            presence,
        })
    }

    /// What a name means where it stands: names are looked up from the inside to the outside.
    fn kind(&self, scope: &str, name: &str) -> Option<ProtoKind> {
        let found = |full: &str| {
            if self.messages.contains_key(full) {
                return Some(ProtoKind::Message(full.to_owned()));
            }
            if self.enums.contains_key(full) {
                return Some(ProtoKind::Enum(full.to_owned()));
            }
            let is_googles = full.starts_with("google.protobuf.");
            is_googles.then(|| ProtoKind::WellKnown(full.to_owned()))
        };
        if let Some(full) = name.strip_prefix('.') {
            return found(full);
        }
        let mut scope = Some(scope);
        while let Some(outer) = scope {
            if let Some(kind) = found(&within(outer, name)) {
                return Some(kind);
            }
            scope = match outer.rsplit_once('.') {
                Some((outer, _)) => Some(outer),
                None => (!outer.is_empty()).then_some(""),
            };
        }
        None
    }

    /// Whether a body has only what the file says about this message: a type that was written by hand may differ from it.
    ///
    /// # Errors
    ///
    /// Which field is not in the file, or is another thing there.
    pub fn check(&self, message: &str, body: &[u8]) -> Result<(), String> {
        let known = self
            .message(message)
            .ok_or_else(|| format!("the `.proto` file has no message `{message}`"))?;
        let mut rest = body;
        while !rest.is_empty() {
            let tag = varint(&mut rest)?;
            let number = i32::try_from(tag >> 3).unwrap_or(0);
            let wire = (tag & 7) as u8;
            let field = known.fields.get(&number).ok_or_else(|| {
                format!("the type writes a field {number}, which `{message}` does not have in the `.proto` file")
            })?;
            let value = value(&mut rest, wire)?;
            let is_list = field.presence == Presence::Repeated && wire == LENGTH;
            if wire != wire_of(&field.kind) && !is_list {
                return Err(format!(
                    "the type writes field {number} otherwise than `{}` of `{message}` is in the `.proto` file",
                    field.name
                ));
            }
            if let (ProtoKind::Message(inner), Some(value)) = (&field.kind, value) {
                self.check(inner, value)?;
            }
        }
        Ok(())
    }
}

const VARINT: u8 = 0;
const EIGHT_BYTES: u8 = 1;
const LENGTH: u8 = 2;
const FOUR_BYTES: u8 = 5;

/// How values of a kind are written, as [the encoding](https://protobuf.dev/programming-guides/encoding/) calls it.
fn wire_of(kind: &ProtoKind) -> u8 {
    match kind {
        ProtoKind::Enum(_) => VARINT,
        ProtoKind::Message(_) | ProtoKind::WellKnown(_) => LENGTH,
        ProtoKind::Scalar(scalar) => match scalar {
            Type::Double | Type::Fixed64 | Type::Sfixed64 => EIGHT_BYTES,
            Type::Float | Type::Fixed32 | Type::Sfixed32 => FOUR_BYTES,
            Type::String | Type::Bytes | Type::Message | Type::Group => LENGTH,
            _ => VARINT,
        },
    }
}

/// Passes over a value; one with a length is given back.
fn value<'a>(rest: &mut &'a [u8], wire: u8) -> Result<Option<&'a [u8]>, String> {
    let count = match wire {
        VARINT => {
            varint(rest)?;
            return Ok(None);
        }
        EIGHT_BYTES => 8,
        FOUR_BYTES => 4,
        LENGTH => usize::try_from(varint(rest)?).map_err(|_| broken())?,
        _ => return Err(broken()),
    };
    let (value, left) = rest.split_at_checked(count).ok_or_else(broken)?;
    *rest = left;
    Ok((wire == LENGTH).then_some(value))
}

fn varint(rest: &mut &[u8]) -> Result<u64, String> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, left) = rest.split_first().ok_or_else(broken)?;
        *rest = left;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(broken())
}

fn broken() -> String {
    "the body is not in Protocol Buffers".to_owned()
}

fn within(scope: &str, name: &str) -> String {
    match scope {
        "" => name.to_owned(),
        scope => format!("{scope}.{name}"),
    }
}
