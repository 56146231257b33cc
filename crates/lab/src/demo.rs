//! The demonstration: a VM with an encrypted TPM is created and live-migrated; then a host of another group refuses
//! it. Each step is a real command, and each claim is checked against the output of the guest.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lab::{HostOptions, Lab, UpOptions};
use crate::serial::Tick;

const VM: &str = "demo";

/// Runs all steps on a lab of that name and leaves it up.
pub fn run_demo(lab_name: &str) -> Result<()> {
    let mut steps = Steps::default();

    heading("Two hosts of one group, and one of another");
    let lab = steps.time("start controller and three hosts", || {
        let mut options = UpOptions::new(lab_name, 2);
        options.hosts.push(HostOptions {
            name: "c".to_owned(),
            group: "other".to_owned(),
            volume_bytes: None,
            agent_program: None,
        });
        Lab::up(&options)
    })?;
    let mut demo = Demo {
        lab: &lab,
        earlier: 0,
    };
    demo.remove_vm_of_earlier_run()?;
    demo.earlier = lab.ticks(VM)?.len();
    demo.show(&["host", "list"])?;

    heading("A VM with UEFI, Secure Boot and an encrypted TPM");
    steps.time("create and start the VM", || {
        demo.show(&[
            "vm",
            "create",
            VM,
            "--image",
            "lab-guest",
            "--memory",
            "512M",
            "--host",
            "a",
            "--start",
        ])
    })?;
    demo.show(&["vm", "show", VM])?;
    let booted = steps.time("guest boots (firmware to its first line)", || {
        demo.wait_for("the guest's first line", 120, |_| true)
    })?;
    demo.print_guest_line()?;
    ensure!(booted.unseal == "ok", "the guest cannot unseal its secret");

    heading("It moves while it runs, and its TPM with it");
    let before = demo.last_tick()?;
    steps.time("live migration from a to b", || {
        demo.show(&["vm", "migrate", VM, "--to", "b"])
    })?;
    let after = demo.wait_for("the guest to go on", 60, |t| t.tick >= before.tick + 5)?;
    demo.print_guest_line()?;
    demo.check_went_on(&before, &after)?;
    demo.check_place("b")?;
    say(&format!(
        "tick {} -> {} without a gap, unseal=ok, boots={} unchanged, the same EK certificate",
        before.tick, after.tick, after.boots
    ));

    heading("A host of another group refuses it");
    steps.time("refusal by c", || {
        let refused = demo.run(&["vm", "migrate", VM, "--to", "c"])?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(
            refused.status.code() == Some(4) && said.contains("error[KEY_NOT_GRANTED]"),
            "expected exit 4 and error[KEY_NOT_GRANTED], got {}: {said}",
            refused.status
        );
        Ok(())
    })?;
    let still = demo.wait_for("the guest to go on", 60, |t| t.tick >= after.tick + 2)?;
    demo.check_went_on(&before, &still)?;
    demo.check_place("b")?;
    say("exit code 4; the VM runs on b as before");

    heading("Done");
    steps.print();
    let program = lab.programs_dir().join("fleetward-lab");
    let program = program.display();
    println!(
        "\nGo on:        eval \"$({program} env --name {lab_name})\"\n              \
         fleetward vm migrate {VM} --to a\n              \
         fleetward-lab serial {VM} --follow\n              \
         fleetward-lab status\n\
         Take it down: {program} down --name {lab_name}"
    );
    Ok(())
}

struct Demo<'a> {
    lab: &'a Lab,
    /// Lines that the guest of an earlier run printed under the same name.
    earlier: usize,
}

