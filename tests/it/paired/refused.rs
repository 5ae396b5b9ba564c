//! What tests of refused arguments share.

use tercet::{Error, PairedDistance};

/// Asserts that the call failed because of `argument`, and that the error says what was expected and what came. Returns
/// its text.
#[track_caller]
pub fn refused<T>(result: Result<T, Error>, argument: &str, expected: &str, actual: &str) -> String {
    let error = result.err().unwrap_or_else(|| panic!("accepted; should complain about {argument}"));
    let Error::Argument { argument: named, expected: wanted, actual: got } = &error else {
        panic!("not about an argument: {error}");
    };
    assert!(*named == argument && wanted.contains(expected) && got.contains(actual), "{error}");
    let text = error.to_string();
    assert!(!expected.is_empty() && !actual.is_empty());
    assert!(text.contains(argument) && text.contains(expected) && text.contains(actual), "{text}");
    text
}

/// Margins and distances that no paired loss takes, with the option's name, what it should be and what it is.
pub fn bad_options() -> Vec<(f64, PairedDistance, &'static str, &'static str, &'static str)> {
    let margin = |margin, expected, actual| (margin, PairedDistance::SquaredEuclidean, "margin", expected, actual);
    let lp = |p, eps, argument, expected, actual| (0.5, PairedDistance::Lp { p, eps }, argument, expected, actual);
    vec![
        margin(-0.5, "0 or more", "-0.5"),
        margin(-f64::MIN_POSITIVE, "0 or more", "-0.000"),
        margin(f64::NAN, "finite", "NaN"),
        margin(f64::INFINITY, "finite", "inf"),
        margin(f64::NEG_INFINITY, "finite", "-inf"),
        lp(0.0, 0.0, "distance.p", "above 0", "0"),
        lp(-0.0, 0.0, "distance.p", "above 0", "-0"),
        lp(-2.0, 0.0, "distance.p", "above 0", "-2"),
        lp(f64::NAN, 0.0, "distance.p", "above 0", "NaN"),
        lp(f64::NEG_INFINITY, 0.0, "distance.p", "above 0", "-inf"),
        lp(2.0, f64::NAN, "distance.eps", "finite", "NaN"),
        lp(3.0, f64::INFINITY, "distance.eps", "finite", "inf"),
    ]
}

/// Margins and distances that are finite in f64 and infinite in f32.
pub fn options_beyond_f32() -> [(f64, PairedDistance, &'static str, &'static str, &'static str); 3] {
    let eps = |p| PairedDistance::Lp { p, eps: -1e39 };
    [
        (1e39, PairedDistance::SquaredEuclidean, "margin", "at most 3.4028234663852886e38", "1e39"),
        (0.5, eps(2.0), "distance.eps", "at most 3.4028234663852886e38", "-1e39"),
        (0.5, eps(3.0), "distance.eps", "at most 3.4028234663852886e38", "-1e39"),
    ]
}

#[cfg(feature = "torch")]
pub mod tensors {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tch::{Device, Kind, Tensor};

    pub fn dense(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Float, Device::Cpu))
    }

    /// Asserts that `forward` of the type `name` panics with the text of the error.
    #[track_caller]
    pub fn panics(name: &str, text: &str, forward: impl FnOnce() -> Tensor) {
        let panic = catch_unwind(AssertUnwindSafe(forward)).expect_err("forward accepts what f_forward refuses");
        let panic = panic.downcast_ref::<String>().expect("a formatted message");
        assert_eq!(*panic, format!("{name}: {text}"));
    }

    /// Tensors that are no 2 x 3 embeddings, with what they should be and what they are.
    pub fn wrong_matrices() -> Vec<(Tensor, &'static str, String)> {
        let mut wrong = vec![
            (Tensor::new(), "a tensor", "undefined".into()),
            (dense(&[]), "[B, D]", "[]".into()),
            (dense(&[6]), "[B, D]", "[6]".into()),
            (dense(&[1, 2, 3]), "[B, D]", "[1, 2, 3]".into()),
        ];
        let kinds = [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64, Kind::Bool];
        let kinds = kinds.into_iter().chain([Kind::ComplexFloat, Kind::ComplexDouble, Kind::Float8e4m3fn]);
        let of_kinds = kinds.map(|kind| (dense(&[2, 3]).to_kind(kind), "f32, f64, f16 or bf16", format!("{kind:?}")));
        wrong.extend(of_kinds);
        let quantized = dense(&[2, 3]).quantize_per_tensor(0.1, 0, Kind::QInt8);
        wrong.push((quantized, "f32, f64, f16 or bf16", "QInt8".into()));
        let x = dense(&[2, 3]);
        let sparse = [
            x.to_sparse(None, None::<&[i64]>, None),
            x.to_sparse_csr(None),
            x.to_sparse_csc(None),
            x.to_sparse_bsr([1i64, 1].as_slice(), None),
        ];
        wrong.extend(sparse.map(|sparse| (sparse, "dense", "sparse".into())));
        wrong.push((x.to_mkldnn(), "dense", "MKL-DNN".into()));
        wrong
    }
}
