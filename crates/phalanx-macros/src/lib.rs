//! `#[phalanx::task]` and `#[phalanx::main]`.
#![warn(missing_docs)]

use proc_macro::TokenStream;
use quote::{format_ident, quote};
use syn::parse::Parser;
use syn::{FnArg, ItemFn, Path, ReturnType, parse_macro_input, parse_quote};

/// Reads `crate = path`, the only option.
fn home(attribute: TokenStream) -> syn::Result<Path> {
    let mut home: Path = parse_quote!(::phalanx);
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("crate") {
            home = meta.value()?.parse()?;
            return Ok(());
        }
        Err(meta.error("the only option is `crate = path::to::phalanx`"))
    });
    parser.parse(attribute)?;
    Ok(home)
}

fn error(tokens: &impl quote::ToTokens, message: &str) -> TokenStream {
    syn::Error::new_spanned(tokens, message)
        .to_compile_error()
        .into()
}

/// Registers a function under its path, so that workers of any executable that links it can be told to call it.
///
/// The function stays what it is and is still called as ever. It takes up to eight parameters, all serde values, and returns one. It is
/// not generic, `async`, `unsafe` or a method: a task is named, and these have no name of their own.
#[proc_macro_attribute]
pub fn task(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let home = match home(attribute) {
        Ok(home) => home,
        Err(error) => return error.to_compile_error().into(),
    };
    let function = parse_macro_input!(item as ItemFn);
    let signature = &function.sig;
    if !signature.generics.params.is_empty() {
        return error(
            &signature.generics,
            "a task cannot be generic: it has one name and one code; write a function per type",
        );
    }
    if let Some(token) = &signature.asyncness {
        return error(
            token,
            "a task cannot be async: a worker runs it to its end; block on the future inside",
        );
    }
    if let Some(token) = &signature.unsafety {
        return error(
            token,
            "a task cannot be unsafe: nobody at the other end keeps the promise",
        );
    }
    if let Some(receiver) = signature
        .inputs
        .iter()
        .find(|input| matches!(input, FnArg::Receiver(_)))
    {
        return error(
            receiver,
            "a task cannot be a method; pass the value as an argument",
        );
    }
    if signature.inputs.len() > 8 {
        return error(
            &signature.inputs,
            "a task takes up to eight parameters; put them into a struct",
        );
    }
    let name = &signature.ident;
    let text = name.to_string();
    quote! {
        #function

        #home::__private::inventory::submit! {
            #home::__private::Registered {
                name: ::core::concat!(::core::module_path!(), "::", #text),
                type_id: || #home::__private::type_id_of(&#name),
                trampoline: || #home::__private::trampoline_of(&#name),
            }
        }
    }
    .into()
}

/// Lets a program start itself as a worker: put it on `main`.
///
/// Before the body runs, a process that was started as a worker becomes one and never comes back. After the body, children
/// that are no daemons are joined, and daemons ended.
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let home = match home(attribute) {
        Ok(home) => home,
        Err(error) => return error.to_compile_error().into(),
    };
    let mut function = parse_macro_input!(item as ItemFn);
    if function.sig.ident != "main" {
        return error(
            &function.sig.ident,
            "#[phalanx::main] goes on the program's `main`",
        );
    }
    if let Some(token) = &function.sig.asyncness {
        return error(
            token,
            "put #[phalanx::main] on a `main` that is not async, and start the executor in it: a worker must not start one",
        );
    }
    if !function.sig.inputs.is_empty() {
        return error(&function.sig.inputs, "`main` takes no parameters");
    }
    let inner = format_ident!("__phalanx_main");
    function.sig.ident = inner.clone();
    let outer_return = function.sig.output.clone();
    let outer_return = match &outer_return {
        ReturnType::Default => quote!(),
        ReturnType::Type(arrow, kind) => quote!(#arrow #kind),
    };
    quote! {
        fn main() #outer_return {
            #function
            #home::__private::enter();
            let result = #inner();
            #home::__private::leave_children();
            result
        }
    }
    .into()
}
