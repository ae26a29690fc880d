//! Every view is fed the same recorded build, and what it writes is compared with `testdata/progress/`.

use std::{
    path::Path,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant, SystemTime},
};

use oci::{Layer, Sha256Digest, Tree};
use solver::{Event, Hit, Stream, VertexId};

use super::{
    Board, Delivered, End, Message, QUEUE, View, at_once, json::Json, own, plain::Plain, quiet::Quiet,
    text::Colour, tty, tty::Tty,
};

fn hit() -> Hit {
    Hit { definition: Tree::empty_digest(), made: None, from: Some("h:5000/app/cache".to_owned()) }
}

/// Collects what a view writes.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("UTF-8")
    }
}

fn log(vertex: usize, stream: Stream, text: &str) -> Event {
    Event::Log(VertexId(vertex), stream, text.as_bytes().to_vec())
}

fn transfer(task: &str, done: u64, total: u64) -> Event {
    Event::Transfer { task: task.to_owned(), done, total }
}

/// A build of two stages side by side: milliseconds and what happens then.
fn recording() -> Vec<(u64, Event)> {
    let labels = [
        "[build 1/3] FROM docker.io/library/debian:bookworm",
        "[build 2/3] RUN apt-get update && apt-get install -y --no-install-recommends build-essential ca-certificates",
        "[build 3/3] RUN make",
        "[assets 2/2] ADD https://me:secret@example.com/logo.svg /",
        "[stage-2 1/2] COPY --from=build /out /",
        "[assets 1/2] WORKDIR /srv",
        "[internal] load build context",
        "[internal] load build context",
    ];
    let layer = || Layer::Built(Tree::empty_digest());
    let step = VertexId;
    vec![
        (0, Event::Warning("MaintainerDeprecated: use a label instead (Dockerfile:2)".to_owned())),
        (
            10,
            Event::Planned(
                labels.iter().enumerate().map(|(id, label)| (step(id), (*label).to_owned())).collect(),
            ),
        ),
        (15, Event::Started(step(6))),
        (20, Event::Ready(step(0))),
        (21, Event::Started(step(7))),
        (22, Event::Ready(step(6))),
        (24, Event::Ready(step(7))),
        (25, Event::Cached(step(5), Box::new(hit()))),
        (30, transfer("pull sha256:0123456789ab", 0, 12_300_000)),
        (900, transfer("pull sha256:0123456789ab", 4_190_000, 12_300_000)),
        (1500, transfer("pull sha256:0123456789ab", 12_300_000, 12_300_000)),
        (1600, Event::Started(step(1))),
        (1623, log(1, Stream::Stdout, "Get:1 http://mirror.example bookworm InRelease")),
        (1700, Event::Started(step(3))),
        (1710, log(3, Stream::Stderr, "\x1b[2J\x1b[31mclears\x1b[0m\tand 10%\r99%")),
        (1900, log(1, Stream::Stdout, "Fetched 9 MB")),
        (2100, Event::Done(step(3), layer())),
        (4200, Event::Done(step(1), layer())),
        (4210, Event::Started(step(2))),
        (4300, transfer("pull sha256:ba9876543210", 1_000_000, 0)),
        (9800, transfer("pull sha256:ba9876543210", 7_000_000, 0)),
        (9900, log(2, Stream::Stdout, "cc -o out main.c")),
    ]
}

fn success() -> Vec<(u64, Event)> {
    let layer = || Layer::Built(Tree::empty_digest());
    let mut events = recording();
    events.extend([
        (9950, Event::Done(VertexId(2), layer())),
        (9960, transfer("pull sha256:ba9876543210", 8_000_000, 8_000_000)),
        (9970, Event::Started(VertexId(4))),
        (9980, Event::Done(VertexId(4), layer())),
        (9990, Event::Stage("exporting to OCI layout out/".to_owned())),
        (10_400, Event::StageDone("exporting to OCI layout out/".to_owned())),
    ]);
    events
}

fn failure() -> Vec<(u64, Event)> {
    let mut events = recording();
    events.extend([
        (9950, log(2, Stream::Stderr, "make: *** [Makefile:3: out] Error 1")),
        (9960, Event::Failed(VertexId(2), "process \"/bin/sh -c make\" ended with exit code 2".to_owned())),
        (9970, Event::Cancelled(VertexId(4))),
    ]);
    events
}

/// Everything is built, and cannot be exported.
fn failed_export() -> Vec<(u64, Event)> {
    let mut events = success();
    events.pop();
    events
}

fn delivered() -> Delivered {
    Delivered {
        digest: Some(Sha256Digest::of(b"image")),
        destinations: vec!["wrote OCI layout out/".to_owned()],
    }
}

