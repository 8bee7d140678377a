//! W3C trace context: which trace a message belongs to, and whose child its handling is.
//!
//! A message carries a `traceparent` (<https://www.w3.org/TR/trace-context/>). Handling it is a span
//! of its own, whose parent is the span that the message names; what the handler sends names the
//! handler's span. So a trace stays in one piece through the outbox, the broker and deferral. A
//! message that names none begins a trace. The ids are fields of the `handle` span of `tracing`, for
//! whatever collects it.

use uuid::Uuid;

/// One span's place in a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    /// 32 hexadecimal digits.
    pub(crate) trace_id: String,
    /// 16 hexadecimal digits.
    pub(crate) span_id: String,
    /// The span this one belongs to, if it is known.
    pub(crate) parent_id: Option<String>,
    flags: String,
}

impl Trace {
    /// A new span below the one that `traceparent` names; the first of a trace if it names none.
    pub(crate) fn below(traceparent: Option<&str>) -> Self {
        let span_id = Uuid::new_v4().simple().to_string()[..16].to_owned();
        match traceparent.and_then(parse) {
            Some((trace_id, parent_id, flags)) => Self {
                trace_id: trace_id.to_owned(),
                span_id,
                parent_id: Some(parent_id.to_owned()),
                flags: flags.to_owned(),
            },
            None => Self {
                trace_id: Uuid::new_v4().simple().to_string(),
                span_id,
                parent_id: None,
                flags: "01".to_owned(),
            },
        }
    }

    /// What a message carries that this span sends.
    pub(crate) fn traceparent(&self) -> String {
        format!("00-{}-{}-{}", self.trace_id, self.span_id, self.flags)
    }
}

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
    fn a_span_is_the_child_of_the_one_that_is_named_and_keeps_its_trace() {
        let trace = Trace::below(Some(&format!("00-{TRACE}-{SPAN}-00")));
        assert_eq!(trace.trace_id, TRACE);
        assert_eq!(trace.parent_id.as_deref(), Some(SPAN));
        assert_ne!(trace.span_id, SPAN);
        let next = Trace::below(Some(&trace.traceparent()));
        assert_eq!(next.trace_id, TRACE);
        assert_eq!(next.parent_id, Some(trace.span_id));
        assert!(
            next.traceparent().ends_with("-00"),
            "the decision to sample stays"
        );
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
            let trace = Trace::below(Some(&traceparent));
            assert_eq!(trace.parent_id, None, "{traceparent}");
            assert!(parse(&trace.traceparent()).is_some());
        }
        let of_later_version = format!("01-{TRACE}-{SPAN}-01-more");
        assert_eq!(Trace::below(Some(&of_later_version)).trace_id, TRACE);
    }
}
