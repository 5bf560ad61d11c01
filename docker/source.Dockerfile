# The programs, built from source in an image that has Rust: `docker/build --builder IMAGE`. The
# result is what docker/build makes without a registry: /engine and /bench, roots of images to be.
ARG BUILDER=rust:1-bookworm
FROM ${BUILDER} AS build
ARG PROFILE=release
WORKDIR /src
COPY . .
RUN docker/build --profile "$PROFILE" --roots /roots

FROM scratch
COPY --from=build /roots/ /