fn built() -> End {
    End::Built(delivered())
}

fn failed() -> End {
    End::Failed {
        message: "make failed".to_owned(),
        exit_code: 1,
        report: "Dockerfile:5\n".to_owned(),
        delivered: None,
    }
}

/// Shows a recording, with a tick before every event as the owner of the view would have let pass.
fn show(view: &mut dyn View, events: &[(u64, Event)], end: &End) {
    let mut board = Board::default();
    let mut last = Duration::ZERO;
    for (at, event) in events {
        last = Duration::from_millis(*at);
        view.tick(&board, last);
        board.apply(last, event);
        view.event(&board, last, event);
    }
    view.end(&board, last + Duration::from_millis(10), end);
}

/// Compares with `testdata/progress/NAME`, or writes it with `UPDATE_EXPECT=1`.
fn check(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/progress").join(name);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("created");
        std::fs::write(&path, actual).expect("written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{name} differs; UPDATE_EXPECT=1 writes it anew");
}

#[test]
fn plain_lines() {
    for (name, events, end) in [("plain.txt", success(), built()), ("plain-failed.txt", failure(), failed())]
    {
        let paper = Paper::default();
        show(&mut Plain::new(paper.clone()), &events, &end);
        check(name, &paper.text());
    }
    let paper = Paper::default();
    show(&mut Plain::new(paper.clone()), &failed_export(), &failed());
    let text = paper.text();
    assert!(text.ends_with("exporting to OCI layout out/\n#10 ERROR: make failed\n\n"), "{text}");
}

#[test]
fn plain_lines_on_a_terminal_cannot_harm_it() {
    let paper = Paper::default();
    show(&mut Plain::new(paper.clone()).harmless(true), &success(), &built());
    let text = paper.text();
    assert!(text.contains("#6 0.010 99%\n") && !text.contains(['\x1b', '\r']), "{text:?}");
    let hostile = "what others \x1b]0;have\x07 written\r".to_owned();
    let planned = vec![(VertexId(0), format!("RUN {hostile}")), (VertexId(1), "RUN make".to_owned())];
    let events = [
        (0, Event::Planned(planned)),
        (1, Event::Warning(hostile.clone())),
        (2, Event::Started(VertexId(0))),
        (3, Event::Failed(VertexId(0), hostile.clone())),
        (4, Event::Stage(hostile.clone())),
        (5, Event::StageDone(hostile)),
        (6, Event::Cancelled(VertexId(1))),
    ];
    let paper = Paper::default();
    show(&mut Plain::new(paper.clone()).harmless(true), &events, &built());
    let text = paper.text();
    assert!(text.contains("what others") && !text.contains(['\x1b', '\x07', '\r']), "{text:?}");
    let paper = Paper::default();
    show(&mut Plain::new(paper.clone()).harmless(false), &success(), &built());
    assert!(paper.text().contains("\x1b[2J"), "a file has what the step wrote");
}

#[test]
fn a_step_that_runs_may_end_as_cached() {
    let planned = [(VertexId(0), "[1/1] RUN make".to_owned())];
    let events = [
        (0, Event::Planned(planned.to_vec())),
        (10, Event::Started(VertexId(0))),
        (20, log(0, Stream::Stdout, "cc")),
        (30, Event::Cached(VertexId(0), Box::new(hit()))),
    ];
    let paper = Paper::default();
    show(&mut Plain::new(paper.clone()), &events, &built());
    let text = paper.text();
    assert!(text.starts_with("#1 [1/1] RUN make\n#1 0.010 cc\n#1 CACHED from h:5000/app/cache\n"), "{text}");
    assert!(text.contains("1 step, 1 cached"), "{text}");
}

#[test]
fn json_lines() {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for (name, events, end) in [("json.txt", success(), built()), ("json-failed.txt", failure(), failed())] {
        let paper = Paper::default();
        show(&mut Json::new(paper.clone(), start), &events, &end);
        for line in paper.text().lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        check(name, &paper.text());
    }
}

#[test]
fn quiet_says_what_must_be_seen() {
    let paper = Paper::default();
    show(&mut Quiet::new(paper.clone()), &success(), &built());
    check("quiet.txt", &paper.text());
}

#[test]
fn no_view_shows_credentials() {
    let paper = Paper::default();
    let size = || tty::Size { columns: 120, rows: 40 };
    show(&mut Plain::new(paper.clone()), &success(), &built());
    show(&mut Json::new(paper.clone(), SystemTime::now()), &success(), &built());
    show(&mut Tty::new(paper.clone(), Box::new(size), Colour::Dropped), &success(), &built());
    assert!(paper.text().contains("https://***@example.com"));
    assert!(!paper.text().contains("secret"));
}

