//! Runs a tool that reads strangers' files: no shell, no network, a clean environment, limits.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use vidgen_core::{Error, ErrorKind, Result, quote};

use super::ORIGIN;

/// Where tools are looked up. The environment of this process is not read, and not handed on.
const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/opt/homebrew/bin";

/// How long a tool may take to say its version.
const DETECT_WALL: Duration = Duration::from_secs(10);

/// How much of what a tool prints is kept. Reports of ffprobe are a few KiB.
const MAX_PRINTED: usize = 1 << 20;

/// What one run of a tool may use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ToolLimits {
    /// How long it may take.
    pub wall: Duration,
    /// How long looking at a file may take.
    pub probe_wall: Duration,
    /// How many seconds of processor time it may use, over all its threads.
    pub cpu_seconds: u64,
    /// How many bytes it may write to one file.
    pub file_bytes: u64,
    /// How many bytes of addresses it may map. Encoding 1080p with two threads maps about half
    /// of the default.
    pub address_bytes: u64,
    /// With how many threads it works.
    pub threads: u32,
}

impl Default for ToolLimits {
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(120),
            probe_wall: Duration::from_secs(10),
            cpu_seconds: 240,
            file_bytes: 2 << 30,
            address_bytes: 2 << 30,
            threads: 2,
        }
    }
}

/// Starts tools inside their limits.
#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    pub(super) limits: ToolLimits,
    /// Whether `prlimit` is there to set limits before the tool starts.
    prlimit: bool,
    /// Whether `unshare` may give the tool a network of its own, in which there is nothing.
    unshare: bool,
}

/// What a tool did, if it ended well.
#[derive(Debug)]
pub(super) struct Printed {
    pub(super) stdout: Vec<u8>,
}

/// One run of a tool.
#[derive(Debug)]
pub(super) struct Invocation<'a> {
    pub(super) program: &'a Path,
    pub(super) arguments: Vec<OsString>,
    /// Where it runs; error messages do not show this path.
    pub(super) dir: &'a Path,
    pub(super) wall: Duration,
}

impl Sandbox {
    /// Looks which means of confinement this machine has.
    pub(super) fn detect(limits: ToolLimits) -> Self {
        let works = |program: &str, arguments: &[&str]| ask(Path::new(program), arguments).is_some();
        Self {
            prlimit: works("prlimit", &["--nofile=64", "--", "true"]),
            unshare: works("unshare", &["--map-root-user", "--net", "--", "true"]),
            limits,
        }
    }

    /// Runs the tool to its end; `on_line` sees each line that it prints.
    pub(super) async fn run(&self, call: Invocation<'_>, mut on_line: impl FnMut(&str)) -> Result<Printed> {
        let name = call.program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = self.command(&call);
        let unstarted = |e: std::io::Error| {
            Error::new(ErrorKind::Unavailable, ORIGIN, format!("{name} cannot be started")).with_source(e)
        };
        let mut child = command.spawn().map_err(unstarted)?;
        let group = Group::of(&child);
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let work = async {
            let printing = async { read_lines(stdout, &mut on_line).await };
            let (stdout, complaint) = tokio::join!(printing, read_tail(stderr));
            (child.wait().await, stdout, complaint)
        };
        let Ok((status, stdout, complaint)) = tokio::time::timeout(call.wall, work).await else {
            let seconds = call.wall.as_secs();
            return Err(Error::new(
                ErrorKind::Media,
                ORIGIN,
                format!("media limit: {name} took longer than {seconds} s"),
            ));
        };
        let status = status.map_err(unstarted)?;
        group.spare();
        if status.success() { Ok(Printed { stdout }) } else { Err(explain(&name, status, &complaint, call.dir)) }
    }

    fn command(&self, call: &Invocation<'_>) -> Command {
        let limits = &self.limits;
        let mut line: Vec<OsString> = Vec::new();
        if self.unshare {
            line.extend(["unshare", "--map-root-user", "--net", "--"].map(OsString::from));
        }
        if self.prlimit {
            line.push("prlimit".into());
            line.push(format!("--as={}", limits.address_bytes).into());
            line.push(format!("--cpu={}", limits.cpu_seconds).into());
            line.push(format!("--fsize={}", limits.file_bytes).into());
            line.extend(["--nofile=64", "--core=0", "--"].map(OsString::from));
        }
        line.push(call.program.into());
        let mut words = line.into_iter().chain(call.arguments.iter().cloned());
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("LC_ALL", "C.UTF-8")
            .current_dir(call.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        command
    }
}

/// What a tool prints when it is asked something at start, or `None` if it does not run.
pub(super) fn ask(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        use std::io::Read;
        let mut text = Vec::new();
        let limit = u64::try_from(MAX_PRINTED).unwrap_or(u64::MAX);
        stdout.map(|pipe| pipe.take(limit).read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < DETECT_WALL => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                // It hangs; whoever still holds the pipe keeps the reader, which ends with it.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    if status.success() { reader.join().ok() } else { None }
}

/// Kills the whole process group of a tool that was not waited for, as its children would stay.
#[derive(Debug)]
struct Group(Option<u32>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id())
    }

    /// It ended by itself: its number may soon be another's.
    fn spare(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(pid) = self.0.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

async fn read_lines(pipe: Option<impl AsyncRead + Unpin>, on_line: &mut impl FnMut(&str)) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(pipe) = pipe else { return kept };
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without an end is cut, so that a tool gone wild fills no memory.
        match (&mut reader).take(64 * 1024).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return kept,
            Ok(_) => {
                on_line(String::from_utf8_lossy(&line).trim_end());
                if kept.len() + line.len() <= MAX_PRINTED {
                    kept.extend_from_slice(&line);
                }
            }
        }
    }
}

