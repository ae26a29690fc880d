use std::{
    fs::{self, File},
    io::{Cursor, Read},
    path::Path,
    time::{Duration, SystemTime},
};

use oci::Descriptor;

use super::*;
use crate::cache::{
    Artifact, ArtifactKind, Bundle, DirectoryStorage, SignKey, SignedRecord, TrustKeys, names, samples,
};

/// A cache in a directory of its own.
struct Cache {
    directory: tempfile::TempDir,
    storage: DirectoryStorage,
    cancel: Cancel,
}

impl Cache {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let storage = DirectoryStorage::new(directory.path());
        Self { directory, storage, cancel: Cancel::default() }
    }

    /// The blobs that records name are not looked into here.
    fn put(&self, kind: ArtifactKind, names: &[&str], document: Vec<u8>, blobs: Vec<Descriptor>) {
        for blob in &blobs {
            let path = self.storage.blobs_directory().join(blob.digest.hex());
            fs::create_dir_all(self.storage.blobs_directory()).expect("made");
            fs::write(path, blob.digest.hex()).expect("written");
        }
        let artifact = Artifact { kind, document, signature: None, blobs };
        self.storage.put(names, &artifact, &self.cancel).expect("put");
    }

    fn put_record(&self, remote: &RemoteRecord) {
        let (definition, content) =
            (names::definition(&remote.record.definition), names::content(&remote.record.content));
        let document = remote.to_document().expect("a record");
        self.put(ArtifactKind::Record, &[&definition, &content], document, remote.blobs());
    }

    fn put_bundle(&self, name: &str, records: &[RemoteRecord]) {
        let record = |remote: &RemoteRecord| SignedRecord {
            document: remote.to_document().expect("a record"),
            signature: None,
        };
        let bundle = Bundle { records: records.iter().map(record).collect(), ..Bundle::default() };
        let blobs = records.iter().flat_map(RemoteRecord::blobs).collect();
        self.put(ArtifactKind::Bundle, &[name], bundle.encode(), blobs);
    }

    fn survey(&self) -> Survey {
        survey(&self.storage, &TrustKeys::default(), &self.cancel).expect("there")
    }

    /// As if everything had been written two hours ago.
    fn age(&self) {
        for name in blob_files(self.directory.path()) {
            let path = self.storage.blobs_directory().join(name);
            let then = SystemTime::now() - Duration::from_secs(7200);
            File::options().write(true).open(path).and_then(|file| file.set_modified(then)).expect("set");
        }
    }
}

fn blob_files(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory.join("blobs/sha256")).expect("there");
    files.map(|file| file.expect("there").file_name().into_string().expect("text")).collect()
}

/// A chain of three steps, made at a time.
fn build(at: u64) -> Vec<RemoteRecord> {
    let mut records = samples::build(3);
    records.iter_mut().for_each(|remote| remote.record.made.by.at = at);
    records
}

/// The same with steps of their own.
fn other_build(at: u64) -> Vec<RemoteRecord> {
    let mut records = vec![samples::copy()];
    records.iter_mut().for_each(|remote| remote.record.made.by.at = at);
    records
}

/// What goes, by what it is called here.
fn going(survey: &Survey, keep: &Keep, now: u64) -> Vec<String> {
    let name = |place: usize| match &survey.entries[place].content {
        Content::Record(kept) => kept.remote.record.pre_image["~instruction"].clone(),
        Content::Bundle(_) => survey.entries[place].names.join(" "),
        Content::Unusable(why) => why.clone(),
    };
    let shorten = |name: String| name.chars().take(23).collect::<String>();
    choose(&survey.entries, keep, now).into_iter().map(name).map(shorten).collect()
}

const STEPS: [&str; 3] = ["RUN make -C component-0", "RUN make -C component-1", "RUN make -C component-2"];

#[test]
fn what_was_used_least_recently_goes_first_and_what_is_kept_stays() {
    let cache = Cache::new();
    let (old, new) = (build(1000), other_build(5000));
    old.iter().chain(&new).for_each(|record| cache.put_record(record));
    cache.put_bundle("old", &old);
    cache.put_bundle("new", &new);
    let survey = cache.survey();
    assert_eq!(survey.entries.len(), 6);
    let all = distinct(&survey.entries);
    let within = |seconds| Some(Duration::from_secs(seconds));
    let image = Kept { remote: old[1].clone(), seal: Seal::Missing }.diff_ids();
    let [first, second, third] = STEPS;
    let old_ones = vec!["old", third, second, first];
    let everything = [&old_ones[..], &["new", "COPY . ."]].concat();
    for (keep, want) in [
        (Keep::default(), everything.clone()),
        (Keep { storage: Some(u64::MAX), ..Keep::default() }, vec![]),
        (Keep { storage: Some(all), ..Keep::default() }, vec![]),
        (Keep { storage: Some(all - 1), ..Keep::default() }, vec!["old"]),
        (Keep { storage: Some(1), ..Keep::default() }, everything.clone()),
        (Keep { within: within(2000), ..Keep::default() }, old_ones.clone()),
        (Keep { within: within(2000), storage: Some(all - 1), ..Keep::default() }, vec!["old"]),
        (Keep { within: within(6000), storage: Some(0), ..Keep::default() }, vec![]),
        (Keep { images: vec![image.clone()], ..Keep::default() }, vec!["old", third, "new", "COPY . ."]),
        (Keep { images: vec![image], within: within(2000), ..Keep::default() }, vec!["old", third]),
    ] {
        assert_eq!(going(&survey, &keep, 6000), want, "{keep:?}");
    }
}

