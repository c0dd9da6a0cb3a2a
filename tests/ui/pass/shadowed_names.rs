//! A module that gives other meanings to everything an expansion could be tempted to call by its short name.
#![deny(warnings)]
#![allow(dead_code)]

mod picom_user {
    pub struct Result;
    pub struct Option;
    pub struct Vec;
    pub struct String;
    pub struct Box;
    pub struct Arc;
    pub struct Cow;
    pub struct Some;
    pub struct None;
    pub struct Ok;
    pub struct Err;
    pub trait Send {}
    pub trait Sync {}
    pub trait Clone {}
    pub trait Debug {}
    pub trait Future {}
    pub trait Service {}
    pub trait Serialize {}
    pub trait Deserialize {}
    pub mod std {}
    pub mod core {}
    pub mod serde {}
    pub mod picom {}
    pub struct Channel;
    pub struct Call;
    pub struct Incoming;
    pub struct Kind;
    pub struct Unary;

    /// Also the name of the server's type parameter, and those of an alias of it.
    #[derive(::serde::Serialize, ::serde::Deserialize)]
    pub struct S;

    #[::picom::service]
    pub trait Shadowed {
        async fn one(&self, s: S, list: ::std::vec::Vec<i64>) -> ::std::result::Result<S, ::picom::Status>;
        async fn two(&self, data: ::std::vec::Vec<u8>) -> S;
        async fn three(
            &self,
            body: ::picom::Streaming<S>,
        ) -> ::std::result::Result<impl ::futures::Stream<Item = S>, ::picom::Status>;
    }

    pub struct Own;

    #[::picom::service]
    impl Own {
        pub async fn one(&self, s: S) -> ::std::result::Result<S, ::picom::Status> {
            ::std::result::Result::Ok(s)
        }
    }
}

fn main() {}
