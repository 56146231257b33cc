//! The few commands that Fleetward gives a TPM itself, on a copy of its state: start, read the lockout, clear it, shut down.
//!
//! Source: TPM 2.0 Library, part 2, section 6.13 (`TPM_PT`), part 3, sections 9.3 (`TPM2_Startup`), 9.4 (`TPM2_Shutdown`), 25.2
//! (`TPM2_DictionaryAttackLockReset`), 30.2 (`TPM2_GetCapability`).

use fleetward_hypervisor::{Error, Result};
use fleetward_model::vm::TpmLockout;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// `TPM2_Startup(TPM_SU_CLEAR)`.
const STARTUP: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
/// `TPM2_Shutdown(TPM_SU_CLEAR)`.
const SHUTDOWN: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 0];
/// `TPM2_DictionaryAttackLockReset(TPM_RH_LOCKOUT)`, authorised with the empty password.
const LOCK_RESET: &[u8] = &[
    0x80, 2, 0, 0, 0, 27, 0, 0, 1, 0x39, 0x40, 0, 0, 0x0a, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0,
];

/// `TPM_PT_PERMANENT`, with `lockoutAuthSet` at bit 2; the lockout's counter, limit and interval.
const PERMANENT: u32 = 0x200;
const LOCKOUT_AUTH_SET: u32 = 1 << 2;
const COUNTER: u32 = 0x20e;
const LIMIT: u32 = 0x20f;
const INTERVAL: u32 = 0x210;

const HEADER: usize = 10;
/// Largest answer that is read, bytes: those asked for have 27.
const MOST: usize = 4096;
/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The data channel of a TPM that is powered on.
pub(crate) struct Commands(UnixStream);

impl Commands {
    /// Connects, and starts the TPM.
    ///
    /// # Errors
    /// It does not answer, or says no.
    pub(crate) async fn start(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.map_err(failed)?;
        let mut commands = Self(stream);
        commands.done("TPM2_Startup", STARTUP).await?;
        Ok(commands)
    }

    /// What it counts of wrong guesses.
    pub(crate) async fn lockout(&mut self) -> Result<TpmLockout> {
        Ok(TpmLockout {
            counted: self.property(COUNTER).await?,
            limit: self.property(LIMIT).await?,
            interval_seconds: self.property(INTERVAL).await?,
            guarded: self.property(PERMANENT).await? & LOCKOUT_AUTH_SET != 0,
        })
    }

    pub(crate) async fn clear_lockout(&mut self) -> Result<()> {
        self.done("TPM2_DictionaryAttackLockReset", LOCK_RESET)
            .await
    }

    /// So that its next start is one after an orderly end.
    pub(crate) async fn shut_down(mut self) -> Result<()> {
        self.done("TPM2_Shutdown", SHUTDOWN).await
    }

    async fn property(&mut self, property: u32) -> Result<u32> {
        let answer = self
            .command("TPM2_GetCapability", &get_property(property))
            .await?;
        property_in(&answer, property)
            .ok_or_else(|| Error::Tpm(format!("it does not tell property {property:#x}").into()))
    }

    async fn done(&mut self, name: &'static str, command: &[u8]) -> Result<()> {
        self.command(name, command).await.map(drop)
    }

    /// The answer to a command that succeeded, with its header.
    async fn command(&mut self, name: &'static str, command: &[u8]) -> Result<Vec<u8>> {
        let exchange = async {
            self.0.write_all(command).await?;
            let mut answer = vec![0; HEADER];
            self.0.read_exact(&mut answer).await?;
            let length = word(&answer, 2).unwrap_or_default() as usize;
            if !(HEADER..=MOST).contains(&length) {
                let because = format!("an answer of {length} bytes");
                return Err(std::io::Error::other(because));
            }
            answer.resize(length, 0);
            self.0.read_exact(&mut answer[HEADER..]).await?;
            Ok(answer)
        };
        let answer = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| Error::Tpm(format!("{name} has no answer").into()))?
            .map_err(failed)?;
        match word(&answer, 6) {
            Some(0) => Ok(answer),
            code => {
                let code = code.unwrap_or_default();
                Err(Error::Tpm(format!("{name} answers {code:#x}").into()))
            }
        }
    }
}

/// `TPM2_GetCapability(TPM_CAP_TPM_PROPERTIES)` of one property.
fn get_property(property: u32) -> Vec<u8> {
    let mut command = vec![0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 6];
    command.extend(property.to_be_bytes());
    command.extend(1_u32.to_be_bytes());
    command
}

/// Header, `moreData`, capability, count, then pairs of property and value: of a property that it does not have, a TPM tells the
/// next one.
fn property_in(answer: &[u8], property: u32) -> Option<u32> {
    (word(answer, HEADER + 5)? >= 1 && word(answer, HEADER + 9)? == property)
        .then(|| word(answer, HEADER + 13))?
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn failed(error: std::io::Error) -> Error {
    Error::Tpm(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_is_taken_from_an_answer_of_swtpm_and_from_nothing_else() {
        let answer =
            hex::decode("80010000001b0000000001000000060000000100000210000003e8").expect("hex");
        assert_eq!(property_in(&answer, INTERVAL), Some(1000));
        assert_eq!(property_in(&answer, LIMIT), None);
        for length in 0..answer.len() {
            assert_eq!(property_in(&answer[..length], INTERVAL), None, "{length}");
        }
    }

    #[test]
    fn commands_are_as_long_as_they_say() {
        for command in [STARTUP, SHUTDOWN, LOCK_RESET, &get_property(COUNTER)] {
            let said = word(command, 2).expect("a length") as usize;
            assert_eq!(said, command.len());
        }
    }
}
