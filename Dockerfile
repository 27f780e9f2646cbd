# `docker build .` compiles and packs. hack/image packs a static binary that is already there, in place of the first stage.
# The image is the one binary and nothing else: no shell, no library, nothing to update.

FROM rust:1.95-bookworm AS build
WORKDIR /src
# Without rust-toolchain.toml: for its clippy and rustfmt rustup would fetch a toolchain that is there already. hack/lint holds the versions together.
COPY Cargo.toml Cargo.lock ./
COPY src ./src
# --target keeps the flags away from build scripts and proc macros, which cannot be static.
RUN host="$(rustc -vV | sed -n 's/^host: //p')" \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo rustc --locked --release --bin storage-fence --target "$host" \
    -- -C link-arg=-Wl,-z,pack-relative-relocs \
 && install -m 0755 "target/$host/release/storage-fence" /storage-fence

FROM scratch
LABEL org.opencontainers.image.title="storage-fence-operator" \
      org.opencontainers.image.description="Fences a node's SAN storage instead of the node" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /storage-fence /storage-fence
ENTRYPOINT ["/storage-fence"]
