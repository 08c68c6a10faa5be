//! Running to the end: output, input, errors, surroundings.

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::time::Duration;

use common::Watchdog;
use phalanx_subprocess::{Command, Error, Redirect, call, check_output, run};

const BIG: usize = 10 << 20;

/// Bytes that repeat only after a long while, so that a lost or doubled block shows.
fn bytes() -> Vec<u8> {
    (0..BIG / 4)
        .flat_map(|number| (number as u32).to_le_bytes())
        .collect()
}

#[test]
fn ten_megabytes_go_in_and_twice_out_without_deadlock() {
    let _watchdog = Watchdog::new();
    let bytes = bytes();
    let done = Command::shell("tee /dev/stderr")
        .input(bytes.clone())
        .capture_output()
        .run()
        .unwrap();
    assert_eq!(done.returncode(), 0);
    assert!(
        done.stdout == bytes,
        "{} bytes came back",
        done.stdout.len()
    );
    assert!(
        done.stderr == bytes,
        "{} bytes came back",
        done.stderr.len()
    );
}

#[test]
fn output_before_input_is_read_does_not_deadlock() {
    let _watchdog = Watchdog::new();
    let line = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; wc -c";
    let done = Command::shell(line)
        .input(bytes())
        .capture_output()
        .run()
        .unwrap();
    assert_eq!(done.stderr.len(), 3_000_000);
    assert_eq!(
        String::from_utf8_lossy(&done.stdout[3_000_000..]).trim(),
        BIG.to_string()
    );
}

#[test]
fn a_command_need_not_read_its_input() {
    let _watchdog = Watchdog::new();
    let done = Command::new("true")
        .input(bytes())
        .capture_output()
        .run()
        .unwrap();
    assert!(done.status.success());
    let done = Command::shell("exec <&-; sleep 0.05; exit 4")
        .input(bytes())
        .run()
        .unwrap();
    assert_eq!(done.returncode(), 4);
}

#[test]
fn call_and_check_output_say_how_it_ended() {
    let _watchdog = Watchdog::new();
    assert_eq!(call(["sh", "-c", "exit 7"]).unwrap().code(), Some(7));
    assert_eq!(check_output(["printf", "%s", "a b"]).unwrap(), b"a b");

    let failed = Command::shell("echo partial; echo no luck >&2; exit 3")
        .stderr(Redirect::Pipe)
        .check_output();
    let Err(Error::CalledProcess(error)) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(error.0.stdout, b"partial\n");
    let said = error.to_string();
    assert!(
        said.contains("ended with exit code 3; its last words: no luck"),
        "{said}"
    );
}

#[test]
fn a_signal_is_called_by_its_name() {
    let _watchdog = Watchdog::new();
    let done = run(["sh", "-c", "kill -USR1 $$"]).unwrap();
    assert!(done.returncode() < 0);
    assert_eq!(done.signal(), Some(-done.returncode()));
    let error = done.check_returncode().unwrap_err().to_string();
    assert!(error.contains("was killed by SIGUSR1"), "{error}");
}

#[test]
fn what_is_missing_is_named() {
    let said = |command: Command| command.run().unwrap_err().to_string();
    assert_eq!(
        said(Command::new("no-such-program").arg("x")),
        "cannot start `no-such-program`: no such program in PATH"
    );
    assert_eq!(
        said(Command::new("/no/such")),
        "cannot start `/no/such`: no such file"
    );
    assert_eq!(
        said(Command::new("true").cwd("/no/such/folder")),
        "cannot start `true`: no such directory to run it in: /no/such/folder"
    );
    assert_eq!(
        said(Command::from_args([""; 0])),
        "cannot start ``: no program was given"
    );
    assert!(said(Command::new("/etc/passwd")).contains("ermission denied"));
    assert!(matches!(
        Command::new("true").arg("a\0b").run(),
        Err(Error::Spawn(_))
    ));
    assert!(said(Command::new("true").stdin(Redirect::Stdout)).contains("only stderr can"));
}

#[test]
fn a_missing_interpreter_is_told_from_a_missing_file() {
    let path = std::env::temp_dir().join(format!("phalanx-script-{}", std::process::id()));
    fs::write(&path, "#!/no/such/interpreter\n").unwrap();
    let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, mode).unwrap();
    let error = Command::new(&path).run().unwrap_err().to_string();
    fs::remove_file(&path).unwrap();
    assert!(
        error.contains("the interpreter or loader it names is not"),
        "{error}"
    );
}

#[test]
fn surroundings_are_as_given() {
    let _watchdog = Watchdog::new();
    let command = Command::shell("pwd; echo $A; echo ${B-none}; echo ${HOME-none}");
    let command = command
        .cwd("/")
        .env("B", "gone")
        .env_clear()
        .env("A", "1")
        .env("A", "2")
        .env_remove("B");
    // A description can be run any number of times.
    for _ in 0..2 {
        assert_eq!(command.check_output().unwrap(), b"/\n2\nnone\nnone\n");
    }
}

#[test]
fn streams_go_where_they_are_sent() {
    let _watchdog = Watchdog::new();
    let both = "echo 1; echo 2 >&2; echo 3; echo 4 >&2";
    let merged = Command::shell(both)
        .stdout(Redirect::Pipe)
        .stderr(Redirect::Stdout)
        .run()
        .unwrap();
    assert_eq!(merged.stdout_text(), "1\n2\n3\n4\n");
    assert!(merged.stderr.is_empty());

    let path = std::env::temp_dir().join(format!("phalanx-streams-{}", std::process::id()));
    let mut file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    fs::remove_file(&path).unwrap();
    writeln!(file, "0").unwrap();
    let shared = || Redirect::File(file.try_clone().unwrap());
    Command::shell(both)
        .stdout(shared())
        .stderr(Redirect::Stdout)
        .run()
        .unwrap();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "0\n1\n2\n3\n4\n");

    file.rewind().unwrap();
    let read = Command::new("cat")
        .stdin(Redirect::File(file))
        .check_output()
        .unwrap();
    assert_eq!(read, text.as_bytes());
    assert_eq!(
        Command::new("cat")
            .stdin(Redirect::Null)
            .check_output()
            .unwrap(),
        b""
    );
    let dropped = Command::shell(both)
        .stdout(Redirect::Null)
        .stderr(Redirect::Pipe)
        .run()
        .unwrap();
    assert_eq!(
        (dropped.stdout_text(), dropped.stderr_text()),
        ("".into(), "2\n4\n".into())
    );
}

#[test]
fn a_fast_enough_command_does_not_time_out() {
    let _watchdog = Watchdog::new();
    for _ in 0..50 {
        let done = Command::new("cat")
            .input("x")
            .capture_output()
            .timeout(Duration::MAX)
            .run()
            .unwrap();
        assert_eq!(done.stdout, b"x");
    }
}
