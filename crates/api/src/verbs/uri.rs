//! Where a verb is asked for: its path with the parameters' values, and its query.

use super::{Carried, Verb};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::fmt::Write;

/// RFC 3986's unreserved characters stay as they are.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Path and query of one request; values cannot add segments or parameters.
///
/// # Errors
/// A query that is no list of values.
pub fn uri<V: Verb>(
    path: V::Path<'_>,
    request: &V::Request,
) -> Result<String, serde_html_form::ser::Error> {
    let mut uri = String::new();
    let mut values = path.as_ref().iter();
    let mut rest = V::PATH;
    while let Some((before, parameter)) = rest.split_once('{') {
        let (_, after) = parameter.split_once('}').expect("braces come in pairs");
        let value = values.next().expect("the type has a value for each");
        uri.push_str(before);
        write!(uri, "{}", utf8_percent_encode(value, ESCAPED)).expect("strings take all writes");
        rest = after;
    }
    uri.push_str(rest);
    match V::CARRIED {
        Carried::Query | Carried::Upload => {
            let query = serde_html_form::to_string(request)?;
            if !query.is_empty() {
                uri.push('?');
                uri.push_str(&query);
            }
        }
        Carried::Nowhere | Carried::Body => {}
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::VmQuery;
    use crate::verbs::{VmList, VmRecover, VmShow};

    #[test]
    fn values_in_a_query_cannot_add_parameters() {
        let query = VmQuery {
            labels: vec!["a=b&tpm=true c".into(), "d=e".into()],
            tpm: Some(true),
            ..VmQuery::default()
        };
        let uri = uri::<VmList>([], &query).expect("a query");
        assert_eq!(
            uri,
            "/v1/vms?label=a%3Db%26tpm%3Dtrue+c&label=d%3De&tpm=true"
        );
    }

    #[test]
    fn a_value_in_a_path_is_one_segment_of_it() {
        let uri = uri::<VmShow>(["../hosts/ä?x"], &()).expect("a path");
        assert_eq!(uri, "/v1/vms/..%2Fhosts%2F%C3%A4%3Fx");
    }

    #[test]
    fn a_body_is_no_part_of_it() {
        let request = crate::controller::RecoverRequest {
            to: "b".parse().expect("a name"),
            version: None,
            outdated: false,
            dry_run: false,
        };
        let uri = uri::<VmRecover>(["web"], &request).expect("a path");
        assert_eq!(uri, "/v1/vms/web/recover");
    }
}
