use std::{error::Error, fs, io::Write, os::fd::AsFd, path::Path};

use oci::ContentDigest;
use solver::op::{Chmod, Timestamps};

use super::{alike::planned_is_written, *};
use crate::{
    context::{ContextDirectory, ContextModes},
    tarball::craft::{Archive, Fields},
    testing::{Overlaid, draw, is_host_root, open_root, run_in_namespace_with_one_id, show},
};

/// A COPY or ADD as a Dockerfile has it, with paths that are cleaned already; `--from` means that the source is a file
/// system of an image and not a context.
struct Written {
    copy: Copy,
    from: bool,
}

fn written(step: &str) -> Written {
    let mut words: Vec<&str> = step.split(' ').collect();
    let unpack = words.remove(0) == "ADD";
    let (flags, paths): (Vec<&str>, Vec<&str>) = words.into_iter().partition(|word| word.starts_with("--"));
    let value = |name: &str| flags.iter().find_map(|flag| flag.strip_prefix(name)).map(str::to_owned);
    let values =
        |name: &str| flags.iter().filter_map(|flag| flag.strip_prefix(name)).map(str::to_owned).collect();
    let (destination, sources) = paths.split_last().expect("a destination");
    let item = |source: &&str| CopyItem {
        input: 1,
        selector: Selector {
            include: vec![source.trim_start_matches("./").trim_matches('/').to_owned()],
            exclude: values("--exclude="),
            follow_links: true,
            parents: flags.contains(&"--parents"),
        },
        unpack,
    };
    let chmod = value("--chmod=").map(|mode| match u32::from_str_radix(&mode, 8) {
        Ok(mode) => Chmod::Octal(mode),
        Err(_) => Chmod::Symbolic(mode),
    });
    let copy = Copy {
        items: sources.iter().map(item).collect(),
        destination: format!("/{}", destination.trim_matches('/')),
        into_directory: destination.ends_with('/'),
        chown: value("--chown="),
        chmod,
        timestamps: if flags.contains(&"--preserve") { Timestamps::Preserve } else { Timestamps::Auto },
    };
    Written { copy, from: flags.contains(&"--from") }
}

