//! `docs/openapi.json` is what the handlers say; `cargo xtask generate` writes it.

#[test]
fn the_checked_in_description_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let generated = fleetward_controller::openapi_json();
    if std::env::var_os("FLEETWARD_GENERATE").is_some() {
        std::fs::write(path, generated).expect("write docs/openapi.json");
        return;
    }
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        checked_in == generated,
        "docs/openapi.json is out of date: cargo xtask generate"
    );
}
