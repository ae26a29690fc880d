//! Joins the parts and implements `solver::Executor`.
