//! `fleetward vm ...`

use super::seed::seed_of;
use super::{Context, check, network, template, vm_disk, vm_screen, vm_set};
use crate::args::{Switch, TpmChoice, VmCommand, VmCreate};
use crate::bulk;
use crate::confirm::confirm;
use crate::exit::{Exit, Stop, say};
use crate::table::{self, Widths};
use crate::{console, interrupt, messages, wait};
use fleetward_api::bulk::VmAction;
use fleetward_api::controller::{
    Accepted, CloneRequest, DeleteQuery, MigrateRequest, RecoverRequest, SettleRequest,
    StopRequest, VmCreateRequest, VmQuery, VmView,
};
use fleetward_api::verbs::{
    self, TemplateShow, VmClone, VmConsole, VmList, VmPause, VmRecover, VmResume, VmSettle, VmShow,
};
use fleetward_model::clone::{CloneTpm, deployment_warning};
use fleetward_model::{ErrorCode, Failure, LabelKey, VmName};
use std::time::Duration;

pub(super) async fn run(context: &Context, command: VmCommand) -> Result<Exit, Stop> {
    let controller = &context.controller;
    match command {
        VmCommand::Create(args) => create(context, *args).await,
        VmCommand::List {
            host,
            labels,
            tpm,
            state,
            group,
            usage,
            rows,
        } => {
            let query = VmQuery {
                host,
                tpm: tpm.map(|switch| switch == Switch::On),
                state,
                group,
                after: rows.after,
                usage,
                ..VmQuery::default()
            };
            list(context, query, labels, rows.limit).await
        }
        VmCommand::Show { name } => {
            let vm = controller.call::<VmShow>([name.as_str()], &()).await?;
            context.output.document(&vm, || table::vm(&vm))?;
            Ok(Exit::Done)
        }
        VmCommand::Start { names, wait } => {
            bulk::named(context, names, VmAction::Start, wait.no_wait).await
        }
        VmCommand::Stop {
            names,
            force,
            deadline,
            wait,
        } => {
            let action = VmAction::Stop(StopRequest {
                force,
                deadline_seconds: seconds(deadline)?,
            });
            bulk::named(context, names, action, wait.no_wait).await
        }
        VmCommand::Restart {
            names,
            force,
            deadline,
            wait,
        } => {
            let action = VmAction::Restart(StopRequest {
                force,
                deadline_seconds: seconds(deadline)?,
            });
            bulk::named(context, names, action, wait.no_wait).await
        }
        VmCommand::Pause { name, wait } => {
            let accepted = controller.call::<VmPause>([name.as_str()], &()).await?;
            held(context, &name, &accepted, wait.no_wait, messages::PAUSED).await
        }
        VmCommand::Resume { name, wait } => {
            let accepted = controller.call::<VmResume>([name.as_str()], &()).await?;
            held(context, &name, &accepted, wait.no_wait, messages::RESUMED).await
        }
        VmCommand::Delete {
            names,
            keep_tpm_state,
            wait,
        } => {
            confirm(
                context.yes,
                &messages::confirm_delete_vms(&names, keep_tpm_state),
            )?;
            let action = VmAction::Delete(DeleteQuery { keep_tpm_state });
            bulk::named(context, names, action, wait.no_wait).await
        }
        VmCommand::Clone {
            name,
            new,
            tpm,
            host,
            full,
            wait,
        } => {
            let request = CloneRequest {
                name: new.clone(),
                tpm: tpm.map(|choice| match choice {
                    TpmChoice::New => CloneTpm::New,
                    TpmChoice::Copy => CloneTpm::Copy,
                    TpmChoice::None => CloneTpm::None,
                }),
                host,
                full,
                dry_run: false,
            };
            let accepted = controller
                .call::<VmClone>([name.as_str()], &request)
                .await?;
            if !template::ended(context, new.as_str(), &accepted, wait.no_wait).await? {
                return Ok(Exit::Done);
            }
            let vm = controller.call::<VmShow>([new.as_str()], &()).await?;
            let linked = vm.disks.iter().any(|disk| !disk.bases.is_empty());
            context.output.success(&vm, || {
                messages::vm_cloned(&name, &vm.name, &vm.host, linked)
            })?;
            Ok(Exit::Done)
        }
        VmCommand::Recover {
            name,
            to,
            version,
            wait,
        } => {
            confirm(context.yes, &messages::confirm_recover(&name, &to))?;
            let mut request = RecoverRequest {
                to,
                version,
                outdated: false,
                dry_run: false,
            };
            let accepted = match controller.call::<VmRecover>([&name], &request).await {
                Err(failure) if failure.code == ErrorCode::EscrowOutdated => {
                    say(&messages::outdated(&failure));
                    confirm(context.yes, messages::CONFIRM_OUTDATED)?;
                    request.outdated = true;
                    controller.call::<VmRecover>([&name], &request).await?
                }
                answer => answer?,
            };
            let Some(job) = accepted.job else {
                return Ok(Exit::Done);
            };
            if wait.no_wait {
                context.output.document(&accepted, || job.to_string())?;
                return Ok(Exit::Done);
            }
            let interrupt = interrupt::on_ctrl_c();
            let progress = &context.progress;
            let view = wait::for_job(controller, progress, &interrupt, &name, job).await?;
            let result = view.result.unwrap_or_default();
            context
                .output
                .success(&result, || messages::recovered(&name, &request.to, &result))?;
            Ok(Exit::Done)
        }
        VmCommand::Settle { name, host } => {
            confirm(context.yes, &messages::confirm_settle(&name, &host))?;
            let request = SettleRequest { host };
            let answer = controller
                .call::<VmSettle>([name.as_str()], &request)
                .await?;
            context
                .output
                .success(&answer, || messages::settled(&name, &answer))?;
            Ok(Exit::Done)
        }
        VmCommand::Disk(command) => vm_disk::disk(context, command).await,
        VmCommand::Media(command) => vm_disk::media(context, command).await,
        VmCommand::Set(args) => vm_set::set(context, args).await,
        VmCommand::Nic(command) => network::nic(context, command).await,
        VmCommand::Rename { name, new, wait } => vm_set::rename(context, &name, new, wait).await,
        VmCommand::Screen(args) => vm_screen::show(context, args).await,
        VmCommand::Screenshot(args) => vm_screen::screenshot(context, args).await,
        VmCommand::Keys(args) => vm_screen::press(context, args).await,
        VmCommand::Console { name } => attach(context, &name).await,
        VmCommand::Migrate {
            names,
            to,
            check: true,
            offline,
            ..
        } => check::moves(context, &names, &to, offline).await,
        VmCommand::Migrate {
            names,
            to,
            check: false,
            offline,
            wait,
        } => {
            let action = VmAction::Migrate(MigrateRequest { to, offline });
            bulk::named(context, names, action, wait.no_wait).await
        }
    }
}

