//! Packing gives way to what a build waits for: the commands of its steps.
//!
//! Niceness alone does not do it. Where the kernel shares processors out by session (`autogroup` of sched(7), the default
//! outside of containers), how nice a thread is counts inside its session only, and every step is a session of its own: two
//! threads that pack would take half of a command's time on two processors. So what nobody waits for keeps to half of the
//! processors, too, until the steps are over. All of this is speed; nothing fails where the kernel refuses it.

use std::fs;

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// How much a thread leaves to others on busy processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Courtesy {
    /// To the commands of steps: what a build waits for. One of their threads gets three times the time of one of these.
    #[default]
    ToSteps,
    /// To everything else: nobody waits for what is done before the image is there.
    ToAll,
    /// As `ToAll`, and half of the processors are left alone.
    ToAllOnHalf,
}

/// Lets others go first on busy processors, who have more need of them. Holds for the calling thread and for those that it
/// begins.
pub(crate) fn give_way(courtesy: Courtesy) {
    let more = match courtesy {
        Courtesy::ToSteps => 5,
        Courtesy::ToAll | Courtesy::ToAllOnHalf => 19,
    };
    let _ = rustix::process::nice(more);
    if courtesy == Courtesy::ToAllOnHalf
        && let Ok(all) = sched_getaffinity(None)
    {
        let _ = sched_setaffinity(None, &upper_half(&all));
    }
}

/// The threads of this process may use again whatever processors the calling one may.
pub(crate) fn use_all_processors() {
    let (Ok(all), Ok(threads)) = (sched_getaffinity(None), fs::read_dir("/proc/self/task")) else { return };
    let ids = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for thread in ids.filter_map(Pid::from_raw) {
        let _ = sched_setaffinity(Some(thread), &all);
    }
}

/// The latter half of some processors, rounded up: one is its own half.
fn upper_half(all: &CpuSet) -> CpuSet {
    let mut half = CpuSet::new();
    let processors = (0..CpuSet::MAX_CPU).filter(|processor| all.is_set(*processor));
    let others = usize::try_from(all.count() / 2).unwrap_or(0);
    processors.skip(others).for_each(|processor| half.set(processor));
    half
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, thread};

    use super::*;

    #[test]
    fn half_of_the_processors_are_the_latter() {
        for (all, half) in
            [(&[0][..], &[0][..]), (&[0, 1], &[1]), (&[2, 5, 9], &[5, 9]), (&[0, 1, 2, 1023], &[2, 1023])]
        {
            let set = |processors: &[usize]| {
                let mut set = CpuSet::new();
                processors.iter().for_each(|processor| set.set(*processor));
                set
            };
            assert_eq!(upper_half(&set(all)), set(half), "{all:?}");
        }
    }

    #[test]
    fn a_thread_keeps_to_half_until_that_is_over() {
        let all = sched_getaffinity(None).expect("affinity");
        let (told, hears) = channel();
        let (go, may_go) = channel::<()>();
        let other = thread::spawn(move || {
            give_way(Courtesy::ToAllOnHalf);
            told.send(sched_getaffinity(None).expect("affinity")).expect("heard");
            may_go.recv().expect("told");
            sched_getaffinity(None).expect("affinity")
        });
        assert_eq!(hears.recv().expect("told"), upper_half(&all));
        assert_eq!(sched_getaffinity(None).expect("affinity"), all, "ours");
        use_all_processors();
        go.send(()).expect("heard");
        assert_eq!(other.join().expect("no panic"), all);
    }
}
