//! `#[tidings::test]`: hands an async test function a world of its own.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, Ident, ItemFn, Result, spanned::Spanned};

pub(crate) fn expand(attribute: TokenStream, mut function: ItemFn) -> Result<TokenStream> {
    let is_real_time = if attribute.is_empty() {
        false
    } else {
        let option: Ident = syn::parse2(attribute.clone())?;
        if option != "real_time" {
            let why = "`#[tidings::test]` knows one option, `real_time`";
            return Err(Error::new(option.span(), why));
        }
        true
    };
    if function.sig.asyncness.is_none() {
        let why = "a test in a world is an `async fn`";
        return Err(Error::new(function.sig.fn_token.span, why));
    }
    let body = match function.sig.inputs.len() {
        0 => quote!(|_| body()),
        1 => quote!(body),
        _ => {
            let why = "a test takes nothing, or a `TestWorld`";
            return Err(Error::new(function.sig.inputs.span(), why));
        }
    };
    let name = function.sig.ident.clone();
    let output = &function.sig.output.clone();
    let visibility = function.vis.clone();
    let attributes = std::mem::take(&mut function.attrs);
    function.sig.ident = Ident::new("body", name.span());
    function.vis = syn::Visibility::Inherited;
    Ok(quote! {
        #(#attributes)*
        #[::core::prelude::v1::test]
        #visibility fn #name() #output {
            #function
            ::tidings_testing::run_test(#is_real_time, #body)
        }
    })
}
