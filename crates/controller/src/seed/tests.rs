//! What is on the medium, and what is refused.

use super::*;
use fleetward_api::seed::SeedText;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN1Mkbpxn3+P5aaVoz7Z79ixyeiEMPvVf4Z987ELO/He somebody";
const ANSWERS: &str = r#"<unattend xmlns="urn:schemas-microsoft-com:unattend"><n>{{fleetward.computer_name}}</n><p>{{fleetward.password}}</p></unattend>"#;

fn spec_of(name: &str) -> VmSpec {
    serde_json::from_value(json!({"v3": {
        "id": "6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01", "name": name, "group": "default", "profile": "linux", "cpus": 1,
        "memory": 1 << 30, "firmware": {"type": "uefi", "secure_boot": true}, "tpm": true, "disks": [],
        "nics": [{"id": "nic-0", "network": "nat", "model": "virtio", "mac": "52:54:00:12:34:56"}],
        "created": "2026-11-26T00:00:00Z",
    }}))
    .expect("a specification")
}

fn secret(text: &str) -> SeedText {
    SeedText::new(Zeroizing::new(text.to_owned()))
}

fn full() -> Seed {
    Seed {
        ssh_keys: vec![KEY.to_owned()],
        user_data: Some(secret(
            "#cloud-config\nfqdn: {{fleetward.host_name}}.example\nruncmd: ['echo @{a} {{ v1.x }}']\n",
        )),
        unattend: Some(secret(ANSWERS)),
        address: Some(SeedAddress {
            address: "10.0.0.5/24".parse().expect("an address"),
            gateway: Some("10.0.0.1".parse().expect("an address")),
            dns: vec!["10.0.0.2".parse().expect("an address")],
        }),
        values: [("password".to_owned(), secret("a<b&c"))].into(),
    }
}

fn text_of(seed: &Seed) -> Result<String, Failure> {
    let medium = medium(seed, &spec_of("Web_1"))?;
    Ok(String::from_utf8_lossy(&medium.0).into_owned())
}

#[test]
fn a_guest_finds_its_name_its_keys_its_address_and_its_values() {
    let text = text_of(&full()).expect("a medium");
    for part in [
        "CD001",
        "cidata",
        r#""local-hostname":"web-1""#,
        KEY,
        "fqdn: web-1.example",
        // Others' braces stay.
        "echo @{a} {{ v1.x }}",
        r#""addresses":["10.0.0.5/24"]"#,
        r#""via":"10.0.0.1""#,
        "<n>web-1</n><p>a&lt;b&amp;c</p>",
    ] {
        assert!(text.contains(part), "{part} is not on the medium");
    }
}

#[test]
fn a_stock_tool_reads_every_file_by_its_name() {
    let medium = medium(&full(), &spec_of("web")).expect("a medium");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("seed.iso");
    std::fs::write(&file, &medium.0[..]).expect("written");
    let out = std::process::Command::new("xorriso")
        .args(["-osirrox", "on", "-indev"])
        .arg(&file)
        .args(["-extract", "/"])
        .arg(dir.path().join("out"))
        .output()
        .expect("xorriso is installed");
    assert!(out.status.success(), "{out:?}");
    let read =
        |name: &str| std::fs::read_to_string(dir.path().join("out").join(name)).expect("a file");
    let meta: Value = serde_json::from_str(&read("meta-data")).expect("JSON");
    assert_eq!(meta["public-keys"], json!([KEY]));
    assert!(read("user-data").starts_with("#cloud-config\n"));
    assert!(read("network-config").contains("macaddress"));
    assert!(read("autounattend.xml").contains("unattend"));
}

type Change<'a> = &'a dyn Fn(&mut Seed);

