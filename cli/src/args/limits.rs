//! What RUN steps may use, and whom they ask for names: the flags of `docker build`, and those of `podman build` where
//! Docker has none.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args};
use executor::sandbox::Amount;

use super::go_bool;
use crate::spec::{
    duration::duration,
    limit::{self, ResourceSpec, UlimitSpec},
};

const HEADING: &str = "What RUN steps may use (see below)";

/// The flags.
#[derive(Debug, Clone, Default, Args)]
pub struct LimitArgs {
    /// Limit of each process: NAME=SOFT[:HARD] (repeatable)
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", help_heading = HEADING)]
    pub ulimits: Vec<UlimitSpec>,

    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = limit::size, help_heading = HEADING)]
    #[arg(allow_hyphen_values = true)]
    pub shm_size: Option<u64>,

    /// Memory of a step
    #[arg(short, long, value_name = "SIZE", value_parser = limit::size, help_heading = HEADING)]
    #[arg(allow_hyphen_values = true)]
    pub memory: Option<u64>,

    /// Memory and swap together; -1: any [default: 2 x memory]
    #[arg(long, value_name = "SIZE", value_parser = limit::size_or_all, help_heading = HEADING)]
    #[arg(allow_negative_numbers = true)]
    pub memory_swap: Option<Amount>,

    /// How many processors' time, like 1.5
    #[arg(long, value_name = "N", value_parser = limit::processors, help_heading = HEADING)]
    #[arg(allow_hyphen_values = true)]
    pub cpus: Option<u64>,

    /// Processor time in a period, in microseconds
    #[arg(long, value_name = "N", value_parser = limit::quota, help_heading = HEADING)]
    #[arg(allow_negative_numbers = true)]
    pub cpu_quota: Option<Amount>,

    /// Length of that period [default: 100000]
    #[arg(long, value_name = "N", value_parser = limit::period, help_heading = HEADING)]
    #[arg(allow_hyphen_values = true)]
    pub cpu_period: Option<u64>,

    /// Share beside others, which have 1024
    #[arg(short = 'c', long, value_name = "N", value_parser = limit::shares, help_heading = HEADING)]
    #[arg(allow_hyphen_values = true)]
    pub cpu_shares: Option<u64>,

    /// Processors to run on, like 0-3,5
    #[arg(long, value_name = "LIST", value_parser = limit::list, help_heading = HEADING)]
    pub cpuset_cpus: Option<String>,

    /// Memory nodes to use, like 0-1
    #[arg(long, value_name = "LIST", value_parser = limit::list, help_heading = HEADING)]
    pub cpuset_mems: Option<String>,

    /// Processes of a step; -1: any
    #[arg(long, value_name = "N", value_parser = limit::count, help_heading = HEADING)]
    #[arg(allow_negative_numbers = true)]
    pub pids_limit: Option<Amount>,

    /// NAME=VALUE: one of these without its dashes, as memory=1g
    #[arg(long = "resource", value_name = "NAME=VALUE", help_heading = HEADING)]
    pub resources: Vec<ResourceSpec>,

    /// Control group to make those of steps in
    #[arg(long, value_name = "GROUP", value_parser = limit::group, help_heading = HEADING)]
    pub cgroup_parent: Option<PathBuf>,

    /// Time a step may take, like 90s or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = step_time, help_heading = HEADING)]
    #[arg(allow_hyphen_values = true)]
    pub step_timeout: Option<Duration>,

    /// What a step may write to its disk, like 10g
    #[arg(long, value_name = "SIZE", value_parser = limit::size, help_heading = HEADING)]
    #[arg(allow_hyphen_values = true)]
    pub step_max_disk: Option<u64>,

    /// Let no program of a step have more rights than who runs it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    #[arg(help_heading = HEADING)]
    pub no_new_privs: bool,

    /// Name server of RUN steps (repeatable)
    #[arg(long = "dns", value_name = "IP", help_heading = HEADING)]
    pub dns: Vec<IpAddr>,

    /// Domain they look for names in; . is none (repeatable)
    #[arg(long = "dns-search", value_name = "DOMAIN", value_parser = limit::domain, help_heading = HEADING)]
    pub dns_search: Vec<String>,

    /// Option of resolv.conf(5), like ndots:2 (repeatable)
    #[arg(long = "dns-option", alias = "dns-opt", value_name = "OPTION", value_parser = limit::word)]
    #[arg(help_heading = HEADING)]
    pub dns_options: Vec<String>,
}

fn step_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("expected a time of at least 1s".to_owned()),
        time => Ok(time),
    }
}
