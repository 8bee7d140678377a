//! The implementations that the derives write.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{DeriveInput, Error, Expr, LitStr, Result, spanned::Spanned};
use tidings_names::check_past_tense;

use crate::{
    attributes::{Attributes, Format, check_wire_name},
    sensitive,
};

pub(crate) fn event(input: &DeriveInput) -> Result<TokenStream> {
    let attributes = Attributes::read("event", input)?;
    let ident = &input.ident;
    if attributes.not_past_tense.is_none()
        && let Err(explanation) = check_past_tense(&ident.to_string())
    {
        let explanation = format!(
            "{explanation}\n\
             if it is an instruction to one service, derive `Command`\n\
             if the name is right all the same, say why: `#[event(not_past_tense = \"reason\")]`"
        );
        return Err(Error::new(ident.span(), explanation));
    }
    let name = wire_name(&attributes, input)?;
    let topic = attributes.topic.as_ref().unwrap_or(&name);
    let tidings = &attributes.tidings;
    let message = message(
        &attributes,
        input,
        &name,
        &quote!(#tidings::Destination::topic(#topic)),
    )?;
    Ok(quote! {
        #message
        impl #tidings::Event for #ident {}
    })
}

pub(crate) fn command(input: &DeriveInput) -> Result<TokenStream> {
    let attributes = Attributes::read("command", input)?;
    let ident = &input.ident;
    let Some(target) = &attributes.target else {
        return Err(Error::new(
            ident.span(),
            "a command tells one consumer what to do: name it with \
             `#[command(target = \"inventory\")]`; if it says what happened, derive `Event`",
        ));
    };
    let name = wire_name(&attributes, input)?;
    let queue = LitStr::new(
        &format!("{}.{}", target.value(), name.value()),
        target.span(),
    );
    let tidings = &attributes.tidings;
    let message = message(
        &attributes,
        input,
        &name,
        &quote!(#tidings::Destination::queue(#queue)),
    )?;
    let step = attributes.reply.as_ref().map(|reply| {
        quote! {
            impl #tidings::Step for #ident {
                type Reply = #reply;
            }
        }
    });
    Ok(quote! {
        #message
        impl #tidings::Command for #ident {
            const TARGET: &'static str = #target;
        }
        #step
    })
}

fn wire_name(attributes: &Attributes, input: &DeriveInput) -> Result<LitStr> {
    if let Some(name) = &attributes.name {
        return Ok(name.clone());
    }
    let name = tidings_names::wire_name(&input.ident.to_string());
    check_wire_name(&name, input.ident.span())?;
    Ok(LitStr::new(&name, input.ident.span()))
}

fn message(
    attributes: &Attributes,
    input: &DeriveInput,
    name: &LitStr,
    destination: &TokenStream,
) -> Result<TokenStream> {
    if !input.generics.params.is_empty() {
        return Err(Error::new(
            input.generics.span(),
            "a message has one name and one shape on the wire, so it cannot be generic",
        ));
    }
    let ident = &input.ident;
    let tidings = &attributes.tidings;
    let body_bytes_max = attributes
        .body_bytes_max
        .as_ref()
        .map(|limit| quote!(const BODY_BYTES_MAX: usize = #limit;));
    let unrouted = attributes
        .drop_unrouted
        .then(|| quote!(const UNROUTED: #tidings::Unrouted = #tidings::Unrouted::Drop;));
    let is_step = attributes.reply.as_ref().map(|_| {
        quote!(
            const IS_STEP: bool = true;
        )
    });
    sensitive::refuse_marked(input, "key", attributes.key.as_ref())?;
    sensitive::refuse_marked(input, "identity", attributes.id.as_ref())?;
    let sensitive = sensitive::implementation(input, tidings)?;
    let body = body(attributes);
    let key = text_of(attributes.key.as_ref(), "key");
    let identity = text_of(attributes.id.as_ref(), "identity");
    // One for each type, made when it is first needed.
    let codec = (attributes.format == Some(Format::Avro)).then(|| {
        quote! {
            impl #tidings::avro::InAvro for #ident {
                fn codec() -> &'static #tidings::avro::Codec {
                    static CODEC: ::std::sync::LazyLock<#tidings::avro::Codec> =
                        ::std::sync::LazyLock::new(#tidings::avro::Codec::of::<#ident>);
                    &CODEC
                }
            }
        }
    });
    Ok(quote! {
        #codec
        impl #tidings::Message for #ident {
            const NAME: &'static str = #name;
            const DESTINATION: #tidings::Destination = #destination;
            #body_bytes_max
            #is_step
            #unrouted
            #body
            #key
            #identity

            fn sensitive_paths() -> ::std::vec::Vec<::std::string::String> {
                #tidings::SensitivePaths::of::<Self>()
            }
        }
        #sensitive
    })
}

/// How bodies are written and read that are not in JSON.
fn body(attributes: &Attributes) -> Option<TokenStream> {
    let tidings = &attributes.tidings;
    let bytes = quote!(::std::result::Result<::std::vec::Vec<u8>, #tidings::BodyError>);
    let schema = quote!(::std::option::Option<#tidings::BodySchema>);
    match attributes.format? {
        Format::Json => None,
        Format::Avro => Some(quote! {
            const CONTENT_TYPE: &'static str = #tidings::avro::CONTENT_TYPE;

            fn to_body(&self) -> #bytes {
                <Self as #tidings::avro::InAvro>::codec().write(self)
            }

            fn from_body(
                body: &[u8],
                content_type: &str,
            ) -> ::std::result::Result<Self, #tidings::BodyError> {
                <Self as #tidings::avro::InAvro>::codec().read(body, content_type)
            }

            fn body_schema() -> #schema {
                ::std::option::Option::Some(<Self as #tidings::avro::InAvro>::codec().schema())
            }
        }),
        Format::Protobuf => {
            let (file, message) = (&attributes.proto_file, &attributes.proto);
            Some(quote! {
                const CONTENT_TYPE: &'static str =
                    ::std::concat!("application/protobuf; proto=", #message);

                fn to_body(&self) -> #bytes {
                    #tidings::protobuf::write(self)
                }

                fn from_body(
                    body: &[u8],
                    content_type: &str,
                ) -> ::std::result::Result<Self, #tidings::BodyError> {
                    #tidings::protobuf::read(body, content_type)
                }

                fn body_schema() -> #schema {
                    ::std::option::Option::Some(#tidings::BodySchema::Protobuf {
                        file: ::std::borrow::Cow::Borrowed(::std::include_str!(#file)),
                        message: ::std::borrow::Cow::Borrowed(#message),
                    })
                }
            })
        }
    }
}

/// A method that gives a field as text.
fn text_of(field: Option<&Expr>, method: &str) -> Option<TokenStream> {
    let field = field?;
    let method = syn::Ident::new(method, proc_macro2::Span::call_site());
    let text = quote_spanned!(field.span()=> ::std::string::ToString::to_string(&#field));
    Some(quote! {
        fn #method(&self) -> ::std::option::Option<::std::borrow::Cow<'_, str>> {
            ::std::option::Option::Some(::std::borrow::Cow::Owned(#text))
        }
    })
}
