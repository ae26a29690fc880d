//! `ARG SOURCE_DATE_EPOCH=seconds` before the first FROM: the times in the image as the Dockerfile has them, where the
//! command line says nothing.

use parser::Diagnostic;

use super::{Planner, variables::Environment};

const NAME: &str = "SOURCE_DATE_EPOCH";

impl Planner<'_> {
    /// Takes the second from the global arguments; what is none is reported.
    pub(super) fn note_epoch(&mut self, globals: &Environment) {
        let declared = self.global_declarations().find(|declaration| declaration.name.value == NAME);
        let Some(span) = declared.map(|declaration| declaration.name.span) else { return };
        let Some(value) = globals.get(NAME).filter(|value| !value.is_empty()) else { return };
        match value.parse::<i64>() {
            Ok(seconds) if seconds >= 0 => self.epoch = Some(seconds),
            _ => {
                let hint = "give seconds since 1970; times of the context, of a stage or of a named context are not \
                            implemented yet";
                let error = Diagnostic::error(span, format!("invalid {NAME}: {value}"));
                self.report.push(error.hint(hint));
            }
        }
    }
}
