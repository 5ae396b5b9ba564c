//! Generated handwriting: signatures of signers that do not exist, and forgeries of them. It contains no person's
//! signature.
//!
//! A signer is a plan, drawn once, and a hand. The plan is what signatures of one person share: a capital, a few
//! letters, perhaps flourishes, each a list of points that the pen aims at. The hand moves the pen there as the
//! kinematic theory of rapid movements has it (Plamondon, 1995): one stroke from target to target, whose speed over
//! time is lognormal, and which starts before the previous one has ended, so that their sum turns corners smoothly:
//!
//! ```text
//! v(t) = Σ_j D_j Λ_j(t) (cos φ_j(t), sin φ_j(t))       Λ_j: lognormal density with t0_j, μ_j, σ_j
//! φ_j(t) = θ_j + α_j (F_j(t) - 1/2)                     F_j: its integral; α_j: how far the stroke turns
//! ```
//!
//! A slow pen leaves a broader and darker line than a fast one.
//!
//! - **Genuine drawings** of one signer move every target a little, let widths and heights drift along
//!   the line, and vary slant, size, pen, tempo and each stroke's timing; a flourish is sometimes left out.
//! - **Skilled forgeries** are the plan as another signer copies it from one drawing: with errors of proportion, with
//!   some of the forger's own slant and width, and with the forger's own hand, slower than usual: strokes that overlap
//!   less, the tremor of a slow hand, now and then a stop in the middle of a word.

use crate::process::random::{Purpose, normal, stream, symmetric};
use image::{GrayImage, Luma};
use rand::Rng;
use std::f32::consts::{PI, TAU};

/// Drawings are `2 * HEIGHT x HEIGHT`, the shape of a signature field.
pub const HEIGHT: u32 = 128;

type Point = [f32; 2];

/// The shapes of letters; x runs over the letter, y from 0 (line) up to 1 (small letter), 2 (ascender) and down to -1
/// (descender).
const LETTERS: [&[Point]; 12] = [
    &[[0.0, 0.0], [0.25, 0.9], [0.5, 0.1], [0.75, 0.9], [1.0, 0.0]],
    &[[0.0, 0.0], [0.7, 1.0], [0.2, 0.9], [0.1, 0.2], [0.6, 0.0], [1.0, 0.2]],
    &[[0.0, 0.0], [0.6, 1.4], [0.5, 2.0], [0.3, 1.4], [0.4, 0.2], [1.0, 0.0]],
    &[[0.0, 0.2], [0.6, 0.9], [0.7, -0.4], [0.4, -1.1], [0.2, -0.5], [1.0, 0.2]],
    &[[0.0, 0.0], [0.2, 0.8], [0.3, 0.0], [0.6, 0.9], [0.8, 0.1], [1.0, 0.0]],
    &[[0.0, 0.1], [0.5, 0.5], [0.5, 0.95], [0.2, 0.6], [0.5, 0.0], [1.0, 0.1]],
    &[[0.0, 0.0], [0.4, 1.7], [0.4, 0.1], [0.7, 0.8], [0.9, 0.2], [1.0, 0.0]],
    &[[0.0, 0.3], [0.3, 1.0], [0.7, 0.2], [0.3, 0.0], [0.8, 0.8], [1.0, 0.3]],
    &[[0.0, 0.0], [0.5, 0.2], [1.0, 0.05]],
    &[[0.0, 0.0], [0.5, 1.8], [0.7, 1.2], [0.4, -0.9], [0.2, -0.4], [1.0, 0.1]],
    &[[0.0, 0.8], [0.4, 0.1], [0.6, 0.9], [1.0, 0.7]],
    &[[0.0, 0.0], [0.3, 0.7], [0.6, 0.8], [0.9, 0.4], [0.5, 0.3], [1.0, 0.0]],
];
/// The shapes of capitals, which are larger strokes of their own.
const CAPITALS: [&[Point]; 8] = [
    &[[0.0, 0.0], [0.5, 2.4], [0.9, 0.0], [0.8, 0.9], [0.2, 0.8]],
    &[[0.1, 0.1], [0.2, 2.3], [0.8, 2.0], [0.3, 1.2], [0.9, 0.7], [0.1, 0.0]],
    &[[0.9, 2.0], [0.3, 2.3], [0.0, 1.0], [0.4, 0.0], [1.0, 0.4]],
    &[[0.0, 2.1], [0.9, 2.3], [0.5, 2.0], [0.5, 0.1], [0.1, -0.3], [0.0, 0.3]],
    &[[0.9, 2.1], [0.3, 2.2], [0.2, 1.4], [0.8, 1.0], [0.8, 0.2], [0.1, 0.1]],
    &[[0.0, 0.0], [0.1, 2.2], [0.5, 0.8], [0.9, 2.3], [1.0, 0.0]],
    &[[0.4, 2.2], [0.0, 1.2], [0.4, 0.0], [1.0, 1.0], [0.6, 2.2], [0.2, 1.6]],
    &[[0.0, 2.0], [0.3, 2.3], [0.3, 0.0], [0.6, 0.2], [1.0, 2.4]],
];

