# Sourced by tools/quickstart and tools/check: makes sure that what the build needs is there.
# Debian and Ubuntu: installs by apt (with sudo when not root). Elsewhere: prints the names and stops.

debian_packages="g++ meson ninja-build pkg-config libxsimd-dev libtbb-dev libblis-serial-dev liblapacke-dev
liblapack-dev gfortran libfmt-dev nlohmann-json3-dev libcli11-dev zlib1g-dev libzip-dev libpng-dev libeigen3-dev
libspectra-dev gnuplot-nox dataset-fashion-mnist"
debian_test_packages="libgtest-dev python3"
debian_bench_packages="libbenchmark-dev"

say() { printf '%s\n' "$*" >&2; }

require_packages() { # names of further package lists
  wanted=$debian_packages
  for list in "$@"; do eval "wanted=\"\$wanted \$$list\""; done
  if ! command -v apt-get >/dev/null 2>&1; then
    [ "${GRADGRAM_PACKAGES:-}" = present ] && return 0
    say "This is not a Debian or Ubuntu system: install the packages below, then run again with GRADGRAM_PACKAGES=present."
    say "  Fedora:   dnf install gcc-c++ meson ninja-build pkgconf xsimd-devel tbb-devel blis-devel lapack-devel" \
      "gcc-gfortran fmt-devel json-devel cli11-devel zlib-devel libzip-devel libpng-devel eigen3-devel spectra-devel" \
      "gnuplot gtest-devel google-benchmark-devel python3"
    say "  Arch:     pacman -S gcc meson ninja pkgconf xsimd onetbb blis lapacke gcc-fortran fmt nlohmann-json cli11" \
      "zlib libzip libpng eigen spectra gnuplot gtest benchmark python"
    say "  Homebrew: brew install gcc meson ninja pkg-config xsimd tbb blis lapack fmt nlohmann-json cli11 libzip" \
      "libpng eigen spectra gnuplot googletest google-benchmark python"
    exit 1
  fi
  missing=
  for package in $wanted; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
  done
  [ -z "$missing" ] && return 0
  run=
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 || {
      say "Neither root nor sudo: ask an administrator to run apt-get install$missing"
      exit 1
    }
    run=sudo
  fi
  $run apt-get update -qq
  installable=
  for package in $missing; do
    if apt-cache show "$package" >/dev/null 2>&1; then
      installable="$installable $package"
    elif [ "$package" != dataset-fashion-mnist ]; then # without the data set the sample inside the program serves
      say "apt knows no package $package on this release (Debian 12 has it)."
      exit 1
    fi
  done
  [ -z "$installable" ] && return 0
  say "Installing:$installable"
  # shellcheck disable=SC2086  # a list of words is meant
  $run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $installable >/dev/null
}
