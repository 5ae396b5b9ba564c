//! What is reported of each kernel.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tercet::internal::{Image, KernelReport as Assembled};

use crate::bounds::{self, Bounds, Occupied};
use crate::classes::{self, Class, Counts};
use crate::code;
use crate::devices::{self, Multiprocessor};
use crate::disassembler::Disassembler;
use crate::elf::Cubin;
use crate::flow::{Blocks, Flow, Guard, Loop};
use crate::parallel;
use crate::work::{Problem, Role, Work, dynamic_shared_bytes};

/// What a kernel takes of a multiprocessor. No disassembler is needed for it.
#[derive(Clone, Debug)]
pub struct Resources {
    /// The file of the kernel.
    pub stem: &'static str,
    /// The kernel's name.
    pub kernel: &'static str,
    /// What it is compiled for, such as `sm_90a`.
    pub target: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Stores and loads of spilled registers.
    pub spill_bytes: u32,
    /// Shared memory of a block, static and dynamic.
    pub shared_bytes: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// How many blocks a multiprocessor holds, by compute capability.
    pub blocks: Vec<((u32, u32), u32)>,
}

impl Resources {
    fn of(image: &Image, cubin: &Cubin, assembled: &Assembled) -> Result<Self, String> {
        let kernel = assembled.kernel;
        let threads = cubin.threads(kernel).ok_or_else(|| format!("{kernel}: expected launch bounds, got none"))?;
        let shared_bytes = [assembled.shared_bytes, dynamic_shared_bytes(kernel)];
        let resident = |device: &Multiprocessor| {
            (device.capability, device.resident(threads, assembled.registers, shared_bytes.iter().sum()))
        };
        Ok(Self {
            stem: image.stem,
            kernel,
            target: image.target,
            registers: assembled.registers,
            spill_bytes: assembled.spill_bytes,
            shared_bytes,
            threads,
            blocks: devices::of_target(image.target).map(resident).collect(),
        })
    }

    /// What the kernels of an image take; nothing of PTX.
    ///
    /// # Errors
    /// If the image is not one of the compiler's.
    pub fn of_image(image: &Image) -> Result<Vec<Self>, String> {
        if !image.target.starts_with("sm_") {
            return Ok(Vec::new());
        }
        let bytes = image.decompressed();
        let named = |error| format!("{} for {}: {error}", image.stem, image.target);
        let cubin = Cubin::parse(&bytes).map_err(named)?;
        image.kernels.iter().map(|assembled| Self::of(image, &cubin, assembled).map_err(named)).collect()
    }
}

/// A loop of a kernel.
#[derive(Clone, Debug)]
pub struct LoopReport {
    /// Where it begins, in bytes from the kernel's first instruction.
    pub address: u64,
    /// How many loops are around it.
    pub depth: usize,
    /// What it is for, if it is part of a tile's work.
    pub role: Option<Role>,
    /// Whether it is gone through once for each tile.
    pub is_of_tiles: bool,
    /// How often it is gone through for each tile.
    pub trips: f64,
    /// The instructions that are in it and in no loop inside.
    pub counts: Counts,
    /// Those of [`LoopReport::counts`] that are rare.
    pub rare: f64,
    /// How many of them say where parted threads meet again.
    pub bssy: usize,
}

/// A run of blocks that are entered for rare work alone.
#[derive(Clone, Debug)]
pub struct Rare {
    /// Where its first block begins.
    pub address: u64,
    /// What leads there.
    pub guard: Guard,
    /// How many instructions it has.
    pub instructions: usize,
}

/// What a kernel does for each tile.
#[derive(Clone, Debug)]
pub struct TileReport {
    /// Products that a thread holds of a tile.
    pub elements_per_thread: u32,
    /// Instructions of a tile over its elements, without what is rare.
    pub instructions_per_element: f64,
    /// The same, with everything that the loops of a tile's work have.
    pub instructions_per_element_all: f64,
    /// Places in the tile's loops, but for what is rare, where parted threads meet again.
    pub bssy_in_tile_loop: usize,
    /// What a warp executes for a tile, without what is rare.
    pub counts: Counts,
    /// Bounds on an H200, of kernels that are compiled for it.
    pub bounds: Bounds,
}

