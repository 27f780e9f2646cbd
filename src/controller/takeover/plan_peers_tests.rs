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
