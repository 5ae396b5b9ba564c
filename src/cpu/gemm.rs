//! Products of small matrices, on the calling thread.

use gemm_common::Parallelism;

/// A matrix in memory: element (i, j) lies at `i * steps.0 + j * steps.1`.
#[derive(Clone, Copy)]
pub struct View<'a, A> {
    data: &'a [A],
    shape: (usize, usize),
    steps: (usize, usize),
}

impl<'a, A> View<'a, A> {
    /// A view of `rows` rows of `cols` numbers, each `step` numbers after the one before.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn new(data: &'a [A], rows: usize, cols: usize, step: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * step + cols <= data.len(), "{rows} x {cols} numbers");
        Self { data, shape: (rows, cols), steps: (step, 1) }
    }

    /// The transposed matrix.
    pub fn t(self) -> Self {
        Self { shape: (self.shape.1, self.shape.0), steps: (self.steps.1, self.steps.0), ..self }
    }
}

/// A type that products are computed in.
pub trait Product: Sized {
    /// `to = left * right`, or with `add` `to += left * right`; `to` has rows `step` numbers apart.
    ///
    /// Each element is a sum of the products over the inner index and what was there, in an order that depends on the
    /// shape alone.
    ///
    /// # Panics
    /// If the inner sizes differ or `to` is too short.
    #[doc(hidden)]
    fn product(to: &mut [Self], step: usize, add: bool, left: View<'_, Self>, right: View<'_, Self>);
}

macro_rules! product {
    ($t:ident, $gemm:path) => {
        impl Product for $t {
            fn product(to: &mut [Self], step: usize, add: bool, left: View<'_, Self>, right: View<'_, Self>) {
                let ((rows, inner), cols) = (left.shape, right.shape.1);
                assert_eq!(inner, right.shape.0, "inner sizes");
                if rows == 0 || cols == 0 {
                    return;
                }
                assert!(cols <= step && (rows - 1) * step + cols <= to.len(), "{rows} x {cols} numbers");
                let signed = |step: usize| isize::try_from(step).expect("a step within a slice");
                // The kernels want the columns of `to` contiguous: its transpose is right' left'.
                // SAFETY: the constructor of `View` and the assertion keep every element of the three matrices inside
                // its slice; `to` is borrowed exclusively, so it overlaps neither; the function is for this type.
                unsafe {
                    $gemm()(
                        cols,
                        rows,
                        inner,
                        to.as_mut_ptr(),
                        signed(step),
                        1,
                        add,
                        right.data.as_ptr(),
                        signed(right.steps.0),
                        signed(right.steps.1),
                        left.data.as_ptr(),
                        signed(left.steps.0),
                        signed(left.steps.1),
                        1.0,
                        1.0,
                        false,
                        false,
                        false,
                        Parallelism::None,
                    );
                }
            }
        }
    };
}
product!(f32, gemm_f32::gemm::f32::get_gemm_fn);
product!(f64, gemm_f64::gemm::f64::get_gemm_fn);