/// A kernel's machine code.
#[derive(Clone, Debug)]
pub struct CodeReport {
    /// Its loops, an outer one before those inside.
    pub loops: Vec<LoopReport>,
    /// What is rare in a tile's work.
    pub rare: Vec<Rare>,
    /// The work of a tile, of a kernel that takes tiles.
    pub tile: Option<TileReport>,
}

/// Everything that is reported of a kernel.
#[derive(Clone, Debug)]
pub struct KernelReport {
    /// What it takes of a multiprocessor.
    pub resources: Resources,
    /// Its machine code; `None` without a disassembler.
    pub code: Option<CodeReport>,
}

/// What stands in some blocks.
struct Instructions<'a, 'b> {
    flow: &'b Flow<'a>,
}

impl Instructions<'_, '_> {
    fn count(&self, blocks: impl IntoIterator<Item = usize>) -> (Counts, Occupied) {
        let (mut counts, mut occupied) = (Counts::default(), Occupied::default());
        for instruction in blocks.into_iter().flat_map(|block| &self.flow.blocks[block].instructions) {
            counts.add(classes::of(instruction));
            occupied.add_times(1.0, &bounds::occupied(instruction));
        }
        (counts, occupied)
    }

    fn named(&self, name: &str, blocks: impl IntoIterator<Item = usize>) -> usize {
        let instructions = blocks.into_iter().flat_map(|block| &self.flow.blocks[block].instructions);
        instructions.filter(|instruction| instruction.base() == name).count()
    }

    /// Whether a block adds sums to as many others as a thread has elements, and does no other arithmetic.
    fn adds_sums(&self, block: usize, elements: usize) -> bool {
        let counts = self.count([block]).0;
        let sums = self.named("FADD", [block]);
        sums >= elements
            && counts.of(Class::Fma) == sums as f64
            && counts.of(Class::Mma) + counts.of(Class::Wgmma) == 0.0
    }
}

/// The work of a tile is a loop of this place in the list, or of all that is in no loop.
#[derive(Clone, Copy, PartialEq)]
enum Region {
    Loop(usize),
    Outside,
}

