//! The options of the losses as arguments of operators: names, types and defaults are those of the Rust structs.

use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, ContrastiveLoss, Distance, Error, MeanOver, Negative, Negatives, PairedDistance, Pairs,
    PairwiseDistance, Precision, Reduction, TopK, TripletMarginLoss,
};

use crate::operator::Stack;
use crate::tensor::wrong;

/// A struct of options.
pub trait Options: Sized + Default + Copy {
    /// `name: (default as JSON)` of each argument, in order.
    fn defaults() -> Vec<(String, String)>;
    /// The arguments as a schema has them: `float margin, str distance`.
    fn schema() -> String;
    /// Takes the arguments, all of them; the error is that of the first that is invalid.
    fn take(stack: &mut Stack) -> Result<Self, Error>;
}

/// The type of an option.
trait Argument: Sized {
    type Raw;
    /// The arguments that it is, of the schema.
    fn schema(name: &str) -> String;
    fn take(stack: &mut Stack) -> Self::Raw;
    fn read(name: &'static str, raw: Self::Raw) -> Result<Self, Error>;
    /// The names of the arguments that it is, with this value as JSON.
    fn json(&self, name: &str) -> Vec<(String, String)>;
}

impl Argument for f64 {
    type Raw = Self;
    fn schema(name: &str) -> String {
        format!("float {name}")
    }
    fn take(stack: &mut Stack) -> Self {
        stack.float()
    }
    fn read(_: &'static str, raw: Self) -> Result<Self, Error> {
        Ok(raw)
    }
    fn json(&self, name: &str) -> Vec<(String, String)> {
        vec![(name.into(), format!("{self:?}"))]
    }
}

impl Argument for bool {
    type Raw = Self;
    fn schema(name: &str) -> String {
        format!("bool {name}")
    }
    fn take(stack: &mut Stack) -> Self {
        stack.bool()
    }
    fn read(_: &'static str, raw: Self) -> Result<Self, Error> {
        Ok(raw)
    }
    fn json(&self, name: &str) -> Vec<(String, String)> {
        vec![(name.into(), self.to_string())]
    }
}

/// A seed: any 64 bits.
impl Argument for u64 {
    type Raw = i64;
    fn schema(name: &str) -> String {
        format!("int {name}")
    }
    fn take(stack: &mut Stack) -> i64 {
        stack.int()
    }
    fn read(_: &'static str, raw: i64) -> Result<Self, Error> {
        Ok(raw.cast_unsigned())
    }
    fn json(&self, name: &str) -> Vec<(String, String)> {
        vec![(name.into(), self.to_string())]
    }
}

/// A number of things.
macro_rules! counts {
    ($($Type:ty),*) => {$(
        impl Argument for $Type {
            type Raw = i64;
            fn schema(name: &str) -> String {
                format!("int {name}")
            }
            fn take(stack: &mut Stack) -> i64 {
                stack.int()
            }
            fn read(name: &'static str, raw: i64) -> Result<Self, Error> {
                Self::try_from(raw).map_err(|_| wrong(name, "0 or more", raw.to_string()))
            }
            fn json(&self, name: &str) -> Vec<(String, String)> {
                vec![(name.into(), self.to_string())]
            }
        }
    )*};
}
counts!(usize, u32);

impl Argument for Option<usize> {
    type Raw = Option<i64>;
    fn schema(name: &str) -> String {
        format!("int? {name}")
    }
    fn take(stack: &mut Stack) -> Option<i64> {
        stack.optional_int()
    }
    fn read(name: &'static str, raw: Option<i64>) -> Result<Self, Error> {
        raw.map(|raw| usize::read(name, raw)).transpose()
    }
    fn json(&self, name: &str) -> Vec<(String, String)> {
        vec![(name.into(), self.map_or("null".into(), |number| number.to_string()))]
    }
}

/// An option with a few values, each of which has a name.
macro_rules! named {
    ($Type:ident { $($name:literal => $Variant:ident),* $(,)? }) => {
        impl Argument for $Type {
            type Raw = String;
            fn schema(name: &str) -> String {
                format!("str {name}")
            }
            fn take(stack: &mut Stack) -> String {
                stack.string()
            }
            fn read(name: &'static str, raw: String) -> Result<Self, Error> {
                match &*raw {
                    $($name => Ok(Self::$Variant),)*
                    _ => Err(wrong(name, ["one of", $(concat!("'", $name, "'")),*].join(" "), format!("'{raw}'"))),
                }
            }
            fn json(&self, name: &str) -> Vec<(String, String)> {
                let known = [$(($name, Self::$Variant)),*];
                let value = known.iter().find(|(_, value)| value == self).expect("a value with a name").0;
                vec![(name.into(), format!("\"{value}\""))]
            }
        }
    };
}
named!(Distance { "squared_euclidean" => SquaredEuclidean, "euclidean" => Euclidean, "cosine" => Cosine, });
named!(Reduction { "none" => None, "mean" => Mean, "sum" => Sum, });
named!(MeanOver { "active" => Active, "valid" => Valid, });
named!(Precision { "highest" => Highest, "high" => High, "medium" => Medium, });
named!(Negatives { "all" => All, "hardest" => Hardest, });
named!(Negative { "hardest" => Hardest, "random" => Random, "semi_hard" => SemiHard, });
named!(Pairs { "ordered" => Ordered, "once" => Once, });

/// `distance`, and `p` and `eps`, which are used with the distance `lp` alone.
impl Argument for PairedDistance {
    type Raw = (String, f64, f64);
    fn schema(name: &str) -> String {
        format!("str {name}, float p, float eps")
    }
    fn take(stack: &mut Stack) -> Self::Raw {
        (stack.string(), stack.float(), stack.float())
    }
    fn read(name: &'static str, (raw, p, eps): Self::Raw) -> Result<Self, Error> {
        match &*raw {
            "squared_euclidean" => Ok(Self::SquaredEuclidean),
            "euclidean" => Ok(Self::Euclidean),
            "cosine" => Ok(Self::Cosine),
            "lp" => Ok(Self::Lp { p, eps }),
            _ => {
                let expected = "one of 'squared_euclidean' 'euclidean' 'cosine' 'lp'";
                Err(wrong(name, expected, format!("'{raw}'")))
            }
        }
    }
    fn json(&self, name: &str) -> Vec<(String, String)> {
        let Self::Lp { p: default_p, eps: default_eps } = TripletMarginLoss::torch().distance else {
            unreachable!("torch's distance is a p-norm");
        };
        let (value, p, eps) = match *self {
            Self::SquaredEuclidean => ("squared_euclidean", default_p, default_eps),
            Self::Euclidean => ("euclidean", default_p, default_eps),
            Self::Cosine => ("cosine", default_p, default_eps),
            Self::Lp { p, eps } => ("lp", p, eps),
            other => unreachable!("a distance without a name: {other:?}"),
        };
        [
            [(name.into(), format!("\"{value}\""))],
            [("p".into(), format!("{p:?}"))],
            [("eps".into(), format!("{eps:?}"))],
        ]
        .concat()
    }
}

/// Makes a struct's public fields arguments, in this order.
macro_rules! options {
    ($Type:ident { $($field:ident: $Field:ty),* $(,)? }) => {
        impl Options for $Type {
            fn defaults() -> Vec<(String, String)> {
                let $Type { $($field),* } = Self::default();
                [$($field.json(stringify!($field))),*].concat()
            }
            fn schema() -> String {
                [$(<$Field as Argument>::schema(stringify!($field))),*].join(", ")
            }
            fn take(stack: &mut Stack) -> Result<Self, Error> {
                $(let $field = <$Field as Argument>::take(stack);)*
                Ok(Self { $($field: <$Field as Argument>::read(stringify!($field), $field)?),* })
            }
        }
    };
}
options!(TripletMarginLoss {
    margin: f64,
    distance: PairedDistance,
    normalize: bool,
    swap: bool,
    reduction: Reduction,
});
options!(ContrastiveLoss { margin: f64, distance: PairedDistance, normalize: bool, reduction: Reduction });
options!(BatchAllTripletLoss {
    margin: f64,
    distance: Distance,
    normalize: bool,
    reduction: Reduction,
    mean_over: MeanOver,
    precision: Precision,
    pairs_at_once: Option<usize>,
});
options!(BatchHardTripletLoss {
    margin: f64,
    distance: Distance,
    normalize: bool,
    soft_margin: bool,
    reduction: Reduction,
    precision: Precision,
});
options!(BatchSemiHardTripletLoss {
    margin: f64,
    distance: Distance,
    normalize: bool,
    reduction: Reduction,
    precision: Precision,
    pairs_at_once: Option<usize>,
});
options!(BatchNegativeTripletLoss {
    margin: f64,
    negative: Negative,
    pairs: Pairs,
    seed: u64,
    distance: Distance,
    normalize: bool,
    reduction: Reduction,
    precision: Precision,
    pairs_at_once: Option<usize>,
});
options!(BatchContrastiveLoss {
    margin: f64,
    distance: Distance,
    normalize: bool,
    negatives: Negatives,
    power: u32,
    pos_margin: f64,
    reduction: Reduction,
    mean_over: MeanOver,
    means_apart: bool,
    precision: Precision,
});
options!(PairwiseDistance { distance: Distance, normalize: bool, precision: Precision });
options!(TopK { k: usize, distance: Distance, normalize: bool, precision: Precision });
