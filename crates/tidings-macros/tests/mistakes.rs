//! Mistakes that do not compile, and what the compiler says about each.

#[test]
fn a_mistake_does_not_compile_and_the_message_says_what_to_do() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
