//! The medium that a guest finds at its first boot: cloud-init's NoCloud (which Cloudbase-Init reads, too) and Windows'
//! answer file, on an ISO 9660 volume with the label `cidata`.
//!
//! Everything is checked before anything is made: a guest that finds a broken file boots, and nobody learns why it is
//! not set up.

mod medium;
mod placeholder;

use crate::agents::Agent;
use fleetward_api::seed::{Seed, SeedAddress};
use fleetward_model::vm::VmSpec;
use fleetward_model::{ErrorCode, Failure, VmId, VmName};
use placeholder::Values;
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// Longest text of one file, bytes, with its placeholders filled in.
const MAX_TEXT: usize = 256 << 10;
/// Most SSH keys, and most values of one's own.
const MAX_ENTRIES: usize = 64;

/// How user data may begin (cloud-init's documentation, "User data formats"; Cloudbase-Init's, "Userdata").
const BEGINNINGS: [&str; 6] = [
    "#",
    "Content-Type:",
    "MIME-Version:",
    "From ",
    "rem cmd",
    "<",
];

/// A finished medium; zeroed after use.
pub(crate) struct Medium(Zeroizing<Vec<u8>>);

/// The medium for that VM.
///
/// # Errors
/// [`ErrorCode::SeedInvalid`] names what is wrong, and where.
pub(crate) fn medium(seed: &Seed, spec: &VmSpec) -> Result<Medium, Failure> {
    let values = values(seed, spec)?;
    let mut files = vec![
        ("meta-data", text(&meta_data(seed, spec)?)),
        // NoCloud takes the medium only with both files.
        (
            "user-data",
            Zeroizing::new("#cloud-config\n{}\n".to_owned()),
        ),
    ];
    if let Some(template) = &seed.user_data {
        files[1].1 = user_data(&values.fill(template.expose(), "user data", &as_it_is)?)?;
    }
    if let Some(address) = &seed.address {
        files.push(("network-config", text(&network(address, spec)?)));
    }
    if let Some(template) = &seed.unattend {
        let filled = values.fill(template.expose(), "answer file", &xml_escaped)?;
        files.push(("autounattend.xml", answer_file(filled)?));
    }
    for (name, content) in &files {
        if content.len() > MAX_TEXT {
            return Err(invalid(format!(
                "{name} has {} bytes, and at most {MAX_TEXT} are taken",
                content.len()
            )));
        }
    }
    medium::iso(&files).map(Medium)
}

/// Gives `to` the medium that `from` has for that VM, if it has one still.
pub(crate) async fn carry(from: &Agent, to: &Agent, vm: VmId) -> Result<(), Failure> {
    match from.seed(vm).await? {
        Some(content) => to.put_seed(vm, &content).await,
        None => Ok(()),
    }
}

impl Medium {
    /// Puts it on the host. Before the job that makes the VM: a job's record would hold it.
    pub(crate) async fn place(&self, agent: &Agent, vm: VmId) -> Result<(), Failure> {
        agent.put_seed(vm, &self.0).await
    }
}

fn invalid(because: impl Into<String>) -> Failure {
    Failure::new(
        ErrorCode::SeedInvalid,
        "what the guest is to find at its first boot cannot be used",
    )
    .because(because.into())
}

fn text(value: &Value) -> Zeroizing<String> {
    // JSON is YAML, and needs no care about quotes.
    Zeroizing::new(format!("{value}\n"))
}

fn meta_data(seed: &Seed, spec: &VmSpec) -> Result<Value, Failure> {
    if seed.ssh_keys.len() > MAX_ENTRIES {
        return Err(invalid(format!("at most {MAX_ENTRIES} SSH keys are taken")));
    }
    for line in &seed.ssh_keys {
        public_key(line)?;
    }
    Ok(json!({
        "instance-id": spec.id.to_string(),
        "local-hostname": host_name(&spec.name),
        "public-keys": seed.ssh_keys,
    }))
}

fn public_key(line: &str) -> Result<(), Failure> {
    if line.contains("PRIVATE KEY") {
        return Err(invalid(
            "one of the SSH keys is a private key, which belongs nowhere but to its owner",
        )
        .fix("give the public half: --ssh-key ~/.ssh/id_ed25519.pub"));
    }
    ssh_key::PublicKey::from_openssh(line)
        .map(drop)
        .map_err(|error| invalid(format!("an SSH key cannot be read: {error}")))
}

/// A name as a host name (RFC 1123, section 2.1).
fn host_name(name: &VmName) -> String {
    name.as_str()
        .to_ascii_lowercase()
        .replace('_', "-")
        .trim_end_matches(['.', '-'])
        .to_owned()
}

