//! Wrong requests: each gets a clear error with its own code, and nothing changes.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use anyhow::{Result, ensure};
use fleetward_e2e::fleet::{Fleet, Said, run};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, residue, suite};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

const HOSTS: &[&str] = &["a"];

fn main() -> ExitCode {
    suite::run(
        "e2e-bad",
        &["--hosts", "1"],
        &[
            ("unknown_names_are_not_found", unknown_names),
            ("names_that_could_escape_are_refused", wild_names),
            ("sizes_out_of_range_are_refused", sizes),
            ("a_name_is_taken_once", duplicate_name),
            ("a_join_token_works_once_unaltered_and_in_time", tokens),
            ("files_that_are_no_disks_are_not_imported", images),
            (
                "a_conversion_whose_host_dies_leaves_nothing",
                conversion_killed,
            ),
            (
                "disks_of_another_system_are_converted_and_boot",
                converted_boots,
            ),
            ("bodies_too_large_or_not_json_are_refused", bodies),
            (
                "nothing_is_served_without_credentials_of_this_fleet",
                no_credentials,
            ),
        ],
    )
}

/// Runs a command that must be refused, and sees that nothing changed.
fn refused(fleet: &Fleet, exit: i32, code: &str, arguments: &[&str]) -> Result<Said> {
    let before = fleet.json(&["vm", "list"])?;
    let said = fleet.cli(arguments)?.refused(exit, code)?;
    ensure!(said.stderr.contains("fix:"), "no fix in {}", said.stderr);
    let after = fleet.json(&["vm", "list"])?;
    ensure!(
        before.as_array().map(Vec::len) == after.as_array().map(Vec::len),
        "{before} then {after}"
    );
    residue::none_anywhere(fleet, HOSTS)?;
    Ok(said)
}

fn unknown_names(fleet: &Fleet) -> Result<()> {
    refused(fleet, 5, "VM_NOT_FOUND", &["vm", "show", "nobody"])?;
    refused(fleet, 5, "VM_NOT_FOUND", &["vm", "start", "nobody"])?;
    refused(
        fleet,
        5,
        "VM_NOT_FOUND",
        &["vm", "migrate", "nobody", "--to", "a"],
    )?;
    refused(fleet, 5, "HOST_NOT_FOUND", &["host", "show", "nowhere"])?;
    refused(
        fleet,
        5,
        "HOST_NOT_FOUND",
        &[
            "vm",
            "create",
            "x",
            "--image",
            "lab-guest",
            "--host",
            "nowhere",
        ],
    )?;
    refused(
        fleet,
        5,
        "IMAGE_NOT_FOUND",
        &["vm", "create", "x", "--image", "nothing"],
    )?;
    refused(
        fleet,
        5,
        "JOB_NOT_FOUND",
        &["job", "show", "00000000-0000-0000-0000-000000000000"],
    )?;
    refused(fleet, 5, "CODE_NOT_FOUND", &["explain", "NO_SUCH_CODE"])?;
    Ok(())
}

fn wild_names(fleet: &Fleet) -> Result<()> {
    let long = "a".repeat(10_000);
    for name in [
        "../../etc/passwd",
        "a/b",
        "a b",
        "..",
        "",
        "ä",
        "a\nb",
        long.as_str(),
    ] {
        let said = fleet.cli(&["vm", "create", name, "--image", "lab-guest"])?;
        ensure!(said.code == 2, "{name:.40?}: {said:?}");
    }
    residue::none_anywhere(fleet, HOSTS)
}

