# Shared by the scripts of hack/: sourced, never run.
# shellcheck shell=bash
# shellcheck disable=SC2034  # the variables are for the scripts that source this

set -euo pipefail

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
export PATH

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

# make_once NAME KEY COMMAND...: makes $CACHE/NAME/KEY by `COMMAND... FOLDER`, unless it is there, and prints its path.
# Two runs at once: the second waits. A run that dies half-way leaves nothing that looks finished.
make_once() {
  local name=$1 key=$2
  shift 2
  local done_dir="$CACHE/$name/$key"
  if [ ! -d "$done_dir" ]; then
    mkdir -p "$CACHE/$name"
    (
      flock -n 9 || {
        say "$name: another run is making it, waiting"
        flock 9
      }
      [ ! -d "$done_dir" ] || exit 0
      local work
      work=$(mktemp -d "$CACHE/$name/.making.XXXXXX")
      # Not a child of the lock: a daemon that COMMAND leaves behind must not hold it.
      if "$@" "$work" 9>&- >&2; then
        mv -T "$work" "$done_dir"
      else
        rm -rf "$work"
        exit 1
      fi
    ) 9>"$CACHE/$name/.lock" || die "$name could not be made (see above)"
  fi
  printf '%s\n' "$done_dir"
}
