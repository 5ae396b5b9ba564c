//! Charts, pictures and the page that shows them.

pub mod chart;
pub mod page;
pub mod plot;
