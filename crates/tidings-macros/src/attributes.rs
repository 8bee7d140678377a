//! What stands in `#[event(...)]` and `#[command(...)]`.

use proc_macro2::Span;
use syn::{
    Data, DeriveInput, Error, Expr, Ident, LitInt, LitStr, Path, Result, Type,
    meta::ParseNestedMeta, parse_quote,
};

/// The longest name or topic in bytes: leaves room for `consumer.`, `.dead` and `.retry.` in the
/// 255 bytes that AMQP gives a queue's name.
const NAME_BYTES_MAX: usize = 120;

pub(crate) struct Attributes {
    pub(crate) name: Option<LitStr>,
    pub(crate) topic: Option<LitStr>,
    pub(crate) target: Option<LitStr>,
    pub(crate) reply: Option<Type>,
    pub(crate) key: Option<Expr>,
    pub(crate) id: Option<Expr>,
    pub(crate) body_bytes_max: Option<LitInt>,
    pub(crate) drop_unrouted: bool,
    pub(crate) not_past_tense: Option<LitStr>,
    pub(crate) format: Option<Format>,
    pub(crate) proto: Option<LitStr>,
    pub(crate) proto_file: Option<LitStr>,
    pub(crate) tidings: Path,
}

/// What bodies are written in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Avro,
    Protobuf,
}

impl Attributes {
    /// Reads the attributes called `kind`.
    pub(crate) fn read(kind: &str, input: &DeriveInput) -> Result<Self> {
        let mut attributes = Self {
            name: None,
            topic: None,
            target: None,
            reply: None,
            key: None,
            id: None,
            body_bytes_max: None,
            drop_unrouted: false,
            not_past_tense: None,
            format: None,
            proto: None,
            proto_file: None,
            tidings: parse_quote!(::tidings),
        };
        for attribute in &input.attrs {
            if attribute.path().is_ident(kind) {
                attribute.parse_nested_meta(|meta| attributes.take(kind, &meta, input))?;
            }
        }
        attributes.check_format(input)?;
        Ok(attributes)
    }

    /// Protocol Buffers need a schema, and nothing else has one there.
    fn check_format(&self, input: &DeriveInput) -> Result<()> {
        let is_protobuf = self.format == Some(Format::Protobuf);
        match (is_protobuf, &self.proto, &self.proto_file) {
            (true, Some(_), Some(_)) | (false, None, None) => Ok(()),
            (true, ..) => Err(Error::new(
                input.ident.span(),
                "bodies in Protocol Buffers have a schema: name the file, as seen from this one, and the message in it: \
                 `format = \"protobuf\", proto_file = \"../proto/orders.proto\", proto = \"shop.v1.OrderPlaced\"`",
            )),
            (false, one, other) => Err(Error::new(
                one.as_ref()
                    .or(other.as_ref())
                    .map_or_else(Span::call_site, LitStr::span),
                "`proto` and `proto_file` are of bodies in Protocol Buffers: say `format = \"protobuf\"` as well",
            )),
        }
    }

    fn take(&mut self, kind: &str, meta: &ParseNestedMeta<'_>, input: &DeriveInput) -> Result<()> {
        let event = kind == "event";
        match meta.path.get_ident().map(Ident::to_string).as_deref() {
            Some("name") => self.name = Some(wire_name(meta)?),
            Some("topic") if event => self.topic = Some(wire_name(meta)?),
            Some("target") if !event => self.target = Some(wire_name(meta)?),
            Some("reply") if !event => self.reply = Some(meta.value()?.parse()?),
            Some("key") => self.key = Some(field(meta, input)?),
            Some("id") => self.id = Some(field(meta, input)?),
            Some("body_bytes_max") => self.body_bytes_max = Some(meta.value()?.parse()?),
            Some("unrouted") => self.drop_unrouted = drop_unrouted(meta)?,
            Some("not_past_tense") if event => self.not_past_tense = Some(reason(meta)?),
            Some("format") => self.format = Some(format(meta)?),
            Some("proto") => self.proto = Some(meta.value()?.parse()?),
            Some("proto_file") => self.proto_file = Some(meta.value()?.parse()?),
            Some("crate") => self.tidings = meta.value()?.parse::<LitStr>()?.parse()?,
            Some("topic") => {
                return Err(meta.error(
                    "a command has no topic: it goes to the queue of its `target` alone; if \
                     everybody may listen, it is an event",
                ));
            }
            Some("reply") => {
                return Err(meta.error(
                    "nobody replies to an event: whoever listens may announce events of its own; \
                     what is to be answered is a `Command`",
                ));
            }
            Some("target") => {
                return Err(meta.error(
                    "an event has no target: whoever listens gets it; if it tells one service \
                     what to do, derive `Command`",
                ));
            }
            _ => {
                let own = if event {
                    "`topic`, `not_past_tense`"
                } else {
                    "`target`, `reply`"
                };
                return Err(meta.error(format!(
                    "unknown attribute; `{kind}` knows `name`, `key`, `id`, `body_bytes_max`, \
                     `unrouted`, `format`, `proto`, `proto_file`, `crate`, {own}"
                )));
            }
        }
        Ok(())
    }
}