fn sizes(fleet: &Fleet) -> Result<()> {
    for arguments in [
        ["--cpus", "0"],
        ["--cpus", "100000"],
        ["--memory", "1"],
        ["--memory", "8000000G"],
        ["--memory", "lots"],
        ["--disk", "-1"],
        ["--disk", "0"],
    ] {
        let said = fleet.cli(
            &[
                &["vm", "create", "x", "--image", "lab-guest"][..],
                &arguments,
            ]
            .concat(),
        )?;
        ensure!(matches!(said.code, 2 | 4), "{arguments:?}: {said:?}");
        fleet
            .cli(&["vm", "show", "x"])?
            .refused(5, "VM_NOT_FOUND")?;
    }
    // More than the host has is no question of range but of room.
    refused(
        fleet,
        4,
        "NO_HOST_FITS",
        &[
            "vm",
            "create",
            "x",
            "--image",
            "lab-guest",
            "--memory",
            "2000G",
        ],
    )
    .or_else(|_| {
        refused(
            fleet,
            4,
            "NO_MEMORY",
            &[
                "vm",
                "create",
                "x",
                "--image",
                "lab-guest",
                "--memory",
                "2000G",
            ],
        )
    })?;
    Ok(())
}

fn duplicate_name(fleet: &Fleet) -> Result<()> {
    fleet
        .cli(&[
            "vm",
            "create",
            "twin",
            "--image",
            "lab-guest",
            "--memory",
            "512M",
        ])?
        .ok()?;
    refused(
        fleet,
        4,
        "NAME_TAKEN",
        &["vm", "create", "twin", "--image", "lab-guest"],
    )?;
    fleet.cli(&["vm", "delete", "twin", "--yes"])?.ok()?;
    Ok(())
}

fn tokens(fleet: &Fleet) -> Result<()> {
    let token = |name: &str, ttl: &str| -> Result<String> {
        let said = fleet.json(&["host", "token", name, "--ttl", ttl])?;
        Ok(said["token"].as_str().unwrap_or_default().to_owned())
    };
    // A second agent's worth of state in a directory of its own, on host a.
    fleet.exec("a", &["sh", "-c", "mkdir -p /run/spare && printf 'data_dir = \"/run/spare/data\"\\nrun_dir = \"/run/spare/run\"\\nlisten = \"0.0.0.0:7999\"\\nadvertise = \"127.0.0.1:7999\"\\n' > /run/spare/agent.toml"])?.ok()?;
    let agent = "fleetward-agent --config /run/spare/agent.toml join";
    let as_argument = format!("{agent} fwj1.something");
    fleet
        .exec("a", &["sh", "-c", &as_argument])?
        .refused(2, "INVALID_ARGUMENT")?;
    let join = |token: &str| {
        // Only the shell of this test has it as an argument.
        let script = format!("printf %s \"$0\" | {agent}");
        fleet.exec("a", &["sh", "-c", &script, token])
    };

    let expired = token("spare", "1s")?;
    std::thread::sleep(seconds(2));
    join(&expired)?.refused(4, "TOKEN_EXPIRED")?;

    let good = token("spare", "5m")?;
    let mut altered = good.clone().into_bytes();
    let middle = altered.len() / 2;
    altered[middle] = if altered[middle] == b'A' { b'B' } else { b'A' };
    join(&String::from_utf8(altered)?)?.refused(4, "TOKEN_INVALID")?;
    join("garbage")?.refused(4, "TOKEN_INVALID")?;

    join(&good)?.ok()?;
    fleet.exec("a", &["rm", "-rf", "/run/spare/data"])?.ok()?;
    join(&good)?.refused(4, "TOKEN_USED")?;
    fleet.cli(&["host", "remove", "spare", "--yes"])?.ok()?;
    Ok(())
}

