//! Classes of instructions: which unit of a multiprocessor takes them, and how many warp instructions of them a clock.

use std::collections::BTreeMap;
use std::fmt;

use crate::code::Instruction;

/// What an instruction occupies beside its slot of issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// f32 and f16 arithmetic: 4 warp instructions a clock.
    Fma,
    /// Integer products and sums on the FMA pipe.
    Imad,
    /// Moves, shifts and sums that the compiler gives to the FMA pipe.
    ImadMove,
    /// Comparisons, selections, minima, logic, shifts, integer sums.
    Alu,
    /// Roots, logarithms, conversions, counts of bits.
    Special,
    /// f64.
    F64,
    /// Moves between registers, and zeros.
    Move,
    /// The tensor cores by a warp: `mma.sync`.
    Mma,
    /// The tensor cores by a warpgroup: `wgmma`.
    Wgmma,
    /// `ldmatrix`.
    LoadMatrix,
    /// Loads from shared memory.
    LoadShared,
    /// Stores to shared memory.
    StoreShared,
    /// Copies from global to shared memory: `cp.async`.
    Copy,
    /// Copies in bulk, and what they report to.
    BulkCopy,
    /// Loads from global memory.
    LoadGlobal,
    /// Stores to global memory.
    StoreGlobal,
    /// Atomic operations and reductions in memory.
    Atomic,
    /// Local memory: spills, and arrays that a variable indexes.
    Local,
    /// Exchanges within a warp.
    Shuffle,
    /// Barriers and waits.
    Synchronise,
    /// Branches, and what says where parted threads meet again.
    Control,
    /// Instructions that a warp executes once for all its threads.
    Uniform,
    /// Constants, special registers, votes.
    Other,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = match self {
            Self::Fma => "fma",
            Self::Imad => "imad",
            Self::ImadMove => "imad_move",
            Self::Alu => "alu",
            Self::Special => "special",
            Self::F64 => "f64",
            Self::Move => "move",
            Self::Mma => "mma",
            Self::Wgmma => "wgmma",
            Self::LoadMatrix => "load_matrix",
            Self::LoadShared => "load_shared",
            Self::StoreShared => "store_shared",
            Self::Copy => "copy",
            Self::BulkCopy => "bulk_copy",
            Self::LoadGlobal => "load_global",
            Self::StoreGlobal => "store_global",
            Self::Atomic => "atomic",
            Self::Local => "local",
            Self::Shuffle => "shuffle",
            Self::Synchronise => "synchronise",
            Self::Control => "control",
            Self::Uniform => "uniform",
            Self::Other => "other",
        };
        f.pad(name)
    }
}

/// The class of an instruction.
#[must_use]
pub fn of(instruction: &Instruction<'_>) -> Class {
    let has = |suffix| instruction.has(suffix);
    match instruction.base() {
        "FFMA" | "FADD" | "FMUL" | "FFMA2" | "FADD2" | "FMUL2" | "HFMA2" | "HADD2" | "HMUL2" | "FSWZADD"
        | "FADD32I" | "FMUL32I" | "FFMA32I" => Class::Fma,
        "IMAD" if has("MOV") || has("SHL") || has("IADD") => Class::ImadMove,
        "IMAD" | "IDP" => Class::Imad,
        "FMNMX" | "FMNMX3" | "FSETP" | "FSET" | "FSEL" | "ISETP" | "SEL" | "LOP3" | "SHF" | "PRMT" | "IADD3"
        | "IADD" | "VIADD" | "VIMNMX" | "VIMNMX3" | "VIADDMNMX" | "VHMNMX" | "PLOP3" | "P2R" | "R2P" | "LEA"
        | "IABS" | "BMSK" | "SGXT" | "FCHK" | "IMNMX" | "VABSDIFF" | "HSETP2" | "HMNMX2" | "HSET2" | "F2FP" | "FLO"
        | "I2FP" | "MOVM" => Class::Alu,
        "MUFU" | "F2F" | "F2I" | "I2F" | "POPC" | "FRND" | "BREV" => Class::Special,
        "DFMA" | "DADD" | "DMUL" | "DSETP" | "DMMA" => Class::F64,
        "MOV" | "CS2R" | "MOV32I" | "MOV64IUR" => Class::Move,
        "HMMA" | "IMMA" | "QMMA" | "OMMA" => Class::Mma,
        "HGMMA" | "IGMMA" | "QGMMA" | "BGMMA" => Class::Wgmma,
        "LDSM" => Class::LoadMatrix,
        "LDS" => Class::LoadShared,
        "STS" | "STSM" => Class::StoreShared,
        "LDGSTS" => Class::Copy,
        "UBLKCP" | "UBLKRED" | "UTMALDG" | "UTMASTG" | "SYNCS" => Class::BulkCopy,
        "LDG" | "LD" => Class::LoadGlobal,
        "STG" | "ST" => Class::StoreGlobal,
        "ATOM" | "ATOMG" | "ATOMS" | "RED" | "REDG" | "REDAS" => Class::Atomic,
        "LDL" | "STL" => Class::Local,
        "SHFL" => Class::Shuffle,
        "BAR" | "BARRIER" | "DEPBAR" | "LDGDEPBAR" | "WARPGROUP" | "WARPGROUPSET" | "MEMBAR" | "FENCE" | "ERRBAR"
        | "WARPSYNC" | "CCTL" | "USETMAXREG" | "ARRIVES" | "ENDCOLLECTIVE" => Class::Synchronise,
        "BRA" | "BRX" | "BRXU" | "JMP" | "JMX" | "JMXU" | "BSSY" | "BSYNC" | "EXIT" | "RET" | "CALL" | "BREAK"
        | "NOP" | "YIELD" | "NANOSLEEP" | "BPT" | "KILL" | "BMOV" => Class::Control,
        // R2UR and ULDC among them begin with other letters, or are loads of constants.
        "VOTEU" | "ULDC" | "LDC" | "LDCU" | "S2R" | "S2UR" | "R2UR" | "VOTE" | "REDUX" | "ELECT" | "MATCH" => {
            Class::Other
        }
        base if base.starts_with('U') => Class::Uniform,
        _ => Class::Other,
    }
}

/// How many instructions of each class; whole numbers, but where a loop's are spread over what it works on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts(pub BTreeMap<Class, f64>);

impl Counts {
    /// One more of a class.
    pub fn add(&mut self, class: Class) {
        *self.0.entry(class).or_default() += 1.0;
    }

    /// So many times more of others.
    pub fn add_times(&mut self, times: f64, others: &Self) {
        for (class, count) in &others.0 {
            *self.0.entry(*class).or_default() += times * count;
        }
    }

    /// How many of a class.
    #[must_use]
    pub fn of(&self, class: Class) -> f64 {
        self.0.get(&class).copied().unwrap_or(0.0)
    }

    /// How many in all.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.0.values().sum()
    }
}
