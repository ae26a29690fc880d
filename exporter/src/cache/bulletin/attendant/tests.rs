//! One attendant, move by move, and sixteen of them with random delays.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;

const OWN: Builder = Builder(1);
const OTHER: Builder = Builder(2);
/// Of a step that has just begun.
const LAPSE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_secs(2);

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn running(builder: Builder, count: u64) -> Said {
    Said { builder, count, state: State::Running }
}

/// One that has said that it runs the step, at 0 s, and looked at 0.1 s.
fn owner() -> Attendant {
    let mut attendant = Attendant::new(OWN);
    assert_eq!(attendant.next(Duration::ZERO), Act::Look);
    attendant.heard(Duration::ZERO, Duration::ZERO, None, false);
    assert_eq!(attendant.next(Duration::ZERO), Act::Say(running(OWN, 1)));
    attendant.said(Duration::ZERO, Duration::ZERO);
    assert_eq!(attendant.next(Duration::ZERO), Act::Wait(SETTLE_MIN));
    assert_eq!(attendant.next(SETTLE_MIN), Act::Look);
    attendant.heard(SETTLE_MIN, Duration::ZERO, Some(running(OWN, 1)), false);
    attendant
}

/// One that has stopped since another has been seen to live, at 1 s.
fn follower() -> Attendant {
    let mut attendant = Attendant::new(OWN);
    attendant.heard(Duration::ZERO, Duration::ZERO, Some(running(OTHER, 1)), false);
    assert!(matches!(attendant.next(Duration::ZERO), Act::Wait(_)), "it may have been left behind");
    assert!(attendant.heard(seconds(1.0), Duration::ZERO, Some(running(OTHER, 2)), false), "it lives");
    assert_eq!(attendant.next(seconds(1.0)), Act::Stop);
    attendant
}

#[test]
fn who_is_alone_runs_the_step_and_says_so_now_and_then() {
    let mut attendant = owner();
    for (count, at) in [(2, 2.0), (3, 7.0), (4, 12.0)] {
        assert_eq!(attendant.next(seconds(at - 0.1)), Act::Wait(seconds(at)));
        assert_eq!(attendant.next(seconds(at)), Act::Look);
        attendant.heard(seconds(at), Duration::ZERO, Some(running(OWN, count - 1)), false);
        assert_eq!(attendant.next(seconds(at)), Act::Say(running(OWN, count)));
        attendant.said(seconds(at), Duration::ZERO);
    }
    attendant.over(State::Done);
    assert_eq!(attendant.next(seconds(13.0)), Act::Say(Said { builder: OWN, count: 5, state: State::Done }));
    attendant.said(seconds(13.0), Duration::ZERO);
    assert_eq!(attendant.next(seconds(13.0)), Act::End);
}

#[test]
fn what_has_said_nothing_says_nothing_in_the_end() {
    let mut attendant = Attendant::new(OWN);
    attendant.over(State::Done);
    assert_eq!(attendant.next(Duration::ZERO), Act::End);
    let mut attendant = follower();
    attendant.over(State::Left);
    assert_eq!(attendant.next(seconds(1.0)), Act::End);
}

#[test]
fn an_owner_gives_way_to_whom_it_finds_there_and_not_to_what_it_has_heard_before() {
    let mut attendant = owner();
    attendant.heard(seconds(2.0), Duration::ZERO, Some(running(OTHER, 1)), false);
    assert_eq!(attendant.next(seconds(2.0)), Act::Stop);
    // What it overwrote is read again, from a place that is behind.
    let mut attendant = Attendant::new(OWN);
    attendant.heard(Duration::ZERO, Duration::ZERO, Some(running(OTHER, 9)), false);
    attendant.heard(LAPSE, Duration::ZERO, Some(running(OTHER, 9)), false);
    assert_eq!(attendant.next(LAPSE), Act::Search);
    attendant.missing();
    assert_eq!(attendant.next(LAPSE), Act::Say(running(OWN, 1)));
    attendant.said(LAPSE, Duration::ZERO);
    attendant.heard(LAPSE + SETTLE_MIN, Duration::ZERO, Some(running(OTHER, 9)), false);
    assert!(matches!(attendant.next(LAPSE + SETTLE_MIN), Act::Wait(_)));
}

