//! The controller that is measured: one that runs, or one that is started here.

use anyhow::{Context, Result, bail};
use fleetward_link::Client;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// A controller and a client of its socket.
#[derive(Debug)]
pub struct Controller {
    pub client: Client,
    socket: PathBuf,
    /// The process behind the socket of one that runs already.
    found: Option<i32>,
    ours: Option<Ours>,
}

#[derive(Debug)]
struct Ours {
    program: PathBuf,
    data: PathBuf,
    listen: SocketAddr,
    child: Option<Child>,
}

impl Controller {
    /// One that runs on this machine.
    pub async fn attach(socket: &Path) -> Result<Self> {
        let connected = UnixStream::connect(socket).await;
        let stream =
            connected.with_context(|| format!("no controller behind {}", socket.display()))?;
        let process = stream.peer_cred()?.pid();
        Ok(Self {
            client: Client::unix(socket),
            socket: socket.to_owned(),
            found: Some(process.context("the kernel does not tell the controller's process")?),
            ours: None,
        })
    }

    /// One that is not started yet.
    pub fn of_program(program: &Path, data: &Path, listen: SocketAddr) -> Self {
        let socket = data.join("controller.sock");
        Self {
            client: Client::unix(&socket),
            socket,
            found: None,
            ours: Some(Ours {
                program: program.to_owned(),
                data: data.to_owned(),
                listen,
                child: None,
            }),
        }
    }

    /// A client with connections of its own.
    pub fn another_client(&self) -> Client {
        Client::unix(&self.socket)
    }

    /// Whether it can be killed and started again.
    pub fn is_ours(&self) -> bool {
        self.ours.is_some()
    }

    /// Its data, where they are known.
    pub fn data(&self) -> Option<&Path> {
        self.ours.as_ref().map(|ours| ours.data.as_path())
    }

    pub fn pid(&self) -> Result<i32> {
        let child = self.ours.as_ref().and_then(|ours| ours.child.as_ref());
        let id = child
            .and_then(Child::id)
            .and_then(|id| i32::try_from(id).ok());
        id.or(self.found).context("the controller does not run")
    }

    /// Starts it; its log goes into `DATA.log`. It ends with this process.
    pub fn spawn(&mut self) -> Result<()> {
        let Some(ours) = &mut self.ours else {
            bail!("a controller that was found running is not started");
        };
        let log = std::fs::OpenOptions::new()
            .append(true)
            .open(ours.data.with_extension("log"))
            .or_else(|_| fleetward_durable::create_fresh(&ours.data.with_extension("log")))?;
        let child = Command::new(&ours.program)
            .args(["controller", "run", "--trust", "auto", "--data"])
            .arg(&ours.data)
            .arg("--listen")
            .arg(ours.listen.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        let program = ours.program.display().to_string();
        ours.child = Some(child.with_context(|| format!("cannot start {program}"))?);
        Ok(())
    }

    /// Until it answers.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let begin = Instant::now();
        while let Err(error) = self.client.get::<serde_json::Value>("/v1/status").await {
            self.still_runs()?;
            if begin.elapsed() > Duration::from_secs(60) {
                return Err(error).context("the controller does not answer");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// An error where one that was started here has ended.
    pub fn still_runs(&mut self) -> Result<()> {
        if let Some(ours) = &mut self.ours
            && let Some(child) = &mut ours.child
            && let Some(status) = child.try_wait()?
        {
            let log = ours.data.with_extension("log");
            bail!(
                "the controller has ended ({status}); {} says why",
                log.display()
            );
        }
        Ok(())
    }

    /// kill -9.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(child) = self.ours.as_mut().and_then(|ours| ours.child.as_mut()) {
            child.kill().await?;
        }
        Ok(())
    }
}