/// Windows' installer looks for `autounattend.xml` in the root of any medium that can be removed, and reads Joliet names
/// (Microsoft, "Windows Setup Automation Overview", implicit answer file search order). `isoinfo` is another implementation
/// than the one that writes.
#[test]
fn windows_setup_finds_its_answer_file_by_its_joliet_name() {
    let medium = medium(&full(), &spec_of("web")).expect("a medium");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("seed.iso");
    std::fs::write(&file, &medium.0[..]).expect("written");
    let isoinfo = |arguments: &[&str]| {
        let mut command = std::process::Command::new("isoinfo");
        let out = command.arg("-i").arg(&file).args(arguments).output();
        let out = out.expect("isoinfo is installed");
        assert!(out.status.success(), "{arguments:?}: {out:?}");
        String::from_utf8(out.stdout).expect("text")
    };
    let volume = isoinfo(&["-d"]);
    for part in [
        "CD-ROM is in ISO 9660 format",
        "Volume id: cidata",
        "Joliet with UCS level 3 found",
    ] {
        assert!(volume.contains(part), "{part:?} is not in {volume}");
    }
    let joliet = isoinfo(&["-d", "-J"]);
    assert!(joliet.contains("Volume id: cidata"), "{joliet}");
    let mut names: Vec<String> = isoinfo(&["-J", "-f"]).lines().map(str::to_owned).collect();
    names.sort();
    let wanted = [
        "/autounattend.xml",
        "/meta-data",
        "/network-config",
        "/user-data",
    ];
    assert_eq!(names, wanted);
    let answers = isoinfo(&["-J", "-x", "/autounattend.xml"]);
    let document = roxmltree::Document::parse(&answers).expect("XML");
    let root = document.root_element();
    assert!(root.has_tag_name(("urn:schemas-microsoft-com:unattend", "unattend")));
    let texts: Vec<_> = root.children().filter_map(|child| child.text()).collect();
    assert_eq!(texts, ["web", "a<b&c"]);
}

#[test]
fn what_would_leave_a_guest_unset_is_refused_with_its_place() {
    let with = |change: &dyn Fn(&mut Seed)| {
        let mut seed = full();
        change(&mut seed);
        text_of(&seed).expect_err("refused").to_string()
    };
    let cases: [(Change<'_>, &str); 9] = [
        (
            &|s| s.user_data = Some(secret("packages: [x]")),
            "begins with a line",
        ),
        (
            &|s| s.user_data = Some(secret("#cloud-config\na: [b")),
            "no valid cloud-config",
        ),
        (
            &|s| s.user_data = Some(secret("#!/bin/sh\n{{fleetward.nmae}}")),
            "line 2 of the user data asks for nmae",
        ),
        (
            &|s| s.user_data = Some(secret("#!/bin/sh {{fleetward.name")),
            "does not end",
        ),
        (
            &|s| s.unattend = Some(secret("<unattend/>")),
            "root element",
        ),
        (&|s| s.unattend = Some(secret("<a>")), "no XML"),
        (&|s| s.ssh_keys = vec!["ssh-rsa AAAA".into()], "SSH key"),
        (
            &|s| s.ssh_keys = vec!["-----BEGIN OPENSSH PRIVATE KEY-----".into()],
            "private key",
        ),
        (
            &|s| {
                s.address.as_mut().expect("an address").gateway =
                    Some("192.168.1.1".parse().expect("an address"))
            },
            "not in the network",
        ),
    ];
    for (change, word) in cases {
        let said = with(change);
        assert!(
            said.contains("SEED_INVALID") && said.contains(word),
            "{word}: {said}"
        );
        assert!(!said.contains("a<b&c"), "a value is shown: {said}");
    }
}

#[test]
fn a_name_that_windows_cannot_have_is_refused_only_where_it_is_asked_for() {
    let long = spec_of("a-name-of-twenty-two-x");
    let mut seed = full();
    let refused = medium(&seed, &long).err().expect("refused").to_string();
    assert!(refused.contains("15 characters"), "{refused}");
    seed.unattend = None;
    assert!(medium(&seed, &long).is_ok());
}