/// Reads a kernel's listing.
///
/// # Errors
/// If branches cannot be followed, or `work` says that there is a loop over tiles and there is none.
pub fn read(listing: &str, target: &str, work: Option<&Work>, problem: &Problem) -> Result<CodeReport, String> {
    let flow = Flow::new(code::blocks(listing)?);
    let all = Instructions { flow: &flow };
    let loops = flow.loops();
    let own: Vec<Blocks> = (0..loops.len()).map(|at| own_blocks(&loops, at)).collect();
    let counts: Vec<Counts> = own.iter().map(|blocks| all.count(blocks.iter().copied()).0).collect();
    let is_tensor = |counts: &Counts| counts.of(Class::Mma) + counts.of(Class::Wgmma) > 0.0;
    let has_inside =
        |at: usize, inside: &dyn Fn(usize) -> bool| (0..loops.len()).any(|i| loops[i].parent == Some(at) && inside(i));

    // The first innermost loop with tensor instructions multiplies slabs, and the one around it takes tiles. If there is none
    // around it, slabs are unrolled, and it takes tiles itself.
    let slabs = (0..loops.len()).find(|&at| is_tensor(&counts[at]) && !has_inside(at, &|i| is_tensor(&counts[i])));
    let region = match work {
        None => None,
        Some(work) => {
            let slabs = slabs.ok_or("expected a loop with tensor instructions, got none")?;
            let tiles = loops[slabs].parent.unwrap_or(slabs);
            // Where weights of a group of tiles lie in shared memory, the loop around takes groups; of one tile there is none.
            let group = work.sweep.and_then(|sweep| sweep.group).filter(|&tiles| tiles > 1);
            let groups = group.map_or(Some(tiles), |_| loops[tiles].parent);
            let groups = groups.ok_or("expected a loop over groups of tiles, got none")?;
            Some(if work.in_loop { Region::Loop(groups) } else { Region::Outside })
        }
    };
    let outside =
        || flow.reachable.iter().copied().filter(|block| !loops.iter().any(|l| l.blocks.contains(block))).collect();
    let (header, inside, own_of_tile): (usize, Blocks, Blocks) = match region {
        Some(Region::Loop(at)) => (loops[at].header, loops[at].blocks.clone(), own[at].clone()),
        Some(Region::Outside) => (0, flow.reachable.clone(), outside()),
        None => (0, Blocks::new(), Blocks::new()),
    };
    let mut rare: BTreeMap<usize, Guard> = if region.is_some() { flow.rare(header, &inside) } else { BTreeMap::new() };
    // A sweep's weights and their product are the tile's work, although a vote may leave them out where no pair weighs anything.
    // What is rare there writes down by an atomic that a warp has left its part of a tile.
    let of_sweep = work.is_some_and(|work| work.sweep.is_some());
    if of_sweep {
        for part in flow.connected(&rare.keys().copied().collect()) {
            let has_loop = loops.iter().any(|l| part.contains(&l.header));
            let has_products = part.iter().any(|block| is_tensor(&all.count([*block]).0));
            if has_loop || has_products || all.named("ATOMS", part.iter().copied()) == 0 {
                rare.retain(|block, _| !part.contains(block));
            }
        }
    }

    let elements = work.map_or(0, Work::elements_per_thread);
    let is_push = |at: usize| {
        let c = &counts[at];
        !of_sweep
            && !has_inside(at, &|_| true)
            && !is_tensor(c)
            && c.of(Class::Fma) >= 64.0
            && c.of(Class::LoadShared) >= 4.0
    };
    let role = |at: usize| -> Option<Role> {
        let (l, c) = (&loops[at], &counts[at]);
        let is_of_tile =
            region != Some(Region::Loop(at)) && inside.contains(&l.header) && !rare.contains_key(&l.header);
        let innermost = !has_inside(at, &|_| true);
        // Of a sweep's loops with products inside, that over tiles comes first, and then that over columns.
        let of_groups = |at: usize| loops[at].parent.is_some_and(|outer| region == Some(Region::Loop(outer)));
        let first_of_groups = || (0..loops.len()).find(|&i| of_groups(i) && has_inside(i, &|i| is_tensor(&counts[i])));
        if region.is_none() || !is_of_tile {
            None
        } else if of_sweep && has_inside(at, &|i| is_tensor(&counts[i])) {
            Some(if first_of_groups() == Some(at) { Role::Tile } else { Role::Columns })
        } else if is_tensor(c) {
            Some(if of_sweep && slabs != Some(at) { Role::Weighted } else { Role::Slab })
        } else if has_inside(at, &is_push) {
            Some(Role::Chunk)
        } else if is_push(at) {
            Some(Role::Push)
        } else if innermost && c.of(Class::Copy) > 0.0 && l.parent.is_some_and(|outer| has_inside(outer, &is_push)) {
            Some(Role::Bring)
        } else if (of_sweep || c.of(Class::Shuffle) > 0.0) && c.of(Class::Alu) + c.of(Class::Fma) >= f64::from(elements)
        {
            Some(Role::Threshold)
        } else {
            None
        }
    };
    let roles: Vec<Option<Role>> = (0..loops.len()).map(role).collect();
    let trips_of = |role: Role| work.map_or(0.0, |work| work.trips(role, problem));

    let mut reports = Vec::new();
    for (at, one) in loops.iter().enumerate() {
        let is_of_tiles = region == Some(Region::Loop(at));
        reports.push(LoopReport {
            address: flow.blocks[one.header].address(),
            depth: std::iter::successors(one.parent, |outer| loops[*outer].parent).count(),
            role: roles[at],
            is_of_tiles,
            trips: if is_of_tiles { 1.0 } else { roles[at].map_or(0.0, trips_of) },
            counts: counts[at].clone(),
            rare: all.count(own[at].iter().copied().filter(|block| rare.contains_key(block))).0.total(),
            bssy: all.named("BSSY", own[at].iter().copied()),
        });
    }
    let tile = work.map(|work| {
        let (mut common, mut everything, mut occupied, mut bssy) = (Counts::default(), 0.0, Occupied::default(), 0);
        let of_tile = (None, 1.0, &own_of_tile, region);
        let of_loops = (0..loops.len()).filter_map(|at| Some((roles[at]?, at)));
        let of_loops = of_loops.map(|(role, at)| (Some(role), trips_of(role), &own[at], Some(Region::Loop(at))));
        for (role, trips, blocks, place) in std::iter::once(of_tile).chain(of_loops).filter(|part| part.1 > 0.0) {
            everything += trips * all.count(blocks.iter().copied()).0.total();
            for &block in blocks.iter().filter(|block| !rare.contains_key(block)) {
                let always = match place {
                    Some(Region::Loop(at)) => loops[at].latches.iter().all(|latch| flow.dominates(block, *latch)),
                    _ => false,
                };
                let times = match role {
                    _ if always || !all.adds_sums(block, elements as usize) => 1.0,
                    Some(Role::Slab) => work.share_that_adds(problem),
                    None => f64::from(u8::from(work.adds(problem))),
                    Some(_) => 1.0,
                };
                let (counts, of_block) = all.count([block]);
                common.add_times(trips * times, &counts);
                occupied.add_times(trips * times, &of_block);
                bssy += all.named("BSSY", [block]);
            }
        }
        let hopper = devices::of_target(target).find(|device| device.capability == (9, 0));
        TileReport {
            elements_per_thread: elements,
            instructions_per_element: common.total() / (f64::from(elements) * work.tiles_at_once()),
            instructions_per_element_all: everything / (f64::from(elements) * work.tiles_at_once()),
            bssy_in_tile_loop: bssy,
            bounds: hopper.map_or(Vec::new(), |device| bounds::of(&common, &occupied, work, problem, device)),
            counts: common,
        }
    });
    Ok(CodeReport { loops: reports, rare: runs(&flow, &rare), tile })
}

