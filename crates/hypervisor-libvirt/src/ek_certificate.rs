//! Provides swtpm_setup with an EK certificate from this process.
//!
//! swtpm_setup calls a program of our choice for each endorsement key and reads the certificate from a file:
//! ```text
//!  agent --starts--> swtpm_setup --starts--> swtpm-ek-certificate --type ek --ek KEY --dir DIR --configfile SOCKET
//!    ^                                                |
//!    +---- KEY over the socket, certificate back -----+--> DIR/ek.cert
//! ```
//! There is one socket for each TPM that is being made, in a directory that only root can enter; its path is passed as
//! the "configuration file". Request: KEY's text, end of stream. Answer: one byte (0: a certificate follows, 1: a
//! reason follows), then the rest. The private key of the issuer stays in the agent.

use fleetward_hypervisor::EkPublic;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Name under which the agent's program answers swtpm_setup.
pub const EK_CERTIFICATE_TOOL: &str = "swtpm-ek-certificate";

/// Longest text of a key; an RSA-4096 modulus has 1024 digits.
const MAX_KEY: u64 = 4096;
/// Longest certificate; a TPM's NV index holds 2048 bytes.
const MAX_CERTIFICATE: u64 = 2048;
const ISSUED: u8 = 0;
const REFUSED: u8 = 1;

/// The program's whole life, to be called when `argv[0]` ends with [`EK_CERTIFICATE_TOOL`].
pub fn ek_certificate_tool_main() -> ExitCode {
    match Request::from_arguments(std::env::args().skip(1)).and_then(|r| fetch(&r)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // swtpm_setup passes this on to its own caller.
            let _ = writeln!(io::stderr(), "{EK_CERTIFICATE_TOOL}: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// What swtpm_setup says on the command line, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    key: String,
    directory: PathBuf,
    socket: PathBuf,
}

impl Request {
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut kind, mut key, mut directory, mut socket) = (None, None, None, None);
        while let Some(argument) = arguments.next() {
            let slot = match argument.as_str() {
                "--type" => &mut kind,
                "--ek" => &mut key,
                "--dir" => &mut directory,
                "--configfile" => &mut socket,
                // The rest describes the TPM's make; the issuer knows it.
                _ => continue,
            };
            *slot = arguments.next();
        }
        if kind.as_deref() != Some("ek") {
            return Err(format!("only EK certificates are issued, not {kind:?}"));
        }
        let needed = |value: Option<String>, name| value.ok_or(format!("{name} is missing"));
        Ok(Self {
            key: needed(key, "--ek")?,
            directory: needed(directory, "--dir")?.into(),
            socket: needed(socket, "--configfile")?.into(),
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "swtpm_setup reads it at once and removes it"
)]
fn fetch(request: &Request) -> Result<(), String> {
    let certificate = ask(&request.socket, &request.key).map_err(|error| error.to_string())??;
    std::fs::write(request.directory.join("ek.cert"), certificate)
        .map_err(|error| error.to_string())
}

/// Asks the agent; the inner error is its refusal.
fn ask(socket: &Path, key: &str) -> io::Result<Result<Vec<u8>, String>> {
    let limit = Some(Duration::from_secs(30));
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    stream.write_all(key.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(MAX_CERTIFICATE + 1).read_to_end(&mut answer)?;
    Ok(match answer.split_first() {
        Some((&ISSUED, certificate)) if !certificate.is_empty() => Ok(certificate.to_vec()),
        Some((&REFUSED, reason)) => Err(String::from_utf8_lossy(reason).into_owned()),
        _ => Err("the agent did not answer".to_owned()),
    })
}

/// The agent's side of one request: reads the key, asks `issue`, sends what it says.
pub(crate) async fn serve_one(
    stream: &mut tokio::net::UnixStream,
    issue: impl FnOnce(&EkPublic) -> Result<Vec<u8>, String>,
) -> io::Result<()> {
    let mut text = String::new();
    (&mut *stream)
        .take(MAX_KEY)
        .read_to_string(&mut text)
        .await?;
    let issued = parse_public(&text).and_then(|public| issue(&public));
    let issued = issued.and_then(|certificate| {
        if certificate.len() as u64 > MAX_CERTIFICATE {
            Err(format!(
                "the certificate has {} bytes, and a TPM keeps {MAX_CERTIFICATE}",
                certificate.len()
            ))
        } else {
            Ok(certificate)
        }
    });
    match issued {
        Ok(certificate) => {
            stream.write_all(&[ISSUED]).await?;
            stream.write_all(&certificate).await?;
        }
        Err(reason) => {
            stream.write_all(&[REFUSED]).await?;
            stream.write_all(reason.as_bytes()).await?;
        }
    }
    stream.shutdown().await
}

/// swtpm_setup's notation: the hex modulus of an RSA key, or `x=HEX,y=HEX,id=secp384r1`.
fn parse_public(text: &str) -> Result<EkPublic, String> {
    let bytes = |digits: &str| hex::decode(digits).map_err(|_| "the key is not hex".to_owned());
    if !text.contains('=') {
        let modulus = bytes(text)?;
        if modulus.len() < 256 {
            return Err("the RSA key is shorter than 2048 bits".to_owned());
        }
        return Ok(EkPublic::Rsa { modulus });
    }
    let part = |name: &str| {
        text.split(',')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            .ok_or_else(|| format!("the key has no {name}"))
    };
    let length = match part("id")? {
        "secp384r1" => 48,
        "secp256r1" => 32,
        other => return Err(format!("the curve {other:?} is not known")),
    };
    let coordinate = |name: &str| {
        let digits = bytes(part(name)?)?;
        // Leading zeros may have been left out.
        let missing = usize::checked_sub(length, digits.len())
            .ok_or_else(|| format!("{name} is longer than the curve"))?;
        Ok::<_, String>([vec![0; missing], digits].concat())
    };
    Ok(EkPublic::Ecc {
        x: coordinate("x")?,
        y: coordinate("y")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_in_swtpm_setups_notation() {
        assert_eq!(
            parse_public(&"ab".repeat(256)),
            Ok(EkPublic::Rsa {
                modulus: vec![0xab; 256]
            })
        );
        let x = "0a".repeat(47);
        let y = "0b".repeat(48);
        let Ok(EkPublic::Ecc { x, y }) = parse_public(&format!("x={x},y={y},id=secp384r1")) else {
            panic!("refused");
        };
        assert_eq!((x.len(), y.len(), x[0]), (48, 48, 0));
        for bad in ["", "zz", "abcd", "x=00,y=00", "x=,y=,id=secp999"] {
            assert!(parse_public(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_requests_for_ek_certificates_are_taken() {
        let request = |kind: &str| {
            let line = format!("--type {kind} --ek ab --dir /d --logfile x --tpm2 --configfile /s");
            Request::from_arguments(line.split(' ').map(str::to_owned))
        };
        assert_eq!(
            request("ek"),
            Ok(Request {
                key: "ab".into(),
                directory: "/d".into(),
                socket: "/s".into()
            })
        );
        assert!(request("platform").is_err());
        assert!(Request::from_arguments(std::iter::empty()).is_err());
    }

    #[tokio::test]
    async fn a_refusal_reaches_the_tool_as_a_sentence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ek.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let asked = tokio::task::spawn_blocking(move || ask(&path, &"ab".repeat(256)));
        let (mut stream, _) = listener.accept().await.unwrap();
        serve_one(&mut stream, |_| Err("not today".into()))
            .await
            .unwrap();
        assert_eq!(asked.await.unwrap().unwrap(), Err("not today".to_owned()));
    }
}
