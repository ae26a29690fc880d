//! What goes wrong: faults, which requests meet them and how often, all from a seed.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use oci::Sha256Digest;

use super::common::fault::{Headers, Reply, Request, status};

/// A small generator with a seed that can be printed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Seeds that are neighbours shall not begin alike.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.below(2);
        random
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The connection is reset before the registry hears of the request.
    Drop,
    /// The registry does as it is told, but its answer is lost.
    Lose,
    /// The answer is reset after so many bytes.
    CutAnswer(usize),
    /// The request's body is reset after so many bytes.
    CutRequest(u64),
    /// The body ends early, the connection in good order.
    Truncate(usize),
    /// 1 KiB/s, for a second, which is half a minute of people's deadlines.
    Crawl,
    /// Silence.
    Stall,
    /// This status and nothing else.
    Status(u16),
    /// 429, without a word, with seconds, or with a date.
    Busy(RetryAfter),
    /// More bytes than the blob has.
    ExtraBytes,
    /// As many, but not the same.
    WrongBytes,
    WrongDigestHeader,
    /// The token is worth nothing any more.
    TokenRevoked,
    /// What is there is not there for a moment.
    NotFound,
    /// A break, and then `Range` is refused.
    RangeRefused,
    /// A break, and then `Range` is not heard.
    RangeIgnored,
    /// The upload session is gone.
    SessionLost,
    /// The answer comes twice.
    Twice,
    /// To the same host by its other name.
    RedirectHost,
    /// To a host that plain HTTP must not be spoken to.
    RedirectPlain,
    /// To itself, for ever.
    RedirectLoop,
}

#[derive(Debug, Clone, Copy)]
pub enum RetryAfter {
    Unsaid,
    Seconds,
    Date,
}

/// Requests of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Any,
    ReadManifest,
    ReadBlob,
    HeadBlob,
    StartUpload,
    Upload,
    PutManifest,
}

impl Kind {
    fn fits(self, request: &Request) -> bool {
        match self {
            Self::Any => true,
            Self::ReadManifest => request.method != "PUT" && request.path.contains("/manifests/"),
            Self::ReadBlob => request.is("GET", "/blobs/"),
            Self::HeadBlob => request.is("HEAD", "/blobs/"),
            Self::StartUpload => request.is("POST", "/uploads/"),
            Self::Upload => request.is("PUT", "/uploads/"),
            Self::PutManifest => request.is("PUT", "/manifests/"),
        }
    }
}

const ANY: [Kind; 7] = [
    Kind::Any,
    Kind::ReadManifest,
    Kind::ReadBlob,
    Kind::HeadBlob,
    Kind::StartUpload,
    Kind::Upload,
    Kind::PutManifest,
];
const BODIES: [Kind; 2] = [Kind::ReadManifest, Kind::ReadBlob];

impl Fault {
    fn random(random: &mut Random) -> Self {
        let place = random.below(400_000) as usize;
        match random.below(24) {
            0 => Self::Drop,
            1 => Self::Lose,
            2 | 3 => Self::CutAnswer(place),
            4 | 5 => Self::CutRequest(place as u64),
            6 => Self::Truncate(place),
            7 => Self::Crawl,
            8 => Self::Stall,
            9 | 10 => Self::Status(random.one_of(&[500, 502, 503, 504])),
            11 => Self::Busy(RetryAfter::Unsaid),
            12 => Self::Busy(random.one_of(&[RetryAfter::Seconds, RetryAfter::Date])),
            13 => Self::ExtraBytes,
            14 => Self::WrongBytes,
            15 => Self::WrongDigestHeader,
            16 => Self::TokenRevoked,
            17 => Self::NotFound,
            18 => random.one_of(&[Self::RangeRefused, Self::RangeIgnored]),
            19 | 20 => Self::SessionLost,
            21 => Self::Twice,
            22 => Self::RedirectHost,
            _ => random.one_of(&[Self::RedirectPlain, Self::RedirectLoop]),
        }
    }

