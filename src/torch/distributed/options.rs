//! Who the processes are and where they meet, as launchers say it.

use std::ffi::OsString;
use std::net::{IpAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use tch::Device;

use crate::Error;

/// Which of how many processes this one is, and where they meet. [`from_env`](Self::from_env) has what launchers set.
///
/// ```
/// use std::time::Duration;
/// use tercet::torch::distributed::{Options, ProcessGroup};
///
/// // What the launcher said, with a shorter timeout. Nobody launched several processes here: the group is of one.
/// let options = Options { timeout: Duration::from_secs(60), ..Options::from_env()? };
/// let group = ProcessGroup::new(&options)?;
/// assert_eq!((group.rank(), group.size()), (0, 1));
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The number of this process, from 0 (`RANK`).
    pub rank: usize,
    /// How many processes there are (`WORLD_SIZE`).
    pub size: usize,
    /// The number of this process among those of its host (`LOCAL_RANK`).
    pub local_rank: usize,
    /// How many processes its host has (`LOCAL_WORLD_SIZE`).
    pub local_size: usize,
    /// The host where the processes meet, that of rank 0 (`MASTER_ADDR`).
    pub host: String,
    /// The port where they meet (`MASTER_PORT`).
    pub port: u16,
    /// Whether the launcher itself listens there (`TORCHELASTIC_USE_AGENT_STORE`); if not, the process of rank 0 does.
    pub launcher_listens: bool,
    /// How often the launcher has started these processes anew (`TORCHELASTIC_RESTART_COUNT`).
    pub restart: u64,
    /// The group's name. Groups that exist at the same time need different names.
    pub name: String,
    /// How long a process waits for another one, in each call; 10 minutes by default (`TERCET_TIMEOUT`, in seconds).
    pub timeout: Duration,
    /// This process's device: a CUDA device, or the CPU alone. Collectives take tensors of it, and CPU tensors.
    pub device: Device,
    /// Whether CUDA tensors travel by NCCL. Otherwise gloo takes them through the host's memory, which is slow, but lets two
    /// processes share a GPU (`TERCET_GLOO=1`).
    pub nccl: bool,
    /// Whether the processes compare each call, its sizes and dtypes before anything is sent, so that those that differ are
    /// an error in all of them. It costs one exchange of 80 bytes a call. Without it the calls must be alike: those that are not
    /// end the program.
    pub checks: bool,
}

impl Default for Options {
    /// One process alone.
    fn default() -> Self {
        Self {
            rank: 0,
            size: 1,
            local_rank: 0,
            local_size: 1,
            host: "127.0.0.1".into(),
            port: 29500,
            launcher_listens: false,
            restart: 0,
            name: "tercet".into(),
            timeout: Duration::from_secs(600),
            device: Device::Cpu,
            nccl: true,
            checks: true,
        }
    }
}

