# Shared by the scripts of hack/: sourced, never run.
# shellcheck shell=bash
# shellcheck disable=SC2034  # the variables are for the scripts that source this

set -euo pipefail
# Without it, -e does not hold inside $(...).
shopt -s inherit_errexit

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$ROOT"

# What is slow to make lives outside the clone, so that the next clone finds it.
CACHE=${SFO_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/storage-fence-operator}

# rustup puts cargo there, and a non-login shell does not look there.
case ":$PATH:" in
  *":$HOME/.cargo/bin:"*) ;;
  *) PATH=$HOME/.cargo/bin:$PATH ;;
esac
[ ! -d /usr/local/go/bin ] || PATH=$PATH:/usr/local/go/bin
export PATH ROOT CACHE

# Says what is going on, on stderr: stdout is for results.
say() { printf '%s\n' "$*" >&2; }

# Ends with a message that says what to do next.
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Version of the project, from Cargo.toml: the one place that states it.
project_version() {
  sed -n 's/^version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml" | head -n 1
}

# One hash over the content (and the names) of files and folders.
content_key() {
  # Sorted by name in the C locale: the same sources give the same key on every machine.
  find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-20
}

# with_progress WHAT COMMAND...: runs it, and says every minute for how long it has been at it: a build that prints nothing looks like one that hangs.
# SFO_PROGRESS_SECONDS is the time between two lines.
with_progress() {
  local what=$1 every=${SFO_PROGRESS_SECONDS:-60} ticker result=0
  shift
  (
    begin=$SECONDS
    # Asked each second, so that it ends with whom it speaks for, killed or not.
    while kill -0 $$ 2>/dev/null && sleep 1; do
      past=$((SECONDS - begin))
      ((past == 0 || past % every != 0)) || say "$what: still at it after $past s"
    done
  ) </dev/null >/dev/null 9>&- &
  ticker=$!
  "$@" || result=$?
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  return "$result"
}

# make_once NAME KEY FUNCTION [ARGUMENT...]: makes $CACHE/NAME/KEY by `FUNCTION ARGUMENT... FOLDER`, unless it is there, and prints its path.
# Two runs at once: the second waits. A run that dies half-way leaves nothing that looks finished.
# FUNCTION sees exported variables only.
make_once() {
  local name=$1 key=$2
  shift 2
  local finished="$CACHE/$name/$key"
  if [ ! -d "$finished" ]; then
    mkdir -p "$CACHE/$name"
    export -f say die "${1?}"
    # A shell of its own: called from a condition, a function would go on after an error in spite of -e. The lock's descriptor is
    # closed for it, so that what it leaves running cannot hold the lock.
    (
      flock -n 9 || {
        say "$name: another run is making it, waiting"
        flock 9
      }
      [ ! -d "$finished" ] || exit 0
      # What an earlier run left when it was killed; nobody else makes anything while we hold the lock.
      rm -rf "$CACHE/$name"/.making.*
      work=$(mktemp -d "$CACHE/$name/.making.XXXXXX")
      if with_progress "$name" bash -euo pipefail -O inherit_errexit -c '"$@"' make_once "$@" "$work" 9>&- >&2; then
        chmod 0755 "$work"
        mv -T "$work" "$finished"
      else
        rm -rf "$work"
        exit 1
      fi
    ) 9>"$CACHE/$name/.lock" || die "$name could not be made (see above)"
  fi
  # Used today: what nobody used for two weeks goes away, or the cache would grow with every change of the sources.
  touch "$finished"
  find "$CACHE/$name" -mindepth 1 -maxdepth 1 -type d -mtime +14 -exec rm -rf {} +
  printf '%s\n' "$finished"
}