#[test]
fn who_is_known_to_live_is_followed_at_once() {
    let mut attendant = Attendant::new(OWN);
    attendant.heard(Duration::ZERO, Duration::ZERO, Some(running(OTHER, 1)), true);
    assert_eq!(attendant.next(Duration::ZERO), Act::Stop);
}

#[test]
fn what_became_of_a_step_is_looked_for_where_it_is_said_to_be() {
    let said = |state| Some(Said { builder: OTHER, count: 3, state });
    for (state, resumed) in
        [(State::Done, Resumed::Alone), (State::Failed, Resumed::Alone), (State::Left, Resumed::Announced)]
    {
        let mut attendant = follower();
        attendant.heard(seconds(2.0), Duration::ZERO, said(state), false);
        assert_eq!(attendant.next(seconds(2.0)), Act::Search, "{state}");
        attendant.missing();
        assert_eq!(attendant.next(seconds(2.0)), Act::Resume, "{state}");
        attendant.begun();
        match (resumed, attendant.next(seconds(2.0))) {
            (Resumed::Alone, Act::End) | (Resumed::Announced, Act::Say(_)) => {}
            (_, other) => panic!("{state}: {other:?}"),
        }
    }
    let mut attendant = Attendant::new(OWN);
    attendant.heard(Duration::ZERO, Duration::ZERO, said(State::Done), false);
    assert_eq!(attendant.next(Duration::ZERO), Act::Search, "it may have come since the caches were asked");
    attendant.missing();
    assert_eq!(attendant.next(Duration::ZERO), Act::Say(running(OWN, 1)));
}

#[test]
fn who_has_no_worker_yet_says_nothing_and_gives_way_to_who_has() {
    let mut attendant = follower();
    let left = Said { builder: OTHER, count: 3, state: State::Left };
    attendant.heard(seconds(2.0), Duration::ZERO, Some(left), false);
    attendant.missing();
    assert_eq!(attendant.next(seconds(2.0)), Act::Resume);
    assert_eq!(attendant.next(seconds(2.0)), Act::Wait(seconds(2.0) + OFTEN));
    assert_eq!(attendant.next(seconds(3.0)), Act::Look);
    attendant.heard(seconds(3.0), Duration::ZERO, Some(left), false);
    assert!(attendant.is_queued());
    attendant.heard(seconds(4.0), Duration::ZERO, Some(running(Builder(3), 1)), false);
    assert_eq!(attendant.next(seconds(4.0)), Act::Stop);
    attendant.begun();
    assert!(attendant.is_following(), "it has been stopped at the same moment");
}

#[test]
fn the_dead_and_the_gone_are_followed_until_they_lapse() {
    let mut attendant = follower();
    let mut looks = 0;
    let mut now = seconds(1.0);
    while let Act::Wait(until) = attendant.next(now) {
        now = until;
        assert_eq!(attendant.next(now), Act::Look);
        attendant.heard(now, Duration::ZERO, Some(running(OTHER, 2)), false);
        looks += 1;
    }
    assert_eq!(attendant.next(now), Act::Search);
    assert!((seconds(1.0) + LAPSE..seconds(1.0) + LAPSE + PAUSE).contains(&now), "{now:?}");
    assert!(looks < 20, "{looks}");
    let mut attendant = follower();
    attendant.heard(seconds(2.0), Duration::ZERO, None, false);
    assert!(matches!(attendant.next(seconds(2.0)), Act::Wait(_)), "somebody may have cleaned up");
    attendant.heard(seconds(1.0) + LAPSE, Duration::ZERO, None, false);
    assert_eq!(attendant.next(seconds(1.0) + LAPSE), Act::Search);
}