/// How many people forge one signature.
const FORGERS_OF_EACH: u64 = 4;
/// The number of the first signer who is a forger.
const FORGERS: u64 = 1 << 40;
/// Seconds between two positions of the pen.
const TICK: f32 = 0.004;
/// How often per second the hand of someone who copies slowly trembles.
const TREMOR: std::ops::Range<f32> = 8.0..12.0;

/// How a hand moves, whatever it writes.
#[derive(Clone, Copy)]
struct Hand {
    /// Seconds from the start of one stroke to the start of the next.
    beat: f32,
    /// The lognormal's σ: how lopsided a stroke's speed is.
    skew: f32,
    /// The standard deviation in time of a stroke's speed, in beats: how much neighbours overlap.
    overlap: f32,
    /// The width of the tremor; a small letter is 1 high.
    tremor: f32,
    slant: f32,
    slope: f32,
    aspect: f32,
    /// Width of the line in 64ths of the height.
    pen: f32,
}

/// One person's way to sign.
pub struct Signer {
    seed: u64,
    identity: u64,
    strokes: Vec<Vec<Point>>,
    /// How many of the strokes, at the end, may be left out.
    optional: usize,
    /// How far targets move from drawing to drawing.
    unsteadiness: f32,
    hand: Hand,
}

impl Signer {
    /// The signer `identity` of this seed.
    pub fn new(seed: u64, identity: u64) -> Self {
        let rng = &mut stream(seed, Purpose::Style, identity, 0);
        let (mut strokes, length) = word(rng);
        let optional = rng.random_range(0..3);
        strokes.extend((0..optional).map(|_| flourish(rng, length)));
        let hand = Hand {
            beat: rng.random_range(0.07..0.13),
            skew: rng.random_range(0.15..0.35),
            overlap: rng.random_range(0.22..0.42),
            tremor: 0.006,
            slant: 0.25 + 0.3 * normal(rng),
            slope: 0.06 * normal(rng),
            aspect: rng.random_range(0.8..1.3),
            pen: rng.random_range(1.1..2.0),
        };
        Self { seed, identity, strokes, optional, unsteadiness: rng.random_range(0.04..0.10), hand }
    }

    /// The genuine drawing number `index`, in dark ink on light paper.
    pub fn draw(&self, index: u64) -> GrayImage {
        let rng = &mut stream(self.seed, Purpose::Drawing, self.identity, index);
        let (targets, hand) = self.signing(rng);
        picture(rng, &targets, &hand, 0.0)
    }

    /// The forgery number `index` of this signature. Its [`FORGERS_OF_EACH`] forgers take turns; they are signers of
    /// this seed who forge no other signature.
    pub fn forge(&self, index: u64) -> GrayImage {
        let number = self.identity * FORGERS_OF_EACH + index % FORGERS_OF_EACH;
        self.forged_by(&Self::new(self.seed, FORGERS + number), index)
    }

