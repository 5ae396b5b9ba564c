//! In the place of c10d.rs where libtorch has no process groups: none can be opened, so none of the rest is ever called.

use tch::Tensor;

use super::options::Options;

/// Why there are no groups.
const WHY: &str = match option_env!("TERCET_WITHOUT_C10D") {
    Some(why) => why,
    None => "they were left out",
};

pub fn nccl() -> Result<(), &'static str> {
    Err(WHY)
}

pub enum Group {}

impl Group {
    pub fn open(_: &Options, _: &str, _: Option<&str>) -> Result<Self, String> {
        Err(format!("this build has no process groups: {WHY}"))
    }

    pub fn close(&mut self, _: bool) {
        match *self {}
    }

    pub fn all_gather(&self, _: &Tensor, _: &Tensor) -> Result<Work, String> {
        match *self {}
    }

    pub fn reduce_scatter(&self, _: &Tensor, _: &Tensor) -> Result<Work, String> {
        match *self {}
    }

    pub fn all_reduce(&self, _: &Tensor, _: bool) -> Result<Work, String> {
        match *self {}
    }

    pub fn broadcast(&self, _: &Tensor, _: usize) -> Result<Work, String> {
        match *self {}
    }

    pub fn gloo_sizes(&self) -> Result<[usize; 2], String> {
        match *self {}
    }
}

pub enum Work {}

impl Work {
    pub fn wait(&self) -> Result<(), String> {
        match *self {}
    }

    pub fn is_done(&self) -> bool {
        match *self {}
    }
}

pub enum Reducer {}

impl Reducer {
    pub fn new(group: &Group, _: &[&Tensor], _: usize, _: usize) -> Result<Self, String> {
        match *group {}
    }

    pub fn prepare(&self) -> Result<(), String> {
        match *self {}
    }
}