#[test]
fn the_longer_a_step_takes_the_less_is_said_of_it() {
    let mut attendant = owner();
    let (mut now, mut count) = (seconds(0.0), 1);
    while now < seconds(3600.0) {
        match attendant.next(now) {
            Act::Wait(until) => now = until,
            Act::Look => _ = attendant.heard(now, Duration::ZERO, Some(running(OWN, count)), false),
            Act::Say(said) => {
                count = said.count;
                attendant.said(now, Duration::ZERO);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((60..110).contains(&count), "{count}");
    // Who comes then knows by the number how long that stands.
    let mut late = Attendant::new(OTHER);
    late.heard(Duration::ZERO, Duration::ZERO, Some(running(OWN, count)), false);
    late.heard(seconds(60.0), Duration::ZERO, Some(running(OWN, count + 1)), false);
    assert_eq!(late.next(seconds(60.0)), Act::Stop);
    let (mut now, mut looks) = (seconds(60.0), 0);
    while let Act::Wait(until) = late.next(now) {
        (now, looks) = (until, looks + 1);
        late.heard(now, Duration::ZERO, Some(running(OWN, count + 1)), false);
    }
    assert!((seconds(240.0)..seconds(265.0)).contains(&now) && looks < 40, "{now:?}, {looks} looks");
}

#[test]
fn where_the_place_fails_everybody_runs_the_step() {
    let mut attendant = follower();
    attendant.alone();
    assert_eq!(attendant.next(seconds(2.0)), Act::Resume);
    assert_eq!(attendant.next(seconds(2.0)), Act::End);
    let mut attendant = follower();
    assert!(attendant.failed(seconds(2.0)) && attendant.failed(seconds(3.0)), "once or twice is nothing");
    assert_eq!(attendant.next(seconds(3.0)), Act::Wait(seconds(4.0)));
    assert!(!attendant.failed(seconds(4.0)));
    assert_eq!(attendant.next(seconds(4.0)), Act::Resume);
    let mut attendant = owner();
    attendant.alone();
    assert_eq!(attendant.next(seconds(2.0)), Act::End);
}

#[test]
fn who_cannot_read_what_it_says_says_it_no_oftener() {
    // It signs with a key that it does not trust, or shares the place with others who do not trust it.
    let (mut attendant, mut now, mut said) = (Attendant::new(OWN), Duration::ZERO, 0);
    while now < seconds(60.0) {
        match attendant.next(now) {
            Act::Wait(until) => now = until,
            Act::Look => assert!(!attendant.heard(now, Duration::ZERO, None, false)),
            Act::Say(_) => {
                said += 1;
                attendant.said(now, Duration::ZERO);
            }
            act => panic!("{act:?}"),
        }
    }
    assert!(said <= 14, "{said} times a minute");
}

#[test]
fn what_may_stand_there_is_taken_back() {
    let mut attendant = Attendant::new(OWN);
    attendant.heard(Duration::ZERO, Duration::ZERO, None, false);
    assert_eq!(attendant.next(Duration::ZERO), Act::Say(running(OWN, 1)));
    assert!(attendant.failed(seconds(1.0)), "the place may have taken it");
    attendant.over(State::Left);
    let left = Said { builder: OWN, count: 2, state: State::Left };
    assert_eq!(attendant.next(seconds(1.0)), Act::Say(left));
}

#[test]
fn whose_word_comes_and_goes_is_not_followed_for_ever() {
    let (mut attendant, mut now, mut count, mut stops) = (owner(), seconds(2.0), 0, 0);
    loop {
        match attendant.next(now) {
            Act::Wait(until) => now = until,
            Act::Look => {
                count += 1;
                let state = if attendant.is_following() { State::Left } else { State::Running };
                attendant.heard(now, Duration::ZERO, Some(Said { builder: OTHER, count, state }), false);
            }
            Act::Say(_) => attendant.said(now, Duration::ZERO),
            Act::Search => attendant.missing(),
            Act::Stop => stops += 1,
            Act::Resume => attendant.begun(),
            Act::End => break,
        }
        assert!(stops <= STOPS);
    }
    assert!(!attendant.is_following(), "its run is on");
}

#[test]
fn no_number_that_is_read_is_too_great() {
    let mut attendant = owner();
    attendant.heard(seconds(2.0), Duration::ZERO, Some(running(OWN, u64::MAX)), false);
    assert_eq!(attendant.next(seconds(2.0)), Act::Say(running(OWN, u64::MAX)));
}

#[test]
fn who_follows_where_answers_hang_does_not_wait_for_three_of_them() {
    let mut attendant = follower();
    assert!(attendant.failed(seconds(2.0)), "there is time left");
    assert!(!attendant.failed(seconds(1.0) + LAPSE));
    assert_eq!(attendant.next(seconds(1.0) + LAPSE), Act::Resume);
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In milliseconds.
    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.next() % (most - least + 1))
    }
}

/// What happens to a builder at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// It is asked what to do next.
    Next,
    /// What it does takes hold at the place.
    Hold(What),
    /// It hears of that.
    Answer(What, Option<u64>),
    /// The run with this number comes to its end.
    Ran(u64),
    /// There is a worker for it.
    Begin,
    /// The record of it is there.
    Published,
    Crash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Look,
    /// How often and what; when it was begun.
    Say(u64, bool, Duration),
    Search,
}

