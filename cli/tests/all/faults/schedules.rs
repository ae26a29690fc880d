//! RELIABILITY B1: seeded random schedules of faults, fifty in the short run and a thousand in the long one.
//!
//! `LAYERWRIGHT_SEED=N` runs one schedule alone and tells all of it.

use std::{
    fmt::Write,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use oci::Reference;

use super::{
    common::{fault::Server, reference},
    plan::{Running, Schedule, TOKEN},
    site::{Ended, Site},
};

const SHORT: u64 = 50;
const LONG: u64 = 1000;
/// Schedules at a time: they wait more than they work.
const PARALLEL: usize = 8;
/// Of a thousand schedules whose faults end, so many may fail.
const MAY_FAIL_PER_MILLE: usize = 5;

/// What became of a schedule.
enum Verdict {
    /// Exit 0, and the registry has the right image.
    Right,
    /// An honest failure, and the registry has nothing wrong.
    Refused,
    /// What must not be.
    Wrong(String),
}

#[test]
fn no_schedule_of_faults_gives_a_wrong_image() {
    let Some(site) = Site::new() else { return };
    let seeds = match std::env::var("LAYERWRIGHT_SEED") {
        Ok(seed) => seed.parse().map(|seed: u64| seed..=seed).expect("a number"),
        Err(_) if std::env::var_os("LAYERWRIGHT_NIGHTLY").is_some() => 1..=LONG,
        Err(_) => 1..=SHORT,
    };
    let (next, tally) = (AtomicU64::new(*seeds.start()), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Ordering::SeqCst)).filter(|s| seeds.contains(s))
                {
                    let schedule = Schedule::random(seed);
                    let (ended, verdict) = carry_out(&site, &schedule);
                    tally.lock().expect("no panic").count(&schedule, &ended, verdict);
                }
            });
        }
    });
    tally.into_inner().expect("no panic").judge();
}

#[derive(Default)]
struct Tally {
    passing: usize,
    failed_passing: usize,
    permanent: usize,
    failed_permanent: usize,
    longest: Duration,
    wrong: String,
    failures: String,
}

impl Tally {
    fn count(&mut self, schedule: &Schedule, ended: &Ended, verdict: Verdict) {
        let failed = usize::from(!matches!(verdict, Verdict::Right));
        match schedule.permanent {
            true => {
                (self.permanent, self.failed_permanent) = (self.permanent + 1, self.failed_permanent + failed)
            }
            false => (self.passing, self.failed_passing) = (self.passing + 1, self.failed_passing + failed),
        }
        self.longest = self.longest.max(ended.took);
        let told = format!("{schedule:?} ended after {:?}\n{}\n", ended.took, ended.stderr);
        match verdict {
            Verdict::Wrong(reason) => writeln!(self.wrong, "{reason}: {told}").expect("memory"),
            Verdict::Refused if !schedule.permanent => self.failures.push_str(&told),
            _ => {}
        }
    }

    fn judge(self) {
        let Self { passing, failed_passing, permanent, failed_permanent, longest, wrong, failures } = self;
        eprintln!(
            "{passing} schedules of faults that end, of which {failed_passing} failed; {permanent} of faults that \
             do not, of which {failed_permanent} failed; the longest took {longest:?}"
        );
        assert!(wrong.is_empty(), "{wrong}{failures}");
        assert!(failed_passing * 1000 <= passing * MAY_FAIL_PER_MILLE, "{failures}");
        if !failures.is_empty() {
            eprintln!("{failures}");
        }
    }
}

fn carry_out(site: &Site, schedule: &Schedule) -> (Ended, Verdict) {
    let seed = schedule.seed;
    let running = Arc::new(Running::new(schedule));
    let begun = Arc::clone(&running);
    let proxy = Server::breaking(
        &site.upstream.address,
        move |request| begun.break_after(request),
        |_| move |request: &_| running.reply(request),
    );
    let other_name = proxy.address.replace("127.0.0.1", "localhost");
    let (base, store) = match seed % 4 {
        0 | 1 => (&proxy.address, format!("cold{seed}")),
        // Another registry, as far as names tell: its layers are copied, not mounted.
        2 => (&other_name, format!("cold{seed}")),
        _ => (&proxy.address, "warm".to_owned()),
    };
    let tags = [format!("app{seed}:v1"), format!("other{seed}")];
    let tags = &tags[..if seed.is_multiple_of(5) { 2 } else { 1 }];
    let names: Vec<Reference> = tags.iter().map(|tag| reference(&proxy.address, tag)).collect();
    let direct: Vec<Reference> = tags.iter().map(|tag| site.upstream.reference(tag)).collect();
    let ended = site.run(&mut site.app(base, &store, &names.iter().collect::<Vec<_>>()));
    let mut verdict = judge(site, &ended, &proxy.address, &direct);
    if matches!(verdict, Verdict::Refused) {
        let mut again = site.app(&site.upstream.address, &store, &direct.iter().collect::<Vec<_>>());
        let again = site.run(again.env_remove("LAYERWRIGHT_DEBUG_HURRY"));
        if again.code != Some(0) {
            verdict = Verdict::Wrong(format!("the next build fails: {}", again.stderr));
        }
    }
    if store != "warm" {
        fs::remove_dir_all(site.path(&store)).expect("ours");
    }
    (ended, verdict)
}

fn judge(site: &Site, ended: &Ended, proxy: &str, direct: &[Reference]) -> Verdict {
    let found: Result<Vec<_>, _> = direct.iter().map(|name| site.finds(name)).collect();
    let found = match found {
        Ok(found) => found,
        Err(reason) => return Verdict::Wrong(format!("a tag names what is not there: {reason}")),
    };
    let right = |digest| Some(site.digest) == digest;
    let wrong = |reason: &str| Verdict::Wrong(reason.to_owned());
    if !found.iter().all(|digest| digest.is_none() || right(*digest)) {
        return wrong("a wrong image");
    }
    if [TOKEN, "_state=", "Bearer "].iter().any(|secret| ended.stderr.contains(secret)) {
        return wrong("a secret is told");
    }
    match ended.code {
        Some(0) if found.into_iter().all(right) => Verdict::Right,
        Some(0) => wrong("a false success"),
        None => wrong("a hang"),
        Some(3) if names_cause(&ended.stderr, proxy) => Verdict::Refused,
        Some(3) => wrong("no cause is told"),
        Some(_) => wrong("a strange exit code"),
    }
}

/// Whether the last error says which registry failed.
fn names_cause(stderr: &str, proxy: &str) -> bool {
    let error = stderr.lines().rfind(|line| line.starts_with("error: "));
    let port = proxy.rsplit(':').next().unwrap_or_default();
    error.is_some_and(|error| error.contains(&format!(":{port}")))
}