/// The blocks of a loop that are in no loop inside.
fn own_blocks(loops: &[Loop], at: usize) -> Blocks {
    let inside: Blocks =
        loops.iter().filter(|inner| inner.parent == Some(at)).flat_map(|inner| inner.blocks.iter().copied()).collect();
    loops[at].blocks.difference(&inside).copied().collect()
}

/// Rare blocks that follow each other in the code, together.
fn runs(flow: &Flow<'_>, rare: &BTreeMap<usize, Guard>) -> Vec<Rare> {
    let mut runs: Vec<Rare> = Vec::new();
    let mut last = None;
    for (&block, &guard) in rare {
        let instructions = flow.blocks[block].instructions.len();
        match runs.last_mut() {
            Some(run) if last == Some((block.wrapping_sub(1), guard)) => run.instructions += instructions,
            _ => runs.push(Rare { address: flow.blocks[block].address(), guard, instructions }),
        }
        last = Some((block, guard));
    }
    runs
}

/// Which kernels are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Those of this file.
    pub stem: Option<&'a str>,
    /// Those for this target.
    pub target: Option<&'a str>,
}

/// The reports on the kernels of some images.
///
/// # Errors
/// If machine code cannot be read; names the kernel.
pub fn of_images(
    images: &[&'static Image],
    disassembler: Option<&Disassembler>,
    problem: &Problem,
) -> Result<Vec<KernelReport>, String> {
    let reports = parallel::map(images, |image| of_image(image, disassembler, problem, |_| true));
    Ok(reports.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// The reports on those kernels of an image that are `wanted`.
///
/// # Errors
/// If machine code cannot be read; names the kernel.
pub fn of_image(
    image: &'static Image,
    disassembler: Option<&Disassembler>,
    problem: &Problem,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<KernelReport>, String> {
    let mut resources = Resources::of_image(image)?;
    resources.retain(|resources| wanted(resources.kernel));
    let mut code = BTreeMap::new();
    if let Some(disassembler) = disassembler {
        let named = |error| format!("{} for {}: {error}", image.stem, image.target);
        for listing in disassembler.list(&image.decompressed(), &wanted).map_err(named)? {
            let work = Work::of(&listing.kernel);
            let read = read(&listing.text, image.target, work.as_ref(), problem);
            let read = read.map_err(|error| format!("{} for {}: {error}", listing.kernel, image.target))?;
            code.insert(listing.kernel, read);
        }
    }
    let report = |resources: Resources| KernelReport { code: code.remove(resources.kernel), resources };
    Ok(resources.into_iter().map(report).collect())
}

/// The images of this build that have wanted kernels.
#[must_use]
pub fn images(wanted: &Wanted<'_>) -> Vec<&'static Image> {
    let fits = |image: &&Image| {
        image.target.starts_with("sm_")
            && wanted.stem.is_none_or(|stem| stem == image.stem)
            && wanted.target.is_none_or(|target| target == image.target)
    };
    tercet::internal::IMAGES.iter().filter(fits).collect()
}

/// A number as reports show it.
fn rounded(number: f64, digits: i32) -> Value {
    let scale = 10f64.powi(digits);
    json!((number * scale).round() / scale)
}

impl KernelReport {
    /// The report as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let Resources { stem, kernel, target, registers, spill_bytes, shared_bytes, threads, blocks } = &self.resources;
        let capability = |(major, minor): &(u32, u32)| format!("{major}.{minor}");
        let blocks: serde_json::Map<_, _> = blocks.iter().map(|(of, count)| (capability(of), json!(count))).collect();
        let mut report = json!({
            "stem": stem,
            "kernel": kernel,
            "target": target,
            "registers": registers,
            "spill_bytes": spill_bytes,
            "shared_bytes": { "static": shared_bytes[0], "dynamic": shared_bytes[1], "all": shared_bytes[0] + shared_bytes[1] },
            "threads": threads,
            "blocks_per_multiprocessor": blocks,
        });
        let Some(code) = &self.code else { return report };
        let counts = |counts: &Counts| -> serde_json::Map<_, _> {
            counts.0.iter().map(|(class, count)| (class.to_string(), rounded(*count, 2))).collect()
        };
        let of_loop = |l: &LoopReport| {
            json!({
                "address": l.address,
                "depth": l.depth,
                "role": if l.is_of_tiles { json!("tile") } else { l.role.map_or(Value::Null, |role| json!(role.name())) },
                "trips": l.trips,
                "instructions": l.counts.total(),
                "rare": l.rare,
                "bssy": l.bssy,
                "classes": counts(&l.counts),
            })
        };
        report["loops"] = code.loops.iter().map(of_loop).collect();
        let of_rare =
            |r: &Rare| json!({ "address": r.address, "guard": r.guard.name(), "instructions": r.instructions });
        report["rare"] = code.rare.iter().map(of_rare).collect();
        if let Some(tile) = &code.tile {
            report["elements_per_thread"] = json!(tile.elements_per_thread);
            report["instructions_per_element"] = rounded(tile.instructions_per_element, 2);
            report["instructions_per_element_all"] = rounded(tile.instructions_per_element_all, 2);
            report["bssy_in_tile_loop"] = json!(tile.bssy_in_tile_loop);
            report["classes_of_a_tile"] = json!(counts(&tile.counts));
            if !tile.bounds.is_empty() {
                let bounds: serde_json::Map<_, _> =
                    tile.bounds.iter().map(|(unit, ms)| ((*unit).to_string(), rounded(*ms, 4))).collect();
                report["bounds_ms_on_h200"] = json!(bounds);
            }
        }
        report
    }
}

impl Role {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Slab => "slab",
            Self::Threshold => "threshold",
            Self::Chunk => "chunk",
            Self::Bring => "bring",
            Self::Push => "push",
            Self::Tile => "tile",
            Self::Columns => "columns",
            Self::Weighted => "weighted",
        }
    }
}

impl Guard {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vote => "vote",
            Self::Parted => "parted",
        }
    }
}

