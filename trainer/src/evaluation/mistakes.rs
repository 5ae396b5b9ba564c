//! The pairs that an encoder finds hardest: impostors that are near, genuine pairs that are far.

use rayon::prelude::*;

/// Two images and their distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The first image.
    pub first: usize,
    /// The second image.
    pub second: usize,
    /// The distance between the two.
    pub distance: f32,
}

/// The hardest pairs, each image at most once: one odd image would otherwise fill the list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hardest {
    /// Impostor pairs, the nearest first.
    pub impostor: Vec<Pair>,
    /// Genuine pairs, the farthest first.
    pub genuine: Vec<Pair>,
}

/// At most `count` pairs of each kind: the hardest of every image's nearest impostor and farthest genuine partner.
pub fn hardest(identity: &[usize], distance: impl Fn(usize, usize) -> f32 + Sync, count: usize) -> Hardest {
    let of_row = |i: usize| {
        let (mut nearest, mut farthest): (Option<Pair>, Option<Pair>) = (None, None);
        for j in (0..identity.len()).filter(|&j| j != i) {
            let pair = Pair { first: i.min(j), second: i.max(j), distance: distance(i, j) };
            if identity[i] != identity[j] {
                if nearest.is_none_or(|best| pair.distance < best.distance) {
                    nearest = Some(pair);
                }
            } else if farthest.is_none_or(|worst| pair.distance > worst.distance) {
                farthest = Some(pair);
            }
        }
        (nearest, farthest)
    };
    let rows: Vec<_> = (0..identity.len()).into_par_iter().map(of_row).collect();
    let mut impostor: Vec<Pair> = rows.iter().filter_map(|row| row.0).collect();
    let mut genuine: Vec<Pair> = rows.iter().filter_map(|row| row.1).collect();
    impostor.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    genuine.sort_by(|a, b| b.distance.total_cmp(&a.distance));
    Hardest { impostor: once_each(&impostor, count), genuine: once_each(&genuine, count) }
}

/// The nearest pairs of an image (`first`) and a forgery of its identity (`second`), the nearest first.
pub fn hardest_forgeries(
    identity: &[usize],
    forged: &[usize],
    distance: impl Fn(usize, usize) -> f32 + Sync,
    count: usize,
) -> Vec<Pair> {
    let of_forgery = |second: usize| {
        let own = (0..identity.len()).filter(|&first| identity[first] == forged[second]);
        let pairs = own.map(|first| Pair { first, second, distance: distance(first, second) });
        pairs.min_by(|a, b| a.distance.total_cmp(&b.distance))
    };
    let mut pairs: Vec<Pair> = (0..forged.len()).into_par_iter().filter_map(of_forgery).collect();
    pairs.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    let mut taken = std::collections::HashSet::new();
    pairs.into_iter().filter(|pair| taken.insert(pair.first)).take(count).collect()
}

/// The first `count` pairs that have no image of an earlier one.
pub fn once_each(sorted: &[Pair], count: usize) -> Vec<Pair> {
    let mut taken = std::collections::HashSet::new();
    let mut fresh = |pair: &&Pair| {
        let new = !taken.contains(&pair.first) && !taken.contains(&pair.second);
        if new {
            taken.extend([pair.first, pair.second]);
        }
        new
    };
    sorted.iter().filter(&mut fresh).take(count).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Identity A at 0, 1 and 10; B at 1.5 and 20; C at 20.1.
    const AT: [f32; 6] = [0.0, 1.0, 10.0, 1.5, 20.0, 20.1];
    const IDENTITY: [usize; 6] = [0, 0, 0, 1, 1, 2];

    fn distance(i: usize, j: usize) -> f32 {
        (AT[i] - AT[j]).abs()
    }

    fn ends(pairs: &[Pair]) -> Vec<(usize, usize)> {
        pairs.iter().map(|p| (p.first, p.second)).collect()
    }

    #[test]
    fn the_hardest_pairs_come_first_and_no_image_twice() {
        let hardest = hardest(&IDENTITY, distance, 9);
        // Nearest impostors: B-C at 0.1, A(1)-B at 0.5; A(0) has only B(1.5), which is taken.
        assert_eq!(ends(&hardest.impostor), [(4, 5), (1, 3)]);
        // Farthest genuine pairs: B-B at 18.5, A(0)-A(10) at 10; A(1) is then alone.
        assert_eq!(ends(&hardest.genuine), [(3, 4), (0, 2)]);
        assert_eq!(super::hardest(&IDENTITY, distance, 1).impostor.len(), 1);
    }

    #[test]
    fn a_forgery_is_compared_with_the_images_it_imitates() {
        // Forgeries of A at 0.9 and at 9, of B at 1.
        let forged_at = [0.9f32, 9.0, 1.0];
        let pairs = hardest_forgeries(&IDENTITY, &[0, 0, 1], |i, j| (AT[i] - forged_at[j]).abs(), 2);
        assert_eq!(ends(&pairs), [(1, 0), (3, 2)]);
    }
}