    fn forged_by(&self, forger: &Self, index: u64) -> GrayImage {
        let rng = &mut stream(self.seed, Purpose::Forgery, self.identity, index);
        // The forger has seen one drawing.
        let (specimen, seen) = self.signing(rng);
        let own = forger.hand;
        let share = rng.random_range(0.1..0.35);
        let towards = |from: f32, to: f32| from + share * (to - from);
        let stretch = [0.10 * normal(rng), rng.random_range(0.3..0.9), symmetric(rng, 3.0)];
        let lift = [0.10 * normal(rng), rng.random_range(0.3..0.9), symmetric(rng, 3.0)];
        let error = rng.random_range(0.04..0.09);
        let copied = specimen.iter().map(|stroke| {
            let size = [0, 1].map(|_| 1.0 + 0.07 * normal(rng));
            let offset = [0.15 * normal(rng), 0.10 * normal(rng)];
            let start = stroke[0];
            let copy = stroke.iter().map(|p| {
                let x = start[0] + size[0] * (p[0] - start[0]) + offset[0];
                let y = size[1] * p[1] + offset[1];
                let x = x + stretch[0] * (stretch[1] * x + stretch[2]).sin() + error * normal(rng);
                let y = y * (1.0 + lift[0] * (lift[1] * x + lift[2]).sin()) + error * normal(rng);
                [x, y]
            });
            copy.collect::<Vec<Point>>()
        });
        let targets: Vec<_> = copied.collect();
        let hand = Hand {
            beat: own.beat * rng.random_range(1.5..2.6),
            overlap: own.overlap * rng.random_range(0.55..0.85),
            tremor: rng.random_range(0.010..0.040),
            slant: towards(seen.slant, own.slant),
            slope: towards(seen.slope, own.slope),
            aspect: towards(seen.aspect, own.aspect),
            pen: towards(seen.pen, own.pen),
            skew: own.skew,
        };
        picture(rng, &targets, &hand, 0.03)
    }

    /// The targets and the hand of one signature as its owner writes it.
    fn signing(&self, rng: &mut impl Rng) -> (Vec<Vec<Point>>, Hand) {
        // Widths and heights drift along the line: slow waves over x.
        let wave = [0.12 * normal(rng), rng.random_range(0.5..1.2), symmetric(rng, 3.0)];
        let lift = [0.15 * normal(rng), rng.random_range(0.4..1.0), symmetric(rng, 3.0)];
        let mut targets = Vec::new();
        for (i, stroke) in self.strokes.iter().enumerate() {
            let may_go = i + self.optional >= self.strokes.len();
            if may_go && rng.random::<f32>() < 0.12 {
                continue;
            }
            let offset = [0.15 * normal(rng), 0.12 * normal(rng)];
            let written = stroke.iter().map(|&[x, y]| {
                let x = x + wave[0] * (wave[1] * x + wave[2]).sin() + offset[0];
                let x = x + self.unsteadiness * normal(rng);
                let y = y * (1.0 + lift[0] * (lift[1] * x + lift[2]).sin()) + offset[1];
                [x, y + 1.3 * self.unsteadiness * normal(rng)]
            });
            targets.push(written.collect());
        }
        let own = self.hand;
        let hand = Hand {
            beat: own.beat * (1.0 + 0.10 * normal(rng)).max(0.6),
            overlap: own.overlap * (1.0 + 0.08 * normal(rng)).max(0.6),
            slant: own.slant + 0.07 * normal(rng),
            slope: own.slope + 0.04 * normal(rng),
            aspect: own.aspect * (1.0 + 0.08 * normal(rng)),
            pen: (own.pen * (1.0 + 0.12 * normal(rng))).max(0.9),
            ..own
        };
        (targets, hand)
    }
}

