//! What `#[picom::service]` accepts and what it says about everything else.
//!
//! Owns the cases in `tests/ui`: `pass` holds odd but valid services, `fail` one rejected form per file with the
//! message beside it. It must never test how calls behave. Look next at `tests/macro_forms.rs`.
//!
//! A few messages (`send_*`, `sync_service`, `wrong_implementation`, `pattern_mut`) are the compiler's own and change with it:
//! `TRYBUILD=overwrite cargo test --test macro_ui` writes them anew, to be read before they are committed.

#[test]
fn accepted_forms_compile() {
    trybuild::TestCases::new().pass("tests/ui/pass/*.rs");
}

#[test]
fn rejected_forms_say_where_and_what_to_do() {
    trybuild::TestCases::new().compile_fail("tests/ui/fail/*.rs");
}