async fn create(context: &Context, args: VmCreate) -> Result<Exit, Stop> {
    let Context {
        controller, output, ..
    } = context;
    let name = args.name.clone();
    let no_wait = args.wait.no_wait;
    let started = args.start;
    if let Some(template) = &args.template
        && !args.no_tpm
        && controller
            .call::<TemplateShow>([template.as_str()], &())
            .await?
            .source_had_tpm
    {
        template::warn(&[deployment_warning(template.as_str())]);
    }
    let Accepted { job } = controller
        .call::<verbs::VmCreate>([], &request_of(args)?)
        .await?;
    match job {
        Some(job) if no_wait => {
            let accepted = Accepted { job: Some(job) };
            output.document(&accepted, || job.to_string())?;
            return Ok(Exit::Done);
        }
        Some(job) => {
            let interrupt = interrupt::on_ctrl_c();
            wait::for_job(
                controller,
                &context.progress,
                &interrupt,
                name.as_str(),
                job,
            )
            .await?;
        }
        None => output.line(&format!("{name}: {}", messages::CREATED_ALREADY))?,
    }
    let vm = controller.call::<VmShow>([name.as_str()], &()).await?;
    output.success(&vm, || {
        if started {
            messages::vm_created_and_started(&vm.name, &vm.host)
        } else {
            messages::vm_created(&vm.name, &vm.host)
        }
    })?;
    Ok(Exit::Done)
}