/// A capital and some letters: one or two strokes, and how long they are. In some hands the letters shrink along the
/// word until it is a line.
fn word(rng: &mut impl Rng) -> (Vec<Vec<Point>>, f32) {
    let capital = CAPITALS[rng.random_range(0..CAPITALS.len())];
    let (width, size) = (rng.random_range(0.9..2.0), rng.random_range(0.8..1.5));
    let first = own_shape(rng, capital, 0.0, [width, size]);
    let mut x = width * rng.random_range(0.7..1.1);
    let mut letters: Vec<Point> = Vec::new();
    let shrink: f32 = rng.random_range(0.82..1.04);
    let mut height = rng.random_range(0.8..1.4);
    for _ in 0..rng.random_range(3..8) {
        let width = rng.random_range(0.5..1.3);
        let shape = LETTERS[rng.random_range(0..LETTERS.len())];
        let size = [width, height * rng.random_range(0.75..1.25)];
        letters.extend(own_shape(rng, shape, x, size));
        x += width;
        height *= shrink;
    }
    if rng.random::<f32>() < 0.3 {
        // The capital runs into the word without the pen leaving the paper.
        return (vec![first.into_iter().chain(letters).collect()], x);
    }
    (vec![first, letters], x)
}

/// A letter as one person forms it.
fn own_shape(rng: &mut impl Rng, shape: &[Point], x: f32, size: [f32; 2]) -> Vec<Point> {
    let mut point = |p: &Point| {
        let y = (p[1] + 0.15 * normal(rng)) * size[1];
        [x + (p[0] + 0.12 * normal(rng)) * size[0], y]
    };
    shape.iter().map(&mut point).collect()
}

/// A line under, over or through a word of this length: plain, there and back, or with a loop.
fn flourish(rng: &mut impl Rng, length: f32) -> Vec<Point> {
    let (from, to) = (length * rng.random_range(-0.1..0.5), length * rng.random_range(0.6..1.2));
    let y = [-1.0, -0.8, 0.5, 2.2][rng.random_range(0..4)] + 0.3 * normal(rng);
    let at = |share: f32, up: f32| [from + share * (to - from), y + up];
    let (bend, end) = (0.6 * normal(rng), 0.4 * normal(rng));
    match rng.random_range(0..4) {
        0 | 1 => vec![at(0.0, 0.0), at(0.5, bend), at(1.0, end)],
        2 => vec![at(0.0, 0.0), at(0.6, bend), at(1.0, end), at(0.5, end - 0.5), at(0.1, end - 0.6)],
        _ => {
            let size = rng.random_range(0.4..0.8);
            vec![at(0.0, 0.0), at(0.55, bend), at(0.7, size), at(0.5, size), at(0.6, bend - 0.2), at(1.0, end)]
        }
    }
}

/// A position of the pen, and its speed there in small letters per second.
#[derive(Clone, Copy)]
struct Sample {
    at: Point,
    speed: f32,
}

/// Moves the pen through the targets. `stops` is the probability that it rests at a target.
fn movement(rng: &mut impl Rng, targets: &[Point], hand: &Hand, stops: f32) -> Vec<Sample> {
    let mut start = 0.0;
    let mut strokes = Vec::with_capacity(targets.len());
    for (i, ends) in targets.windows(2).enumerate() {
        let beat = hand.beat * (1.0 + 0.10 * normal(rng)).clamp(0.6, 1.5);
        let skew = hand.skew * (1.0 + 0.08 * normal(rng)).clamp(0.6, 1.5);
        let turn = turn(targets, i) + 0.10 * normal(rng);
        strokes.push(Stroke::new(ends, turn, start, skew, hand.overlap * hand.beat / skew));
        let rest = if rng.random::<f32>() < stops { rng.random_range(1.5..4.0) } else { 0.0 };
        start += beat * (1.0 + rest);
    }
    let end = strokes.iter().map(|stroke| stroke.end()).fold(0.0, f32::max);
    let mut velocity = vec![[0f32; 2]; (end / TICK) as usize + 2];
    strokes.iter().for_each(|stroke| stroke.add_to(&mut velocity));

    let rate = [0, 1].map(|_| rng.random_range(TREMOR));
    let phase = [0, 1].map(|_| symmetric(rng, PI));
    let mut pen = targets[0];
    let mut path = Vec::with_capacity(velocity.len());
    for (tick, v) in velocity.iter().enumerate() {
        let t = tick as f32 * TICK;
        // The tremor comes and goes, about once a second.
        let tremor = hand.tremor * (0.6 + 0.4 * (TAU * 0.9 * t + phase[0]).sin());
        let at = [0, 1].map(|k| pen[k] + tremor * (TAU * rate[k] * t + phase[k]).sin());
        path.push(Sample { at, speed: v[0].hypot(v[1]) });
        pen = [0, 1].map(|k| pen[k] + v[k] * TICK);
    }
    path
}

