//! How long a step takes beside its command, for `bench/run`: `step ROOT SCRATCH COUNT` runs `/bin/true` in the directory
//! ROOT as often as that and writes the microseconds of each, from the start of its init to its end with overlay mounted
//! and unmounted, in a line of its own. SCRATCH is an empty directory on the same file system; both, with their groups,
//! belong to whoever calls.

#![allow(clippy::print_stdout, reason = "what it writes is its result")]

use std::{env, error::Error, fs, path::Path, time::Instant};

use executor::sandbox::{
    self, Connection, Exit, Mode, Network, PlanInputs, Root, SandboxPlan, Spares, StepLimits, User,
};
use solver::{
    Cancel,
    op::{self, Relaxations},
};

fn main() -> Result<(), Box<dyn Error>> {
    if sandbox::is_init_call() {
        sandbox::init_main();
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [root, scratch, count] = arguments.as_slice() else {
        return Err("usage: step ROOT SCRATCH COUNT".into());
    };
    let footing = sandbox::enter_builder(Mode::Auto, Relaxations::default())?.footing;
    let spares = Spares::default();
    for number in 0..count.parse::<u32>()? {
        let place = Path::new(scratch).join(number.to_string());
        let (upper, work) = (place.join("upper"), place.join("work"));
        fs::create_dir_all(&upper)?;
        fs::create_dir(&work)?;
        let plan = SandboxPlan::new(PlanInputs {
            exec: &op::Exec::new(["/bin/true"]),
            ambient_env: &[],
            footing,
            root: Root::Overlay { lowers: vec![root.into()], upper, work },
            mounts: Vec::new(),
            device_env: Vec::new(),
            secret_env: Vec::new(),
            user: User::default(),
            home: None,
            connection: Connection::resolved_by(Network::Default, String::new()),
            limits: &StepLimits::default(),
        })?;
        let begun = Instant::now();
        let exit = spares.run(&plan, &|_, _| {}, &Cancel::default())?;
        println!("{}", begun.elapsed().as_micros());
        if exit != Exit::Code(0) {
            return Err(exit.to_string().into());
        }
    }
    Ok(())
}