fn wire_name(meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let literal: LitStr = meta.value()?.parse()?;
    check_wire_name(&literal.value(), literal.span())?;
    Ok(literal)
}

pub(crate) fn check_wire_name(name: &str, span: Span) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) {
        return Err(Error::new(
            span,
            format!(
                "a name on the wire has 1 to {NAME_BYTES_MAX} letters, digits, `.`, `-` and `_`"
            ),
        ));
    }
    Ok(())
}

/// `"order_id"`, or `"order.id"` for a field of a field, as an expression on `self`.
fn field(meta: &ParseNestedMeta<'_>, input: &DeriveInput) -> Result<Expr> {
    let literal: LitStr = meta.value()?.parse()?;
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(
            literal.span(),
            "only a struct can name a field here; make it a struct with the enum inside",
        ));
    };
    let path = literal.value();
    let first = path.split('.').next().unwrap_or_default();
    let names: Vec<String> = data.fields.members().map(member_name).collect();
    if !names.iter().any(|name| name == first) {
        return Err(Error::new(
            literal.span(),
            format!(
                "`{}` has no field `{first}`; it has {}",
                input.ident,
                names
                    .iter()
                    .map(|name| format!("`{name}`"))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        ));
    }
    syn::parse_str::<Expr>(&format!("self.{path}"))
        .map(|expression| respan(expression, &literal))
        .map_err(|_| Error::new(literal.span(), "this is not the name of a field"))
}

fn member_name(member: syn::Member) -> String {
    match member {
        syn::Member::Named(name) => name.to_string(),
        syn::Member::Unnamed(index) => index.index.to_string(),
    }
}

/// Points errors about the field's type at the literal that names it.
fn respan(mut expression: Expr, literal: &LitStr) -> Expr {
    let mut next = &mut expression;
    while let Expr::Field(field) = next {
        if let syn::Member::Named(name) = &mut field.member {
            name.set_span(literal.span());
        }
        next = &mut field.base;
    }
    expression
}

fn format(meta: &ParseNestedMeta<'_>) -> Result<Format> {
    let literal: LitStr = meta.value()?.parse()?;
    match literal.value().as_str() {
        "json" => Ok(Format::Json),
        "avro" => Ok(Format::Avro),
        "protobuf" => Ok(Format::Protobuf),
        _ => Err(Error::new(
            literal.span(),
            "`format` is \"json\" (the default), \"avro\" or \"protobuf\"",
        )),
    }
}

fn drop_unrouted(meta: &ParseNestedMeta<'_>) -> Result<bool> {
    let literal: LitStr = meta.value()?.parse()?;
    match literal.value().as_str() {
        "park" => Ok(false),
        "drop" => Ok(true),
        _ => Err(Error::new(
            literal.span(),
            "`unrouted` is \"park\" (wait in the outbox until somebody listens) or \"drop\"",
        )),
    }
}

fn reason(meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let literal: LitStr = meta.value()?.parse()?;
    if literal.value().trim().is_empty() {
        return Err(Error::new(
            literal.span(),
            "say why the name may stand as it is",
        ));
    }
    Ok(literal)
}