/// One stroke: an arc whose speed is lognormal in time.
struct Stroke {
    /// The length along the arc.
    length: f32,
    /// The direction of the arc's chord.
    direction: f32,
    /// How far the arc turns to the left.
    turn: f32,
    start: f32,
    /// The median time after `start`.
    median: f32,
    skew: f32,
}

impl Stroke {
    fn new(ends: &[Point], turn: f32, start: f32, skew: f32, median: f32) -> Self {
        let chord = [ends[1][0] - ends[0][0], ends[1][1] - ends[0][1]];
        // An arc that turns by α is (α/2) / sin(α/2) times its chord.
        let half = (turn / 2.0).abs().max(1e-3);
        let length = chord[0].hypot(chord[1]) * half / half.sin();
        Self { length, direction: chord[1].atan2(chord[0]), turn, start, median, skew }
    }

    /// When all of the stroke except a thousandth is done.
    fn end(&self) -> f32 {
        self.start + self.median * (3.1 * self.skew).exp()
    }

    fn add_to(&self, velocity: &mut [Point]) {
        let first = (self.start / TICK) as usize;
        let last = ((self.end() / TICK) as usize).min(velocity.len() - 2);
        // The share done at each tick comes from one integral, so that the whole arc is walked.
        let done =
            |tick: usize| normal_cdf(((tick as f32 * TICK - self.start) / self.median).max(1e-6).ln() / self.skew);
        let total = done(last + 1).max(1e-6);
        let mut before = 0.0;
        for (tick, v) in velocity.iter_mut().enumerate().take(last + 1).skip(first) {
            let after = done(tick + 1) / total;
            let angle = self.direction + self.turn * ((before + after) / 2.0 - 0.5);
            let speed = self.length * (after - before) / TICK;
            *v = [v[0] + speed * angle.cos(), v[1] + speed * angle.sin()];
            before = after;
        }
    }
}

/// How far stroke `i` of a smooth line through the points turns: from the tangent at its start to the one at its end.
fn turn(points: &[Point], i: usize) -> f32 {
    let tangent = |k: usize| {
        let (a, b) = (points[k.saturating_sub(1)], points[(k + 1).min(points.len() - 1)]);
        (b[1] - a[1]).atan2(b[0] - a[0])
    };
    let angle = tangent(i + 1) - tangent(i);
    let wrapped = angle - TAU * (angle / TAU).round();
    wrapped.clamp(-2.2, 2.2)
}

/// The standard normal distribution function within 2e-4 (a logistic approximation: Bowling et al., 2009).
fn normal_cdf(z: f32) -> f32 {
    1.0 / (1.0 + (-(0.07056 * z * z * z + 1.5976 * z)).exp())
}