/// A table of the kernels, and with `details` the loops of each.
#[must_use]
pub fn table(reports: &[KernelReport], problem: &Problem, details: bool) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<36} {:<8} {:>5} {:>6} {:>7} {:>8} {:>12} {:>5} {:>8} {:>8} {:>5}",
        "kernel", "target", "regs", "spills", "shared", "threads", "blocks", "el", "instr/el", "all", "bssy"
    );
    for KernelReport { resources, code } in reports {
        let blocks = resources.blocks.iter().map(|(_, count)| count.to_string()).collect::<Vec<_>>().join("/");
        let _ = write!(
            text,
            "{:<36} {:<8} {:>5} {:>6} {:>7} {:>8} {:>12}",
            resources.kernel,
            resources.target,
            resources.registers,
            resources.spill_bytes,
            resources.shared_bytes.iter().sum::<u32>(),
            resources.threads,
            blocks
        );
        if let Some(tile) = code.as_ref().and_then(|code| code.tile.as_ref()) {
            let _ = write!(
                text,
                " {:>5} {:>8.1} {:>8.1} {:>5}",
                tile.elements_per_thread,
                tile.instructions_per_element,
                tile.instructions_per_element_all,
                tile.bssy_in_tile_loop
            );
        }
        text.push('\n');
        let Some(code) = code.as_ref().filter(|_| details) else { continue };
        for l in &code.loops {
            let role = if l.is_of_tiles { "tile" } else { l.role.map_or("", Role::name) };
            let classes: Vec<String> = l.counts.0.iter().map(|(class, count)| format!("{class} {count}")).collect();
            let indent = "  ".repeat(l.depth + 1);
            let rare = if l.rare > 0.0 { format!(", {} of them rare", l.rare) } else { String::new() };
            let trips = if l.trips > 0.0 { format!(" x {}", l.trips) } else { String::new() };
            let _ = writeln!(
                text,
                "{indent}loop at {:#x} {role}{trips}: {} instructions{rare}, {} bssy: {}",
                l.address,
                l.counts.total(),
                l.bssy,
                classes.join(", ")
            );
        }
        for r in &code.rare {
            let _ =
                writeln!(text, "  rare at {:#x}, by {}: {} instructions", r.address, r.guard.name(), r.instructions);
        }
    }
    let bounded: Vec<_> = reports.iter().filter_map(|r| Some((r, r.code.as_ref()?.tile.as_ref()?))).collect();
    let bounded: Vec<_> = bounded.into_iter().filter(|(_, tile)| !tile.bounds.is_empty()).collect();
    if let Some((_, first)) = bounded.first() {
        let Problem { rows, dim, positives } = problem;
        let _ = writeln!(
            text,
            "\nms at 100 % of each unit of an H200, {rows} rows of {dim} numbers with {positives} positives; no prediction"
        );
        let units: String = first.bounds.iter().map(|(unit, _)| format!(" {unit:>8}")).collect();
        let _ = writeln!(text, "{:<36}{units}", "kernel");
        for (report, tile) in &bounded {
            let bounds: String = tile.bounds.iter().map(|(_, ms)| format!(" {ms:>8.3}")).collect();
            let _ = writeln!(text, "{:<36}{bounds}", report.resources.kernel);
        }
    }
    text
}