fn images(fleet: &Fleet) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("fleetward-images-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    fs::write(path("text"), "this is no disk\n")?;
    fs::write(path("empty"), "")?;
    let qemu_img = |arguments: &[&str]| {
        run(Command::new("qemu-img").args(arguments))?
            .ok()
            .map(drop)
    };
    qemu_img(&["create", "-q", "-f", "qcow2", &path("base"), "16M"])?;
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        &path("base"),
        "-F",
        "qcow2",
        &path("overlay"),
    ])?;
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "/etc/passwd",
        "-F",
        "raw",
        &path("thief"),
        "16M",
    ])?;
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        // qemu-img makes the data file anew: never name one here that anybody needs.
        &format!("data_file={},data_file_raw=off", path("outside.data")),
        &path("outside"),
        "1M",
    ])
    .ok();
    let mut result = Ok(());
    for name in ["text", "empty", "overlay", "thief"] {
        result = result.and_then(|()| {
            fleet
                .cli(&["image", "import", "bad", &path(name), "--format", "qcow2"])?
                .refused(4, "IMAGE_INVALID")
                .map(drop)
        });
    }
    result = result.and_then(|()| {
        fleet
            .cli(&["image", "import", "bad", &path("missing")])
            .and_then(|s| {
                ensure!(s.code != 0 && s.stderr.contains("missing"), "{s:?}");
                Ok(())
            })
    });
    result = result.and_then(|()| {
        let list = fleet.json(&["image", "list"])?;
        ensure!(
            list.as_array()
                .is_some_and(|l| l.iter().all(|i| i["name"] != "bad")),
            "{list}"
        );
        Ok(())
    });
    fs::remove_dir_all(&directory)?;
    result
}

/// A directory for files to import, removed at the end.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Result<Self> {
        let id = std::process::id();
        let directory = std::env::temp_dir().join(format!("fleetward-{name}-{id}"));
        fs::create_dir_all(&directory)?;
        Ok(Self(directory))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What conversions have on the host: directories, and processes in a confinement. The states of TPMs are tried in one, too.
fn conversions(fleet: &Fleet) -> Result<String> {
    let look = "ls -A /var/lib/fleetward/conversions; pgrep -ax zstd; pgrep -af '[b]wrap .*(qemu-img|zstd)' || true";
    let said = fleet.exec("a", &["sh", "-c", look])?.ok()?;
    Ok(said.stdout)
}

fn conversion_killed(fleet: &Fleet) -> Result<()> {
    let files = Files::new("killed")?;
    let (zeros, packed) = (files.path("zeros"), files.path("packed"));
    // Takes some ten seconds to unpack.
    fs::File::create(&zeros)?.set_len(1 << 30)?;
    run(Command::new("zstd").args(["-q", "-1", &zeros, "-o", &packed]))?.ok()?;
    // Frames one after the other are one stream.
    let once = fs::read(&packed)?;
    fs::write(&packed, once.repeat(64))?;
    let mut import = fleet.cli_command();
    import.args(["image", "import", "killed", &packed]);
    let import = std::thread::spawn(move || run(&mut import));
    wait::until("zstd to run", seconds(30), || {
        Ok(conversions(fleet)?.contains("zstd").then_some(()))
    })?;
    fleet.kill("a/agent")?;
    let said = import.join().expect("it does not panic")?;
    ensure!(said.code == 6 && said.stderr.contains("error["), "{said:?}");
    wait::until("the processes to be gone", seconds(10), || {
        Ok((!conversions(fleet)?.contains("zstd")).then_some(()))
    })?;
    fleet.start("a/agent")?;
    wait::until("nothing to be left", seconds(20), || {
        Ok(conversions(fleet)?.is_empty().then_some(()))
    })?;
    let drafts = fleet.directory().join("controller/images");
    let drafts: Vec<_> = fs::read_dir(&drafts)?
        .flatten()
        .map(|f| f.file_name())
        .collect();
    ensure!(
        drafts
            .iter()
            .all(|name| !name.to_string_lossy().starts_with('.')),
        "{drafts:?}"
    );
    wait::until("the host to be back", seconds(20), || {
        let hosts = fleet.json(&["host", "list"])?;
        Ok((hosts[0]["state"] == "online").then_some(()))
    })
}