#[test]
fn a_record_that_a_young_bundle_names_is_young() {
    let cache = Cache::new();
    let mut records = build(1000);
    records[2].record.made.by.at = 5000;
    records.iter().for_each(|record| cache.put_record(record));
    let survey = cache.survey();
    let keep = Keep { within: Some(Duration::from_secs(2000)), ..Keep::default() };
    assert_eq!(going(&survey, &keep, 6000), [STEPS[1], STEPS[0]]);
    cache.put_bundle("main", &records);
    let survey = cache.survey();
    assert_eq!(going(&survey, &keep, 6000), Vec::<String>::new());
}

#[test]
fn what_cannot_be_used_goes_and_what_is_not_ours_is_not_even_listed() {
    let cache = Cache::new();
    let records = build(1000);
    cache.put_record(&records[0]);
    // Under a name that is another's, damaged, and of a version to come.
    let document = records[1].to_document().expect("a record");
    let wrong = names::content(&samples::digest("another"));
    cache.put(ArtifactKind::Record, &[&wrong], document.clone(), vec![]);
    let mut cut = document.clone();
    cut.pop();
    cache.put(ArtifactKind::Record, &["cut"], cut, vec![]);
    let file = |name: &str| cache.storage.names_directory().join(format!("{name}.json"));
    fs::write(file(&names::content(&samples::digest("noise"))), "{").expect("written");
    fs::write(file("notes"), "{}").expect("written");
    let survey = cache.survey();
    assert_eq!(survey.others, ["notes"]);
    let keep = Keep { storage: Some(u64::MAX), ..Keep::default() };
    assert_eq!(going(&survey, &keep, 2000).len(), 3);
    // With a key that nobody has signed with, there is nothing at all.
    let key = cache.directory.path().join("key");
    fs::write(&key, crate::cache::sign::tests::PRIVATE).expect("written");
    let trusted = SignKey::read(&key).expect("a key").trusted();
    let distrusted = super::survey(&cache.storage, &trusted, &cache.cancel).expect("there");
    assert_eq!(going(&distrusted, &keep, 2000).len(), 4);
}

#[test]
fn a_directory_is_swept_of_what_nobody_can_be_about_to_name() {
    let cache = Cache::new();
    let records = build(1000);
    records.iter().for_each(|record| cache.put_record(record));
    cache.age();
    let before = blob_files(cache.directory.path()).len();
    let survey = cache.survey();
    let last = survey.entries.iter().find(
        |entry| matches!(&entry.content, Content::Record(kept) if kept.remote.record.content == records[2].record.content),
    );
    let last = last.expect("it is there");
    let swept = prune(&cache.storage, &[last], &[], &cache.cancel).expect("removed");
    // Its document, its layer and the tree of that: the rest is others', too.
    assert!(matches!(swept, Swept::Freed { count: 3, young: 0, .. }), "{swept:?}");
    assert_eq!(blob_files(cache.directory.path()).len(), before - 3);
    assert_eq!(cache.survey().entries.len(), 2);
    // Once more is once.
    let swept = prune(&cache.storage, &[last], &[], &cache.cancel).expect("fine");
    assert_eq!(swept, Swept::Freed { count: 0, bytes: 0, young: 0 });
    // What is there again by now stays, and so do its blobs, of which one is young.
    cache.put_record(&records[2]);
    cache.put(ArtifactKind::Record, &["other"], b"x".to_vec(), vec![]);
    let other = cache.survey().entries.into_iter().find(|entry| entry.names == ["other"]).expect("there");
    let stranger = Entry { digest: last.digest, ..other };
    let swept = prune(&cache.storage, &[&stranger], &[], &cache.cancel).expect("removed");
    assert_eq!(swept, Swept::Freed { count: 0, bytes: 0, young: 0 }, "it stands for something else now");
}

#[test]
fn a_blob_that_a_writer_finds_is_not_swept_before_it_is_named() {
    let cache = Cache::new();
    let content = b"layer".to_vec();
    let blob = Descriptor::of(oci::MediaType::OciLayer, &content);
    let open = || Ok(Box::new(Cursor::new(content.clone())) as Box<dyn Read + Send>);
    let put = || cache.storage.put_blob(&blob, None, &open, &cache.cancel).expect("written");
    let sweep = || cache.storage.sweep(&cache.cancel).expect("swept");
    assert!(put(), "it is new");
    assert_eq!(sweep(), Swept::Freed { count: 0, bytes: 0, young: 5 });
    cache.age();
    assert!(!put(), "it is there");
    assert_eq!(sweep(), Swept::Freed { count: 0, bytes: 0, young: 5 }, "somebody is about to name it");
    cache.age();
    assert_eq!(sweep(), Swept::Freed { count: 1, bytes: 5, young: 0 });
    assert!(put(), "it is gone");
}
