//! Every option and argument, as `-h` shows it. A change here is a change of the contract.

use crate::fake::fleetward;
use clap::CommandFactory;

#[test]
fn commands_and_options_are_those_of_the_contract() {
    let mut root = fleetward_cli::Cli::command();
    root.build();
    let mut paths = Vec::new();
    collect(&root, &mut Vec::new(), &mut paths);
    let mut all = String::new();
    for path in paths {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("-h");
        let output = fleetward(&arguments).output().unwrap();
        assert!(output.status.success(), "{path:?}");
        all.push_str(&format!("$ fleetward {}\n", arguments.join(" ")));
        all.push_str(&String::from_utf8(output.stdout).unwrap());
        all.push('\n');
    }
    insta::assert_snapshot!("help", all);
}

fn collect(command: &clap::Command, path: &mut Vec<String>, into: &mut Vec<Vec<String>>) {
    into.push(path.clone());
    for below in command.get_subcommands() {
        path.push(below.get_name().to_owned());
        collect(below, path, into);
        path.pop();
    }
}
