//! Fake remotes to try vidgen against, without a key and without a bill.
//!
//! ```text
//! provider-lab replicate=4001 fal=4002 --seconds 3
//! ```

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use vidgen_providers::lab::{Faults, Lab, Play, Rates, Setup, remotes};

const USAGE: &str = "usage: provider-lab NAME[=PORT]… [--seconds N] [--faults RATE] [--seed N]

  NAME[=PORT]    a remote, on that port or on any
  --seconds N    how long a run takes (3)
  --faults RATE  how many of all calls go wrong, from 0 to 1 (0)
  --seed N       which calls go wrong (1)

remotes:";

/// What was asked for on the command line.
struct Wanted {
    /// Name and port.
    remotes: Vec<(String, u16)>,
    seconds: f64,
    faults: f64,
    seed: u64,
}

impl Wanted {
    /// `None` if it is not understood.
    fn parse(mut args: impl Iterator<Item = String>) -> Option<Self> {
        let mut wanted = Self { remotes: Vec::new(), seconds: 3.0, faults: 0.0, seed: 1 };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--seconds" => wanted.seconds = args.next()?.parse().ok()?,
                "--faults" => wanted.faults = args.next()?.parse().ok()?,
                "--seed" => wanted.seed = args.next()?.parse().ok()?,
                flag if flag.starts_with('-') => return None,
                remote => {
                    let (name, port) = remote.split_once('=').unwrap_or((remote, "0"));
                    wanted.remotes.push((name.to_owned(), port.parse().ok()?));
                }
            }
        }
        let sane = (0.0..=3600.0).contains(&wanted.seconds) && (0.0..=1.0).contains(&wanted.faults);
        (sane && !wanted.remotes.is_empty()).then_some(wanted)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(wanted) = Wanted::parse(std::env::args().skip(1)) else {
        let names: Vec<&str> = remotes().iter().map(|remote| remote.id()).collect();
        return give_up(&format!("{USAGE} {}", names.join(", ")));
    };
    let mut labs = Vec::new();
    for (name, port) in wanted.remotes {
        let Some(remote) = remotes().into_iter().find(|remote| remote.id() == name) else {
            return give_up(&format!("there is no remote {name:?}"));
        };
        let mut setup = Setup::default();
        setup.port = port;
        let lab = match Lab::start_with(remote, setup).await {
            Ok(lab) => lab,
            Err(e) => return give_up(&format!("{name} cannot have port {port}: {e}")),
        };
        lab.always(Play::succeeds().after(Duration::from_secs_f64(wanted.seconds)));
        // Each of the five faults has its share.
        let rates = Rates::all(wanted.faults / 5.0);
        lab.faults(Faults { seed: wanted.seed, submits: rates, reads: rates, outputs: rates });
        // Nobody reads it: then there is nobody to tell.
        drop(writeln!(std::io::stdout(), "{name}: {} key {}", lab.base_url(), lab.key()));
        labs.push(lab);
    }
    // Until it is ended from the outside.
    std::future::pending::<()>().await;
    ExitCode::SUCCESS
}

fn give_up(message: &str) -> ExitCode {
    drop(writeln!(std::io::stderr(), "{message}"));
    ExitCode::from(2)
}
