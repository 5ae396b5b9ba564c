//! Generated handwriting: signature identities made of splines. No person's signature is in it.
//!
//! An identity is a plan, drawn once: a capital, a few letters, perhaps a flourish under them, each
//! a list of control points, and a hand (slant, width, pen, slope of the line). A drawing of it
//! is that plan written anew: every control point moves a little, the letters' widths and heights
//! drift, the slant, size and pen change, a flourish is sometimes left out. Strokes are Catmull-Rom
//! splines through the points.

use crate::random::{Purpose, normal, stream, symmetric};
use image::{GrayImage, Luma};
use rand::Rng;

/// Drawings are `2 * HEIGHT x HEIGHT`, the shape of a signature field.
pub const HEIGHT: u32 = 64;

type Point = [f32; 2];

/// The styles a letter is made from; x runs over the letter, y from 0 (line) up to 1 (small letter),
/// 2 (ascender) and down to -1 (descender).
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

/// The capitals, as separate larger strokes.
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

/// One person's way to sign.
pub struct Signer {
    seed: u64,
    identity: u64,
    strokes: Vec<Vec<Point>>,
    /// How many of the strokes, at the end, may be left out.
    optional: usize,
    slant: f32,
    slope: f32,
    aspect: f32,
    pen: f32,
    unsteadiness: f32,
}

impl Signer {
    /// The signer `identity` of this seed.
    pub fn new(seed: u64, identity: u64) -> Self {
        let rng = &mut stream(seed, Purpose::Style, identity, 0);
        let mut word = Vec::new();
        let mut x = 0.0;
        let own = |rng: &mut _, shape: &[Point], size: f32, x: f32, width: f32| -> Vec<Point> {
            let point =
                |p: &Point, rng: &mut _| [x + (p[0] + 0.12 * normal(rng)) * width, (p[1] + 0.15 * normal(rng)) * size];
            shape.iter().map(|p| point(p, rng)).collect()
        };
        let capital = CAPITALS[rng.random_range(0..CAPITALS.len())];
        let width = rng.random_range(0.9..2.0);
        let size = rng.random_range(0.8..1.5);
        let first = own(rng, capital, size, x, width);
        x += width * rng.random_range(0.7..1.1);
        for _ in 0..rng.random_range(3..8) {
            let width = rng.random_range(0.5..1.3);
            let size = rng.random_range(0.6..1.3);
            let shape = LETTERS[rng.random_range(0..LETTERS.len())];
            word.extend(own(rng, shape, size, x, width));
            x += width;
        }
        let mut strokes = vec![first, word];
        let optional = rng.random_range(0..3);
        for _ in 0..optional {
            let (from, to) = (x * rng.random_range(-0.1..0.5), x * rng.random_range(0.6..1.2));
            let y = [-1.0, -0.8, 0.5, 2.2][rng.random_range(0..4)] + 0.3 * normal(rng);
            let bend = 0.6 * normal(rng);
            let middle = [(from + to) / 2.0, y + bend];
            strokes.push(vec![[from, y], middle, [to, y + 0.4 * normal(rng)]]);
        }
        Self {
            seed,
            identity,
            strokes,
            optional,
            slant: 0.25 + 0.3 * normal(rng),
            slope: 0.06 * normal(rng),
            aspect: rng.random_range(0.8..1.3),
            pen: rng.random_range(1.0..1.9),
            unsteadiness: rng.random_range(0.05..0.12),
        }
    }

    /// The drawing number `index`: dark ink on light paper.
    pub fn draw(&self, index: u64) -> GrayImage {
        let rng = &mut stream(self.seed, Purpose::Drawing, self.identity, index);
        let slant = self.slant + 0.08 * normal(rng);
        let slope = self.slope + 0.04 * normal(rng);
        let aspect = self.aspect * (1.0 + 0.08 * normal(rng));
        // Widths and heights drift along the line: slow waves over x.
        let wave = [0.12 * normal(rng), rng.random_range(0.5..1.2), symmetric(rng, 3.0)];
        let lift = [0.15 * normal(rng), rng.random_range(0.4..1.0), symmetric(rng, 3.0)];
        let mut strokes = Vec::new();
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
                let y = y + 1.3 * self.unsteadiness * normal(rng);
                [aspect * x + slant * y, y + slope * aspect * x]
            });
            strokes.push(spline(&written.collect::<Vec<_>>()));
        }
        let ink = 30.0 + 25.0 * normal(rng).abs();
        let paper = 250.0 - 8.0 * normal(rng).abs();
        let pen = (self.pen * (1.0 + 0.15 * normal(rng))).max(0.8);
        let fill = rng.random_range(0.80..0.95);
        let shift = [symmetric(rng, 1.0), symmetric(rng, 1.0)];
        rasterise(&place(strokes, fill, shift), pen, ink.min(110.0), paper)
    }
}