/// No run has this number: there is no worker for it yet.
const QUEUED: u64 = 0;

struct Peer {
    attendant: Attendant,
    /// Number of the run that is on.
    run: Option<u64>,
    is_alive: bool,
    has_result: bool,
    /// Whether an answer is under way.
    is_busy: bool,
    /// Whether it is to hear that the step is over.
    is_over: bool,
}

/// A place where the last write stands, and builders of one step that takes `length`.
struct Ground {
    random: Random,
    length: Duration,
    latency: (u64, u64),
    peers: Vec<Peer>,
    moments: BinaryHeap<Reverse<(Duration, u64, usize, Moment)>>,
    order: u64,
    stands: Option<Said>,
    /// What was read, by number.
    read: Vec<Option<Said>>,
    is_published: bool,
    runs: u64,
    completed: usize,
    requests: usize,
    /// Of a hundred answers, how many tell of a failure, whatever the place has done.
    failing: u64,
    last_crash: Option<Duration>,
    /// How long it takes until half of them have a worker for what begins again.
    queue: Duration,
    /// When the first record was there.
    end: Option<Duration>,
}

impl Ground {
    fn new(seed: u64, length: f64, latency: (u64, u64), spread: u64) -> Self {
        let mut ground = Self {
            random: Random(seed),
            length: seconds(length),
            latency,
            peers: Vec::new(),
            moments: BinaryHeap::new(),
            order: 0,
            stands: None,
            read: Vec::new(),
            is_published: false,
            runs: 0,
            completed: 0,
            requests: 0,
            failing: 0,
            last_crash: None,
            queue: Duration::ZERO,
            end: None,
        };
        for number in 0..16 {
            let attendant = Attendant::new(Builder(number as u128 + 1));
            let peer = Peer {
                attendant,
                run: None,
                is_alive: true,
                has_result: false,
                is_busy: false,
                is_over: false,
            };
            ground.peers.push(peer);
            let began = ground.random.between(0, spread);
            ground.begin(number, began);
            ground.at(began, number, Moment::Next);
        }
        ground
    }

    fn at(&mut self, time: Duration, peer: usize, moment: Moment) {
        self.order += 1;
        self.moments.push(Reverse((time, self.order, peer, moment)));
    }