/// An error and its cause.
pub(super) fn told(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Runs a step, or says what went wrong.
pub(super) fn run(source: &Path, overlay: &Overlaid, step: &str) -> Result<Owners, String> {
    let (step, listings) = listed(source, step)?;
    let listings: Vec<&Listing> = listings.iter().map(AsRef::as_ref).collect();
    copy(&step, &listings, overlay.root.as_fd(), &Owners::new(), &Cancel::default())
        .map_err(|error| told(&error))
}

/// A step, and what it picks.
pub(super) fn listed(source: &Path, step: &str) -> Result<(Copy, Vec<Arc<Listing>>), String> {
    let Written { copy: step, from } = written(step);
    let list_item = |item: &CopyItem| -> Result<Listing, String> {
        if from {
            let cancel = Cancel::default();
            let listing = list(open_root(source).as_fd(), &Owners::new(), &item.selector, &cancel);
            let listing = listing.map_err(|error| told(&error))?;
            return listing.complete(&cancel).map_err(|error| told(&error));
        }
        let context =
            ContextDirectory::new(source.to_owned(), None, ContextModes::Normalise).expect("no patterns");
        context
            .files(&item.selector, &Cancel::default())
            .map(|files| files.listing)
            .map_err(|error| told(&error))
    };
    let listings = step.items.iter().map(|item| list_item(item).map(Arc::new)).collect::<Result<_, _>>()?;
    Ok((step, listings))
}

/// One row: what is copied from, what is copied into, the step, and what is there then (`! ...` for an error).
type Row<'a> = (&'a [&'a str], &'a [&'a str], &'a str, &'a [&'a str]);

fn check(rows: &[Row<'_>]) {
    let wrong: Vec<String> = rows.iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// What is wrong about a row.
fn wrong((source, image, step, expected): &Row<'_>) -> Option<String> {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let overlay = Overlaid::new(image)?;
    draw(temp.path(), source);
    let (seen, owners, failed) = match run(temp.path(), &overlay, step) {
        Ok(owners) => {
            assert!(owners.keys().all(|path| path.is_empty() || overlay.has(path)), "{step}: {owners:?}");
            (show(&overlay.root), owners, None)
        }
        Err(error) => (vec![format!("! {error}")], Owners::new(), Some(error)),
    };
    let alike = planned_is_written(temp.path(), overlay, step, &owners, failed.as_deref());
    if let Err(difference) = alike {
        return Some(format!("{step}\nof {source:?}\ninto {image:?}\n{difference}"));
    }
    (seen != *expected)
        .then(|| format!("{step}\nof {source:?}\ninto {image:?}\nmade {seen:?}\n not {expected:?}"))
}

const PASSWD: &str = "etc/passwd = app:x:7:8::/:";
const SEVERAL: &str = "! with more than one source file, the destination must be a directory and end with a slash: \
                       a.c and b.c cannot both be /t";
const GROUP: &str = "etc/group = staff:x:50:";

#[test]
fn where_things_go() {
    let rows: &[Row<'_>] = &[
        // A file
        (&["f = x"], &[], "COPY f /g", &["g = x"]),
        (&["f = x"], &[], "COPY f /", &["f = x"]),
        (&["f = x"], &[], "COPY f /d/", &["d/", "d/f = x"]),
        (&["f = x"], &["d/"], "COPY f /d", &["d/", "d/f = x"]),
        (&["f = x"], &[], "COPY f /a/b/g", &["a/", "a/b/", "a/b/g = x"]),
        (&["s/f = x"], &[], "COPY s/f /g", &["g = x"]),
        (&["f = x"], &["f = old ; 0600 5:6"], "COPY f /f", &["f = x"]),
        (&["f = x"], &["f -> g", "g = old"], "COPY f /f", &["f -> g", "g = x"]),
        (&["f = x"], &["d/f -> g", "d/g = old"], "COPY f /d/", &["d/", "d/f = x", "d/g = old"]),
        (&["f = x"], &["a = old", "b => a"], "COPY f /b", &["a = old", "b = x"]),
        (&["f = x"], &["d/f/g = y"], "COPY f /d/", &["! cannot replace to directory /d/f with file"]),
        (&["f = x"], &["g = y"], "COPY f /g/", &["! /g is not a directory"]),
        (&["f = x"], &["g = y"], "COPY f /g/h", &["! /g is not a directory"]),
        // A directory
        (&["d/f = x", "d/.dot = y", "d/e/"], &[], "COPY d /", &[".dot = y", "e/", "f = x"]),
        (&["d/f = x"], &[], "COPY d/ /t", &["t/", "t/f = x"]),
        (&["d/f = x"], &[], "COPY d /t/", &["t/", "t/f = x"]),
        (&["d/f = x"], &["t/g = y"], "COPY d /t", &["t/", "t/f = x", "t/g = y"]),
        (&["d/f = x"], &["t = y"], "COPY d /t", &["! cannot copy to non-directory: /t"]),
        (&["d/s/f = x"], &["s = y"], "COPY d /", &["! cannot copy to non-directory: /s"]),
        (&["d/s/f = x"], &["s -> u", "u/"], "COPY d /", &["! cannot copy to non-directory: /s"]),
        (&["d/s = x"], &["s/f = y"], "COPY d /", &["! cannot replace to directory /s with file"]),
        (&["f = x", "d/g = y"], &[], "COPY . /t", &["t/", "t/d/", "t/d/g = y", "t/f = x"]),
        (&["d/"], &[], "COPY d /t", &["t/"]),
        (&["d/ 0700", "d/e/ 0711"], &[], "COPY d /t", &["t/", "t/e/ ; 0711"]),
        (
            &["d/ 0700", "d/e/ 0711"],
            &["t/ 0750 1:2", "t/e/ 0750 1:2"],
            "COPY d /t",
            &["t/ ; 0750 1:2", "t/e/ ; 0711"],
        ),
        // Several
        (&["f = x", "g = y", "d/h = z"], &[], "COPY f g d /t/", &["t/", "t/f = x", "t/g = y", "t/h = z"]),
        (&["a.c = x", "b.c = y", "c.h = z"], &[], "COPY *.c /t/", &["t/", "t/a.c = x", "t/b.c = y"]),
        (&["d1/f = x", "d2/g = y"], &[], "COPY d? /t/", &["t/", "t/f = x", "t/g = y"]),
        (&["a.c = x"], &[], "COPY *.c /t", &["t = x"]),
        (&["a.c = x", "b.c = y"], &[], "COPY *.c /t", &[SEVERAL]),
        (&["a.c = x", "b.c = y"], &["t = z"], "COPY *.c /t", &[SEVERAL]),
        (&["a.c = x", "b.c = y"], &["t/"], "COPY *.c /t", &["t/", "t/a.c = x", "t/b.c = y"]),
        (
            &["a.c = x", "b.c = y"],
            &["t -> d", "d/"],
            "COPY *.c /t",
            &["d/", "d/a.c = x", "d/b.c = y", "t -> d"],
        ),
        (&["a.c = x", "b.c/f = y"], &[], "COPY *.c /t", &[SEVERAL]),
        (&["a.c/f = x", "b.c/g = y"], &[], "COPY *.c /t", &["t/", "t/f = x", "t/g = y"]),
        (&["a.c = x"], &[], "COPY none* a.c /t", &["t = x"]),
        (&["a.c = x"], &[], "COPY *.none a.c /t/", &["t/", "t/a.c = x"]),
        (&["a.c = x"], &[], "COPY *.none /t/", &[]),
        (&["d/f = x"], &[], "COPY */f /t/", &["t/", "t/f = x"]),
        (&["arr[0].txt = x"], &[], "COPY arr[[]0].txt /t/", &["t/", "t/arr[0].txt = x"]),
        // Nothing
        (&["f = x"], &[], "COPY g /t", &["! \"/g\": not found"]),
        (&["f = x"], &[], "COPY f g /t/", &["! \"/g\": not found"]),
        (&["f = x"], &[], "COPY none/* /t/", &["! \"/none\": not found"]),
        // Links in the source
        (&["l -> f", "f = x"], &[], "COPY l /t/", &["t/", "t/l = x"]),
        (&["l -> d", "d/f = x"], &[], "COPY l /t", &["t/", "t/f = x"]),
        (&["l -> d", "d/f = x"], &[], "COPY l/f /t", &["t = x"]),
        (&["d/l -> f", "d/f = x"], &[], "COPY d /t", &["t/", "t/f = x", "t/l -> f"]),
        (&["d/l -> /etc/passwd"], &[], "COPY d /t", &["t/", "t/l -> /etc/passwd"]),
        (&["l -> /etc/passwd"], &[], "COPY l /t", &["! \"/l\": not found"]),
        (&["l -> ../../../f", "f = x"], &[], "COPY l /t", &["t = x"]),
        (&["a -> b", "b -> a"], &[], "COPY a /t", &["! too many levels of symbolic links in a"]),
        (&["l1 -> f", "f = x"], &[], "COPY l* /t/", &["t/", "t/l1 = x"]),
        // Links in the destination
        (&["f = x"], &["l -> d", "d/"], "COPY f /l/", &["d/", "d/f = x", "l -> d"]),
        (&["f = x"], &["l -> d"], "COPY f /l/s/", &["d/", "d/s/", "d/s/f = x", "l -> d"]),
        (&["f = x"], &["l -> /d", "d/"], "COPY f /l/g", &["d/", "d/g = x", "l -> /d"]),
        (&["f = x"], &["l -> ../../../d"], "COPY f /l/g", &["d/", "d/g = x", "l -> ../../../d"]),
        (&["f = x"], &["l -> l"], "COPY f /l/", &["! too many levels of symbolic links in /l"]),
    ];
    assert!(rows.len() >= 40);
    check(rows);
}

#[test]
fn what_things_look_like_there() {
    let rows: &[Row<'_>] = &[
        // Owners
        (&["f = x ; 5:6"], &[], "COPY f /g", &["g = x"]),
        (&["f = x ; 5:6"], &[], "COPY --from f /g", &["g = x ; 5:6"]),
        (&["d/s/f = x ; 5:6", "d/s/ 7:8"], &[], "COPY --from d /t", &["t/", "t/s/ ; 7:8", "t/s/f = x ; 5:6"]),
        (&["f = x"], &[], "COPY --chown=55 f /g", &["g = x ; 55:55"]),
        (&["f = x"], &[], "COPY --chown=55:66 f /d/g", &["d/ ; 55:66", "d/g = x ; 55:66"]),
        (&["f = x ; 5:6"], &[], "COPY --from --chown=1:2 f /g", &["g = x ; 1:2"]),
        (
            &["d/f = x", "d/s/g = y", "d/l -> f"],
            &["t/ 7:7 0711"],
            "COPY --chown=9:9 d /t",
            &["t/ ; 0711 7:7", "t/f = x ; 9:9", "t/l -> f ; 9:9", "t/s/ ; 9:9", "t/s/g = y ; 9:9"],
        ),
        (&["f = x"], &[PASSWD, GROUP], "COPY --chown=app f /g", &["etc/", GROUP, PASSWD, "g = x ; 7:8"]),
        (
            &["f = x"],
            &[PASSWD, GROUP],
            "COPY --chown=app:staff f /g",
            &["etc/", GROUP, PASSWD, "g = x ; 7:50"],
        ),
        (
            &["f = x"],
            &[PASSWD],
            "COPY --chown=nobody f /g",
            &["! no user \"nobody\" in /etc/passwd of the image"],
        ),
        (
            &["f = x"],
            &[PASSWD],
            "COPY --chown=1:app f /g",
            &["! no group \"app\" in /etc/group of the image"],
        ),
        (&["f = x ; 5:6"], &[], "COPY --from --chown=root:root f /g", &["g = x"]),
        // Modes
        (&["f = x ; 0600"], &[], "COPY f /g", &["g = x ; 0600"]),
        (&["f = x ; 04755"], &[], "COPY f /g", &["g = x ; 4755"]),
        (&["f = x ; 04755"], &[], "COPY --from --chown=1:2 f /g", &["g = x ; 4755 1:2"]),
        (
            &["f = x ; 0664", "d/ 0775", "e = y ; 0775"],
            &[],
            "COPY . /t/",
            &["t/", "t/d/", "t/e = y ; 0755", "t/f = x"],
        ),
        (&["f = x ; 0664"], &[], "COPY --from f /t", &["t = x ; 0664"]),
        (
            &["d/f = x", "d/s/", "d/l -> f"],
            &[],
            "COPY --chmod=700 d /t",
            &["t/ ; 0700", "t/f = x ; 0700", "t/l -> f", "t/s/ ; 0700"],
        ),
        (&["d/f = x ; 0640", "d/s/ 0700"], &[], "COPY --chmod=go=rX d /t", &["t/", "t/f = x", "t/s/"]),
        (&["f = x"], &[], "COPY --chmod=4755 f /t", &["t = x ; 4755"]),
        (&["f = x"], &[], "COPY --chmod=1770 f /p/q/t", &["p/ ; 0770", "p/q/ ; 0770", "p/q/t = x ; 1770"]),
        (
            &["f = x"],
            &["p/ 0711"],
            "COPY --chmod=70 f /p/q/",
            &["p/ ; 0711", "p/q/ ; 0070", "p/q/f = x ; 0070"],
        ),
        (&["f = x"], &[], "COPY --chmod=a+x f /p/t", &["p/", "p/t = x ; 0755"]),
        (&["f = x"], &[], "COPY --chmod=u~x f /t", &["! invalid mode \"u~x\""]),
        // Times
        (&["f = x ; @1000"], &[], "COPY f /t", &["t = x"]),
        (
            &["d/f = x ; @1000", "d/s/ @2000"],
            &[],
            "COPY --preserve d /t",
            &["t/", "t/f = x ; @1000", "t/s/ ; @2000"],
        ),
        (
            &["d/f = x ; @1000", "d/s/ @2000"],
            &[],
            "COPY --from d /t",
            &["t/", "t/f = x ; @1000", "t/s/ ; @2000"],
        ),
        // Attributes
        (&["f = x ; user.a=b"], &[], "COPY f /t", &["t = x"]),
        (&["d/f = x ; user.a=b"], &[], "COPY --from d /t", &["t/", "t/f = x ; user.a=b"]),
        // Hard links
        (
            &["d/f = x", "d/g => d/f", "d/h => d/f"],
            &[],
            "COPY d /t",
            &["t/", "t/f = x", "t/g => t/f", "t/h => t/f"],
        ),
        (&["d/f = x", "e/g => d/f"], &[], "COPY d /t", &["t/", "t/f = x"]),
        (
            &["d/f = x ; 5:6", "d/g => d/f", "d/h => d/f"],
            &["t/h = old"],
            "COPY --from d /t",
            &["t/", "t/f = x ; 5:6", "t/g => t/f", "t/h => t/f"],
        ),
        (&["d/f = x", "d/g => d/f"], &[], "COPY --from d/f d/g /t/", &["t/", "t/f = x", "t/g = x"]),
        // Other things
        (
            &["d/p | ; 0600", "d/n c1,3 3:4"],
            &[],
            "COPY --from d /t",
            &["t/", "t/n c1,3 ; 3:4", "t/p | ; 0600"],
        ),
        (&["d/f = x", "d/s !"], &[], "COPY d /t", &["t/", "t/f = x", "t/s = "]),
        (&["s ! ; 0600"], &[], "ADD s /t", &["t =  ; 0600"]),
        (&["d/f = x", "d/s !"], &[], "COPY --from d /t", &["t/", "t/f = x"]),
        (&["d/p | ; 0600"], &[], "COPY d /t", &["t/", "t/p | ; 0600"]),
        (
            &["d/n c1,3"],
            &[],
            "COPY d /t",
            &["! d/n is a character device, which cannot be copied from a context"],
        ),
        (&["d/n c1,3", "f = x"], &[], "COPY f /t", &["t = x"]),
    ];
    check(rows);
}

#[test]
fn what_is_left_out_and_what_comes_with_its_parents() {
    let app: &[&str] = &["app/s/views/a = 1", "app/s/cache/b = 2", "app/c = 3", "app/k.o = 4"];
    let deep: &[&str] = &[
        "test/a/b/c/d/foo = 1",
        "test/a/b/c/d/e/bay = 2",
        "test/a/b2/c/d/e/bar = 3",
        "test/a/b/c2/d/e/baz = 4",
    ];
    let tree: &[&str] = &["x/y/a.txt = 1", "x/y/b.txt = 2", "x/a.txt = 3", "x/z/a.txt = 4", "y/b.txt = 5"];
    let rows: &[Row<'_>] = &[
        (
            app,
            &[],
            "COPY --exclude=s/views app /t",
            &["t/", "t/c = 3", "t/k.o = 4", "t/s/", "t/s/cache/", "t/s/cache/b = 2"],
        ),
        (app, &[], "COPY --exclude=s --exclude=*.o app /t", &["t/", "t/c = 3"]),
        (
            app,
            &[],
            "COPY --exclude=s --exclude=!s/cache --exclude=c --exclude=k.o app /t",
            &["t/", "t/s/", "t/s/cache/", "t/s/cache/b = 2"],
        ),
        (
            app,
            &[],
            "COPY --exclude=**/views --exclude=**/*.o . /t",
            &["t/", "t/app/", "t/app/c = 3", "t/app/s/", "t/app/s/cache/", "t/app/s/cache/b = 2"],
        ),
        (
            app,
            &[],
            "COPY --from --exclude=s/views app /t",
            &["t/", "t/c = 3", "t/k.o = 4", "t/s/", "t/s/cache/", "t/s/cache/b = 2"],
        ),
        (app, &[], "COPY --exclude=c app/c /t", &["t = 3"]),
        (
            tree,
            &[],
            "COPY --parents x/y/*.txt /p/",
            &["p/", "p/x/", "p/x/y/", "p/x/y/a.txt = 1", "p/x/y/b.txt = 2"],
        ),
        (tree, &[], "COPY --parents x/./y/*.txt /p/", &["p/", "p/y/", "p/y/a.txt = 1", "p/y/b.txt = 2"]),
        (
            tree,
            &[],
            "COPY --parents x/*/a.txt */b.txt /p/",
            &[
                "p/",
                "p/x/",
                "p/x/y/",
                "p/x/y/a.txt = 1",
                "p/x/z/",
                "p/x/z/a.txt = 4",
                "p/y/",
                "p/y/b.txt = 5",
            ],
        ),
        (
            tree,
            &[],
            "COPY --parents **/b.txt /p/",
            &["p/", "p/x/", "p/x/y/", "p/x/y/b.txt = 2", "p/y/", "p/y/b.txt = 5"],
        ),
        (
            tree,
            &[],
            "COPY --parents x/y /p/",
            &["p/", "p/x/", "p/x/y/", "p/x/y/a.txt = 1", "p/x/y/b.txt = 2"],
        ),
        (tree, &[], "COPY --parents x/none /p/", &["! \"/x/none\": not found"]),
        (
            deep,
            &[],
            "COPY --from --parents test/a/b/./c/d /o/",
            &["o/", "o/c/", "o/c/d/", "o/c/d/e/", "o/c/d/e/bay = 2", "o/c/d/foo = 1"],
        ),
        (
            deep,
            &[],
            "COPY --from --parents test/a/./b/./c2 /o/",
            &["o/", "o/b/", "o/b/c2/", "o/b/c2/d/", "o/b/c2/d/e/", "o/b/c2/d/e/baz = 4"],
        ),
        (
            deep,
            &[],
            "COPY --from --parents test/a/b*/./c/**/ba? /o/",
            &["o/", "o/c/", "o/c/d/", "o/c/d/e/", "o/c/d/e/bar = 3", "o/c/d/e/bay = 2"],
        ),
        (
            deep,
            &[],
            "COPY --from --parents test/a/b/c*/./d/**/baz test/a/b*/./c/**/bar /o/",
            &["o/", "o/c/", "o/c/d/", "o/c/d/e/", "o/c/d/e/bar = 3", "o/d/", "o/d/e/", "o/d/e/baz = 4"],
        ),
        (deep, &[], "COPY --from --parents test/a/b9*/c /o/", &["o/"]),
        (deep, &[], "COPY --from --parents test/a/b/./c9* /o/", &["o/"]),
        (tree, &[], "COPY --parents x/none* /p/", &["p/"]),
        (
            tree,
            &["p/x/ 0700 1:2"],
            "COPY --parents x/y/a.txt /p/",
            &["p/", "p/x/ ; 1:2", "p/x/y/", "p/x/y/a.txt = 1"],
        ),
    ];
    check(rows);
}

#[test]
fn heredocs_are_files() {
    let Some(overlay) = Overlaid::new(&["x = old"]) else { return };
    let files = [("one.txt", "first\n"), ("a*", "glob\n")];
    let files = files.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
    let listing = Listing::inline(&files);
    let written = written("COPY --chmod=750 --chown=5:6 one.txt a* /d/");
    copy(&written.copy, &[&listing, &listing], overlay.root.as_fd(), &Owners::new(), &Cancel::default())
        .expect("copied");
    let expected = ["d/ ; 0750 5:6", "d/a* = glob\n ; 0750 5:6", "d/one.txt = first\n ; 0750 5:6", "x = old"];
    assert_eq!(show(&overlay.root), expected);
}

#[test]
fn a_working_directory_is_made_once() {
    let Some(overlay) = Overlaid::new(&["have/ 0700 1:2", "l -> have", PASSWD]) else { return };
    let make = |path: &str, owner: &str| {
        let make = MakeDir { path: path.to_owned(), owner: owner.to_owned(), timestamps: Timestamps::Auto };
        let told = std::cell::RefCell::new(Vec::new());
        make_dir(&make, overlay.root.as_fd(), &|error| told.borrow_mut().push(error.to_string()))
            .expect(path);
        told.into_inner().join(", ")
    };
    assert_eq!(make("/", ""), "");
    assert_eq!(make("/have", "nobody"), "", "it is there");
    assert_eq!(make("/l/a/b", "app"), "");
    assert_eq!(make("/u", "nobody"), "no user \"nobody\" in /etc/passwd of the image");
    assert_eq!(make("/g", "app:none"), "no group \"none\" in /etc/group of the image");
    assert_eq!(make("/n", "12"), "");
    let expected = [
        "etc/",
        PASSWD,
        "g/ ; 7:8",
        "have/ ; 0700 1:2",
        "have/a/ ; 7:8",
        "have/a/b/ ; 7:8",
        "l -> have",
        "n/ ; 12:12",
        "u/",
    ];
    assert_eq!(show(&overlay.root), expected);
}

#[test]
fn what_changes_between_key_and_copy_is_an_error() {
    let rows: &[(&str, &str)] = &[
        ("echo other > d/f", "changed while reading: d/f"),
        ("rm d/f", "changed while reading: d/f"),
        ("rm d/f; ln -s /etc/passwd d/f", "changed while reading: d/f"),
        ("rm d/f; mkfifo d/f", "changed while reading: d/f"),
        ("rm d/f; mkdir d/f", "changed while reading: d/f"),
        ("mv d e; ln -s e d", "changed while reading: d/f"),
        ("truncate -s 0 d/f", "changed while reading: d/f"),
        ("touch d/f d; touch d/new; chmod 600 d/f", ""),
    ];
    for (script, expected) in rows {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let Some(overlay) = Overlaid::new(&[]) else { return };
        draw(temp.path(), &["d/f = x"]);
        let context =
            ContextDirectory::new(temp.path().into(), None, ContextModes::Normalise).expect("no patterns");
        let step = written("COPY d /t").copy;
        let files = context.files(&step.items[0].selector, &Cancel::default()).expect("listed");
        let status =
            std::process::Command::new("sh").args(["-euc", script]).current_dir(temp.path()).status();
        assert!(status.expect("a shell").success(), "{script}");
        let copied = copy(&step, &[&files.listing], overlay.root.as_fd(), &Owners::new(), &Cancel::default());
        assert_eq!(copied.err().map(|error| error.to_string()).unwrap_or_default(), *expected, "{script}");
        if expected.is_empty() {
            assert_eq!(show(&overlay.root), ["t/", "t/f = x"], "what was keyed is what is copied");
        }
    }
}

#[test]
fn a_snapshot_is_identified_by_all_that_a_copy_brings() {
    let drawn: &[&str] = &["d/f = x ; @1000", "d/g = x", "d/h => d/f", "d/l -> f", "d/n c1,3", "o = y"];
    let changes: &[(&str, bool)] = &[
        ("true", false),
        ("touch d/g d/n", false),
        ("echo z > o; chmod 600 o; touch new", false),
        ("chmod 700 d; chown 5:5 d", false),
        ("touch -d @1001 d/f", true),
        ("touch -d @1001 d/g", true),
        ("printf y > d/g", true),
        ("chmod 600 d/g", true),
        ("chown 5 d/g", true),
        ("chown :5 d/g", true),
        ("ln -sfn g d/l", true),
        ("rm d/h; cp -p d/f d/h", true),
        ("rm d/n; mknod -m 644 d/n c 1 5", true),
        ("mv d/g d/gg", true),
        ("touch d/new", true),
    ];
    if !is_host_root() {
        eprintln!("SKIPPED: drawing owners and devices needs root");
        return;
    }
    for (script, changes) in changes {
        let temp = tempfile::tempdir().expect("a temporary directory");
        draw(temp.path(), drawn);
        let selector = Selector { include: vec!["d".to_owned()], ..Selector::default() };
        let digest = || {
            select(open_root(temp.path()).as_fd(), &Owners::new(), &selector, &Cancel::default())
                .expect("listed")
        };
        let before = digest();
        let status =
            std::process::Command::new("sh").args(["-euc", script]).current_dir(temp.path()).status();
        assert!(status.expect("a shell").success(), "{script}");
        assert_eq!(before != digest(), *changes, "{script}");
    }
}

#[test]
fn owners_that_the_disk_could_not_hold_are_those_that_count() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let Some(overlay) = Overlaid::new(&[]) else { return };
    draw(temp.path(), &["d/f = x"]);
    let owners = Owners::from([(b"d/f".to_vec(), (7, 8))]);
    let step = written("COPY --from d /t").copy;
    let root = open_root(temp.path());
    let listing = list(root.as_fd(), &owners, &step.items[0].selector, &Cancel::default()).expect("listed");
    copy(&step, &[&listing], overlay.root.as_fd(), &Owners::new(), &Cancel::default()).expect("copied");
    assert_eq!(show(&overlay.root), ["t/", "t/f = x ; 7:8"]);
    let plain =
        select(root.as_fd(), &Owners::new(), &step.items[0].selector, &Cancel::default()).expect("listed");
    assert_ne!(
        select(root.as_fd(), &owners, &step.items[0].selector, &Cancel::default()).expect("listed"),
        plain
    );
}

#[test]
fn holes_stay_holes() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let Some(overlay) = Overlaid::new(&[]) else { return };
    let file = fs::File::create(temp.path().join("sparse")).expect("created");
    file.set_len(64 << 20).expect("sparse");
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", (64 << 20) - 3).expect("written");
    for step in ["COPY sparse /context", "COPY --from sparse /stage"] {
        run(temp.path(), &overlay, step).expect(step);
    }
    for name in ["context", "stage"] {
        let copied = fs::metadata(overlay.upper().join(name)).expect("copied");
        assert_eq!(copied.len(), 64 << 20);
        assert!(std::os::unix::fs::MetadataExt::blocks(&copied) < 4096, "{name} is {copied:?}");
        let bytes = fs::read(overlay.upper().join(name)).expect("read");
        assert_eq!(ContentDigest::of(&bytes[..1 << 20]), ContentDigest::of(&vec![0; 1 << 20]));
        assert_eq!(&bytes[(64 << 20) - 3..], b"end");
    }
}

#[test]
fn a_copy_can_be_cancelled() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let Some(overlay) = Overlaid::new(&[]) else { return };
    fs::File::create(temp.path().join("f")).and_then(|mut file| file.write_all(b"x")).expect("written");
    let step = written("COPY --from f /t").copy;
    let listing =
        list(open_root(temp.path()).as_fd(), &Owners::new(), &step.items[0].selector, &Cancel::default())
            .expect("listed");
    let cancel = Cancel::default();
    cancel.request();
    let copied = copy(&step, &[&listing], overlay.root.as_fd(), &Owners::new(), &cancel);
    assert!(matches!(copied, Err(CopyError::Cancelled)), "{copied:?}");
}

