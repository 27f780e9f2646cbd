//! The watchdog's budget at other time-outs than the rig's own: a node as it comes, with sanlock's I/O time-out of 10 s and the watchdog's fire time-out
//! of 60 s, which leave 110 s at worst; and one that is to be reset soon.

use std::time::Duration;

use serde_json::Value;

use crate::harness::node::Node;
use crate::harness::operator::request_yaml;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error, lives_on, volumes_in_use};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "usual-timeouts",
            about: "io_timeout 10 and fire time-out 60: the budget is what sanlock and wdmd make of it, the fence is proven, and the node lives past its reset",
            shape: || USUAL.shape(),
            tell: |cluster| the_budget_holds(cluster, &USUAL),
        },
        Scenario {
            name: "short-timeouts",
            about: "the same at io_timeout 5 and fire time-out 30: half the time",
            shape: || SHORT.shape(),
            tell: |cluster| the_budget_holds(cluster, &SHORT),
        },
    ]
}

/// All in seconds.
struct Timeouts {
    io: u32,
    fire: u32,
    /// From the last renewal to the earliest and the latest reset: the lease's eight I/O time-outs, and the fire time-out in which nobody pets the
    /// watchdog; wdmd may have petted it last when it tested last.
    reset: (f64, f64),
    /// From a loss that comes right before a renewal, which comes every two I/O time-outs.
    worst: i64,
}

/// wdmd tests every 10 s.
const USUAL: Timeouts = Timeouts {
    io: 10,
    fire: 60,
    reset: (130.0, 140.0),
    worst: 110,
};
/// wdmd tests every 5 s when it fires within less than 60.
const SHORT: Timeouts = Timeouts {
    io: 5,
    fire: 30,
    reset: (65.0, 70.0),
    worst: 55,
};

impl Timeouts {
    fn shape(&self) -> Shape {
        let mut shape = Shape::kubernetes();
        shape.nodes.truncate(1);
        shape.io_timeout = self.io;
        shape.fire_timeout = self.fire;
        shape
    }
}

/// sanlock's clock counts whole seconds.
const CLOCKS: f64 = 1.5;

fn the_budget_holds(cluster: &mut Cluster, timeouts: &Timeouts) -> Result {
    let (earliest, latest) = timeouts.reset;
    cluster.mark_dirty();
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    let writers = volumes_in_use(n1, "san", 2)?;
    let boot_id = n1.boot_id()?;
    ensure(
        n1.wdmd()?
            .contains(&format!("fire_timeout {}", timeouts.fire)),
        format!(
            "wdmd says: {}",
            n1.wdmd()?.lines().next().unwrap_or_default()
        ),
    )?;
    let storage = until(
        "NodeStorage tells of the watchdog",
        Duration::from_secs(60),
        || {
            let storage = control_plane.object("nodestorage", "n1")?;
            Ok(storage.filter(|s| s["status"]["watchdog"]["state"] == "Armed"))
        },
    )?;
    let watchdog = &storage["status"]["watchdog"];
    let lockspace = &storage["status"]["volumeGroups"][0]["lockspace"];
    ensure(
        watchdog["fireTimeoutSeconds"] == timeouts.fire
            && watchdog["budgetSeconds"] == timeouts.worst
            && lockspace["ioTimeoutSeconds"] == timeouts.io,
        format!("before anything is lost: {watchdog}, {lockspace}"),
    )?;

    say("every path of n1 is cut, and for a while nobody does anything");
    cluster.san.cut_all("n1", None)?;
    let n1 = cluster.node("n1")?;
    until("both paths have failed", Duration::from_secs(40), || {
        Ok((n1.path_states(0)? == "FF").then_some(()))
    })?;
    // Longer than it takes to the next renewal: the last one that came to its end stays the last.
    std::thread::sleep(Duration::from_secs(u64::from(2 * timeouts.io + 5)));
    let renewed = last_renewal(n1)?;
    let asked = n1.uptime()?;
    let control_plane = cluster.control_plane()?;
    control_plane.apply(&request_yaml("timeouts", "n1", &[]))?;
    let request =
        control_plane.wait_for_condition("timeouts", "LocksReleased", "True", FENCE_LIMIT)?;
    let answered = n1.uptime()?;
    ensure(
        !n1.watchdog_armed()?,
        "the watchdog waits for no lockspace any more",
    )?;
    // sanlock's own last I/O may take two time-outs to be given up.
    let limit = Duration::from_secs(u64::from(2 * timeouts.io + 5));
    until("the lockspace is gone from sanlock", limit, || {
        Ok(last_renewal(n1).is_err().then_some(()))
    })?;
    let watchdog = &request["status"]["node"]["watchdog"];
    let budget = seconds(&watchdog["budgetMilliseconds"])?;
    let left = |at: f64| renewed + earliest - at;
    ensure(
        watchdog["armed"] == true
            && (left(answered) - CLOCKS..=left(asked) + CLOCKS).contains(&budget),
        format!(
            "{budget:.1} s were left when it began: of {earliest} s since the renewal {:.1} s before it was asked for",
            asked - renewed
        ),
    )?;
    let disarmed = seconds(&watchdog["disarmedAfterMilliseconds"])?;
    ensure(
        disarmed > 0.0 && disarmed <= answered - asked + CLOCKS,
        format!("the watchdog let go {disarmed:.1} s after the fence began"),
    )?;
    all_error(n1, "san", 2)?;
    for writer in &writers {
        let end = writer.wait_for_end(n1, Duration::from_secs(20))?;
        ensure(end.errno == Some(5), format!("{} got EIO", writer.name))?;
    }
    lives_on(n1, &boot_id)?;

    say("until the watchdog would have reset it");
    let rest = renewed + latest + 15.0 - n1.uptime()?;
    std::thread::sleep(Duration::from_secs_f64(rest.max(0.0)));
    ensure(
        n1.uptime()? > renewed + latest,
        format!("{:.1} s after its last renewal", n1.uptime()? - renewed),
    )?;
    lives_on(n1, &boot_id)?;
    all_error(n1, "san", 2)
}

/// When sanlock last renewed the lease, in seconds since boot.
fn last_renewal(node: &Node) -> Result<f64> {
    let status = node.sanlock()?;
    let (_, rest) = status
        .split_once("renewal_last_success=")
        .context("sanlock has no lockspace")?;
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    number.parse().context("when the lease was renewed")
}

fn seconds(milliseconds: &Value) -> Result<f64> {
    Ok(milliseconds.as_f64().context("no time is told")? / 1e3)
}