/// What a terminal shows of the bytes written to it: enough of one for what the live view uses.
#[derive(Default)]
struct Screen {
    lines: Vec<String>,
    row: usize,
    column: usize,
}

impl Screen {
    fn feed(&mut self, text: &str) {
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '\r' => self.column = 0,
                '\n' => (self.row, self.column) = (self.row + 1, 0),
                '\x1b' => self.control(&mut chars),
                c => self.put(c),
            }
        }
    }

    fn put(&mut self, c: char) {
        assert!(!c.is_control(), "{c:?} reaches the terminal");
        self.lines.resize(self.lines.len().max(self.row + 1), String::new());
        let line = &mut self.lines[self.row];
        let mut cells: Vec<char> = line.chars().collect();
        cells.resize(cells.len().max(self.column + 1), ' ');
        cells[self.column] = c;
        *line = cells.into_iter().collect();
        self.column += 1;
    }

    fn control(&mut self, chars: &mut std::str::Chars<'_>) {
        assert_eq!(chars.next(), Some('['), "only CSI is written");
        let sequence: Vec<char> = chars.by_ref().take_while_inclusive();
        let (last, parameters) = sequence.split_last().expect("a final byte");
        let parameters: String = parameters.iter().collect();
        match last {
            'A' => self.row -= parameters.parse::<usize>().expect("a number"),
            'K' => {
                if let Some(line) = self.lines.get_mut(self.row) {
                    *line = line.chars().take(self.column).collect();
                }
            }
            'J' => self.lines.truncate(self.row),
            'm' | 'h' | 'l' => {}
            other => panic!("unexpected control sequence {other}"),
        }
    }
}

trait TakeWhileInclusive {
    fn take_while_inclusive(&mut self) -> Vec<char>;
}

impl TakeWhileInclusive for std::str::Chars<'_> {
    /// Up to the final byte of a control sequence, which is a letter.
    fn take_while_inclusive(&mut self) -> Vec<char> {
        let mut taken = Vec::new();
        for c in self {
            taken.push(c);
            if c.is_ascii_alphabetic() {
                break;
            }
        }
        taken
    }
}

/// The screen after each of some moments, and at the end.
fn tty_frames(events: &[(u64, Event)], end: &End, columns: usize, rows: usize, moments: &[u64]) -> String {
    let paper = Paper::default();
    let mut view = Tty::new(paper.clone(), Box::new(move || tty::Size { columns, rows }), Colour::Kept);
    let (mut board, mut screen, mut shown) = (Board::default(), Screen::default(), String::new());
    let mut photograph = |title: &str| {
        let text = std::mem::take(&mut *paper.0.lock().expect("not poisoned"));
        screen.feed(std::str::from_utf8(&text).expect("UTF-8"));
        let width = screen.lines.iter().map(|line| super::text::width(line)).max().unwrap_or(0);
        assert!(
            title == "end" || width < columns && screen.lines.len() < rows,
            "{title}: {:#?}",
            screen.lines
        );
        let trimmed: Vec<&str> = screen.lines.iter().map(|line| line.trim_end()).collect();
        shown.push_str(&format!("--- {title}\n{}\n", trimmed.join("\n")));
    };
    for (at, event) in events {
        let now = Duration::from_millis(*at);
        board.apply(now, event);
        view.event(&board, now, event);
        if moments.contains(at) {
            view.tick(&board, now);
            photograph(&format!("{at} ms"));
        }
    }
    let last = Duration::from_millis(events.last().map_or(0, |(at, _)| *at + 10));
    view.end(&board, last, end);
    photograph("end");
    shown
}

#[test]
fn the_live_view() {
    check("tty.txt", &tty_frames(&success(), &built(), 80, 24, &[25, 900, 1900, 9900]));
    check("tty-failed.txt", &tty_frames(&failure(), &failed(), 80, 24, &[9900]));
    check("tty-small.txt", &tty_frames(&success(), &built(), 40, 6, &[1900, 9900]));
}

#[test]
fn the_live_view_is_not_redrawn_more_than_ten_times_a_second() {
    let paper = Paper::default();
    let mut view = Tty::new(paper.clone(), Box::new(|| tty::Size { columns: 80, rows: 24 }), Colour::Kept);
    let mut board = Board::default();
    for at in 0..1000 {
        let (now, event) = (Duration::from_millis(at), log(0, Stream::Stdout, "line"));
        board.apply(now, &event);
        view.event(&board, now, &event);
    }
    let frames = paper.text().matches("[+] Building").count();
    assert_eq!(frames, 10);
}