/// Runs [`inside_a_namespace_with_one_id`] there.
#[test]
fn with_one_id_owners_are_kept_for_the_layer() {
    run_in_namespace_with_one_id("copy::tests::inside_a_namespace_with_one_id");
}

#[test]
#[ignore = "runs inside a user namespace that the test above makes"]
fn inside_a_namespace_with_one_id() {
    let [context, root] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
    let context_path = context.path().to_owned();
    draw(context.path(), &["d/f = x", "d/s/g = y", "d/l -> f"]);
    let copied = |step: &str| {
        let step = written(step).copy;
        let context = ContextDirectory::new(context.path().into(), None, ContextModes::Normalise);
        let files =
            context.expect("no patterns").files(&step.items[0].selector, &Cancel::default()).expect("listed");
        copy(&step, &[&files.listing], open_root(root.path()).as_fd(), &Owners::new(), &Cancel::default())
            .expect("copied")
    };
    let kept = copied("COPY --chown=5:6 d /t/u");
    let paths: Vec<String> = kept.keys().map(|path| shown(path)).collect();
    assert_eq!(paths, ["t", "t/u", "t/u/f", "t/u/l", "t/u/s", "t/u/s/g"]);
    assert!(kept.values().all(|owner| *owner == (5, 6)));
    assert!(copied("COPY d/f /t/u/").is_empty(), "the file is root's now");
    assert!(copied("COPY d /t/u").is_empty());
    let step = written("COPY d /t/u").copy;
    let context =
        ContextDirectory::new(context.path().into(), None, ContextModes::Normalise).expect("no patterns");
    let files = context.files(&step.items[0].selector, &Cancel::default()).expect("listed");
    let told = copy(&step, &[&files.listing], open_root(root.path()).as_fd(), &kept, &Cancel::default());
    let expected = Owners::from([(b"t/u/s".to_vec(), (0, 0))]);
    assert_eq!(told.expect("copied"), expected, "a directory that was somebody's is root's now");

    let device = Fields { path: b"n", typeflag: b'3', device: (1, 3), ..Fields::default() };
    let archive = Archive::default().entry(device, b"").finish();
    fs::write(context_path.join("archive"), archive).expect("written");
    let step = written("ADD archive /t/dev/").copy;
    let files = context.files(&step.items[0].selector, &Cancel::default()).expect("listed");
    let told =
        copy(&step, &[&files.listing], open_root(root.path()).as_fd(), &Owners::new(), &Cancel::default());
    let expected = "/t/dev/n is a device, which only root outside of a user namespace can make";
    assert_eq!(told.expect_err("refused").to_string(), expected);
}
