//! `#[tidings(sensitive)]`: where the marked fields are in the JSON that serde makes of a type.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, Field, Fields, GenericParam, Ident, Member, Path,
    Result, Variant, parse_quote, spanned::Spanned,
};

use crate::wire_names::{Rules, Serde};

/// `#[derive(Sensitive)]`.
pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    let mut tidings: Path = parse_quote!(::tidings);
    for attribute in of_ours(&input.attrs) {
        attribute.parse_nested_meta(|meta| match meta.path.is_ident("crate") {
            true => {
                tidings = meta.value()?.parse::<syn::LitStr>()?.parse()?;
                Ok(())
            }
            false => {
                Err(meta.error("a type knows `crate`; it is fields that are marked `sensitive`"))
            }
        })?;
    }
    implementation(input, &tidings)
}

/// The implementation of `Sensitive` for a message or a part of one.
pub(crate) fn implementation(input: &DeriveInput, tidings: &Path) -> Result<TokenStream> {
    let is_type = |it: &&GenericParam| matches!(it, GenericParam::Type(_));
    if let Some(parameter) = input.generics.params.iter().find(is_type) {
        return Err(Error::new(
            parameter.span(),
            "what is sensitive in a generic type depends on its parameters, which cannot be asked; write a \
             type for each, or mark the field that holds it",
        ));
    }
    let ident = &input.ident;
    let (generics, arguments, conditions) = input.generics.split_for_impl();
    let looks = looks(input, tidings)?;
    Ok(quote! {
        impl #generics #tidings::Sensitive for #ident #arguments #conditions {
            #[allow(unused_imports, unused_variables)]
            fn sensitive(into: &mut #tidings::SensitivePaths) {
                use #tidings::NotMarked as _;
                #looks
            }
        }
    })
}

/// Refuses marks on what a message is known by, which is told beside the body.
pub(crate) fn refuse_marked(input: &DeriveInput, what: &str, named: Option<&Expr>) -> Result<()> {
    let (Some(named), Data::Struct(data)) = (named, &input.data) else {
        return Ok(());
    };
    let first = first_member(named);
    for (member, field) in data.fields.members().zip(&data.fields) {
        if let Some(first) = first.filter(|it| **it == member)
            && is_marked(field)?
        {
            return Err(Error::new(
                first.span(),
                format!(
                    "a sensitive field cannot be the {what} of a message, which is told in headers, logs \
                     and lists; use another field, or send a hash of it in a field of its own"
                ),
            ));
        }
    }
    Ok(())
}

/// The field `a` in `self.a.b`.
fn first_member(mut expression: &Expr) -> Option<&Member> {
    let mut first = None;
    while let Expr::Field(field) = expression {
        first = Some(&field.member);
        expression = &field.base;
    }
    first
}

/// Statements that tell the paths `into`.
fn looks(input: &DeriveInput, tidings: &Path) -> Result<TokenStream> {
    let serde = Serde::read(&input.attrs)?;
    if !serde.in_its_place.is_empty() {
        refuse_all_marks(input)?;
        let others = &serde.in_its_place;
        return Ok(quote! { #(#tidings::FieldOf::<#others>::new().look(into);)* });
    }
    match &input.data {
        Data::Struct(data) => of_fields(
            &data.fields,
            serde.rename_all,
            serde.is_transparent,
            tidings,
        ),
        Data::Enum(data) => {
            let variants = data.variants.iter();
            variants.map(|it| of_variant(it, &serde, tidings)).collect()
        }
        Data::Union(data) => Err(Error::new(
            data.union_token.span(),
            "a union has no fields in JSON",
        )),
    }
}

fn of_variant(variant: &Variant, of: &Serde, tidings: &Path) -> Result<TokenStream> {
    if let Some(attribute) = of_ours(&variant.attrs).next() {
        return Err(Error::new(
            attribute.span(),
            "it is fields that are marked: write it in the variant, before the field",
        ));
    }
    let serde = Serde::read(&variant.attrs)?;
    let rules = serde.rename_all.or(of.rename_all_fields);
    let inside = of_fields(&variant.fields, rules, false, tidings)?;
    if serde.is_skipped() || matches!(variant.fields, Fields::Unit) {
        return Ok(TokenStream::new());
    }
    let names = match (&of.tag, &of.content) {
        _ if of.is_untagged || serde.is_untagged => return Ok(inside),
        (Some(_), None) => return Ok(inside),
        (Some(_), Some(content)) => vec![content.clone()],
        (None, _) => serde.of_variant(&variant.ident, of.rename_all),
    };
    Ok(quote! { into.under(&[#(#names),*], |into| { #inside }); })
}

fn of_fields(
    fields: &Fields,
    rules: Rules,
    is_transparent: bool,
    tidings: &Path,
) -> Result<TokenStream> {
    let is_list = matches!(fields, Fields::Unnamed(fields) if fields.unnamed.len() > 1);
    let of_field = |field: &Field| {
        let serde = Serde::read(&field.attrs)?;
        let is_marked = is_marked(field)?;
        let refuse = |why: &str| match is_marked {
            true => Err(Error::new(field.span(), why)),
            false => Ok(()),
        };
        if serde.is_skipped() {
            refuse("this field is not in the body: serde skips it")?;
            return Ok(TokenStream::new());
        }
        if is_list {
            refuse("a field of a tuple has no name in the body: give the fields names")?;
        }
        if serde.is_flattened {
            refuse(
                "a flattened field has no name in the body: mark the fields of its type and derive \
                 `Sensitive` for it, or do not flatten it",
            )?;
        }
        let of_type = &field.ty;
        let look = match is_marked {
            true => quote! { into.mark(); },
            false => quote! { #tidings::FieldOf::<#of_type>::new().look(into); },
        };
        let name = field.ident.as_ref();
        let Some(name) = name.filter(|_| !is_transparent && !serde.is_flattened) else {
            return Ok(look);
        };
        let names = serde.of_field(name, rules);
        Ok(quote! { into.under(&[#(#names),*], |into| { #look }); })
    };
    fields.iter().map(of_field).collect()
}

/// Whether it is marked as sensitive.
fn is_marked(field: &Field) -> Result<bool> {
    let own = |it: &&Attribute| it.path().is_ident("event") || it.path().is_ident("command");
    if let Some(attribute) = field.attrs.iter().find(own) {
        return Err(Error::new(
            attribute.span(),
            "this stands before the type; a sensitive field is marked with `#[tidings(sensitive)]`",
        ));
    }
    let mut is_marked = false;
    for attribute in of_ours(&field.attrs) {
        attribute.parse_nested_meta(|meta| {
            if meta
                .path
                .get_ident()
                .is_none_or(|it: &Ident| it != "sensitive")
            {
                return Err(meta.error("unknown attribute; a field knows `sensitive`"));
            }
            is_marked = true;
            Ok(())
        })?;
    }
    Ok(is_marked)
}

fn refuse_all_marks(input: &DeriveInput) -> Result<()> {
    let fields: Vec<&Field> = match &input.data {
        Data::Struct(data) => data.fields.iter().collect(),
        Data::Enum(data) => data.variants.iter().flat_map(|it| &it.fields).collect(),
        Data::Union(_) => Vec::new(),
    };
    for field in fields {
        if is_marked(field)? {
            return Err(Error::new(
                field.span(),
                "this field is not in the body: serde writes another type in its place; mark the fields of \
                 that one and derive `Sensitive` for it",
            ));
        }
    }
    Ok(())
}

fn of_ours(attributes: &[Attribute]) -> impl Iterator<Item = &Attribute> {
    attributes.iter().filter(|it| it.path().is_ident("tidings"))
}