fn converted_boots(fleet: &Fleet) -> Result<()> {
    let files = Files::new("converted")?;
    let (image, guest) = (files.path("image"), files.path("guest"));
    let lab = fleet.program("fleetward-lab");
    run(Command::new(lab).args(["image", "build", "--out", &image]))?.ok()?;
    run(Command::new("qemu-img").args(["convert", "-O", "raw", &image, &guest]))?.ok()?;
    let dynamic = vhdx(&files, "dynamic", &guest, "dynamic")?;
    let fixed = vhdx(&files, "fixed", &guest, "fixed")?;
    // Its sectors are of 4,096 bytes physically, as disks of Hyper-V have them: a field of the metadata at 3 MiB.
    let written = fs::File::options().write(true).open(&fixed)?;
    written.write_all_at(&4096u32.to_le_bytes(), (3 << 20) + 65572)?;
    let cut_off = cut_off(&files, &guest)?;

    let wrong = ["image", "import", "dynamic", &dynamic, "--format", "vmdk"];
    fleet.cli(&wrong)?.refused(4, "IMAGE_INVALID")?;
    let disks = [("dynamic", dynamic), ("fixed", fixed), ("cut-off", cut_off)];
    for (name, path) in &disks {
        let said = fleet.cli(&["image", "import", name, path])?.ok()?;
        ensure!(
            said.stdout.contains("vhdx converted to qcow2 on host a"),
            "{said:?}"
        );
        let left = conversions(fleet)?;
        ensure!(left.is_empty(), "left of the conversion: {left}");
        let create = [
            "vm", "create", name, "--image", name, "--memory", "512M", "--start",
        ];
        fleet.cli(&create)?.ok()?;
    }
    for (name, _) in &disks {
        let tick = guest::booted(fleet, name, 1)?;
        ensure!(tick.unseal == "ok", "{name}: {tick:?}");
    }
    let names = disks.each_ref().map(|(name, _)| *name);
    fleet
        .cli(&[&["vm", "stop", "--force"][..], &names].concat())?
        .ok()?;
    fleet
        .cli(&[&["vm", "delete", "--yes"][..], &names].concat())?
        .ok()?;
    for name in names {
        fleet.cli(&["image", "delete", name, "--yes"])?.ok()?;
    }
    Ok(())
}

/// A VHDX of the disk, made by qemu-img.
fn vhdx(files: &Files, name: &str, disk: &str, subformat: &str) -> Result<String> {
    let path = files.path(name);
    let subformat = format!("subformat={subformat}");
    let convert = ["convert", "-f", "raw", "-O", "vhdx", "-o", &subformat];
    run(Command::new("qemu-img").args(convert).args([disk, &path]))?.ok()?;
    Ok(path)
}

/// The disk as a VHDX whose writer was cut off when the beginning of the disk was in the log and nowhere else: without its
/// log, the disk has no partitions.
fn cut_off(files: &Files, disk: &str) -> Result<String> {
    // Of a VHDX that qemu-img makes of so small a disk.
    const BLOCK: usize = 8 << 20;
    let (begins, goes_on) = (files.path("begins"), files.path("goes-on"));
    let mut content = fs::read(disk)?;
    fs::write(&begins, &content[..BLOCK])?;
    content[..BLOCK].fill(0);
    fs::write(&goes_on, &content)?;
    let path = vhdx(files, "cut-off", &goes_on, "dynamic")?;
    // Whoever writes the table of blocks at 2 MiB fails. The log before it is written by then.
    let fails = format!(
        "driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={path},\
         file.inject-error.0.event=pwritev,file.inject-error.0.sector=4096"
    );
    let write = format!("write -s {begins} 0 {BLOCK}");
    let said = run(Command::new("qemu-io").args(["-c", &write, "--image-opts", &fails]))?;
    ensure!(said.code != 0, "nothing was cut off: {said:?}");
    let read = run(Command::new("qemu-img").args(["info", &path]))?;
    ensure!(read.stderr.contains("needs to be replayed"), "{read:?}");
    Ok(path)
}