impl Demo<'_> {
    /// Shows a command and what it prints; it must succeed.
    fn show(&self, arguments: &[&str]) -> Result<()> {
        let output = self.run(arguments)?;
        ensure!(
            output.status.success(),
            "fleetward {}: {}",
            arguments.join(" "),
            output.status
        );
        Ok(())
    }

    /// Shows a command and what it prints.
    fn run(&self, arguments: &[&str]) -> Result<Output> {
        say(&format!("fleetward {}", arguments.join(" ")));
        let output = self
            .command(arguments)
            .output()
            .context("start fleetward")?;
        // Progress goes to standard error and comes before the result.
        for text in [&output.stderr, &output.stdout] {
            for line in String::from_utf8_lossy(text).lines() {
                println!("    {line}");
            }
        }
        Ok(output)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.fleetward();
        // As on a terminal: people read this.
        let format: &[&str] = if arguments.contains(&"-o") {
            &[]
        } else {
            &["-o", "table"]
        };
        command.args(arguments).args(format).stdin(Stdio::null());
        command
    }

    fn remove_vm_of_earlier_run(&self) -> Result<()> {
        if !self.command(&["vm", "show", VM]).output()?.status.success() {
            return Ok(());
        }
        // It may be stopped already; what counts is that it can be deleted.
        self.run(&["vm", "stop", VM, "--force", "--yes"])?;
        self.show(&["vm", "delete", VM, "--yes"])
    }

    /// What this run's guest has printed.
    fn ticks(&self) -> Result<Vec<Tick>> {
        let mut ticks = self.lab.ticks(VM)?;
        Ok(ticks.split_off(self.earlier.min(ticks.len())))
    }

    fn last_tick(&self) -> Result<Tick> {
        self.ticks()?
            .pop()
            .context("the guest has said nothing yet")
    }

    fn wait_for(&self, what: &str, seconds: u64, good: impl Fn(&Tick) -> bool) -> Result<Tick> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(tick) = self.ticks()?.pop().filter(|tick| good(tick)) {
                return Ok(tick);
            }
            if Instant::now() > deadline {
                bail!("waited {seconds} s for {what}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn print_guest_line(&self) -> Result<()> {
        let serial = self.lab.serial(VM)?;
        let line = serial.lines().rfind(|line| Tick::parse(line).is_some());
        let line = line.and_then(|l| l.find("FLEETWARD-GUEST").map(|at| &l[at..]));
        say("the guest says:");
        println!("    {}", line.unwrap_or_default());
        Ok(())
    }

    /// Same boot, same TPM, and every second in between was counted.
    fn check_went_on(&self, before: &Tick, after: &Tick) -> Result<()> {
        ensure!(after.boots == before.boots, "the guest was booted again");
        ensure!(after.ek == before.ek, "the guest has another TPM");
        let between: Vec<Tick> = self
            .ticks()?
            .into_iter()
            .filter(|t| t.boots == before.boots && (before.tick..=after.tick).contains(&t.tick))
            .collect();
        let whole = between.windows(2).all(|w| w[1].tick == w[0].tick + 1);
        ensure!(
            whole && between.len() as u64 == after.tick - before.tick + 1,
            "ticks are missing"
        );
        ensure!(
            between.iter().all(|t| t.unseal == "ok"),
            "the guest could not unseal its secret"
        );
        Ok(())
    }

    fn check_place(&self, host: &str) -> Result<()> {
        let output = self.command(&["vm", "show", VM, "-o", "json"]).output()?;
        let vm: Value = serde_json::from_slice(&output.stdout).context("read vm show -o json")?;
        ensure!(
            vm["host"] == host && vm["state"] == "running",
            "the VM is {} on {}, not running on {host}",
            vm["state"],
            vm["host"]
        );
        Ok(())
    }
}

/// What was done and how long it took.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn time<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = step().with_context(|| format!("step \"{name}\" failed"))?;
        self.0.push((name, start.elapsed()));
        Ok(result)
    }

    fn print(&self) {
        println!("{:<44} {:>8}", "step", "seconds");
        for (name, time) in &self.0 {
            println!("{name:<44} {:>8.1}", time.as_secs_f64());
        }
        let total: Duration = self.0.iter().map(|(_, time)| *time).sum();
        println!("{:<44} {:>8.1}", "together", total.as_secs_f64());
    }
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn say(text: &str) {
    println!("  {text}");
}
