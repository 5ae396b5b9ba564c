//! Collectives of tensors and of plain numbers, what their transposes are, and what is refused before anything is sent.

use std::fs;

use tch::{Device, Kind, Tensor};
use tercet::Error;
use tercet::torch::distributed::{Options, ProcessGroup, gloo_sizes};

use super::setting::{bits, over};
use crate::support::processes::as_processes;

#[test]
fn collectives_over_three() {
    over(module_path!(), "collectives_over_three", 3, |group| {
        what_each_returns(group);
        numbers(group);
        what_the_first_process_finds(group);
        gather_and_scatter_sum_are_transposes(group);
        what_differs_is_refused_in_all(group);
        two_groups(group);
        // That the declarations of gloo in src/torch/stubs are those that libtorch was compiled with.
        let [ours, theirs] = gloo_sizes(group).unwrap().unwrap();
        // malloc gives a multiple of 16 bytes, of which it takes 8 itself.
        assert_eq!((ours + 8).next_multiple_of(16) - 8, theirs, "{ours} bytes");
    });
}

/// Without checks the results are the same.
#[test]
fn collectives_without_checks() {
    over(module_path!(), "collectives_without_checks", 3, |checked| {
        let options = Options { checks: false, name: "unchecked".into(), ..Options::from_env().unwrap() };
        let group = ProcessGroup::new(&options).unwrap();
        what_each_returns(&group);
        numbers(&group);
        gather_and_scatter_sum_are_transposes(&group);
        checked.barrier().unwrap();
    });
}

fn of(numbers: &[f64]) -> Tensor {
    Tensor::from_slice(numbers)
}

fn what_each_returns(group: &ProcessGroup) {
    let rank = group.rank() as f64;
    assert_eq!(group.size(), 3);
    let two = |a: f64| of(&[a, 10.0 + a]).reshape([1, 2]);
    let all = group.all_gather(&two(rank)).unwrap().wait().unwrap();
    assert_eq!(all, Tensor::cat(&[two(0.0), two(1.0), two(2.0)], 0));
    // Views of any strides.
    let turned = Tensor::cat(&[two(rank), two(rank + 5.0)], 0).tr();
    let all = group.all_gather(&turned).unwrap().wait().unwrap();
    assert_eq!(all.narrow(0, 2, 2), Tensor::cat(&[two(1.0), two(6.0)], 0).tr());

    let rows = of(&[0.0, 10.0, 20.0]) + rank;
    assert_eq!(group.reduce_scatter(&rows).unwrap().wait().unwrap(), of(&[3.0 + 30.0 * rank]));
    let mut sum = of(&[rank, -rank]);
    let pending = group.all_reduce(&mut sum).unwrap();
    assert_eq!(pending.wait().unwrap(), of(&[3.0, -3.0]));
    assert_eq!(sum, of(&[3.0, -3.0]));
    let mut largest = of(&[rank, -rank]);
    assert_eq!(group.all_reduce_max(&mut largest).unwrap().wait().unwrap(), of(&[2.0, 0.0]));
    let mut broadcast = of(&[rank]);
    assert_eq!(group.broadcast(&mut broadcast, 2).unwrap().wait().unwrap(), of(&[2.0]));
    // Dropped, several under way at once, and of every dtype.
    drop(group.all_gather(&two(rank)).unwrap());
    let pending: Vec<_> = [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Int, Kind::Uint8, Kind::Bool]
        .into_iter()
        .map(|kind| (kind, group.all_gather(&two(1.0).to_kind(kind)).unwrap()))
        .collect();
    for (kind, pending) in pending {
        let all = pending.wait().unwrap();
        assert_eq!((all.kind(), all.size()), (kind, vec![3, 2]));
    }
}

