//! Finds base images: implements `solver::Resolver`.
