//! External commands: output, exit codes, time-outs that end the whole process group.

use phalanx::subprocess::{Command, call, check_output, run};

fn main() -> phalanx::Result<()> {
    println!("call: {}", call(["true"])?);
    println!(
        "run: exit code {}",
        run(["sh", "-c", "exit 3"])?.returncode()
    );
    println!(
        "check_output: {:?}",
        String::from_utf8_lossy(&check_output(["echo", "hello"])?)
    );
    if let Err(error) = check_output(["sh", "-c", "echo oh no >&2; exit 1"]) {
        println!("a failure: {error}");
    }
    let sorted = Command::new("sort")
        .input("pear\napple\n")
        .capture_output()
        .run()?;
    println!("with input: {:?}", sorted.stdout_text());
    // The shell's own child would live on; the group does not.
    let slow = Command::new("sh").args(["-c", "sleep 3600 & sleep 3600"]);
    if let Err(error) = slow.timeout(std::time::Duration::from_millis(100)).run() {
        println!("a time-out: {error}");
    }
    Ok(())
}
