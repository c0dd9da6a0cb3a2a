//! What `#[picom::service]` accepts and what it says about everything else.
//!
//! Owns the cases in `tests/ui`: `pass` holds odd but valid services, `fail` one rejected form per file with the
//! message beside it. It must never test how calls behave. Look next at `tests/macro_forms.rs`.

#[test]
fn accepted_forms_compile() {
    trybuild::TestCases::new().pass("tests/ui/pass/*.rs");
}

#[test]
fn rejected_forms_say_where_and_what_to_do() {
    trybuild::TestCases::new().compile_fail("tests/ui/fail/*.rs");
}