fn numbers(group: &ProcessGroup) {
    let rank = group.rank() as i64;
    assert_eq!(group.exchange(&[rank, i64::MIN]).unwrap(), [[0, i64::MIN], [1, i64::MIN], [2, i64::MIN]]);
    let many: Vec<i64> = (0..100).map(|i| 1000 * rank + i).collect();
    let all = group.exchange(&many).unwrap();
    assert_eq!((all.len(), all[2][99], all[1] == many), (3, 2099, rank == 1));
    assert_eq!(group.exchange(&[]).unwrap(), vec![vec![0i64; 0]; 3]);
    assert_eq!(group.any(&[rank == 1, false, rank != 0, true]).unwrap(), [true, false, true, true]);
    let mut many = [false; 64];
    many[63] = rank == 2;
    assert_eq!(group.any(&many).unwrap().iter().rposition(|answer| *answer), Some(63));
    assert_eq!(group.any(&[]).unwrap(), [false; 0]);
    group.barrier().unwrap();
}

fn what_the_first_process_finds(group: &ProcessGroup) {
    let read = |text: &str| -> Result<Vec<u8>, Error> {
        assert_eq!(group.rank(), 0, "the others do not look");
        Ok(text.as_bytes().to_vec())
    };
    assert_eq!(group.first(|| read("a run")).unwrap(), b"a run");
    assert_eq!(group.first(|| read("")).unwrap(), b"");
    let error = group.first(|| fs::read("/nowhere/at all")).unwrap_err().to_string();
    assert!(error.starts_with("process 0 of 3: No such file or directory"), "{error}");
}

/// ⟨gather x, y⟩ = Σ_r ⟨x_r, (scatter_sum y)_r⟩, exact for integers.
fn gather_and_scatter_sum_are_transposes(group: &ProcessGroup) {
    for counts in [[4, 4, 4], [0, 3, 5], [7, 0, 0], [0, 0, 0], [1, 2, 3]] {
        let rank = group.rank();
        let shards = group.shards(counts[rank]).unwrap();
        let total = counts.iter().sum::<usize>() as i64;
        let first = counts[..rank].iter().sum::<usize>() as i64;
        assert_eq!((shards.first(), shards.own(), shards.total()), (first, counts[rank] as i64, total));
        tch::manual_seed(3);
        let integers = |rows: i64| Tensor::randint_low(-9, 10, [rows, 2, 3], (Kind::Double, Device::Cpu));
        let whole = integers(total);
        let x = whole.narrow(0, first, counts[rank] as i64);
        assert_eq!(shards.gather(&x).unwrap(), whole);
        tch::manual_seed(40 + rank as i64);
        let y = integers(total);
        let sum = shards.scatter_sum(&y).unwrap();
        assert_eq!(sum.size(), [counts[rank] as i64, 2, 3]);
        let dot = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]) as i64;
        let [mine, theirs] = [dot(&whole, &y), dot(&x, &sum)];
        let all = group.exchange(&[mine, theirs]).unwrap();
        assert_eq!(all.iter().map(|pair| pair[0]).sum::<i64>(), all.iter().map(|pair| pair[1]).sum::<i64>());

        let leaf = x.copy().set_requires_grad(true);
        let all = shards.gather_with_grad(&leaf).unwrap();
        (all * &y).sum(Kind::Double).f_backward().unwrap();
        assert_eq!(bits(&[&leaf.grad()]), bits(&[&sum]));
    }
}

