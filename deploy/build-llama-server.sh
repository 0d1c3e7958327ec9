#!/bin/sh
# Builds llama.cpp's server for this machine from pinned source and puts it where edge-runtime finds it.
#
#   deploy/build-llama-server.sh [PREFIX] [CMAKE_OPTION]...      PREFIX: ~/.local; the result is PREFIX/bin/llama-server
#
# On a Jetson with JetPack:  deploy/build-llama-server.sh /usr/local -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=87
# The source is that inside the sdist of llama-cpp-python, which PyPI keeps; pip checks its hash. Needs python3 with pip,
# cmake, a C++ compiler, 1 GB of disk; eight minutes on two quiet x86-64 cores. JOBS=1 for a board with 2 GB of memory.
set -eu

version=0.3.36
commit=0c1e57098 # of ggml-org/llama.cpp, which that version carries
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e

prefix=${1:-$HOME/.local}
[ $# -eq 0 ] || shift
jobs=${JOBS:-$(nproc)}

fail() {
    echo "build-llama-server: $1" >&2
    exit 1
}
for tool in python3 cmake c++ make; do
    command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install python3-pip cmake g++ make"
done
mkdir -p "$prefix/bin" || fail "$prefix/bin cannot be written"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

cd "$work"
printf 'llama-cpp-python==%s --hash=sha256:%s\n' "$version" "$sha256" >pin.txt
python3 -m pip download -q --no-deps --no-binary llama-cpp-python --require-hashes -r pin.txt ||
    fail "pip could not fetch llama-cpp-python $version"
tar xzf "llama_cpp_python-$version.tar.gz"
cmake -S "llama_cpp_python-$version/vendor/llama.cpp" -B build \
    -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_COMMIT="$commit" "$@" >configure.log 2>&1 || { tail -n 5 configure.log >&2; fail "cmake is not content"; }
echo "build-llama-server: compiling with $jobs jobs"
cmake --build build --target llama-server -j "$jobs" >build.log 2>&1 || { tail -n 5 build.log >&2; fail "it does not compile"; }
install -m 755 build/bin/llama-server "$prefix/bin/llama-server"
echo "build-llama-server: $prefix/bin/llama-server, $("$prefix/bin/llama-server" --version 2>&1 | sed -n 's/^version: //p')"
