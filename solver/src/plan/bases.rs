//! What the names in FROM and COPY --from mean: an earlier stage, nothing, a named context, or an image.
//!
//! A named context shadows images and stages alike; its name is compared as BuildKit does, with `docker.io/library/`
//! and `:latest` left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use oci::{ImageConfig, Platform, Reference};
use parser::{Diagnostic, Span, suggest};

use super::{NamedContext, PlanError, PlanOptions, variables::DEFAULT_PATH};
use crate::{
    op::Source,
    traits::{BaseImage, FailureKind, ImageName, Resolver, StepFailure},
};

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Base {
    /// No files.
    Scratch,
    /// The stage of this number.
    Stage(usize),
    /// An image.
    Image(ImageName),
    /// A directory, by the name of its context.
    Directory(String),
}

/// The named context that takes the place of `name` on a platform, if there is one: one that is given for this
/// platform (`name::os/architecture`) before one for all.
pub(super) fn context(options: &PlanOptions, name: &str, platform: &Platform) -> Option<Base> {
    if matches!(name.to_ascii_lowercase().as_str(), "scratch" | "context") {
        return None;
    }
    let wanted = familiar(name);
    let fit = |given: &str| {
        let (given, only) = platform_of(given);
        if familiar(given) != wanted {
            return None;
        }
        match only.map(str::parse::<Platform>) {
            None => Some(Fit::AnyPlatform),
            Some(Ok(only)) if only.satisfies(platform) => Some(Fit::ThisPlatform),
            Some(_) => None,
        }
    };
    let fitting = options.contexts.iter().filter_map(|(given, context)| Some((fit(given)?, given, context)));
    let (_, given, context) = fitting.max_by_key(|(fit, _, _)| *fit)?;
    Some(match context {
        NamedContext::Directory => Base::Directory(given.clone()),
        NamedContext::Image(image) => Base::Image(image.clone()),
        NamedContext::Scratch => Base::Scratch,
    })
}

/// How well a named context suits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    AnyPlatform,
    ThisPlatform,
}

/// A context's name without its platform, and that.
fn platform_of(given: &str) -> (&str, Option<&str>) {
    given.split_once("::").map_or((given, None), |(name, platform)| (name, Some(platform)))
}

/// Names of contexts for platforms that do not exist.
pub(super) fn unknown_platforms(options: &PlanOptions) -> Vec<Diagnostic> {
    let error = |given: &String| {
        let error = platform_of(given).1?.parse::<Platform>().err()?;
        let message = format!("invalid platform in the context name {given:?}: {error}");
        Some(Diagnostic::error(Span::default(), message))
    };
    options.contexts.keys().filter_map(error).collect()
}

/// A name that is no stage: `scratch`, a named context, or a reference to an image.
///
/// # Errors
/// What is wrong with the reference.
pub(super) fn elsewhere(options: &PlanOptions, name: &str, platform: &Platform) -> Result<Base, String> {
    if name == "scratch" {
        return Ok(Base::Scratch);
    }
    if let Some(base) = context(options, name, platform) {
        return Ok(base);
    }
    let reference: Reference =
        name.parse().map_err(|error: oci::reference::ReferenceError| error.to_string())?;
    Ok(Base::Image(ImageName::Registry(reference.with_default_tag())))
}

/// The short form of a name, by which contexts are compared. What is no reference can only be a stage's name, and
/// those compare without case.
fn familiar(name: &str) -> String {
    let short =
        name.parse::<Reference>().map_or_else(|_| name.to_lowercase(), |reference| reference.familiar());
    short.strip_suffix(":latest").map(str::to_owned).unwrap_or(short)
}

/// What an image is taken for whose registry does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Nothing: without it there is no image.
    Failure,
    /// One of which nothing is known, so that the rest can be looked at.
    Unknown,
    /// The same, and no image is asked for at all, whether it is a registry's or lies here.
    Unasked,
}

/// The images of a plan: each is asked for once a platform, and a registry that does not answer is not asked again.
pub(super) struct Images<'a> {
    resolver: &'a dyn Resolver,
    unanswered: Unanswered,
    known: BTreeMap<(ImageName, Platform), Rc<BaseImage>>,
    /// Registries that did not answer.
    silent: BTreeMap<String, Silent>,
    /// Names of stages, for slips of the pen.
    stages: Vec<&'a str>,
}