/// Writes a signature and photographs it.
fn picture(rng: &mut impl Rng, targets: &[Vec<Point>], hand: &Hand, stops: f32) -> GrayImage {
    let lean = |s: Sample| {
        let [x, y] = s.at;
        Sample { at: [hand.aspect * x + hand.slant * y, y + hand.slope * hand.aspect * x], ..s }
    };
    let paths: Vec<Vec<Sample>> =
        targets.iter().map(|t| movement(rng, t, hand, stops).into_iter().map(lean).collect()).collect();
    let ink = (30.0 + 25.0 * normal(rng).abs()).min(110.0);
    let paper = 250.0 - 8.0 * normal(rng).abs();
    let fill = rng.random_range(0.80..0.95);
    let shift = [symmetric(rng, 1.0), symmetric(rng, 1.0)];
    rasterise(&place(paths, fill, shift), hand.pen * HEIGHT as f32 / 64.0, ink, paper)
}

/// Scales the paths into the field (y down), so that they fill `fill` of it; `shift` in -1..1
/// moves them within what is left.
fn place(paths: Vec<Vec<Sample>>, fill: f32, shift: [f32; 2]) -> Vec<Vec<Sample>> {
    let field = [2.0 * HEIGHT as f32, HEIGHT as f32];
    let range = |k: usize| {
        let values = paths.iter().flatten().map(|s| s.at[k]);
        let low = values.clone().fold(f32::INFINITY, f32::min);
        (low, values.fold(f32::NEG_INFINITY, f32::max))
    };
    let (x, y) = (range(0), range(1));
    let extent = [(x.1 - x.0).max(0.1), (y.1 - y.0).max(0.1)];
    let scale = (fill * field[0] / extent[0]).min(fill * field[1] / extent[1]);
    let centre = [(x.0 + x.1) / 2.0, (y.0 + y.1) / 2.0];
    // The room around the strokes, less a margin for the pen.
    let unit = field[1] / 64.0;
    let room = [0, 1].map(|k| ((field[k] - scale * extent[k]) / 2.0 - 2.0 * unit).clamp(0.0, 8.0 * unit));
    let to_field = |s: Sample| Sample {
        at: [
            field[0] / 2.0 + scale * (s.at[0] - centre[0]) + shift[0] * room[0],
            field[1] / 2.0 - scale * (s.at[1] - centre[1]) + shift[1] * room[1],
        ],
        ..s
    };
    paths.into_iter().map(|path| apart(path.into_iter().map(to_field))).collect()
}

/// Leaves out positions that are less than 0.7 pixels from the one before: a slow pen has many.
fn apart(path: impl Iterator<Item = Sample>) -> Vec<Sample> {
    let mut kept: Vec<Sample> = Vec::new();
    for sample in path {
        if kept.last().is_none_or(|l| (sample.at[0] - l.at[0]).hypot(sample.at[1] - l.at[1]) >= 0.7) {
            kept.push(sample);
        }
    }
    kept
}

/// How a pen that moves at `speed` writes: the line's width as a share of the pen's, and how dark it is.
fn trace(speed: f32) -> (f32, f32) {
    let slow = 1.0 / (1.0 + speed / 8.0);
    (0.65 + 0.6 * slow, 0.75 + 0.25 * slow)
}

/// Each pixel takes the darkest piece of line over it, with an edge one pixel soft.
fn rasterise(paths: &[Vec<Sample>], pen: f32, ink: f32, paper: f32) -> GrayImage {
    let (width, height) = (2 * HEIGHT, HEIGHT);
    let mut cover = vec![0f32; (width * height) as usize];
    for piece in paths.iter().flat_map(|path| path.windows(2)) {
        let (a, b) = (piece[0].at, piece[1].at);
        let (share, dark) = trace(piece[0].speed);
        let half = pen * share / 2.0;
        let reach = half + 1.0;
        let span = |k: usize, end: u32| {
            let low = (a[k].min(b[k]) - reach).floor().clamp(0.0, end as f32) as u32;
            low..(a[k].max(b[k]) + reach).ceil().clamp(0.0, end as f32) as u32
        };
        for y in span(1, height) {
            for x in span(0, width) {
                let away = distance([x as f32 + 0.5, y as f32 + 0.5], a, b);
                let here = &mut cover[(y * width + x) as usize];
                *here = here.max(dark * (half + 0.5 - away).clamp(0.0, 1.0));
            }
        }
    }
    GrayImage::from_fn(width, height, |x, y| {
        Luma([(paper + cover[(y * width + x) as usize] * (ink - paper)).round() as u8])
    })
}

