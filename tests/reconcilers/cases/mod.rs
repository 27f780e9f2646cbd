//! The cases, by subject. A stage stands on what its preparation makes, whatever came before.

mod cost;
mod credentials;
mod crowd;
mod definitions;
mod dry_run;
mod escalation;
mod evictions;
mod examples;
mod failures;
mod half_way;
mod history;
mod installation;
mod life;
mod machine_health;
mod on_demand;
mod policies;
mod policy_health;
mod policy_settings;
mod refusals;
mod remediation;
mod takeover;

use k8s_openapi::api::apps::v1::DaemonSet;

use crate::bed::Bed;
use crate::case;
use crate::health;
use crate::runner::Stage;
use crate::support::Result;
use crate::wait::{LIMIT, until};

/// All of them, in order.
#[expect(clippy::too_many_lines, reason = "a list")]
pub fn stages() -> Vec<Stage> {
    vec![
        Stage {
            name: "definitions",
            prepare: |bed| Box::pin(bed.install_crds()),
            at_a_time: 4,
            cases: vec![
                case!(definitions::the_crds_are_established),
                case!(definitions::the_rules_of_the_schema_hold),
                case!(definitions::kubectl_shows_finds_and_explains),
                case!(definitions::the_status_is_written_apart),
                case!(policies::a_policy_that_makes_no_sense_is_refused),
            ],
        },
        Stage {
            name: "installation",
            prepare: |_| Box::pin(async { Ok(()) }),
            at_a_time: 1,
            cases: vec![
                case!(installation::kustomize_installs_and_removes),
                case!(installation::helm_installs_upgrades_and_uninstalls),
            ],
        },
        Stage {
            name: "resident",
            prepare: |bed| Box::pin(resident(bed)),
            at_a_time: 5,
            cases: vec![
                case!(life::a_request_is_carried_out_and_told),
                case!(life::nothing_is_written_while_nothing_changes),
                case!(life::a_fence_that_is_opened_is_closed_and_told_with_its_time),
                case!(dry_run::a_dry_run_touches_nothing_and_lists_what_the_run_does),
                case!(refusals::an_unknown_node_is_named_and_waited_for),
                case!(refusals::a_node_without_an_agent_is_said_so_in_time),
                case!(refusals::volume_groups_that_must_not_be_fenced_are_refused),
                case!(refusals::the_older_of_two_requests_governs),
                case!(refusals::without_device_mapper_nothing_is_touched),
                case!(refusals::without_lvmlockd_or_sanlock_nothing_is_touched),
                case!(refusals::a_lockspace_that_a_new_lvmlockd_does_not_know_is_waited_for),
                case!(failures::what_reaches_the_san_without_a_lock_is_told),
                case!(half_way::a_request_deleted_half_way_is_completed_and_told),
                case!(half_way::a_request_deleted_half_way_gives_back_what_it_fenced),
                case!(half_way::a_spec_changed_half_way_waits_for_its_turn),
                case!(half_way::the_agents_successor_completes_the_fence),
                case!(cost::ours_are_served_before_what_pods_ask),
                case!(credentials::an_agent_writes_for_its_own_node_only),
                case!(credentials::a_token_that_names_no_node_is_refused),
                case!(credentials::no_agent_changes_what_is_asked_of_a_node),
                case!(takeover::a_healthy_peer_declares_a_fenced_node_dead),
                case!(takeover::a_peer_that_sees_another_generation_refuses),
                case!(takeover::a_task_that_the_api_server_refuses_is_told_and_goes_to_another),
                case!(policies::a_node_fences_itself_by_policy_and_records_it_once),
                case!(policies::a_policy_that_reports_touches_nothing),
                case!(policies::of_two_policies_it_is_said_which_governs),
                case!(policies::the_conditions_say_unknown_when_the_agent_is_gone),
                case!(policies::an_agent_records_and_tells_for_its_own_node_only),
                case!(policy_settings::a_policy_with_dry_run_plans_and_touches_nothing),
                case!(policy_settings::a_policy_that_keeps_the_locks_fences_and_releases_none),
                case!(policy_settings::a_policy_has_its_fenced_node_declared_dead),
                case!(policy_settings::a_condition_of_the_node_sets_a_policy_off),
                case!(
                    policy_settings::a_condition_fences_working_paths_only_where_the_policy_says_so
                ),
                case!(history::as_many_records_stay_as_the_policy_says),
                case!(evictions::the_affected_pods_are_evicted_and_no_other),
                case!(evictions::no_pod_is_evicted_without_proof),
                case!(evictions::a_disruption_budget_holds_an_eviction_up),
                case!(evictions::an_eviction_means_one_pod_and_not_its_name),
                case!(evictions::evictions_by_policy_wait_while_too_many_nodes_are_lost),
            ],
        },
        Stage {
            name: "health",
            prepare: |bed| Box::pin(node_health(bed)),
            at_a_time: 4,
            cases: vec![
                case!(remediation::nhc_has_a_node_fenced_and_takes_it_back),
                case!(remediation::what_cannot_help_is_said_at_once_and_then_stopped),
                case!(remediation::a_node_without_an_agent_is_given_up_in_time),
                case!(remediation::a_remediation_that_times_out_begins_nothing_more),
                case!(remediation::the_node_is_the_name_where_nothing_else_says_it),
                case!(remediation::a_lost_node_or_boot_frees_the_remediation),
                case!(remediation::a_template_says_whom_it_could_serve),
                case!(escalation::a_second_template_fences_what_the_first_would_not),
                case!(escalation::a_second_template_rests_on_what_the_first_had_begun),
                case!(machine_health::mhc_has_the_node_of_its_machine_fenced),
                case!(machine_health::what_cannot_be_fenced_for_mhc_waits_and_says_why),
                case!(machine_health::without_its_template_mhc_takes_back_what_it_made),
                case!(machine_health::a_machine_that_is_deleted_takes_its_remediation_along),
                case!(
                    machine_health::a_machine_that_is_called_like_another_node_is_not_taken_for_it
                ),
                case!(examples::every_example_is_taken_as_it_is),
                case!(examples::the_nhc_example_does_what_it_says),
                case!(examples::the_mhc_example_does_what_it_says),
                case!(examples::the_node_problem_detector_example_does_what_it_says),
                case!(policy_health::nhc_gives_back_what_a_policy_had_fenced),
                case!(policy_health::both_a_request_and_a_record_are_given_back),
                case!(policy_health::what_nhc_gave_up_or_a_person_asked_for_stays_fenced),
            ],
        },
        Stage {
            name: "failures",
            prepare: |bed| Box::pin(resident(bed)),
            at_a_time: 1,
            cases: vec![
                case!(cost::the_first_step_comes_at_once),
                case!(own cost::an_idle_cluster_is_left_alone),
                case!(failures::an_unreadable_request_stops_nobody),
                case!(failures::a_dead_leader_does_not_hold_the_fence_up),
                case!(policy_health::what_stood_at_the_deletion_is_given_back_by_the_next_leader),
                case!(
                    policy_health::what_stood_is_given_back_although_a_person_deleted_the_own_request
                ),
                case!(own failures::a_fence_needs_no_api_server),
                case!(own policies::a_policy_needs_no_api_server),
            ],
        },
        Stage {
            name: "on demand",
            prepare: |bed| Box::pin(on_demand(bed)),
            at_a_time: 2,
            cases: vec![
                case!(on_demand::the_agent_comes_when_needed_and_goes),
                case!(on_demand::an_agent_that_fenced_stays),
            ],
        },
    ]
}