/// Catmull-Rom, ends repeated, eight pieces between two points.
fn spline(points: &[Point]) -> Vec<Point> {
    let at = |i: isize| points[i.clamp(0, points.len() as isize - 1) as usize];
    let mut curve = Vec::with_capacity(points.len() * 8);
    for i in 0..points.len() as isize - 1 {
        let [a, b, c, d] = [at(i - 1), at(i), at(i + 1), at(i + 2)];
        for piece in 0..8 {
            let t = piece as f32 / 8.0;
            let blend = |k: usize| {
                0.5 * (2.0 * b[k]
                    + (c[k] - a[k]) * t
                    + (2.0 * a[k] - 5.0 * b[k] + 4.0 * c[k] - d[k]) * t * t
                    + (3.0 * b[k] - a[k] - 3.0 * c[k] + d[k]) * t * t * t)
            };
            curve.push([blend(0), blend(1)]);
        }
    }
    curve.push(at(points.len() as isize - 1));
    curve
}

/// Scales the strokes into the field (y down), so that they fill `fill` of it; `shift` in -1..1
/// moves them within what is left.
fn place(strokes: Vec<Vec<Point>>, fill: f32, shift: [f32; 2]) -> Vec<Vec<Point>> {
    let field = [2.0 * HEIGHT as f32, HEIGHT as f32];
    let range = |k: usize| {
        let values = strokes.iter().flatten().map(|p| p[k]);
        let low = values.clone().fold(f32::INFINITY, f32::min);
        (low, values.fold(f32::NEG_INFINITY, f32::max))
    };
    let (x, y) = (range(0), range(1));
    let extent = [(x.1 - x.0).max(0.1), (y.1 - y.0).max(0.1)];
    let scale = (fill * field[0] / extent[0]).min(fill * field[1] / extent[1]);
    let centre = [(x.0 + x.1) / 2.0, (y.0 + y.1) / 2.0];
    // What is left around the strokes, less a margin for the pen.
    let room = [0, 1].map(|k| ((field[k] - scale * extent[k]) / 2.0 - 2.0).clamp(0.0, 8.0));
    let to_field = |p: Point| {
        [
            field[0] / 2.0 + scale * (p[0] - centre[0]) + shift[0] * room[0],
            field[1] / 2.0 - scale * (p[1] - centre[1]) + shift[1] * room[1],
        ]
    };
    strokes.into_iter().map(|s| s.into_iter().map(to_field).collect()).collect()
}

/// Each pixel takes the ink of the nearest piece of line, with an edge one pixel soft.
fn rasterise(strokes: &[Vec<Point>], pen: f32, ink: f32, paper: f32) -> GrayImage {
    let (width, height) = (2 * HEIGHT, HEIGHT);
    let mut cover = vec![0f32; (width * height) as usize];
    for piece in strokes.iter().flat_map(|stroke| stroke.windows(2)) {
        let (a, b) = (piece[0], piece[1]);
        let reach = pen / 2.0 + 1.0;
        let span = |k: usize, end: u32| {
            let low = (a[k].min(b[k]) - reach).floor().clamp(0.0, end as f32) as u32;
            low..(a[k].max(b[k]) + reach).ceil().clamp(0.0, end as f32) as u32
        };
        for y in span(1, height) {
            for x in span(0, width) {
                let away = distance([x as f32 + 0.5, y as f32 + 0.5], a, b);
                let here = &mut cover[(y * width + x) as usize];
                *here = here.max((pen / 2.0 + 0.5 - away).clamp(0.0, 1.0));
            }
        }
    }
    GrayImage::from_fn(width, height, |x, y| {
        Luma([(paper + cover[(y * width + x) as usize] * (ink - paper)).round() as u8])
    })
}

/// From a point to a piece of line.
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
    }

    #[test]
    fn every_drawing_has_ink_and_mostly_paper() {
        for identity in 0..50 {
            let drawing = Signer::new(0, identity).draw(0);
            let dark = drawing.iter().filter(|&&v| v < 128).count() as f32 / drawing.len() as f32;
            assert!((0.01..0.4).contains(&dark), "{identity}: {dark}");
        }
    }

    #[test]
    fn the_spline_passes_through_its_points() {
        let points = [[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]];
        let curve = spline(&points);
        assert_eq!((curve[0], curve[8], curve[16]), (points[0], points[1], points[2]));
        assert_eq!(distance([0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]), 1.0);
    }
}
