//! `ci/demo`: tells the story on this machine and stays up for a look, or cleans up with `--once`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use tests::run::run;
use tests::story::{self, Narrator};
use tests::world::{Runtime, World};

/// Where the demo lives; on a disk, because the guests' file systems are overlays.
const HOME: &str = "/var/tmp/ctrlable-demo";

struct Terminal {
    begun: Instant,
    chapter: u32,
}

impl Narrator for Terminal {
    fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        println!("\n{}. {title}   [{:.0} s]", self.chapter, self.begun.elapsed().as_secs_f64());
    }

    fn proof(&mut self, text: &str) {
        println!("   ✓ {text}");
        let _ = std::io::stdout().flush();
    }

    fn show(&mut self, text: &str) {
        for line in text.lines() {
            println!("     {line}");
        }
        let _ = std::io::stdout().flush();
    }
}

fn main() -> ExitCode {
    let once = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--once") => true,
        Some(other) => {
            eprintln!("ci/demo: `{other}` is not known; the only option is --once: clean up and exit at the end");
            return ExitCode::from(2);
        }
    };
    match demo(once) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThis step does not hold: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(once: bool) -> Result<()> {
    let home = std::env::var_os("CTRLABLE_DEMO_DIR").map_or_else(|| PathBuf::from(HOME), PathBuf::from);
    let mut world = World::fresh(&home, Runtime::Nspawn)?;
    let mut terminal = Terminal { begun: Instant::now(), chapter: 0 };
    story::tell(&mut world, &mut terminal)?;
    println!("\nThe site at the end   [{:.0} s]\n", terminal.begun.elapsed().as_secs_f64());
    print!("{}", run(&mut world.ctrlable(["status"]))?);
    if once {
        world.take_down()?;
        std::fs::remove_dir_all(&home).with_context(|| format!("{} cannot be removed", home.display()))?;
        return Ok(());
    }
    println!("\nLook around in another terminal, in this directory:");
    for line in story::around(&world) {
        println!("  {line}");
    }
    println!("Ctrl-C takes everything down.");
    wait_for_interrupt()?;
    world.take_down()
}

fn wait_for_interrupt() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(tokio::signal::ctrl_c())?)
}
