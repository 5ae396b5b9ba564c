//! A kernel's machine code: its instructions, and the basic blocks that branches divide them into.

use std::collections::BTreeMap;

/// An instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction<'a> {
    /// Bytes from the kernel's first instruction.
    pub address: u64,
    /// The predicate under which it takes place, such as `P0` or `!UP1`.
    pub guard: Option<&'a str>,
    /// Its name with all suffixes, such as `LDG.E.128`.
    pub name: &'a str,
    /// What stands after the name.
    pub operands: Vec<&'a str>,
    /// The labels that a branch by a table may reach.
    table: Vec<&'a str>,
}

impl<'a> Instruction<'a> {
    /// The name without suffixes.
    #[must_use]
    pub fn base(&self) -> &'a str {
        self.name.split('.').next().unwrap_or_default()
    }

    /// Whether a suffix of the name is this one.
    #[must_use]
    pub fn has(&self, suffix: &str) -> bool {
        self.name.split('.').skip(1).any(|part| part == suffix)
    }

    /// Reads a line such as `/*0200*/  @P0 IMAD.IADD R4, R4, 0x1, -R7 ;`.
    fn parse(line: &'a str) -> Option<Self> {
        let (address, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
        let address = u64::from_str_radix(address, 16).ok()?;
        let (rest, _) = rest.rsplit_once(';')?;
        let (rest, table) = match rest.split_once("(*\"BRANCH_TARGETS ") {
            None => (rest, Vec::new()),
            Some((rest, labels)) => (rest, labels.trim_end_matches("\"*)").split(',').map(str::trim).collect()),
        };
        // Newer architectures have notes on scheduling there, such as `&req={2} ?trans5`.
        let rest = rest.split(['&', '?']).next().unwrap_or_default().trim();
        let (guard, rest) = match rest.strip_prefix('@') {
            None => (None, rest),
            Some(rest) => rest.split_once(char::is_whitespace).map(|(guard, rest)| (Some(guard), rest.trim_start()))?,
        };
        let (name, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let starts_as_names_do = name.starts_with(|c: char| c.is_ascii_uppercase());
        let operands = operands.split(',').map(str::trim).filter(|operand| !operand.is_empty()).collect();
        starts_as_names_do.then_some(Self { address, guard, name, operands, table })
    }

    /// The label that a branch names.
    fn target(&self) -> Option<&'a str> {
        let named = self.operands.iter().find_map(|operand| operand.strip_prefix("`(")?.strip_suffix(')'));
        named.filter(|label| label.starts_with(".L_"))
    }

    /// Whether nothing but what it branches to follows, or the end. A call of a label of the kernel itself is a branch: nothing
    /// returns from there.
    fn ends_a_block(&self) -> bool {
        matches!(self.base(), "BRA" | "BRX" | "BRXU" | "JMP" | "JMX" | "JMXU" | "EXIT" | "RET" | "KILL")
            || (self.base() == "CALL" && self.target().is_some())
    }

    /// The predicates and registers that decide whether a branch is taken.
    #[must_use]
    pub fn conditions(&self) -> Vec<&'a str> {
        let guard = self.guard.into_iter();
        let operands = self.operands.iter().copied().filter(|operand| !operand.starts_with('`'));
        guard.chain(operands.filter(|_| self.base() == "BRA")).filter(|condition| !is_constant(condition)).collect()
    }

    /// Whether it is taken where threads of a warp have parted, which is when a step that all of them take together is made by
    /// other instructions, out of the way.
    #[must_use]
    pub fn is_for_parted_warps(&self) -> bool {
        self.base() == "BRA" && (self.has("DIV") || self.has("CONV"))
    }
}

/// Whether an operand is the predicate that is true, the register of zeros, or their negations.
#[must_use]
pub fn is_constant(operand: &str) -> bool {
    matches!(operand.trim_start_matches(['!', '-', '~']), "PT" | "UPT" | "RZ" | "URZ")
}

/// Instructions that are executed one after the other, without a branch but at the end.
#[derive(Debug, Default)]
pub struct Block<'a> {
    /// At least one.
    pub instructions: Vec<Instruction<'a>>,
    /// The blocks that may follow: first the one that a branch is to, then the next one.
    pub successors: Vec<usize>,
    /// Whether the last instruction decides between two blocks.
    pub decides: bool,
}

impl<'a> Block<'a> {
    /// The last instruction.
    #[must_use]
    pub fn last(&self) -> &Instruction<'a> {
        self.instructions.last().expect("blocks are not empty")
    }

    /// The address of the first instruction.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.instructions[0].address
    }
}

