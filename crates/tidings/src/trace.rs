//! W3C trace context: which trace a message belongs to, and whose child its handling is.
//!
//! A message carries a `traceparent` (<https://www.w3.org/TR/trace-context/>). Handling it is a span
//! of its own, whose parent is the span that the message names; what the handler sends names the
//! handler's span. So a trace stays in one piece through the outbox, the broker and deferral. A
//! message that names none begins a trace. The ids are fields of the `handle` span of `tracing`, for
//! whatever collects it.

use uuid::{Uuid, fmt::Simple};

use crate::Context;

/// The `traceparent` of the handling of a message. It is made when somebody asks: most handlings send
/// nothing, and nobody collects their spans.
pub(crate) fn of(context: &Context) -> &str {
    let above = context.envelope().traceparent.as_deref();
    let own = &context.incoming().traceparent;
    own.get_or_init(|| below(above))
}

/// A new span's `traceparent`: below the one that `above` names; the first of a trace if it names none.
pub(crate) fn below(above: Option<&str>) -> Box<str> {
    let mut traceparent = String::with_capacity(TRACEPARENT_BYTES);
    traceparent.push_str("00-");
    let mut own = [0; Simple::LENGTH];
    let random = Uuid::new_v4();
    let flags = match above.and_then(parse) {
        Some((trace_id, _, flags)) => {
            traceparent.push_str(trace_id);
            flags
        }
        None => {
            traceparent.push_str(Uuid::new_v4().simple().encode_lower(&mut own));
            "01"
        }
    };
    traceparent.push('-');
    let span_id = &random.simple().encode_lower(&mut own)[..SPAN_ID_BYTES];
    traceparent.push_str(span_id);
    traceparent.push('-');
    traceparent.push_str(flags);
    traceparent.into()
}

const SPAN_ID_BYTES: usize = 16;

/// Version, trace id, span id, flags, and what is between them.
const TRACEPARENT_BYTES: usize = 2 + 1 + 32 + 1 + SPAN_ID_BYTES + 1 + 2;

/// Trace id, span id and flags. Versions after `00` may append fields, which are passed over.
fn parse(traceparent: &str) -> Option<(&str, &str, &str)> {
    let mut fields = traceparent.split('-');
    let (version, trace, span, flags) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let is_hex = |text: &str, length| {
        text.len() == length
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let is_valid = is_hex(version, 2)
        && version != "ff"
        && (version != "00" || fields.next().is_none())
        && is_hex(trace, 32)
        && !is_zero(trace)
        && is_hex(span, 16)
        && !is_zero(span)
        && is_hex(flags, 2);
    is_valid.then_some((trace, span, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn a_span_keeps_the_trace_and_the_flags_of_the_one_above_it() {
        let first = below(Some(&format!("00-{TRACE}-{SPAN}-00")));
        let (trace_id, span_id, flags) = parse(&first).expect("a traceparent");
        assert_eq!(trace_id, TRACE);
        assert_ne!(span_id, SPAN);
        assert_eq!(flags, "00", "the decision to sample stays");
        assert_eq!(first.len(), TRACEPARENT_BYTES);
        let second = below(Some(&first));
        let (trace_id, next_span_id, _) = parse(&second).expect("a traceparent");
        assert_eq!(trace_id, TRACE);
        assert_ne!(next_span_id, span_id);
    }

    #[test]
    fn what_is_no_trace_context_begins_a_trace() {
        let zeros = "0".repeat(32);
        let bad = [
            String::new(),
            "00".into(),
            format!("00-{TRACE}-{SPAN}"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-01-more"),
        ];
        for traceparent in bad {
            let first = below(Some(&traceparent));
            let (trace_id, _, flags) = parse(&first).expect("a traceparent");
            assert_ne!(trace_id, TRACE, "{traceparent}");
            assert_eq!(flags, "01");
        }
        let of_later_version = format!("01-{TRACE}-{SPAN}-01-more");
        assert!(below(Some(&of_later_version)).contains(TRACE));
    }
}