/// cloud-init's network configuration, version 2.
fn network(address: &SeedAddress, spec: &VmSpec) -> Result<Value, Failure> {
    let nic = spec
        .nics
        .first()
        .ok_or_else(|| invalid("an address needs a network card, and the VM has none"))?;
    let mut card = json!({
        "match": { "macaddress": nic.mac },
        "addresses": [address.address.to_string()],
    });
    if let Some(gateway) = address.gateway {
        if !address.address.contains(&gateway) {
            return Err(invalid(format!(
                "the gateway {gateway} is not in the network of {}",
                address.address
            )));
        }
        card["routes"] = json!([{ "to": "default", "via": gateway.to_string() }]);
    }
    if !address.dns.is_empty() {
        let servers: Vec<_> = address.dns.iter().map(ToString::to_string).collect();
        card["nameservers"] = json!({ "addresses": servers });
    }
    Ok(json!({ "version": 2, "ethernets": { "nic0": card } }))
}

fn user_data(text: &str) -> Result<Zeroizing<String>, Failure> {
    let first = text.lines().next().unwrap_or_default();
    if !BEGINNINGS.iter().any(|known| first.starts_with(known)) {
        return Err(invalid(
            "user data begins with a line that says what it is, and this does not",
        )
        .fix("begin the file with #cloud-config, or with #! for a script"));
    }
    if first.trim_end() == "#cloud-config" {
        serde_norway::from_str::<serde_norway::Value>(text)
            .map_err(|error| error.to_string())
            .and_then(|value| match value {
                serde_norway::Value::Mapping(_) | serde_norway::Value::Null => Ok(()),
                _ => Err("it is no mapping of keys to values".to_owned()),
            })
            .map_err(|because| invalid(format!("user data is no valid cloud-config: {because}")))?;
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// Microsoft, "Answer files (unattend.xml)": the root element and its namespace.
fn answer_file(text: Zeroizing<String>) -> Result<Zeroizing<String>, Failure> {
    let document = roxmltree::Document::parse(&text)
        .map_err(|error| invalid(format!("the answer file is no XML: {error}")))?;
    let root = document.root_element();
    if !root.has_tag_name(("urn:schemas-microsoft-com:unattend", "unattend")) {
        return Err(invalid(
            "the answer file's root element is not <unattend xmlns=\"urn:schemas-microsoft-com:unattend\">",
        ));
    }
    Ok(text)
}

fn values(seed: &Seed, spec: &VmSpec) -> Result<Values, Failure> {
    if seed.values.len() > MAX_ENTRIES {
        return Err(invalid(format!("at most {MAX_ENTRIES} values are taken")));
    }
    let mut values = Values::new();
    values.set("name", spec.name.to_string());
    values.set("id", spec.id.to_string());
    values.set("host_name", host_name(&spec.name));
    // NetBIOS names, which Windows computer names are, have at most 15 characters.
    match host_name(&spec.name) {
        name if name.len() <= 15 && !name.contains('.') => values.set("computer_name", name),
        name => values.refuse(
            "computer_name",
            format!("{name:?} is no computer name: those have at most 15 characters and no dot"),
        ),
    }
    match spec.nics.first() {
        Some(nic) => values.set("mac", nic.mac.clone()),
        None => values.refuse("mac", "the VM has no network card".to_owned()),
    }
    let address = seed.address.as_ref();
    let mut of_address = |key: &str, value: Option<String>| match value {
        Some(value) => values.set(key, value),
        None => values.refuse(
            key,
            format!("no {key} was given with --address or --gateway"),
        ),
    };
    of_address("address", address.map(|a| a.address.addr().to_string()));
    of_address(
        "prefix",
        address.map(|a| a.address.prefix_len().to_string()),
    );
    of_address(
        "gateway",
        address
            .and_then(|a| a.gateway)
            .map(|gateway| gateway.to_string()),
    );
    for (key, value) in &seed.values {
        let sound = !key.is_empty()
            && key.len() <= 63
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !sound {
            return Err(invalid(format!(
                "{key:?} cannot name a value: names have letters, digits and _, at most 63"
            )));
        }
        if values.is_known(key) {
            return Err(invalid(format!("the value {key} is Fleetward's own")));
        }
        values.set(key, value.expose().to_owned());
    }
    Ok(values)
}

fn as_it_is(value: &str) -> String {
    value.to_owned()
}

fn xml_escaped(value: &str) -> String {
    quick_xml::escape::escape(value).into_owned()
}

#[cfg(test)]
mod tests;
