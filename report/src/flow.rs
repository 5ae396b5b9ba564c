//! Which blocks of a kernel follow each other: dominators, natural loops, and what is entered for rare cases alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::code::{Block, Instruction, is_constant};

/// Blocks by number.
pub type Blocks = BTreeSet<usize>;

/// What leads to rare work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// A vote of the warp, such as `__any_sync`: no thread decides alone.
    Vote,
    /// That threads of the warp have parted where the compiler expects them together.
    Parted,
}

/// The control flow of a kernel.
pub struct Flow<'a> {
    /// The kernel's blocks.
    pub blocks: Vec<Block<'a>>,
    /// Those that can be reached from the first.
    pub reachable: Blocks,
    predecessors: Vec<Vec<usize>>,
    /// The block that each block's ways from the first all end with; its own number for the first and for what is not reached.
    immediate: Vec<usize>,
    /// Places in a walk in which blocks come before what follows them, but for loops.
    order: Vec<usize>,
}

/// A natural loop: all blocks from which a branch back to its header is reached without passing the header.
#[derive(Clone, Debug)]
pub struct Loop {
    /// The block that dominates all others of it.
    pub header: usize,
    /// All blocks of it, those of the loops inside too.
    pub blocks: Blocks,
    /// The blocks that branch back to the header.
    pub latches: Vec<usize>,
    /// The smallest loop that this one is inside of, by its place in the list.
    pub parent: Option<usize>,
}

