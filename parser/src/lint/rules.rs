//! What there is to know about each lint rule: BuildKit's name and description, why it matters, what to do about it.

/// A lint rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// By which `# check=skip=` knows it.
    pub name: &'static str,
    /// What should be, in BuildKit's words.
    pub what: &'static str,
    /// Why.
    pub why: &'static str,
    /// How to mend a finding.
    pub mend: &'static str,
    /// Where BuildKit documents it; empty where it does not.
    pub url: &'static str,
    /// Which stages it looks at.
    pub scope: Scope,
    /// Whether it keeps silent until `# check=experimental=` asks for it.
    pub experimental: bool,
}

/// What a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The whole file.
    File,
    /// The instructions of the stages that are built.
    Stage,
}

/// The rule of this name.
pub fn rule(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.name == name)
}

/// Every rule of BuildKit 1.26, in its order.
pub const RULES: [Rule; 22] = [
    Rule {
        name: "StageNameCasing",
        what: "Stage names should be lowercase",
        why: "Stage names compare without case, so a name in mixed case reads as if it were another one than it is",
        mend: "write the stage's name in lower case, where it is defined and where it is used",
        url: "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "FromAsCasing",
        what: "The 'as' keyword should match the case of the 'from' keyword",
        why: "FROM and AS are two keywords of one instruction; mixed case makes it harder to read",
        mend: "write FROM and AS both in upper case, or both in lower case",
        url: "https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "NoEmptyContinuation",
        what: "Empty continuation lines will become errors in a future release",
        why: "An empty line after a line that goes on looks like the end of the instruction and is not",
        mend: "take the empty line out; a comment may stand in its place",
        url: "https://docs.docker.com/go/dockerfile/rule/no-empty-continuation/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "ConsistentInstructionCasing",
        what: "All commands within the Dockerfile should use the same casing (either upper or lower)",
        why: "Keywords mean the same in any case, but a mixture makes the instructions harder to find",
        mend: "write all keywords in the case that most of them have",
        url: "https://docs.docker.com/go/dockerfile/rule/consistent-instruction-casing/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "DuplicateStageName",
        what: "Stage names should be unique",
        why: "A name that two stages share means one of them by place, so moving a line can change the image silently",
        mend: "give each stage a name of its own",
        url: "https://docs.docker.com/go/dockerfile/rule/duplicate-stage-name/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "ReservedStageName",
        what: "Reserved words should not be used as stage names",
        why: "scratch and context are names of the builder: FROM and --from never mean a stage by them",
        mend: "give the stage another name",
        url: "https://docs.docker.com/go/dockerfile/rule/reserved-stage-name/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "JSONArgsRecommended",
        what: "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
        why: "The shell form makes the shell process 1; it does not pass on signals, so the program is killed without notice when the container stops",
        mend: "write the command as a JSON array, or set the shell you want with SHELL",
        url: "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/",
        scope: Scope::Stage,
        experimental: false,
    },
    Rule {
        name: "MaintainerDeprecated",
        what: "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
        why: "The author field of an image is not shown by most tools, and the instruction may go away",
        mend: "write LABEL org.opencontainers.image.authors=\"...\" instead",
        url: "https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "UndefinedArgInFrom",
        what: "FROM command must use declared ARGs",
        why: "A variable that no ARG before the first FROM declares is empty, so another image than the one meant is used, or none",
        mend: "declare the variable with ARG before the first FROM, or correct its name",
        url: "https://docs.docker.com/go/dockerfile/rule/undefined-arg-in-from/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "WorkdirRelativePath",
        what: "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes",
        why: "A relative path is joined to the working directory of the base image, which may change with the base",
        mend: "begin the path with a slash, or set an absolute WORKDIR before",
        url: "https://docs.docker.com/go/dockerfile/rule/workdir-relative-path/",
        scope: Scope::Stage,
        experimental: false,
    },
    Rule {
        name: "UndefinedVar",
        what: "Variables should be defined before their use",
        why: "A variable that neither ARG nor ENV has set is empty, which is seldom meant",
        mend: "declare the variable with ARG or ENV before it is used, or correct its name",
        url: "https://docs.docker.com/go/dockerfile/rule/undefined-var/",
        scope: Scope::Stage,
        experimental: false,
    },
    Rule {
        name: "MultipleInstructionsDisallowed",
        what: "Multiple instructions of the same type should not be used in the same stage",
        why: "Of several CMD, ENTRYPOINT or HEALTHCHECK in a stage only the last one has an effect",
        mend: "take out all but the last one",
        url: "https://docs.docker.com/go/dockerfile/rule/multiple-instructions-disallowed/",
        scope: Scope::Stage,
        experimental: false,
    },
    Rule {
        name: "LegacyKeyValueFormat",
        what: "Legacy key/value format with whitespace separator should not be used",
        why: "In the old form the rest of the line is the value, so a second pair on the line becomes part of the first",
        mend: "write key=value, with quotes around a value that holds spaces",
        url: "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/",
        scope: Scope::Stage,
        experimental: false,
    },
    Rule {
        name: "RedundantTargetPlatform",
        what: "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        why: "Without --platform a stage is built for the target platform already",
        mend: "leave --platform out",
        url: "https://docs.docker.com/go/dockerfile/rule/redundant-target-platform/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "SecretsUsedInArgOrEnv",
        what: "Sensitive data should not be used in the ARG or ENV commands",
        why: "Values of ARG and ENV can be read from the image's config and history by everybody who has the image",
        mend: "use RUN --mount=type=secret, which leaves nothing in the image",
        url: "https://docs.docker.com/go/dockerfile/rule/secrets-used-in-arg-or-env/",
        scope: Scope::Stage,
        experimental: false,
    },
    Rule {
        name: "InvalidDefaultArgInFrom",
        what: "Default value for global ARG results in an empty or invalid base image name",
        why: "Whoever builds without build arguments gets an error instead of an image",
        mend: "give the ARG a default with which the name is valid, or write ${VARIABLE:-default} in FROM",
        url: "https://docs.docker.com/go/dockerfile/rule/invalid-default-arg-in-from/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "FromPlatformFlagConstDisallowed",
        what: "FROM --platform flag should not use a constant value",
        why: "A stage that is fixed to one platform gives a wrong image when another platform is asked for",
        mend: "leave --platform out and build with --platform, use $BUILDPLATFORM, or name the stage after its platform",
        url: "https://docs.docker.com/go/dockerfile/rule/from-platform-flag-const-disallowed/",
        scope: Scope::File,
        experimental: false,
    },
    Rule {
        name: "CopyIgnoredFile",
        what: "Attempting to Copy file that is excluded by .dockerignore",
        why: "What .dockerignore takes out is not in the context, so the instruction fails or copies less than it says",
        mend: "take the pattern out of .dockerignore, add an exception with !, or do not copy the file",
        url: "https://docs.docker.com/go/dockerfile/rule/copy-ignored-file/",
        scope: Scope::Stage,
        experimental: false,
    },
    Rule {
        name: "InvalidDefinitionDescription",
        what: "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.",
        why: "The comment above ARG and FROM is what --call=outline and --call=targets show as their description",
        mend: "begin the comment with the name it is about, or put an empty line between",
        url: "https://docs.docker.com/go/dockerfile/rule/invalid-definition-description/",
        scope: Scope::File,
        experimental: true,
    },
    Rule {
        name: "ExposeProtoCasing",
        what: "Protocol in EXPOSE instruction should be lowercase",
        why: "Protocols are stored in lower case; another spelling suggests that it means something else",
        mend: "write the protocol in lower case",
        url: "https://docs.docker.com/go/dockerfile/rule/expose-proto-casing/",
        scope: Scope::Stage,
        experimental: false,
    },
    Rule {
        name: "ExposeInvalidFormat",
        what: "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
        why: "EXPOSE only documents ports of the container; an address or a host port in it is dropped",
        mend: "write the container's port alone and publish it when the container is started",
        url: "https://docs.docker.com/go/dockerfile/rule/expose-invalid-format/",
        scope: Scope::Stage,
        experimental: false,
    },
    Rule {
        name: "InvalidBaseImagePlatform",
        what: "Base image platform does not match expected target platform",
        why: "The image has no variant for the platform asked for, so its programs do not run there",
        mend: "build for a platform that the image has, or choose another image",
        url: "",
        scope: Scope::Stage,
        experimental: false,
    },
];