/// A raw request over the administrators' socket; status line and body.
fn raw(fleet: &Fleet, head: &str, body: &[u8]) -> Result<String> {
    let mut stream = UnixStream::connect(fleet.socket())?;
    stream.set_read_timeout(Some(seconds(20)))?;
    stream.set_write_timeout(Some(seconds(20)))?;
    stream.write_all(head.as_bytes())?;
    // The service may refuse by the length alone and stop reading.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let mut buffer = [0; 65536];
    while let Ok(n) = stream.read(&mut buffer) {
        if n == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..n]);
        if answer
            .windows(10)
            .any(|w| w == b"TOO_LARGE\"" || w == b"_REQUEST\",")
        {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn bodies(fleet: &Fleet) -> Result<()> {
    let huge = vec![b' '; 100 << 20];
    let head = |length: usize| {
        format!(
            "POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        )
    };
    let answer = raw(fleet, &head(huge.len()), &huge)?;
    ensure!(answer.contains("TOO_LARGE"), "{answer:.300}");
    for body in [
        "not json",
        "[]",
        "{\"name\":",
        "{\"name\":\"x\",\"surprise\":1}",
        "\u{0}\u{1}",
    ] {
        let answer = raw(fleet, &head(body.len()), body.as_bytes())?;
        ensure!(answer.starts_with("HTTP/1.1 400"), "{body:?}: {answer}");
        ensure!(answer.contains("INVALID_REQUEST"), "{body:?}: {answer}");
    }
    wait::until("the controller to be well", seconds(5), || {
        Ok((fleet.cli(&["vm", "list"])?.code == 0).then_some(()))
    })
}

/// Every endpoint of the published description, over the network, without a certificate and with a foreign one.
fn no_credentials(fleet: &Fleet) -> Result<()> {
    let description = raw(
        fleet,
        "GET /v1/openapi.json HTTP/1.0\r\nhost: x\r\n\r\n",
        b"",
    )?;
    let (_, body) = description.split_once("\r\n\r\n").unwrap_or_default();
    let openapi: serde_json::Value = serde_json::from_str(body.trim())?;
    let address = fleet.variable("FLEETWARD_LAB_CONTROLLER_ADDRESS")?;
    let certificate =
        std::env::temp_dir().join(format!("fleetward-foreign-{}.pem", std::process::id()));
    let pem = certificate.to_string_lossy().into_owned();
    run(Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=admin",
            "-days",
            "2",
            "-keyout",
            &pem,
            "-out",
        ])
        .arg(format!("{pem}.crt")))?
    .ok()?;
    let mut walked = 0;
    let mut result = Ok(());
    for (path, methods) in openapi["paths"].as_object().into_iter().flatten() {
        for method in methods
            .as_object()
            .into_iter()
            .flatten()
            .map(|(m, _)| m.to_uppercase())
        {
            // Who joins has a token and no certificate yet, or no more.
            if ["/v1/join", "/v1/rejoin"].contains(&path.as_str()) {
                continue;
            }
            walked += 1;
            let url = format!("https://{address}{}", path.replace(['{', '}'], ""));
            let curl = [
                "curl",
                "-sk",
                "--max-time",
                "10",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-X",
                &method,
                &url,
            ];
            let without = fleet.exec("a", &curl)?;
            let foreign = fleet.exec(
                "a",
                &[&curl[..], &["--cert", &format!("{pem}.crt"), "--key", &pem]].concat(),
            )?;
            if !matches!(without.stdout.trim(), "401" | "403")
                || !matches!(foreign.stdout.trim(), "000" | "401" | "403")
            {
                result = Err(anyhow::anyhow!("{method} {path}: {without:?} {foreign:?}"));
            }
        }
    }
    fs::remove_file(&certificate)?;
    fs::remove_file(format!("{pem}.crt"))?;
    ensure!(walked > 20, "only {walked} endpoints are described");
    result
}