impl Options {
    /// What torchrun has set, or whoever else sets `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`. Without
    /// `WORLD_SIZE` nobody launched several processes: one process alone.
    ///
    /// The device is the CUDA device whose number is the local rank, or the CPU where there is no such device.
    ///
    /// # Errors
    /// If a variable is missing or is no number, or the rank is not below the size; the error names the variable.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|name| std::env::var_os(name), tch::Cuda::device_count().max(0) as usize)
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>, gpus: usize) -> Result<Self, Error> {
        let optional = |name: &'static str| -> Result<Option<String>, Error> {
            let text = variable(name).map(|text| text.into_string());
            text.transpose().map_err(|text| Error::argument(name, "text", format!("{text:?}")))
        };
        let optional_number = |name: &'static str| -> Result<Option<u64>, Error> {
            let number =
                |text: String| text.parse().map_err(|_| Error::argument(name, "a number", format!("{text:?}")));
            optional(name)?.map(number).transpose()
        };
        let missing = |name: &'static str| Error::argument(name, "to be set where WORLD_SIZE is", "no such variable");
        let number = |name: &'static str| optional_number(name)?.ok_or_else(|| missing(name));

        let none = Self::default();
        let timeout = optional_number("TERCET_TIMEOUT")?.map_or(none.timeout, Duration::from_secs);
        let local_rank = optional_number("LOCAL_RANK")?.unwrap_or(0) as usize;
        let nccl = variable("TERCET_GLOO").is_none_or(|value| value.is_empty() || value == "0");
        // Without NCCL processes may share a device.
        let ordinal = if nccl { local_rank } else { local_rank % gpus.max(1) };
        let device = if ordinal < gpus { Device::Cuda(ordinal) } else { Device::Cpu };
        let Some(size) = optional_number("WORLD_SIZE")? else { return Ok(Self { timeout, device, nccl, ..none }) };
        let options = Self {
            rank: number("RANK")? as usize,
            size: size as usize,
            local_rank,
            local_size: optional_number("LOCAL_WORLD_SIZE")?.unwrap_or(size) as usize,
            host: optional("MASTER_ADDR")?.ok_or_else(|| missing("MASTER_ADDR"))?,
            port: {
                let port = number("MASTER_PORT")?;
                let wrong = |_| Error::argument("MASTER_PORT", "a port, at most 65535", port.to_string());
                u16::try_from(port).map_err(wrong)?
            },
            launcher_listens: optional("TORCHELASTIC_USE_AGENT_STORE")?.is_some_and(|value| value == "True"),
            restart: optional_number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0),
            timeout,
            device,
            nccl,
            ..none
        };
        options.check()?;
        Ok(options)
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        if self.size == 0 {
            return Err(Error::argument("WORLD_SIZE", "at least 1", "0"));
        }
        if self.rank >= self.size {
            let expected = format!("below WORLD_SIZE, which is {}", self.size);
            return Err(Error::argument("RANK", expected, self.rank.to_string()));
        }
        Ok(())
    }

    /// Waits until somebody listens where the processes meet: c10d would wait twice as long as it was told.
    pub(super) fn wait_for_the_host(&self) -> Result<(), String> {
        let begin = Instant::now();
        let mut last = "no answer".to_string();
        loop {
            let left = self.timeout.saturating_sub(begin.elapsed());
            let addresses = match (self.host.as_str(), self.port).to_socket_addrs() {
                Ok(addresses) => addresses.collect(),
                Err(error) => {
                    last = error.to_string();
                    Vec::new()
                }
            };
            for address in addresses {
                match TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1))) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error.to_string(),
                }
            }
            if left.is_zero() {
                return Err(format!("nobody listens there after {:.1} s: {last}", self.timeout.as_secs_f64()));
            }
            std::thread::sleep(Duration::from_millis(50).min(left));
        }
    }

    /// The address by which this host reaches the one where the processes meet, and so the others reach this one. gloo's own
    /// choice, the address of the host's name, is the loopback device on many systems.
    pub(super) fn address(&self) -> Result<Option<IpAddr>, String> {
        if std::env::var_os("GLOO_SOCKET_IFNAME").is_some() {
            return Ok(None); // the name of a network device: libtorch reads it itself
        }
        let towards = |to: std::net::SocketAddr| {
            let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
            let socket = UdpSocket::bind((any, 0)).ok()?;
            socket.connect(to).ok()?; // sends nothing
            Some(socket.local_addr().ok()?.ip())
        };
        let address = (self.host.as_str(), self.port).to_socket_addrs().ok().and_then(|mut all| all.find_map(towards));
        match address {
            Some(address) if address.is_loopback() && self.local_size < self.size => Err(format!(
                "MASTER_ADDR leads to {address} here, which other hosts do not reach: give the address of rank 0's host, \
                 or the network device by GLOO_SOCKET_IFNAME"
            )),
            address => Ok(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAUNCHED: [(&str, &str); 4] =
        [("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "29400")];

    fn of(changed: &[(&'static str, Option<&str>)], gpus: usize) -> Result<Options, Error> {
        let changed = changed.to_vec();
        Options::from_variables(
            |name| match changed.iter().find(|(n, _)| *n == name) {
                Some((_, value)) => value.map(OsString::from),
                None => LAUNCHED.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()),
            },
            gpus,
        )
    }

    #[test]
    fn what_launchers_set() {
        let four = Options { rank: 1, size: 4, local_size: 4, host: "node0".into(), port: 29400, ..Default::default() };
        assert_eq!(of(&[], 0).unwrap(), four);
        let torchrun = [
            ("LOCAL_RANK", Some("1")),
            ("LOCAL_WORLD_SIZE", Some("2")),
            ("TORCHELASTIC_USE_AGENT_STORE", Some("True")),
            ("TORCHELASTIC_RESTART_COUNT", Some("3")),
            ("TERCET_TIMEOUT", Some("5")),
        ];
        let timeout = Duration::from_secs(5);
        let theirs = Options { local_rank: 1, local_size: 2, launcher_listens: true, restart: 3, timeout, ..four };
        assert_eq!(of(&torchrun, 0).unwrap(), theirs);
        assert_eq!(of(&[("WORLD_SIZE", None)], 0).unwrap(), Options::default());
    }

    #[test]
    fn each_process_of_a_host_has_its_own_device() {
        let device = |local: &str, gloo: Option<&str>, gpus| {
            of(&[("LOCAL_RANK", Some(local)), ("TERCET_GLOO", gloo)], gpus).unwrap().device
        };
        assert_eq!(device("1", None, 2), Device::Cuda(1));
        assert_eq!(device("2", None, 2), Device::Cpu);
        assert_eq!(device("3", Some("1"), 2), Device::Cuda(1));
        assert_eq!(device("3", Some("0"), 2), Device::Cpu);
        assert_eq!(device("0", Some("1"), 0), Device::Cpu);
    }

    #[test]
    fn a_variable_that_is_missing_or_wrong_is_named() {
        for (name, value, said) in [
            ("RANK", None, "RANK: expected to be set where WORLD_SIZE is, got no such variable"),
            ("MASTER_ADDR", None, "MASTER_ADDR: expected to be set where WORLD_SIZE is, got no such variable"),
            ("MASTER_PORT", None, "MASTER_PORT: expected to be set where WORLD_SIZE is, got no such variable"),
            ("RANK", Some("one"), "RANK: expected a number, got \"one\""),
            ("RANK", Some("4"), "RANK: expected below WORLD_SIZE, which is 4, got 4"),
            ("RANK", Some("-1"), "RANK: expected a number, got \"-1\""),
            ("WORLD_SIZE", Some(""), "WORLD_SIZE: expected a number, got \"\""),
            ("WORLD_SIZE", Some("0"), "WORLD_SIZE: expected at least 1, got 0"),
            ("MASTER_PORT", Some("65536"), "MASTER_PORT: expected a port, at most 65535, got 65536"),
            ("TERCET_TIMEOUT", Some("soon"), "TERCET_TIMEOUT: expected a number, got \"soon\""),
            ("LOCAL_RANK", Some("x"), "LOCAL_RANK: expected a number, got \"x\""),
        ] {
            assert_eq!(of(&[(name, value)], 0).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn other_hosts_do_not_reach_the_loopback_device() {
        let one_host = Options { size: 2, local_size: 2, host: "127.0.0.1".into(), ..Default::default() };
        assert_eq!(one_host.address(), Ok(Some([127, 0, 0, 1].into())));
        let two_hosts = Options { local_size: 1, ..one_host };
        assert!(two_hosts.address().unwrap_err().contains("GLOO_SOCKET_IFNAME"));
    }
}
