//! The derives of Tidings: [`Event`] and [`Command`] name a type on the wire,
//! [`Sensitive`](macro@Sensitive) says which of its fields are not shown, [`macro@handler`] explains which
//! argument of a handler is wrong, and [`macro@test`] gives a test a world of its own.
//!
//! They never change what a type or a function does: without them the same code could be written by
//! hand in ten lines.

mod attributes;
mod handler;
mod message;
mod sensitive;
mod test;
mod wire_names;

use proc_macro::TokenStream;
use syn::{DeriveInput, ItemFn, parse_macro_input};

/// Makes a type an event: a fact, in the past tense, for whoever listens.
///
/// A name that is not in the past tense does not compile, because it is most likely a command in
/// disguise. All attributes are optional:
///
/// ```ignore
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(name = "order-placed.v1", topic = "order_events", key = "order_id", id = "order_id")]
/// struct OrderPlaced { order_id: String }
/// ```
///
/// | attribute | meaning | default |
/// | --- | --- | --- |
/// | `name` | the name on the wire, with its version | kebab case and `.v1` (`OrderPlacedV2` is `order-placed.v2`) |
/// | `topic` | the topic it is published to | the name |
/// | `key` | the field that order is kept by | none: no order |
/// | `id` | the field that identifies the fact, however often it is sent | none: a new id each time |
/// | `body_bytes_max` | the largest body that may be published | 65536 |
/// | `format` | what bodies are in: `"json"`, `"avro"` (the type derives `apache_avro::AvroSchema`; feature `avro`) or `"protobuf"` (the type is a `prost::Message`; feature `protobuf`). Every message is read from JSON as well | `"json"` |
/// | `proto_file`, `proto` | with `"protobuf"`: the `.proto` file, as seen from this one, and the full name of the message in it | |
/// | `unrouted` | `"park"` or `"drop"`: what happens while nobody listens | `"park"` |
/// | `not_past_tense` | the reason why the name may stand as it is | |
/// | `crate` | where `tidings` is | `::tidings` |
///
/// A field that is not to be shown to people, as a password or the token of a card, is marked with
/// `#[tidings(sensitive)]`; see [`Sensitive`](macro@Sensitive). It cannot be the `key` or the `id`, which
/// are told beside the body.
#[proc_macro_derive(Event, attributes(event, tidings))]
pub fn derive_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    message::event(&input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Makes a type a command: an instruction to exactly one target.
///
/// `target` is the consumer that carries it out, and is required; `reply` is the type of its answer, for
/// a command that is a step of a saga (`tidings::Step`); `name`, `key`, `id`,
/// `body_bytes_max`, `format`, `proto_file`, `proto`, `unrouted` and `crate` are as for [`Event`].
///
/// ```ignore
/// #[derive(Serialize, Deserialize, Command)]
/// #[command(target = "inventory", key = "order_id")]
/// struct ReserveStock { order_id: String }
/// ```
///
/// Fields are marked with `#[tidings(sensitive)]` as those of an event are.
#[proc_macro_derive(Command, attributes(command, tidings))]
pub fn derive_command(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    message::command(&input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Says which fields of a part of a message are not to be shown.
///
/// Messages have this by their own derives; derive it for the types of their fields. Each field with
/// `#[tidings(sensitive)]` is hidden, with everything in it. Fields that are not marked are looked into if
/// their type derives this, also in `Option`, `Box`, `Rc`, `Arc`, lists, sets and maps of the standard
/// library. In other types, as tuples and those of other crates, nothing is found: mark the field that holds
/// them.
///
/// ```ignore
/// #[derive(Serialize, Deserialize, Sensitive)]
/// struct Customer { name: String, #[tidings(sensitive)] email: String }
///
/// #[derive(Serialize, Deserialize, Event)]
/// struct OrderPlaced { order_id: String, customer: Customer, #[tidings(sensitive)] card: String }
///
/// assert_eq!(OrderPlaced::sensitive_paths(), ["card", "customer.email"]);
/// ```
///
/// Names are those that serde writes and reads: `rename`, `rename_all`, `alias`, `flatten`, `transparent`,
/// `skip`, `from`, `into` and the representations of enums are heeded. A mark on a field that has no name in
/// the body (in a tuple, skipped, flattened) does not compile, and neither does a generic type.
///
/// The body itself is sent as it is. `tidings` hides the values wherever it shows a message, unless it is
/// called with `--reveal`, and errors about a body say nothing of its values.
#[proc_macro_derive(Sensitive, attributes(tidings))]
pub fn derive_sensitive(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    sensitive::derive(&input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Says which part of a handler is wrong when `Router::on` does not take it.
///
/// It checks each argument and the return type where they stand, and changes nothing. Add it while
/// looking for a mistake, or leave it.
#[proc_macro_attribute]
pub fn handler(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    handler::explain(attribute.into(), &function).into()
}

/// Makes an async function a test in a world of its own: a fresh broker and store in the process,
/// and a clock that stands still until the test moves it.
///
/// The function takes nothing or a `tidings_testing::TestWorld`, which is why a crate that uses this
/// needs `tidings-testing` among its dev-dependencies. With `#[tidings::test(real_time)]` the clock
/// is the machine's.
///
/// ```ignore
/// #[tidings::test]
/// async fn a_good_order_is_paid(world: TestWorld) -> tidings::Result<()> { ... }
/// ```
#[proc_macro_attribute]
pub fn test(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    test::expand(attribute.into(), function)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
