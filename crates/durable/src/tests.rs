//! What a reader finds after each way a write can end.

use super::*;
use crate::point::faults::{self, Fault};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

const POINTS: [Point; 5] = [
    Point::Created,
    Point::Written,
    Point::Synced,
    Point::Renamed,
    Point::ParentSynced,
];

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("metadata").permissions().mode() & 0o7777
}

#[test]
fn a_replaced_file_has_the_mode_asked_for_and_stands_alone() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("record.json");
    replace(&path, b"1", Access::PRIVATE).expect("write");
    assert_eq!(mode(&path), 0o600);
    // More than any usual umask leaves, and less than the file had.
    for wanted in [0o666, 0o644, 0o440] {
        replace(&path, b"2", Access::mode(wanted)).expect("write");
        assert_eq!(mode(&path), wanted);
    }
    assert_eq!(read(&path).expect("read").as_deref(), Some(&b"2"[..]));
    assert_eq!(names(dir.path()), ["record.json"]);
    remove(&path).expect("remove");
    remove(&path).expect("twice");
    assert_eq!(read(&path).expect("read"), None);
}

#[test]
fn a_lock_ends_although_a_child_being_started_has_its_file_too() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("lock");
    let held = try_lock(&path).expect("open").expect("free");
    assert!(try_lock(&path).expect("open").is_err());
    // what a child has between its fork and its exec
    let child = held.try_clone().expect("duplicate");
    drop(held);
    drop(try_lock(&path).expect("open").expect("free again"));
    drop(child);
}

#[test]
fn a_file_gets_its_owner_before_its_name() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT TESTED: giving a file to another user needs root");
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("state");
    let access = Access::mode(0o640).owned_by(12, 34);
    replace(&path, b"state", access).expect("write");
    let found = fs::metadata(&path).expect("metadata");
    assert_eq!((found.uid(), found.gid()), (12, 34));
    assert_eq!(mode(&path), 0o640);
}

#[test]
fn of_two_creators_the_first_wins_and_nothing_else_stays() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("key.pem");
    assert!(create(&path, b"one", Access::PRIVATE).expect("create"));
    assert!(!create(&path, b"two", Access::PRIVATE).expect("create"));
    assert_eq!(read(&path).expect("read").as_deref(), Some(&b"one"[..]));
    // A link that leads nowhere takes the name, too.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/nonexistent", &link).expect("link");
    assert!(!create(&link, b"three", Access::PRIVATE).expect("create"));
    assert_eq!(names(dir.path()), ["key.pem", "link"]);
}

#[test]
fn content_is_on_the_disk_before_the_name_and_the_name_before_success() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("file");
    drop(faults::passed());
    replace(&path, b"content", Access::PRIVATE).expect("write");
    assert_eq!(faults::passed(), POINTS);
    remove(&path).expect("remove");
    assert_eq!(faults::passed(), [Point::ParentSynced]);
    make_directory(&dir.path().join("a/b/c"), 0o711).expect("make");
    assert_eq!(faults::passed(), [Point::ParentSynced; 3]);
    make_directory(&dir.path().join("a/b/c"), 0o700).expect("make");
    assert_eq!(faults::passed(), [], "it is there already");
    ensure_directory(&dir.path().join("a/b/c"), 0o755).expect("there");
    assert_eq!(mode(&dir.path().join("a/b/c")), 0o700, "as it was");
    fs::write(dir.path().join("a/file"), "x").expect("write");
    rename(&dir.path().join("a/file"), &dir.path().join("a/b/file")).expect("rename");
    assert_eq!(
        faults::passed(),
        [Point::Renamed, Point::ParentSynced, Point::ParentSynced],
        "both directories"
    );
}

#[test]
fn a_write_that_fails_leaves_the_old_content_and_nothing_beside_it() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("file");
    replace(&path, b"old", Access::PRIVATE).expect("write");
    for point in POINTS {
        faults::set(Some((point, Fault::Fail(io::ErrorKind::StorageFull))));
        let failed = replace(&path, b"new", Access::PRIVATE).expect_err("fails");
        faults::set(None);
        assert!(is_full(&failed), "{failed}");
        let renamed = matches!(point, Point::Renamed | Point::ParentSynced);
        let expected: &[u8] = if renamed { b"new" } else { b"old" };
        assert_eq!(read(&path).expect("read").as_deref(), Some(expected));
        assert_eq!(names(dir.path()), ["file"], "{point:?}");
        replace(&path, b"old", Access::PRIVATE).expect("write");
    }
}

/// The environment variables that make a test process write one file and die: directory, number of the point.
const VICTIM: [&str; 2] = ["DURABLE_TEST_DIRECTORY", "DURABLE_TEST_POINT"];

#[test]
fn victim() {
    let [Some(directory), Some(point)] = VICTIM.map(std::env::var_os) else {
        return;
    };
    let point: usize = point.to_string_lossy().parse().expect("number");
    faults::set(Some((POINTS[point], Fault::Kill)));
    let path = Path::new(&directory).join("file");
    replace(&path, &[b'n'; 100_000], Access::PRIVATE).expect("dies before");
}

