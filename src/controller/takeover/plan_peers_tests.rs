//! Who of several peers is asked.

use super::*;

#[test]
fn three_that_say_nothing_keep_no_fourth_from_being_asked() {
    let names = ["n2", "n3", "n4", "n5", "n6"];
    let peers = names.iter().zip(2..).map(|(name, id)| peer(name, id));
    let mut view = view(vec![request(&json!({}))], peers.collect());
    let mut asked = Vec::new();
    for _ in names {
        let next = plan(&view, &|_, _| PATIENCE);
        let given = next.tasks.iter().filter(|(_, tasks)| !tasks.is_empty());
        asked.extend(given.map(|(name, _)| name.clone()));
        assert_eq!(only(&next).reason, "Expediting");
        carry_out(&mut view, &next, |_| None);
        let at_once = view.peers.iter().filter(|p| !p.tasks.is_empty());
        assert!(at_once.count() <= MOST_PEERS);
    }
    assert_eq!(asked, names);
    // Those that have said why not are not asked in turns for ever.
    carry_out(&mut view, &Plan::default(), |_| {
        Some(DeclareDeadResult::Refused)
    });
    let over = plan(&view, &|_, _| PATIENCE);
    assert!(over.tasks.is_empty(), "{over:?}");
    assert_eq!(only(&over).reason, "NoPeer");
}

#[test]
fn tasks_are_spread_over_the_peers() {
    let requests = ["a", "b"].map(|name| {
        let mut request = request(&json!({}));
        request.metadata.name = Some(name.into());
        request.metadata.uid = Some(name.into());
        request
    });
    let plan = at_once(&view(requests.into(), vec![peer("n2", 2), peer("n3", 3)]));
    let counts: Vec<usize> = plan.tasks.values().map(Vec::len).collect();
    assert_eq!(counts, [1, 1]);
}

/// Nobody held its locks any more: of the others the host is declared dead all the same.
#[test]
fn a_volume_group_without_a_lock_keeps_nobody_from_taking_over_the_others() {
    let unlocked = |request: &mut StorageFenceRequest, at: usize| {
        let node = request.status.as_mut().unwrap().node.as_mut().unwrap();
        let mut open = node.volume_groups[0].clone();
        (open.name, open.uuid) = ("open".into(), "uuid-of-open".into());
        (open.host_id, open.generation) = (None, None);
        node.volume_groups.insert(at, open);
    };
    for at in [0, 1] {
        let mut both = request(&json!({}));
        unlocked(&mut both, at);
        let mut view = view(vec![both], vec![peer("n2", 2)]);
        let first = at_once(&view);
        assert_eq!(first.tasks.get("n2"), Some(&vec![pin()]));
        assert_eq!(only(&first).reason, "Expediting");
        carry_out(&mut view, &first, |_| Some(DeclareDeadResult::Declared));
        let then = at_once(&view);
        assert_eq!(only(&then).reason, "TakenOver");
        for part in ["so it is", "volume group open"] {
            assert!(only(&then).message.contains(part), "{then:?}");
        }
        carry_out(&mut view, &then, |_| Some(DeclareDeadResult::Declared));
        let over = at_once(&view).tasks.remove("n2");
        assert_eq!(over, Some(Vec::new()), "its task goes");
    }
    let mut alone = request(&json!({}));
    unlocked(&mut alone, 1);
    let node = alone.status.as_mut().unwrap().node.as_mut().unwrap();
    node.volume_groups.remove(0);
    let plan = at_once(&view(vec![alone], vec![peer("n2", 2)]));
    assert!(plan.tasks.is_empty());
    assert_eq!(only(&plan).reason, "GenerationUnknown");
    assert_eq!(only(&plan).status, ConditionStatus::False);
}