/// What one process does otherwise is an error in all, and the group goes on.
fn what_differs_is_refused_in_all(group: &ProcessGroup) {
    let odd = group.rank() == 1;
    let zeros = |size: &[i64], kind| Tensor::zeros(size, (kind, Device::Cpu));
    let said = |result: Result<(), Error>, text: &str| {
        let error = result.expect_err(text).to_string();
        let expected = format!("process {} of 3: {text}", group.rank());
        assert_eq!(error, expected);
        group.barrier().unwrap();
    };
    let gather = |tensor: &Tensor| group.all_gather(tensor).map(drop);
    let size = if odd { [4, 33] } else { [4, 32] };
    let text = "all_gather: processes 0 and 1 differ in the size of dimension 1: 32 and 33";
    said(gather(&zeros(&size, Kind::Float)), text);
    let kind = if odd { Kind::Double } else { Kind::Float };
    said(gather(&zeros(&[4, 32], kind)), "all_gather: processes 0 and 1 differ in dtype: Float and Double");
    let text = "all_gather: processes 0 and 1 differ in the number of dimensions: 2 and 1";
    said(gather(&zeros(if odd { &[4][..] } else { &[4, 1] }, Kind::Float)), text);
    let text = "processes 0 and 1 make different calls: barrier and any";
    said(if odd { group.any(&[true]).map(drop) } else { group.barrier() }, text);
    let text = "exchange: processes 0 and 1 differ in how many numbers there are: 1 and 2";
    said(group.exchange(if odd { &[1, 2] } else { &[1] }).map(drop), text);

    // A process with an error of its own says which, and the others that it has one.
    let tensor = if odd { Tensor::zeros([0; 0], (Kind::Float, Device::Cpu)) } else { zeros(&[1], Kind::Float) };
    let error = gather(&tensor).unwrap_err().to_string();
    let expected = match odd {
        true => "tensor: expected at least one dimension, got a scalar".into(),
        false => format!("process {} of 3: process 1 has an error of its own, and takes no part", group.rank()),
    };
    assert_eq!(error, expected);
    let shards = group.shards(if odd { 2 } else { 3 }).unwrap();
    let error = shards.gather(&zeros(&[3, 2], Kind::Float)).unwrap_err().to_string();
    let expected = if odd { "rows: expected 2 rows, got [3, 2]".into() } else { expected.replace("tensor", "rows") };
    assert_eq!(error, expected);
    group.barrier().unwrap();
}

/// Two groups of one process do not disturb each other.
fn two_groups(group: &ProcessGroup) {
    let options = Options { name: "second".into(), ..Options::from_env().unwrap() };
    let second = ProcessGroup::new(&options).unwrap();
    let rank = group.rank() as f64;
    let (mut a, mut b) = (of(&[rank]), of(&[10.0 * rank]));
    let (first, other) = (group.all_reduce(&mut a).unwrap(), second.all_reduce(&mut b).unwrap());
    assert_eq!((other.wait().unwrap(), first.wait().unwrap()), (of(&[30.0]), of(&[3.0])));
    drop(second);
    group.barrier().unwrap();
}

#[test]
fn a_group_of_one_opens_no_socket() {
    let sockets = || {
        let links =
            fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        links.filter(|link| link.display().to_string().starts_with("socket:")).count()
    };
    // Alone in its process, because other tests open sockets.
    if let Some(printed) = as_processes(module_path!(), "a_group_of_one_opens_no_socket", 1, &[]) {
        assert!(printed[0].contains("no socket"));
        return;
    }
    let before = sockets();
    for group in [ProcessGroup::from_env().unwrap(), ProcessGroup::alone()] {
        assert_eq!((group.rank(), group.size()), (0, 1));
        let x = of(&[1.0, 2.0]).set_requires_grad(true);
        assert_eq!(group.all_gather(&x).unwrap().wait().unwrap(), x);
        assert_eq!(group.reduce_scatter(&x).unwrap().wait().unwrap(), x);
        assert_eq!(group.exchange(&[3]).unwrap(), [[3]]);
        assert_eq!(group.any(&[true, false]).unwrap(), [true, false]);
        assert_eq!(group.first(|| Ok::<_, Error>(vec![1, 2])).unwrap(), [1, 2]);
        let shards = group.shards(2).unwrap();
        assert_eq!(shards.gather(&x).unwrap(), x);
        shards.gather_with_grad(&x).unwrap().sum(Kind::Double).f_backward().unwrap();
        assert_eq!(x.grad(), of(&[1.0, 1.0]));
        group.barrier().unwrap();
    }
    assert_eq!(sockets(), before);
    println!("no socket");
}
