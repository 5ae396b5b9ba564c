//! Calls of mined losses on slices in memory.

use crate::call::{Call, PerAnchor, Selects};
use crate::matrix::check_len;
use crate::mined::Slices;
use crate::problem::Problem;
use crate::{Element, Error, Matrix, MinedLoss, Reduction, Stats};

/// Calls on slices: the embeddings are a [`Matrix`] in memory, and everything runs on the CPU.
///
/// Every method returns an error if a part of the call is invalid: the batch or the reference set is empty or too
/// large, their rows differ in length, there is not one label a row, or an option is out of range. Further errors stand
/// with each method.
impl<'a, L: MinedLoss, T: Element> Call<'_, L, Matrix<'a, T>> {
    /// The loss, reduced by mean or sum.
    ///
    /// # Errors
    /// If a part of the call is invalid, or `reduction` is `None`.
    pub fn loss(self) -> Result<T::Scalar, Error> {
        Ok(self.loss_with_stats()?.0)
    }

    /// The loss, reduced by mean or sum, and statistics of the batch; each loss documents what it counts.
    ///
    /// # Errors
    /// If a part of the call is invalid, or `reduction` is `None`.
    pub fn loss_with_stats(self) -> Result<(T::Scalar, Stats), Error> {
        let problem = self.reduced()?;
        let found = L::find(&problem, &self.slices(), [false; 2]);
        Ok((L::loss(&problem, &found), L::stats(&found)))
    }

    /// The loss of each anchor, whatever the reduction: 0 without a positive or without a negative.
    ///
    /// # Errors
    /// If a part of the call is invalid, or `losses` has not one entry a row; `reduction` may be `None`.
    pub fn losses(self, losses: &mut [T::Scalar]) -> Result<(), Error>
    where
        L: PerAnchor,
    {
        let problem = self.checked()?;
        check_len("losses", losses.len(), problem.rows)?;
        losses.copy_from_slice(L::losses(&L::find(&problem, &self.slices(), [false; 2])));
        Ok(())
    }

    /// The pairs or triplets that the loss selects, and their distances.
    ///
    /// # Errors
    /// If a part of the call is invalid; `reduction` may be `None`.
    pub fn select(self) -> Result<L::Selection<T::Scalar>, Error>
    where
        L: Selects,
    {
        let problem = self.checked()?;
        Ok(L::selection(&problem, L::find(&problem, &self.slices(), [false; 2])))
    }

    /// The loss, reduced by mean or sum, and its gradient with respect to the embeddings.
    ///
    /// The gradient is `[N, D]`, contiguous; what it held before is overwritten. Gradients of 16-bit embeddings are
    /// rounded once, after the mean's division: to scale them up first, see [`grad`](Self::grad).
    ///
    /// # Errors
    /// If a part of the call is invalid, `reduction` is `None`, or `grad` has not `N D` numbers.
    pub fn loss_and_grad(self, grad: &mut [T]) -> Result<T::Scalar, Error> {
        self.loss_and_grads([Some(grad), None])
    }

    /// The loss, reduced by mean or sum, and its gradients with respect to the embeddings, `[N, D]`, and to the
    /// reference set, `[M, D]`; `None` in place of a gradient skips it.
    ///
    /// # Errors
    /// If a part of the call is invalid, `reduction` is `None`, a gradient has the wrong length, or there is one with
    /// respect to a reference set that the call does not have.
    pub fn loss_and_grads(self, grads: [Option<&mut [T]>; 2]) -> Result<T::Scalar, Error> {
        let problem = self.reduced()?;
        self.run(&problem, None, grads)
    }

    /// The gradient with respect to the embeddings, `[N, D]`, times `upstream`, the gradient of what follows with
    /// respect to this loss: one number for mean and sum, one an anchor for `Reduction::None`.
    ///
    /// # Errors
    /// If a part of the call is invalid, or `upstream` or `grad` has the wrong length; `reduction` may be `None`.
    pub fn grad(self, upstream: &[T::Scalar], grad: &mut [T]) -> Result<(), Error> {
        self.grads(upstream, [Some(grad), None])
    }

    /// The gradients with respect to the embeddings, `[N, D]`, and to the reference set, `[M, D]`, times `upstream`, as
    /// [`grad`](Self::grad) says; `None` in place of a gradient skips it.
    ///
    /// # Errors
    /// If a part of the call is invalid, `upstream` or a gradient has the wrong length, or there is a gradient with
    /// respect to a reference set that the call does not have; `reduction` may be `None`.
    pub fn grads(self, upstream: &[T::Scalar], grads: [Option<&mut [T]>; 2]) -> Result<(), Error> {
        let problem = self.checked()?;
        check_len("upstream", upstream.len(), problem.upstreams())?;
        self.run(&problem, Some(upstream), grads).map(drop)
    }

    fn run(
        &self,
        problem: &Problem<L::Extra>,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    ) -> Result<T::Scalar, Error> {
        problem.check_grads(grads.each_ref().map(|grad| grad.as_ref().map(|grad| grad.len())))?;
        let found = L::find(problem, &self.slices(), grads.each_ref().map(Option::is_some));
        L::gradients(problem, &found, upstream, grads);
        Ok(L::loss(problem, &found))
    }

    /// Checks a call that returns one number: its reduction must be mean or sum.
    fn reduced(&self) -> Result<Problem<L::Extra>, Error> {
        if self.loss_fn.options().reduction == Reduction::None {
            return Err(Error::argument("reduction", "Mean or Sum (`losses` and `grad` take None)", "None"));
        }
        self.checked()
    }

    fn checked(&self) -> Result<Problem<L::Extra>, Error> {
        let problem = self.loss_fn.problem(&self.slices().sizes())?;
        Ok(Problem { step: self.step.unwrap_or(0), ..problem })
    }

    fn slices(&self) -> Slices<'_, T> {
        Slices { embeddings: self.embeddings, labels: self.labels, reference: self.reference }
    }
}
