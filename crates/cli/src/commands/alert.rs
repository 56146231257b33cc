//! `fleetward alert ...`: what needs somebody now, and where that is sent to.

use super::Context;
use crate::args::{AlertCommand, MailArgs, WebhookArgs};
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::{messages, table};
use fleetward_api::controller::{
    AlertTargetRequest, AlertTargetView, AlertView, AlertWay, Mail, Secret, Webhook,
};
use fleetward_api::lists::LibraryQuery;
use fleetward_api::verbs::{
    AlertList, AlertTargetAdd, AlertTargetList, AlertTargetRemove, AlertTargetTest,
};
use fleetward_model::{ErrorCode, Failure};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use zeroize::Zeroizing;

/// Bytes of a file with a secret.
const LONGEST_SECRET: u64 = 4096;
/// Bytes of a file with certificates.
const LONGEST_PEM: u64 = 256 * 1024;

pub(super) async fn run(context: &Context, command: AlertCommand) -> Result<Exit, Stop> {
    let controller = &context.controller;
    let query = |after| LibraryQuery {
        after,
        ..LibraryQuery::default()
    };
    match command {
        AlertCommand::Now { rows } => {
            let listed = controller.list::<AlertList, _>(query(rows.after), rows.limit);
            let all: Vec<AlertView> = listed.await?;
            context.output.document(&all, || table::alerts(&all))?;
        }
        AlertCommand::List { rows } => {
            let listed = controller.list::<AlertTargetList, _>(query(rows.after), rows.limit);
            let all: Vec<AlertTargetView> = listed.await?;
            let shown = || table::alert_targets(&all);
            context.output.document(&all, shown)?;
        }
        AlertCommand::AddWebhook(args) => add(context, webhook(args)?).await?,
        AlertCommand::AddMail(args) => add(context, mail(args)?).await?,
        AlertCommand::Test { name } => {
            let tested = controller.call::<AlertTargetTest>([name.as_str()], &());
            let tested = tested.await?;
            let said = || messages::alert_tested(&name);
            context.output.success(&tested, said)?;
        }
        AlertCommand::Remove { name } => {
            confirm(context.yes, &messages::confirm_remove_alert_target(&name))?;
            let removed = controller.call::<AlertTargetRemove>([name.as_str()], &());
            let removed = removed.await?;
            let said = || messages::alert_target_removed(&name);
            context.output.success(&removed, said)?;
        }
    }
    Ok(Exit::Done)
}

async fn add(context: &Context, request: AlertTargetRequest) -> Result<(), Stop> {
    let added = context.controller.call::<AlertTargetAdd>([], &request);
    let added = added.await?;
    let said = || messages::alert_target_added(&added.name);
    context.output.success(&added, said)?;
    Ok(())
}

fn webhook(args: WebhookArgs) -> Result<AlertTargetRequest, Failure> {
    let url = match (args.url, &args.url_file) {
        (Some(url), _) => Secret::new(url),
        (None, Some(file)) => secret(file)?,
        (None, None) => unreachable!("one of them is required"),
    };
    let way = AlertWay::Webhook(Webhook {
        url,
        secret: args.secret_file.as_deref().map(secret).transpose()?,
        ca: args.common.authority.as_deref().map(pem).transpose()?,
    });
    Ok(AlertTargetRequest {
        name: args.name,
        way,
        codes: args.common.codes,
    })
}

fn mail(args: MailArgs) -> Result<AlertTargetRequest, Failure> {
    let way = AlertWay::Mail(Mail {
        to: args.to,
        from: args.from,
        smtp: args.smtp,
        tls: args.tls,
        user: args.user,
        password: args.password_file.as_deref().map(secret).transpose()?,
        ca: args.common.authority.as_deref().map(pem).transpose()?,
    });
    Ok(AlertTargetRequest {
        name: args.name,
        way,
        codes: args.common.codes,
    })
}

/// The first line of a file.
fn secret(path: &Path) -> Result<Secret, Failure> {
    let text = read(path, LONGEST_SECRET)?;
    Ok(Secret::new(
        text.lines().next().unwrap_or_default().to_owned(),
    ))
}

fn pem(path: &Path) -> Result<String, Failure> {
    Ok(read(path, LONGEST_PEM)?.to_string())
}

fn read(path: &Path, most: u64) -> Result<Zeroizing<String>, Failure> {
    // Room for all of it, so that no copy is left behind when it grows.
    let room = usize::try_from(most + 1).unwrap_or(usize::MAX);
    let mut text = Zeroizing::new(String::with_capacity(room));
    let read = File::open(path).and_then(|file| file.take(most + 1).read_to_string(&mut text));
    let read = read.and_then(|read| match read as u64 <= most {
        true => Ok(()),
        false => Err(io::Error::other(format!("it has more than {most} bytes"))),
    });
    read.map_err(|error| {
        let what = format!("cannot read {}", path.display());
        Failure::new(ErrorCode::InvalidArgument, what)
            .because(error)
            .fix("name a text file that you can read")
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_durable::{self as durable, Access};

    fn of(bytes: &[u8]) -> Result<Secret, Failure> {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("secret");
        durable::replace(&file, bytes, Access::PRIVATE).expect("written");
        secret(&file)
    }

    #[test]
    fn a_secret_is_the_first_line_of_a_small_text_file() {
        let read = of(b"a secret of some length\nnot this\n").expect("read");
        assert_eq!(read.reveal(), "a secret of some length");
        let longest = vec![b'x'; LONGEST_SECRET as usize];
        of(&longest).expect("read");
        let too_long = vec![b'x'; LONGEST_SECRET as usize + 1];
        for (bytes, why) in [(&too_long[..], "4096 bytes"), (&[0xff, 0xfe, 0], "UTF-8")] {
            let refused = of(bytes).expect_err(why);
            assert_eq!(refused.code, ErrorCode::InvalidArgument);
            assert!(refused.because.contains(why), "{refused}");
        }
        assert!(secret(Path::new("/nowhere/secret")).is_err());
        // One that never ends is read no further than that.
        assert!(secret(Path::new("/dev/zero")).is_err());
    }
}
