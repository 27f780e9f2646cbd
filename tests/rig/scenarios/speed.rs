//! How long a fence takes, against what people use today and against the bare ioctls: figures, as ratios of one run.

use std::time::Duration;

use super::stacks::devices;
use crate::harness::node::Node;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say};

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "speed",
        about: "the swap of 10, 100 and 1,000 idle volumes, against dmsetup in a loop, one dmsetup, and the bare ioctls",
        shape: Shape::arrays,
        tell: speed,
    }]
}

const LIMIT: Duration = Duration::from_secs(900);

fn speed(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let n1 = cluster.node("n1")?;
    let luns = devices(n1)?;
    for (n, device) in [10_u64, 100, 1000].into_iter().zip(&luns) {
        let vg = format!("speed{n}");
        n1.sh_within(&format!("vgcreate --shared {vg} {device}"), LIMIT)?;
        let uuid = n1.sh(&format!(
            "dmsetup info -c --noheadings -o uuid {vg}-lvmlock | cut -c5-36"
        ))?;
        // With a thousand events more, udev would be what is measured.
        n1.sh("udevadm settle; udevadm control --stop-exec-queue")?;
        let made = |node: &Node| {
            let create = format!(
                "for i in $(seq {n}); do printf 'speed-%d,LVM-{uuid}%032d,,rw,0 2048 linear {device} 2097152\\n' $i $i; done | paste -sd';' >/run/concise; \
                 dmsetup create --noudevsync --concise \"$(cat /run/concise)\""
            );
            node.sh_within(&create, LIMIT)
        };
        let gone = "dmsetup ls | cut -f1 | grep ^speed-[0-9] | xargs -n 200 dmsetup remove --noudevsync -f";
        let timed = |what: &str| -> Result<u64> {
            made(n1)?;
            let command =
                format!("a=$(date +%s%N); {what}; b=$(date +%s%N); echo $(((b-a)/1000000))");
            let took = n1.sh_within(&command, LIMIT)?;
            n1.sh_within(gone, LIMIT)?;
            Ok(took
                .lines()
                .last()
                .context("a time")?
                .trim()
                .parse::<u64>()?
                .max(1))
        };
        let wipe = "dmsetup wipe_table --force --noudevsync";
        let mut each = timed(&format!(
            "for d in $(dmsetup ls | cut -f1 | grep ^speed-[0-9]); do {wipe} $d >/dev/null; done"
        ))?;
        let one = timed(&format!("{wipe} -S 'name=~^speed-[0-9]' >/dev/null"))?;
        let mut bare = Vec::new();
        for threads in [1, 4, 16] {
            made(n1)?;
            let line = n1.sh_within(
                &format!("/payload/bin/rig guest-swap speed- {threads}"),
                LIMIT,
            )?;
            bare.push(
                line.split(' ')
                    .nth(1)
                    .context("a time")?
                    .parse::<u64>()?
                    .max(1),
            );
            n1.sh_within(gone, LIMIT)?;
        }
        let best = *bare.iter().min().context("times")?;
        made(n1)?;
        let fence = n1.run(&format!("/payload/bin/storage-fence kill-hook {vg}"), LIMIT)?;
        ensure(fence.code == 0, format!("{n} volumes are fenced"))?;
        let ours = swap_took(n1)?;
        n1.sh_within(gone, LIMIT)?;
        n1.sh("udevadm control --start-exec-queue")?;
        each = each.max(1);
        say(format!(
            "    {n} volumes: swapped and read back in {ours} ms (whole hook with release {} ms); \
             bare ioctls {bare:?} ms on 1, 4, 16 threads; one dmsetup {one} ms; dmsetup in a loop {each} ms",
            fence.ms
        ));
        let ratio = |of: u64| {
            #[allow(clippy::cast_precision_loss)]
            let ratio = of as f64 / ours as f64;
            format!("{ratio:.1}")
        };
        say(format!(
            "    as ratios to ours: best bare {}, one dmsetup {}, loop {}",
            ratio(best),
            ratio(one),
            ratio(each)
        ));
        ensure(each > ours, "faster than dmsetup in a loop")?;
    }
    Ok(())
}

/// Milliseconds from the beginning of the swap to its proof, as the journal has it.
fn swap_took(node: &Node) -> Result<u64> {
    let journal = node.sh("tail -n 1 /run/storage-fence/journal | cut -d' ' -f3-")?;
    let record: serde_json::Value = serde_json::from_str(&journal)?;
    let steps = record["Finished"]["steps"].as_array().context("steps")?;
    let millis = |value: &serde_json::Value| {
        let whole = value["secs"].as_u64().unwrap_or_default() * 1000;
        whole + value["nanos"].as_u64().unwrap_or_default() / 1_000_000
    };
    let step = |kind: &str| steps.iter().find(|s| s["kind"] == kind);
    let begin = step("Swap").map(|s| millis(&s["at"])).context("a swap")?;
    let end = step("Verify")
        .map(|s| millis(&s["at"]) + millis(&s["took"]))
        .context("a proof")?;
    Ok(end.saturating_sub(begin).max(1))
}
