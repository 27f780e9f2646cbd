# Runs test suites and adds up what they say: sourced after common.sh, never run.
# shellcheck shell=bash
# shellcheck disable=SC2034  # the totals are for the script that sources this

total_passed=0
total_failed=0
summary=()
# What the suites said of their failures: at the end once more, where who reads a long log looks first.
failures=()

# Adds up both ways of saying it: Rust's `test result: ok. 3 passed; 0 failed; 1 ignored` and the plain `3 passed, 0 failed`.
# Prints passed, failed, not run.
count_results() {
  sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
    match($0, /[0-9]+ passed[;,] [0-9]+ failed/) {
      split(substr($0, RSTART, RLENGTH), n, /[^0-9]+/); p += n[1]; f += n[2]
      if (match($0, /[0-9]+ ignored/)) { split(substr($0, RSTART, RLENGTH), i, " "); s += i[1] }
    }
    END { print p + 0, f + 0, s + 0 }'
}

# what_failed LOG: what a suite said of each failure, in the words of Rust's tests, of our own runners and of hack/fuzz and hack/lint.
# All of the log is read: a reader that leaves early would end the one before it, and with it the whole run, before its summary.
what_failed() {
  sed 's/\x1b\[[0-9;]*m//g' "$1" |
    { grep -E -A 5 '(^|\.\.\. )FAILED( |$)|panicked at|^[a-z0-9-]+: .*not so: |^ERROR: libFuzzer|^error' || true; } |
    { grep -vE '\.\.\. ok$|^stack backtrace|^ *[0-9]+: |^ +at |^$' || true; } | cut -c 1-400 |
    sed -n 1,40p
}

# suite NAME LOG COMMAND...: runs it, counts, and adds a line to the summary. The numbers have to agree with the exit code: a suite
# that ran nothing, or that ended badly without naming a failure, counts as one failure.
suite() {
  local name=$1 log=$2 rc begin passed failed skipped note=
  shift 2
  printf '== %s: %s\n' "$name" "$*"
  begin=$SECONDS
  set +e
  # No terminal and no stdin: what passes here passes in CI. -e is for a COMMAND that is a function.
  (
    set -e
    "$@"
  ) </dev/null 2>&1 | tee "$log"
  rc=${PIPESTATUS[0]}
  set -e
  read -r passed failed skipped < <(count_results "$log")
  if [ "$failed" = 0 ] && [ "$rc" != 0 ]; then
    failed=1
    note=" (ended with exit code $rc)"
    [ "$rc" != 124 ] || note=" (ran out of time)"
  elif [ "$((passed + failed))" = 0 ]; then
    failed=1
    note=" (ran nothing)"
  fi
  [ "$failed" = 0 ] || failures+=("-- $name failed; its whole log is ${log#"$ROOT/"}"$'\n'"$(what_failed "$log")")
  [ "$skipped" = 0 ] || note="$note ($skipped not run)"
  total_passed=$((total_passed + passed))
  total_failed=$((total_failed + failed))
  summary+=("$(printf '%-12s %4d passed %4d failed %6d s%s' "$name" "$passed" "$failed" "$((SECONDS - begin))" "$note")")
}

print_summary() {
  printf '\n'
  [ ${#failures[@]} = 0 ] || printf '%s\n' "${failures[@]}" ''
  printf '%s\n' "${summary[@]}"
  printf '%d passed, %d failed\n' "$total_passed" "$total_failed"
}