/// Counts what is written to it, and says each time how many lines it has.
struct Counter(mpsc::Sender<usize>);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        assert!(bytes.ends_with(b"\n"), "only whole lines are written");
        self.0.send(bytes.iter().filter(|byte| **byte == b'\n').count()).expect("somebody counts");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Shows a build whose events come through these channels.
fn shown_by(view: Box<dyn View>) -> (mpsc::SyncSender<Message>, impl FnOnce()) {
    let (events, receiver) = mpsc::sync_channel(QUEUE);
    let show = move || drop(own(view, Board::default(), None, None, &receiver, Instant::now()));
    (events, show)
}

fn views(count: &mpsc::Sender<usize>) -> [Box<dyn View>; 2] {
    let out = || at_once(Counter(count.clone()));
    [Box::new(Plain::new(out())), Box::new(Json::new(out(), SystemTime::UNIX_EPOCH))]
}

#[test]
fn lines_that_wait_are_written_at_once() {
    let (count, counted) = mpsc::channel();
    for view in views(&count) {
        let (events, show) = shown_by(view);
        for _ in 0..QUEUE {
            let event = log(0, Stream::Stdout, "a line");
            events.send(Message::Event(Duration::ZERO, Box::new(event))).expect("room");
        }
        drop(events);
        show();
        let writes: Vec<usize> = counted.try_iter().collect();
        // A line of a log and its number, or an object of less than 128 bytes.
        assert!(writes.iter().sum::<usize>() >= QUEUE && writes.len() <= QUEUE / 32 + 1, "{writes:?}");
    }
}

#[test]
fn a_line_that_nothing_follows_is_written() {
    let (count, counted) = mpsc::channel();
    for view in views(&count) {
        let (events, show) = shown_by(view);
        let owner = std::thread::spawn(show);
        for _ in 0..3 {
            let event = log(0, Stream::Stdout, "a line");
            events.send(Message::Event(Duration::ZERO, Box::new(event))).expect("room");
            // The next one is sent only when this one is there.
            counted.recv_timeout(Duration::from_secs(60)).expect("it is written");
            while counted.try_recv().is_ok() {}
        }
        drop(events);
        owner.join().expect("shown");
        counted.try_iter().for_each(drop);
    }
}

#[test]
fn a_step_that_has_waited_and_begins_anew_waits_no_more() {
    let mut board = Board::default();
    let step = VertexId(0);
    let who = "waiting for another builder that runs this step".to_owned();
    board.apply(Duration::ZERO, &Event::Planned(vec![(step, "[1/1] RUN make".to_owned())]));
    for (event, waits) in
        [(Event::Started(step), false), (Event::Waiting(step, who), true), (Event::Started(step), false)]
    {
        board.apply(Duration::from_secs(1), &event);
        assert_eq!(board.step(step).expect("planned").waits_for.is_some(), waits, "{event:?}");
    }
}

#[test]
fn a_build_that_is_silent_says_what_it_waits_for() {
    let paper = Paper::default();
    let (mut board, mut view) = (Board::default(), Plain::new(paper.clone()));
    let step = VertexId;
    let steps = ["[a 1/1] RUN make", "[b 1/1] RUN test", "[c 1/1] RUN later"];
    let who = "waiting for another build (b1, process 7) that runs this step".to_owned();
    let events = [
        Event::Planned(steps.iter().enumerate().map(|(id, label)| (step(id), (*label).to_owned())).collect()),
        Event::Started(step(0)),
        Event::Waiting(step(1), who),
        Event::Stage("waiting for another step or build that unpacks x".to_owned()),
        transfer("pull y", 1_000_000, 4_000_000),
    ];
    for event in &events {
        board.apply(Duration::from_secs(1), event);
        view.event(&board, Duration::from_secs(1), event);
    }
    let before = paper.text();
    assert!(
        before.contains("#2 waiting for another build (b1, process 7) that runs this step\n"),
        "{before}"
    );
    view.tick(&board, Duration::from_secs(30));
    assert_eq!(paper.text(), before, "not yet");
    for seconds in [31, 32, 60, 61] {
        view.tick(&board, Duration::from_secs(seconds));
    }
    let told = paper.text()[before.len()..].to_owned();
    let once = |text: &str| assert_eq!(told.matches(text).count(), 1, "{text}: {told}");
    once("#1 still running after 30.0s\n");
    once("#1 still running after 60.0s\n");
    once("#3 not done after 60.0s\n");
    once("#4 not done after 30.0s, 1.00MB / 4.00MB\n");
    assert_eq!(told.matches("#2 still waiting for another build (b1, process 7)").count(), 2, "{told}");
    assert!(!told.contains("later"), "{told}");
}