async fn read_tail(pipe: Option<impl AsyncRead + Unpin>) -> String {
    const TAIL: usize = 8 * 1024;
    let mut tail = Vec::new();
    let Some(mut pipe) = pipe else { return String::new() };
    let mut chunk = vec![0; 4096];
    while let Ok(got @ 1..) = pipe.read(&mut chunk).await {
        tail.extend_from_slice(chunk.get(..got).unwrap_or_default());
        let surplus = tail.len().saturating_sub(TAIL);
        tail.drain(..surplus);
    }
    String::from_utf8_lossy(&tail).into_owned()
}

fn explain(name: &str, status: ExitStatus, complaint: &str, dir: &Path) -> Error {
    const HIT: [&str; 5] =
        ["received signal", "annot allocate memory", "failed to map segment", "File too large", "std::bad_alloc"];
    // As a shell says it of its child: KILL, XCPU, XFSZ.
    let child_killed = status.code().is_some_and(|code| [128 + 9, 128 + 24, 128 + 25].contains(&code));
    if child_killed || killed(status) || HIT.iter().any(|sign| complaint.contains(sign)) {
        return Error::new(
            ErrorKind::Media,
            ORIGIN,
            format!("media limit: {name} needed more time, memory or disk than it may use"),
        );
    }
    if status.code() == Some(127) || complaint.contains("failed to execute") {
        return Error::new(ErrorKind::Unsupported, ORIGIN, format!("{name} does not run on this machine"));
    }
    Error::new(ErrorKind::Media, ORIGIN, format!("{name} failed")).with_quote(&reason(complaint, dir))
}

#[cfg(unix)]
fn killed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal().is_some()
}

#[cfg(not(unix))]
fn killed(_: ExitStatus) -> bool {
    false
}

/// The last line of a complaint that says something, without our paths and ffmpeg's addresses.
fn reason(complaint: &str, dir: &Path) -> String {
    const EMPTY_WORDS: [&str; 4] =
        ["Conversion failed!", "Error while decoding stream", "Output file is empty", "Error opening filters!"];
    let dir = format!("{}/", dir.display());
    complaint
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty() && !EMPTY_WORDS.iter().any(|words| line.starts_with(words)))
        .map(|line| {
            let line = line.replace("file:", "").replace(&dir, "");
            let text = line.strip_prefix('[').and_then(|l| l.split_once("] ")).map_or(line.as_str(), |(_, text)| text);
            quote(text)
        })
        .unwrap_or_else(|| "it gave no reason".into())
}

/// The program at the place that was given, or the one of that name in the usual places.
pub(super) fn locate(given: Option<&Path>, name: &str, probe: &[&str]) -> Result<Option<(PathBuf, String)>> {
    let program = given.map_or_else(|| PathBuf::from(name), Path::to_path_buf);
    match ask(&program, probe) {
        Some(printed) => Ok(Some((program, printed))),
        None if given.is_some() => Err(Error::invalid_field(name, "does not run")),
        None => Ok(None),
    }
}

/// Joins words and paths to an argument vector.
pub(super) fn words<const N: usize>(list: [&dyn AsRef<OsStr>; N]) -> Vec<OsString> {
    list.iter().map(|word| word.as_ref().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call<'a>(script: &str, dir: &'a Path) -> Invocation<'a> {
        Invocation {
            program: Path::new("/bin/sh"),
            arguments: words([&"-c", &script]),
            dir,
            wall: Duration::from_secs(5),
        }
    }

    fn sandbox() -> Sandbox {
        Sandbox::detect(ToolLimits::default())
    }

    #[tokio::test]
    async fn a_tool_sees_a_clean_environment_and_no_network() {
        let dir = tempfile::tempdir().unwrap();
        let script = "env; echo files=$(ulimit -n); cat /proc/net/dev | tail -n +3";
        let printed = sandbox().run(call(script, dir.path()), |_| {}).await.unwrap();
        let text = String::from_utf8(printed.stdout).unwrap();
        assert!(!text.contains("HOME=") && !text.contains("CARGO"), "{text}");
        if sandbox().prlimit {
            assert!(text.contains("files=64"), "{text}");
        }
        if sandbox().unshare {
            assert_eq!(text.matches(':').count() - text.matches("PATH").count() * 3, 1, "only lo: {text}");
        }
    }

    #[tokio::test]
    async fn limits_are_called_by_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut slow = call("sleep 60", dir.path());
        slow.wall = Duration::from_millis(50);
        let error = sandbox().run(slow, |_| {}).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Media && error.message().contains("media limit"), "{error}");
        let error = sandbox().run(call("kill -XCPU $$", dir.path()), |_| {}).await.unwrap_err();
        assert!(error.message().contains("media limit"), "{error}");
        let mut tight = sandbox();
        tight.limits.file_bytes = 1000;
        if tight.prlimit {
            let error = tight.run(call("head -c 100000 /dev/zero > big", dir.path()), |_| {}).await.unwrap_err();
            assert!(error.message().contains("media limit"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_children_of_a_tool_die_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut slow = call("(sleep 1; touch late) & echo started; sleep 60", dir.path());
        slow.wall = Duration::from_millis(200);
        sandbox().run(slow, |_| {}).await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(!dir.path().join("late").exists());
    }

    #[test]
    fn a_reason_shows_no_path() {
        let complaint =
            "[mov,mp4 @ 0x55] moov atom not found\nfile:/tmp/x/in.mp4: Invalid data found\nConversion failed!\n";
        assert_eq!(reason(complaint, Path::new("/tmp/x")), "in.mp4: Invalid data found");
        assert_eq!(reason("[png @ 0x5f] bad header\n", Path::new("/tmp/x")), "bad header");
        assert_eq!(reason("\n", Path::new("/tmp/x")), "it gave no reason");
    }
}