    /// Which requests can meet it.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::CutAnswer(_) | Self::Truncate(_) | Self::Crawl => &BODIES,
            Self::WrongDigestHeader => &[Kind::ReadManifest, Kind::PutManifest],
            Self::ExtraBytes | Self::WrongBytes => &BODIES,
            Self::CutRequest(_) | Self::SessionLost => &[Kind::Upload],
            Self::NotFound => &[Kind::HeadBlob, Kind::PutManifest],
            Self::RangeRefused | Self::RangeIgnored => &[Kind::ReadBlob],
            _ => &ANY,
        }
    }

    /// How often at most; `None` for what may hold for ever.
    fn most(self) -> u64 {
        match self {
            // A manifest is put three times.
            Self::NotFound => 2,
            // Whoever asks for a second asks for half a minute of people's time.
            Self::Busy(RetryAfter::Seconds | RetryAfter::Date) | Self::Crawl => 1,
            // Wrong bytes that are told only at the end are asked for again once.
            Self::ExtraBytes | Self::WrongBytes | Self::Stall => 1,
            _ => 3,
        }
    }

    fn reply(self, request: &Request) -> Reply {
        let forward = || Box::new(Reply::Forward);
        match self {
            Self::Drop => Reply::Lose(Box::new(status(200, &[], ""))),
            Self::Lose => Reply::Lose(forward()),
            Self::CutAnswer(place) => Reply::Cut(place, forward()),
            Self::Truncate(place) => Reply::End(place, forward()),
            Self::Crawl => Reply::Trickle(1024, forward()),
            Self::Stall => Reply::Stall,
            Self::Status(code) => status(code, &[], ""),
            Self::Busy(RetryAfter::Unsaid) => status(429, &[], ""),
            Self::Busy(RetryAfter::Seconds) => status(429, &[("Retry-After", "1")], ""),
            Self::Busy(RetryAfter::Date) => {
                let (now, then) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT");
                status(429, &[("Date", now), ("Retry-After", then)], "")
            }
            Self::ExtraBytes => Reply::Bent(add_bytes),
            Self::WrongBytes => Reply::Bent(|_, body| body.iter_mut().take(1).for_each(|byte| *byte ^= 1)),
            Self::WrongDigestHeader => Reply::Bent(lie),
            Self::NotFound if request.method == "PUT" => error(404, "MANIFEST_BLOB_UNKNOWN"),
            Self::NotFound => error(404, "BLOB_UNKNOWN"),
            Self::RangeRefused | Self::RangeIgnored if request.header("range").is_none() => {
                Reply::Cut(100_000, forward())
            }
            Self::RangeRefused => status(416, &[], ""),
            Self::RangeIgnored => Reply::ForwardWithout("range"),
            Self::SessionLost => error(404, "BLOB_UPLOAD_UNKNOWN"),
            Self::Twice => Reply::Twice(forward()),
            Self::RedirectHost => redirect(&elsewhere(request)),
            Self::RedirectPlain => redirect(&format!("http://registry.invalid{}", request.path)),
            Self::RedirectLoop => redirect("/loop"),
            // Done elsewhere: to the body before it is read, to the tokens.
            Self::CutRequest(_) | Self::TokenRevoked => Reply::Forward,
        }
    }
}

fn add_bytes(headers: &mut Headers, body: &mut Vec<u8>) {
    headers.retain(|(name, _)| name != "content-length" || body.is_empty());
    body.extend(body.first().copied());
}

fn lie(headers: &mut Headers, _: &mut Vec<u8>) {
    let wrong = Sha256Digest::of(b"wrong").to_string();
    let digests = headers.iter_mut().filter(|(name, _)| name == "docker-content-digest");
    digests.for_each(|(_, value)| value.clone_from(&wrong));
}