/// Those that take minutes: `-- long`, or by name.
pub fn long() -> Vec<Stage> {
    vec![Stage {
        name: "crowd",
        prepare: |bed| Box::pin(resident(bed)),
        at_a_time: 1,
        cases: vec![case!(
            own crowd::a_hundred_requests_at_once_among_a_thousand_nodes
        )],
    }]
}

async fn resident(bed: &Bed) -> Result {
    bed.install("Resident").await?;
    bed.controllers.only_one(bed, "Resident").await
}

async fn node_health(bed: &Bed) -> Result {
    // The controller may be the one of the stage before.
    resident(bed).await?;
    health::prepare(bed).await
}

async fn on_demand(bed: &Bed) -> Result {
    bed.install("OnDemand").await?;
    // A Node that joins before the DaemonSet's controller has seen the new node selector would be given a pod by the old one.
    until(
        "the DaemonSet's controller has seen the change",
        LIMIT,
        async || {
            let set = bed.ours::<DaemonSet>().get("storage-fence-agent").await?;
            let seen = set.status.and_then(|status| status.observed_generation);
            Ok(if seen == set.metadata.generation {
                Ok(())
            } else {
                Err(format!("it has seen generation {seen:?}"))
            })
        },
    )
    .await?;
    bed.controllers.only_one(bed, "OnDemand").await
}
