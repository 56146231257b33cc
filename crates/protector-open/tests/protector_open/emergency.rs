//! The recipe of docs/emergency-recovery.md, run as it stands there, up to a TPM that opens with stock swtpm.

use crate::support::{ALPHA, BETA, Bench, sealed, tpm_key, vm};
use fleetward_model::guardian::CertificateRole;
use fleetward_protector_open::pfx;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use zeroize::Zeroizing;

const RECIPE: &str = include_str!("../../../../docs/emergency-recovery.md");
const PASSWORD: &str = "correct horse battery staple";

/// The fenced block of the recipe with this name after its language.
fn block(name: &str) -> &'static str {
    let fence = format!("```sh {name}\n");
    let (_, rest) = RECIPE
        .split_once(&fence)
        .unwrap_or_else(|| panic!("the recipe has no block {name}"));
    rest.split_once("```").unwrap().0
}

/// Runs a block in the bench's directory; `virsh` there prints the definition of the test's VM.
fn run(bench: &Bench, script: &str) -> Output {
    let path = format!(
        "{}:/usr/sbin:/usr/bin:/sbin:/bin",
        bench.path("bin").display()
    );
    Command::new("/bin/bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(bench.path("."))
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn succeed(bench: &Bench, script: &str) -> String {
    let output = run(bench, script);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{script}\n{}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A directory with what steps 1 and 2 leave: PFX files, password, and a `virsh` that prints the VM.
fn prepared() -> Bench {
    let bench = Bench::new();
    let protector = sealed(&ALPHA, &[BETA.public().clone()]);
    let text = protector.to_base64();
    // libvirt keeps the text as it is; people wrap lines.
    let wrapped: Vec<&str> = text
        .as_bytes()
        .chunks(76)
        .map(|c| std::str::from_utf8(c).unwrap())
        .collect();
    let xml = format!(
        "<domain type='kvm'><name>vault</name><uuid>{}</uuid><metadata><fleetward:vm xmlns:fleetward=\"https://fleetward.dev/ns/vm/1\" \
         version=\"1\"><fleetward:record>{{}}</fleetward:record><fleetward:key_protector>\n{}\n</fleetward:key_protector></fleetward:vm></metadata></domain>",
        vm(),
        wrapped.join("\n")
    );
    bench.write("definition.xml", xml.as_bytes());
    std::fs::create_dir(bench.path("bin")).unwrap();
    let virsh = bench.write(
        "bin/virsh",
        b"#!/bin/sh\n[ \"$1 $2\" = 'dumpxml vault' ] && exec cat definition.xml\n",
    );
    std::fs::set_permissions(virsh, PermissionsExt::from_mode(0o755)).unwrap();
    for role in [CertificateRole::Signing, CertificateRole::Encryption] {
        let file = pfx::export(
            &ALPHA,
            role,
            &Zeroizing::new(PASSWORD.to_owned()),
            pfx::Protection::Aes256,
        )
        .unwrap();
        bench.write(pfx::file_name(role), &file);
    }
    bench.write("password", PASSWORD.as_bytes());
    bench
}

/// TPM state made by stock swtpm_setup under the test's TPM key.
fn manufacture(bench: &Bench, directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    bench.write("manufacture-key", tpm_key().expose_base64().as_bytes());
    let script = format!(
        "swtpm_setup --tpm2 --tpmstate {} --pwdfile-fd 3 --cipher aes-256-cbc --logfile /dev/null 3< manufacture-key; rm manufacture-key",
        directory.display()
    );
    succeed(bench, &script);
}

#[test]
fn the_documented_commands_give_the_key_and_open_the_tpm_state() {
    let bench = prepared();
    assert!(succeed(&bench, block("take-protector")).contains(&vm().to_string()));
    let shown = succeed(&bench, block("open-record"));
    assert!(
        shown.contains(&vm().to_string()) && !shown.contains(tpm_key().expose_base64().as_str()),
        "{shown}"
    );

    let state = bench.path("var/tpm2");
    manufacture(&bench, &state);
    let script = block("open-state").replace(
        "/var/lib/libvirt/swtpm/$(jq -r .vm_id record.json)/tpm2",
        &state.display().to_string(),
    );
    assert_ne!(script, block("open-state"));
    succeed(&bench, &script);
    assert!(bench.read("permanent-in-clear").len() > 500);

    succeed(&bench, block("clean-up"));
    assert!(!bench.path("tpm-key").exists() && !bench.path("record.json").exists());
}

#[test]
fn the_tpm_state_does_not_open_with_another_key() {
    let bench = prepared();
    succeed(&bench, block("take-protector"));
    succeed(&bench, block("open-record"));
    let record = String::from_utf8(bench.read("record.json")).unwrap();
    let other = fleetward_protector_open::TpmKey::generate()
        .unwrap()
        .expose_base64();
    bench.write(
        "record.json",
        record
            .replace(tpm_key().expose_base64().as_str(), &other)
            .as_bytes(),
    );
    let state = bench.path("var/tpm2");
    manufacture(&bench, &state);
    let script = block("open-state").replace(
        "/var/lib/libvirt/swtpm/$(jq -r .vm_id record.json)/tpm2",
        &state.display().to_string(),
    );
    assert!(!run(&bench, &script).status.success());
    assert!(!bench.path("permanent-in-clear").exists());
}

#[test]
fn the_owner_can_be_taken_from_the_protector_and_the_guardians_be_read() {
    let bench = prepared();
    succeed(&bench, block("take-protector"));
    let owner = succeed(&bench, block("owner-from-protector"));
    assert!(
        owner
            .to_lowercase()
            .contains(&ALPHA.public().signing().serial()),
        "{owner}"
    );
    let shown: serde_json::Value =
        serde_json::from_str(&succeed(&bench, block("inspect"))).unwrap();
    assert_eq!(shown["vm_id"], vm().to_string());
    assert_eq!(shown["guardians"].as_array().unwrap().len(), 2);
}
