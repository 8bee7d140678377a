//! `#[handler]`: one assertion per argument, each at the argument's place.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{Error, FnArg, ItemFn, ReturnType, Type, spanned::Spanned};

/// The message and the most extractors a handler can have.
const ARGUMENTS_MAX: usize = 9;

pub(crate) fn explain(attribute: TokenStream, function: &ItemFn) -> TokenStream {
    let checks = checks(attribute, function).unwrap_or_else(Error::into_compile_error);
    quote! {
        #function
        #checks
    }
}

fn checks(attribute: TokenStream, function: &ItemFn) -> syn::Result<TokenStream> {
    if !attribute.is_empty() {
        return Err(Error::new(
            attribute.span(),
            "`#[handler]` takes no arguments",
        ));
    }
    let signature = &function.sig;
    if signature.asyncness.is_none() {
        return Err(Error::new(
            signature.fn_token.span,
            "a handler is an `async fn`",
        ));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new(
            signature.generics.span(),
            "`#[handler]` cannot look into generic functions; take it away here",
        ));
    }
    let types = signature
        .inputs
        .iter()
        .map(|argument| match argument {
            FnArg::Typed(argument) => Ok(&*argument.ty),
            FnArg::Receiver(receiver) => Err(Error::new(
                receiver.span(),
                "a handler is a free function; share things with `State<T>`",
            )),
        })
        .collect::<syn::Result<Vec<&Type>>>()?;
    let Some((message, extractors)) = types.split_first() else {
        return Err(Error::new(
            signature.paren_token.span.join(),
            "a handler takes its message first; the message is the subscription",
        ));
    };
    if types.len() > ARGUMENTS_MAX {
        return Err(Error::new(
            types[ARGUMENTS_MAX].span(),
            "a handler takes its message and at most eight extractors; put some in one struct \
             that implements `FromContext`",
        ));
    }
    let ReturnType::Type(_, returned) = &signature.output else {
        return Err(Error::new(
            signature.ident.span(),
            "a handler returns `tidings::Result<T>`: `Ok` acknowledges, `Err` tries again",
        ));
    };
    let argument = match is_batch(message) {
        true => quote!(FromBatch),
        false => quote!(FromContext),
    };
    let assertions = std::iter::once(assert(message, &quote!(HandlerInput)))
        .chain(extractors.iter().map(|ty| assert(ty, &argument)))
        .chain(std::iter::once(assert(returned, &quote!(HandlerResult))));
    Ok(quote!(const _: () = { #(#assertions)* };))
}

/// By its name: an alias goes unnoticed here, and `Router::on` refuses the handler anyway.
fn is_batch(ty: &Type) -> bool {
    let Type::Path(path) = ty else { return false };
    let last = path.path.segments.last();
    last.is_some_and(|segment| segment.ident == "Batch")
}

fn assert(ty: &Type, required: &TokenStream) -> TokenStream {
    quote_spanned! {ty.span()=>
        const _: () = {
            const fn check<T: ::tidings::#required>() {}
            check::<#ty>()
        };
    }
}