#[test]
fn a_killed_writer_leaves_old_or_new_and_what_else_it_leaves_is_swept() {
    let program = std::env::current_exe().expect("this program");
    for (number, point) in POINTS.into_iter().enumerate() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("file");
        replace(&path, b"old", Access::PRIVATE).expect("write");
        let ended = Command::new(&program)
            .args(["--exact", "tests::victim", "--nocapture"])
            .env(VICTIM[0], dir.path())
            .env(VICTIM[1], number.to_string())
            .output()
            .expect("run");
        assert_eq!(ended.status.signal(), Some(9), "{point:?}: {ended:?}");
        let renamed = matches!(point, Point::Renamed | Point::ParentSynced);
        let found = read(&path).expect("read").expect("there");
        let whole: &[u8] = if renamed { &[b'n'; 100_000] } else { b"old" };
        assert!(found == whole, "{point:?}: {} bytes", found.len());
        let left = names(dir.path()).len() - 1;
        assert_eq!(left, usize::from(!renamed), "{point:?}");
        assert_eq!(sweep(dir.path()).expect("sweep"), left);
        assert_eq!(names(dir.path()), ["file"]);
    }
}

#[test]
fn a_sweep_leaves_drafts_in_use_and_files_of_others() {
    let dir = tempfile::tempdir().expect("directory");
    let id = uuid::Uuid::new_v4();
    let others = ["a.new", ".b.new", "vm.qcow2", "new", &id.to_string()];
    for other in others {
        fs::write(dir.path().join(other), "x").expect("write");
    }
    // Names that earlier releases gave.
    let old = [
        format!(".{id}.new"),
        format!("state.{}.new", id.simple()),
        format!("{}.new", id.simple()),
    ];
    let below = dir.path().join("below");
    fs::create_dir(&below).expect("directory");
    for name in &old {
        fs::write(dir.path().join(name), "half").expect("write");
        fs::write(below.join(name), "half").expect("write");
    }
    let path = dir.path().join("file");
    let draft = Draft::beside(&path, Access::PRIVATE).expect("draft");
    assert_eq!(sweep_file(&path).expect("sweep"), 0, "in use");
    assert_eq!(sweep_tree(dir.path()).expect("sweep"), 6);
    draft.file().write_all(b"whole").expect("write");
    draft.put(&path).expect("put");
    assert_eq!(read(&path).expect("read").as_deref(), Some(&b"whole"[..]));
    assert_eq!(names(dir.path()).len(), others.len() + 2);
    assert!(names(&below).is_empty());

    fs::write(dir.path().join(format!(".file.{}.new", id.simple())), "x").expect("write");
    fs::write(dir.path().join(format!(".other.{}.new", id.simple())), "x").expect("write");
    assert_eq!(sweep_file(&path).expect("sweep"), 1, "only of that file");
    assert_eq!(sweep(&dir.path().join("missing")).expect("sweep"), 0);
}

#[test]
fn a_full_disk_is_named_and_keeps_the_old_content() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT TESTED: a small file system of its own needs root");
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    let place = dir.path().to_owned();
    // The mount is only this thread's, and ends with it.
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("mount namespace");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        let options = Some("size=64k");
        mount(
            Some("small"),
            &place,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .expect("mount");
        let path = place.join("file");
        replace(&path, b"old", Access::PRIVATE).expect("write");
        let failed = replace(&path, &[0; 200_000], Access::PRIVATE).expect_err("full");
        assert!(is_full(&failed), "{failed}");
        assert_eq!(read(&path).expect("read").as_deref(), Some(&b"old"[..]));
        assert_eq!(names(&place), ["file"], "the half-written one is gone");
        replace(&path, b"new", Access::PRIVATE).expect("room again");
    });
    thread.join().expect("the thread's claims hold");
}

#[test]
fn a_wiped_file_is_overwritten_and_one_with_a_second_name_is_not() {
    let dir = tempfile::tempdir().expect("directory");
    let (path, other) = (dir.path().join("key"), dir.path().join("other"));
    replace(&path, b"secret", Access::PRIVATE).expect("write");
    link(&path, &other).expect("link");
    wipe(&other).expect("wipe");
    assert_eq!(read(&path).expect("read").as_deref(), Some(&b"secret"[..]));
    // An open handle shows what was on the disk.
    let mut before = File::open(&path).expect("open");
    wipe(&path).expect("wipe");
    wipe(&path).expect("twice");
    let mut content = Vec::new();
    before.read_to_end(&mut content).expect("read");
    assert_eq!(content, [0; 6]);
    assert!(names(dir.path()).is_empty());
}

#[tokio::test]
async fn async_callers_get_the_same_files() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("a/record.json");
    let of = path.parent().expect("parent");
    background::make_directory(of, 0o700).await.expect("make");
    background::replace_json(&path, &[1, 2], Access::PUBLIC)
        .await
        .expect("write");
    assert_eq!(read_json(&path).expect("read"), Some([1, 2]));
    assert_eq!(mode(&path), 0o644);
    let again = background::create(&path, b"x".to_vec(), Access::PUBLIC).await;
    assert!(!again.expect("create"));
    let draft = Draft::within(of, Access::PRIVATE).expect("draft");
    background::put(draft, &path).await.expect("put");
    assert_eq!(read(&path).expect("read"), Some(Vec::new()));
    background::rename_if_there(&of.join("no"), &of.join("b"))
        .await
        .expect("fine");
    background::remove_tree(of).await.expect("remove");
    assert!(names(dir.path()).is_empty());
}
