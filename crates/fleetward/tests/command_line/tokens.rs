//! API tokens with a real controller: made on its machine, used from elsewhere.

use crate::fake::{fleetward, run};
use serde_json::Value;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A controller as a process; ends with this.
struct Controller {
    process: Child,
    directory: tempfile::TempDir,
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Controller {
    fn start(console: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fleetward"));
        command
            .args(["controller", "run", "--listen", "127.0.0.1:0", "--data"])
            .arg(directory.path().join("data"))
            .arg("--socket")
            .arg(directory.path().join("socket"))
            .stderr(Stdio::null());
        if console {
            command.args(["--console", "127.0.0.1:0"]);
        }
        let controller = Self {
            process: command.spawn().unwrap(),
            directory,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while controller.local(&["status"]).0 != 0 {
            assert!(Instant::now() < deadline, "the controller does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        controller
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn local(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = fleetward(arguments);
        command.env("FLEETWARD_SOCKET", self.path().join("socket"));
        run(command)
    }

    /// JSON of a command that succeeds.
    fn json(&self, arguments: &[&str]) -> Value {
        let (code, out, err) = self.local(&[arguments, &["-o", "json"]].concat());
        assert_eq!(code, 0, "{arguments:?}: {err}");
        serde_json::from_str(&out).unwrap()
    }
}

#[test]
fn a_token_made_on_the_controllers_machine_is_used_from_elsewhere_until_it_is_revoked() {
    let controller = Controller::start(true);
    let out = controller.path().join("ci");
    let out = out.to_str().unwrap();
    let made = controller.json(&["token", "create", "ci", "--role", "viewer", "--out", out]);
    let file = made["token_file"].as_str().unwrap();
    let mode = std::fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else reads it");
    let url = controller.json(&["status"])["console"]["url"].clone();
    assert_eq!(made["controller"], url);

    let elsewhere = |arguments: &[&str], ca: Option<&str>| {
        let mut command = fleetward(arguments);
        command.env("FLEETWARD_CONTROLLER", url.as_str().unwrap());
        command.env("FLEETWARD_TOKEN_FILE", file);
        if let Some(ca) = ca {
            command.env("FLEETWARD_CA", ca);
        }
        run(command)
    };
    let authority = made["authority"].as_str();
    let (code, shown, err) = elsewhere(&["status"], authority);
    assert_eq!(code, 0, "{err}");
    assert!(shown.contains("made here"), "{shown}");
    let (code, _, err) = elsewhere(&["token", "list"], authority);
    assert_eq!(code, 1, "{err}");
    assert!(err.starts_with("error[ROLE_MISSING]: "), "{err}");
    // Whom nobody vouches for is not told the token.
    let (code, _, err) = elsewhere(&["status"], None);
    assert_eq!(code, 1, "{err}");
    assert!(err.starts_with("error[CREDENTIALS_REFUSED]: "), "{err}");
    assert!(
        err.contains("fix: name the certificate to believe with --ca"),
        "{err}"
    );

    let table = controller.local(&["token", "list"]).1;
    let row = table.lines().find(|line| line.starts_with("ci ")).unwrap();
    assert!(
        row.contains("viewer") && row.contains("good") && !row.contains("never"),
        "{row}"
    );
    let text = std::fs::read_to_string(file).unwrap();
    assert!(!table.contains(text.trim()));
    // Neither the store nor anything else that the controller writes has the secret.
    let secret = &text.trim()[5..48];
    for entry in std::fs::read_dir(controller.path().join("data")).unwrap() {
        let path = entry.unwrap().path();
        if let Ok(bytes) = std::fs::read(&path) {
            let found = bytes
                .windows(secret.len())
                .any(|at| at == secret.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }

    let (code, _, err) = controller.local(&["token", "revoke", "ci"]);
    assert_eq!(code, 2, "it asks first: {err}");
    assert_eq!(controller.local(&["token", "revoke", "ci", "--yes"]).0, 0);
    let (code, _, err) = elsewhere(&["status"], authority);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("it was revoked"), "{err}");
    let again = controller.local(&["token", "revoke", "ci", "--yes"]);
    assert_eq!(again.0, 5, "{}", again.2);
}

#[test]
fn a_token_alone_goes_to_stdout_and_says_where_it_is_good() {
    let controller = Controller::start(false);
    let (code, out, err) = controller.local(&["token", "create", "ci", "--role", "operator"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("fwt1.") && out.trim().len() == 57, "{out}");
    assert_eq!(controller.json(&["token", "list"])[0]["name"], "ci");
    // Without a listener the token is good nowhere, and the command says so.
    let out = controller.path().join("x");
    let kept = [
        "token",
        "create",
        "x",
        "--role",
        "viewer",
        "--out",
        out.to_str().unwrap(),
    ];
    let (code, said, err) = controller.local(&kept);
    assert_eq!(code, 0, "{err}");
    assert!(said.contains("--console ADDR:PORT"), "{said}");
    let (code, _, err) = controller.local(&kept);
    assert_eq!(code, 4, "the file is there: {err}");
}

#[test]
fn who_one_is_must_be_clear() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", taken.local_addr().unwrap());
    for (arguments, code) in [
        (&["--token-file", "t", "status"][..], "INVALID_ARGUMENT"),
        (
            &[
                "--controller",
                &url,
                "--token-file",
                "t",
                "--cert",
                "c",
                "status",
            ],
            "INVALID_ARGUMENT",
        ),
        (
            &["--controller", &url, "--token-file", "/nowhere", "status"],
            "INVALID_ARGUMENT",
        ),
        (&["--controller", &url, "status"], "CREDENTIALS_MISSING"),
    ] {
        let (exit, _, err) = run(fleetward(arguments));
        assert_ne!(exit, 0);
        assert!(
            err.starts_with(&format!("error[{code}]: ")),
            "{arguments:?}: {err}"
        );
        assert!(err.contains("\n  fix: "), "{err}");
    }
}