    fn begin(&mut self, peer: usize, now: Duration) {
        self.runs += 1;
        self.peers[peer].run = Some(self.runs);
        self.at(now + self.length, peer, Moment::Ran(self.runs));
    }

    /// Until everybody who lives has the result; how often the step was run to its end.
    fn play(mut self) -> Self {
        while let Some(Reverse((now, _, peer, moment))) = self.moments.pop() {
            if self.peers[peer].is_alive {
                self.happen(now, peer, moment);
            }
            self.check(now);
        }
        assert!(self.peers.iter().all(|peer| peer.has_result || !peer.is_alive), "everybody gets there");
        self
    }

    /// Where nobody runs the step and nobody has, those who wait do so for no longer than it takes to see that.
    fn check(&self, now: Duration) {
        let runs = self.peers.iter().any(|peer| peer.is_alive && (peer.run.is_some() || peer.has_result));
        let is_open = self.peers.iter().any(|peer| peer.is_alive && !peer.has_result);
        if runs || !is_open || self.is_published {
            return;
        }
        let crashed = self.last_crash.expect("without a crash somebody runs it");
        let longest = LAPSE + PAUSE + Duration::from_millis(3 * self.latency.1);
        assert!(now <= crashed + longest, "nobody runs it at {now:?}, since {crashed:?}");
    }

    fn happen(&mut self, now: Duration, peer: usize, moment: Moment) {
        match moment {
            Moment::Next => self.next(now, peer),
            Moment::Hold(what) => {
                let read = self.hold(peer, what);
                let back = self.half();
                self.at(now + back, peer, Moment::Answer(what, read));
            }
            Moment::Answer(what, read) => {
                self.answer(now, peer, what, read);
                self.next(now, peer);
            }
            Moment::Ran(run) if self.peers[peer].run == Some(run) => {
                self.completed += 1;
                self.peers[peer].run = None;
                self.peers[peer].has_result = true;
                let after = self.half();
                self.at(now + after, peer, Moment::Published);
            }
            Moment::Begin if self.peers[peer].run == Some(QUEUED) => {
                self.begin(peer, now);
                self.peers[peer].attendant.begun();
                self.next(now, peer);
            }
            Moment::Ran(_) | Moment::Begin => {}
            Moment::Published => {
                self.is_published = true;
                self.end.get_or_insert(now);
                self.peers[peer].is_over = true;
                self.next(now, peer);
            }
            Moment::Crash => {
                self.peers[peer].is_alive = false;
                self.last_crash = Some(now);
            }
        }
    }

    /// Half of a round trip.
    fn half(&mut self) -> Duration {
        self.random.between(self.latency.0 / 2, self.latency.1 / 2)
    }

    fn next(&mut self, now: Duration, peer: usize) {
        if self.peers[peer].is_busy {
            return;
        }
        if std::mem::take(&mut self.peers[peer].is_over) {
            self.peers[peer].attendant.over(State::Done);
        }
        let there = self.half();
        match self.peers[peer].attendant.next(now) {
            Act::Wait(until) => self.at(until, peer, Moment::Next),
            Act::Look => self.send(now + there, peer, What::Look),
            Act::Say(said) => {
                let Peer { run, has_result, .. } = &self.peers[peer];
                assert!(
                    run.is_some_and(|run| run != QUEUED) || *has_result,
                    "who says something runs it, or has"
                );
                let is_done = said.state == State::Done;
                self.send(now + there, peer, What::Say(said.count, is_done, now));
            }
            Act::Search => self.send(now + there, peer, What::Search),
            Act::Stop => {
                if !self.peers[peer].has_result {
                    self.peers[peer].run = None;
                }
                self.next(now, peer);
            }
            Act::Resume => {
                // Half of them are busy.
                let queue = if peer.is_multiple_of(2) { self.queue } else { Duration::ZERO };
                self.peers[peer].run = Some(QUEUED);
                self.at(now + queue, peer, Moment::Begin);
                self.next(now, peer);
            }
            Act::End => {}
        }
    }