/// The blocks of a kernel's listing; the first is where it starts. Calls of functions return, so they end no block; what they
/// call, and whatever else no branch reaches, is among the blocks all the same.
///
/// # Errors
/// If a branch is to no label of the listing, or there are no instructions.
pub fn blocks(listing: &str) -> Result<Vec<Block<'_>>, String> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut labels = BTreeMap::new();
    let mut fresh = true; // whether the next instruction begins a block
    for line in listing.lines() {
        let label = line.trim_end().strip_suffix(':').filter(|label| label.starts_with(".L_"));
        if let Some(label) = label {
            fresh = true;
            labels.insert(label, blocks.len());
        } else if let Some(instruction) = Instruction::parse(line) {
            if fresh {
                blocks.push(Block::default());
            }
            fresh = instruction.ends_a_block();
            blocks.last_mut().expect("pushed").instructions.push(instruction);
        }
    }
    let count = blocks.len();
    if count == 0 {
        return Err("expected instructions, got none".into());
    }
    for (at, block) in blocks.iter_mut().enumerate() {
        let last = block.instructions.last().expect("pushed with one");
        let place = |label: &str| {
            let place = labels.get(label).copied().filter(|at| *at < count);
            place.ok_or_else(|| {
                format!("{} at {:#x}: expected a label of its kernel, got {label}", last.name, last.address)
            })
        };
        let next = Some(at + 1).filter(|next| *next < count);
        let mut successors = Vec::new();
        let mut goes_on = !last.ends_a_block() || last.guard.is_some_and(|guard| !is_constant(guard));
        match last.base() {
            "BRA" | "JMP" | "CALL" => {
                successors.extend(last.target().map(place).transpose()?);
                goes_on |= !last.conditions().is_empty();
            }
            "BRX" | "BRXU" | "JMX" | "JMXU" => {
                if last.table.is_empty() {
                    return Err(format!(
                        "{} at {:#x}: expected the targets of its table, got none",
                        last.name, last.address
                    ));
                }
                successors.extend(last.table.iter().map(|label| place(label)).collect::<Result<Vec<_>, _>>()?);
            }
            _ => {}
        }
        block.decides = goes_on && !successors.is_empty();
        successors.extend(next.filter(|_| goes_on));
        block.successors = successors;
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "
        .section	.text.a,\"ax\",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 BRA P1, `(.L_x_3) ;
        /*0020*/                   BRXU UR10 -0x30                     ?trans5          (*\"BRANCH_TARGETS .L_x_1,.L_x_2\"*);
.L_x_2:
        /*0030*/                   BRA.U !UP0, `(.L_x_1)               &req={2,1}        ?trans5;
        /*0040*/               @P0 EXIT ;
        /*0050*/                   BRA `(.L_x_2);
.L_x_3:
        /*0060*/                   LDG.E.128 R4, desc[UR12][R2.64+0x10] ;
        /*0070*/                   CALL.REL.NOINC `($__internal_9_$__cuda_sm3x_div_rn_noftz_f32_slowpath) ;
        /*0080*/                   EXIT ;
        /*0090*/                   NOP;
        /*00a0*/              @!P0 CALL.REL.NOINC `(.L_x_2) ;
        /*00b0*/                   BRA `(.L_x_1) ;
";

    #[test]
    fn branches_divide_blocks() {
        let blocks = blocks(CODE).unwrap();
        let found: Vec<_> = blocks.iter().map(|b| (b.address(), b.successors.clone(), b.decides)).collect();
        let expected = [
            (0, vec![1], false),
            (0x10, vec![6, 2], true),
            (0x20, vec![1, 3], false),
            (0x30, vec![1, 4], true),
            (0x40, vec![5], false),
            (0x50, vec![3], false),
            (0x60, vec![], false),
            (0x90, vec![3, 8], true),
            (0xb0, vec![1], false),
        ];
        // A branch by a table has no block that is next; it is the same whether it decides or not.
        assert_eq!(found.iter().map(|(a, s, _)| (*a, s.clone())).collect::<Vec<_>>(), expected.map(|(a, s, _)| (a, s)));
        assert_eq!(blocks[1].last().conditions(), ["!P0", "P1"]);
        assert_eq!(blocks[3].last().conditions(), ["!UP0"]);
        let load = &blocks[6].instructions[0];
        assert_eq!((load.base(), load.has("128"), load.operands.len()), ("LDG", true, 2));
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        assert!(blocks("").unwrap_err().contains("got none"));
        assert!(blocks("/*0000*/ BRA `(.L_x_9) ;").unwrap_err().contains("got .L_x_9"));
        assert!(blocks("/*0000*/ BRXU UR10 -0x30 ;").unwrap_err().contains("targets of its table"));
    }
}