fn error(code: u16, name: &str) -> Reply {
    status(code, &[], format!(r#"{{"errors":[{{"code":"{name}","message":"so it seems"}}]}}"#))
}

fn redirect(to: &str) -> Reply {
    status(307, &[("Location", to)], "")
}

/// The same by the host's other name, as storage services want it: with a signature and without our token.
fn elsewhere(request: &Request) -> String {
    let separator = if request.path.contains('?') { '&' } else { '?' };
    format!("http://{}{}{separator}{SIGNED}", other_name(request), request.path)
}

/// In the query of what needs no token.
const SIGNED: &str = "signed=yes";

/// `localhost:PORT` for `127.0.0.1:PORT`, and the other way round.
fn other_name(request: &Request) -> String {
    let host = request.header("host").unwrap_or_default();
    let port = host.rsplit(':').next().unwrap_or_default();
    let name = if host.starts_with("localhost") { "127.0.0.1" } else { "localhost" };
    format!("{name}:{port}")
}

/// A fault, and the requests of a kind that meet it: `times` of them from the `first` on.
#[derive(Debug, Clone, Copy)]
struct Planned {
    fault: Fault,
    kind: Kind,
    first: usize,
    times: usize,
}

/// What goes wrong in one build.
#[derive(Debug)]
pub struct Schedule {
    pub seed: u64,
    faults: Vec<Planned>,
    /// Whether the registry wants tokens, which last two seconds.
    pub gated: bool,
    /// Whether a fault never ends.
    pub permanent: bool,
}

impl Schedule {
    /// One to six faults that end; every eighth schedule has one that does not.
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let permanent = seed.is_multiple_of(8);
        let count = if permanent { 1 } else { 1 + random.below(6) };
        let mut planned = || {
            let fault = Fault::random(&mut random);
            let kind = random.one_of(fault.kinds());
            let times = if permanent { usize::MAX >> 1 } else { 1 + random.below(fault.most()) as usize };
            Planned { fault, kind, first: random.below(5) as usize, times }
        };
        let faults = (0..count).map(|_| planned()).collect();
        Self { seed, faults, gated: seed.is_multiple_of(3), permanent }
    }
}

/// A schedule that is being carried out.
pub struct Running {
    faults: Vec<(Planned, AtomicUsize)>,
    tokens: Option<Tokens>,
    /// The fault of a request whose body has not been read yet, by its path.
    begun: Mutex<BTreeMap<String, Vec<Fault>>>,
}

impl Running {
    pub fn new(schedule: &Schedule) -> Self {
        let faults = schedule.faults.iter().map(|planned| (*planned, AtomicUsize::new(0))).collect();
        let tokens = schedule.gated.then(Tokens::default);
        Self { faults, tokens, begun: Mutex::default() }
    }

    /// The fault that a request meets; each request is counted once.
    fn meets(&self, request: &Request) -> Option<Fault> {
        let mut met = None;
        for (planned, seen) in self.faults.iter().filter(|(planned, _)| planned.kind.fits(request)) {
            let number = seen.fetch_add(1, Ordering::SeqCst);
            let hit = (planned.first..planned.first.saturating_add(planned.times)).contains(&number);
            met = met.or(hit.then_some(planned.fault));
        }
        met
    }

    /// After how many bytes of its body a request is broken off. It is asked first.
    pub fn break_after(&self, request: &Request) -> Option<u64> {
        let fault = self.meets(request)?;
        if let Fault::CutRequest(place) = fault {
            return Some(place);
        }
        let mut begun = self.begun.lock().expect("no test panics in it");
        begun.entry(request.line()).or_default().push(fault);
        None
    }

    pub fn reply(&self, request: &Request) -> Reply {
        if request.path.starts_with("/loop") {
            return redirect("/loop");
        }
        let begun =
            self.begun.lock().expect("no test panics in it").get_mut(&request.line()).and_then(Vec::pop);
        if let Some(tokens) = &self.tokens {
            if matches!(begun, Some(Fault::TokenRevoked)) {
                tokens.revoke();
            }
            if let Some(reply) = tokens.reply(request) {
                return reply;
            }
        }
        begun.map_or(Reply::Forward, |fault| fault.reply(request))
    }
}

/// How long a token lasts.
const LIFE: Duration = Duration::from_secs(2);
/// What every token begins with; no message may hold it.
pub const TOKEN: &str = "sesame-";

/// A token service, and the gate that wants its tokens.
#[derive(Default)]
struct Tokens {
    given: Mutex<Vec<Instant>>,
}

impl Tokens {
    fn revoke(&self) {
        let mut given = self.given.lock().expect("no test panics in it");
        given.iter_mut().for_each(|when| *when -= LIFE);
    }

    /// `None` when the request may pass.
    fn reply(&self, request: &Request) -> Option<Reply> {
        let mut given = self.given.lock().expect("no test panics in it");
        if request.path.starts_with("/token") {
            given.push(Instant::now());
            let token = format!("{TOKEN}{}", given.len() - 1);
            let body = format!(r#"{{"token":"{token}","expires_in":{}}}"#, LIFE.as_secs());
            return Some(status(200, &[], body));
        }
        let shown = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let number = shown.and_then(|token| token.strip_prefix(TOKEN)?.parse::<usize>().ok());
        let is_valid = |number: usize| given.get(number).is_some_and(|when| when.elapsed() < LIFE);
        let is_open = request.path == "/v2/" || request.path.ends_with(SIGNED);
        if is_open || number.is_some_and(is_valid) {
            return None;
        }
        let host = request.header("host").unwrap_or_default();
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="proxy""#);
        Some(status(401, &[("WWW-Authenticate", &challenge)], ""))
    }
}
