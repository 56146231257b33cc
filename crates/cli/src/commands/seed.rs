//! Reads the files for a guest's first boot.

use crate::args::seed::SeedArgs;
use fleetward_api::seed::{Seed, SeedAddress, SeedText};
use fleetward_model::{ErrorCode, Failure};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use zeroize::Zeroizing;

/// Longest file taken, bytes.
const MAX_FILE: u64 = 256 << 10;

/// None where nothing was asked for.
pub(super) fn seed_of(args: SeedArgs) -> Result<Option<Seed>, Failure> {
    let mut ssh_keys = Vec::new();
    for file in &args.ssh_keys {
        let text = read(file)?;
        let lines = text.lines().map(str::trim);
        ssh_keys.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    let text = |file: Option<_>| -> Result<_, Failure> {
        let file = file.as_deref().map(read).transpose()?;
        Ok(file.map(SeedText::new))
    };
    let seed = Seed {
        ssh_keys,
        user_data: text(args.user_data)?,
        unattend: text(args.unattend)?,
        address: args.address.map(|address| SeedAddress {
            address,
            gateway: args.gateway,
            dns: args.dns,
        }),
        values: match &args.values {
            Some(file) => values(file)?,
            None => BTreeMap::new(),
        },
    };
    Ok((!seed.is_empty()).then_some(seed))
}

fn values(file: &Path) -> Result<BTreeMap<String, SeedText>, Failure> {
    let text = read(file)?;
    let mut values = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        // The value may be secret, so it is no part of the error.
        let (key, value) = line.split_once('=').ok_or_else(|| {
            let what = format!("cannot use {}", file.display());
            Failure::new(ErrorCode::SeedInvalid, what)
                .because(format!("line {} is not KEY=VALUE", at + 1))
        })?;
        let value = SeedText::new(Zeroizing::new(value.to_owned()));
        values.insert(key.trim().to_owned(), value);
    }
    Ok(values)
}

fn read(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let unreadable = |error: io::Error| {
        Failure::new(
            ErrorCode::InvalidArgument,
            format!("cannot read {}", file.display()),
        )
        .because(error)
    };
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    let mut text = Zeroizing::new(String::new());
    opened
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE {
        let because = format!("it has more than {MAX_FILE} bytes");
        return Err(unreadable(io::Error::other(because)));
    }
    Ok(text)
}
