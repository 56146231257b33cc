//! `verb!`: how a verb is declared.
//!
//! ```text
//! verb! {
//!     /// What it does; OpenAPI says the same.
//!     VmStop = post "/v1/vms/{vm}/stop" ("vm" = "name or id"),
//!     operation: "vm_stop" in "vms",               its operationId, and the tag it is listed under
//!     access: Operator in Vm,                      a role, JoinToken or Password; where it reaches (nothing: the whole fleet)
//!     request: json(StopRequest),                  json | query | upload (query and bytes), or none
//!     answer: json(Accepted) { 202, 200 = "it is stopped already" },
//!                                                  json | list | pages | lines, or document | text | picture | nothing |
//!                                                  socket; its statuses
//!     patience: long,                              only where the answer waits for all hosts
//! }
//! ```

macro_rules! verb {
    (
        $(#[doc = $doc:tt])*
        $name:ident = $method:ident $path:tt ($($parameter:tt $(= $about:tt)?),*),
        operation: $operation:tt in $tag:tt,
        access: $access:ident $(in $reach:ident)?,
        request: $carried:ident $(($request:ident))?,
        answer: $form:ident $(($answer:ident))? { $($status:tt $(= $said:tt)?),* },
        $(patience: $patience:ident,)?
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        const _: () = {
            $crate::verbs::declare::operation! {
                { $(#[doc = $doc])* }
                { $method, path = $path, operation_id = $operation, }
                [ $(($parameter = String, Path $(, description = $about)?),)* ]
                $carried $($request)?;
                $form $($answer)? { $(($status $(, $said)?))* }
            }

            impl $crate::verbs::Verb for $name {
                const METHOD: &'static str = $crate::verbs::declare::method!($method);
                const PATH: &'static str = $path;
                const OPERATION: &'static str = $operation;
                const TAG: &'static str = $tag;
                const ACCESS: $crate::verbs::Access = $crate::verbs::declare::access!($access);
                const REACH: $crate::verbs::Reach = $crate::verbs::declare::reach!($($reach)?);
                const CARRIED: $crate::verbs::Carried = $crate::verbs::declare::carried!($carried);
                const FORM: $crate::verbs::Form = $crate::verbs::declare::form!($form);
                const LONG: bool = $crate::verbs::declare::is_long!($($patience)?);

                type Path<'a> = [&'a str; <[&str]>::len(&[$($parameter),*])];
                type Request = $crate::verbs::declare::request!($carried $($request)?);
                type Answer = $crate::verbs::declare::answer!($form $($answer)?);

                fn describe() -> $crate::verbs::Description {
                    use utoipa::__dev::SchemaReferences;
                    let mut schemas = Vec::new();
                    __path_operation::schemas(&mut schemas);
                    $crate::verbs::Description {
                        methods: <__path_operation as utoipa::Path>::methods(),
                        operation: <__path_operation as utoipa::Path>::operation(),
                        schemas,
                    }
                }
            }
        };
    };
}

/// The operation as utoipa takes it: the request is added first, then the answer.
macro_rules! operation {
    ($doc:tt $set:tt [$($path:tt)*] none; $($answer:tt)*) => {
        $crate::verbs::declare::operation! { @answer $doc $set {params($($path)*),} $($answer)* }
    };
    ($doc:tt $set:tt [$($path:tt)*] json $request:ident; $($answer:tt)*) => {
        $crate::verbs::declare::operation! { @answer $doc $set {params($($path)*), request_body = $request,} $($answer)* }
    };
    ($doc:tt $set:tt [$($path:tt)*] query $request:ident; $($answer:tt)*) => {
        $crate::verbs::declare::operation! { @answer $doc $set {params($($path)* $request),} $($answer)* }
    };
    ($doc:tt $set:tt [$($path:tt)*] upload $request:ident; $($answer:tt)*) => {
        $crate::verbs::declare::operation! { @answer $doc $set {
            params($($path)* $request),
            request_body(content = Vec<u8>, content_type = "application/octet-stream"),
        } $($answer)* }
    };
    (@answer $doc:tt $set:tt $request:tt json $answer:ident { $(($status:tt $(, $said:tt)?))* }) => {
        $crate::verbs::declare::operation! { @whole $doc $set $request
            { $((status = $status, body = $answer $(, description = $said)?)),* } }
    };
    (@answer $doc:tt $set:tt $request:tt list $answer:ident { $(($status:tt $(, $said:tt)?))* }) => {
        $crate::verbs::declare::operation! { @whole $doc $set $request
            { $((status = $status, body = Vec<$answer> $(, description = $said)?)),* } }
    };
    (@answer $doc:tt $set:tt $request:tt pages $answer:ident { $(($status:tt $(, $said:tt)?))* }) => {
        $crate::verbs::declare::operation! { @whole $doc $set $request
            { $((status = $status, content(
                (Vec<$answer> = "application/json"),
                ($answer = "application/x-ndjson")
            ) $(, description = $said)?)),* } }
    };
    (@answer $doc:tt $set:tt $request:tt lines $answer:ident { $(($status:tt $(, $said:tt)?))* }) => {
        $crate::verbs::declare::operation! { @whole $doc $set $request
            { $((status = $status, body = $answer, content_type = "application/x-ndjson" $(, description = $said)?)),* } }
    };
    (@answer $doc:tt $set:tt $request:tt text { $(($status:tt $(, $said:tt)?))* }) => {
        $crate::verbs::declare::operation! { @whole $doc $set $request
            { $((status = $status, body = String, content_type = "text/plain" $(, description = $said)?)),* } }
    };
    (@answer $doc:tt $set:tt $request:tt picture { $(($status:tt $(, $said:tt)?))* }) => {
        $crate::verbs::declare::operation! { @whole $doc $set $request
            { $((status = $status, body = Vec<u8>, content_type = "image/png" $(, description = $said)?)),* } }
    };
    // document, nothing, socket: statuses say all
    (@answer $doc:tt $set:tt $request:tt $form:ident { $(($status:tt $(, $said:tt)?))* }) => {
        $crate::verbs::declare::operation! { @whole $doc $set $request
            { $((status = $status $(, description = $said)?)),* } }
    };
    (@whole { $($doc:tt)* } { $($set:tt)* } { $($request:tt)* } { $($responses:tt)* }) => {
        $($doc)*
        #[utoipa::path($($set)* $($request)* responses($($responses)*))]
        #[expect(dead_code, reason = "only its description is of use")]
        fn operation() {}
    };
}

macro_rules! method {
    (get) => {
        "GET"
    };
    (post) => {
        "POST"
    };
    (put) => {
        "PUT"
    };
    (patch) => {
        "PATCH"
    };
    (delete) => {
        "DELETE"
    };
}

macro_rules! access {
    (JoinToken) => {
        $crate::verbs::Access::JoinToken
    };
    (Password) => {
        $crate::verbs::Access::Password
    };
    ($role:ident) => {
        $crate::verbs::Access::Role($crate::controller::Role::$role)
    };
}

macro_rules! reach {
    () => {
        $crate::verbs::Reach::Fleet
    };
    ($reach:ident) => {
        $crate::verbs::Reach::$reach
    };
}

macro_rules! carried {
    (none) => {
        $crate::verbs::Carried::Nowhere
    };
    (json) => {
        $crate::verbs::Carried::Body
    };
    (query) => {
        $crate::verbs::Carried::Query
    };
    (upload) => {
        $crate::verbs::Carried::Upload
    };
}

macro_rules! form {
    (json) => {
        $crate::verbs::Form::Json
    };
    (list) => {
        $crate::verbs::Form::Json
    };
    (pages) => {
        $crate::verbs::Form::Pages
    };
    (document) => {
        $crate::verbs::Form::Document
    };
    (lines) => {
        $crate::verbs::Form::Lines
    };
    (text) => {
        $crate::verbs::Form::Text
    };
    (nothing) => {
        $crate::verbs::Form::Nothing
    };
    (picture) => {
        $crate::verbs::Form::Picture
    };
    (socket) => {
        $crate::verbs::Form::WebSocket
    };
}

macro_rules! is_long {
    () => {
        false
    };
    (long) => {
        true
    };
}

macro_rules! request {
    (none) => {
        ()
    };
    ($carried:ident $request:ident) => {
        $request
    };
}

macro_rules! answer {
    (list $answer:ident) => { Vec<$answer> };
    (pages $answer:ident) => { Vec<$answer> };
    ($form:ident $answer:ident) => { $answer };
    (document) => { serde_json::Value };
    (text) => { String };
    ($form:ident) => { () };
}

pub(super) use {access, answer, carried, form, is_long, method, operation, reach, request, verb};