/// The distance from a point to a piece of line.
fn distance(p: Point, a: Point, b: Point) -> f32 {
    let (along, to) = ([b[0] - a[0], b[1] - a[1]], [p[0] - a[0], p[1] - a[1]]);
    let length = along[0] * along[0] + along[1] * along[1];
    let t = ((to[0] * along[0] + to[1] * along[1]) / length.max(1e-12)).clamp(0.0, 1.0);
    (to[0] - t * along[0]).hypot(to[1] - t * along[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_depends_on_its_numbers_alone() {
        let draw = |seed, identity, index| Signer::new(seed, identity).draw(index);
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        assert_ne!(draw(1, 2, 3), draw(1, 2, 4));
        assert_ne!(draw(1, 2, 3), draw(1, 3, 3));
        assert_ne!(draw(1, 2, 3), draw(2, 2, 3));
        let forge = |identity, forger, index| Signer::new(1, identity).forged_by(&Signer::new(1, forger), index);
        assert_eq!(forge(2, 5, 3), forge(2, 5, 3));
        assert_ne!(forge(2, 5, 3), forge(2, 6, 3), "the forger's hand shows");
        assert_ne!(forge(2, 5, 3), forge(2, 5, 4));
        assert_ne!(forge(2, 5, 3), draw(1, 2, 3));
    }

    #[test]
    fn every_drawing_has_ink_and_mostly_paper() {
        let check = |identity: u64, drawing: GrayImage| {
            let dark = drawing.iter().filter(|&&v| v < 128).count() as f32 / drawing.len() as f32;
            assert!((0.01..0.4).contains(&dark), "{identity}: {dark}");
        };
        for identity in 0..50 {
            let signer = Signer::new(0, identity);
            check(identity, signer.draw(0));
            check(identity, signer.forge(0));
        }
    }

    #[test]
    fn a_stroke_walks_from_its_first_point_to_its_second_along_an_arc() {
        for turn in [0.0, 0.7, -2.0] {
            let ends = [[1.0, 2.0], [4.0, 6.0]];
            let stroke = Stroke::new(&ends, turn, 0.1, 0.25, 0.12);
            let mut velocity = vec![[0.0; 2]; 400];
            stroke.add_to(&mut velocity);
            let walked: Vec<f32> = [0, 1].map(|k| velocity.iter().map(|v| v[k] * TICK).sum()).to_vec();
            let length: f32 = velocity.iter().map(|v| v[0].hypot(v[1]) * TICK).sum();
            assert!((walked[0] - 3.0).abs() < 0.02 && (walked[1] - 4.0).abs() < 0.02, "{walked:?}");
            let half = (turn / 2.0f32).abs().max(1e-3);
            assert!((length - 5.0 * half / half.sin()).abs() < 1e-3, "{length}");
            // The stroke is fast at first and slow in the end: the peak comes before the median.
            let fastest = (0..400)
                .max_by(|&i, &j| velocity[i][0].hypot(velocity[i][1]).total_cmp(&velocity[j][0].hypot(velocity[j][1])));
            assert!((fastest.unwrap() as f32 * TICK - 0.1) < 0.12);
        }
    }

    #[test]
    fn a_copying_hand_takes_longer() {
        // The same targets by a fast hand and by a slow one, as a forger's: its path has more ticks, and less length
        // per tick.
        let ticks = |beat: f32| {
            let rng = &mut stream(0, Purpose::Drawing, 0, 0);
            let hand = Hand { beat, ..Signer::new(0, 0).hand };
            movement(rng, &[[0.0, 0.0], [1.0, 2.0], [2.0, 0.0], [3.0, 1.0]], &hand, 0.0).len()
        };
        assert!(ticks(0.2) > 2 * ticks(0.08));
    }
}