impl<'a> Flow<'a> {
    /// Of these blocks, the first of which is where the kernel starts.
    #[must_use]
    pub fn new(blocks: Vec<Block<'a>>) -> Self {
        let mut predecessors = vec![Vec::new(); blocks.len()];
        let (mut done, mut seen) = (Vec::new(), Blocks::from([0]));
        let mut path = vec![(0, 0)];
        while let Some((block, next)) = path.pop() {
            match blocks[block].successors.get(next) {
                None => done.push(block),
                Some(&successor) => {
                    path.push((block, next + 1));
                    predecessors[successor].push(block);
                    if seen.insert(successor) {
                        path.push((successor, 0));
                    }
                }
            }
        }
        done.reverse();
        let mut order = vec![usize::MAX; blocks.len()];
        for (place, block) in done.iter().enumerate() {
            order[*block] = place;
        }
        // Cooper, Harvey and Kennedy: the nearest block that the ways to all predecessors have in common, until nothing changes.
        let mut immediate: Vec<Option<usize>> = vec![None; blocks.len()];
        immediate[0] = Some(0);
        loop {
            let mut changed = false;
            for &block in done.iter().skip(1) {
                let mut common: Option<usize> = None;
                for &before in predecessors[block].iter().filter(|before| immediate[**before].is_some()) {
                    common = Some(match common {
                        None => before,
                        Some(other) => {
                            let (mut a, mut b) = (before, other);
                            while a != b {
                                let later = if order[a] > order[b] { &mut a } else { &mut b };
                                *later = immediate[*later].expect("set before");
                            }
                            a
                        }
                    });
                }
                if immediate[block] != common {
                    immediate[block] = common;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        let immediate = immediate.iter().enumerate().map(|(block, dominator)| dominator.unwrap_or(block)).collect();
        Self { blocks, reachable: seen, predecessors, immediate, order }
    }

    /// Whether every way from the first block to `block` passes `dominator`.
    #[must_use]
    pub fn dominates(&self, dominator: usize, mut block: usize) -> bool {
        while self.order[block] > self.order[dominator] && self.immediate[block] != block {
            block = self.immediate[block];
        }
        block == dominator
    }

    /// The natural loops, an outer one before those inside; loops of one header are one.
    #[must_use]
    pub fn loops(&self) -> Vec<Loop> {
        let mut found: BTreeMap<usize, Loop> = BTreeMap::new();
        for &latch in &self.reachable {
            for &header in self.blocks[latch].successors.iter().filter(|header| self.dominates(**header, latch)) {
                let new = || Loop { header, blocks: Blocks::from([header]), latches: Vec::new(), parent: None };
                let of_header = found.entry(header).or_insert_with(new);
                of_header.latches.push(latch);
                let mut rest = vec![latch];
                while let Some(block) = rest.pop() {
                    if of_header.blocks.insert(block) {
                        rest.extend(&self.predecessors[block]);
                    }
                }
            }
        }
        let mut loops: Vec<Loop> = found.into_values().collect();
        loops.sort_by_key(|l| (self.blocks[l.header].address(), std::cmp::Reverse(l.blocks.len())));
        let around = |inner: usize| {
            let others =
                (0..loops.len()).filter(|&outer| outer != inner && loops[outer].blocks.contains(&loops[inner].header));
            others
                .filter(|&outer| loops[inner].blocks.is_subset(&loops[outer].blocks))
                .min_by_key(|&o| loops[o].blocks.len())
        };
        let parents: Vec<_> = (0..loops.len()).map(around).collect();
        for (one, parent) in loops.iter_mut().zip(parents) {
            one.parent = parent;
        }
        loops
    }

    /// The blocks of `region` that are entered from `header` for rare work alone, with what leads there: all that is reached no
    /// more without a branch of that kind.
    #[must_use]
    pub fn rare(&self, header: usize, region: &Blocks) -> BTreeMap<usize, Guard> {
        let mut rare = BTreeMap::new();
        let parted = |block: &Block| block.last().is_for_parted_warps();
        for &block in region.iter().filter(|block| parted(&self.blocks[**block])) {
            let only = self.only_by(header, region, (block, self.blocks[block].successors[0]));
            rare.extend(only.into_iter().map(|block| (block, Guard::Parted)));
        }
        // A vote may have been taken by such blocks too: they are not asked.
        let out_of_the_way: Blocks = rare.keys().copied().collect();
        for &block in region.iter().filter(|block| self.blocks[**block].decides && !parted(&self.blocks[**block])) {
            if !self.is_by_vote(block, &out_of_the_way) {
                continue;
            }
            let sides = self.blocks[block].successors.iter().map(|&side| self.only_by(header, region, (block, side)));
            let mut sides: Vec<Blocks> = sides.filter(|only| !only.is_empty()).collect();
            // Where both sides have work of their own, neither is known to be the rare one.
            if sides.len() == 1 {
                rare.extend(sides.remove(0).into_iter().map(|block| (block, Guard::Vote)));
            }
        }
        rare
    }

    /// The parts that some blocks fall into, if steps between them alone join them.
    #[must_use]
    pub fn connected(&self, blocks: &Blocks) -> Vec<Blocks> {
        let (mut rest, mut parts) = (blocks.clone(), Vec::new());
        while let Some(first) = rest.pop_first() {
            let (mut part, mut next) = (Blocks::from([first]), vec![first]);
            while let Some(block) = next.pop() {
                for &near in self.blocks[block].successors.iter().chain(&self.predecessors[block]) {
                    if rest.remove(&near) {
                        part.insert(near);
                        next.push(near);
                    }
                }
            }
            parts.push(part);
        }
        parts
    }

    /// The blocks of `region` that cannot be reached from `header` within it but by this step.
    fn only_by(&self, header: usize, region: &Blocks, step: (usize, usize)) -> Blocks {
        let reached = |without: Option<(usize, usize)>| {
            let (mut seen, mut rest) = (Blocks::from([header]), vec![header]);
            while let Some(block) = rest.pop() {
                for &next in &self.blocks[block].successors {
                    if without != Some((block, next)) && region.contains(&next) && seen.insert(next) {
                        rest.push(next);
                    }
                }
            }
            seen
        };
        let without = reached(Some(step));
        reached(None).difference(&without).copied().collect()
    }

    /// Whether the branch at the end of a block depends on votes of the warp and on nothing else.
    fn is_by_vote(&self, block: usize, ignored: &Blocks) -> bool {
        let conditions = self.blocks[block].last().conditions();
        let end = self.blocks[block].instructions.len() - 1;
        let trace =
            |condition: &&str| self.comes_of_votes(register(condition), block, end, ignored, &mut BTreeSet::new());
        !conditions.is_empty() && conditions.iter().all(trace)
    }

    /// Whether what `name` holds before instruction `end` of a block was made from votes and constants.
    fn comes_of_votes(
        &self,
        name: &str,
        block: usize,
        end: usize,
        ignored: &Blocks,
        seen: &mut BTreeSet<(String, usize)>,
    ) -> bool {
        let before = &self.blocks[block].instructions[..end];
        if let Some(at) = before.iter().rposition(|instruction| written(instruction).contains(&name)) {
            let instruction = &before[at];
            if matches!(instruction.base(), "VOTE" | "VOTEU") {
                return true;
            }
            let passes_on = matches!(
                instruction.base(),
                "ISETP"
                    | "UISETP"
                    | "PLOP3"
                    | "UPLOP3"
                    | "LOP3"
                    | "ULOP3"
                    | "MOV"
                    | "UMOV"
                    | "R2UR"
                    | "POPC"
                    | "UPOPC"
                    | "FLO"
                    | "SEL"
            ) || (instruction.base() == "IMAD" && instruction.has("MOV"));
            let sources: Vec<&str> = instruction.operands[written(instruction).len()..]
                .iter()
                .filter(|operand| is_register(operand) && !is_constant(operand))
                .map(|operand| register(operand))
                .collect();
            let guarded = instruction.guard.is_some_and(|guard| !is_constant(guard));
            return passes_on
                && !guarded
                && !sources.is_empty()
                && sources.iter().all(|source| self.comes_of_votes(source, block, at, ignored, seen));
        }
        if !seen.insert((name.into(), block)) {
            return true; // around a loop: the other ways decide
        }
        let mut before = self.predecessors[block].iter().filter(|before| !ignored.contains(before)).peekable();
        before.peek().is_some()
            && before.all(|&before| {
                let end = self.blocks[before].instructions.len();
                self.comes_of_votes(name, before, end, ignored, seen)
            })
    }
}

/// An operand's register or predicate, without signs and notes on its use.
fn register(operand: &str) -> &str {
    let bare = operand.trim_start_matches(['!', '-', '~', '|']);
    bare.split(['.', '|']).next().unwrap_or_default()
}

/// Whether an operand is a register or a predicate.
fn is_register(operand: &str) -> bool {
    let bare = register(operand);
    let rest = bare.strip_prefix('U').unwrap_or(bare).strip_prefix(['R', 'P']);
    rest.is_some_and(|rest| {
        rest == "Z" || rest == "T" || (!rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// What an instruction writes: its first operand, and of those that write a predicate and its opposite, or a register and a
/// predicate, the second too.
fn written<'a>(instruction: &Instruction<'a>) -> Vec<&'a str> {
    let writes_predicates = |operand: &&str| register(operand).trim_start_matches('U').starts_with('P');
    let count = match instruction.base() {
        "STG" | "STS" | "STL" | "ST" | "RED" | "REDG" | "BRA" | "BSSY" | "BSYNC" | "EXIT" | "BAR" => 0,
        "ISETP" | "UISETP" | "FSETP" | "DSETP" | "HSETP2" | "PLOP3" | "UPLOP3" => 2,
        "VOTE" | "VOTEU" if !instruction.operands.first().is_some_and(writes_predicates) => 2,
        "VOTE" | "VOTEU" => 1,
        _ if instruction.operands.first().is_some_and(writes_predicates) => 2,
        _ => 1,
    };
    instruction.operands.iter().take(count).map(|operand| register(operand)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code;

    fn flow(text: &str) -> Flow<'_> {
        Flow::new(code::blocks(text).unwrap())
    }

    const NESTED: &str = "
        /*0000*/ MOV R1, RZ ;
.L_1:   
        /*0010*/ @P0 BRA `(.L_2) ;
        /*0020*/ FADD R2, R2, R3 ;
.L_2:
        /*0030*/ HMMA R4, R5, R6, R4 ;
        /*0040*/ @P1 BRA `(.L_2) ;
        /*0050*/ @P2 BRA `(.L_1) ;
        /*0060*/ EXIT ;
.L_9:
        /*0070*/ BRA `(.L_2) ;
";

    #[test]
    fn loops_are_found_with_their_parents_and_what_is_never_reached_counts_nothing() {
        let flow = flow(NESTED);
        assert_eq!(flow.reachable, Blocks::from([0, 1, 2, 3, 4, 5]));
        assert!(flow.dominates(1, 3) && flow.dominates(0, 5) && !flow.dominates(2, 3));
        let loops = flow.loops();
        let found: Vec<_> = loops.iter().map(|l| (l.header, l.blocks.clone(), l.latches.clone(), l.parent)).collect();
        let outer = (1, Blocks::from([1, 2, 3, 4]), vec![4], None);
        assert_eq!(found, [outer, (3, Blocks::from([3]), vec![3], Some(0))]);
    }

    /// A loop with a branch whose predicate is made by `by`, around a block.
    fn guarded(by: &str, branch: &str) -> BTreeMap<usize, Guard> {
        let text = format!(
            "
        /*0000*/ MOV R1, RZ ;
.L_1:
        /*0010*/ FADD R2, R2, R3 ;
        {by}
        /*0060*/ {branch} `(.L_2) ;
        /*0070*/ LDG.E R7, [R8] ;
        /*0080*/ @P5 BRA `(.L_2) ;
        /*0090*/ STG.E [R8], R7 ;
.L_2:
        /*00a0*/ @P6 BRA `(.L_1) ;
        /*00b0*/ EXIT ;"
        );
        let flow = flow(&text);
        let loops = flow.loops();
        flow.rare(loops[0].header, &loops[0].blocks)
    }

    #[test]
    fn what_a_vote_alone_leads_to_is_rare() {
        let votes = [
            ("/*0020*/ VOTE.ANY P0, P1 ;", "@!P0 BRA"),
            ("/*0020*/ VOTEU.ANY UP0, P1 ;", "BRA.U !UP0,"),
            ("/*0020*/ VOTE.ANY R6, PT, P1 ;\n/*0030*/ ISETP.NE.AND P0, PT, R6, RZ, PT ;", "@!P0 BRA"),
            (
                "/*0020*/ VOTEU.ANY UR6, UPT, P1 ;\n/*0030*/ UISETP.NE.AND UP1, UPT, UR6, URZ, UPT ;\n/*0040*/ PLOP3.LUT P0, PT, PT, PT, UP1, 0x80, 0x0 ;",
                "@!P0 BRA",
            ),
        ];
        for (by, branch) in votes {
            assert_eq!(guarded(by, branch), BTreeMap::from([(2, Guard::Vote), (3, Guard::Vote)]), "{by}");
        }
    }

    #[test]
    fn what_a_thread_decides_is_not() {
        let others = [
            ("/*0020*/ FSETP.GT.AND P0, PT, R2, R3, PT ;", "@!P0 BRA"),
            ("/*0020*/ VOTE.ANY P0, P1 ;\n/*0030*/ PLOP3.LUT P0, PT, P0, P2, PT, 0x80, 0x0 ;", "@!P0 BRA"),
            ("/*0020*/ VOTE.ANY P0, P1 ;\n/*0030*/ ISETP.NE.AND P0, PT, R9, RZ, PT ;", "@!P0 BRA"),
            ("/*0020*/ VOTE.ANY P0, P1 ;", "@!P0 BRA P3,"),
            ("/*0020*/ VOTE.ANY P0, P1 ;\n/*0030*/ @P4 ISETP.NE.AND P0, PT, R9, RZ, PT ;", "@!P0 BRA"),
            ("/*0020*/ UISETP.NE.AND UP0, UPT, UR6, URZ, UPT ;", "BRA.U !UP0,"),
        ];
        for (by, branch) in others {
            assert_eq!(guarded(by, branch), BTreeMap::new(), "{by}");
        }
    }

    #[test]
    fn a_vote_that_parted_warps_take_elsewhere_is_still_one() {
        let flow = flow(
            "
        /*0000*/ MOV R1, RZ ;
.L_1:
        /*0010*/ BRA.DIV UR4, `(.L_8) ;
        /*0020*/ VOTE.ANY R6, PT, P1 ;
.L_2:
        /*0030*/ ISETP.NE.AND P0, PT, R6, RZ, PT ;
        /*0040*/ @P0 BRA `(.L_7) ;
.L_3:
        /*0050*/ @P6 BRA `(.L_1) ;
        /*0060*/ EXIT ;
.L_7:
        /*0070*/ LDG.E R7, [R8] ;
        /*0080*/ BRA `(.L_3) ;
.L_8:
        /*0090*/ CALL.REL.NOINC `($__internal_8_$__cuda_sm70_votesync_ballot) ;
        /*00a0*/ MOV R6, R9 ;
        /*00b0*/ BRA `(.L_2) ;",
        );
        let loops = flow.loops();
        let rare = flow.rare(loops[0].header, &loops[0].blocks);
        assert_eq!(rare, BTreeMap::from([(6, Guard::Vote), (7, Guard::Parted)]));
    }
}