/// What a registry left unsaid.
struct Silent {
    /// Why.
    reason: String,
    /// Images, as people write them.
    images: BTreeSet<String>,
}

impl<'a> Images<'a> {
    pub(super) fn new(resolver: &'a dyn Resolver, unanswered: Unanswered, stages: Vec<&'a str>) -> Self {
        Self { resolver, unanswered, known: BTreeMap::new(), silent: BTreeMap::new(), stages }
    }

    pub(super) fn get(
        &mut self,
        name: &ImageName,
        written: &str,
        platform: &Platform,
        span: Span,
    ) -> Result<Rc<BaseImage>, PlanError> {
        let key = (name.clone(), platform.clone());
        if let Some(image) = self.known.get(&key) {
            return Ok(Rc::clone(image));
        }
        if self.is_unknown(name) {
            return Ok(self.unknown(name, written, platform));
        }
        match self.resolver.image(name, platform) {
            Ok(image) => Ok(Rc::clone(self.known.entry(key).or_insert(Rc::new(image)))),
            Err(failure) if self.is_forgiven(name, &failure) => Ok(self.unknown(name, written, platform)),
            Err(failure) => Err(PlanError::Image { span, failure: self.or_a_stage(failure, written) }),
        }
    }

    /// Whether the image's registry did not answer or nobody was asked, so that its config is a blank.
    pub(super) fn is_unknown(&self, name: &ImageName) -> bool {
        self.unanswered == Unanswered::Unasked
            || matches!(name, ImageName::Registry(reference) if self.silent.contains_key(&reference.registry))
    }

    /// Remembers a registry that does not answer, where that is no failure.
    fn is_forgiven(&mut self, name: &ImageName, failure: &StepFailure) -> bool {
        let ImageName::Registry(reference) = name else { return false };
        let is_forgiven = self.unanswered == Unanswered::Unknown && failure.kind == FailureKind::Unavailable;
        if is_forgiven {
            let reason = failure.source.as_ref().map_or_else(|| failure.message.clone(), ToString::to_string);
            self.silent.insert(reference.registry.clone(), Silent { reason, images: BTreeSet::new() });
        }
        is_forgiven
    }

    fn unknown(&mut self, name: &ImageName, written: &str, platform: &Platform) -> Rc<BaseImage> {
        let shown = match name {
            ImageName::Registry(reference) => reference.familiar(),
            ImageName::OciLayout { directory, selector: _ } => directory.display().to_string(),
        };
        let told = match self.stage_near(written) {
            Some(stage) => format!("{shown} (did you mean the stage {stage:?}?)"),
            None => shown.clone(),
        };
        if let ImageName::Registry(reference) = name
            && let Some(silent) = self.silent.get_mut(&reference.registry)
        {
            silent.images.insert(told);
        }
        Rc::new(BaseImage { pinned: shown, config: empty_config(platform), layers: Vec::new() })
    }

    fn stage_near(&self, written: &str) -> Option<&'a str> {
        suggest::nearest(written, self.stages.iter().copied())
    }

    fn or_a_stage(&self, failure: StepFailure, written: &str) -> StepFailure {
        match self.stage_near(written) {
            Some(stage) if failure.hint.is_none() => {
                failure.hint(format!("did you mean the stage {stage:?}?"))
            }
            _ => failure,
        }
    }

    /// What could not be looked up, and what that means for everything else that is said.
    pub(super) fn notices(&self) -> Vec<Diagnostic> {
        let notice = |Silent { reason, images }: &Silent| {
            let names = images.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            Diagnostic::notice(format!(
                "{names} could not be looked up ({reason}): what depends on the image was not checked"
            ))
        };
        self.silent.values().map(notice).collect()
    }
}

/// The layers of an image as a source.
pub(super) fn source(image: &BaseImage) -> Source {
    if image.layers.is_empty() { Source::Scratch } else { Source::Image(image.layers.clone()) }
}

/// The config that FROM scratch begins with.
pub(super) fn empty_config(platform: &Platform) -> ImageConfig {
    let mut config = ImageConfig::empty(platform);
    config.config.working_dir = "/".to_owned();
    config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    config
}