fn request_of(args: VmCreate) -> Result<VmCreateRequest, Failure> {
    let mut isos = args.iso.into_iter();
    let iso = isos.next();
    Ok(VmCreateRequest {
        name: args.name,
        profile: args.profile,
        image: args.image,
        template: args.template,
        disk_bytes: args.disk,
        iso,
        more_isos: isos.collect(),
        drivers: args.drivers,
        boot: args.boot,
        more_disks: args.add_disk,
        cpus: args.cpus,
        memory_bytes: args.memory,
        host: args.host,
        group: args.group,
        pool: args.pool,
        tpm: !args.no_tpm,
        secure_boot: !args.no_secure_boot,
        start: args.start,
        labels: args.labels.into_iter().collect(),
        nics: (args.no_nic || !args.nics.is_empty()).then_some(args.nics),
        description: args.description,
        autostart: args.autostart,
        seed: seed_of(args.seed)?,
        dry_run: false,
    })
}

async fn list(
    context: &Context,
    query: VmQuery,
    labels: Vec<(LabelKey, String)>,
    limit: Option<usize>,
) -> Result<Exit, Stop> {
    let labels = labels.iter().map(|(key, value)| format!("{key}={value}"));
    let usage = query.usage;
    let query = VmQuery {
        labels: labels.collect(),
        ..query
    };
    let mut pages = context.controller.pages::<VmList, VmView>(query, limit);
    let (mut listing, mut widths) = (context.output.listing(), Widths::default());
    while let Some(vms) = pages.next().await? {
        listing.page(&vms, || match usage {
            true => table::usage::vms(&vms, &mut widths),
            false => table::vms(&vms, &mut widths),
        })?;
    }
    listing.end()?;
    Ok(Exit::Done)
}

/// Waits for the job that pauses or resumes.
async fn held(
    context: &Context,
    name: &VmName,
    accepted: &Accepted,
    no_wait: bool,
    done: [&str; 2],
) -> Result<Exit, Stop> {
    let [done, already] = done;
    let Some(job) = accepted.job else {
        let told = format!("{name}: {already}");
        context.output.success(accepted, || told.clone())?;
        return Ok(Exit::Done);
    };
    if no_wait {
        context.output.document(accepted, || job.to_string())?;
        return Ok(Exit::Done);
    }
    let interrupt = interrupt::on_ctrl_c();
    let (controller, progress) = (&context.controller, &context.progress);
    wait::for_job(controller, progress, &interrupt, name.as_str(), job).await?;
    context
        .output
        .success(accepted, || format!("{name}: {done}"))?;
    Ok(Exit::Done)
}

async fn attach(context: &Context, name: &VmName) -> Result<Exit, Stop> {
    let io = context
        .controller
        .open::<VmConsole>([name.as_str()], &())
        .await?;
    say(&messages::console_open(name));
    let left = console::run(io, name).await?;
    say(match left {
        console::Left::Here => messages::CONSOLE_LEFT,
        console::Left::There => messages::CONSOLE_ENDED,
    });
    Ok(Exit::Done)
}

pub(super) fn seconds(deadline: Duration) -> Result<u32, Failure> {
    u32::try_from(deadline.as_secs())
        .ok()
        .filter(|seconds| (1..=3600).contains(seconds))
        .ok_or_else(|| {
            Failure::new(
                ErrorCode::InvalidArgument,
                "a guest gets 1 second to 1 hour",
            )
            .fix("--deadline 2m")
        })
}