    fn send(&mut self, at: Duration, peer: usize, what: What) {
        self.requests += 1;
        self.peers[peer].is_busy = true;
        self.at(at, peer, Moment::Hold(what));
    }

    fn hold(&mut self, peer: usize, what: What) -> Option<u64> {
        match what {
            What::Look => {
                self.read.push(self.stands);
                Some(self.read.len() as u64 - 1)
            }
            What::Say(count, is_done, _) => {
                let state = if is_done { State::Done } else { State::Running };
                self.stands = Some(Said { builder: Builder(peer as u128 + 1), count, state });
                None
            }
            What::Search => self.is_published.then_some(0),
        }
    }

    fn answer(&mut self, now: Duration, peer: usize, what: What, read: Option<u64>) {
        let said = read.and_then(|read| self.read.get(read as usize).copied().flatten());
        let has_failed = self.failing > 0 && self.random.next() % 100 < self.failing;
        let peer = &mut self.peers[peer];
        peer.is_busy = false;
        if has_failed {
            peer.attendant.failed(now);
            return;
        }
        match what {
            What::Look => _ = peer.attendant.heard(now, Duration::ZERO, said, false),
            What::Say(_, _, begun) => peer.attendant.said(now, now - begun),
            What::Search if read.is_some() => {
                (peer.run, peer.has_result) = (None, true);
                peer.attendant.over(State::Done);
            }
            What::Search => peer.attendant.missing(),
        }
    }
}

#[test]
fn sixteen_run_a_long_step_about_once() {
    let (mut worst, mut all, mut requests) = (0, 0, 0);
    for seed in 0..300 {
        let played = Ground::new(seed, 60.0, (50, 2000), 3000).play();
        worst = worst.max(played.completed);
        all += played.completed;
        requests += played.requests;
    }
    assert_eq!((worst, all), (1, 300));
    let each = requests / (16 * 300);
    assert!(each < 60, "{each} requests of each builder for a minute");
}

#[test]
fn sixteen_that_come_within_minutes_run_what_takes_longer_once() {
    let mut all = 0;
    for seed in 0..100 {
        all += Ground::new(seed, 900.0, (50, 2000), 300_000).play().completed;
    }
    assert_eq!(all, 100);
}

#[test]
fn sixteen_run_a_step_of_some_seconds_hardly_more_than_once() {
    let mut all = 0;
    for seed in 0..300 {
        all += Ground::new(seed, 4.0, (10, 200), 1000).play().completed;
    }
    assert!(all <= 330, "{all} runs of 300 steps");
}

#[test]
fn a_place_that_fails_now_and_then_costs_hardly_more() {
    let mut all = 0;
    for seed in 0..300 {
        all += Ground { failing: 5, ..Ground::new(seed, 30.0, (50, 2000), 3000) }.play().completed;
    }
    assert!(all <= 330, "{all} runs of 300 steps");
}

#[test]
fn whoever_dies_somebody_runs_it() {
    let mut all = 0;
    for seed in 0..300 {
        let mut ground = Ground::new(seed, 30.0, (50, 2000), 3000);
        for peer in 0..12 {
            let at = ground.random.between(0, 60_000);
            ground.at(at, peer, Moment::Crash);
        }
        all += ground.play().completed;
    }
    assert!(all <= 390, "{all} runs of 300 steps");
}

#[test]
fn who_could_run_it_does_not_wait_for_who_cannot_yet() {
    for seed in 0..200 {
        let queue = seconds(120.0);
        let mut ground = Ground { queue, ..Ground::new(seed, 30.0, (10, 100), 1000) };
        (0..12).for_each(|peer| ground.at(seconds(10.0), peer, Moment::Crash));
        let end = ground.play().end.expect("somebody has run it");
        assert!(end <= seconds(10.0 + 30.0 + 2.0) + LAPSE + PAUSE, "{end:?}");
    }
}
