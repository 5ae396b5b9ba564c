//! `top_k` on tensors.

use tch::{Device, Kind, Tensor};
use tercet::{Distance, Own, TopK};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// The k least of libtorch's distances, which it sorts itself.
#[test]
fn finds_what_libtorch_sorts() {
    // The same numbers in every run: two rows that rounding exchanges would be another order.
    let all = Tensor::arange(520 * 48, F32).square().sin().view([520, 48]);
    let (queries, stored) = (all.narrow(0, 0, 20), all.narrow(0, 20, 500));
    let top = TopK { k: 7, distance: Distance::Euclidean, ..Default::default() };
    let (distances, indices) = top.on(&queries, &stored).forward();
    let all = (queries.unsqueeze(1) - stored.unsqueeze(0)).norm_scalaropt_dim(2.0, [2], false);
    let (expected, of) = all.topk(7, 1, false, true);
    assert_eq!(indices, of);
    assert!(distances.allclose(&expected, 1e-5, 1e-5, false));
    assert!(!distances.requires_grad());
}

#[test]
fn takes_views_and_every_dtype() {
    let wide = Tensor::randn([80, 300], F32);
    let (queries, stored) = (wide.narrow(1, 3, 40).narrow(0, 0, 30), wide.narrow(1, 3, 40));
    for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16] {
        let (queries, stored) = (queries.to_kind(kind), stored.to_kind(kind).tr().contiguous().tr());
        let own = Tensor::arange(30, (Kind::Int, Device::Cpu));
        let top = TopK { k: 2, ..Default::default() };
        let (itself, of_itself) = top.on(&queries, &stored).forward();
        assert_eq!(of_itself.select(1, 0), own.to_kind(Kind::Int64));
        assert_eq!(itself.select(1, 0).abs().sum(Kind::Double).double_value(&[]), 0.0);
        let (others, of_others) = top.on(&queries, &stored).own(Own::Rows(&own)).forward();
        assert_eq!(of_others.select(1, 0), of_itself.select(1, 1));
        assert_eq!(others.kind(), if kind == Kind::Double { Kind::Double } else { Kind::Float });
    }
}

#[test]
fn int8_rows_with_exact_ones_answer_as_these() {
    let (queries, stored) = (Tensor::randn([50, 64], F32), Tensor::randn([900, 64], F32));
    let scales = stored.abs().amax([1], false) / 127.0;
    let integers = (&stored / scales.unsqueeze(1)).round().to_kind(Kind::Int8);
    let top = TopK { k: 5, ..Default::default() };
    let expected = top.on(&queries, &stored).forward();
    let found = top.on(&queries, (&integers, &scales)).exact(&stored).forward();
    assert_eq!(found, expected);
    let rough = top.on(&queries, (&integers, &scales)).forward();
    let equal = rough.1.eq_tensor(&expected.1).sum(Kind::Int64).int64_value(&[]);
    assert!((200..250).contains(&equal), "{equal} of 250 found without the exact rows");
}

#[test]
fn what_does_not_fit_is_named() {
    let (x, integers) = (Tensor::randn([4, 8], F32), Tensor::zeros([6, 8], (Kind::Int8, Device::Cpu)));
    let (rows, scales) = (Tensor::randn([6, 8], F32), Tensor::ones([6], F32));
    let top = TopK { k: 2, ..Default::default() };
    let message = |result: Result<(Tensor, Tensor), tercet::Error>| result.unwrap_err().to_string();
    let cases = [
        (top.on(&x, &integers).f_forward(), "stored: expected dtype f32, f64, f16 or bf16, got Int8"),
        (top.on(&x, (&rows, &scales)).f_forward(), "stored: expected dtype int8, with scales, got Float"),
        (top.on(&x, (&integers, &x)).f_forward(), "scales: expected shape [6], got [4, 8]"),
        (top.on(&x, &scales).f_forward(), "stored: expected shape [B, D], got [6]"),
        (top.on(&x, &rows.to_kind(Kind::Double)).f_forward(), "stored: expected f32, f16, bf16 or int8, got f64"),
        (top.on(&x, &rows).exact(&x).f_forward(), "exact: expected [6, 8], as the stored rows, got [4, 8]"),
        (top.on(&x, &rows).exact(&rows.to_kind(Kind::Half)).f_forward(), "exact: expected dtype f32, got Half"),
        (top.on(&x, &rows).own(Own::Rows(&scales)).f_forward(), "own: expected dtype i64 or i32, got Float"),
        (
            top.on(&rows.narrow(0, 0, 0), &rows).f_forward(),
            "queries: expected at least one row and one column, got [0, 8]",
        ),
    ];
    for (result, expected) in cases {
        assert_eq!(message(result), expected);
    }
}
